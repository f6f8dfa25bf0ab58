"""The ledger gets smaller, and nothing that anybody asks it changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from database_looks import Pair, scratch, view
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm
from sqlalchemy import Connection, Engine, func, select

from etl.intervals import Window, merge, split_at_midnights
from etl.load import ledger
from etl.load.engine import writing
from etl.load.ledger import StreamState, WindowRecord
from etl.load.tables import sync_runs, sync_windows
from etl.load.upkeep import Read, forget_runs, is_first_run_since, merge_windows, settle

START = datetime(2026, 3, 1, tzinfo=UTC)
BEFORE = START + timedelta(days=100)
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


def record(conn: Connection, window: Window, proof: Any, now: datetime, **more: Any) -> None:
    values: dict[str, Any] = {
        "project_id": "p", "stream": "traces", "filters_hash": "f", "tier": "live", "api": "traces",
        "promised": 3, "read": 3, "changed": 1, "deleted": 0, "requests": 4, "run_id": 7,
    } | more  # fmt: skip
    ledger.record_window(conn, WindowRecord(window=window, proof=proof, **values), now)


def hours(first: int, last: int) -> Window:
    return Window(START + first * HOUR, START + last * HOUR)


def answers(conn: Connection) -> dict[str, Any]:
    """What is asked of the ledger."""
    failed = ledger.failed_windows(conn, "p", "traces", "f")
    return {
        "coverage": ledger.coverage(conn, "p", "traces", "f"),
        "failed": merge(window for window, _ in failed),
        "times of failures": sorted(failed),
        "view": sorted(map(str, view(conn, "sync_coverage"))),
        "others": ledger.coverage(conn, "q", "traces", "f"),
    }


# Start and length in hours, so that some cross a midnight; proof; generation; whether it is older than 30 days.
ROWS = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(1, 12),
        st.sampled_from(["counted", "counted", "walked", "walked", "partial", "doubtful", "failed"]),
        st.sampled_from(["traces", "traces", "observations"]),
    ),
    max_size=14,
)  # fmt: skip


@given(rows=ROWS, young=st.integers(0, 4), after=ROWS)
@settings(calm, max_examples=25)
def test_nothing_that_is_asked_changes_now_or_after_further_reads(
    shared_pair: Pair, rows: list[tuple[int, int, str, str]], young: int, after: list[tuple[int, int, str, str]]
) -> None:
    for engine in shared_pair:
        kept: list[dict[str, Any]] = []
        for tidied in (False, True):
            with scratch(engine) as conn:
                state = StreamState("traces", START, None, "f", None)
                ledger.save_stream_state(conn, "p", "traces", state)
                record(conn, hours(0, 9), "counted", START, project_id="q")
                first_young = len(rows) - young
                for number, (start, length, proof, api) in enumerate([*rows, *after]):
                    if number == len(rows):
                        if tidied:
                            merge_windows(conn, "p", BEFORE)
                            assert merge_windows(conn, "p", BEFORE) == 0
                        kept.append(answers(conn))
                    age = BEFORE + number * MINUTE if number >= first_young else START + number * MINUTE
                    record(conn, hours(start, start + length), proof, age, api=api)
                kept.append(answers(conn))
        half = len(kept) // 2
        for before, now in zip(kept[:half], kept[half:], strict=True):
            # A failure that a later read made good is no failure any more, whenever it was.
            assert before.pop("times of failures") >= now.pop("times of failures")
            assert before == now


def read(number: int, window: Window, proof: str = "counted", **more: Any) -> Read:
    values: dict[str, Any] = {
        "api": "traces", "finished_at": START + number * MINUTE, "promised": 5, "read": 5, "stored": 5, "changed": 1,
        "deleted": 0, "requests": 1, "run_id": number,
    }  # fmt: skip
    return Read(number, window, proof, **(values | more))


def test_neighbours_of_a_day_become_one_read_with_their_sums() -> None:
    reads = [read(1, hours(0, 2)), read(2, hours(2, 5)), read(3, hours(6, 7)), read(4, hours(24, 25))]

    dropped, (merged,) = settle(reads, BEFORE)

    assert dropped == [2]
    assert (merged.id, merged.window, merged.proof, merged.run_id) == (1, hours(0, 5), "counted", 1)
    assert (merged.promised, merged.read, merged.stored, merged.requests) == (10, 10, 10, 2)
    assert merged.finished_at == reads[1].finished_at


def test_reads_that_overlap_have_no_total_any_more() -> None:
    _, (merged,) = settle([read(1, hours(0, 3)), read(2, hours(2, 5), "walked")], BEFORE)

    assert (merged.window, merged.proof, merged.promised) == (hours(0, 5), "walked", None)


def test_what_is_younger_or_near_a_window_without_proof_stays() -> None:
    reads = [
        read(1, hours(0, 2)), read(2, hours(2, 4)), read(3, hours(1, 3), "doubtful"),
        read(4, hours(10, 12), finished_at=BEFORE), read(5, hours(12, 14), finished_at=BEFORE),
    ]  # fmt: skip

    assert settle(reads, BEFORE) == ([], [])


def test_a_window_that_fails_for_ever_is_kept_twenty_times() -> None:
    dropped, merged = settle([read(n, hours(0, 1), "failed") for n in range(1, 101)], BEFORE)

    assert sorted(dropped) == list(range(1, 81))
    assert merged == []


def test_a_year_of_runs_every_five_minutes_leaves_a_row_for_each_day() -> None:
    """Live windows, and the passes of the default tiers cut at midnights; tidied every four weeks."""
    rows: list[Read] = []
    number, most = 0, 0
    spans = [45 * MINUTE, 6 * HOUR, 2 * DAY, 14 * DAY]
    passed = dict.fromkeys(spans, START)
    for run in range(1, 365 * 288 + 1):
        now = START + run * 5 * MINUTE
        due = [Window(now - 5 * MINUTE, now)]
        for span in spans:
            if now - passed[span] >= span / 2:
                passed[span] = now
                due += split_at_midnights(Window(max(START, now - span), now - 5 * MINUTE))
        for window in due:
            number += 1
            rows.append(read(number, window, finished_at=now, run_id=run))
        if run % (28 * 288) == 0:
            most = max(most, len(rows))
            covered = merge(one.window for one in rows)
            dropped, merged = settle(rows, now - 30 * DAY)
            changed = {one.id: one for one in merged}
            gone = set(dropped)
            rows = [changed.get(one.id, one) for one in rows if one.id not in gone]
            assert covered == merge(one.window for one in rows)

    assert number > 130_000
    assert most < 27_000  # the last 58 days, as they were read
    old = [one for one in rows if one.finished_at < now - 58 * DAY]
    assert len(old) <= 365


def test_runs_that_nothing_names_are_forgotten_but_for_the_last_of_each_kind(engine: Engine) -> None:
    with writing(engine) as conn:
        for number in range(6):
            run_id = ledger.start_run(
                conn, project_id="p", trigger="sync" if number < 5 else "backfill", owner="o", now=START + number * DAY
            )
            ledger.finish_run(conn, run_id, status="ok", error=None, now=START + number * DAY)
        record(conn, hours(0, 1), "counted", START, run_id=2)
        running = ledger.start_run(conn, project_id="p", trigger="sync", owner="o", now=START)

        assert forget_runs(conn, "p", START + 10 * DAY) == 3

        assert [2, 5, 6, running] == list(conn.execute(select(sync_runs.c.id).order_by(sync_runs.c.id)).scalars())


@pytest.mark.parametrize(("runs", "first"), [(0, True), (1, True), (2, False)])
def test_the_first_run_of_a_day_is_known(engine: Engine, runs: int, first: bool) -> None:
    with writing(engine) as conn:
        ledger.start_run(conn, project_id="p", trigger="sync", owner="o", now=START - HOUR)
        for number in range(runs):
            ledger.start_run(conn, project_id="p", trigger="sync", owner="o", now=START + number * HOUR)
        assert is_first_run_since(conn, "p", START) is first
        assert conn.execute(select(func.count()).select_from(sync_windows)).scalar_one() == 0
