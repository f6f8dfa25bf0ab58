"""Lookback tiers against a simulated server: every late row is found in time, for about two re-reads per tier.

The bound. Let S be the span of a tier, and let a row with timestamp t become visible at `a`, at most S/2 after t.
Let q be the first run that starts at `a` or later and for which waiting for the next tick would reach `a + S/2`; on a
regular schedule q starts before `a + S/2`. If passes fit in a run, the row is stored by the end of q. If a pass takes
up to K runs, it is stored by the end of the run 2K - 1 after q: one pass may be under way, then comes its own. A row
that no run has read yet is stored when it is read first; one in a window that fails, when the window is read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
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
class Simulation:
    """A database that is synced with a server. A read sees what was visible when its run began, and no more."""

    rows: Sequence[Row]
    spans: Sequence[timedelta]
    every: timedelta = 5 * M
    budget: float = 1e9
    piece: timedelta = 7 * D
    first_load: int = 1000
    """The budget of a run, in pieces; the longest piece; how many pieces of 5 days fit in a run of the first load."""

    text: str | None = None
    coverage: list[Window] = field(default_factory=list)
    stored: set[Row] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)
    longest_pass: Counter[timedelta] = field(default_factory=Counter)

    def tiers(self) -> tuple[TierState, ...]:
        return state_from_json(self.text, self.spans)

    def cut(self, window: Window) -> list[Window]:
        return split_by(window, self.piece)

    def pieces(self, tier: TierState) -> int:
        return sum(len(self.cut(window)) for window in tier.current.left) if tier.current else 0

    def run(self, now: datetime, failing: Sequence[Window] = (), stop_after: int | None = None) -> Run:
        """One run; it stops after so many windows, and every window that meets `failing` fails."""
        new = [w for gap in subtract(Window(ORIGIN, now - LAG), self.coverage) for w in split_by(gap, 5 * D)]
        live = new[::-1][: self.first_load]
        tiers = start_due_passes(self.tiers(), now=now, every=self.every, coverage=self.coverage)
        for tier in tiers:
            self.longest_pass[tier.span] = max(self.longest_pass[tier.span], self.pieces(tier))
        slices = next_slices(tiers, cut=self.cut, cost=lambda _: 1, budget=self.budget)
        again = [one.window for one in slices]
        assert len(merge([*live, *again])) <= len([*live, *again])
        assert not [w for one in again for w in intersect(live, one)], "what is new is not read again in the same run"
        assert not [w for one in again for w in subtract(one, self.coverage)], "what is read again was read before"
        assert sum((w.end - w.start for w in merge(again)), timedelta()) == sum((w.end - w.start for w in again), 0 * S)
        pieces = {tier.span: self.pieces(tier) for tier in tiers if tier.current}
        quiet = not failing and stop_after is None and not any(tier.failed for tier in tiers)

        run = Run(now, slices)
        for window in [*live, *again][:stop_after]:
            if intersect(failing, window):
                run.failed.append(window)
                tiers = after_failure(tiers, window)
            else:
                self.coverage = merge([*self.coverage, window])
                self.stored |= {
                    row for row in self.rows if row.arrives <= now and window.start <= row.timestamp < window.end
                }
                tiers = after_read(tiers, window)
            self.text = state_as_json(tiers)
        if self.text is not None:
            assert self.tiers() == tiers or not [*live, *again][:stop_after]
        if quiet:
            for tier in tiers:
                assert not tier.current or self.pieces(tier) < pieces[tier.span], "every run brings every pass on"
        self.runs.append(run)
        return run

    def missing(self) -> list[Row]:
        """Rows that are not stored although their place was read."""
        return [row for row in self.rows if row not in self.stored and is_in(row.timestamp, self.coverage)]


def is_in(moment: datetime, windows: Sequence[Window]) -> bool:
    return any(window.start <= moment < window.end for window in windows)


def deadline(row: Row, span: timedelta, every: timedelta, ticks: Sequence[datetime]) -> int:
    """The index of the run q of the bound; `len(ticks)` if the schedule ends before."""
    return next(
        (i for i, q in enumerate(ticks) if q >= row.arrives and q + every >= row.arrives + span / 2), len(ticks)
    )


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
    around = st.sampled_from(ticks).flatmap(
        lambda tick: st.one_of(st.just(tick), st.integers(-7200, 7200).map(lambda s: tick + s * S))
    )
    late = st.sampled_from(spans).flatmap(
        lambda span: st.one_of(
            st.just(span / 2), st.floats(0, 1).map(lambda part: round(span / 2 * part / S) * S), st.just(0 * S)
        )
    )
    return draw(st.lists(st.builds(Row, around, late), max_size=25))


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


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_late_row_is_stored_half_a_span_after_it_arrives(data: st.DataObject) -> None:
    every, ticks = data.draw(schedules())
    spans = data.draw(st.sampled_from(TIER_SETS))
    rows = data.draw(late_rows(spans, ticks))
    failing = data.draw(failures(ticks))
    sync = Simulation(rows, spans, every, piece=data.draw(st.sampled_from([H, 6 * H, 7 * D])))
    sync.first_load = data.draw(st.sampled_from([1, 3, 1000]))
    due = {row: min(deadline(row, span, every, ticks) for span in spans if row.late <= span / 2) for row in rows}

    for i, now in enumerate(ticks):
        run = sync.run(now, failing[i])

        assert [row for row in sync.missing() if due[row] <= i and not is_in(row.timestamp, run.failed)] == []


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_pass_in_slices_delays_a_late_row_by_no_more_than_its_runs(data: st.DataObject) -> None:
    every, ticks = data.draw(schedules())
    ticks = [*ticks, *(ticks[-1] + i * every for i in range(1, 30))]
    spans = data.draw(st.sampled_from(TIER_SETS))
    sync = Simulation(data.draw(late_rows(spans, ticks)), spans, every)
    sync.piece = max(max(spans) / data.draw(st.integers(1, 12)), H)
    sync.budget = data.draw(st.sampled_from([0, 1, 4]))
    stored_in: dict[Row, int] = {}
    read_in: dict[Row, int] = {}

    for i, now in enumerate(ticks):
        sync.run(now)
        stored_in |= {row: i for row in sync.stored if row not in stored_in}
        read_in |= {row: i for row in sync.rows if row not in read_in and is_in(row.timestamp, sync.coverage)}

    for row in read_in:
        for span in spans:
            if row.late <= span / 2:
                runs = 2 * sync.longest_pass[span] - 1
                last = max(deadline(row, span, every, ticks) + max(runs, 0), read_in[row])
                assert last >= len(ticks) or stored_in[row] <= last


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_tier_keeps_what_it_promises_whatever_happens(data: st.DataObject) -> None:
    """Outages, slices, failures, runs that are stopped, and changes of the tiers, all at once."""
    every, ticks = data.draw(schedules())
    spans = data.draw(st.sampled_from(TIER_SETS))
    everything = sorted({span for tiers in TIER_SETS for span in tiers})
    rows = data.draw(late_rows(everything, ticks))
    failing = data.draw(failures(ticks))
    sync = Simulation(rows, spans, every, data.draw(st.sampled_from([0, 2, 1e9])), piece=6 * H)
    promised_since = dict.fromkeys(spans, ORIGIN - 10_000 * D)

    for i, now in enumerate(ticks):
        if i and data.draw(st.integers(0, 9)) == 0:
            known, sync.spans = promised_since, data.draw(st.sampled_from(TIER_SETS))
            promised_since = {
                tier.span: next((known[span] for span in sorted(known) if span >= tier.span), tier.last_started_at)
                or datetime.max.replace(tzinfo=UTC)
                for tier in sync.tiers()
            }
        sync.run(now, failing[i], stop_after=data.draw(st.sampled_from([None, None, None, 0, 1, 3])))

        tiers = sync.tiers()
        for rank, tier in enumerate(tiers):
            failed = [window for larger in tiers[rank:] for window in larger.failed]
            assert [
                row
                for row in sync.missing()
                if tier.last_started_at
                and promised_since[tier.span] < row.arrives <= tier.last_started_at
                and row.late <= tier.span / 2
                and not is_in(row.timestamp, failed)
            ] == []


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
            re_read[one.span] += one.window.end - one.window.start
        runs_of.update({one.span for one in run.slices})
    times = {span: re_read[span] / (30 * D) for span in DEFAULT}
    assert all(1.5 < times[span] < 2.1 for span in DEFAULT), times
    assert runs_of == {45 * M: 72 * 30 - 1, 6 * H: 8 * 30 - 1, 2 * D: 29, 14 * D: 4}
    assert sum(not run.slices for run in sync.runs) > 0.7 * len(ticks), "most polls read nothing again"


def test_slices_cost_no_more_than_whole_passes_and_keep_to_the_budget() -> None:
    sync = Simulation([], DEFAULT, piece=6 * H, budget=3)
    for now in regular(5 * M, 15 * D):
        sync.run(now)

    assert max(len(run.slices) for run in sync.runs) <= 3 + len(DEFAULT)
    total = sum((one.window.end - one.window.start for run in sync.runs for one in run.slices), timedelta())
    assert total / (15 * D) < 2 * len(DEFAULT)


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


# What is stored, and changes of the configuration


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
    text = state_as_json(tiers)
    assert state_from_json(text, [tier.span for tier in tiers]) == tiers
    assert isinstance(json.loads(text), list)


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
    known, now = passed(T0, H, 4 * D), T0 + downtime
    tiers = state_from_json(state_as_json(known), [H, 10 * D])
    tiers = start_due_passes(tiers, now=now, every=5 * M, coverage=covered(now))
    assert tiers[1].current
    (window,) = tiers[1].current.left
    assert window.start <= min(now - 10 * D, T0 - 2 * D)
    assert window.end == now


def test_lost_coverage_is_not_read_again() -> None:
    """After a change of filters nothing is covered: the first load reads it all."""
    tiers = (TierState(H, T0 - D, Pass(T0 - H, (Window(T0 - D, T0),)), (Window(ORIGIN, T0 - 2 * D),)),)
    assert start_due_passes(tiers, now=T0, every=5 * M, coverage=[]) == passed(T0 - H, H)
