"""The filters of the configuration, which select traces, as parameters of either generation of the API.

`GET /v2/observations` selects single rows. A trace is selected there by a row that fits all filters, so only what says
that a row has something can be asked: nearly every trace has some row that lacks it. The columns are those of langfuse
packages/shared/src/server/tableMappings/mapEventsTable.ts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from etl.errors import ConfigError
from etl.extract.client import Params

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


class Selector(NamedTuple):
    """Parameters of `GET /v2/observations`; `unnamed`: only rows count that tell no name of their trace."""

    params: Params
    unnamed: bool = False


Condition = dict[str, Any]

# Column of the traces API -> column of the rows; what is not here is no property of a row.
_ROW_COLUMNS = {
    "id": "traceId",
    "traceId": "traceId",
    "name": "traceName",
    "userId": "userId",
    "sessionId": "sessionId",
    "version": "version",
    "environment": "environment",
    "tags": "tags",
    "metadata": "metadata",
}
_TELLING_OPERATORS = ("=", "contains", "starts with", "ends with", "any of", "all of", ">", "<", ">=", "<=")
# A trace has the metadata of its root, and without a name of its own the root's.
_OF_ROOT: Condition = {"type": "null", "column": "parentObservationId", "operator": "is null", "value": ""}


def observation_selectors(filters: Mapping[str, Any]) -> Sequence[Selector]:
    """What to ask of `GET /v2/observations` so that each selected trace shows in the answer to at least one of them.

    Raises:
        ConfigError: With every filter that cannot be asked there, and why.
    """
    problems: list[str] = []
    conditions: list[Condition] = []
    for place, condition in _conditions(filters):
        problem = _problem(condition)
        if problem:
            problems.append(f"{place}: {problem}")
        else:
            conditions.append(_of_row(condition))
    if problems:
        raise ConfigError(
            f"filters that the observations API cannot answer: {'; '.join(problems)}. Leave these out; without any"
            " filters every trace is copied"
        )
    if not conditions:
        return [Selector({})]
    if any(condition["column"] == "metadata" for condition in conditions):
        conditions.append(_OF_ROOT)
    if all(condition["column"] != "traceName" for condition in conditions):
        return [_selector(conditions)]
    by_root = [
        condition | {"column": "name"} if condition["column"] == "traceName" else condition for condition in conditions
    ]
    if _OF_ROOT not in by_root:
        by_root.append(_OF_ROOT)
    return [_selector(conditions), _selector(by_root, unnamed=True)]


def of_traces(trace_ids: Sequence[str]) -> Params:
    """All rows of these traces."""
    return _selector([_any_of("traceId", trace_ids)]).params


def _conditions(filters: Mapping[str, Any]) -> Iterator[tuple[str, Condition]]:
    """Every filter as a condition, with its place in the configuration."""
    for name, value in filters.items():
        if name == "filter":
            for index, condition in enumerate(value):
                yield f"filter[{index}]", dict(condition)
        elif name == "tags":
            yield name, {"type": "arrayOptions", "column": "tags", "operator": "all of", "value": list(value)}
        elif name == "environment":
            yield name, _any_of("environment", value)
        else:
            yield name, {"type": "string", "column": name, "operator": "=", "value": value}


def _of_row(condition: Condition) -> Condition:
    column = _ROW_COLUMNS[condition["column"]]
    # The traces API takes both types for its tags.
    return condition | {"column": column} | ({"type": "arrayOptions"} if column == "tags" else {})


def _problem(condition: Condition) -> str | None:
    column, operator, value = condition["column"], condition["operator"], condition.get("value")
    if column not in _ROW_COLUMNS:
        return f"its rows have no {column} to be asked for"
    if operator not in _TELLING_OPERATORS:
        return f"{operator!r} would select every trace with a row that has no {column}"
    if value == "":
        return f"an empty {column} would select every trace with a row that has none"
    return None


def _any_of(column: str, values: Sequence[str]) -> Condition:
    return {"type": "stringOptions", "column": column, "operator": "any of", "value": list(values)}


def _selector(conditions: Sequence[Condition], *, unnamed: bool = False) -> Selector:
    return Selector({"filter": json.dumps(list(conditions), ensure_ascii=False)}, unnamed)
