"""A first load that takes hours does not keep live data waiting: a run may leave history to the next one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from sqlalchemy import Engine
from syncing import NOW, ledger, make_small, project, same_tables, sync, watermarks

from etl.config import Config
from etl.demo import MockLangfuse
from etl.pipeline.report import RunReport
from etl.pipeline.scope import Scope
from etl.service.lease import write_lease
from etl.service.projects import Connected
from etl.service.sync import for_each_project, run_project
from etl.settings import Http

MINUTE = timedelta(minutes=1)


def impatient(engine: Engine, server: MockLangfuse, now: datetime) -> RunReport:
    """A run that has no time for history beyond the first bit of it."""
    configured = project(server)
    config = Config(projects=(configured,), http=Http(timeout="5s", concurrency=1))

    def run(one: Connected, scope: Scope) -> RunReport:
        short = replace(scope, history_for=timedelta(0))
        return run_project(one, short, engine, owner, trigger="test", stop=threading.Event())

    with write_lease(engine) as owner:
        (report,) = for_each_project(
            config, engine, projects=[configured], streams=(), stop=threading.Event(), now=lambda: now, run=run
        )
    return report


def test_every_run_reads_what_is_new_and_some_of_the_history_until_all_is_there(
    new_database: Callable[[], Engine], engine: Engine
) -> None:
    data = make_small()
    clean = new_database()
    with MockLangfuse(data) as server:
        reports = []
        for number in range(60):
            now = NOW + 5 * number * MINUTE
            trace = {"id": f"live-{number}", "timestamp": (now - 4 * MINUTE).strftime("%Y-%m-%dT%H:%M:%S.000Z")}
            server.dataset.put_trace(trace)
            reports.append(impatient(engine, server, now))
            assert reports[-1].status == "ok", reports[-1].error
            live = [row for row in ledger(engine) if row["run_id"] == number + 1 and row["stream"] == "traces"]
            assert any(row["window_end"] == now - 2 * MINUTE for row in live), "what is new was read by every run"
            if not reports[-1].put_off:
                break
        *before, last = reports
        assert len(before) > 3
        assert all(report.put_off for report in before)
        assert not last.put_off
        assert None not in watermarks(engine).values()
        sync(clean, server, now=now)
    assert same_tables(engine) == same_tables(clean)
