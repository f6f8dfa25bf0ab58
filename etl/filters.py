"""The `filter` language of `GET /traces`: a list of conditions `{type, column, operator, value[, key]}`, ANDed.

Checked before any request is sent, because a bad condition costs a request of the rate limit and answers 400.
Pure: no I/O, no settings. Source: langfuse `interfaces/filters.ts`, `tableMappings/mapTracesTable.ts` and
`clickhouse-sql/filterTypeCompatibility.ts`.
"""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

_TEXT_OPERATORS = ("=", "contains", "does not contain", "starts with", "ends with")
_NUMBER_OPERATORS = ("=", ">", "<", ">=", "<=")

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
        f".{name}: unknown{_near(name, _PARTS)}; a condition has {', '.join(_PARTS)}"
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
        return [f".type: {kind!r} does not fit the column {column}; allowed: {', '.join(COLUMNS[column])}"]
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
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)


def _given(condition: Mapping[Any, Any], part: str, allowed: Iterable[str], context: str = "") -> str:
    """`'x' is not allowed for type string; allowed: …`, with the nearest allowed name if one is near."""
    names = list(allowed)
    if part not in condition:
        return f"missing; allowed{context}: {', '.join(names)}"
    value = condition[part]
    return f"{reprlib.repr(value)} is not known{context}{_near(value, names)}; allowed: {', '.join(names)}"


def _near(value: object, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(names), n=1) if isinstance(value, str) else []
    return f", did you mean {near[0]!r}?" if near else ""
