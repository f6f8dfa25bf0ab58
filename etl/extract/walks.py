"""How a stretch of time is read row by row, without offsets: pure state machines, no HTTP.

A walk says what to ask next (`ask`), takes what came (`receive`), and closes segments: parts of the stretch of about
`SEGMENT_ROWS` rows that were read whole, each with the proof for it. Time is whole milliseconds since 1970.

Offset paging loses rows here: the server's order by time has no tie-break, so rows with equal times change places
between pages (recorded in `traces_ties_lost_orderby_timestamp`). A seek asks page 1 only, from the last millisecond
seen, and drops what it knows of that millisecond.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

SEGMENT_ROWS = 1_000
MAX_LIMIT = 100

WalkProof = Literal["counted", "walked", "doubtful", "partial"]


class Span(NamedTuple):
    """Milliseconds since 1970, half-open `[start, end)`."""

    start: int
    end: int


class Entry(NamedTuple):
    """What a walk needs of a row: its key and its time in milliseconds since 1970."""

    key: Hashable
    time_ms: int


class Ask(NamedTuple):
    """The next request: rows of `span`, page 1, at most `limit`; if `one_ms`, all of this one millisecond instead."""

    span: Span
    limit: int
    one_ms: bool = False


class Segment(NamedTuple):
    """A part of the stretch that was read to its end; `promised` is None where totals cannot be trusted."""

    span: Span
    proof: WalkProof
    promised: int | None
    read: int


class WalkError(Exception):
    """The answer does not fit the question: rows outside the span, out of order, or fewer than announced."""


@dataclass
class SeekWalk:
    """Reads a stretch by time, ascending or descending.

    Positions are milliseconds in the direction of the walk (negative times when descending), so that one algorithm
    serves both. The horizon is the far end of the next request: it is kept about `SEGMENT_ROWS` rows away, and is
    moved on as soon as the rest before it fits one page, so that no page is asked for half full.
    """

    stretch: Span
    descending: bool
    totals_trusted: bool
    limit: int = MAX_LIMIT
    done: bool = field(default=False, init=False)
    _largest: int = field(init=False)
    _suspect: int = field(default=0, init=False)  # the rows ahead among which one or some are too much
    _segment_rows: int = field(default=SEGMENT_ROWS, init=False)
    _end: int = field(init=False)
    _cursor: int = field(init=False)
    _horizon: int = field(init=False)
    _known: set[Hashable] = field(default_factory=set, init=False)  # keys at the cursor's millisecond
    _open: list[_Open] = field(init=False)
    _stuck: bool = field(default=False, init=False)
    _nothing_new: bool = field(default=False, init=False)
    _doubtful: bool = field(default=False, init=False)
    _partial: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        start, self._end = self._mirrored(self.stretch)
        self._largest = self.limit
        self._cursor, self._horizon = start, self._end
        self._open = [_Open(start, self._end)]

    def ask(self) -> Ask:
        """The next request to send."""
        if self._stuck:
            return Ask(self._mirrored(Span(self._cursor, self._cursor + 1)), self.limit, one_ms=True)
        return Ask(self._mirrored(Span(self._cursor, self._horizon)), self.limit)

    def shrink(self) -> bool:
        """Asks for less next time; False if one row of one millisecond is already all that is asked for.

        What is slow may be the length of the span or the contents of a row: both the span and the limit are halved.
        """
        shorter = not self._stuck and self._horizon - self._cursor > 1
        if shorter:
            self._segment_rows = max(MAX_LIMIT, self._segment_rows // 2)
            self._set_horizon(self._cursor + (self._horizon - self._cursor) // 2)
        return self.shrink_limit() or shorter

    def shrink_limit(self) -> bool:
        """Asks for fewer rows at once next time, until those ahead that were too much are read; False at one row."""
        if self.limit == 1:
            return False
        self._suspect, self.limit = self.limit, self.limit // 2
        return True

    def stop_before(self, time_ms: int) -> None:
        """Reads up to this time first; it lies inside the span of `ask`, after its first millisecond.

        A descending walk stops after it has read the millisecond that follows `time_ms`.
        """
        self._set_horizon(-time_ms if self.descending else time_ms)

    def split_millisecond(self) -> None:
        """Reads the cursor's millisecond by itself next: it cannot be passed as part of a longer span."""
        self._stuck = True

    def receive(self, entries: Sequence[Entry], total: int) -> list[Segment]:
        """Takes the answer to `ask`; returns the segments that it completes, nearest first.

        Args:
            entries: The rows of page 1 in the order they came.
            total: The server's count of the rows in the span that was asked for.
        Raises:
            WalkError: The answer is not one to this question. Asking again is safe.
        """
        positions = [-entry.time_ms if self.descending else entry.time_ms for entry in entries]
        self._check(positions, total)
        before_cursor = self._open[0].read - len(self._known)
        new = {
            entry.key: position
            for entry, position in zip(entries, positions, strict=True)
            if position != self._cursor or entry.key not in self._known
        }
        for position in new.values():
            self._segment_at(position).read += 1
        self._open[-1].promise(total, before_cursor, self._open[:-1])
        full = len(entries) >= self.limit  # rows may follow whatever the total says: it is counted at another moment
        self._passed(len(new))
        if not full and (len(entries) >= total or (not new and self._nothing_new)):
            return self._close_up_to(self._horizon)
        if not full and not new:
            self._nothing_new = True  # an over-counted total, or a cut answer: one more look will tell
            return []
        self._nothing_new = False
        last = positions[-1] if positions else self._cursor
        if last == self._cursor:
            self._known.update(new)
            self._stuck = full
        else:
            self._cursor, self._known = last, {key for key, position in new.items() if position == last}
        rest = total - sum(position < last for position in positions)
        self._move_horizon(rest)
        return self._close_up_to(last)

    def receive_millisecond(
        self, keys: Iterable[Hashable], total: int | None = None, *, whole: bool, partial: bool = False
    ) -> list[Segment]:
        """Takes all rows of the millisecond that `ask` wanted by itself.

        Args:
            keys: The distinct keys of its rows.
            total: The server's count of them, if it can be trusted.
            whole: Whether these are certainly all of them; the segment is doubtful otherwise.
            partial: Whether some of them came without their contents.
        """
        fresh = set(keys) - self._known
        if total is not None and self._open[-1].end == self._cursor + 1:
            self._open[-1].promise(total, self._open[0].read - len(self._known), self._open[:-1])
        self._passed(len(fresh))
        self._segment_at(self._cursor).read += len(fresh)
        self._doubtful = self._doubtful or not whole
        self._partial = self._partial or partial
        self._cursor, self._known, self._stuck = self._cursor + 1, set(), False
        return self._close_up_to(self._cursor)

    def _check(self, positions: Sequence[int], total: int) -> None:
        if any(not self._cursor <= position < self._horizon for position in positions):
            raise WalkError("rows outside the time range that was asked for")
        if any(one > following for one, following in pairwise(positions)):
            raise WalkError("rows out of order")
        if self.totals_trusted and len(positions) < min(self.limit, total):
            raise WalkError("fewer rows than announced")

    def _passed(self, rows: int) -> None:
        """One large row must slow down neither those before it more than once, nor those after it at all."""
        self._suspect -= rows
        if self._suspect <= 0:
            self.limit = min(self._largest, 2 * self.limit)

    def _segment_at(self, position: int) -> _Open:
        return next(segment for segment in self._open if position < segment.end)

    def _move_horizon(self, rest: int) -> None:
        """Keeps the far end of requests about `SEGMENT_ROWS` rows away; `rest` rows lie between cursor and horizon."""
        ahead = self._horizon - self._cursor
        if rest > 2 * self._segment_rows:
            self._set_horizon(self._cursor + max(1, ahead * self._segment_rows // rest))
        elif rest <= self.limit and self._horizon < self._end and len(self._open) == 1:
            rows = max(1, self._open[0].read + rest)
            step = (self._horizon - self._open[0].start) * self._segment_rows // rows
            self._open.append(_Open(self._horizon, min(self._end, self._horizon + max(1, step))))
            self._horizon = self._open[-1].end

    def _set_horizon(self, horizon: int) -> None:
        self._open = [segment for segment in self._open if segment.start < horizon] or self._open[:1]
        self._open[-1].end = self._horizon = horizon

    def _close_up_to(self, position: int) -> list[Segment]:
        closed: list[Segment] = []
        while self._open and self._open[0].end <= position:
            closed.append(self._close(self._open.pop(0)))
        if not self._open:
            self._begin_segment(closed[-1])
        return closed

    def _close(self, segment: _Open) -> Segment:
        if len(self._open) == 1:
            self._open[0].settle(segment)
        promised = segment.promised if self.totals_trusted else None
        proof: WalkProof = "counted" if promised == segment.read else "walked" if promised is None else "doubtful"
        if self._doubtful:
            proof = "doubtful"
        elif self._partial and proof != "doubtful":
            proof = "partial"
        self._doubtful = self._partial = False
        return Segment(self._mirrored(Span(segment.start, segment.end)), proof, promised, segment.read)

    def _begin_segment(self, last: Segment) -> None:
        start = self._horizon
        if start >= self._end:
            self.done = True
            return
        length = last.span.end - last.span.start
        step = length * self._segment_rows // max(1, last.read)
        self._cursor, self._known, self._nothing_new = start, set(), False
        self._open = [_Open(start, min(self._end, start + max(1, step)))]
        self._horizon = self._open[0].end

    def _mirrored(self, span: Span) -> Span:
        """Times to positions and back: a half-open range of integers stays one when its sign changes."""
        return Span(1 - span.end, 1 - span.start) if self.descending else span


@dataclass
class _Open:
    """A segment that is being read, in positions of the walk."""

    start: int
    end: int
    read: int = 0
    promised: int | None = None
    _shared: int | None = None  # a total that also counts the rest of the segment before

    def promise(self, total: int, before: int, earlier: list[_Open]) -> None:
        """The newest total wins: rows that came or went since the first one are in it."""
        if earlier:
            self._shared = total + before
        else:
            self.promised = total + before

    def settle(self, earlier: _Open) -> None:
        """The segment before is complete: the rest of the shared total is ours."""
        if self._shared is not None:
            self.promised, self._shared = self._shared - earlier.read, None
