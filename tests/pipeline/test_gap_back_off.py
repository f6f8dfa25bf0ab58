"""How long a gap that fails is left alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from etl.intervals import Window, intersect, merge, subtract
from etl.pipeline.plan import back_off, held_back

START = datetime(2026, 11, 1, tzinfo=UTC)
LONGEST = timedelta(hours=6)
EVERY = st.integers(1, 24 * 60).map(lambda minutes: timedelta(minutes=minutes))


@given(failures=st.integers(1, 10_000), every=EVERY)
def test_it_starts_with_the_time_between_runs_doubles_and_stops_at_six_hours(failures: int, every: timedelta) -> None:
    wait = back_off(failures, every)

    assert min(every, LONGEST) <= wait <= LONGEST
    assert wait == min(LONGEST, 2 * back_off(failures - 1, every)) if failures > 1 else wait == min(every, LONGEST)


def window(first: int, length: int) -> Window:
    return Window(START + timedelta(hours=first), START + timedelta(hours=first + length))


FAILURES = st.lists(
    st.tuples(st.builds(window, st.integers(0, 20), st.integers(1, 5)), st.integers(0, 600)), max_size=8
).map(lambda pairs: [(span, START + timedelta(minutes=minutes)) for span, minutes in pairs])


@given(failed=FAILURES, every=EVERY, minutes=st.integers(0, 2_000))
def test_what_is_held_is_what_failed_and_not_for_longer_than_its_back_off(
    failed: list[tuple[Window, datetime]], every: timedelta, minutes: int
) -> None:
    now = START + timedelta(minutes=minutes)

    held = held_back(failed, every=every, now=now)

    known = merge(span for span, _ in failed)
    assert merge(held) == held
    assert all(not subtract(span, known) for span in held)
    for span, _ in failed:
        times = [at for other, at in failed if intersect([other], span)]
        if now < max(times) + back_off(len(times), every):
            assert not subtract(span, held)
    if all(now >= at + LONGEST for _, at in failed):
        assert held == []


@given(failed=FAILURES, every=EVERY, minutes=st.integers(0, 2_000), more=st.integers(0, 600))
def test_waiting_only_frees(failed: list[tuple[Window, datetime]], every: timedelta, minutes: int, more: int) -> None:
    now = START + timedelta(minutes=minutes)

    later = held_back(failed, every=every, now=now + timedelta(minutes=more))

    before = held_back(failed, every=every, now=now)
    assert all(not subtract(span, before) for span in later)
