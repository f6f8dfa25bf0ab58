"""Cursors of the v4 reads: base64 of a JSON object that names the last row of a page."""

import base64
from collections.abc import Callable
from typing import Any

from etl.demo import json_text
from etl.demo.answers import invalid_request
from etl.demo.table import Entry
from etl.demo.times import parse_ms


def decoded(text: str, time_field: str, *fields: str) -> dict[str, str]:
    """The object in a cursor, in either alphabet of base64, padded or not.

    Raises:
        ApiError: 400 if it is no cursor, or lacks one of the fields.
    """
    bare = text.rstrip("=").replace("+", "-").replace("/", "_")
    try:
        cursor = json_text.loads(base64.urlsafe_b64decode(bare + "=" * (-len(bare) % 4)))
        parse_ms(cursor[time_field])
        if all(isinstance(cursor[name], str) for name in fields):
            found: dict[str, str] = cursor
            return found
    except (ValueError, KeyError, TypeError):
        pass
    raise invalid_request("Invalid cursor format")


def first_below(entries: list[Entry], key: Callable[[Entry], Any], after: tuple[Any, ...]) -> int:
    """Index of the first entry of a descending list whose key is below `after`."""
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) // 2
        if key(entries[middle]) < after:
            high = middle
        else:
            low = middle + 1
    return low
