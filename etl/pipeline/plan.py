"""Which windows are due, and in what order; pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

from etl.errors import ClockError, ConfigError
from etl.intervals import DAY, Window, intersect, merge, split_at_midnights, split_by, subtract, whole_ms

Tier = Literal["live", "history", "backfill", "refresh"]

# A clock may be corrected by this much without anybody being asked.
CLOCK_TOLERANCE = timedelta(minutes=5)
_LONGEST_WINDOW = timedelta(days=7)


class Due(NamedTuple):
    """A window to read now, and why."""

    window: Window
    tier: Tier


def newest_readable(now: datetime, lag: timedelta) -> datetime:
    """The end of what may be read: rows younger than `lag` may still be on their way."""
    return whole_ms(now - lag)


def due_windows(
    *,
    origin: datetime,
    edge: datetime,
    coverage: Iterable[Window],
    lookback: timedelta,
    midnight_bound: bool,
) -> list[Due]:
    """The windows of one source that are due, in the order to read them: newest first.

    The newest day comes first, so that the database is useful soon; then whatever is missing, back to `origin`. Of
    what is covered the last stretch of `lookback` is read again together with what is new.

    Args:
        origin: Where coverage is wanted from.
        edge: The end of what may be read, from `newest_readable`.
        coverage: The intervals read whole.
        lookback: How far before the end of coverage rows may still change, 0 or more.
        midnight_bound: Cut windows at UTC midnights.
    Raises:
        ClockError: Coverage ends in the future.
        ConfigError: `origin` is not in the past.
    """
    covered = merge(coverage)
    if covered and covered[-1].end > edge + CLOCK_TOLERANCE:
        raise ClockError(
            f"the database holds data up to {covered[-1].end:%Y-%m-%d %H:%M} UTC, but the clock allows only"
            f" {edge:%Y-%m-%d %H:%M} UTC; set the clock right, nothing was read"
        )
    if origin >= edge:
        raise ConfigError(f"start: {origin:%Y-%m-%dT%H:%M:%SZ} is not in the past; choose an earlier time, or null")
    wanted = Window(origin, edge)
    missing = subtract(wanted, covered)
    if covered:
        again = Window(max(origin, covered[-1].end - lookback), edge)
        missing = merge([*missing, *intersect([again], wanted)])
    newest_day = Window(max(origin, edge - DAY), edge)
    parts = [*intersect(missing, newest_day), *(p for w in missing for p in subtract(w, [newest_day]))]
    cut = [piece for part in parts for piece in _cut(part, midnight_bound)]
    return [
        Due(window, "live" if window.end > newest_day.start else "history")
        for window in sorted(cut, key=lambda window: window.start, reverse=True)
    ]


def watermark(origin: datetime, coverage: Iterable[Window]) -> datetime | None:
    """The end of the unbroken coverage that starts at `origin`; None while it does not reach back that far."""
    for window in merge(coverage):
        if window.start <= origin < window.end:
            return window.end
    return None


def _cut(window: Window, midnight_bound: bool) -> list[Window]:
    return split_at_midnights(window) if midnight_bound else split_by(window, _LONGEST_WINDOW)
