"""A filter on a day or an instant reaches an index in every view, with and without the project; so do ids of traces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from databases import Databases
from sqlalchemy import Engine, event, select

from etl.load.engine import reading, schema_of, writing
from etl.load.queries import rows_of_traces, traces_with_part_ids
from etl.load.tables import ROW_TABLES, traces
from etl.transform.documents import DOCUMENT_COLUMNS
from tests.bench.made_rows import PROJECT, make_rows

DAY = "= '2026-10-20'"
INSTANTS = "{0} >= '2026-10-20' AND {0} < '2026-10-21'"
# View -> filter, index it is to be read by on SQLite, and on Postgres.
VIEWS = {
    "trace_summary": (
        INSTANTS.format("timestamp"),
        ["vx_traces_timestamp", "SEARCH o USING PRIMARY KEY"],
        ["vx_traces_timestamp", "Index Only Scan using vx_observations_trace"],
    ),
    "daily_usage": (f"day {DAY}", ["vx_observations_day"], ["vx_observations_day"]),
    "daily_cost": (f"day {DAY}", ["vx_observations_day", "vx_traces_id"], ["vx_observations_day"]),
    "latency_daily": (f"day {DAY}", ["vx_observations_day", "vx_traces_day"], ["vx_observations_day", "vx_traces_day"]),
    "score_summary": (f"day {DAY}", ["vx_scores_day"], ["vx_scores_day"]),
    "error_observations": (INSTANTS.format("start_time"), ["vx_observations_errors"], ["vx_observations_errors"]),
    "prompt_version_stats": ("prompt_name = 'prompt 1'", ["vx_observations_prompt"], ["vx_observations_prompt"]),
    "session_summary": ("session_id = 'session 7'", ["session"], ["session_id"]),
    "user_summary": ("user_id = 'user 7'", ["vx_traces_user"], ["vx_traces_user"]),
}
BY_PROJECT = {"vx_traces_timestamp": "ix_traces_project_id_timestamp"}  # is as good


@pytest.fixture(scope="module")
def sqlite(databases: Databases) -> Iterator[Engine]:
    yield from filled(databases, "sqlite")


@pytest.fixture(scope="module")
def postgres(databases: Databases) -> Iterator[Engine]:
    yield from filled(databases, "postgres")


def filled(databases: Databases, kind: str) -> Iterator[Engine]:
    with databases.lent(kind) as engine:
        with writing(engine) as conn:
            make_rows(conn, traces=3000, io_bytes=20)
            if kind == "postgres":
                conn.exec_driver_sql("ANALYZE")
        yield engine


@pytest.mark.parametrize("with_project", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_sqlite_searches_indexes(sqlite: Engine, view: str, with_project: bool) -> None:
    """Without any statistics, as the program leaves the file."""
    condition, wanted, _ = VIEWS[view]
    project = f"project_id = '{PROJECT}' AND " if with_project else ""
    with reading(sqlite) as conn:
        query = f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE {project}{condition}"
        steps = [row[-1] for row in conn.exec_driver_sql(query)]
    plan = "\n".join(steps)

    for index in wanted:
        assert index in plan or (with_project and BY_PROJECT.get(index, index) in plan), plan
    if with_project or view not in ("session_summary", "user_summary", "prompt_version_stats"):
        whole = [step for step in steps if step.startswith("SCAN ") and step.split()[1] in ("o", "t", "x", "c")]
        # The result of an inner query is called `c` in daily_cost; the index of errors has few rows.
        allowed = ("SCAN c",) if view == "daily_cost" else ("SCAN o USING COVERING INDEX vx_observations_errors",)
        assert [step for step in whole if step not in allowed] == [], plan


@pytest.mark.parametrize("with_project", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_postgres_can_use_indexes(postgres: Engine, view: str, with_project: bool) -> None:
    condition, _, wanted = VIEWS[view]
    project = f"project_id = '{PROJECT}' AND " if with_project else ""
    with reading(postgres) as conn:
        conn.exec_driver_sql(f"SET LOCAL search_path TO {schema_of(conn)}")
        # The tables of a test are so small that reading all of them is cheap.
        conn.exec_driver_sql("SET LOCAL enable_seqscan TO off")
        rows = conn.exec_driver_sql(f"EXPLAIN SELECT * FROM {view} WHERE {project}{condition}")
        plan = "\n".join(row[0] for row in rows)

    for index in wanted:
        assert index in plan or (with_project and BY_PROJECT.get(index, index) in plan), plan
    assert "Seq Scan" not in plan, plan


@pytest.mark.parametrize("view", ["daily_usage", "daily_cost", "latency_daily", "score_summary"])
def test_postgres_knows_how_many_rows_a_day_has(postgres: Engine, view: str) -> None:
    """By a guess of one in two hundred it looks up the traces of a large database one by one."""
    with reading(postgres) as conn:
        conn.exec_driver_sql(f"SET LOCAL search_path TO {schema_of(conn)}")
        query = f"EXPLAIN (FORMAT JSON) SELECT * FROM {view} WHERE day {DAY}"
        (plans,) = conn.exec_driver_sql(query).scalars()
    reads = [step for step in steps_of(plans[0]["Plan"]) if step.get("Index Name", "").endswith("_day")]
    assert reads
    for step in reads:
        calls_or_traces = 200 if step["Index Name"] == "vx_observations_day" else 100
        assert calls_or_traces / 2 < step["Plan Rows"] < calls_or_traces * 2, step


def steps_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from steps_of(part)


@pytest.mark.parametrize("view", ["trace_summary", "session_summary", "user_summary"])
def test_sqlite_looks_the_totals_of_a_trace_up_once_for_all_columns(sqlite: Engine, view: str) -> None:
    with reading(sqlite) as conn:
        steps = [row[-1] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM {view}")]
    assert [step.split(" (")[0] for step in steps if " o " in step] == ["SEARCH o USING PRIMARY KEY"]


@pytest.mark.parametrize("view", ["daily_usage", "daily_cost", "latency_daily", "score_summary"])
def test_sqlite_reads_nothing_but_the_index(sqlite: Engine, view: str) -> None:
    """A day's rows lie scattered in the table; in the index they lie together."""
    with reading(sqlite) as conn:
        steps = [row[-1] for row in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT * FROM {view} WHERE day {DAY}")]
    searches = [step for step in steps if " USING " in step and "TEMP B-TREE" not in step]
    assert searches
    assert [step for step in searches if "COVERING INDEX" not in step] == []


def test_the_newest_traces_come_without_reading_all(sqlite: Engine) -> None:
    with reading(sqlite) as conn:
        query = "EXPLAIN QUERY PLAN SELECT * FROM trace_summary ORDER BY timestamp DESC LIMIT 20"
        steps = [row[-1] for row in conn.exec_driver_sql(query)]
    assert steps[0] == "SCAN t USING INDEX vx_traces_timestamp"
    assert not any("TEMP B-TREE" in step for step in steps)


def test_postgres_looks_up_what_belongs_to_a_few_traces(postgres: Engine) -> None:
    """However few rows there are: of a table that was just filled it does not know how many."""
    sent: list[tuple[str, Any]] = []
    with reading(postgres) as conn:
        ids = list(conn.execute(select(traces.c.id).limit(64)).scalars())
        event.listen(conn, "before_cursor_execute", lambda *given: sent.append(given[2:4]))
        for table, columns in DOCUMENT_COLUMNS.items():
            rows_of_traces(conn, ROW_TABLES[table], PROJECT, ids, columns)
        traces_with_part_ids(conn, PROJECT, ids, DOCUMENT_COLUMNS["traces"])
    with reading(postgres) as conn:
        plans = ["\n".join(conn.exec_driver_sql(f"EXPLAIN {query}", values).scalars()) for query, values in sent]

    assert len(plans) == 4
    assert [plan for plan in plans if "Seq Scan" in plan or "Index Scan" not in plan] == []
