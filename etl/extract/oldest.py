"""Where history begins, found without deep pages."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from etl.errors import TooMuchError
from etl.intervals import Window

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PRECISION = timedelta(days=1)


def oldest_by_bisection(newest_in: Callable[[Window], datetime | None], before: datetime) -> datetime | None:
    """A moment at most a day before the oldest row, or None if there is no row before `before`.

    Args:
        newest_in: The time of the newest row in a window, None if it is empty; one request with `limit=1`.
        before: Exclusive end of the search.
    """
    known = _newest(newest_in, Window(EPOCH, before))
    if known is None:
        return None
    empty_before, step = EPOCH, _PRECISION
    while known - step > EPOCH:
        older = _newest(newest_in, Window(EPOCH, known - step))
        if older is None:
            empty_before = known - step
            break
        known, step = older, step * 2
    while known - empty_before > _PRECISION:
        middle = empty_before + (known - empty_before) / 2
        middle = middle.replace(microsecond=middle.microsecond // 1000 * 1000)
        older = _newest(newest_in, Window(empty_before, middle))
        if older is None:
            empty_before = middle
        else:
            known = older
    return empty_before


def _newest(newest_in: Callable[[Window], datetime | None], window: Window) -> datetime | None:
    try:
        return newest_in(window)
    except TooMuchError:
        # Only a stretch with many rows is slow. Its end is as good as the time of a row.
        return window.end
