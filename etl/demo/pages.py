"""Page-numbered lists: order, ties, totals, offsets."""

import random
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import groupby
from typing import Any

from etl.demo.answers import Answer, internal_error
from etl.demo.table import Entry

_KEPT_SELECTIONS = 16


class Selections:
    """The last few ordered selections, so that walking the pages of one query sorts and filters once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, list[Entry]] = OrderedDict()

    def get(self, key: Hashable, select: Callable[[], list[Entry]]) -> list[Entry]:
        """`key` must hold the data version and every parameter that shapes the selection."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        selection = self._kept[key] = select()
        if len(self._kept) > _KEPT_SELECTIONS:
            self._kept.popitem(last=False)
        return selection


def shuffle_ties(entries: list[Entry], sort_key: Callable[[Entry], Any], seed: int) -> list[Entry]:
    """The same order, but entries with equal keys change places, differently for each seed."""
    rng = random.Random(seed)
    shuffled: list[Entry] = []
    for _, group in groupby(entries, key=sort_key):
        tied = list(group)
        if len(tied) > 1:
            rng.shuffle(tied)
        shuffled += tied
    return shuffled


def offset(page: float, limit: int) -> int:
    """Rows before the page. A fraction, which 3.x lets through, is refused by its database."""
    rows = (page - 1) * limit
    if rows != int(rows):
        text = f"{rows:.15g}"
        whole = text.partition(".")[0]
        raise internal_error(
            f"Value {text} cannot be parsed as Int32 for query parameter 'offset' because it isn't parsed completely: "
            f"only {len(whole)} of {len(text)} bytes was parsed: {whole}. "
        )
    return int(rows)


def page_answer(rows: Iterable[bytes], meta: bytes) -> Answer:
    """`{"data": […], "meta": …}` from rows that are JSON already."""
    return Answer(200, b'{"data":[' + b",".join(rows) + b'],"meta":' + meta + b"}")


def page_meta(page: float, limit: int, total: int) -> bytes:
    number = int(page) if page == int(page) else page
    return f'{{"page":{number},"limit":{limit},"totalItems":{total},"totalPages":{-(-total // limit)}}}'.encode()
