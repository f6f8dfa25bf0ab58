"""Half-open intervals of time, and what is left of them; pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

MILLISECOND = timedelta(milliseconds=1)
DAY = timedelta(days=1)


class Window(NamedTuple):
    """`[start, end)`: aware, UTC, whole milliseconds, `start` before `end`."""

    start: datetime
    end: datetime

    def __str__(self) -> str:
        start, end = (m.replace(tzinfo=None).isoformat(timespec="milliseconds") for m in self)
        return f"[{start} .. {end})"


def whole_ms(moment: datetime) -> datetime:
    """`moment` in UTC, cut to the millisecond below."""
    moment = moment.astimezone(UTC)
    beyond_us = moment.microsecond % 1000
    return moment.replace(microsecond=moment.microsecond - beyond_us) if beyond_us else moment


def merge(windows: Iterable[Window]) -> list[Window]:
    """The same points in time as few windows, in ascending order; neighbours become one, empty ones vanish."""
    merged: list[Window] = []
    for window in sorted(window for window in windows if window.start < window.end):
        if merged and window.start <= merged[-1].end:
            merged[-1] = Window(merged[-1].start, max(merged[-1].end, window.end))
        else:
            merged.append(window)
    return merged


def subtract(whole: Window, covered: Iterable[Window]) -> list[Window]:
    """What of `whole` is in none of `covered`, in ascending order."""
    left: list[Window] = []
    start = whole.start
    for window in merge(covered):
        if window.start > start:
            left.append(Window(start, min(window.start, whole.end)))
        start = max(start, window.end)
        if start >= whole.end:
            break
    if start < whole.end:
        left.append(Window(start, whole.end))
    return [window for window in left if window.start < window.end]


def intersect(windows: Iterable[Window], bounds: Window) -> list[Window]:
    """The parts of `windows` inside `bounds`, in the order given."""
    parts = (Window(max(w.start, bounds.start), min(w.end, bounds.end)) for w in windows)
    return [part for part in parts if part.start < part.end]


def split_at_midnights(window: Window) -> list[Window]:
    """`window` cut at every UTC midnight inside it, in ascending order."""
    parts: list[Window] = []
    start = window.start
    while start < window.end:
        midnight = start.replace(hour=0, minute=0, second=0, microsecond=0) + DAY
        parts.append(Window(start, min(midnight, window.end)))
        start = midnight
    return parts


def split_by(window: Window, length: timedelta) -> list[Window]:
    """`window` cut in pieces of at most `length`, counted from its end, in ascending order."""
    parts: list[Window] = []
    end = window.end
    while end > window.start:
        start = max(window.start, end - length)
        parts.append(Window(start, end))
        end = start
    return parts[::-1]
