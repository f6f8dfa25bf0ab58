"""What a reader hands to the writer: rows that may have to be written, and word of all that came.

Pages may be small and a transaction has its price, so pages are put together up to some hundred rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from etl.extract.readers import Page, Segment
from etl.load.compare import keys_and_times, stored_as_they_are
from etl.load.keys import Key
from etl.load.tables import CONTENTS
from etl.transform.pages import Kind, identified, rows_of_objects, trace_ids
from etl.transform.rows import Row

_ROWS = 500
_CONTENT_CHARACTERS = 2_000_000
_SECONDS = 2.0


@dataclass
class Batch:
    """One or several pages of one kind.

    Attributes:
        rows: By table; without those that are stored as they came.
        seen: By table: the keys, without the project, of all rows that came, and their times.
        traces: All traces that rows of `traces` and `observations` among them belong to.
        objects: How many objects the API answered.
        closes: The segments that are whole once this is stored; only the last page of a batch has any.
        light, selected: As in `Page`.
    """

    kind: Kind
    rows: dict[str, list[Row]]
    seen: dict[str, dict[Key, str]]
    traces: set[str]
    objects: int
    closes: Sequence[Segment] = ()
    light: bool = False
    selected: bool = False
    content_characters: int = field(init=False)
    begun_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.content_characters = sum(
            len(row.get(name) or "") for rows in self.rows.values() for row in rows for name in CONTENTS
        )

    def takes(self, other: Batch) -> bool:
        """Whether `other` may be stored together with this one."""
        if self.closes or (self.kind, self.light, self.selected) != (other.kind, other.light, other.selected):
            return False
        small = self.objects + other.objects <= _ROWS and self.content_characters <= _CONTENT_CHARACTERS
        return small and time.monotonic() - self.begun_s < _SECONDS

    def add(self, other: Batch) -> None:
        """Takes everything of `other`, which was read after this one."""
        for table, rows in other.rows.items():
            self.rows.setdefault(table, []).extend(rows)
        for table, times in other.seen.items():
            self.seen.setdefault(table, {}).update(times)
        self.traces |= other.traces
        self.objects += other.objects
        self.content_characters += other.content_characters
        self.closes = other.closes


def batch_of(page: Page, *, project_id: str, contents: bool, known_in: Connection | None) -> Batch:
    """A page as a batch.

    Args:
        contents: Whether inputs and outputs are kept.
        known_in: Where to look which objects are stored as they came, and need no row; None to make a row of each.
    Raises:
        RowError: An object has no usable key.
    """
    objects = identified(page.kind, page.items, contents=contents)
    seen: dict[str, dict[Key, str]] = {}
    traces: set[str] = set()
    if known_in is not None and page.plain and not page.light:
        seen = stored_as_they_are(known_in, project_id, objects)
        traces = trace_ids_of_keys(seen)
        objects = [one for one in objects if one.key not in seen.get(one.table, ())]
    rows = rows_of_objects(
        page.kind, objects, project_id=project_id, plain=page.plain, contents=contents, light=page.light
    )
    for table, parts in rows.items():
        seen.setdefault(table, {}).update(keys_and_times(table, parts))
    return Batch(
        page.kind, rows, seen, traces | trace_ids(rows), len(page.items), page.closes, page.light, page.selected
    )


def parts_of(page: Page) -> Iterator[Page]:
    """A large page in parts that are taken out of it one by one, so that not all of it is rows at the same time."""
    while len(page.items) > _ROWS:
        yield page._replace(items=page.items[:_ROWS], closes=())
        del page.items[:_ROWS]
    yield page


def together(batches: Iterable[Batch]) -> Iterator[Batch]:
    """The same, with small ones put together; what came before an error is given out before it is raised."""
    held: Batch | None = None
    try:
        for batch in batches:
            if held is not None and held.takes(batch):
                held.add(batch)
            else:
                if held is not None:
                    yield held
                held = batch
            if held.closes:
                yield held
                held = None
    except Exception:
        if held is not None:
            yield held
        raise
    if held is not None:
        yield held


def trace_ids_of_keys(seen: Mapping[str, Iterable[Key]]) -> set[str]:
    """The traces that keys of `traces` and `observations` belong to: the first part of either."""
    return {key[0] for table in ("traces", "observations") for key in seen.get(table, ()) if key[0]}
