"""Lists with a cursor: a total order from newest to oldest, read to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from etl.errors import TooMuchError, UnexpectedAnswerError
from etl.extract.answers import row_time
from etl.extract.client import Answer
from etl.extract.readers import Page, Segment
from etl.extract.walks import SEGMENT_ROWS
from etl.intervals import MILLISECOND, Window
from etl.transform.pages import Kind, key_of

_TRIES_PER_PAGE = 3


def read_by_cursor(
    fetch: Callable[[int, str | None], Answer],
    window: Window,
    kind: Kind,
    *,
    time_field: str,
    path: str,
    limit: int,
) -> Iterator[Page]:
    """All rows of `window`, newest first; every `SEGMENT_ROWS` rows a segment is closed with the proof `walked`.

    A page that is short although a cursor follows may be a cut answer, or hold rows that the server left out
    (`/v3/scores` does that); it is asked for again, and believed when it comes the same.

    Args:
        fetch: Asks for `limit` rows after a cursor, None for the first.
    Raises:
        UnexpectedAnswerError: Rows outside the window or out of order, or a cursor that does not move.
        TooMuchError: Not even one row can be had.
    """
    cursor: str | None = None
    segment_end, read, requests, largest = window.end, 0, 0, limit
    last = window.end
    while True:
        try:
            answer, sent = _whole_page(fetch, limit, cursor)
        except TooMuchError:
            if limit == 1:
                raise
            limit, requests = limit // 2, requests + 1
            continue
        requests += sent
        items = answer.value["data"]
        times = [row_time(item, time_field, path) for item in items]
        if any(not window.start <= time < window.end for time in times) or times != sorted(times, reverse=True):
            raise UnexpectedAnswerError(f"GET {path}: rows out of order or outside the time range", path=path)
        if times and times[0] > last:
            raise UnexpectedAnswerError(f"GET {path}: a page that begins before the one before it", path=path)
        last = times[-1] if times else last
        next_cursor = answer.value["meta"].get("cursor")
        if next_cursor is not None and next_cursor == cursor:
            raise UnexpectedAnswerError(f"GET {path}: the cursor does not move", path=path)
        cursor, limit = next_cursor, min(largest, limit * 2)
        fresh = len({key_of(kind, item) for item in items})
        closes: list[Segment] = []
        if cursor is None:
            closes = [Segment(Window(window.start, segment_end), "walked", None, read + fresh, requests)]
        elif read + fresh >= SEGMENT_ROWS and last + MILLISECOND < segment_end:
            # Rows of the last millisecond may go on in the next page: they count for the next segment.
            tail = times.count(last)
            closes = [Segment(Window(last + MILLISECOND, segment_end), "walked", None, read + fresh - tail, requests)]
            segment_end, read, requests, fresh = last + MILLISECOND, 0, 0, tail
        read += fresh
        yield Page(kind, items, answer.plain, closes)
        if cursor is None:
            return


def _whole_page(fetch: Callable[[int, str | None], Answer], limit: int, cursor: str | None) -> tuple[Answer, int]:
    """One page, and how many requests it took."""
    answer = fetch(limit, cursor)
    for tries in range(1, _TRIES_PER_PAGE):
        if len(answer.value["data"]) >= limit or answer.value["meta"].get("cursor") is None:
            return answer, tries
        again = fetch(limit, cursor)
        if again.value == answer.value:
            return again, tries + 1
        answer = again
    return answer, _TRIES_PER_PAGE
