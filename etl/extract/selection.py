"""The filters of the configuration as parameters of `GET /traces`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

# With a user, session or metadata filter the server's total counts superseded versions, too (recorded in
# `total_items_overcount`); a `filter` may name any of these columns.
_TOTALS_STAY_EXACT = frozenset({"environment", "name", "version", "release", "tags"})

FixedParams = tuple[tuple[str, str | tuple[str, ...]], ...]


def selecting_params(filters: Mapping[str, Any]) -> FixedParams:
    """Query parameters that select these traces; lists become repeated parameters.

    The server splits a single value of a list at its commas, but takes repeated ones literally: a single value with a
    comma is sent twice.
    """
    params: list[tuple[str, str | tuple[str, ...]]] = []
    for name, value in filters.items():
        if name == "filter":
            params.append((name, json.dumps(value, ensure_ascii=False)))
        elif isinstance(value, str):
            params.append((name, value))
        else:
            values = tuple(value)
            params.append((name, values * 2 if len(values) == 1 and "," in values[0] else values))
    return tuple(params)


def totals_stay_exact(filters: Mapping[str, Any]) -> bool:
    """Whether `totalItems` still counts each row once under these filters."""
    return _TOTALS_STAY_EXACT.issuperset(filters)
