"""How long a week of each view takes in a large database; `docs/performance.md` has the figures.

Run it from the root of the checkout: `python -m tests.bench.views --traces 200000 --database both`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from sqlalchemy import Engine

from etl.load.engine import reading, schema_of, writing
from tests.bench.made_rows import PROJECT, make_rows
from tests.bench.measure import Database, Postgres, SQLite

DATABASES: dict[str, Callable[[ExitStack], Database]] = {"sqlite": SQLite, "postgres": Postgres}
_FIRST, _END = "2026-10-20", "2026-10-27"
WEEKS = {
    "trace_summary": f"timestamp >= '{_FIRST}' AND timestamp < '{_END}'",
    "session_summary": f"last_timestamp >= '{_FIRST}' AND last_timestamp < '{_END}'",
    "user_summary": f"last_timestamp >= '{_FIRST}'",
    "daily_usage": f"day >= '{_FIRST}' AND day < '{_END}'",
    "daily_cost": f"day >= '{_FIRST}' AND day < '{_END}'",
    "latency_daily": f"day >= '{_FIRST}' AND day < '{_END}'",
    "score_summary": f"day >= '{_FIRST}' AND day < '{_END}'",
    "error_observations": f"start_time >= '{_FIRST}' AND start_time < '{_END}'",
    "prompt_version_stats": f"last_used >= '{_FIRST}'",
    "sync_coverage": f"range_end >= '{_FIRST}'",
}
_GOAL_S = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 if a view took longer than its goal."""
    given = _parser().parse_args(arguments)
    slow = False
    for kind in list(DATABASES) if given.database == "both" else [given.database]:
        with ExitStack() as stack:
            engine = DATABASES[kind](stack).new()
            began = time.perf_counter()
            with writing(engine) as conn:
                make_rows(conn, traces=given.traces)
            sys.stdout.write(
                f"{kind}: {given.traces:,} traces, {5 * given.traces:,} observations, {given.traces:,} scores;"
                f" made in {time.perf_counter() - began:.0f} s\n\n"
                f"{'':24}{'week s':>8}{'cpu s':>8}{'and project s':>15}{'cpu s':>8}{'rows':>9}\n"
            )
            if kind == "postgres":
                _settle(engine)
            for view, week in WEEKS.items():
                wall, cpu, rows = _best(engine, view, week, given.rounds)
                wall_2, cpu_2, _ = _best(engine, view, f"project_id = '{PROJECT}' AND {week}", given.rounds)
                slow |= max(wall, wall_2) > _GOAL_S
                sys.stdout.write(f"{view:24}{wall:8.2f}{cpu:8.2f}{wall_2:15.2f}{cpu_2:8.2f}{rows:9,}\n")
                sys.stdout.flush()
            sys.stdout.write("\n")
            engine.dispose()
    return int(slow)


def _settle(engine: Engine) -> None:
    """What autovacuum does within minutes."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
        conn.exec_driver_sql("VACUUM ANALYZE")


def _best(engine: Engine, view: str, condition: str, rounds: int) -> tuple[float, float, int]:
    """The fastest round with all rows fetched: seconds, of them processor time of this process, and rows.

    Postgres works in processes of its own; SQLite in this one. Rows come from the driver itself, as for those who
    open the database with another tool; SQLAlchemy would take up to half a second more for 90,000 of them.
    """
    best, rows = (float("inf"), 0.0), 0
    for _ in range(rounds):
        with reading(engine) as conn:
            schema = schema_of(conn)
            name = f"{schema}.{view}" if schema else view
            cursor = conn.connection.cursor()
            wall, cpu = time.perf_counter(), time.process_time()
            cursor.execute(f"SELECT * FROM {name} WHERE {condition}")
            rows = len(cursor.fetchall())
            best = min(best, (time.perf_counter() - wall, time.process_time() - cpu))
    return *best, rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.views", description="Measure a week of each view.")
    parser.add_argument("--traces", type=int, default=200_000, help="default: %(default)s, 5 observations each")
    parser.add_argument("--rounds", type=int, default=2, help="default: %(default)s; the best counts")
    parser.add_argument("--database", choices=(*DATABASES, "both"), default="both")
    return parser


if __name__ == "__main__":
    sys.exit(main())
