"""After a change of the API all that was read is read once more, in passes, until two of them agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.intervals import Window, intersect, merge, split_by, subtract
from etl.pipeline import switch
from etl.pipeline.switch import Switch

M, H, D = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
T0 = datetime(2026, 11, 22, 12, tzinfo=UTC)
ORIGIN = T0 - 10 * D
HORIZON = Window(ORIGIN, T0)
HOUR = Window(T0 - H, T0)


def cut(window: Window) -> list[Window]:
    return split_by(window, D)


def slices(state: Switch, *, covered: Sequence[Window] = (HORIZON,), planned: Sequence[Window] = (), budget: float = 3):
    return switch.next_slices(state, covered=covered, planned=planned, cut=cut, cost=lambda _: 1, budget=budget)


def begun(now: datetime = T0, kept_from: datetime | None = None) -> Switch:
    return switch.begun(now=now, until=T0, wanted=[HORIZON], kept_from=kept_from)


def resumed(
    state: Switch, *, now: datetime, wanted: Sequence[Window] = (HORIZON,), stored: int = 0, ever_stored: bool = False
) -> Switch:
    """With `stored` rows in every window."""
    return switch.resumed(state, now=now, wanted=wanted, rows_stored=lambda _: stored, ever_stored=ever_stored)


def read_whole(state: Switch, rows: int) -> Switch:
    """The rest of the pass, whose last window brings `rows`."""
    for window in state.left[1:]:
        state = read(state, window, 0)
    return read(state, state.left[0], rows)


def read(state: Switch, window: Window, rows: int) -> Switch:
    return switch.after_read(state, window, lambda _: rows)


def passed(state: Switch, *counts: int) -> Switch:
    """One pass after the other, each as soon as it is due."""
    now = state.started_at
    for rows in counts:
        state = read_whole(state, rows)
        now += 2 * D
        state = resumed(state, now=now)
    return state


class Server:
    """Rows by their time; its history fills up as time passes."""

    def __init__(self, times: Sequence[datetime], filled_at: Sequence[datetime]) -> None:
        self.rows = list(zip(times, filled_at, strict=True))

    def shown(self, window: Window, now: datetime) -> set[datetime]:
        return {time for time, at in self.rows if at <= now and window.start <= time < window.end}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_whatever_is_filled_in_before_two_passes_agree_is_read(data: st.DataObject) -> None:
    """Runs at any times, with failures and windows read for other reasons; then everything is there, once settled."""
    count = data.draw(st.integers(0, 30))
    times = data.draw(
        st.lists(st.integers(1, 14_000).map(lambda m: T0 - m * M), min_size=count, max_size=count, unique=True)
    )
    fills = data.draw(st.lists(st.integers(0, 2_000).map(lambda m: T0 + m * M), min_size=count, max_size=count))
    server = Server(times, fills)
    budget = data.draw(st.sampled_from([0, 1, 4, 100]))
    known: set[datetime] = set()
    now, state = T0, begun()
    read_after_fill = max(fills, default=T0)
    for _ in range(300):
        if state.settled_at:
            break
        chosen = slices(state, budget=budget)
        assert len(chosen) <= max(budget, 1) + 1
        others = data.draw(
            st.lists(st.integers(1, 14_000).map(lambda m: Window(T0 - m * M, T0 - m * M + 3 * H)), max_size=1)
        )
        for window in [*chosen, *(part for one in others for part in subtract(one, chosen))]:
            if now < read_after_fill and data.draw(st.integers(0, 9)) == 0:
                state = switch.after_failure(state, window)
                continue
            found = server.shown(window, now)
            known |= found
            state = switch.after_read(state, window, lambda part, at=now: len(server.shown(part, at)))
        state = switch.from_json(json.loads(json.dumps(switch.as_json(state))))
        now += data.draw(st.sampled_from([5 * M, H, 7 * H]))
        state = resumed(state, now=now)
    assert state.settled_at
    there = {time for time, at in server.rows if at <= state.started_at}
    unread = {time for time in there - known if not intersect(state.failed, Window(time, time + M))}
    assert not unread, "all that was there when the last pass began was read, or is still to be"


def test_a_pass_reads_everything_once_newest_first_and_keeps_to_the_budget() -> None:
    state = begun()
    seen: list[Window] = []
    while state.left:
        chosen = slices(state)
        assert 1 <= len(chosen) <= 3
        for window in chosen:
            state = read(state, window, 7)
            seen.append(window)
    assert seen == sorted(seen, reverse=True)
    assert merge(seen) == [HORIZON]
    assert sum((w.end - w.start for w in seen), timedelta()) == 10 * D
    assert state.rows == 7 * len(seen)


def test_without_any_budget_one_window_is_read() -> None:
    assert len(slices(begun(), budget=-5)) == 1


def test_what_was_never_read_or_is_read_anyway_is_not_read_again() -> None:
    never, anyway = Window(ORIGIN, ORIGIN + D), Window(T0 - D, T0)
    chosen = slices(begun(), covered=subtract(HORIZON, [never]), planned=[anyway], budget=100)
    assert merge(chosen) == [Window(never.end, anyway.start)]


def test_what_is_read_for_the_first_time_belongs_to_the_pass() -> None:
    state = begun()
    for window in split_by(HORIZON, D):
        state = read(state, window, 1)
    assert (state.left, state.rows) == ((), 10)


def test_of_a_window_that_is_only_partly_wanted_that_part_counts() -> None:
    days = {window: number for number, window in enumerate(split_by(HORIZON, D), 1)}
    state = switch.after_read(begun(), Window(T0 - D, T0 + D), days.__getitem__)
    assert (state.rows, state.left) == (10, (Window(ORIGIN, T0 - D),))
    state = switch.after_read(state, Window(T0 - 2 * D, T0), days.__getitem__)
    assert (state.rows, state.left) == (19, (Window(ORIGIN, T0 - 2 * D),))


def test_rows_that_retention_may_take_are_read_and_not_counted() -> None:
    state = begun(kept_from=T0 - 12 * D)
    counted: list[Window] = []

    def count(part: Window) -> int:
        counted.append(part)
        return 1

    state = switch.after_read(state, HORIZON, count)
    assert (state.left, state.rows, counted) == ((), 1, [Window(T0 - 5 * D, T0)])
    assert switch.after_read(begun(kept_from=T0 - 12 * D), Window(ORIGIN, T0 - 6 * D), count).rows == 0


@pytest.mark.parametrize(
    ("counts", "passes", "settled"),
    [((5,), 2, False), ((5, 5), 2, True), ((0, 5), 3, False), ((0, 5, 7, 7), 4, True), ((5, 7, 5, 5), 4, True)],
)
def test_it_is_settled_by_the_first_pass_that_brings_as_much_as_the_one_before(
    counts: tuple[int, ...], passes: int, settled: bool
) -> None:
    state = passed(begun(), *counts)
    assert (state.passes, state.settled_at is not None) == (passes, settled)
    assert state.absence_counts(HOUR) is settled
    assert state.notes_unknown(HOUR) is not settled


@pytest.mark.parametrize(
    ("brought", "stored", "ever_stored", "whole"),
    [(0, 0, False, True), (0, 0, True, False), (0, 9, True, False), (4, 9, True, False), (5, 9, True, True)],
)
def test_passes_that_agree_on_far_less_than_is_stored_settle_nothing_for_a_month(
    brought: int, stored: int, ever_stored: bool, whole: bool
) -> None:
    state, now = begun(), T0
    while state.settled_at is None:
        state = read_whole(state, brought) if state.left else state
        now += D
        state = resumed(state, now=now, stored=stored, ever_stored=ever_stored)
    assert now - T0 == (2 * D if whole else 30 * D)


def test_in_the_first_pass_nothing_is_known_of_what_is_lacking() -> None:
    state = begun()
    assert not state.absence_counts(HOUR)
    assert not state.notes_unknown(HOUR)


def test_passes_keep_growing_distances() -> None:
    state, now, waits = begun(), T0, []
    for rows in range(8):
        state = read_whole(state, rows)
        begin = now
        while resumed(state, now=now).passes == state.passes:
            now += 5 * M
        waits.append(now - begin)
        state = resumed(state, now=now)
    assert waits == [H, 2 * H, 4 * H, 8 * H, 16 * H, D, D, D]


def test_a_clock_set_back_does_not_delay_the_next_pass() -> None:
    assert resumed(read_whole(begun(), 3), now=T0 - 100 * D).passes == 2


def test_a_window_that_fails_ends_no_pass_and_is_tried_until_it_is_read() -> None:
    bad = Window(T0 - D, T0)
    state = begun()
    state = switch.after_failure(state, bad)
    assert bad in slices(state)
    state = passed(state, 5)
    state = passed(switch.after_failure(state, bad), 5)
    assert state.settled_at
    assert slices(state) == [bad]
    assert not state.absence_counts(HOUR)
    assert state.notes_unknown(HOUR)
    assert state.absence_counts(Window(T0 - 3 * D, T0 - 2 * D))
    state = read(state, bad, 1)
    assert slices(state) == []
    assert state.absence_counts(HOUR)


def test_several_windows_that_fail_take_turns() -> None:
    one, two = Window(T0 - D, T0), Window(T0 - 3 * D, T0 - 2 * D)
    state = switch.after_failure(switch.after_failure(begun(), one), two)
    tried = []
    for _ in range(4):
        failing = slices(state, budget=0)[-1]
        tried.append(failing)
        state = switch.after_failure(state, failing)
    assert tried == [one, two, one, two]


def test_a_later_start_ends_the_wait_for_what_is_wanted_no_more() -> None:
    state = read(begun(), Window(T0 - 5 * D, T0), 3)
    state = resumed(state, now=T0 + 5 * M, wanted=[Window(T0 - 5 * D, T0)])
    assert state.left == ()


def test_rows_that_retention_may_take_between_two_passes_do_not_count() -> None:
    assert begun(kept_from=T0 - 30 * D).counted_from == T0 - 23 * D
    assert begun().counted_from is None


def test_what_came_after_the_change_is_not_part_of_it() -> None:
    later = Window(T0, T0 + H)
    state = resumed(read_whole(begun(), 3), now=T0 + 2 * H, wanted=[Window(ORIGIN, T0 + 2 * H)])
    assert not intersect(state.left, later)
