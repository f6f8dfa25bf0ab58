"""What reading again costs where nothing changed, and what it sees to all the same."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, event, update
from syncing import ledger, rows, sync
from test_lookback import NOW

from etl.demo import Dataset, MockLangfuse, generate
from etl.load.engine import writing
from etl.load.tables import traces

LATER = NOW + timedelta(days=8)  # the largest tier is due


def a_day(traces: int, observations_per_trace: int) -> Dataset:
    end = NOW - timedelta(minutes=3)
    return generate(traces=traces, days=1, observations_per_trace=observations_per_trace, io_bytes=20, end=end)


def metrics(engine: Engine) -> dict[str, tuple[float, float]]:
    """Of the traces that have observations."""
    ids = {row["trace_id"] for row in rows(engine, "observations")}
    return {row["id"]: (row["latency"], row["total_cost"]) for row in rows(engine, "traces") if row["id"] in ids}


def forge_metrics(engine: Engine) -> None:
    with writing(engine) as conn:
        conn.execute(update(traces).values(latency=1e6, total_cost=None))


def test_there_is_one_transaction_for_each_window_and_every_metric_is_mended(engine: Engine) -> None:
    counted: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "rows_read=(" in statement:
            counted.append(statement)

    with MockLangfuse(a_day(300, 8)) as server:
        sync(engine, server)
        before, windows = metrics(engine), len(ledger(engine))
        forge_metrics(engine)
        event.listen(engine, "before_cursor_execute", note)
        report = sync(engine, server, now=LATER)
    assert report.status == "ok"
    assert metrics(engine) == before
    assert report.total("rows_written") == 0
    assert rows(engine, "sync_runs")[-1]["rows_read"] == report.total("rows_read") > 2_000
    assert len(counted) <= len(ledger(engine)) - windows + 1  # and one when the run ends


def test_what_came_of_a_window_that_fails_is_seen_to(engine: Engine) -> None:
    with MockLangfuse(a_day(300, 1)) as server:
        sync(engine, server)
        before = metrics(engine)
        forge_metrics(engine)
        server.faults.add("status", path="/observations", status=400, after=2, times=None)
        report = sync(engine, server, now=LATER, streams=["observations"])
    assert report.status == "failed"
    read = rows(engine, "sync_runs")[-1]["rows_read"]
    assert 0 < read == report.total("rows_read") < 300
    after = metrics(engine)
    assert sum(after[key] == before[key] for key in before) >= read / 2
