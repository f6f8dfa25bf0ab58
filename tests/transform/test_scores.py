"""Scores of the v3 API in the columns of the older ones, and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from json_values import any_json, calm, equal
from recorded_rows import STREAMS, recorded, to_item, to_row

from etl.transform.scores import flatten, unflatten

SUBJECTS = [
    ({"kind": "trace", "id": "t"}, {"traceId": "t"}),
    ({"kind": "observation", "id": "o", "traceId": "t"}, {"observationId": "o", "traceId": "t"}),
    ({"kind": "session", "id": "s"}, {"sessionId": "s"}),
    ({"kind": "experiment", "id": "r"}, {"datasetRunId": "r"}),
    ({"kind": "trace", "id": ""}, {"traceId": ""}),
]
NOBODY: dict[str, Any] = dict.fromkeys(("traceId", "observationId", "sessionId", "datasetRunId"))
V3 = STREAMS["scores of v3"]


def score(data_type: str, value: Any, **more: Any) -> dict[str, Any]:
    return {"id": "x", "dataType": data_type, "value": value, "subject": {"kind": "trace", "id": "t"}} | more


def test_both_apis_give_the_same_columns_for_the_same_score() -> None:
    """`executionTraceId` is not told by v3, and a category has a number only in the older API."""
    older = {item["id"]: to_row(item, STREAMS["scores of v2"]) for item in recorded("scores_v2")}
    newer = {item["id"]: to_row(item, V3) for item in recorded("scores_v3")}
    columns = {field.column for field in V3.shape.fields} - {"value", "execution_trace_id"} | {"extra", "exact"}

    assert older.keys() == newer.keys()
    for key, row in older.items():
        assert {name: row[name] for name in columns} == {name: newer[key][name] for name in columns}
        assert newer[key]["value"] == (None if row["data_type"] == "CATEGORICAL" else row["value"])


@pytest.mark.parametrize(("subject", "columns"), SUBJECTS)
def test_a_subject_is_spread_over_the_columns_and_put_together_again(
    subject: dict[str, Any], columns: dict[str, Any]
) -> None:
    item = score("NUMERIC", 1.5, subject=subject)
    flat = flatten(item)

    assert {name: flat[name] for name in NOBODY} == NOBODY | columns
    assert "subject" not in flat
    assert unflatten(flat) == item


@pytest.mark.parametrize(
    ("data_type", "value", "number", "text"),
    [
        ("BOOLEAN", True, 1, "True"),
        ("BOOLEAN", False, 0, "False"),
        ("CATEGORICAL", "good", None, "good"),
        ("TEXT", "", None, ""),
        ("NUMERIC", -0.5, -0.5, None),
        ("NUMERIC", 3, 3, None),
    ],
)
def test_a_value_is_a_number_a_text_or_both(data_type: str, value: Any, number: Any, text: Any) -> None:
    item = score(data_type, value)
    row = to_row(item, V3)

    assert (number, text) == (row["value"], row["string_value"])
    assert equal(item, to_item(row, V3))


@pytest.mark.parametrize("value", [None, True, 1, 2.5, "True", "word", {"a": 1}, [True]])
@pytest.mark.parametrize("data_type", ["BOOLEAN", "CATEGORICAL", "TEXT", "NUMERIC", "CORRECTION", "NEW"])
def test_a_value_that_does_not_fit_its_type_comes_back_as_it_was(data_type: str, value: Any) -> None:
    item = score(data_type, value)

    assert equal(item, to_item(to_row(item, V3), V3))


@pytest.mark.parametrize(
    "subject",
    [
        None, "trace", [], {}, {"kind": "trace"}, {"kind": "planet", "id": "p"}, {"kind": ["trace"], "id": "t"},
        {"kind": "trace", "id": None}, {"kind": "trace", "id": 5}, {"kind": "trace", "id": "t", "name": "n"},
        {"kind": "observation", "id": "o"}, {"kind": "observation", "id": None, "traceId": "t"},
        {"kind": "observation", "id": "o", "traceId": None}, {"kind": "session", "id": None},
    ],
)  # fmt: skip
def test_a_subject_of_another_form_comes_back_as_it_was(subject: Any) -> None:
    item = score("BOOLEAN", True, subject=subject)

    assert equal(item, to_item(to_row(item, V3), V3))


@pytest.mark.parametrize("name", ["subject", "value", "dataType"])
def test_a_field_that_was_not_answered_is_not_made_up(name: str) -> None:
    for data_type, value in (("BOOLEAN", True), ("TEXT", "t"), ("NUMERIC", 1)):
        item = {field: part for field, part in score(data_type, value).items() if field != name}

        assert equal(item, to_item(to_row(item, V3), V3))


def test_a_field_that_v3_may_learn_some_day_is_not_lost() -> None:
    for name in ("executionTraceId", "traceId", "sessionId", "label"):
        item = score("BOOLEAN", True, **{name: "mine"})

        assert equal(item, to_item(to_row(item, V3), V3))


@calm
@given(subject=any_json(), value=any_json(), data_type=any_json())
def test_any_json_in_the_parts_that_are_reshaped_survives(subject: Any, value: Any, data_type: Any) -> None:
    item = {"id": "x", "dataType": data_type, "value": value, "subject": subject}

    assert equal(item, to_item(to_row(item, V3), V3))
