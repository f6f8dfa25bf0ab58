"""verify finds what differs from the server, and repairs just that; backfill reads a range again."""

import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Engine
from syncing import Row, rows, same_tables, sync, whole_tables
from verifying import config, counts, execute, verify

from etl.demo import Dataset, Faults, MockLangfuse, generate
from etl.demo.service import Api
from etl.load.tables import ROW_TABLES
from etl.pipeline.report import RunReport
from etl.service.backfill import backfill_projects, plan_backfill
from etl.service.lease import write_lease

END = datetime(2026, 11, 20, 12, tzinfo=UTC)
START = END - timedelta(days=3)


def dataset() -> Dataset:
    return generate(traces=150, days=2, observations_per_trace=2, io_bytes=200, end=END - timedelta(minutes=5))


@pytest.fixture
def synced(engine: Engine) -> Engine:
    with MockLangfuse(dataset()) as server:
        sync(engine, server, now=END)
    return engine


def test_a_synced_database_agrees(synced: Engine) -> None:
    with MockLangfuse(dataset()) as server:
        assert counts(verify(synced, server, START, END)) == (0, 0, 0, 0)
        assert counts(verify(synced, server, START, END, full=True)) == (0, 0, 0, 0)


def test_only_a_full_comparison_looks_at_contents(synced: Engine) -> None:
    with MockLangfuse(dataset()) as server:
        execute(synced, "UPDATE {at}traces SET output = '\"damaged\"' WHERE id = (SELECT min(id) FROM {at}traces)")
        assert counts(verify(synced, server, START, END)) == (0, 0, 0, 0)
        assert counts(verify(synced, server, START, END, full=True)) == (0, 1, 0, 0)
        verify(synced, server, START, END, full=True, repair=True)
        assert counts(verify(synced, server, START, END, full=True)) == (0, 0, 0, 0)


def test_it_marks_any_number_of_deletions_when_a_person_confirms_them(synced: Engine) -> None:
    data = dataset()
    for row in list(data.traces())[:60]:
        data.delete_trace(row["id"])
    with MockLangfuse(data) as server:
        verify(synced, server, START, END, repair=True)
        live = {row["id"] for row in rows(synced, "traces") if row["deleted_at"] is None}
        assert {row["id"] for row in data.traces()} == live


def test_without_repair_it_writes_nothing(synced: Engine) -> None:
    before: dict[str, list[Row]] = same_tables(synced)
    data = dataset()
    data.delete_trace(data.traces()[0]["id"])
    with MockLangfuse(data) as server:
        assert verify(synced, server, START, END).differs
    assert before == same_tables(synced)


def backfill(
    engine: Engine, server: MockLangfuse, start: datetime, end: datetime, *, give_up_after: str = "10s"
) -> RunReport:
    settings = config(server, give_up_after=give_up_after)
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


def two_of_one_day(data: Dataset) -> tuple[Row, Row]:
    """Traces that stand in one window of a backfill."""
    traces = sorted(data.traces(), key=lambda row: row["timestamp"])
    return traces[70], traces[72]


def test_a_row_that_is_gone_is_missed_though_another_was_edited_out_of_its_window(engine: Engine) -> None:
    """As many rows are stored there as the server has, but not the same ones."""
    data = dataset()
    moved, gone = two_of_one_day(data)
    with MockLangfuse(data) as server:
        sync(engine, server, now=END)
        data.delete_trace(gone["id"])
        edited = f"UPDATE {{at}}traces SET timestamp = '2026-11-25T00:00:00.000Z' WHERE id = '{moved['id']}'"
        execute(engine, edited)
        verify(engine, server, START, END, repair=True)
    assert [row["id"] for row in rows(engine, "traces") if row["deleted_at"]] == [gone["id"]]


def test_a_row_that_is_gone_is_missed_beside_a_version_that_stays_as_another_is_newer(engine: Engine) -> None:
    data = dataset()
    moved, gone = two_of_one_day(data)
    later = datetime.fromisoformat(moved["timestamp"]) + timedelta(days=1)
    newer = later.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data.put_trace({"id": moved["id"], "timestamp": newer, "name": "on another date", "updatedAt": newer})
    with MockLangfuse(data) as server:
        sync(engine, server, now=END)
        data.delete_trace(gone["id"])
        assert backfill(engine, server, START, END).status == "ok"
    assert [row["id"] for row in rows(engine, "sync_absences") if row["stream"] == "traces"] == [gone["id"]]


@pytest.mark.parametrize("api", ["v3", "v4"])
def test_rows_whose_hashes_mean_nothing_any_more_are_known_again(engine: Engine, api: Api) -> None:
    """As after an update of this program that hashes in another way."""
    with MockLangfuse(dataset(), api=api) as server:
        sync(engine, server, now=END)
        before = whole_tables(engine)
        for table in ROW_TABLES:
            execute(engine, f"UPDATE {{at}}{table} SET content_hash = 'of before'")
        report = backfill(engine, server, START, END)
    assert (report.status, report.total("rows_written")) == ("ok", 0)
    assert whole_tables(engine) == before


def test_a_backfill_that_failed_goes_on_where_it_stopped(engine: Engine) -> None:
    data, faults = dataset(), Faults()
    with MockLangfuse(data, faults=faults) as server:
        faults.add("status", path="/observations", times=None, status=500)
        assert backfill(engine, server, START, END, give_up_after="1s").status == "failed"
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
