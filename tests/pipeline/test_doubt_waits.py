"""A window that was read once and cannot be proven any more is tried again with growing pauses, as a gap is."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from database_looks import view
from sqlalchemy import Engine
from syncing import ledger, project, same_tables

from etl.config import Config
from etl.demo import Dataset, MockLangfuse, generate
from etl.load.engine import reading
from etl.pipeline.report import RunReport
from etl.pipeline.scope import Scope
from etl.service.lease import write_lease
from etl.service.projects import Connected
from etl.service.sync import for_each_project, run_project
from etl.settings import Http, Sync

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def dataset() -> Dataset:
    return generate(traces=120, days=1, observations_per_trace=1, io_bytes=100, end=NOW - timedelta(minutes=3))


def patient(engine: Engine, server: MockLangfuse, now: datetime, *, backs_off: bool = True) -> RunReport:
    """A run as the service does it."""
    configured = project(server)
    config = Config(
        projects=(configured,), http=Http(timeout="5s"), sync=Sync(every=HOUR, lookback=[timedelta(hours=6)])
    )

    def run(one: Connected, scope: Scope) -> RunReport:
        scope = replace(scope, backs_off=backs_off)
        return run_project(one, scope, engine, owner, trigger="test", stop=threading.Event())

    with write_lease(engine) as owner:
        (report,) = for_each_project(
            config, engine, projects=[configured], streams=(), stop=threading.Event(), now=lambda: now, run=run
        )
    return report


def unproven(engine: Engine) -> set[str]:
    """The streams that `status` shows a doubt of."""
    with reading(engine) as conn:
        return {row["stream"] for row in view(conn, "sync_coverage") if row["state"] == "doubtful"}


def test_a_doubt_that_stays_does_not_fail_every_run(database: Engine) -> None:
    engine, data = database, dataset()
    with MockLangfuse(data) as server:
        assert patient(engine, server, NOW).status == "ok"
        before = same_tables(engine)
        for row in list(data.traces()):
            data.delete_trace(row["id"])
        reports = [patient(engine, server, NOW + number * HOUR) for number in range(1, 19)]
        failed = [number for number, report in enumerate(reports) if report.status != "ok"]

        assert 3 <= len(failed) <= 7, "not each of 18, and not never again"
        assert {row["run_id"] for row in ledger(engine) if row["proof"] == "doubtful"} == {one + 2 for one in failed}
        assert failed[-1] - failed[0] >= 9, "hours later it is still tried"
        assert "traces" in unproven(engine)
        by_hand = patient(engine, server, NOW + 19 * HOUR, backs_off=False)
        assert by_hand.status == "failed", "a person's run tries at once"
    with MockLangfuse(dataset()) as server:
        for number in range(20, 27):
            last = patient(engine, server, NOW + number * HOUR)
        assert last.status == "ok"
    assert unproven(engine) == set()
    assert len(same_tables(engine)["traces"]) == len(before["traces"])
