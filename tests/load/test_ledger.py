"""Runs, windows, coverage and stream states, and how they are summed up for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from database_looks import Pair, instant, scratch, view
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm
from recorded_rows import STREAMS, to_row
from sqlalchemy import Connection, Engine, select, update

from etl.intervals import Window, merge
from etl.load import lease, ledger
from etl.load.engine import reading, writing
from etl.load.ledger import ProjectRecord, StreamState, WindowRecord
from etl.load.status import last_run, progress, stream_statuses
from etl.load.tables import sync_runs, sync_windows, traces
from etl.load.types import instant_text
from etl.load.upsert import upsert
from etl.transform.jsontext import loads

START = datetime(2026, 11, 8, tzinfo=UTC)


def minute(number: int) -> datetime:
    return START + timedelta(minutes=number)


def window(first: int, last: int) -> Window:
    return Window(minute(first), minute(last))


def record(conn: Connection, span: Window, proof: Any = "counted", now: datetime | None = None, **more: Any) -> None:
    values: dict[str, Any] = {
        "project_id": "p", "stream": "traces", "filters_hash": "f", "tier": "live", "api": "traces",
        "promised": 3, "read": 2, "changed": 1, "deleted": 0, "requests": 4, "run_id": 7,
    } | more  # fmt: skip
    ledger.record_window(conn, WindowRecord(window=span, proof=proof, **values), now or instant(0))


def state(**values: Any) -> StreamState:
    known: dict[str, Any] = {"api": "traces", "origin": START, "watermark": None, "filters_hash": "f", "plan": None}
    return StreamState(**(known | values))


def save(conn: Connection, stream: str = "traces", **values: Any) -> None:
    ledger.save_stream_state(conn, "p", stream, state(**values))


def test_a_project_is_written_as_the_server_says_now_and_found_by_id(engine: Engine) -> None:
    first = ProjectRecord("p", "Shop", "https://example.com", "org", "3.1", "traces", 30)
    second = ProjectRecord("a", None, "https://example.com", None, None, None, None)
    with writing(engine) as conn:
        for project in (first, second, first._replace(name="Shop 2", retention_days=None)):
            ledger.save_project(conn, project)

    with reading(engine) as conn:
        assert [second, first._replace(name="Shop 2", retention_days=None)] == ledger.stored_projects(conn)


def test_a_run_counts_up_and_ends_with_a_status(engine: Engine) -> None:
    with writing(engine) as conn:
        run_id = ledger.start_run(conn, project_id="p", trigger="sync", owner="me", now=instant(0))
        other = ledger.start_run(conn, project_id="q", trigger="sync", owner="me", now=instant(1))
        ledger.add_to_run(conn, run_id, rows_read=10, rows_written=4, requests=2)
        ledger.add_to_run(conn, run_id, rows_read=5, rows_written=0, requests=1)
        ledger.finish_run(conn, run_id, status="failed", error="one line", now=instant(60))

    assert other > run_id
    with reading(engine) as conn:
        assert {
            "id": run_id, "trigger": "sync", "started_at": instant_text(instant(0)),
            "finished_at": instant_text(instant(60)), "status": "failed", "rows_read": 15, "rows_written": 4,
            "requests": 3, "error": "one line",
        } == last_run(conn, "p")  # fmt: skip
        assert last_run(conn, "unknown") is None


def test_a_run_goes_on_as_long_as_its_process_holds_the_lease(engine: Engine) -> None:
    me, other = lease.this_process(), lease.this_process()
    with writing(engine) as conn:
        lease.acquire(conn, me)
        ledger.start_run(conn, project_id="p", trigger="sync", owner=me.token, now=instant(0))

    def status() -> str:
        with reading(engine) as conn:
            return str((last_run(conn, "p") or {})["status"])

    assert status() == "running"
    with writing(engine) as conn:
        lease.release(conn, me)
    assert status() == "interrupted"
    with writing(engine) as conn:
        lease.acquire(conn, other)
    assert status() == "interrupted"


def test_only_running_runs_of_other_processes_become_interrupted(engine: Engine) -> None:
    with writing(engine) as conn:
        runs = [ledger.start_run(conn, project_id="p", trigger="t", owner=o, now=instant(0)) for o in ("a", "a", "b")]
        ledger.finish_run(conn, runs[0], status="ok", error=None, now=instant(5))
        ledger.interrupt_runs_of_others(conn, "b", instant(9))

    with reading(engine) as conn:
        rows = conn.execute(select(sync_runs.c.status, sync_runs.c.finished_at).order_by(sync_runs.c.id)).all()
    assert [("ok", instant(5)), ("interrupted", instant(9)), ("running", None)] == [tuple(row) for row in rows]


def test_stored_counts_the_rows_of_the_half_open_window_that_are_not_deleted(engine: Engine) -> None:
    stamps = {"before": -1, "first": 0, "last": 59_999, "after": 60_000, "gone": 30_000}
    with writing(engine) as conn:
        items = [
            {"id": key, "projectId": project, "timestamp": instant_text(START + timedelta(milliseconds=ms))}
            for key, ms in stamps.items()
            for project in ("p", "q")
        ]
        upsert(conn, "traces", [to_row(item, STREAMS["traces"]) for item in items], instant(0))
        conn.execute(update(traces).where(traces.c.id == "gone").values(deleted_at=instant(1)))
        record(conn, window(0, 1))
        record(conn, window(0, 1), stream="scores")

    with reading(engine) as conn:
        assert list(conn.execute(select(sync_windows.c.stored).order_by(sync_windows.c.id)).scalars()) == [2, 0]


def test_coverage_is_of_one_project_stream_and_filter_and_of_whole_reads_only(engine: Engine) -> None:
    with writing(engine) as conn:
        for number, proof in enumerate(("counted", "walked", "partial", "doubtful", "failed")):
            record(conn, window(number * 10, number * 10 + 10), proof)
        record(conn, window(100, 110), project_id="q")
        record(conn, window(200, 210), stream="scores")
        record(conn, window(300, 310), filters_hash="g")

    with reading(engine) as conn:
        assert [window(0, 30)] == ledger.coverage(conn, "p", "traces", "f")
        assert [window(100, 110)] == ledger.coverage(conn, "q", "traces", "f")
        assert [window(200, 210)] == ledger.coverage(conn, "p", "scores", "f")
        assert [window(300, 310)] == ledger.coverage(conn, "p", "traces", "g")
        assert ledger.coverage(conn, "p", "sessions", "f") == []


def test_a_stream_state_is_replaced_as_a_whole(engine: Engine) -> None:
    later = state(watermark=minute(5), filters_hash="g", api="observations", origin=minute(1))
    with writing(engine) as conn:
        save(conn)
        save(conn, "scores")
        ledger.save_stream_state(conn, "p", "traces", later)

    with reading(engine) as conn:
        assert {"scores": state(), "traces": later} == ledger.stream_states(conn, "p")
        assert ledger.stream_states(conn, "q") == {}
    with writing(engine) as conn:
        save(conn, plan='{"passes":[1]}')
        assert loads(ledger.stream_states(conn, "p")["traces"].plan or "null") == {"passes": [1]}


def test_statuses_say_null_before_the_first_run(engine: Engine) -> None:
    with reading(engine) as conn:
        statuses = stream_statuses(conn, "p")
        assert view(conn, "sync_coverage") == []

    assert {"traces", "observations", "scores", "sessions"} == {status.stream for status in statuses}
    assert {(None, None, 0, None, None)} == {tuple(status)[1:] for status in statuses}


def test_statuses_count_rows_and_gaps_between_the_start_and_the_live_edge(engine: Engine) -> None:
    with writing(engine) as conn:
        upsert(conn, "traces", [to_row({"id": key}, STREAMS["traces"], "p") for key in "abc"], instant(0))
        conn.execute(update(traces).where(traces.c.id == "c").values(deleted_at=instant(1)))
        save(conn, watermark=minute(10))
        save(conn, "scores")
        run = ledger.start_run(conn, project_id="p", trigger="sync", owner="me", now=instant(0))
        for first, last in ((0, 10), (20, 30), (25, 40), (60, 70)):
            record(conn, window(first, last))

    with reading(engine) as conn:
        statuses = {status.stream: status for status in stream_statuses(conn, "p")}
    found = statuses["traces"]
    assert (minute(10), minute(70), 2, 2) == (found.watermark, found.live_edge, found.rows, found.gaps)
    assert run == (found.last_run or {})["id"]
    assert tuple(statuses["scores"])[1:5] == (None, None, 0, 1)


def test_what_an_interrupted_run_did_not_come_to_is_a_gap(engine: Engine) -> None:
    with writing(engine) as conn:
        for stream in ("traces", "scores"):
            save(conn, stream)
            record(conn, window(0, 10), stream=stream)
        assert {status.gaps for status in stream_statuses(conn, "p")} == {0, None}
        record(conn, window(10, 70))
        found = {status.stream: (status.live_edge, status.gaps) for status in stream_statuses(conn, "p")}
    assert (found["traces"], found["scores"]) == ((minute(70), 0), (minute(10), 1))


def test_after_the_first_load_what_is_newer_than_a_stream_is_lag_and_no_gap(engine: Engine) -> None:
    with writing(engine) as conn:
        for stream in ("traces", "scores"):
            save(conn, stream, watermark=minute(10))
            record(conn, window(0, 10), stream=stream)
        record(conn, window(10, 70))
        record(conn, window(20, 30), stream="scores")
        found = {name: (one.live_edge, one.gaps) for name, one in progress(conn, "p").items()}
    assert found == {"traces": (minute(70), []), "scores": (minute(30), [window(10, 20)])}


windows = st.lists(
    st.tuples(
        st.integers(0, 12), st.integers(1, 6),
        st.sampled_from(["counted", "walked", "partial", "doubtful", "failed"]), st.sampled_from(["f", "f", "f", "g"]),
    ),
    max_size=10,
)  # fmt: skip


def expected_coverage(rows: list[tuple[int, int, str, str]]) -> list[tuple[str, str, str, str]]:
    """What `sync_coverage` must say, found by looking at every minute."""
    mine = [
        (n, start, start + length, proof) for n, (start, length, proof, filters) in enumerate(rows) if filters == "f"
    ]
    covering = [each for each in mine if each[3] in ("counted", "walked", "partial")]
    found = [
        (span.start, span.end, "covered", max(instant(n) for n, a, b, _ in covering if _inside(window(a, b), span)))
        for span in merge(window(start, end) for _, start, end, _ in covering)
    ]
    unmended: dict[tuple[int, int, str], int] = {}
    for number, start, end, proof in mine:
        mends = ("counted", "walked") if proof == "partial" else ("counted", "walked", "partial")
        good = {m for n, a, b, p in mine if n > number and p in mends for m in range(a, b)}
        if proof in ("partial", "doubtful", "failed") and not set(range(start, end)) <= good:
            unmended[start, end, proof] = number
    found += [(minute(a), minute(b), proof, instant(n)) for (a, b, proof), n in unmended.items()]
    return sorted((instant_text(a), instant_text(b), word, instant_text(at)) for a, b, word, at in found)


def _inside(part: Window, whole: Window) -> bool:
    return whole.start <= part.start and part.end <= whole.end


@given(rows=windows)
@settings(calm, max_examples=25)
def test_the_coverage_view_agrees_with_a_count_of_every_minute(
    shared_pair: Pair, rows: list[tuple[int, int, str, str]]
) -> None:
    for engine in shared_pair:
        with scratch(engine) as conn:
            save(conn)
            for number, (start, length, proof, filters) in enumerate(rows):
                span = window(start, start + length)
                record(conn, span, proof, instant(number), filters_hash=filters)
                record(conn, window(50, 60), proof, instant(number), project_id="unknown")
            found = view(conn, "sync_coverage")
            covered = ledger.coverage(conn, "p", "traces", "f")

        assert {("p", "traces")} >= {(row["project_id"], row["stream"]) for row in found}
        names = ("range_start", "range_end", "state", "read_at")
        assert expected_coverage(rows) == sorted(tuple(row[name] for name in names) for row in found)
        starts = [row["range_start"] for row in found if row["state"] == "covered"]
        assert [instant_text(span.start) for span in covered] == sorted(starts)


def test_a_failed_window_that_later_windows_cover_piece_by_piece_is_mended(engine: Engine) -> None:
    with writing(engine) as conn:
        save(conn)
        record(conn, window(0, 10), "failed")
        record(conn, window(0, 4))
        with_gap = view(conn, "sync_coverage")
        record(conn, window(3, 12), "walked")
        whole = view(conn, "sync_coverage")

    assert sorted(row["state"] for row in with_gap) == ["covered", "failed"]
    assert [(instant_text(minute(0)), instant_text(minute(12)), "covered")] == [
        (row["range_start"], row["range_end"], row["state"]) for row in whole
    ]


@pytest.mark.parametrize("table", ["sync_runs", "sync_windows"])
def test_ids_of_the_ledger_only_grow(engine: Engine, table: str) -> None:
    found = []
    for _ in range(3):
        with writing(engine) as conn:
            ledger.start_run(conn, project_id="p", trigger="t", owner="o", now=instant(0))
            record(conn, window(0, 1))
            column = (sync_runs if table == "sync_runs" else sync_windows).c.id
            found.append(max(conn.execute(select(column)).scalars()))
    assert sorted(set(found)) == found
