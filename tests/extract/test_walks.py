"""A walk receives every row of its stretch, whatever the server does with ties, totals and pages."""

import random
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.extract.walks import SEGMENT_ROWS, Ask, Entry, SeekWalk, Segment, Span, WalkError


class ListServer:
    """A list ordered by time with ties in any order, and with page 1 only, as far as a walk needs one."""

    def __init__(self, times: list[int], rng: random.Random, *, descending: bool) -> None:
        self._rng, self._descending = rng, descending
        self._next_key = 0
        self._keys: dict[int, list[int]] = {}
        self._times: list[int] = []
        self.requests = 0
        for time_ms in sorted(times):
            self.insert(time_ms)

    def insert(self, time_ms: int) -> None:
        insort(self._times, time_ms)
        self._keys.setdefault(time_ms, []).append(self._next_key)
        self._next_key += 1

    def delete(self, key: int) -> None:
        time_ms = next(time_ms for time_ms, keys in self._keys.items() if key in keys)
        self._keys[time_ms].remove(key)
        del self._times[bisect_left(self._times, time_ms)]

    def rows(self, span: Span) -> set[int]:
        return {key for time_ms, keys in self._keys.items() if span.start <= time_ms < span.end for key in keys}

    def total(self, span: Span) -> int:
        return bisect_left(self._times, span.end) - bisect_left(self._times, span.start)

    def page(self, span: Span, limit: int) -> list[Entry]:
        return [entry for entry, _ in zip(self._ordered(span), range(limit), strict=False)]

    def millisecond(self, time_ms: int) -> list[int]:
        return list(self._keys.get(time_ms, ()))

    def _ordered(self, span: Span) -> Iterator[Entry]:
        low, high = bisect_left(self._times, span.start), bisect_left(self._times, span.end)
        index = high if self._descending else low
        while low < high:
            time_ms = self._times[index - 1] if self._descending else self._times[index]
            tied = list(self._keys[time_ms])
            self._rng.shuffle(tied)
            yield from (Entry(key, time_ms) for key in tied)
            index += -len(tied) if self._descending else len(tied)
            if index <= low if self._descending else index >= high:
                return


@dataclass
class Walked:
    """What a walk brought: how often each row came as new, and the segments in the order they were closed."""

    rows: set[int] = field(default_factory=set)
    segments: list[Segment] = field(default_factory=list)


@dataclass
class Trouble:
    """Chances, from 0 to 1, of what may happen before each request; half pages never come twice in a row."""

    shrink: float = 0
    shrink_limit: float = 0
    half_page: float = 0
    insert: float = 0
    delete: float = 0
    overcount: int = 0


