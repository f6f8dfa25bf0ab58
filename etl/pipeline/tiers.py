"""Lookback tiers: what is read again, and when, so that late rows and edits are found; pure.

A tier of span S promises one thing with its `last_started_at`, here `p`: a row that became visible by `p`, at most S/2
after its timestamp, is stored if its place is covered and not among what failed. A pass started at `r` renews the
promise: a row that became visible after `p` has a timestamp after `p - S/2`, so the pass reads what is covered from
there on; what is not covered yet is read for the first time after `r` anyway. That is also why a tier over a database
without coverage has passed at once, and a first load is not read twice.

In a run: `state_from_json`, `start_due_passes`, `next_slices`; then, window by window, `after_read` or
`after_failure` and `state_as_json`, stored in the transaction that stored the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from etl.intervals import Window, intersect, merge, subtract, whole_ms


class Pass(NamedTuple):
    """A pass under way: the clock of the run that started it, and what it has still to read, newest first."""

    started_at: datetime
    left: tuple[Window, ...]


@dataclass(frozen=True)
class TierState:
    """Where one tier of one stream stands.

    Attributes:
        span: How far back its passes read at least; above 0. A row up to half of this late is found.
        last_started_at: The clock of the run that started the last pass that ended; UTC, whole milliseconds. None
            before the first; then a pass is due.
        current: The pass under way; None between passes. Its `left` is never empty once a function here returned it.
        failed: What passes could not read, longest untried first, disjoint from what the pass under way has left. It
            stays due, whatever its age, until it is read, and keeps neither a pass from ending nor the next one from
            starting.
    """

    span: timedelta
    last_started_at: datetime | None = None
    current: Pass | None = None
    failed: tuple[Window, ...] = ()


Tiers = tuple[TierState, ...]


class Slice(NamedTuple):
    """A window to read again in this run, for the tier of this span (and for every other tier that waits for it)."""

    span: timedelta
    window: Window


def start_due_passes(
    tiers: Sequence[TierState], *, now: datetime, every: timedelta, coverage: Iterable[Window]
) -> Tiers:
    """The tiers, with a pass under way wherever waiting for the next run would be too late.

    Args:
        tiers: Ascending by span, as `state_from_json` gives them.
        now: The run's clock. Every read of this run begins at it or later.
        every: From this run to the next one, as planned; above 0.
        coverage: The intervals read whole before this run.
    """
    now, covered = whole_ms(now), merge(coverage)
    return _settled(_with_pass_if_due(tier, now, every, covered) for tier in tiers)


def next_slices(
    tiers: Sequence[TierState],
    *,
    cut: Callable[[Window], Sequence[Window]],
    cost: Callable[[Window], float],
    budget: float,
    held: Sequence[Window] = (),
) -> list[Slice]:
    """What to read again in this run, after everything live: small tiers first, newest first, nothing twice.

    Each tier gets one window, and one more of those that failed, whatever they cost, so that no tier waits for
    ever; beyond these the run stays within `budget`. All windows were covered when `start_due_passes` saw them, so
    none meets a window that is read for the first time.

    Args:
        cut: A window in pieces that the reader can take, in ascending order.
        cost: What reading a piece costs, in the unit of `budget`: estimated rows, or 1 for a count of windows.
        budget: How much one run may read again, 0 or more.
        held: What failed is not tried again there yet; passes go through it all the same, so that they end.
    """
    slices: list[Slice] = []
    spent = 0.0
    for tier in tiers:
        for queue in (_left(tier), _without(tier.failed, held)):
            rest = _without(queue, [planned.window for planned in slices])
            for rank, piece in enumerate(piece for window in rest for piece in reversed(cut(window))):
                price = cost(piece)
                if rank > 0 and spent + price > budget:
                    break
                spent += price
                slices.append(Slice(tier.span, piece))
    return slices


def after_read(tiers: Sequence[TierState], window: Window) -> Tiers:
    """The tiers once `window` was read whole, in the run of the last `start_due_passes`, for whatever reason."""
    return _settled(_relieved(tier, window) for tier in tiers)


def after_failure(tiers: Sequence[TierState], window: Window) -> Tiers:
    """The tiers once `window` could not be read: what they wanted of it is tried again after what failed before."""
    return _settled(
        replace(rest, failed=(*rest.failed, *intersect((*_left(tier), *tier.failed), window)))
        for tier, rest in ((tier, _relieved(tier, window)) for tier in tiers)
    )


def state_as_json(tiers: Sequence[TierState]) -> list[dict[str, Any]]:
    """The tiers as JSON can hold them; spans in whole seconds, times in ISO 8601."""
    return [
        {
            "span_s": round(tier.span.total_seconds()),
            "last_started_at": tier.last_started_at and tier.last_started_at.isoformat(),
            "current": tier.current
            and {"started_at": tier.current.started_at.isoformat(), "left": _texts(tier.current.left)},
            "failed": _texts(tier.failed),
        }
        for tier in tiers
    ]


def state_from_json(stored: Iterable[dict[str, Any]] | None, spans: Iterable[timedelta]) -> Tiers:
    """The tiers of the configuration, ascending by span, as far as `state_as_json` knew them.

    A new tier smaller than a known one has been passed whenever that one was, for it promised more. A new largest
    tier is due at once, and reads what the largest known one owed, too, before that is forgotten.

    Args:
        stored: None if there is no state yet.
        spans: Distinct, in whole seconds, above 0.
    """
    known = sorted(map(_tier, stored or ()), key=lambda tier: tier.span)
    return _settled(_known_or_new(span, known) for span in sorted(spans))


def _with_pass_if_due(tier: TierState, now: datetime, every: timedelta, covered: list[Window]) -> TierState:
    # A clock that was set back must not make a tier wait until it is there again, nor vouch for what lies between.
    last = tier.last_started_at and min(tier.last_started_at, now)
    failed = _only(tier.failed, covered)
    if tier.current:
        current = Pass(min(tier.current.started_at, now), _only(tier.current.left, covered))
    elif last is None or now + every - last > tier.span / 2:
        start = now - tier.span if last is None else min(now - tier.span, last - tier.span / 2)
        wanted = (Window(max(window.start, whole_ms(start)), window.end) for window in reversed(covered))
        current = Pass(now, _without((window for window in wanted if window.start < window.end), failed))
    else:
        current = None
    return TierState(tier.span, last, current, failed)


def _settled(tiers: Iterable[TierState]) -> Tiers:
    """The tiers, ascending, with passes ended that have nothing left, theirs and those of the smaller tiers they met.

    What a larger tier promises includes what a smaller one would have promised with a pass of the same start.
    """
    settled: list[TierState] = []
    larger: datetime | None = None
    for tier in reversed(list(tiers)):
        last, current = tier.last_started_at, tier.current
        if current and not current.left:
            last, current = current.started_at, None
        if larger and (last is None or last < larger):
            last = larger
        if current and last and current.started_at <= last:
            current = None
        settled.append(TierState(tier.span, last, current, tier.failed))
        larger = last
    return tuple(reversed(settled))


def _known_or_new(span: timedelta, known: list[TierState]) -> TierState:
    """The tier of this span: as known, else as the next larger one that was passed, else after the largest one."""
    for tier in known:
        if tier.span == span:
            return tier
    passed = [(tier, tier.last_started_at) for tier in known if tier.last_started_at]
    for tier, last in passed:
        if tier.span > span:
            return TierState(span, last, None, tier.failed)
    if passed:
        # Half a span before is early enough to be due now, and to reach back to all that the largest one owed.
        largest, last = passed[-1]
        return TierState(span, last - span / 2, None, largest.failed)
    return TierState(span)


def _left(tier: TierState) -> tuple[Window, ...]:
    return tier.current.left if tier.current else ()


def _relieved(tier: TierState, window: Window) -> TierState:
    """The tier without its wish to read `window`."""
    current = tier.current and Pass(tier.current.started_at, _without(tier.current.left, [window]))
    return TierState(tier.span, tier.last_started_at, current, _without(tier.failed, [window]))


def _without(windows: Iterable[Window], taken: Sequence[Window]) -> tuple[Window, ...]:
    """What of `windows` is in none of `taken`: the windows in their order, the parts of each newest first."""
    return tuple(part for window in windows for part in reversed(subtract(window, taken)))


def _only(windows: Iterable[Window], covered: list[Window]) -> tuple[Window, ...]:
    """What of `windows` is covered: the windows in their order, the parts of each newest first."""
    return tuple(part for window in windows for part in reversed(intersect(covered, window)))


def _texts(windows: Iterable[Window]) -> list[list[str]]:
    return [[window.start.isoformat(), window.end.isoformat()] for window in windows]


def _tier(stored: dict[str, Any]) -> TierState:
    last, current = stored["last_started_at"], stored["current"]
    return TierState(
        span=timedelta(seconds=stored["span_s"]),
        last_started_at=datetime.fromisoformat(last) if last else None,
        current=Pass(datetime.fromisoformat(current["started_at"]), _windows(current["left"])) if current else None,
        failed=_windows(stored["failed"]),
    )


def _windows(texts: list[list[str]]) -> tuple[Window, ...]:
    return tuple(Window(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in texts)
