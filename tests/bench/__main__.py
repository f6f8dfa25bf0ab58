"""How fast a bulk read is, beside what it costs at the least, and how fast an export is, beside a script.

`docs/performance.md` explains the figures. Run it from the root of the checkout: `python -m tests.bench --traces 20000
--database both`, or with `--export` for the session files alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from etl.runtime import prepare_for_bulk
from tests.bench import exports, floor
from tests.bench.measure import (
    Database,
    Postgres,
    Seconds,
    Server,
    SQLite,
    count_rows,
    forget_peak_memory,
    least_requests,
    peak_memory_mib,
    read_again,
    recorded_urls,
    running_server,
    sync,
    timed,
)

DATABASES: dict[str, Callable[[ExitStack], Database]] = {"sqlite": SQLite, "postgres": Postgres}
WAYS = {
    "download": "download only",
    "parse": "download, parse",
    "floor": "practical floor",
    "first_sync": "first sync",
    "read_again": "unchanged re-read",
}
# What is to be compared with what, and how much it may be at most (`docs/performance.md`).
RATIOS = {
    "first_sync / floor": ("first_sync", "floor", 1.2),
    "read_again / parse": ("read_again", "parse", 1.1),
    "floor / download": ("floor", "download", None),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 if rows are missing or an unchanged row was written, never because of slowness."""
    given = _parser().parse_args(arguments)
    prepare_for_bulk()  # as the command does
    kinds = list(DATABASES) if given.database == "both" else [given.database]
    report: dict[str, Any] = {
        "traces": given.traces,
        "rounds": given.rounds,
        "api": given.api,
        "machine": {"processors": os.cpu_count(), "system": platform.system(), "python": platform.python_version()},
        "databases": {},
    }
    if given.export:
        return _compare_exports(given, kinds, report)
    with running_server(given.traces, given.api) as server:
        for kind in kinds:
            with ExitStack() as stack:
                database = DATABASES[kind](stack)
                report["databases"][kind] = measure(database, server, given.rounds)
            print_table(kind, report["databases"][kind])
    return _finish(given, report, mistakes_in)


def _compare_exports(given: argparse.Namespace, kinds: Sequence[str], report: dict[str, Any]) -> int:
    """One big session, and one a tenth of its size; every tenth trace has no session."""
    one_session = ("--traces-per-session", str(given.traces))
    with (
        running_server(given.traces * 10 // 9, given.api, *one_session) as large,
        running_server(given.traces // 9, given.api, *one_session) as small,
    ):
        for kind in kinds:
            with ExitStack() as stack:
                report["databases"][kind] = exports.measure(DATABASES[kind](stack), large, small, given.rounds)
            exports.print_table(kind, report["databases"][kind])
    return _finish(given, report, exports.mistakes_in)


def _finish(
    given: argparse.Namespace, report: dict[str, Any], mistakes_of: Callable[[dict[str, Any]], list[str]]
) -> int:
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    mistakes = [f"{kind}: {text}" for kind, result in report["databases"].items() for text in mistakes_of(result)]
    sys.stderr.write("".join(f"{text}\n" for text in mistakes))
    return 1 if mistakes else 0


def measure(database: Database, server: Server, rounds: int) -> dict[str, Any]:
    """Every way of reading in turn, `rounds` times, on one kind of database."""
    engine = database.new()
    forget_peak_memory()
    with recorded_urls() as urls:
        requests = sync(engine, server).requests
    peak = peak_memory_mib()
    rows = {"first_sync": count_rows(engine)}
    engine.dispose()
    least = least_requests(urls, rows["first_sync"])
    seconds: dict[str, list[Seconds]] = {way: [] for way in WAYS}
    written = 0
    for _ in range(rounds):
        seconds["download"].append(timed(floor.download, urls)[0])
        seconds["parse"].append(timed(floor.download_and_parse, urls)[0])
        engine = database.new()
        seconds["floor"].append(timed(database.fill_by_hand, engine, urls)[0])
        rows["floor"] = count_rows(engine)
        engine.dispose()
        engine = database.new()
        seconds["first_sync"].append(timed(sync, engine, server)[0])
        took, again = timed(read_again, engine, server)
        seconds["read_again"].append(took)
        written += again.total("rows_written")
        engine.dispose()
    best = {way: Seconds(min(t.wall for t in all_), min(t.cpu for t in all_)) for way, all_ in seconds.items()}
    return {
        "rows": rows,
        "requests": {"used": requests, "pages": len(urls), "least": least, "ratio": round(len(urls) / least, 3)},
        "peak_memory_mib": peak,
        "rows_written_by_read_again": written,
        "seconds": {way: asdict(took) for way, took in best.items()},
        "ratios": {name: _ratios(best[upper], best[lower]) for name, (upper, lower, _) in RATIOS.items()},
        "rounds": {way: [asdict(took) for took in all_rounds] for way, all_rounds in seconds.items()},
    }


def _ratios(upper: Seconds, lower: Seconds) -> dict[str, float]:
    return {"wall": round(upper.wall / lower.wall, 2), "cpu": round(upper.cpu / lower.cpu, 2)}


def mistakes_in(result: dict[str, Any]) -> list[str]:
    """What a benchmark may fail for."""
    found = []
    if result["rows"]["floor"] != result["rows"]["first_sync"]:
        found.append(f"not the same rows: {result['rows']}")
    if result["rows_written_by_read_again"]:
        found.append(f"{result['rows_written_by_read_again']} unchanged rows were written")
    return found


def print_table(kind: str, result: dict[str, Any]) -> None:
    rows, requests = sum(result["rows"]["first_sync"].values()), result["requests"]
    others, peak = requests["used"] - requests["pages"], result["peak_memory_mib"]
    lines = [f"{kind}: {rows:,} rows; best of {len(result['rounds']['floor'])} rounds", ""]
    lines.append(f"{'':20}{'wall s':>9}{'cpu s':>9}{'rows/s':>9}")
    for way, title in WAYS.items():
        took = result["seconds"][way]
        lines.append(f"{title:20}{took['wall']:9.2f}{took['cpu']:9.2f}{rows / took['wall']:9,.0f}")
    lines += ["", f"{'':20}{'wall':>9}{'cpu':>9}{'goal':>9}"]
    for name, (_, _, goal) in RATIOS.items():
        ratio = result["ratios"][name]
        lines.append(f"{name:20}{ratio['wall']:9.2f}{ratio['cpu']:9.2f}{goal or '':>9}")
    lines.append("")
    lines.append(
        f"requests: {requests['pages']} pages for {requests['least']} full ones ({requests['ratio']}), and"
        f" {others} others; peak memory of the first sync: {peak} MiB"
    )
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measure a bulk read.")
    parser.add_argument("--traces", type=int, default=20_000, help="default: %(default)s, with 5 observations each")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s; the best counts")
    parser.add_argument("--database", choices=(*DATABASES, "both"), default="both")
    parser.add_argument("--api", choices=("v3", "v4"), default="v3", help="what the mock server is; default: v3")
    parser.add_argument("--export", action="store_true", help="compare the export of one big session with a script")
    parser.add_argument("--json", type=Path, help="write all figures to this file as well")
    return parser


if __name__ == "__main__":
    sys.exit(main())
