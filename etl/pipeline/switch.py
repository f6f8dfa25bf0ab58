"""After a change of the API's generation: all that was read, read once more, until two readings agree; pure.

A server that was upgraded copies its history to where the newer API looks, in the background, for hours or days. So
what that API answers in the meantime proves little: everything up to the moment of the change is read again in passes,
in slices across runs and after all else, until one pass brings as many rows as the one before it. What a row says may
change meanwhile as it always may; a history that is still being filled shows in the number of rows.

Until then a stored row that the API lacks is no deleted one. Those that it lacks in a later pass may never get there;
they are noted (`etl.load.deletions`), so that their absence counts for nothing afterwards either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from etl.intervals import DAY, Window, intersect, merge, subtract, whole_ms

TIER = "switch"

# The wait from the start of one pass to the next doubles, from the first of these to the second.
_SHORTEST_WAIT, _LONGEST_WAIT = timedelta(hours=1), DAY
# What a retention rule takes away between two passes must not keep them from agreeing.
_LONGEST_PASS = timedelta(days=7)
# After this time a history that is still far from whole is taken for one that the server was told not to copy.
_LONGEST_COPY = timedelta(days=30)


@dataclass(frozen=True)
class Switch:
    """Where one source stands since the change. Times are UTC, in whole milliseconds.

    Attributes:
        until: What was, or could have been, read before the change ends here.
        counted_from: Older rows do not count, for they may vanish between two passes; None if none does.
        started_at: The clock of the run that began the latest pass.
        passes: How many were begun, 1 or more.
        left: What the latest pass has still to read, newest first.
        failed: What it could not read, longest untried first; disjoint from `left`. It keeps no pass from ending.
        rows: How many rows the latest pass has read so far.
        rows_before: How many the pass before it has read; None if there was none.
        settled_at: The clock of the run that found that two passes agreed; None before.
    """

    until: datetime
    counted_from: datetime | None
    started_at: datetime
    passes: int
    left: tuple[Window, ...]
    failed: tuple[Window, ...] = ()
    rows: int = 0
    rows_before: int | None = None
    settled_at: datetime | None = None

    def absence_counts(self, window: Window) -> bool:
        """Whether a row that a complete read of `window` lacks may be a deleted one."""
        return self.settled_at is not None and not intersect(self.failed, window)

    def notes_unknown(self, window: Window) -> bool:
        """Whether rows of the other generation that such a read lacks are to be noted as not known to this one.

        Not in the first pass, which may find nothing at all yet.
        """
        return self.passes > 1 and not self.absence_counts(window)


def begun(*, now: datetime, until: datetime, wanted: Iterable[Window], kept_from: datetime | None) -> Switch:
    """The first pass, for the run that found the change.

    Args:
        now: The run's clock.
        until: The newest that this run may read.
        wanted: What was read whole, or is still to be.
        kept_from: Older rows may vanish without anybody deleting them; None if the server keeps all.
    """
    counted_from = None if kept_from is None else whole_ms(kept_from + _LONGEST_PASS)
    return Switch(until, counted_from, whole_ms(now), 1, _before(until, wanted))


def resumed(
    switch: Switch,
    *,
    now: datetime,
    wanted: Iterable[Window],
    rows_stored: Callable[[Window], int],
    ever_stored: bool,
) -> Switch:
    """As the next run finds it: settled if two passes agreed, else with a pass under way if one is due.

    Two passes that bring less than half of what is stored, or nothing although something ever was, agree only that
    the server has not begun, or has paused, to copy its history: they settle nothing for `_LONGEST_COPY`.

    Args:
        rows_stored: How many stored rows of a window a whole history brings at least.
        ever_stored: Whether any row was ever stored, be it marked as deleted.
    """
    now, known = whole_ms(now), merge(wanted)
    switch = replace(switch, left=_only(switch.left, known), failed=_only(switch.failed, known))
    if switch.settled_at is not None or switch.left:
        return switch
    if switch.rows == switch.rows_before and (
        now - switch.until >= _LONGEST_COPY or _whole(switch, known, rows_stored, ever_stored=ever_stored)
    ):
        return replace(switch, settled_at=now)
    wait = min(_LONGEST_WAIT, _SHORTEST_WAIT * (1 << min(switch.passes - 1, 20)))
    # A clock that was set back makes nobody wait until it is there again.
    if timedelta() <= now - switch.started_at < wait:
        return switch
    return replace(
        switch, started_at=now, passes=switch.passes + 1, left=_before(switch.until, known), failed=(), rows=0,
        rows_before=switch.rows,
    )  # fmt: skip


def _whole(switch: Switch, known: Iterable[Window], rows_stored: Callable[[Window], int], *, ever_stored: bool) -> bool:
    """Whether the latest pass brought so much that the history may be whole."""
    if switch.rows == 0 and ever_stored:
        return False
    read = [part for window in _before(switch.until, known) for part in subtract(window, merge(switch.failed))]
    return 2 * switch.rows >= sum(map(rows_stored, _counted(switch, read)))


def next_slices(
    switch: Switch,
    *,
    covered: Iterable[Window],
    planned: Sequence[Window],
    cut: Callable[[Window], Sequence[Window]],
    cost: Callable[[Window], float],
    budget: float,
) -> list[Window]:
    """What to read again in this run, newest first, after everything else; what was never read is not among it.

    One window, and one more of those that failed, whatever they cost; beyond these as much as the budget allows.

    Args:
        covered: The intervals read whole before this run.
        planned: What the run reads again for other reasons.
        cut: A window in pieces that the reader can take, in ascending order.
        cost: What reading a piece costs, in the unit of `budget`.
        budget: What is left for it in this run; may be below 0.
    """
    known = merge(covered)
    slices: list[Window] = []
    spent = 0.0
    for queue, most in ((switch.left, budget), (switch.failed, 0.0)):
        parts = (part for window in _only(queue, known) for part in reversed(subtract(window, planned)))
        for rank, piece in enumerate(piece for part in parts for piece in reversed(cut(part))):
            price = cost(piece)
            if rank > 0 and spent + price > most:
                break
            spent += price
            slices.append(piece)
    return slices


def after_read(switch: Switch, window: Window, rows_in: Callable[[Window], int]) -> Switch:
    """The state once `window` was read whole, for whatever reason.

    Args:
        rows_in: How many rows that brought in a part of the window.
    """
    parts = intersect((*switch.left, *switch.failed), window)
    return replace(
        switch,
        left=_without(switch.left, window),
        failed=_without(switch.failed, window),
        rows=switch.rows + sum(map(rows_in, _counted(switch, parts))),
    )


def after_failure(switch: Switch, window: Window) -> Switch:
    """The state once `window` could not be read: what was wanted of it is tried again after what failed before."""
    tried = intersect((*switch.left, *switch.failed), window)
    return replace(switch, left=_without(switch.left, window), failed=(*_without(switch.failed, window), *tried))


def as_json(switch: Switch) -> dict[str, Any]:
    """What JSON can hold of it, which is all; times in ISO 8601."""
    return {
        "until": switch.until.isoformat(),
        "counted_from": switch.counted_from and switch.counted_from.isoformat(),
        "started_at": switch.started_at.isoformat(),
        "passes": switch.passes,
        "left": [[start.isoformat(), end.isoformat()] for start, end in switch.left],
        "failed": [[start.isoformat(), end.isoformat()] for start, end in switch.failed],
        "rows": switch.rows,
        "rows_before": switch.rows_before,
        "settled_at": switch.settled_at and switch.settled_at.isoformat(),
    }


def from_json(stored: dict[str, Any]) -> Switch:
    """What `as_json` was given."""
    counted_from, settled_at = stored["counted_from"], stored["settled_at"]
    return Switch(
        until=datetime.fromisoformat(stored["until"]),
        counted_from=counted_from and datetime.fromisoformat(counted_from),
        started_at=datetime.fromisoformat(stored["started_at"]),
        passes=stored["passes"],
        left=_windows(stored["left"]),
        failed=_windows(stored["failed"]),
        rows=stored["rows"],
        rows_before=stored["rows_before"],
        settled_at=settled_at and datetime.fromisoformat(settled_at),
    )


def _before(until: datetime, wanted: Iterable[Window]) -> tuple[Window, ...]:
    parts = (Window(window.start, min(window.end, until)) for window in reversed(merge(wanted)))
    return tuple(part for part in parts if part.start < part.end)


def _counted(switch: Switch, windows: Iterable[Window]) -> list[Window]:
    """Without what retention may take away."""
    first = switch.counted_from
    return [
        Window(start if first is None else max(start, first), end)
        for start, end in windows
        if first is None or end > first
    ]


def _without(windows: Iterable[Window], taken: Window) -> tuple[Window, ...]:
    return tuple(part for window in windows for part in reversed(subtract(window, [taken])))


def _only(windows: Iterable[Window], known: Sequence[Window]) -> tuple[Window, ...]:
    return tuple(part for window in windows for part in reversed(intersect(known, window)))


def _windows(texts: list[list[str]]) -> tuple[Window, ...]:
    return tuple(Window(datetime.fromisoformat(start), datetime.fromisoformat(end)) for start, end in texts)
