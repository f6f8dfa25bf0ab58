"""Which windows are due, and in what order; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from etl.errors import ClockError, ConfigError
from etl.intervals import DAY, Window, intersect, merge, split_at_midnights, split_by, subtract, whole_ms

LIVE, HISTORY, ABSENCE = "live", "history", "absence"

# A clock may be corrected by this much without anybody being asked.
CLOCK_TOLERANCE = timedelta(minutes=5)
_LONGEST_WINDOW = timedelta(days=7)
_LONGEST_BACK_OFF = timedelta(hours=6)
# Neighbours with so few rows together are one request; apart they would be two.
_ROWS_OF_ONE_REQUEST = 100


class Due(NamedTuple):
    """A window to read now. `tier` says why: `live`, `history`, `absence` (rows were missing there), or the
    span of a lookback tier, such as `6h`.

    `light`: all of it is stored already, so comparing what is cheap to read will do.
    """

    window: Window
    tier: str
    light: bool


def newest_readable(now: datetime, lag: timedelta) -> datetime:
    """The end of what may be read: rows younger than `lag` may still be on their way."""
    return whole_ms(now - lag)


def require_sane_clock(now: datetime, coverage: Iterable[Window]) -> None:
    """Refuses to plan with a clock that contradicts the ledger.

    Raises:
        ClockError: Coverage ends in the future.
    """
    newest = max((window.end for window in coverage), default=now)
    if newest > now + CLOCK_TOLERANCE:
        raise ClockError(
            f"the database holds data up to {newest:%Y-%m-%d %H:%M} UTC, but the clock says"
            f" {now:%Y-%m-%d %H:%M} UTC; set the clock right, nothing was read"
        )


def due_windows(
    *,
    origin: datetime,
    edge: datetime,
    coverage: Sequence[Window],
    again: Sequence[Due],
    held: Sequence[Window],
    midnight_bound: bool,
    rows_stored: Callable[[Window], int],
) -> list[Due]:
    """The windows of one source that are due, in the order to read them.

    What is missing of the newest day comes first, so that the database is useful soon; then what is to be read again;
    then whatever else is missing, newest first, back to `origin`. Small neighbours are joined.

    Args:
        origin: Where coverage is wanted from.
        edge: The end of what may be read, from `newest_readable`.
        coverage: The intervals read whole.
        again: What the lookback tiers want of the coverage, in their order.
        held: What failed, gaps and re-reads, and is left alone for a while.
        midnight_bound: Windows must not cross UTC midnights.
        rows_stored: How many rows of a window are stored.
    Raises:
        ConfigError: `origin` is not in the past.
    """
    if origin >= edge:
        raise ConfigError(f"start: {origin:%Y-%m-%dT%H:%M:%SZ} is not in the past; choose an earlier time, or null")
    newest_day = Window(max(origin, edge - DAY), edge)
    missing = subtract(Window(origin, edge), [*coverage, *held])
    live = _newest_first(intersect(missing, newest_day), LIVE, midnight_bound)
    older = [part for window in missing for part in subtract(window, [newest_day])]
    joined = _join_small([*live, *again], midnight_bound, rows_stored)
    return [*joined, *_newest_first(older, HISTORY, midnight_bound)]


def back_off(failures: int, every: timedelta) -> timedelta:
    """How long after the last of so many failures, 1 or more, it is left alone: `every`, then twice that, up to 6 h.

    Args:
        every: Time between runs.
    """
    return min(_LONGEST_BACK_OFF, every * (1 << min(failures - 1, 20)))


def held_back(failed: Iterable[tuple[Window, datetime]], *, every: timedelta, now: datetime) -> list[Window]:
    """The windows among those that failed, with the times at which they did, that are not to be tried again yet."""
    known = list(failed)
    held: list[Window] = []
    for window, _ in known:
        times = [at for other, at in known if intersect([other], window)]
        if now < max(times) + back_off(len(times), every):
            held.append(window)
    return merge(held)


def watermark(origin: datetime, coverage: Iterable[Window]) -> datetime | None:
    """The end of the unbroken coverage that starts at `origin`; None while it does not reach back that far."""
    for window in merge(coverage):
        if window.start <= origin < window.end:
            return window.end
    return None


def cut_for_reader(window: Window, midnight_bound: bool) -> list[Window]:
    """`window` in the longest pieces that a reader takes, in ascending order."""
    return split_at_midnights(window) if midnight_bound else split_by(window, _LONGEST_WINDOW)


def cut_by_rows(window: Window, rows: int, most_rows: int, midnight_bound: bool) -> list[Window]:
    """`window` in pieces of about `most_rows` of its `rows` rows, in ascending order; none under a millisecond."""
    pieces = max(1, -(-rows // most_rows))
    length = max(timedelta(milliseconds=1), whole_ms_up((window.end - window.start) / pieces))
    return [part for piece in cut_for_reader(window, midnight_bound) for part in split_by(piece, length)]


def whole_ms_up(length: timedelta) -> timedelta:
    """`length`, made whole milliseconds by adding less than one."""
    return -(-length // timedelta(milliseconds=1)) * timedelta(milliseconds=1)


def _newest_first(windows: Iterable[Window], tier: str, midnight_bound: bool) -> list[Due]:
    pieces = (piece for window in windows for piece in cut_for_reader(window, midnight_bound))
    return [Due(window, tier, light=False) for window in sorted(pieces, key=lambda w: w.start, reverse=True)]


def _join_small(due: Sequence[Due], midnight_bound: bool, rows_stored: Callable[[Window], int]) -> list[Due]:
    """Neighbours that are one request together as one window; it takes the place and tier of its first part."""
    joined: list[tuple[Due, int]] = []
    for one in due:
        rows = rows_stored(one.window)
        for index, (other, other_rows) in enumerate(joined):
            whole = _union(one.window, other.window)
            fits = rows + other_rows <= _ROWS_OF_ONE_REQUEST
            if whole and fits and len(cut_for_reader(whole, midnight_bound)) == 1:
                joined[index] = (Due(whole, other.tier, one.light and other.light), rows + other_rows)
                break
        else:
            joined.append((one, rows))
    return [one for one, _ in joined]


def _union(one: Window, other: Window) -> Window | None:
    if one.end == other.start or other.end == one.start:
        return Window(min(one.start, other.start), max(one.end, other.end))
    return None
