"""Stored rows to documents, without a database."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
import simplejson
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import any_json, calm

from etl.transform import scores as v3
from etl.transform.documents import canonical, canonical_json, full_document, row_document, trace_item
from etl.transform.fields import OBSERVATION, SCORE_LEGACY, SCORE_V3, TRACE, TRACE_DOCUMENT
from etl.transform.jsontext import dumps, loads
from etl.transform.rows import Row, from_api

TRACE_FIELDS = {field.api: None for field in TRACE_DOCUMENT.fields} | {
    "id": "t1",
    "projectId": "p",
    "timestamp": "2026-01-01T00:00:00.000Z",
}


def trace_row(**fields: Any) -> Row:
    row = from_api(TRACE_FIELDS | fields, TRACE, project_id="p", read_from="traces", plain=False)
    return row | {"total_cost": 0.5, "latency": 2.0}


def observation_row(observation_id: str, start: str = "2026-01-01T00:00:00.000Z", **fields: Any) -> Row:
    item = {field.api: None for field in OBSERVATION.fields}
    item |= {"id": observation_id, "projectId": "p", "traceId": "t1", "startTime": start} | fields
    return from_api(item, OBSERVATION, project_id="p", read_from="traces", plain=True)


def score_row(score_id: str, timestamp: str = "2026-01-01T00:00:00.000Z", **fields: Any) -> Row:
    item = {field.api: None for field in SCORE_LEGACY.fields}
    item |= {"id": score_id, "projectId": "p", "traceId": "t1", "timestamp": timestamp, "dataType": "NUMERIC"} | fields
    return from_api(item, SCORE_LEGACY, project_id="p", read_from="traces", plain=True)


def part_ids(observation_ids: str | None, score_ids: str | None) -> Row:
    """What the database adds to the row of a trace for a list of traces."""
    return {"observation_ids": observation_ids, "score_ids": score_ids}


def test_fields_are_in_the_order_of_the_api_then_unknown_ones_by_name_then_the_parts() -> None:
    document = full_document(trace_row(zebra=1, ant={"b": 1, "a": 2}), [], [])

    assert [*TRACE_FIELDS, "ant", "zebra", "observations", "scores"] == list(document.item)
    assert list(document.item["ant"]) == ["a", "b"]


def test_observations_are_in_the_order_of_start_and_id() -> None:
    rows = [observation_row("b"), observation_row("c", "2025-01-01T00:00:00.000Z"), observation_row("a")]

    document = full_document(trace_row(), rows, [])

    assert [part["id"] for part in document.item["observations"]] == ["c", "a", "b"]
    assert document.observations == 3


def test_prices_that_are_not_known_are_zero_as_inside_a_trace() -> None:
    (part,) = full_document(trace_row(), [observation_row("o", inputPrice=0.5)], []).item["observations"]

    assert (part["inputPrice"], part["outputPrice"], part["totalPrice"]) == (0.5, 0, 0)
    assert part["usagePricingTierId"] is None


def test_a_pricing_tier_that_the_list_does_not_say_is_left_out() -> None:
    rows = [observation_row("a", modelId="m"), observation_row("b", modelId="m", usagePricingTierId="t")]

    unsaid, said = full_document(trace_row(), rows, []).item["observations"]

    assert {"usagePricingTierId", "usagePricingTierName"} == set(said) - set(unsaid)


def test_scores_are_in_the_order_of_time_and_id_and_lack_empty_owners() -> None:
    rows = [score_row("b"), score_row("c", "2025-01-01T00:00:00.000Z"), score_row("a", sessionId="s")]

    document = full_document(trace_row(), [], rows)

    assert [part["id"] for part in document.item["scores"]] == ["c", "a", "b"]
    assert ["sessionId" in part for part in document.item["scores"]] == [False, True, False]
    assert not any("datasetRunId" in part for part in document.item["scores"])


def test_corrections_are_no_part_of_a_trace_as_in_the_api() -> None:
    rows = [score_row("a", dataType="CORRECTION"), score_row("b")]

    assert [part["id"] for part in full_document(trace_row(), [], rows).item["scores"]] == ["b"]


def test_a_list_row_has_sorted_ids() -> None:
    document = row_document(trace_row() | part_ids('["o2","o1"]', '["c","b"]'))

    assert {"observations": ["o1", "o2"], "scores": ["b", "c"]}.items() <= document.item.items()
    assert (document.observations, document.scores) == (2, 2)


@pytest.mark.parametrize(
    ("data_type", "value", "expected"),
    [
        ("BOOLEAN", True, {"value": 1, "stringValue": "True"}),
        ("BOOLEAN", False, {"value": 0, "stringValue": "False"}),
        ("NUMERIC", 0.25, {"value": 0.25, "stringValue": None}),
        ("NUMERIC", 3, {"value": 3, "stringValue": None}),
        ("CATEGORICAL", "bad", {"stringValue": "bad"}),
        ("TEXT", "long text", {"stringValue": "long text"}),
    ],
)
def test_scores_of_the_v3_api_get_the_older_shape(data_type: str, value: Any, expected: dict[str, Any]) -> None:
    item = {"id": "s", "projectId": "p", "name": "n", "comment": None, "dataType": data_type, "value": value}
    item["subject"] = {"kind": "trace", "id": "t1"}
    row = from_api(v3.flatten(item), SCORE_V3, project_id="p", read_from="observations", plain=True)

    (score,) = full_document(trace_row(), [], [row]).item["scores"]

    assert expected == {name: score[name] for name in ("value", "stringValue") if name in score}
    assert score["traceId"] == "t1"
    assert "executionTraceId" not in score
    assert "subject" not in score


def test_parts_that_the_api_lists_and_nobody_stored_are_listed_and_make_it_incomplete() -> None:
    row = trace_row() | {"extra": '{"observations":["o2","o1"],"scores":["s1"]}'}

    full = full_document(row, [observation_row("o1")], [score_row("s1")])
    listed = row_document(row | part_ids(None, '["s0"]'))

    assert [part["id"] for part in full.item["observations"]] == ["o1"]
    assert not full.complete
    assert {"observations": ["o1", "o2"], "scores": ["s0", "s1"]}.items() <= listed.item.items()
    assert listed.complete


def test_a_trace_whose_listed_parts_are_all_stored_is_complete() -> None:
    row = trace_row() | {"extra": '{"observations":["o1"]}'}

    assert full_document(row, [observation_row("o1")], []).complete


def test_ids_that_no_column_holds_are_listed_as_they_are() -> None:
    item = {field.api: None for field in OBSERVATION.fields} | {"id": "a\x00b", "projectId": "p", "traceId": "t1"}
    row = from_api(item, OBSERVATION, project_id="p", read_from="traces", plain=False)

    listed = trace_row() | part_ids(dumps(["b", [row["id"], row["exact"]]]), "[]")
    assert row_document(listed).item["observations"] == ["a\x00b", "b"]
    assert [part["id"] for part in full_document(trace_row(), [row], []).item["observations"]] == ["a\x00b"]


def test_a_derived_trace_lacks_what_the_newer_api_does_not_know() -> None:
    derived = trace_row() | {"read_from": "observations", "html_path": None, "external_id": None}

    assert {"htmlPath", "externalId"} == set(trace_item(trace_row())) - set(trace_item(derived))


def test_metrics_that_were_not_derived_yet_are_left_out() -> None:
    assert {"totalCost", "latency"}.isdisjoint(trace_item(trace_row() | {"total_cost": None, "latency": None}))


def test_an_observation_of_the_newer_api_keeps_what_only_that_has() -> None:
    row = observation_row("o") | {
        "read_from": "observations",
        "user_id": "u",
        "tags": '["x"]',
        "is_root_observation": 1,
    }
    row |= dict.fromkeys(("session_id", "trace_name", "release", "bookmarked", "public"))

    (part,) = full_document(trace_row(), [row], []).item["observations"]

    assert {"userId": "u", "tags": ["x"], "isRootObservation": True, "traceName": None}.items() <= part.items()
    assert {"unit", "usage"}.isdisjoint(part)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1.0, 1),
        (-0.0, 0),
        (123456789012345678.0, 123456789012345680),
        (1e20, 10**20),
        (1e22, 1e22),
        (10**22, 1e22),
        (10**23, 1e23),
        (2**70, 2**70),
        (0.1, 0.1),
        (1e-7, 1e-7),
        (2**53 + 1, 2**53 + 1),
        (Decimal("1E+400"), 10**400),
        (Decimal("1E+5000"), Decimal("1E+5000")),
        (Decimal("12" + "0" * 5000), Decimal("1.2E+5001")),
        (Decimal("0.12345678901234567890"), Decimal("0.1234567890123456789")),
        (True, True),
        (None, None),
        ("1.0", "1.0"),
    ],
)
def test_numbers_are_written_as_the_api_writes_them(value: Any, expected: Any) -> None:
    found = canonical({"x": [value]})["x"][0]

    assert repr(expected) == repr(found)


def test_keys_are_sorted_at_every_depth_and_the_given_value_stays() -> None:
    value = {"b": [{"d": 1.0, "c": 2}], "a": 1}

    assert '{"a": 1, "b": [{"c": 2, "d": 1}]}'.replace('"', "'") == str(canonical(value))
    assert value == {"b": [{"d": 1.0, "c": 2}], "a": 1}
    assert list(value) == ["b", "a"]


_NUMBERS = st.one_of(
    st.integers(-(10**24), 10**24),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**6), 10**6).map(float),
    st.decimals(allow_nan=False, allow_infinity=False, places=21),
    st.sampled_from(["-0.0", "1e22", "1E+3", "1.50", "100", "123456789012345678901.0", "0.10", "1e-7"]).map(Decimal),
)


@given(value=st.recursive(_NUMBERS | any_json(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
@settings(calm, max_examples=200)
def test_reading_a_text_in_the_one_form_is_the_same_as_bringing_its_value_to_it(value: Any) -> None:
    stored = dumps(value)
    as_postgres_gives_it = simplejson.dumps(value, separators=(", ", ": "), use_decimal=True)

    for text in (stored, as_postgres_gives_it):
        assert repr(canonical(loads(text))) == repr(canonical_json(text))


def test_depth_is_no_limit() -> None:
    value: Any = 1.0
    for _ in range(50_000):
        value = [value]

    found = canonical(value)

    for _ in range(50_000):
        (found,) = found
    assert found == 1
