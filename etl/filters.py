"""Which traces are copied: the `filters` setting, and in it the `filter` language of `GET /traces`.

Checked before any request is sent, because a bad filter costs a request of the rate limit and answers 400, and an
unknown parameter is ignored by the server without a word. A filter in that language is a list of conditions
`{type, column, operator, value[, key]}`, all of which must hold. Pure.

Source of the tables: langfuse `interfaces/filters.ts`, `tableMappings/mapTracesTable.ts` and
`clickhouse-sql/filterTypeCompatibility.ts`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from etl.values import SeveralError, near, shown

_TEXT_OPERATORS = ("=", "contains", "does not contain", "starts with", "ends with")
_NUMBER_OPERATORS = ("=", ">", "<", ">=", "<=")

_LIST_FILTERS = ("environment", "tags")
FILTERS = ("environment", "name", "userId", "sessionId", "tags", "version", "release", "filter")
_ENGINE_SET = ("fields", "fromTimestamp", "toTimestamp", "limit", "orderBy", "page")

# type -> operators
OPERATORS: dict[str, tuple[str, ...]] = {
    "datetime": (">", "<", ">=", "<="),
    "string": _TEXT_OPERATORS,
    "stringOptions": ("any of", "none of"),
    "arrayOptions": ("any of", "none of", "all of"),
    "number": _NUMBER_OPERATORS,
    "boolean": ("=", "<>"),
    "stringObject": _TEXT_OPERATORS,
    "numberObject": _NUMBER_OPERATORS,
    "booleanObject": ("=", "<>"),
    "categoryOptions": ("any of", "none of"),
    "null": ("is null", "is not null"),
}

_PARTS = ("type", "column", "operator", "value", "key")
_KEYED = ("stringObject", "numberObject", "booleanObject", "categoryOptions")
_TEXT = ("string", "stringOptions", "null")
_NUMBER = ("number", "null")

# column of the traces API -> types of condition it takes
COLUMNS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("id", "traceId", "name", "userId", "sessionId", "version", "release", "environment"), _TEXT),
    "level": ("string", "stringOptions"),
    "tags": ("arrayOptions", "stringOptions"),
    "bookmarked": ("boolean",),
    "metadata": ("stringObject", "numberObject", "categoryOptions"),
    **dict.fromkeys(("latency", "inputCost", "outputCost", "totalCost"), _NUMBER),
    **dict.fromkeys(("inputTokens", "outputTokens", "totalTokens", "tokens"), _NUMBER),
    **dict.fromkeys(("warningCount", "errorCount", "defaultCount", "debugCount"), _NUMBER),
    "scores_avg": ("numberObject",),
    "scores": ("numberObject",),
    "score_categories": ("categoryOptions", "stringOptions"),
    "score_booleans": ("booleanObject",),
}


def read_filters(value: object) -> dict[str, Any]:
    """The `filters` setting: parameters of `GET /traces` that select traces.

    Returns:
        The same, with `environment` and `tags` always as lists; `filter` is a list, the others are text.
    Raises:
        ValueError: It is not a mapping.
        SeveralError: One line for every filter that is unknown, set by the engine, or has a wrong value.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping such as {{environment: [production]}}, not {shown(value)}")
    lines: list[str] = []
    found: dict[str, Any] = {}
    for name, given in value.items():
        if name in _ENGINE_SET:
            lines.append(f".{name}: is set by the engine itself; allowed: {', '.join(FILTERS)}")
        elif name not in FILTERS:
            lines.append(f".{name}: unknown filter{near(name, FILTERS)}; allowed: {', '.join(FILTERS)}")
        elif name == "filter":
            lines += [f".filter{line}" for line in validate_filter(given)]
            found[name] = given
        elif name in _LIST_FILTERS:
            found[name] = [given] if isinstance(given, str) else given
            if not isinstance(found[name], list) or not found[name]:
                lines.append(f".{name}: must be a list of texts such as [production], not {shown(given)}")
            elif not all(isinstance(one, str) and one for one in found[name]):
                lines.append(f".{name}: must hold texts only, and none of them empty (put numbers in quotes)")
        else:
            found[name] = given
            if not isinstance(given, str):
                lines.append(f".{name}: must be text, not {shown(given)}; put it in quotes if it is meant")
    if not lines:
        # Langfuse drops a simple parameter if a condition names its column.
        lines = [
            f".{column}: is ignored by Langfuse because .filter[{index}] is about the same column; keep one of them"
            for index, condition in enumerate(found.get("filter", ()))
            if (column := condition["column"]) in found
        ]
    if lines:
        raise SeveralError(lines)
    return found


