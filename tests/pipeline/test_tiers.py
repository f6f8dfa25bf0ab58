"""Lookback tiers against a simulated server: every late row is found in time, for about two re-reads per tier.

The bound. Let S be the span of a tier, and let a row become visible at `a`, at most S/2 after its timestamp. Let q be
the first run that starts at `a` or later and for which waiting for the next tick would reach `a + S/2`; on a regular
schedule q starts before `a + S/2`. The row is stored by the end of the pass that q starts (or that was started since
`a`); when a pass started before `a` is still under way in q, by the end of the pass that the run after it starts. A
row that no run has read yet is stored when it is read first; one in a window that fails, when the window is read.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.intervals import Window, intersect, merge, split_at_midnights, split_by, subtract
from etl.pipeline.tiers import (
    Pass,
    Slice,
    TierState,
    after_failure,
    after_read,
    next_slices,
    start_due_passes,
    state_as_json,
    state_from_json,
)

S, M, H, D = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
T0 = datetime(2025, 3, 1, tzinfo=UTC)
ORIGIN = T0 - 20 * D
LAG = 2 * M
DEFAULT = (45 * M, 6 * H, 2 * D, 14 * D)
TIER_SETS = [DEFAULT, (M,), (45 * M,), (10 * M, H), (6 * H, 7 * H), (H, 3 * D), (30 * S, 2 * H, D)]


class Row:
    """A row of the server: visible from `arrives` on, `late` after its timestamp."""

    def __init__(self, arrives: datetime, late: timedelta) -> None:
        self.arrives, self.late, self.timestamp = arrives, late, arrives - late

    def __repr__(self) -> str:
        return f"Row(arrives={self.arrives - T0}, late={self.late})"


@dataclass
class Run:
    """What one run did."""

    now: datetime
    slices: list[Slice]
    failed: list[Window] = field(default_factory=list)


@dataclass
class PassLog:
    """The pass of a tier, from the run it started in to the run it ended in, both included; None: under way."""

    started_at: datetime
    first: int
    last: int | None = None


@dataclass
class Simulation:
    """A database that is synced with a server. A read sees what was visible when its run began, and no more.

    `budget` of a run in pieces, `piece` the longest of them, `first_load` how many pieces of five days one run reads
    for the first time. `waiting` are the rows that are not stored, `stored` is the state between runs.
    """

    rows: Iterable[Row]
    spans: Sequence[timedelta]
    every: timedelta = 5 * M
    budget: float = 1e9
    piece: timedelta = 7 * D
    first_load: int = 1000

    def __post_init__(self) -> None:
        self.waiting = list(self.rows)
        self.stored: str | None = None
        self.coverage: list[Window] = []
        self.runs: list[Run] = []
        self.passes: dict[timedelta, list[PassLog]] = {span: [] for span in self.spans}

    def tiers(self) -> tuple[TierState, ...]:
        return state_from_json(json.loads(self.stored) if self.stored else None, self.spans)

    def cut(self, window: Window) -> list[Window]:
        return split_by(window, self.piece)

    def run(self, now: datetime, failing: Sequence[Window] = (), stop_after: int | None = None) -> Run:
        """One run; it stops after so many windows, and every window that meets `failing` fails."""
        gaps = subtract(Window(ORIGIN, now - LAG), self.coverage)
        live = [piece for gap in gaps for piece in split_by(gap, 5 * D)][::-1][: self.first_load]
        tiers = start_due_passes(self.tiers(), now=now, every=self.every, coverage=self.coverage)
        run = Run(now, next_slices(tiers, cut=self.cut, cost=lambda _: 1, budget=self.budget))
        again = [one.window for one in run.slices]
        assert length(merge([*live, *again])) == length(live) + length(again), "no two readers hold the same row"
        assert not [part for window in again for part in subtract(window, self.coverage)], "what is new is live"
        self._log_starts(tiers, now)
        before = {tier.span: length(tier.current.left) for tier in tiers if tier.current}

        for window in [*live, *again][:stop_after]:
            if intersect(failing, window):
                run.failed.append(window)
                tiers = after_failure(tiers, window)
            else:
                tiers = after_read(tiers, window)
                self.coverage = merge([*self.coverage, window])
                self.waiting = [
                    row for row in self.waiting if row.arrives > now or not window.start <= row.timestamp < window.end
                ]
        self.stored = json.dumps(state_as_json(tiers))
        assert self.tiers() == tiers
        for tier in tiers if stop_after is None else ():
            assert not tier.current or length(tier.current.left) < before[tier.span], "each run brings each pass on"
        self._log_ends(tiers)
        self.runs.append(run)
        return run

    def missing(self) -> list[Row]:
        """Rows that are not stored although their place was read."""
        return [row for row in self.waiting if is_in(row.timestamp, self.coverage)]

    def _log_starts(self, tiers: Sequence[TierState], now: datetime) -> None:
        for tier in tiers:
            if tier.last_started_at == now or (tier.current and tier.current.started_at == now):
                self.passes.setdefault(tier.span, []).append(PassLog(now, len(self.runs)))

    def _log_ends(self, tiers: Sequence[TierState]) -> None:
        for tier in tiers:
            for one in self.passes.get(tier.span, [])[-1:]:
                one.last = len(self.runs) if one.last is None and not tier.current else one.last


def is_in(moment: datetime, windows: Sequence[Window]) -> bool:
    return any(window.start <= moment < window.end for window in windows)


def length(windows: Iterable[Window]) -> timedelta:
    return sum((window.end - window.start for window in windows), timedelta())


def run_due(row: Row, span: timedelta, every: timedelta, ticks: Sequence[datetime]) -> int:
    """The index of the run q of the bound; `len(ticks)` if the schedule ends before."""
    first = bisect_left(ticks, max(row.arrives, row.arrives + span / 2 - every))
    assert first == len(ticks) or ticks[first] + every >= row.arrives + span / 2
    return first


def regular(every: timedelta, duration: timedelta) -> list[datetime]:
    return [T0 + i * every for i in range(duration // every)]


# What hypothesis draws: schedules with jitter and outages, rows up to as late as a tier allows, failing stretches.


@st.composite
def schedules(draw: st.DrawFn) -> tuple[timedelta, list[datetime]]:
    every = draw(st.sampled_from([30 * S, 5 * M, 17 * M, 2 * H]))
    jitter = st.integers(-int(every / S) // 2, int(every / S)).map(lambda s: every + s * S)
    outage = st.sampled_from([20 * M, 3 * H, 9 * H, 30 * H, 8 * D, 25 * D])
    gaps = draw(st.lists(st.one_of(st.just(every), jitter, jitter, outage), min_size=1, max_size=40))
    return every, [T0, *accumulate(gaps, initial=T0 + gaps[0])][: len(gaps) + 1]


@st.composite
def late_rows(draw: st.DrawFn, spans: Sequence[timedelta], ticks: Sequence[datetime]) -> list[Row]:
    """Per tick and tier the worst row, which arrives right after the tick and as late as the tier allows; others."""
    after, part = draw(st.integers(-7200, 7200)), draw(st.floats(0, 1))
    worst = [Row(tick + S, span / 2) for tick in ticks for span in spans]
    return worst + [Row(tick + after * S, round(span / 2 * part / S) * S) for tick in ticks for span in spans]


@st.composite
def failures(draw: st.DrawFn, ticks: Sequence[datetime]) -> list[list[Window]]:
    """For every run the stretches of which no window can be read."""
    failing: list[list[Window]] = [[] for _ in ticks]
    for _ in range(draw(st.integers(0, 3))):
        first, count = draw(st.integers(0, len(ticks) - 1)), draw(st.integers(1, 12))
        end = ticks[first] - draw(st.integers(0, 3 * 86_400)) * S
        for windows in failing[first : first + count]:
            windows.append(Window(end - draw(st.integers(1, 7200)) * S, end))
    return failing


# The bound


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_late_row_is_stored_half_a_span_after_it_arrives(data: st.DataObject) -> None:
    """Passes that fit in a run; outages, failures, and a first load over several runs."""
    every, ticks = data.draw(schedules())
    spans = data.draw(st.sampled_from(TIER_SETS))
    rows = data.draw(late_rows(spans, ticks))
    failing = data.draw(failures(ticks))
    sync = Simulation(rows, spans, every, piece=data.draw(st.sampled_from([6 * H, 7 * D])))
    sync.first_load = data.draw(st.sampled_from([1, 2, 1000]))
    due = {row: min(run_due(row, span, every, ticks) for span in spans if row.late <= span / 2) for row in rows}

    for i, now in enumerate(ticks):
        run = sync.run(now, failing[i])

        assert [row for row in sync.missing() if due[row] <= i and not is_in(row.timestamp, run.failed)] == []


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_passes_over_several_runs_delay_a_late_row_by_no_more_than_they_take(data: st.DataObject) -> None:
    every, ticks = data.draw(schedules())
    ticks = [*ticks, *(ticks[-1] + i * every for i in range(1, 20))]
    spans = data.draw(st.sampled_from(TIER_SETS))
    rows = data.draw(late_rows(spans, ticks))
    sync = Simulation(rows, spans, every, budget=data.draw(st.sampled_from([0, 1, 4])))
    sync.piece = max(spans) / data.draw(st.sampled_from([1, 2, 3, 5, 9]))
    stored_in: dict[Row, int] = {}
    read_in: dict[Row, int] = {}

    for i, now in enumerate(ticks):
        sync.run(now)
        waiting = set(sync.waiting)
        stored_in |= {row: i for row in rows if row not in stored_in and row not in waiting}
        read_in |= {row: i for row in rows if row not in read_in and is_in(row.timestamp, sync.coverage)}

    def last_run(row: Row, span: timedelta) -> int:
        run = run_due(row, span, every, ticks)
        for one in sync.passes[span]:
            last = len(ticks) if one.last is None else one.last
            if one.started_at < row.arrives and one.first <= run <= last:
                run = last + 1
            elif one.started_at >= row.arrives and one.first <= run:
                return last
        return run

    for row in read_in:
        last = max(min(last_run(row, span) for span in spans if row.late <= span / 2), read_in[row])
        assert last >= len(ticks) or stored_in.get(row, len(ticks)) <= last, row


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_tier_keeps_its_promise_whatever_happens(data: st.DataObject) -> None:
    """Outages, slices, failures, runs that are stopped, and changes of the tiers, all at once."""
    every, ticks = data.draw(schedules())
    spans = data.draw(st.sampled_from(TIER_SETS))
    rows = data.draw(late_rows(sorted({span for tiers in TIER_SETS for span in tiers}), ticks[::3]))
    failing = data.draw(failures(ticks))
    changes = data.draw(st.dictionaries(st.integers(1, len(ticks)), st.sampled_from(TIER_SETS), max_size=3))
    stops = data.draw(st.dictionaries(st.integers(0, len(ticks)), st.integers(1, 4), max_size=8))
    sync = Simulation(rows, spans, every, data.draw(st.sampled_from([0, 2, 1e9])), piece=6 * H)
    # A tier promises something about the rows that arrive after this moment.
    since = dict.fromkeys(spans, ORIGIN)

    for i, now in enumerate(ticks):
        if i in changes:
            sync.spans = changes[i]
            since = {
                tier.span: next(
                    (since[span] for span in sorted(since) if span >= tier.span), tier.last_started_at or now
                )
                for tier in sync.tiers()
            }
        sync.run(now, failing[i], stops.get(i))

        missing = sync.missing()
        tiers = sync.tiers()
        for rank, tier in enumerate(tiers):
            failed = [window for larger in tiers[rank:] for window in larger.failed]
            promised = (
                row
                for row in missing
                if tier.last_started_at and since[tier.span] < row.arrives <= tier.last_started_at
                if row.late <= tier.span / 2
            )
            assert [row for row in promised if not is_in(row.timestamp, failed)] == []


# The cost


def test_thirty_days_re_read_each_row_about_twice_per_tier() -> None:
    sync = Simulation([], DEFAULT)
    ticks = regular(5 * M, 30 * D)
    for now in ticks:
        sync.run(now)

    re_read = dict.fromkeys(DEFAULT, timedelta())
    runs_of: Counter[timedelta] = Counter()
    for run in sync.runs:
        for one in run.slices:
            re_read[one.span] += length([one.window])
        runs_of.update({one.span for one in run.slices})
    times = {span: re_read[span] / (30 * D) for span in DEFAULT}
    assert all(1.5 < times[span] < 2.1 for span in DEFAULT), times
    assert runs_of == {45 * M: 72 * 30 - 1, 6 * H: 8 * 30 - 1, 2 * D: 29, 14 * D: 4}
    assert sum(not run.slices for run in sync.runs) > 0.7 * len(ticks), "most polls read nothing again"


def test_slices_cost_no_more_than_whole_passes_and_keep_to_the_budget() -> None:
    sync = Simulation([], DEFAULT, 15 * M, budget=3, piece=6 * H)
    for now in regular(15 * M, 15 * D):
        sync.run(now)

    assert max(len(run.slices) for run in sync.runs) <= 3 + len(DEFAULT)
    total = length(one.window for run in sync.runs for one in run.slices)
    assert total / (15 * D) < 2.1 * len(DEFAULT)


# When a pass is due, and what it reads


def covered(end: datetime) -> list[Window]:
    return [Window(ORIGIN, end)]


def passed(at: datetime, *spans: timedelta) -> tuple[TierState, ...]:
    return tuple(TierState(span, at) for span in spans)


@pytest.mark.parametrize(
    ("minutes", "due"), [(15, False), (17, False), (18, True), (20, True), (600, True)]
)  # 17.5 minutes after the last start, five more would be half of 45
def test_a_pass_is_due_when_the_next_tick_would_be_too_late(minutes: int, due: bool) -> None:
    now = T0 + minutes * M
    (tier,) = start_due_passes(passed(T0, 45 * M), now=now, every=5 * M, coverage=covered(now))
    assert bool(tier.current) is due


@pytest.mark.parametrize(("minutes", "reach"), [(20, 45 - 20), (60, 22.5), (3000, 22.5)])
def test_a_pass_reaches_back_to_where_the_last_one_may_have_missed_rows(minutes: int, reach: float) -> None:
    now = T0 + minutes * M
    (tier,) = start_due_passes(passed(T0, 45 * M), now=now, every=5 * M, coverage=covered(now - LAG))
    assert tier.current == Pass(now, (Window(T0 - reach * M, now - LAG),))


def test_a_pass_leaves_out_what_is_not_covered() -> None:
    coverage = [Window(ORIGIN, T0 - 30 * M), Window(T0 - 20 * M, T0)]
    (tier,) = start_due_passes([TierState(45 * M)], now=T0, every=M, coverage=coverage)
    assert tier.current == Pass(T0, (Window(T0 - 20 * M, T0), Window(T0 - 45 * M, T0 - 30 * M)))


def test_a_quiet_poll_reads_nothing_again() -> None:
    tiers = start_due_passes(passed(T0, *DEFAULT), now=T0 + 5 * M, every=5 * M, coverage=covered(T0))
    assert tiers == passed(T0, *DEFAULT)
    assert next_slices(tiers, cut=split_at_midnights, cost=lambda _: 1, budget=100) == []


def test_the_first_load_counts_as_a_reading() -> None:
    sync = Simulation([], DEFAULT, piece=6 * H, first_load=2)
    for now in regular(5 * M, 24 * H):
        sync.run(now)

    first = {
        span: next((run.now for run in sync.runs for one in run.slices if one.span == span), None) for span in DEFAULT
    }
    assert first == {45 * M: T0 + 20 * M, 6 * H: T0 + 3 * H, 2 * D: None, 14 * D: None}


def test_small_tiers_come_first_and_a_larger_pass_does_not_read_them_twice() -> None:
    now = T0 + 3 * H
    tiers = start_due_passes(passed(T0, 45 * M, 6 * H), now=now, every=5 * M, coverage=covered(now))
    slices = next_slices(tiers, cut=lambda w: [w], cost=lambda _: 1, budget=9)
    start = T0 - 22.5 * M
    assert slices == [Slice(45 * M, Window(start, now)), Slice(6 * H, Window(now - 6 * H, start))]
    for one in slices:
        tiers = after_read(tiers, one.window)
    assert tiers == passed(now, 45 * M, 6 * H)


def test_a_larger_pass_satisfies_the_smaller_ones() -> None:
    now = T0 + 3 * H
    due = (TierState(45 * M, T0 + 2 * H, Pass(T0 + 2 * H + 20 * M, (Window(ORIGIN, T0),))), TierState(6 * H, T0))
    tiers = start_due_passes(due, now=now, every=5 * M, coverage=covered(now))
    assert after_read(tiers, Window(now - 6 * H, now)) == passed(now, 45 * M, 6 * H)


def test_a_large_pass_goes_on_where_it_stopped_and_small_ones_do_not_wait_for_it() -> None:
    tiers = passed(T0 - 8 * D, 45 * M, 14 * D)
    now, wanted = T0, [Window(T0 - 15 * D, T0)]
    small = 0
    while not small or tiers[1].current:
        tiers = start_due_passes(tiers, now=now, every=5 * M, coverage=covered(now))
        slices = next_slices(tiers, cut=split_at_midnights, cost=lambda _: 1, budget=1)
        wanted = [part for window in wanted for part in subtract(window, [one.window for one in slices])]
        small += slices[0].span == 45 * M
        for one in slices:
            tiers = state_from_json(state_as_json(after_read(tiers, one.window)), [45 * M, 14 * D])
        now += 5 * M
    assert wanted == []
    assert tiers[1].last_started_at == T0
    assert small >= 3


def test_a_budget_in_rows_stops_a_run() -> None:
    tiers = start_due_passes([TierState(10 * D)], now=T0, every=5 * M, coverage=covered(T0))
    slices = next_slices(tiers, cut=split_at_midnights, cost=lambda window: 400, budget=1000)
    assert [one.window for one in slices] == [Window(T0 - D, T0), Window(T0 - 2 * D, T0 - D)]


# Failures


def test_a_failed_window_stays_due_and_stops_nothing() -> None:
    bad = Window(T0 - 2 * D, T0 - D)
    tiers = start_due_passes([TierState(4 * D)], now=T0, every=5 * M, coverage=covered(T0))
    tiers = after_failure(tiers, bad)
    tiers = after_read(after_read(tiers, Window(T0 - D, T0)), Window(T0 - 4 * D, T0 - 2 * D))
    assert tiers == (TierState(4 * D, T0, None, (bad,)),)

    for days in (1, 4, 90):
        later = start_due_passes(tiers, now=T0 + days * D, every=5 * M, coverage=covered(T0 + days * D))
        assert all(not tier.current or intersect(tier.current.left, bad) == [] for tier in later)
        slices = next_slices(later, cut=split_at_midnights, cost=lambda _: 1, budget=0)
        assert bad in [one.window for one in slices], "even if there is no budget"
    assert after_read(tiers, bad) == passed(T0, 4 * D)


def test_what_failed_is_tried_again_in_turn() -> None:
    one, two = Window(T0 - D, T0), Window(T0 - 3 * D, T0 - 2 * D)
    tiers: tuple[TierState, ...] = (TierState(4 * D, T0, None, (one, two)),)
    tried = []
    for _ in range(4):
        (planned,) = next_slices(tiers, cut=split_at_midnights, cost=lambda _: 1, budget=0)
        tiers = after_failure(tiers, planned.window)
        tried.append(planned.window)
    assert tried == [one, two, one, two]


def test_trouble_with_live_data_is_no_matter_of_the_tiers() -> None:
    tiers = start_due_passes([TierState(D)], now=T0, every=5 * M, coverage=covered(T0 - H))
    assert after_failure(tiers, Window(T0 - H, T0)) == tiers


# The clock


def test_a_clock_set_back_makes_no_tier_wait_for_long() -> None:
    now = T0 - 300 * D
    (tier,) = start_due_passes(passed(T0, 45 * M), now=now, every=5 * M, coverage=covered(now))
    assert tier.last_started_at == now


def test_a_pass_vouches_for_nothing_after_the_reads_it_made() -> None:
    """A pass that started before the clock was set back ends as if it had started after."""
    started = Pass(T0, (Window(ORIGIN, T0 - D),))
    tiers = start_due_passes([TierState(H, None, started)], now=T0 - M, every=5 * M, coverage=covered(T0))
    assert after_read(tiers, Window(ORIGIN, T0)) == passed(T0 - M, H)


# What is stored, and changes of the configuration


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_the_state_survives_being_stored(data: st.DataObject) -> None:
    moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)).map(  # noqa: DTZ001
        lambda moment: moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    )
    windows = st.lists(st.tuples(moments, st.integers(1, 10**9)), max_size=3).map(
        lambda pairs: tuple(Window(start, start + ms * timedelta(milliseconds=1)) for start, ms in pairs)
    )
    spans = sorted(data.draw(st.sets(st.integers(1, 3650 * 86_400), min_size=1, max_size=4)))
    last = sorted(data.draw(st.lists(moments, min_size=len(spans), max_size=len(spans))), reverse=True)
    tiers = tuple(
        TierState(
            seconds * S,
            at,
            data.draw(st.one_of(st.none(), st.builds(Pass, st.just(last[0] + S), windows.filter(bool)))),
            data.draw(windows),
        )
        for seconds, at in zip(spans, last, strict=True)
    )
    text = json.dumps(state_as_json(tiers))
    assert state_from_json(json.loads(text), [tier.span for tier in tiers]) == tiers


def test_without_a_state_every_tier_is_due() -> None:
    assert state_from_json(None, DEFAULT) == tuple(TierState(span) for span in DEFAULT)


def test_a_removed_tier_is_forgotten_and_the_others_go_on() -> None:
    tiers = (TierState(H, T0, Pass(T0 + H, (Window(ORIGIN, T0),))), *passed(T0 - H, D, 4 * D))
    assert state_from_json(state_as_json(tiers), [H, 4 * D]) == (tiers[0], tiers[2])


def test_a_smaller_tier_starts_where_the_next_larger_one_stands() -> None:
    bad = Window(T0 - 2 * D, T0 - D)
    known = (TierState(H, T0), TierState(4 * D, T0 - D, None, (bad,)))
    added = state_from_json(state_as_json(known), [H, 2 * D, 4 * D])
    assert added[1] == TierState(2 * D, T0 - D, None, (bad,))


@pytest.mark.parametrize("downtime", [M, 2 * D, 100 * D])
def test_a_new_largest_tier_is_due_at_once_and_owes_what_the_old_one_owed(downtime: timedelta) -> None:
    bad, now = Window(ORIGIN, T0 - 19 * D), T0 + downtime
    known = (TierState(H, T0), TierState(4 * D, T0, None, (bad,)))
    tiers = state_from_json(state_as_json(known), [H, 10 * D])
    assert tiers[1].failed == (bad,)
    tiers = start_due_passes(tiers, now=now, every=5 * M, coverage=covered(now))
    assert tiers[1].current
    (window,) = tiers[1].current.left
    assert window.start <= min(now - 10 * D, T0 - 2 * D)
    assert window.end == now


def test_lost_coverage_is_not_read_again() -> None:
    """After a change of filters nothing is covered: the first load reads it all."""
    tiers = (TierState(H, T0 - D, Pass(T0 - H, (Window(T0 - D, T0),)), (Window(ORIGIN, T0 - 2 * D),)),)
    assert start_due_passes(tiers, now=T0, every=5 * M, coverage=[]) == passed(T0 - H, H)
