"""What a reader of either API generation gives to the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Literal, NamedTuple, Protocol

from etl.intervals import Window
from etl.transform.items import Item
from etl.transform.pages import Kind

Api = Literal["traces", "observations"]
SegmentProof = Literal["counted", "walked", "doubtful", "partial", "failed"]


class Segment(NamedTuple):
    """A window that was read to its end with the page that closes it.

    `promised` is the server's total, None if it gives none that can be trusted; `read` counts distinct rows;
    `requests` those that went out for it.
    """

    window: Window
    proof: SegmentProof
    promised: int | None
    read: int
    requests: int


class Page(NamedTuple):
    """Objects as the API answered them, and the segments that are whole once they are stored.

    `light`: fields were left out on purpose, so the objects serve to see what differs, not to be stored. `selected`:
    all of it belongs to traces that the filters select, whether these are stored yet or not. `body_bytes`: about how
    large the answer was.
    """

    kind: Kind
    items: list[Item]
    closes: Sequence[Segment] = ()
    light: bool = False
    selected: bool = False
    body_bytes: int = 0


class Expected(NamedTuple):
    """What reading a stretch would take, as far as the API tells.

    `rows` is None where it has no totals. Under filters of rows: `selected` traces would be completed if none of them
    is stored yet, by `completing` requests.
    """

    rows: int | None
    selected: int = 0
    completing: int = 0


class Reader(Protocol):
    """One generation of the API. Methods raise `etl.errors.ApiError` and may be called from several threads."""

    api: Api

    def sources(self, streams: Sequence[str]) -> Sequence[str]:
        """The streams that are really read for the ones asked for, in the order of reading."""

    def covers(self, source: str) -> Sequence[str]:
        """The streams that are read whole where `source` is; itself, and what is derived from it."""

    def midnight_bound(self, source: str) -> bool:
        """Whether windows of `source` must not cross a UTC midnight."""

    def oldest(self, source: str, before: datetime) -> datetime | None:
        """The time of the oldest row before `before`, or a moment not after it; None if there is none."""

    def read(self, source: str, window: Window, *, light: bool = False) -> Iterator[Page]:
        """All rows of `window`, in pages; together the closed segments are the window.

        Args:
            light: Leave out contents where the API allows it; such pages are marked.
        """

    def expect(self, source: str, window: Window) -> Expected:
        """About what `window` has; nothing but counts and keys is asked for."""

    def page_limit(self, source: str) -> int:
        """How many rows one request brings at most."""

    def of_traces(self, trace_ids: Sequence[str], before: datetime) -> Iterator[Page]:
        """Observations and scores of these traces before a moment, in pages that close nothing."""

    def session(self, session_id: str, before: datetime) -> Iterator[Page]:
        """All that belongs to one session before a moment, in pages that close nothing."""
