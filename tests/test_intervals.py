"""Half-open intervals, against sets of the minutes in them."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.intervals import DAY, Window, intersect, merge, split_at_midnights, split_by, subtract, whole_ms

START = datetime(2026, 11, 8, tzinfo=UTC)


def window(first: int, last: int) -> Window:
    return Window(START + timedelta(minutes=first), START + timedelta(minutes=last))


def minutes(*windows: Window) -> set[int]:
    return {
        minute
        for one in windows
        for minute in range((one.start - START) // timedelta(minutes=1), (one.end - START) // timedelta(minutes=1))
    }


def is_in_order(windows: list[Window], *, may_touch: bool) -> bool:
    pairs = itertools.pairwise(windows)
    return all(w.start < w.end for w in windows) and all(
        one.end < two.start or (may_touch and one.end == two.start) for one, two in pairs
    )


some_windows = st.builds(lambda first, length: window(first, first + length), st.integers(0, 60), st.integers(0, 20))
lists = st.lists(some_windows, max_size=8)


@given(lists)
def test_merged_windows_are_the_same_minutes_apart_from_each_other(windows: list[Window]) -> None:
    merged = merge(windows)

    assert minutes(*merged) == minutes(*windows)
    assert is_in_order(merged, may_touch=False)
    assert merged == merge(merged)


@given(some_windows, lists)
def test_what_is_left_of_a_window_is_what_no_other_covers(whole: Window, covered: list[Window]) -> None:
    left = subtract(whole, covered)

    assert minutes(*left) == minutes(whole) - minutes(*covered)
    assert is_in_order(left, may_touch=False)


@given(lists, some_windows)
def test_parts_inside_bounds_are_in_both(windows: list[Window], bounds: Window) -> None:
    parts = intersect(windows, bounds)

    assert minutes(*parts) == minutes(*windows) & minutes(bounds)
    assert all(part.start < part.end for part in parts)


@given(st.integers(0, 5_000), st.integers(0, 10_000))
def test_no_part_crosses_a_midnight_and_nothing_is_lost(first: int, length: int) -> None:
    whole = window(first, first + length)
    parts = split_at_midnights(whole)

    assert minutes(*parts) == minutes(whole)
    assert is_in_order(parts, may_touch=True)
    for part in parts:
        assert part.start.date() == (part.end - timedelta(milliseconds=1)).date()


@given(st.integers(0, 100), st.integers(0, 500), st.integers(1, 90))
def test_pieces_are_at_most_as_long_as_asked_and_counted_from_the_end(first: int, length: int, most: int) -> None:
    whole = window(first, first + length)
    parts = split_by(whole, timedelta(minutes=most))

    assert minutes(*parts) == minutes(whole)
    assert is_in_order(parts, may_touch=True)
    assert all(part.end - part.start == timedelta(minutes=most) for part in parts[1:])
    assert len(parts) == -(-length // most)


def test_a_window_of_whole_days_is_cut_at_each_of_its_midnights() -> None:
    whole = Window(START, START + 3 * DAY)

    assert [Window(START + n * DAY, START + (n + 1) * DAY) for n in range(3)] == split_at_midnights(whole)


@pytest.mark.parametrize(
    ("moment", "cut"),
    [
        (datetime(2026, 11, 8, 1, 2, 3, 4_999, UTC), datetime(2026, 11, 8, 1, 2, 3, 4_000, UTC)),
        (datetime(2026, 11, 8, 1, 2, 3, 0, timezone(timedelta(hours=2))), datetime(2026, 11, 7, 23, 2, 3, 0, UTC)),
        (datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC)),
    ],
)
def test_a_moment_is_cut_to_the_millisecond_below_in_utc(moment: datetime, cut: datetime) -> None:
    assert whole_ms(moment) == cut
    assert whole_ms(moment).tzinfo is UTC


def test_a_window_is_shown_to_the_millisecond() -> None:
    shown = str(Window(START, START + timedelta(hours=1, milliseconds=20)))

    assert shown == "[2026-11-08T00:00:00.000 .. 2026-11-08T01:00:00.020)"
