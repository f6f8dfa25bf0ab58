"""The pure parts: how long to wait after a failure, and when the service is ready."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic import command

from etl.errors import AuthError, DatabaseError, RetriableApiError
from etl.intervals import Window
from etl.load import migrate
from etl.load.engine import open_engine, writing
from etl.load.status import Run, StreamProgress
from etl.pipeline.report import RunReport
from etl.service import board as board_module
from etl.service.backoff import Trouble, after_run, wait_after
from etl.service.board import Board, ProjectState
from etl.service.health import Readiness, readiness
from etl.service.lease import write_lease
from etl.service.snapshot import ProjectSnapshot, Snapshot

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
DOWN = RetriableApiError("Langfuse refuses connections", path="/health")


def failed(error: Exception) -> RunReport:
    return RunReport("shop", status="failed", error=str(error), ended_by=error)


def after(*reports: RunReport) -> Trouble | None:
    trouble = None
    for number, report in enumerate(reports):
        trouble = after_run(trouble, report, NOW + number * MINUTE)
    return trouble


@pytest.mark.parametrize(
    ("every", "waits"),
    [(5 * MINUTE, [5, 10, 20, 40, 60, 60]), (120 * MINUTE, [120, 120, 120]), (timedelta(seconds=30), [0.5, 1, 2, 4])],
)
def test_each_failure_doubles_the_wait_up_to_an_hour(every: timedelta, waits: list[float]) -> None:
    found = [wait_after(after(*[failed(DOWN)] * (n + 1)), every) / MINUTE for n in range(len(waits))]
    assert found == waits
    assert wait_after(after(*[failed(DOWN)] * 10_000), every) == max(every, 60 * MINUTE)


def test_the_trouble_tells_since_when_and_the_last_reason_and_ends_with_a_run_that_got_through() -> None:
    trouble = after(failed(DOWN), failed(AuthError("the key is wrong", path="/projects")))
    assert trouble == Trouble(2, NOW, "the key is wrong", needs_person=True)
    gaps = RunReport("shop", status="failed", error="traces [..): failed")
    assert after_run(trouble, gaps, NOW) is None, "what is left has its own back-off"
    assert after_run(trouble, RunReport("shop"), NOW) is None
    assert after_run(trouble, RunReport("shop", status="interrupted"), NOW) == trouble


@pytest.mark.parametrize(
    ("error", "times", "needs_person"),
    [
        (DOWN, 100, False),
        (AuthError("no", path="/projects"), 1, True),
        (DatabaseError("the disk is full"), 4, False),
        (DatabaseError("the disk is full"), 5, True),
        (TypeError(), 1, True),
    ],
)
def test_what_will_not_pass_by_waiting_needs_a_person(error: Exception, times: int, needs_person: bool) -> None:
    trouble = after(*[failed(error)] * times)
    assert trouble
    assert trouble.needs_person is needs_person


def snapshot(lag: timedelta, *, complete: bool = True, ended: bool = True) -> Snapshot:
    edge = NOW - lag
    whole = Window(edge - timedelta(days=1), edge)
    stream = StreamProgress("traces", whole.start, edge if complete else None, [whole], [], [])
    runs = [Run(1, "service", "ok", NOW, NOW if ended else None, 0, 0, 0, None)]
    return Snapshot([ProjectSnapshot("shop", "p", "traces", None, [stream], runs, None)])


def judge(state: ProjectState, found: Snapshot | None, role: str = "leader", detail: str | None = None) -> Readiness:
    return readiness(role, detail, [state], found, now=NOW, ready_lag=30 * MINUTE)  # type: ignore[arg-type]


def test_it_is_ready_until_the_live_edge_lags_too_much() -> None:
    idle = ProjectState("shop")
    assert judge(idle, snapshot(30 * MINUTE)).ready
    late = judge(idle, snapshot(31 * MINUTE))
    assert not late.ready
    assert late.reasons == ["project shop: traces lags 31m, more than service.ready_lag (30m)"]


def test_a_first_load_is_no_failure_unless_it_fails() -> None:
    loading = snapshot(5 * MINUTE, complete=False)
    assert judge(ProjectState("shop", running_since=NOW), loading).notes
    assert judge(ProjectState("shop", running_since=NOW), loading).ready
    assert judge(ProjectState("shop", running_since=NOW), Snapshot([])).ready
    assert judge(
        ProjectState("shop", running_since=NOW), snapshot(timedelta(days=3), complete=False, ended=False)
    ).ready
    stale = judge(ProjectState("shop", running_since=NOW), snapshot(timedelta(days=3), complete=False))
    assert stale.notes == ["project shop: first load of traces in progress"]
    assert stale.reasons == ["project shop: traces lags 3d, more than service.ready_lag (30m)"]
    down = Trouble(3, NOW, "Langfuse is down", needs_person=False)
    assert judge(ProjectState("shop", trouble=down), loading).ready, "it may pass before it matters"
    assert not judge(ProjectState("shop", trouble=down), Snapshot([])).ready
    assert judge(ProjectState("shop", trouble=down), snapshot(5 * MINUTE)).ready, "it may pass before it matters"


def test_a_cause_that_needs_a_person_is_not_ready_however_small_the_lag() -> None:
    revoked = Trouble(1, NOW, "the key is wrong", needs_person=True)
    found = judge(ProjectState("shop", trouble=revoked), snapshot(MINUTE))
    assert found.reasons == ["project shop: the key is wrong"]


def test_an_upgrade_of_minutes_is_alive_and_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'a.db'}", "public")
    with writing(engine) as conn:
        command.upgrade(migrate._config(conn), "0002")
    board = Board()
    monkeypatch.setattr(board_module, "_SILENT_AFTER_S", 0.0)
    assert not board.alive
    with write_lease(engine, on_upgrade=lambda: board.become("upgrading", "the tables")):
        assert board.alive
    assert judge(ProjectState("shop"), snapshot(MINUTE), board.role, board.detail).reasons == ["the tables"]
    board.become("leader")
    assert not board.alive
    engine.dispose()


def test_a_standby_is_ready_and_says_so_and_without_a_database_nothing_is() -> None:
    found = judge(ProjectState("shop"), snapshot(timedelta(days=1)), "standby", "process 7 holds the lease")
    assert found == Readiness([], ["standby: process 7 holds the lease"])
    assert not judge(ProjectState("shop"), None).ready
    assert judge(ProjectState("shop"), Snapshot([], error="it is away")).reasons == ["it is away"]
    assert not judge(ProjectState("shop"), snapshot(MINUTE), "starting").ready
