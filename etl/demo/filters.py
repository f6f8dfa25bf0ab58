"""The `filter` parameter: a JSON list of conditions, AND-ed (Langfuse packages/shared/src/interfaces/filters.ts)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from etl.demo import json_text
from etl.demo.answers import Issue, invalid_data, invalid_request
from etl.demo.query import js_number, js_type, option_issue, type_issue
from etl.demo.table import Row
from etl.demo.times import parse_ms

Getter = Callable[[Row], Any]
Predicate = Callable[[Row], bool]

_COMPARE = ("=", ">", "<", ">=", "<=")
_TEXT = ("=", "contains", "does not contain", "starts with", "ends with")
_LISTS = ("any of", "none of", "all of")
_EQUAL = ("=", "<>")

OPERATORS: dict[str, tuple[str, ...]] = {
    "datetime": (">", "<", ">=", "<="),
    "string": _TEXT,
    "number": _COMPARE,
    "stringOptions": ("any of", "none of"),
    "categoryOptions": ("any of", "none of"),
    "arrayOptions": _LISTS,
    "stringObject": _TEXT,
    "numberObject": _COMPARE,
    "booleanObject": _EQUAL,
    "boolean": _EQUAL,
    "null": ("is null", "is not null"),
}
_VALUE_TYPES = {
    "number": "number",
    "numberObject": "number",
    "boolean": "boolean",
    "booleanObject": "boolean",
    "stringOptions": "array",
    "categoryOptions": "array",
    "arrayOptions": "array",
}
_KEYED = ("stringObject", "numberObject", "booleanObject", "categoryOptions")


@dataclass(frozen=True, slots=True)
class Column:
    """A column that conditions may name.

    Attributes:
        name: The one name under which conditions replace simple parameters.
        get: Its value in a row, or in a row's surroundings.
        types: The condition types that fit, beside `null`.
    """

    name: str
    get: Getter
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One checked condition."""

    column: Column
    kind: str
    operator: str
    key: str
    value: Any

    def holds(self, row: Row) -> bool:
        found = self.column.get(row)
        if self.kind in _KEYED:
            found = found.get(self.key) if isinstance(found, Mapping) else None
            if self.kind == "stringObject":
                found = _stored_text(found)
            elif self.kind == "numberObject":
                number = js_number(_stored_text(found) or "none")
                found = None if math.isnan(number) else number
        if self.operator == "is null":
            return found is None
        if self.operator == "is not null":
            return found is not None
        # SQL: a comparison with NULL is never true.
        return found is not None and _TESTS[self.operator](found, self.value)


def parse_filter(text: str | None, columns: Mapping[str, Column], *, matches: bool = False) -> list[Condition]:
    """Check a `filter` parameter; absent or empty means no conditions.

    Args:
        matches: Whether text has the operator `matches` too.

    Raises:
        ApiError: 400 with the server's words.
    """
    if not text:
        return []
    try:
        conditions = json_text.loads(text)
    except ValueError:
        raise invalid_request("Invalid JSON in filter parameter") from None
    if not isinstance(conditions, list):
        raise invalid_data([type_issue(["filter"], "array", js_type(conditions))])
    operators = OPERATORS | {"string": (*_TEXT, "matches")} if matches else OPERATORS
    issues = [issue for i, condition in enumerate(conditions) for issue in _issues(i, condition, operators)]
    if issues:
        raise invalid_data(issues)
    return [_condition(condition, columns) for condition in conditions]


def _issues(index: int, condition: Any, operators: Mapping[str, tuple[str, ...]]) -> Sequence[Issue]:
    path: list[str | int] = ["filter", index]
    if not isinstance(condition, dict):
        return [type_issue(path, "object", js_type(condition))]
    kind = condition.get("type")
    if not isinstance(kind, str) or kind not in operators:
        return [
            {
                "code": "invalid_union",
                "errors": [],
                "note": "No matching discriminator",
                "discriminator": "type",
                "path": [*path, "type"],
                "message": "Invalid input",
            }
        ]
    found: list[Issue] = []
    names = ("column", "key") if kind in _KEYED else ("column",)
    for name in names:
        given = condition.get(name, ...)
        if not isinstance(given, str):
            found.append(type_issue([*path, name], "string", js_type(given)))
    if condition.get("operator") not in operators[kind]:
        found.append(option_issue([*path, "operator"], operators[kind]))
    found += _value_issues([*path, "value"], kind, condition.get("value", ...))
    return found


def _value_issues(path: list[str | int], kind: str, value: Any) -> Sequence[Issue]:
    expected = _VALUE_TYPES.get(kind, "string")
    if kind == "datetime":
        try:
            parse_ms(value)
        except (TypeError, ValueError):
            received = "undefined" if value is ... else "Invalid Date"
            return [type_issue(path, "date", received)]
        return []
    if js_type(value) != expected:
        return [] if kind == "null" else [type_issue(path, expected, js_type(value))]
    if expected == "array" and not all(isinstance(item, str) for item in value):
        at = next(i for i, item in enumerate(value) if not isinstance(item, str))
        return [type_issue([*path, at], "string", js_type(value[at]))]
    return []


def _condition(condition: Row, columns: Mapping[str, Column]) -> Condition:
    name, kind, value = condition["column"], condition["type"], condition.get("value")
    column = columns.get(name)
    if column is None:
        raise invalid_request(f"Column {name} does not match a UI / CH table mapping.")
    if kind != "null" and kind not in column.types:
        # Read in the source, not recorded: the wording may differ.
        raise invalid_request(f"Filter type {kind} does not match column {name}.")
    if kind == "datetime":
        value = parse_ms(str(value))
    return Condition(column, kind, condition["operator"], condition.get("key", ""), value)


def _stored_text(value: Any) -> str:
    """Metadata values are stored as text; a missing key reads as the empty text."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json_text.dumps(value).decode()


def _items(found: Any) -> Sequence[Any]:
    return found if isinstance(found, list) else [found]


_TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda found, value: found == value,
    "<>": lambda found, value: found != value,
    ">": lambda found, value: found > value,
    "<": lambda found, value: found < value,
    ">=": lambda found, value: found >= value,
    "<=": lambda found, value: found <= value,
    "contains": lambda found, value: value in found,
    "does not contain": lambda found, value: value not in found,
    "starts with": lambda found, value: found.startswith(value),
    "ends with": lambda found, value: found.endswith(value),
    "matches": lambda found, value: value.lower() in found.lower(),
    "any of": lambda found, value: any(item in value for item in _items(found)),
    "none of": lambda found, value: not any(item in value for item in _items(found)),
    "all of": lambda found, value: all(item in _items(found) for item in value),
}


def field(name: str) -> Getter:
    return lambda row: row.get(name)


def instant(name: str) -> Getter:
    return lambda row: None if row.get(name) is None else parse_ms(row[name])
