"""Values that every list of the API has: instants and totals, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from etl.errors import UnexpectedAnswerError
from etl.intervals import whole_ms


def instant(moment: datetime) -> str:
    """`moment` as every version of the API takes it: UTC, milliseconds, `Z`."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def row_time(item: Mapping[str, Any], field: str, path: str) -> datetime:
    """The time of a row, in whole milliseconds.

    Raises:
        UnexpectedAnswerError: The field is missing or no instant.
    """
    text = item.get(field)
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise UnexpectedAnswerError(f"GET {path}: a row without {field}", path=path)
    return whole_ms(moment)


def total_items(meta: Mapping[str, Any], path: str) -> int:
    """`totalItems` of a paged list.

    Raises:
        UnexpectedAnswerError: It is missing or no count.
    """
    total = meta.get("totalItems")
    if type(total) is not int or total < 0:
        raise UnexpectedAnswerError(f"GET {path}: a list without totalItems", path=path)
    return total
