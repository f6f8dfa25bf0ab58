"""What a reader hands to the writer: rows that may have to be written, and word of all that came.

Pages may be small, and a look into the database and a transaction have their price; they may be large, and rows need
memory. So they are brought to some hundred objects first.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from etl.extract.readers import Page, Segment
from etl.load.compare import keys_and_times, stored_as_they_are
from etl.load.keys import Key
from etl.pipeline.rowmaker import RowMaker
from etl.transform.items import at_hand
from etl.transform.pages import BRINGS, Kind, identified, rows_of_objects, trace_ids
from etl.transform.rows import Row

_ROWS = 500
_BODY_BYTES = 2_000_000
_SECONDS = 2.0


class Batch(NamedTuple):
    """What becomes of one page.

    Attributes:
        rows: By table; without those that are stored as they came, and without those that were read lightly.
        seen: By table: the keys, without the project, of all rows that came, and their times.
        traces: All traces that rows of `traces` and `observations` among them belong to.
        objects: How many objects the API answered.
        closes: The segments that are whole once this is stored.
        selected: As in `Page`.
    """

    kind: Kind
    rows: dict[str, list[Row]]
    seen: dict[str, dict[Key, str]]
    traces: set[str]
    objects: int
    closes: Sequence[Segment] = ()
    selected: bool = False


def batch_of(page: Page, *, project_id: str, contents: bool, known_in: Connection | None, maker: RowMaker) -> Batch:
    """A page as a batch. What was read lightly is compared by then, and needs no rows.

    Args:
        contents: Whether inputs and outputs are kept.
        known_in: Where to look which objects are stored as they came, and need no row; None to make a row of each.
    Raises:
        RowError: An object cannot be read, or has no usable key.
    """
    seen: dict[str, dict[Key, str]] = {}
    if page.light or known_in is not None:
        objects = identified(page.kind, page.items, contents=contents, light=page.light)
        # A key that is stored in another form is that of its row.
        places = {n: one for n, one in enumerate(objects) if one.is_found_by_key}
        if known_in is not None:
            seen = stored_as_they_are(known_in, project_id, places.values())
        else:
            for one in places.values():
                if one.at is not None:
                    seen.setdefault(one.table, {})[one.key] = one.at
        others = [one for n, one in enumerate(objects) if n not in places or one.key not in seen.get(one.table, ())]
        rows = rows_of_objects(page.kind, others, project_id=project_id, contents=contents, light=page.light)
    else:
        rows = maker.rows_of(page.kind, page.items, project_id=project_id, contents=contents)
    traces = trace_ids_of_keys(seen) | trace_ids(rows)
    for table, parts in rows.items():
        seen.setdefault(table, {}).update(keys_and_times(table, parts))
    if page.light:
        rows = {table: [] for table in BRINGS[page.kind]}
    return Batch(page.kind, rows, seen, traces, len(page.items), page.closes, page.selected)


def resized(pages: Iterable[Page]) -> Iterator[Page]:
    """The same in pages of some hundred objects: large ones in parts, small ones together.

    What came before an error is given out before the error is raised; a page that cannot become rows stays alone, so
    that it takes no other along. The pages given are emptied: who read them would hold their objects as long as these
    wait.
    """
    held: Page | None = None
    begun_s = 0.0
    try:
        for page in pages:
            alone = not all(type(id_) is str for id_ in at_hand(page.items, "id"))
            fits = held is not None and not alone and _fit_together(held, page)
            if held is not None and not (fits and time.monotonic() - begun_s < _SECONDS):
                yield held
                held = None
            if held is None:
                held, begun_s = page._replace(items=page.items.copy()), time.monotonic()
            else:
                held = _joined(held, page)
            page.items.clear()
            while len(held.items) > _ROWS:
                yield held._replace(items=held.items[:_ROWS], closes=())
                del held.items[:_ROWS]
            if alone or held.closes or len(held.items) == _ROWS:
                yield held
                held = None
    except Exception:
        if held is not None:
            yield held
        raise
    if held is not None:
        yield held


def _fit_together(one: Page, other: Page) -> bool:
    if (one.kind, one.light, one.selected) != (other.kind, other.light, other.selected):
        return False
    return len(one.items) + len(other.items) <= _ROWS and one.body_bytes + other.body_bytes <= _BODY_BYTES


def _joined(one: Page, following: Page) -> Page:
    return following._replace(items=one.items + following.items, body_bytes=one.body_bytes + following.body_bytes)


def trace_ids_of_keys(seen: Mapping[str, Iterable[Key]]) -> set[str]:
    """The traces that keys of `traces` and `observations` belong to: the first part of either."""
    return {key[0] for table in ("traces", "observations") for key in seen.get(table, ()) if key[0]}
