"""Filters: what Langfuse would refuse or ignore is refused here, with what is allowed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.filters import COLUMNS, OPERATORS, read_filters, validate_filter
from etl.values import SeveralError

# Recorded answers of a real server accepted these.
ACCEPTED = [
    {"type": "string", "column": "sessionId", "operator": "=", "value": "web-001"},
    {"type": "string", "column": "name", "operator": "contains", "value": "意图"},
    {"type": "stringObject", "column": "metadata", "key": "message_id", "operator": "=", "value": "17400353"},
    {"type": "stringOptions", "column": "userId", "operator": "any of", "value": ["u-1001", "u-1002"]},
    {"type": "arrayOptions", "column": "tags", "operator": "all of", "value": ["prod", "vip"]},
    {"type": "number", "column": "latency", "operator": ">", "value": 3},
    {"type": "number", "column": "totalCost", "operator": ">", "value": 0.5},
    {"type": "boolean", "column": "bookmarked", "operator": "=", "value": True},
    {"type": "null", "column": "userId", "operator": "is null", "value": ""},
    {"type": "null", "column": "userId", "operator": "is not null"},
    {"type": "numberObject", "column": "scores_avg", "key": "quality", "operator": ">=", "value": 0.8},
    {"type": "booleanObject", "column": "score_booleans", "key": "ok", "operator": "<>", "value": False},
    {"type": "categoryOptions", "column": "score_categories", "key": "tone", "operator": "any of", "value": ["warm"]},
]


def test_good_conditions_pass() -> None:
    assert validate_filter(ACCEPTED) == []
    assert validate_filter([]) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"column": "nam"}, "[0].column: 'nam' is not known, did you mean name?; allowed: id, traceId, name, userId"),
        ({"column": "updatedAt"}, "[0].column: 'updatedAt' is not known"),
        ({"column": ["name"]}, "[0].column: a list is not known"),
        ({"column": "timestamp"}, "[0].column: 'timestamp' is set by the engine, window by window"),
        ({"type": "text"}, "[0].type: 'text' is not known; allowed: datetime, string, stringOptions"),
        ({"type": {}}, "[0].type: a mapping is not known"),
        ({"operator": "like"}, "[0].operator: 'like' is not known for type string; allowed: =, contains, does not"),
        ({"operator": "any of"}, "[0].operator: 'any of' is not known for type string"),
        ({"value": 3}, "[0].value: must be text (put quotes around it)"),
        ({"value": None}, "[0].value: must be text"),
        ({"key": "x"}, "[0].key: type string takes no key"),
        ({"colum": 1}, "[0].colum: unknown, did you mean column?; a condition has type, column, operator, value, key"),
        ({"column": "tags"}, "[0].type: 'string' does not fit the column tags; allowed: arrayOptions, stringOptions"),
        ({"type": "number", "operator": "=", "value": 1}, "[0].type: 'number' does not fit the column name"),
        ({"type": "null", "operator": "is null", "value": "x"}, '[0].value: must be left out, or ""'),
        ({"type": "stringOptions", "operator": "any of", "value": []}, "[0].value: is an empty list"),
        ({"type": "stringOptions", "operator": "any of", "value": "x"}, "[0].value: must be a list of texts"),
        ({"type": "stringOptions", "operator": "any of", "value": [1]}, "[0].value: must be a list of texts"),
        ({"type": "stringObject", "column": "metadata"}, "[0].key: type stringObject needs a key"),
        (
            {"type": "number", "column": "latency", "operator": ">", "value": float("nan")},
            "[0].value: must be a number",
        ),
        ({"type": "number", "column": "latency", "operator": ">", "value": True}, "[0].value: must be a number"),
        ({"type": "boolean", "column": "bookmarked", "value": "true"}, "[0].value: must be true or false"),
    ],
)
def test_a_bad_condition_names_its_part_and_what_is_allowed(change: dict[str, Any], problem: str) -> None:
    condition = {"type": "string", "column": "name", "operator": "=", "value": "x"} | change
    (line,) = validate_filter([condition])
    assert line.startswith(problem)


def test_missing_parts_are_named() -> None:
    column, kind = validate_filter([{}])
    assert column.startswith("[0].column: missing; allowed: id, ")
    assert kind.startswith("[0].type: missing; allowed: datetime, ")
    assert validate_filter([{"type": "string", "column": "name"}]) == [
        "[0].operator: missing; allowed for type string: =, contains, does not contain, starts with, ends with",
        "[0].value: must be text (put quotes around it)",
    ]


@pytest.mark.parametrize("value", [None, "x", {"type": "string"}, 3])
def test_a_filter_is_a_list_of_mappings(value: object) -> None:
    assert validate_filter(value)[0].startswith(": must be a list of conditions")
    assert validate_filter([value])[0].startswith("[0]")


def test_every_column_takes_only_known_types() -> None:
    for types in COLUMNS.values():
        assert set(types) <= set(OPERATORS)


def lines(filters: object) -> list[str]:
    with pytest.raises(SeveralError) as caught:
        read_filters(filters)
    return caught.value.lines


def test_filters_are_normalised() -> None:
    assert read_filters(None) == {}
    assert read_filters({"tags": "a,b", "environment": ["x"], "name": "", "filter": ACCEPTED[:1]}) == {
        "tags": ["a,b"],
        "environment": ["x"],
        "name": "",
        "filter": ACCEPTED[:1],
    }


def test_parameters_of_the_engine_and_unknown_ones_are_refused() -> None:
    allowed = "allowed: environment, name, userId, sessionId, tags, version, release, filter"
    engine = ("fields", "fromTimestamp", "toTimestamp", "limit", "orderBy", "page")
    assert lines(dict.fromkeys(engine, "1")) == [f".{name}: is set by the engine itself; {allowed}" for name in engine]
    assert lines({"session_id": "s"}) == [f".session_id: unknown filter, did you mean sessionId?; {allowed}"]


@pytest.mark.parametrize(
    ("filters", "problem"),
    [
        ({"tags": []}, ".tags: must be a list of texts such as [production], not a list"),
        ({"tags": {}}, ".tags: must be a list"),
        ({"environment": ["a", 1]}, ".environment: must hold texts only"),
        ({"environment": ""}, ".environment: must hold texts only, and none of them empty"),
        ({"userId": 7}, ".userId: must be text, not the number 7; put it in quotes if it is meant"),
        ({"version": True}, ".version: must be text, not true"),
        ({"name": ["a"]}, ".name: must be text, not a list"),
        ({"filter": "[]"}, ".filter: must be a list of conditions"),
        ({"filter": [{"type": "x"}]}, ".filter[0].column: missing"),
    ],
)
def test_wrong_values_are_refused(filters: dict[str, Any], problem: str) -> None:
    assert lines(filters)[0].startswith(problem)


def test_a_condition_may_not_silence_a_simple_filter() -> None:
    assert lines({"sessionId": "s", "filter": ACCEPTED[:1]}) == [
        ".sessionId: is ignored by Langfuse because .filter[0] is about the same column; keep one of them"
    ]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from([*COLUMNS, *OPERATORS, "=", "any of"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "column", "operator", "value", "key", "x"]), inner)
    ),
    max_leaves=12,
)


@given(JSON)
def test_anything_is_judged_without_a_crash(value: Any) -> None:
    for line in validate_filter(value):
        assert "\n" not in line
