"""What changes at the server after it was copied: late rows, edits, deletions, and how they are found."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from databases import Databases
from sqlalchemy import Engine
from syncing import Row, rows, same_tables, sync

from etl.demo import Dataset, Faults, LoggedRequest, MockLangfuse, generate
from etl.transform.jsontext import loads

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def dataset() -> Dataset:
    return generate(traces=120, days=1, observations_per_trace=2, io_bytes=200, end=NOW - timedelta(minutes=3))


def clean_run(databases: Databases, server: MockLangfuse, now: datetime) -> dict[str, list[Row]]:
    """The tables of one undisturbed run over what the server has now."""
    with databases.lent("sqlite") as engine:
        sync(engine, server, now=now)
        return same_tables(engine)


def by_id(engine: Engine, table: str) -> dict[str, Row]:
    return {row["id"]: row for row in rows(engine, table)}


def newest_trace(data: Dataset) -> Row:
    return max(data.traces(), key=lambda row: row["timestamp"])


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_a_late_row_is_found_within_half_a_tier(engine: Engine, databases: Databases) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        late = NOW - timedelta(hours=2)
        data.put_trace({"id": "late", "timestamp": iso(late), "name": "late", "createdAt": iso(NOW)})
        for minutes in range(5, 190, 5):
            sync(engine, server, now=NOW + timedelta(minutes=minutes))
        assert "late" in by_id(engine, "traces")
        assert same_tables(engine) == clean_run(databases, server, NOW + timedelta(minutes=185))


def test_a_late_row_may_be_older_than_all_that_was_there_at_first(engine: Engine) -> None:
    data = Dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        late = NOW - timedelta(days=6)
        data.put_trace({"id": "late", "timestamp": iso(late), "name": "late", "createdAt": iso(NOW)})
        sync(engine, server, now=NOW + timedelta(days=7))
    assert "late" in by_id(engine, "traces")


def test_an_edit_that_moves_no_updated_at_is_found_and_written_whole(engine: Engine, databases: Databases) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        trace = newest_trace(data)
        data.put_trace(trace | {"bookmarked": not trace["bookmarked"], "output": {"edited": True}})
        for minutes in (25, 50):
            sync(engine, server, now=NOW + timedelta(minutes=minutes))
        row = by_id(engine, "traces")[trace["id"]]
        assert (not trace["bookmarked"], '{"edited": true}') == (row["bookmarked"], row["output"].replace(":t", ": t"))
        assert same_tables(engine) == clean_run(databases, server, NOW + timedelta(minutes=50))


def test_only_what_changed_has_a_new_changed_at(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        before = by_id(engine, "traces")
        trace = newest_trace(data)
        data.put_trace(trace | {"name": "renamed"})
        sync(engine, server, now=NOW + timedelta(minutes=25))
        after = by_id(engine, "traces")
        moved = {id for id, row in after.items() if row["changed_at"] != before[id]["changed_at"]}
        assert {trace["id"]} == moved


def test_a_light_reread_of_unchanged_rows_asks_for_no_contents_and_writes_nothing(engine: Engine) -> None:
    data = generate(traces=400, days=1, observations_per_trace=1, io_bytes=200, end=NOW - timedelta(minutes=3))
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        before = {name: rows(engine, name) for name in ("traces", "observations", "scores", "sessions")}
        server.requests.clear()
        sync(engine, server, now=NOW + timedelta(hours=30))
        asked = {
            tuple(r.query["fields"]) for r in server.requests if r.path.endswith("/traces") and r.query.get("fields")
        }
        assert ("core",) in asked
        assert before == {name: rows(engine, name) for name in before}


def test_a_quiet_poll_costs_one_request_a_stream(engine: Engine) -> None:
    with MockLangfuse(dataset()) as server:
        sync(engine, server, now=NOW)
        for minutes in (5, 10, 15, 20):
            server.requests.clear()
            report = sync(engine, server, now=NOW + timedelta(minutes=minutes))
            lists = [r.path for r in server.requests if not r.path.endswith(("/health", "/projects"))]
            assert (len(lists), report.total("rows_written")) == (4, 0)


def test_a_deleted_trace_is_marked_after_two_reads_an_hour_apart(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        gone = newest_trace(data)["id"]
        data.delete_trace(gone)
        sync(engine, server, now=NOW + timedelta(minutes=25))
        assert by_id(engine, "traces")[gone]["deleted_at"] is None
        sync(engine, server, now=NOW + timedelta(minutes=50))
        assert by_id(engine, "traces")[gone]["deleted_at"] is None
        for minutes in range(75, 400, 25):
            sync(engine, server, now=NOW + timedelta(minutes=minutes))
        assert by_id(engine, "traces")[gone]["deleted_at"] is not None
        children = [row for row in rows(engine, "observations") if row["trace_id"] == gone]
        assert all(row["deleted_at"] is not None for row in children)
        unmarked = [row["id"] for row in rows(engine, "traces") if row["deleted_at"] is None]
        assert sorted({row["id"] for row in data.traces()}) == sorted(unmarked)


def test_the_hour_between_two_looks_begins_when_a_long_run_looked(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, passed = dataset(), [0.0]
    monkeypatch.setattr("etl.pipeline.run.time", SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0]))
    with MockLangfuse(data) as server:
        sync(database, server, now=NOW)
        gone = newest_trace(data)["id"]
        data.delete_trace(gone)
        for started, minutes_long, marked in ((25, 59, False), (86, 0, False), (146, 0, True)):
            late = iter([60.0 * minutes_long])

            def wait(request: LoggedRequest, late: Iterator[float] = late) -> None:
                if request.path.endswith("/traces"):
                    passed[0] += next(late, 0.0)

            server.before_answer = wait
            sync(database, server, now=NOW + timedelta(minutes=started))
            assert (by_id(database, "traces")[gone]["deleted_at"] is not None) is marked


def test_a_row_that_comes_back_loses_its_mark(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        trace = newest_trace(data)
        data.delete_trace(trace["id"])
        for minutes in range(25, 300, 25):
            sync(engine, server, now=NOW + timedelta(minutes=minutes))
        assert by_id(engine, "traces")[trace["id"]]["deleted_at"] is not None
        data.put_trace(trace)
        for minutes in (300, 1000, 1800):  # so late a row is found by the tier of two days
            sync(engine, server, now=NOW + timedelta(minutes=minutes))
        assert by_id(engine, "traces")[trace["id"]]["deleted_at"] is None


def test_when_too_many_rows_vanish_nothing_is_marked_and_the_run_says_so(engine: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW)
        for row in list(data.traces()):
            data.delete_trace(row["id"])
        reports = [sync(engine, server, now=NOW + timedelta(minutes=m)) for m in range(25, 400, 25)]
        assert "failed" in {report.status for report in reports}
        assert any("verify --repair" in (report.error or "") for report in reports)
        # Ten rows of a window may be somebody's doing: those few that the smallest tier saw by themselves are marked.
        marked = sum(row["deleted_at"] is not None for row in rows(engine, "traces"))
        assert marked <= 10


def test_on_v4_a_deleted_trace_is_marked_with_all_that_was_derived(database: Engine) -> None:
    data = dataset()
    with MockLangfuse(data, api="v4") as server:
        sync(database, server, now=NOW)
        gone = newest_trace(data)["id"]
        data.delete_trace(gone)
        for minutes in range(25, 400, 25):
            sync(database, server, now=NOW + timedelta(minutes=minutes))
        assert by_id(database, "traces")[gone]["deleted_at"] is not None
        live = {row["id"] for row in rows(database, "traces") if row["deleted_at"] is None}
        assert {row["id"] for row in data.traces()} == live


def test_on_v4_a_session_follows_the_traces_that_it_has_left(database: Engine) -> None:
    data = Dataset()
    for number, environment in enumerate(("production", "default")):
        timestamp = iso(NOW - timedelta(hours=20) + timedelta(minutes=number))
        trace = {"timestamp": timestamp, "createdAt": timestamp, "sessionId": "s", "environment": environment}
        data.put_trace({"id": environment, **trace})
    with MockLangfuse(data, api="v4") as server:
        sync(database, server, now=NOW)
        assert by_id(database, "sessions")["s"]["environment"] == "production"
        data.delete_trace("production")
        for hours in (25, 27):
            sync(database, server, now=NOW + timedelta(hours=hours))
        assert by_id(database, "traces")["production"]["deleted_at"]
        assert by_id(database, "sessions")["s"]["environment"] == "default"
        data.delete_trace("default")
        for hours in (200, 202):
            sync(database, server, now=NOW + timedelta(hours=hours))
        assert by_id(database, "sessions")["s"]["deleted_at"]


def test_traces_alone_come_with_the_metrics_and_ids_that_the_api_tells(database: Engine) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        assert sync(database, server, now=NOW, streams=("traces",)).status == "ok"
        assert sync(database, server, now=NOW + timedelta(minutes=5), streams=("traces",)).total("rows_written") == 0
    told = {row["id"]: (row["latency"], row["totalCost"]) for row in data.traces()}
    assert told == {row["id"]: (row["latency"], row["total_cost"]) for row in rows(database, "traces")}


def test_a_row_that_could_not_be_sent_is_asked_for_again_until_it_comes(database: Engine) -> None:
    data = dataset()
    trace = newest_trace(data)
    faults = Faults(poison={trace["id"]})
    with MockLangfuse(data, faults=faults) as server:
        report = sync(database, server, now=NOW)
        assert (report.status, by_id(database, "traces")[trace["id"]]["output"]) == ("failed", None)
        assert sync(database, server, now=NOW + timedelta(minutes=25)).status == "failed"
        faults.poison = frozenset()
        assert sync(database, server, now=NOW + timedelta(minutes=200)).status == "ok"
    row = by_id(database, "traces")[trace["id"]]
    assert (loads(row["output"] or "null"), row["exact"]) == (trace["output"], None)


def test_a_deletion_that_a_pass_noticed_is_confirmed_an_hour_later_even_where_no_tier_comes_by(
    database: Engine,
) -> None:
    data = dataset()
    with MockLangfuse(data) as server:
        sync(database, server, now=NOW)
        sync(database, server, now=NOW + timedelta(hours=23))
        gone = newest_trace(data)["id"]
        data.delete_trace(gone)
        sync(database, server, now=NOW + timedelta(hours=47))
        assert by_id(database, "traces")[gone]["deleted_at"] is None
        sync(database, server, now=NOW + timedelta(hours=48, minutes=5))
        assert by_id(database, "traces")[gone]["deleted_at"] is not None


def test_a_deletion_is_noticed_where_only_a_part_was_read_before(engine: Engine) -> None:
    """The first whole read of a window tells of rows that are there from an attempt that broke off."""
    data = generate(traces=250, days=0.1, observations_per_trace=0, scores_per_trace=0, end=NOW - timedelta(minutes=3))
    start = NOW - timedelta(hours=3)
    with MockLangfuse(data) as server:
        server.faults.add("status", "/traces", after=2, status=400)  # after the first question and one page
        assert sync(engine, server, now=NOW, start=start).status == "failed"
        (gone, *others) = by_id(engine, "traces")
        assert len(others) == 99
        data.delete_trace(gone)
        for minutes in (5, 70):
            assert sync(engine, server, now=NOW + timedelta(minutes=minutes), start=start).status == "ok"
    assert [row["id"] for row in rows(engine, "traces") if row["deleted_at"]] == [gone]


def test_a_millisecond_with_more_rows_than_a_page_is_stored_whole(database: Engine) -> None:
    data, moment = Dataset(), iso(NOW - timedelta(hours=1))
    for number in range(250):
        data.put_trace({"id": f"t{number}", "timestamp": moment, "createdAt": moment})
        data.put_observation({"id": f"o{number}", "traceId": f"t{number}", "startTime": moment})
    with MockLangfuse(data, shuffle_ties=True) as server:
        assert sync(database, server, now=NOW).status == "ok"
    assert (len(rows(database, "traces")), len(rows(database, "observations"))) == (250, 250)
