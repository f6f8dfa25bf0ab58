"""Values that every list of the API has: instants and totals, checked as they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from etl.errors import UnexpectedAnswerError
from etl.transform.items import Item, at_hand


def instant(moment: datetime) -> str:
    """`moment` as every version of the API takes it: UTC, milliseconds, `Z`."""
    return f"{moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec='milliseconds')}Z"


def row_times(items: Sequence[Item], field: str, path: str) -> list[datetime]:
    """The times of rows; they may be finer than milliseconds.

    Raises:
        UnexpectedAnswerError: The field is missing or no instant.
    """
    try:
        moments = list(map(datetime.fromisoformat, at_hand(items, field)))
    except (TypeError, ValueError):
        moments = []
    if len(moments) < len(items) or not all(moment.tzinfo for moment in moments):
        raise UnexpectedAnswerError(f"GET {path}: a row without {field}", path=path)
    return moments


def total_items(meta: Mapping[str, Any], path: str) -> int:
    """`totalItems` of a paged list.

    Raises:
        UnexpectedAnswerError: It is missing or no count.
    """
    total = meta.get("totalItems")
    if type(total) is not int or total < 0:
        raise UnexpectedAnswerError(f"GET {path}: a list without totalItems", path=path)
    return total
