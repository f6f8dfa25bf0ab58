"""A list with a cursor is read to its end, and only what is whole is called read."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from as_read import as_read
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import TooMuchError, UnexpectedAnswerError
from etl.extract.client import ListAnswer
from etl.extract.cursor import read_by_cursor
from etl.extract.readers import Page, Segment
from etl.intervals import Window, merge
from etl.transform.pages import Kind

START = datetime(2026, 11, 20, tzinfo=UTC)
WINDOW = Window(START, START + timedelta(hours=1))
Row = dict[str, Any]


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class CursorServer:
    """Rows from newest to oldest, in a total order; a cursor is the number of rows of the window before the page."""

    def __init__(self, count: int, rng: random.Random, *, spread_ms: int = 3_600_000) -> None:
        self._times = sorted(START + timedelta(milliseconds=rng.randrange(spread_ms)) for _ in range(count))
        self.rows: list[Row] = [
            {"id": f"r{number}", "timestamp": text(moment)} for number, moment in enumerate(reversed(self._times))
        ]
        self.asked: list[int] = []

    def of(self, window: Window) -> list[Row]:
        low, high = bisect_left(self._times, window.start), bisect_left(self._times, window.end)
        return self.rows[len(self.rows) - high : len(self.rows) - low]

    def __call__(self, window: Window, limit: int, cursor: str | None) -> ListAnswer:
        self.asked.append(limit)
        rows = self.of(window)
        start = int(cursor or 0)
        meta = {"cursor": str(start + limit)} if start + limit < len(rows) else {}
        return ListAnswer(as_read(rows[start : start + limit]), meta, None, 0)


def read(fetch: Callable[[Window, int, str | None], ListAnswer], limit: int = 100) -> list[Page]:
    pages = read_by_cursor(fetch, WINDOW, Kind.SCORE_V3, time_field="timestamp", path="/x", limit=limit)
    return list(pages)


def rows_of(pages: list[Page]) -> set[str]:
    return {item["id"] for page in pages for item in page.items}


def segments_of(pages: list[Page]) -> list[Segment]:
    return [segment for page in pages for segment in page.closes]


def assert_whole(pages: list[Page], server: CursorServer) -> None:
    """Every row came, and the segments are the window, from newest to oldest, with the right count of rows."""
    assert rows_of(pages) == {row["id"] for row in server.rows}
    segments = segments_of(pages)
    assert merge(segment.window for segment in segments) == [WINDOW]
    assert [s.window.start for s in segments[:-1]] == [s.window.end for s in segments[1:]]
    assert sum(segment.read for segment in segments) == len(server.rows)
    for window, _, _, count, _ in segments:
        assert count == len(server.of(window))
    assert {(segment.proof, segment.promised) for segment in segments} == {("walked", None)}
    assert sum(segment.requests for segment in segments) == len(server.asked)


@given(st.integers(0, 2**32), st.integers(0, 3_000), st.sampled_from([1, 7, 100]), st.sampled_from([1, 30, 3_600_000]))
@settings(max_examples=60, deadline=None)
def test_every_row_comes_and_is_counted_in_its_segment(seed: int, count: int, limit: int, spread_ms: int) -> None:
    server = CursorServer(min(count, 60 * limit), random.Random(seed), spread_ms=spread_ms)
    assert_whole(read(server, limit), server)


def test_segments_are_closed_on_the_way() -> None:
    server = CursorServer(5_000, random.Random(1))
    pages = read(server)
    assert_whole(pages, server)
    assert len(segments_of(pages)) == 5
    assert len(server.asked) == 50


def test_a_page_that_is_too_large_is_asked_for_in_parts_and_then_pages_grow_again() -> None:
    server = CursorServer(2_000, random.Random(2))

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        start = int(cursor or 0)
        if start <= 777 < start + limit and limit > 1:
            server.asked.append(limit)
            raise TooMuchError("too large", path="/x", timed_out=False)
        return server(window, limit, cursor)

    pages = read(fetch)
    assert_whole(pages, server)
    assert len(server.asked) < 20 + 30


@given(st.integers(0, 2**32), st.integers(0, 800), st.sampled_from([20, 150, 700]))
@settings(max_examples=40, deadline=None)
def test_a_server_that_times_out_on_long_stretches_is_read_whole(seed: int, count: int, most: int) -> None:
    server = CursorServer(count, random.Random(seed))

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        if len(server.of(window)) > most:
            server.asked.append(limit)
            raise TooMuchError("too slow", path="/x", timed_out=True)
        return server(window, limit, cursor)

    assert_whole(read(fetch), server)


def test_a_server_that_always_times_out_is_given_up() -> None:
    asked = []

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        asked.append(limit)
        raise TooMuchError("too slow", path="/x", timed_out=True)

    with pytest.raises(TooMuchError):
        read(fetch)
    assert len(asked) <= 31


def test_a_row_that_cannot_be_sent_alone_ends_the_reading() -> None:
    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        raise TooMuchError("too large", path="/x", timed_out=False)

    with pytest.raises(TooMuchError):
        read(fetch)


def test_half_a_page_with_a_cursor_is_asked_for_again() -> None:
    server = CursorServer(450, random.Random(3))
    halved: list[str | None] = []

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        answer = server(window, limit, cursor)
        if "cursor" in answer.meta and cursor not in halved:
            halved.append(cursor)
            return answer._replace(items=answer.items[: limit // 2])
        return answer

    assert_whole(read(fetch), server)
    assert len(halved) == 4


def test_a_page_that_stays_short_is_believed() -> None:
    """`/v3/scores` leaves out rows that it cannot show, also whole pages of them."""
    server = CursorServer(450, random.Random(4))
    shown = server.rows[:130] + server.rows[300:]

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        answer = server(window, limit, cursor)
        return answer._replace(items=[row for row in answer.items if row in shown])

    pages = read(fetch)
    assert rows_of(pages) == {row["id"] for row in shown}
    assert merge(segment.window for segment in segments_of(pages)) == [WINDOW]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda rows: rows[::-1],
        lambda rows: [*rows, {"id": "old", "timestamp": text(START - timedelta(milliseconds=1))}],
        lambda rows: [{"id": "new", "timestamp": text(WINDOW.end)}, *rows],
        lambda rows: [*rows, {"id": "timeless"}],
    ],
)
def test_rows_that_do_not_fit_the_question_are_refused(spoil: Callable[[list[Row]], list[Row]]) -> None:
    server = CursorServer(50, random.Random(5))

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        answer = server(window, limit, cursor)
        return answer._replace(items=as_read(spoil(list(map(dict, answer.items)))))

    with pytest.raises(UnexpectedAnswerError):
        read(fetch)


def test_a_cursor_that_does_not_move_is_refused() -> None:
    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        return ListAnswer([], {"cursor": "same"}, None, 0)

    with pytest.raises(UnexpectedAnswerError, match="does not move"):
        read(fetch)


def test_a_page_that_begins_again_is_refused() -> None:
    server = CursorServer(250, random.Random(6))

    def fetch(window: Window, limit: int, cursor: str | None) -> ListAnswer:
        return server(window, limit, None)._replace(meta={"cursor": str(len(server.asked))})

    with pytest.raises(UnexpectedAnswerError, match="begins before"):
        read(fetch)
