"""Rows of GET /v2/observations hold what the older API says of the same things, and give back what they came from."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from as_read import as_read
from hypothesis import given
from hypothesis import strategies as st

import etl.demo
from etl.transform import fields
from etl.transform.jsontext import dumps, parse
from etl.transform.observations_v2 import flatten, flatten_copy, is_trace_copy, unflatten, unflatten_copy
from etl.transform.pages import Kind, rows_of
from etl.transform.rows import Row

DATA = Path(etl.demo.__file__).parent / "data"
PROJECT = "proj-shop"
Item = dict[str, Any]

# Columns of the recorded observations that differ between the generations; see docs/upgrade-to-v4.md.
OBSERVATIONS_DIFFER = {"version", "metadata", "usage_pricing_tier_id", "usage_pricing_tier_name"}
V2_ONLY = {field.column for field in fields.OBSERVATION_V2_ONLY}
BOOKKEEPING = {"content_hash", "read_from"}


@cache
def corpus(name: str) -> list[Item]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rb") as file:
        return [parse(line).value for line in file]


def stored(items: list[Item], kind: Kind = Kind.OBSERVATION_V2) -> dict[str, list[Row]]:
    # What an answer as a whole knows of its values is only a shortcut.
    light = kind is Kind.OBSERVATION_V2_CORE
    return rows_of(kind, as_read(items), project_id=PROJECT, contents=True, light=light)


def one(**changes: Any) -> Item:
    """A row as the server answers it, with all groups."""
    item = {
        "id": "o", "traceId": "t", "startTime": "2026-11-01T00:00:00.000Z", "endTime": "2026-11-01T00:00:01.500Z",
        "projectId": PROJECT, "parentObservationId": None, "type": "GENERATION", "name": "n", "level": "DEFAULT",
        "statusMessage": "", "version": "", "environment": "default", "completionStartTime": None,
        "createdAt": "2026-11-01T00:00:02.000Z", "updatedAt": "2026-11-01T00:00:02.000Z", "input": None,
        "output": None, "metadata": {}, "model": "", "internalModelId": "", "modelParameters": {}, "usageDetails": {},
        "inputUsage": 0, "outputUsage": 0, "totalUsage": 0, "costDetails": {}, "inputCost": None, "outputCost": None,
        "totalCost": 0, "promptId": "", "promptName": "", "promptVersion": None, "usagePricingTierId": None,
        "usagePricingTierName": None, "latency": 1.5, "timeToFirstToken": None, "userId": "", "sessionId": "",
        "isRootObservation": True, "traceName": None, "release": "", "tags": [], "bookmarked": False, "public": False,
        "modelId": None, "inputPrice": None, "outputPrice": None, "totalPrice": None,
    }  # fmt: skip
    return item | changes


def rendered(item: Item) -> Item:
    """Inputs and outputs as values: how their JSON is spelled does not count."""
    for name in ("input", "output"):
        text = item[name]
        if text and text.startswith("\ufeff"):  # JSON has no byte order mark, but a Python parser takes one
            continue
        try:
            item = item | {name: parse(text.encode("utf-8", "surrogatepass")).value if text else None}
        except ValueError:
            continue
    return item


def back(item: Item) -> Item:
    """`item` after it was a row."""
    rows = stored([item])
    return unflatten_copy(rows["traces"][0]) if is_trace_copy(item) else unflatten(rows["observations"][0])


def test_every_recorded_row_is_given_back() -> None:
    for item in corpus("observations_v2"):
        assert rendered(back(item)) == rendered(item)


def test_recorded_rows_need_no_exact_and_no_extra() -> None:
    rows = stored(corpus("observations_v2"))
    assert {name: len(table) for name, table in rows.items()} == {"traces": 1236, "observations": 3277}
    odd = [row["id"] for table in rows.values() for row in table if row["exact"] or row["extra"]]
    assert len(odd) <= 1  # one trace holds a NUL character


def test_recorded_observations_of_both_generations_agree() -> None:
    v1 = {
        (row["trace_id"], row["id"]): row for row in stored(corpus("observations_v1"), Kind.OBSERVATION)["observations"]
    }
    v2 = {(row["trace_id"], row["id"]): row for row in stored(corpus("observations_v2"))["observations"]}
    assert len(v1) == 3275
    assert v1.keys() <= v2.keys()
    different = Counter(column for key, row in v1.items() for column in row if row[column] != v2[key][column])
    assert set(different) == OBSERVATIONS_DIFFER | BOOKKEEPING
    assert set(v2[next(iter(v1))]) - set(v1[next(iter(v1))]) == V2_ONLY


def test_what_differs_differs_in_the_way_the_docs_say() -> None:
    v1, v2 = ({(o["traceId"], o["id"]): o for o in corpus(f"observations_{name}")} for name in ("v1", "v2"))
    traces = {trace["id"]: trace for trace in corpus("traces")}
    for key, old in v1.items():
        new, trace = v2[key], traces.get(key[0])
        if trace is not None:
            assert new["version"] == (old["version"] or trace["version"] or "")
            assert new["metadata"] == trace["metadata"] | old["metadata"]
        assert old["usagePricingTierId"] is None
        assert (new["usagePricingTierId"] is None) == (new["modelId"] is None)


def test_recorded_trace_copies_agree_with_the_traces() -> None:
    v1 = {row["id"]: row for row in stored(corpus("traces"), Kind.TRACE)["traces"]}
    v2 = {row["id"]: row for row in stored(corpus("observations_v2"))["traces"]}
    assert len(v1) == 1200
    assert v1.keys() <= v2.keys()
    columns = [field.column for field in fields.TRACE_V2.fields]
    different = Counter(column for key, row in v1.items() for column in columns if row[column] != v2[key][column])
    # A trace that is sent again gets a newer `updatedAt`; its copy keeps the older one.
    assert different == {"updated_at": 12}
    assert all(row["updated_at"] >= v2[key]["updated_at"] for key, row in v1.items())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("", None),
        ("plain text", "plain text"),
        ("17400353", 17400353),
        (" 17500003 ", 17500003),
        ("00123", "00123"),
        ("true", True),
        ("null", None),
        ('"quoted"', "quoted"),
        ('"17"', "17"),
        ('{"a": [1, 2]}', {"a": [1, 2]}),
        ('{"a": [1, 2]', '{"a": [1, 2]'),
        ("[broken", "[broken"),
        ("NaN", "NaN"),
        ("-Infinity", "-Infinity"),
        ("the end", "the end"),
        ("[12:30] started", "[12:30] started"),
        ("[1] and [2]", "[1] and [2]"),
        ('"no", he said', '"no", he said'),
        ("5 degrees", "5 degrees"),
        ("-", "-"),
        (" \t\n", " \t\n"),
        ('\r\n{"a": 1}\t', {"a": 1}),
        ("\u00a0{}", "\u00a0{}"),
        ("\nfalse ", False),
        ("\ufeff{}", "\ufeff{}"),
        ("12345678901234567890123", 12345678901234567890123),
        ('{"n": 0.1234567890123456789}', {"n": Decimal("0.1234567890123456789")}),
        ("é" * 5_000, "é" * 5_000),
    ],
)
def test_contents_are_rendered_as_the_older_api_does(text: str | None, value: object) -> None:
    flat = flatten(one(input=text, output=text), plain=True).item
    assert (flat["input"], flat["output"]) == (value, value)
    assert type(flat["input"]) is type(value)
    assert rendered(back(one(input=text))) == rendered(one(input=text))


def test_metadata_is_not_parsed_once_more() -> None:
    # The server has parsed it already: what is text still was sent as text (recorded in `traces_from_sdk`).
    metadata = {"message_id": "17700000", "long": "v" * 10_000, "nested": {"k": "1"}}
    (row,) = stored([one(metadata=metadata)])["observations"]
    assert json.loads(row["metadata"]) == metadata


@pytest.mark.parametrize(
    "changes",
    [
        {"statusMessage": None, "version": None, "model": None, "modelParameters": None, "userId": None},
        {"traceId": None},
        {"traceId": ""},
        {"parentObservationId": "t-t", "isRootObservation": False},
        {"parentObservationId": "p", "isRootObservation": True},
        {"latency": None, "endTime": None},
        {"latency": None, "endTime": "2026-11-01T00:00:00.000Z"},
        {"internalModelId": "m", "modelId": "m", "inputPrice": "1.5e-7", "outputPrice": "0.0000025", "totalPrice": "3"},
        {"internalModelId": "other", "modelId": "m"},
        {"inputPrice": "0.12345678901234567891234", "outputPrice": "free"},
        {"inputPrice": 3e-06},
        {"inputUsage": 2**70, "totalUsage": None},
        {"totalCost": 0.000008639999, "costDetails": {"total": 0.000008639999}},
        {"brandNew": {"a": 1}, "tags": ["a\x00", "\ud800"], "userId": "\x00"},
        {"name": "\ud800", "traceName": "", "promptVersion": 7},
        {"metadata": {"n": 2**64, "text": "a\x00b"}},
        {"id": "t-t", "endTime": None, "latency": None, "traceName": "n", "type": "SPAN"},
        {"id": "t-t", "endTime": None, "latency": None, "name": "", "type": "SPAN", "version": None},
        {"id": "t-t", "latency": None, "level": "ERROR", "traceName": "another", "brandNew": 1},
    ],
)
def test_unusual_rows_are_given_back(changes: Item) -> None:
    assert rendered(back(one(**changes))) == rendered(one(**changes))


@pytest.mark.parametrize("name", ["usagePricingTierId", "inputUsage", "totalCost", "tags", "statusMessage", "modelId"])
def test_absent_fields_stay_absent(name: str) -> None:
    item = one()
    del item[name]
    if name == "modelId":
        del item["internalModelId"]
    assert back(item) == item


def test_no_time_at_all_is_a_latency_of_zero() -> None:
    for latency in (None, 0):
        item = one(latency=latency, endTime="2026-11-01T00:00:00.000Z")
        assert stored([item])["observations"][0]["latency"] == 0
        assert back(item)["latency"] is None


def test_a_model_under_its_other_name() -> None:
    item = one(providedModelName="gpt-x")
    del item["model"]
    assert stored([item])["observations"][0]["model"] == "gpt-x"


def test_names_of_the_older_api() -> None:
    (row,) = stored(
        [
            one(
                inputUsage=2,
                outputUsage=3,
                totalUsage=5,
                inputCost=0.1,
                outputCost=0.2,
                totalCost=0.3,
                inputPrice="3e-7",
            )
        ]
    )["observations"]
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    costs = ("calculated_input_cost", "calculated_output_cost", "calculated_total_cost")
    assert [row[name] for name in counts] == [2, 3, 5]
    assert [row[name] for name in costs] == [0.1, 0.2, 0.3]
    assert json.loads(row["usage"]) == {"unit": "TOKENS", "input": 2, "output": 3, "total": 5}
    assert row["input_price"] == 3e-7


def test_without_contents_nothing_of_them_is_in_the_rows() -> None:
    items = [one(input="secret", output="secret"), one(id="t-t", input="secret")]
    tables = rows_of(Kind.OBSERVATION_V2, as_read(items), project_id=PROJECT, contents=False)
    assert all("input" not in row and "output" not in row for rows in tables.values() for row in rows)


def test_a_light_row_has_no_placeholders() -> None:
    """With `fields=core,basic,time` model and prices are null placeholders, and contents are absent."""
    names = (
        "id traceId startTime endTime projectId parentObservationId type name level statusMessage version environment"
        " bookmarked public userId sessionId isRootObservation completionStartTime createdAt updatedAt latency"
        " timeToFirstToken modelId inputPrice outputPrice totalPrice"
    )
    light = {name: value for name, value in one().items() if name in names.split(" ")}
    tables = stored([light, light | {"id": "t-t"}], Kind.OBSERVATION_V2_CORE)
    (row,), (copy,) = tables["observations"], tables["traces"]
    assert row["exact"] is None
    assert copy["exact"] is None
    assert not {"model_id", "input_price", "input", "metadata", "tags"} & set(row)
    assert not {"input", "metadata", "tags", "release"} & set(copy)
    assert {"name", "updated_at", "user_id"} <= set(row)


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES)
def test_any_value_sent_as_json_is_held_and_given_back(value: Any) -> None:
    text = dumps(value)
    assert flatten(one(input=text), plain=False).item["input"] == value
    assert rendered(back(one(input=text)))["input"] == value


@given(st.floats(min_value=1e-12, max_value=1e6) | st.integers(1, 10**6))
def test_prices_are_spelled_as_javascript_spells_them(price: float) -> None:
    text = unflatten(stored([one(inputPrice=dumps(price))])["observations"][0])["inputPrice"]
    assert float(text) == price
    assert "e+" not in text
    assert not text.endswith(".0")


def test_a_copy_is_the_trace_itself() -> None:
    flat = flatten_copy(one(id="t-t", userId="u", sessionId="", traceName="n", input='{"a":1}'), plain=True).item
    assert flat["id"] == "t"
    assert flat["timestamp"] == "2026-11-01T00:00:00.000Z"
    assert flat["userId"] == "u"
    assert flat["sessionId"] is None
    assert flat["input"] == {"a": 1}
    assert not is_trace_copy(one())
    assert not is_trace_copy(one(id="t-", traceId=""))