def validate_filter(conditions: object) -> list[str]:
    """What is wrong with a filter for the traces API.

    Args:
        conditions: As written by the user; anything is accepted and judged.
    Returns:
        One line per mistake, each beginning with its place (`[0].operator: …`); empty if the filter is right.
    """
    if not isinstance(conditions, (list, tuple)):
        return [": must be a list of conditions, each with type, column, operator and value"]
    return [
        f"[{index}]{problem}"
        for index, condition in enumerate(conditions)
        for problem in _condition_problems(condition)
    ]


def _condition_problems(condition: object) -> list[str]:
    if not isinstance(condition, Mapping):
        return [": must be a mapping with type, column, operator and value"]
    problems = [
        f".{name}: unknown{near(name, _PARTS)}; a condition has {', '.join(_PARTS)}"
        for name in condition
        if name not in _PARTS
    ]
    problems += _column_problems(condition)
    kind = condition.get("type")
    if not isinstance(kind, str) or kind not in OPERATORS:
        return [*problems, f".type: {_given(condition, 'type', OPERATORS)}"]
    operator = condition.get("operator")
    if operator not in OPERATORS[kind]:
        problems.append(f".operator: {_given(condition, 'operator', OPERATORS[kind], f' for type {kind}')}")
    if kind in _KEYED:
        if not isinstance(condition.get("key"), str) or not condition["key"]:
            problems.append(f".key: type {kind} needs a key, such as the name of a metadata entry or of a score")
    elif "key" in condition:
        problems.append(f".key: type {kind} takes no key; types with a key: {', '.join(_KEYED)}")
    expected = _value_problem(kind, operator, condition.get("value", "" if kind == "null" else None))
    return [*problems, f".value: {expected}"] if expected else problems


def _column_problems(condition: Mapping[Any, Any]) -> list[str]:
    column, kind = condition.get("column"), condition.get("type")
    if column == "timestamp":
        # A condition on a column replaces the simple parameters on it: the window would be gone.
        return [".column: 'timestamp' is set by the engine, window by window; use the project's start instead"]
    if not isinstance(column, str) or column not in COLUMNS:
        return [f".column: {_given(condition, 'column', COLUMNS)}"]
    if isinstance(kind, str) and kind in OPERATORS and kind not in COLUMNS[column]:
        return [f".type: {shown(kind)} does not fit the column {column}; allowed: {', '.join(COLUMNS[column])}"]
    return []


def _value_problem(kind: str, operator: object, value: object) -> str | None:
    """What the value should be, or None if it is that."""
    if kind in ("string", "stringObject"):
        return None if isinstance(value, str) else "must be text (put quotes around it)"
    if kind in ("number", "numberObject"):
        return None if _is_number(value) else "must be a number"
    if kind in ("boolean", "booleanObject"):
        return None if isinstance(value, bool) else "must be true or false"
    if kind == "datetime":  # no column takes it, which is said where columns are checked
        return None
    if kind == "null":
        return None if value == "" else 'must be left out, or ""'
    if not isinstance(value, (list, tuple)) or not all(isinstance(one, str) for one in value):
        return "must be a list of texts"
    return None if value else f"is an empty list; {operator!r} needs at least one text"


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _given(condition: Mapping[Any, Any], part: str, allowed: Iterable[str], context: str = "") -> str:
    """`'x' is not allowed for type string; allowed: …`, with the nearest allowed name if one is near."""
    names = list(allowed)
    if part not in condition:
        return f"missing; allowed{context}: {', '.join(names)}"
    value = condition[part]
    return f"{shown(value)} is not known{context}{near(value, names)}; allowed: {', '.join(names)}"