def go(walk: SeekWalk, server: ListServer, rng: random.Random, trouble: Trouble | None = None) -> Walked:
    """Drives a walk to its end, as the reader does."""
    trouble = trouble or Trouble()
    walked = Walked()
    halved = False
    most_requests = 200 + 40 * server.total(walk.stretch)
    while not walk.done:
        assert server.requests < most_requests, "the walk does not end"
        ask = walk.ask()
        assert walk.stretch.start <= ask.span.start < ask.span.end <= walk.stretch.end
        server.requests += 1
        disturb(walk, server, rng, trouble)
        if rng.random() < trouble.shrink:
            walk.shrink()
            continue
        if rng.random() < trouble.shrink_limit:
            walk.shrink_limit()
            continue
        if ask.one_ms:
            keys = server.millisecond(ask.span.start)
            walked.rows.update(keys)
            walked.segments += walk.receive_millisecond(keys, len(keys) if walk.totals_trusted else None, whole=True)
            continue
        entries = server.page(ask.span, ask.limit)
        halved = not halved and rng.random() < trouble.half_page
        if halved:
            entries = entries[: len(entries) // 2]
        try:
            closed = walk.receive(entries, server.total(ask.span) + trouble.overcount)
        except WalkError:
            continue
        walked.rows.update(entry.key for entry in entries)
        walked.segments += closed
    return walked


def disturb(walk: SeekWalk, server: ListServer, rng: random.Random, trouble: Trouble) -> None:
    """Something is written or deleted somewhere in the stretch, between two requests."""
    if rng.random() < trouble.insert:
        server.insert(rng.randrange(walk.stretch.start, walk.stretch.end))
    if rng.random() < trouble.delete and (rows := sorted(server.rows(walk.stretch))):
        server.delete(rng.choice(rows))


def assert_partition(walk: SeekWalk, segments: list[Segment]) -> None:
    """The segments follow each other in the order of the walk, without a gap, from end to end of the stretch."""
    in_order = segments[::-1] if walk.descending else segments
    assert [s.span.start for s in in_order[1:]] == [s.span.end for s in in_order[:-1]]
    assert Span(in_order[0].span.start, in_order[-1].span.end) == walk.stretch
    assert all(segment.span.start < segment.span.end for segment in segments)


@st.composite
def lists(draw: st.DrawFn, *, most: int = 2_200) -> tuple[random.Random, Span, list[int], int]:
    """(random numbers, stretch, times of rows, limit): any density, ties, and bursts in one millisecond."""
    rng = random.Random(draw(st.integers(0, 2**32)))
    start = draw(st.integers(0, 10**12))
    length = draw(st.sampled_from([1, 2, 7, 100, 5_000, 10**6, 86_400_000]))
    limit = draw(st.one_of(st.integers(1, 100), st.sampled_from([1, 2, 99, 100])))
    count = draw(st.integers(0, min(most, 40 * limit)))
    spread = draw(st.sampled_from([1.0, 0.3, 0.001]))  # share of the stretch that has rows
    low = start + rng.randrange(length)
    high = min(start + length, low + max(1, round(length * spread)))
    times = [rng.randrange(low, high) for _ in range(count)]
    if times and draw(st.booleans()):
        times += [rng.choice(times)] * rng.choice([1, limit - 1, limit, limit + 1, 3 * limit])
    return rng, Span(start, start + length), times, limit


@given(lists(), st.booleans(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_every_row_is_received_once_and_each_segment_says_how_many(
    rows: tuple[random.Random, Span, list[int], int], descending: bool, trusted: bool
) -> None:
    rng, stretch, times, limit = rows
    server = ListServer(times, rng, descending=descending)
    walk = SeekWalk(stretch, descending, trusted, limit)
    walked = go(walk, server, rng)
    assert walked.rows == server.rows(stretch)
    assert_partition(walk, walked.segments)
    assert [s.read for s in walked.segments] == [server.total(s.span) for s in walked.segments]
    assert {s.proof for s in walked.segments} == {"counted" if trusted else "walked"}
    assert [s.promised for s in walked.segments] == [s.read if trusted else None for s in walked.segments]


@given(lists(most=800), st.booleans(), st.booleans(), st.sampled_from([0.02, 0.2, 0.6]))
@settings(max_examples=100, deadline=None)
def test_asking_for_less_at_any_time_loses_and_doubles_nothing(
    rows: tuple[random.Random, Span, list[int], int], descending: bool, trusted: bool, chance: float
) -> None:
    rng, stretch, times, limit = rows
    server = ListServer(times, rng, descending=descending)
    walk = SeekWalk(stretch, descending, trusted, limit)
    walked = go(walk, server, rng, Trouble(shrink=chance / 2, shrink_limit=chance / 2))
    assert walked.rows == server.rows(stretch)
    assert_partition(walk, walked.segments)
    assert [s.read for s in walked.segments] == [server.total(s.span) for s in walked.segments]
    assert {s.proof for s in walked.segments} == {"counted" if trusted else "walked"}


@given(lists(), st.booleans(), st.booleans(), st.sampled_from([0.05, 0.5]), st.integers(0, 300))
@settings(max_examples=100, deadline=None)
def test_half_pages_and_totals_that_are_too_high_lose_nothing(
    rows: tuple[random.Random, Span, list[int], int], descending: bool, trusted: bool, chance: float, overcount: int
) -> None:
    rng, stretch, times, limit = rows
    server = ListServer(times, rng, descending=descending)
    walk = SeekWalk(stretch, descending, trusted, limit)
    walked = go(walk, server, rng, Trouble(half_page=chance, overcount=0 if trusted else overcount))
    assert walked.rows == server.rows(stretch)
    assert_partition(walk, walked.segments)
    assert sum(s.read for s in walked.segments) == len(walked.rows)
    assert {s.proof for s in walked.segments} == {"counted" if trusted else "walked"}


@given(lists(most=800), st.booleans(), st.booleans(), st.sampled_from([0.05, 0.4]), st.sampled_from([0, 0.05]))
@settings(max_examples=100, deadline=None)
def test_rows_that_were_there_all_the_time_are_received_while_others_come_and_go(
    rows: tuple[random.Random, Span, list[int], int], descending: bool, trusted: bool, chance: float, shrink: float
) -> None:
    rng, stretch, times, limit = rows
    server = ListServer(times, rng, descending=descending)
    before = server.rows(stretch)
    walk = SeekWalk(stretch, descending, trusted, limit)
    walked = go(walk, server, rng, Trouble(insert=chance, delete=chance, shrink=shrink))
    assert before & server.rows(stretch) <= walked.rows
    assert_partition(walk, walked.segments)
    assert sum(s.read for s in walked.segments) == len(walked.rows)
    for segment in walked.segments:
        agreed = segment.promised == segment.read
        assert segment.proof == ("walked" if not trusted else "counted" if agreed else "doubtful")


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("rows", [10_000, 100_000])
def test_a_big_stretch_takes_hardly_more_requests_than_it_has_pages(rows: int, descending: bool) -> None:
    rng = random.Random(rows)
    day = Span(0, 86_400_000)
    server = ListServer([rng.randrange(day.end) for _ in range(rows)], rng, descending=descending)
    walk = SeekWalk(day, descending, totals_trusted=True)
    walked = go(walk, server, rng)
    assert len(walked.rows) == rows
    assert server.requests <= 1.05 * rows / 100 + 5
    assert max(s.read for s in walked.segments) <= 2.5 * SEGMENT_ROWS


def test_uneven_hours_take_hardly_more_requests_than_they_have_pages() -> None:
    rng = random.Random(5)
    busy = [rng.randrange(9 * 3_600_000, 10 * 3_600_000) for _ in range(9_000)]
    quiet = [rng.randrange(86_400_000) for _ in range(1_000)]
    server = ListServer(busy + quiet, rng, descending=False)
    walked = go(SeekWalk(Span(0, 86_400_000), descending=False, totals_trusted=True), server, rng)
    assert len(walked.rows) == 10_000
    assert server.requests <= 1.05 * 100 + 10


def test_a_stretch_without_rows_takes_one_request() -> None:
    server = ListServer([], random.Random(0), descending=False)
    walked = go(SeekWalk(Span(10, 20), descending=False, totals_trusted=True), server, random.Random(0))
    assert walked.segments == [Segment(Span(10, 20), "counted", 0, 0)]
    assert server.requests == 1


def test_after_an_answer_that_was_too_large_the_pages_grow_again() -> None:
    rng = random.Random(1)
    server = ListServer([rng.randrange(86_400_000) for _ in range(5_000)], rng, descending=False)
    walk = SeekWalk(Span(0, 86_400_000), descending=False, totals_trusted=True)
    while walk.shrink_limit():
        pass
    walked = go(walk, server, rng)
    assert len(walked.rows) == 5_000
    assert server.requests <= 1.05 * 50 + 20


def test_one_row_that_cannot_be_sent_is_found_with_few_questions() -> None:
    rng = random.Random(2)
    times = sorted(rng.sample(range(86_400_000), 5_000))
    poison = times[3_333]
    server = ListServer(times, rng, descending=False)
    walk = SeekWalk(Span(0, 86_400_000), descending=False, totals_trusted=True)
    refused, rows = 0, set()
    while not walk.done:
        ask = walk.ask()
        page = server.page(ask.span, ask.limit)
        if ask.one_ms:
            rows.update(found := server.millisecond(ask.span.start))
            walk.receive_millisecond(found, len(found), whole=True)
        elif all(entry.time_ms != poison for entry in page):
            walk.receive(page, server.total(ask.span))
            rows.update(entry.key for entry in page)
        elif ask.limit > 1:
            walk.shrink()
            refused += 1
        elif ask.span.start < poison:
            walk.stop_before(poison)
            refused += 1
        else:
            walk.split_millisecond()
            refused += 1
    assert len(rows) == 5_000
    assert refused <= 15


def test_a_full_page_is_not_taken_for_the_last_one_whatever_the_total_says() -> None:
    walk = walk_of_ten()
    assert walk.receive([Entry(n, 100 + n) for n in range(10)], 10) == []
    assert walk.ask() == Ask(Span(109, 200), 10)
    assert walk.receive([Entry(9, 109), Entry("came between count and page", 109)], 2)[0].read == 11


def walk_of_ten(*, trusted: bool = True) -> SeekWalk:
    return SeekWalk(Span(100, 200), descending=False, totals_trusted=trusted, limit=10)


@pytest.mark.parametrize("time_ms", [99, 200])
def test_a_row_outside_the_time_range_is_refused(time_ms: int) -> None:
    with pytest.raises(WalkError, match="outside"):
        walk_of_ten().receive([Entry("a", time_ms)], 1)


def test_rows_out_of_order_are_refused() -> None:
    with pytest.raises(WalkError, match="order"):
        walk_of_ten().receive([Entry("a", 120), Entry("b", 119)], 2)


def test_fewer_rows_than_a_trusted_total_are_refused_and_the_walk_goes_on() -> None:
    walk = walk_of_ten()
    with pytest.raises(WalkError, match="fewer"):
        walk.receive([Entry("a", 120)], 2)
    assert walk.ask() == Ask(Span(100, 200), 10)
    closed = walk.receive([Entry("a", 120), Entry("b", 130)], 2)
    assert closed == [Segment(Span(100, 200), "counted", 2, 2)]
    assert walk.done


def test_a_millisecond_that_is_not_certainly_whole_makes_its_segment_doubtful() -> None:
    walk = walk_of_ten(trusted=False)
    assert walk.receive([Entry(n, 150) for n in range(10)], 30) == []
    assert walk.receive([Entry(n, 150) for n in range(10, 20)], 30) == []
    assert walk.ask() == Ask(Span(150, 151), 10, one_ms=True)
    assert walk.receive_millisecond(range(25), whole=False) == []
    assert walk.receive([], 0) == [Segment(Span(100, 200), "doubtful", None, 25)]


def test_a_row_without_contents_makes_its_segment_partial_and_only_that_one() -> None:
    walk = walk_of_ten()
    while walk.shrink():
        pass
    walk.split_millisecond()
    first = walk.receive_millisecond(["poison"], 1, whole=True, partial=True)
    assert [segment.proof for segment in first] == ["partial"]
    rest = []
    while not walk.done:
        rest += walk.receive([], 0)
    assert {segment.proof for segment in rest} == {"counted"}
