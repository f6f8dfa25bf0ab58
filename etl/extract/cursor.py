"""Lists with a cursor: a total order from newest to oldest, read to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from etl.errors import TooMuchError, UnexpectedAnswerError
from etl.extract.answers import row_times
from etl.extract.client import ListAnswer
from etl.extract.readers import Page, Segment
from etl.extract.walks import SEGMENT_ROWS
from etl.intervals import MILLISECOND, Window, whole_ms
from etl.transform.items import listed_text
from etl.transform.pages import Kind, keys_of

# Asks for `limit` rows of a window after a cursor, None for the first.
Fetch = Callable[[Window, int, str | None], ListAnswer]

_TRIES_PER_PAGE = 3
_MAX_TIME_OUTS = 30


@dataclass
class TimeOuts:
    """Requests of one run that timed out: after so many the server is in trouble, and asking for less is no help."""

    left: int = _MAX_TIME_OUTS
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def spent(self) -> bool:
        """Whether there was one too many."""
        return self.left < 0

    def note(self, error: TooMuchError) -> None:
        """Counts `error` if it is a time-out, and raises it if it is one too many; for all threads of a run."""
        with self._lock:
            self.left -= error.timed_out
            if error.timed_out and self.spent:
                raise error


def read_by_cursor(
    fetch: Fetch,
    window: Window,
    kind: Kind,
    *,
    time_field: str,
    path: str,
    limit: int,
    time_outs: TimeOuts | None = None,
) -> Iterator[Page]:
    """All rows of `window`, newest first; every `SEGMENT_ROWS` rows a segment is closed with the proof `walked`.

    A page that is short although a cursor follows may be a cut answer, or hold rows that the server left out
    (`/v3/scores` does that); it is asked for again, and believed when it comes the same. What times out is asked for
    with half of the rows and half of the time; what is too large, with half of the rows.

    Args:
        limit: The most rows that a page may have.
        time_outs: Shared by all reads of a run.
    Raises:
        UnexpectedAnswerError: Rows outside the window or out of order, or a cursor that does not move.
        TooMuchError: Not even one row can be had, or too much timed out.
    """
    asking = _Asking(fetch, limit)
    time_outs = time_outs or TimeOuts()
    end, length, most_rows = window.end, window.end - window.start, 0
    while end > window.start:
        part, rows = Window(max(window.start, end - length), end), 0
        try:
            for page in _walk(asking, part, kind, time_field, path):
                rows += len(page.items)
                end = page.closes[-1].window.start if page.closes else end
                yield page
            most_rows = max(most_rows, rows)
            if rows <= most_rows // 2:  # far fewer than the server was able to send
                length *= 2
        except TooMuchError as error:
            smallest = asking.limit == 1 and end - part.start <= MILLISECOND
            if not error.timed_out or smallest:
                raise
            time_outs.note(error)
            asking.most = asking.limit = max(1, asking.limit // 2)
            length = max(MILLISECOND, whole_ms(part.start + (end - part.start) / 2) - part.start)


def newest_by_cursor(fetch: Fetch, window: Window, *, time_field: str, path: str) -> datetime | None:
    """The time of the newest row of `window`; its end if there are rows that the server does not show, None if none.

    There is no total: an empty page is believed when it comes twice, and nothing is to follow. A cut answer here would
    cost all the history before.
    """
    for _ in range(2):
        answer = fetch(window, 1, None)
        if answer.items:
            return whole_ms(*row_times(answer.items[:1], time_field, path))
        if answer.meta.get("cursor") is not None:
            return window.end
    return None


@dataclass
class _Asking:
    """How much is asked for at once, and how many requests went out since the last segment was closed.

    What timed out is not asked for again, until a row came by itself: one row alone may have been the reason.
    """

    fetch: Fetch
    largest: int
    limit: int = field(init=False)
    most: int = field(init=False)
    requests: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.limit = self.most = self.largest

    def page(self, window: Window, cursor: str | None) -> ListAnswer:
        """The next page, whole."""
        answer = self._once(window, cursor)
        for _ in range(1, _TRIES_PER_PAGE):
            if len(answer.items) >= self.limit or answer.meta.get("cursor") is None:
                break
            before, answer = answer, self._once(window, cursor)
            if _say_the_same(answer, before):
                break
        if self.limit == 1:
            self.most = self.largest
        self.limit = min(self.most, self.limit * 2)
        return answer

    def _once(self, window: Window, cursor: str | None) -> ListAnswer:
        while True:
            self.requests += 1
            try:
                return self.fetch(window, self.limit, cursor)
            except TooMuchError as error:
                if error.timed_out or self.limit == 1:
                    raise
                self.limit //= 2


def _say_the_same(one: ListAnswer, other: ListAnswer) -> bool:
    return one.meta == other.meta and listed_text(one.items) == listed_text(other.items)


def _walk(asking: _Asking, window: Window, kind: Kind, time_field: str, path: str) -> Iterator[Page]:
    """The pages of one window; together their segments are the window."""
    cursor: str | None = None
    segment_end = last = window.end
    read = tail = 0  # `tail` of the rows that were read stand at the millisecond `last`
    while True:
        answer = asking.page(window, cursor)
        items = answer.items
        times = list(map(whole_ms, row_times(items, time_field, path)))
        if any(not window.start <= time < window.end for time in times) or times != sorted(times, reverse=True):
            raise UnexpectedAnswerError(f"GET {path}: rows out of order or outside the time range", path=path)
        if times and times[0] > last:
            raise UnexpectedAnswerError(f"GET {path}: a page that begins before the one before it", path=path)
        if times:
            tail = times.count(times[-1]) + (tail if times[0] == times[-1] == last else 0)
            last = times[-1]
        next_cursor = answer.meta.get("cursor")
        if next_cursor is not None and next_cursor == cursor:
            raise UnexpectedAnswerError(f"GET {path}: the cursor does not move", path=path)
        cursor = next_cursor
        fresh = len(set(keys_of(kind, items)))
        closes: list[Segment] = []
        if cursor is None:
            closes = [Segment(Window(window.start, segment_end), "walked", None, read + fresh, asking.requests)]
        elif read + fresh >= SEGMENT_ROWS and last + MILLISECOND < segment_end:
            # Rows of the last millisecond may go on in the next page: they count for the next segment.
            whole = Window(last + MILLISECOND, segment_end)
            closes = [Segment(whole, "walked", None, read + fresh - tail, asking.requests)]
            segment_end, read, fresh = whole.start, 0, tail
        if closes:
            asking.requests = 0
        read += fresh
        yield Page(kind, items, closes, body_bytes=answer.body_bytes)
        if cursor is None:
            return
