"""verify finds what differs from the server, and repairs just that; backfill reads a range again."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine, text
from syncing import Row, project, rows, same_tables, sync

from etl.config import Config
from etl.demo import Dataset, Faults, MockLangfuse, generate
from etl.load.engine import schema_of, writing
from etl.pipeline.report import RunReport
from etl.service.backfill import backfill_projects, plan_backfill
from etl.service.lease import write_lease
from etl.service.verify import Verified, verify_projects
from etl.settings import Http, Sync

END = datetime(2026, 11, 20, 12, tzinfo=UTC)
START = END - timedelta(days=3)


def dataset() -> Dataset:
    return generate(traces=150, days=2, observations_per_trace=2, io_bytes=200, end=END - timedelta(minutes=5))


def config(server: MockLangfuse) -> Config:
    return Config(projects=(project(server),), sync=Sync(), http=Http(timeout="5s", give_up_after="10s"))


def verify(engine: Engine, server: MockLangfuse, *, repair: bool = False, full: bool = False) -> Verified:
    """The mock's clock is the machine's, so the range is given."""
    settings, stop = config(server), threading.Event()
    if not repair:
        found, reports = verify_projects(
            settings, engine, None, projects=settings.projects, start=START, end=END, full=full, stop=stop
        )
    else:
        with write_lease(engine) as owner:
            found, reports = verify_projects(
                settings, engine, owner, projects=settings.projects, start=START, end=END, full=full, stop=stop
            )
    assert [report.error for report in reports] == [None]
    return found


def counts(found: Verified) -> tuple[int, int, int, int]:
    return found.missing, found.changed, found.deleted, found.doubtful


def execute(engine: Engine, statement: str) -> None:
    schema = schema_of(engine)
    with writing(engine) as conn:
        conn.execute(text(statement.format(at=f"{schema}." if schema else "")))


@pytest.fixture
def synced(engine: Engine) -> Engine:
    with MockLangfuse(dataset()) as server:
        sync(engine, server, now=END)
    return engine


def test_a_synced_database_agrees(synced: Engine) -> None:
    with MockLangfuse(dataset()) as server:
        assert counts(verify(synced, server)) == (0, 0, 0, 0)
        assert counts(verify(synced, server, full=True)) == (0, 0, 0, 0)


def test_it_finds_rows_missing_changed_late_and_deleted_and_mends_exactly_those(synced: Engine) -> None:
    data = dataset()
    first, second, third, *_ = sorted(data.traces(), key=lambda row: row["timestamp"])
    before = same_tables(synced)
    with MockLangfuse(data) as server:
        execute(synced, f"DELETE FROM {{at}}traces WHERE id = '{first['id']}'")
        execute(synced, f"UPDATE {{at}}traces SET name = 'damaged' WHERE id = '{second['id']}'")
        assert counts(verify(synced, server)) == (1, 1, 0, 0)
        found = verify(synced, server, repair=True)
        assert found.repaired > 0
        assert before == same_tables(synced)

        data.put_trace(third | {"id": "late", "timestamp": "2026-11-19T00:00:00.000Z"})
        data.delete_score(data.scores()[0]["id"])
        assert counts(verify(synced, server)) == (1, 0, 1, 0)
        verify(synced, server, repair=True)
        assert counts(verify(synced, server, full=True)) == (0, 0, 0, 0)
        assert sum(row["deleted_at"] is not None for row in rows(synced, "scores")) == 1
        assert "late" in {row["id"] for row in rows(synced, "traces")}


def test_only_a_full_comparison_looks_at_contents(synced: Engine) -> None:
    with MockLangfuse(dataset()) as server:
        execute(synced, "UPDATE {at}traces SET output = '\"damaged\"' WHERE id = (SELECT min(id) FROM {at}traces)")
        assert counts(verify(synced, server)) == (0, 0, 0, 0)
        assert counts(verify(synced, server, full=True)) == (0, 1, 0, 0)
        verify(synced, server, full=True, repair=True)
        assert counts(verify(synced, server, full=True)) == (0, 0, 0, 0)


def test_it_marks_any_number_of_deletions_when_a_person_confirms_them(synced: Engine) -> None:
    data = dataset()
    for row in list(data.traces())[:60]:
        data.delete_trace(row["id"])
    with MockLangfuse(data) as server:
        verify(synced, server, repair=True)
        live = {row["id"] for row in rows(synced, "traces") if row["deleted_at"] is None}
        assert {row["id"] for row in data.traces()} == live


def test_without_repair_it_writes_nothing(synced: Engine) -> None:
    before: dict[str, list[Row]] = same_tables(synced)
    data = dataset()
    data.delete_trace(data.traces()[0]["id"])
    with MockLangfuse(data) as server:
        assert verify(synced, server).differs
    assert before == same_tables(synced)


def backfill(engine: Engine, server: MockLangfuse, start: datetime, end: datetime) -> RunReport:
    settings = config(server)
    with write_lease(engine) as owner:
        (report,) = backfill_projects(
            settings, engine, owner, projects=settings.projects, start=start, end=end, stop=threading.Event()
        )
    return report


def test_a_backfill_reads_its_range_and_no_other(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        start, end = END - timedelta(days=1), END - timedelta(hours=12)
        report = backfill(engine, server, start, end)
        wanted = {row["id"] for row in data.traces() if start <= datetime.fromisoformat(row["timestamp"]) < end}
        assert ("ok", wanted) == (report.status, {row["id"] for row in rows(engine, "traces")})


def test_a_backfill_that_failed_goes_on_where_it_stopped(engine: Engine) -> None:
    data, faults = dataset(), Faults()
    with MockLangfuse(data, faults=faults) as server:
        faults.add("status", path="/observations", times=None, status=500)
        assert backfill(engine, server, START, END).status == "failed"
        faults.clear()
        server.requests.clear()
        assert backfill(engine, server, START, END).status == "ok"
        assert {"/api/public/observations"} == {
            r.path for r in server.requests if not r.path.endswith(("/health", "/projects"))
        }
        # A finished backfill of the same range is a new one.
        server.requests.clear()
        assert backfill(engine, server, START, END).status == "ok"
        assert "/api/public/traces" in {r.path for r in server.requests}


def test_a_plan_counts_and_reads_nothing(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        settings = config(server)
        _, plans = plan_backfill(settings, engine, projects=settings.projects, start=START, end=END)
        (plan,) = plans.values()
        sizes = [len(data.traces()), len(data.observations()), len(data.scores()), len(data.sessions())]
        assert sum(sizes) == plan.rows
        assert rows(engine, "traces") == []
        assert all(r.query.get("limit") in (["1"], None) for r in server.requests)
