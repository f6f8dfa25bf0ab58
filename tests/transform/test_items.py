"""Objects are cut out of an answer as they stand there, whichever way they are cut."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import simplejson
from as_read import as_read
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import any_json, any_text, calm, equal

from etl.errors import RowError
from etl.transform import items
from etl.transform.fields import OBSERVATION, SCORE_LEGACY
from etl.transform.items import Item, fields_of, items_of, listed_text, listing_of, parsed, value_of
from etl.transform.jsontext import JsonTextError, dumps, parse
from etl.transform.pages import Kind, identified, keys_of, rows_of
from etl.transform.rows import content_hash

few = settings(calm, max_examples=80)
NAMES = st.sampled_from(["id", "traceId", "timestamp", "startTime", "createdAt", "name", "trace", "metadata"])


def objects(*, plain: bool = False) -> st.SearchStrategy[list[dict[str, Any]]]:
    names = NAMES | any_text(plain=plain)
    return st.lists(st.dictionaries(names, any_json(plain=plain, max_leaves=6), max_size=6), max_size=4)


def written(value: Any, spaces: str) -> bytes:
    """As other servers may write it."""
    separators = (f"{spaces},{spaces}", f"{spaces}:{spaces}")
    text = simplejson.dumps(value, separators=separators, ensure_ascii=bool(spaces), use_decimal=True)
    return f"{spaces}{text}{spaces}".encode("utf-8", "surrogatepass")


@given(objects(), st.sampled_from(["", " ", "\r\n\t "]))
@few
def test_every_object_is_cut_out_with_all_it_says(values: list[dict[str, Any]], spaces: str) -> None:
    body = written(values, spaces)
    found = items_of(body)
    assert equal(values, [dict(item) for item in found])
    assert equal(values, [value for value, _ in parsed(found)])
    assert equal(values, parse(listed_text(found)).value)
    begin = 0
    for item, value in zip(found, values, strict=True):
        begin = body.index(bytes(item.text), begin) + len(bytes(item.text))
        assert equal(value, {name: value_of(text) for name, text in item.fields().items()})
        for name in (*value, "no such field"):
            assert equal(value.get(name), item.get(name))
            assert (name in item) == (name in value)


@given(objects(plain=True), st.sampled_from(["", " ", "\r\n\t "]))
@few
def test_both_ways_cut_in_the_same_places(values: list[dict[str, Any]], spaces: str) -> None:
    """Which way it is depends on what else is on a page, and the hash of an object must not."""
    body = written(values, spaces)
    slowly = items._items_slowly(body)
    assert [bytes(item.text) for item in items_of(body)] == [bytes(item.text) for item in slowly]
    assert [item._keys for item in items_of(body)] == [item._keys for item in slowly]
    for item in slowly:
        fast = {name: bytes(text) for name, text in item.fields().items()}
        assert fast == items._fields_slowly(item.text)


@pytest.mark.parametrize("odd", ["\ud800", [[[]]] * 3, 10**30, Decimal("1e400"), "a\x00b", -0.0])
def test_an_odd_object_changes_no_text_beside_it(odd: Any) -> None:
    beside = {"id": "a", "name": "ü", "metadata": {"b": 1.5, "a": [1, "😀"]}}
    alone = items_of(b"[" + written(beside, "") + b"]")
    with_odd = items_of(b"[" + written(beside, "") + b", " + written({"id": "b", "odd": odd}, "") + b"]")
    assert bytes(alone[0].text) == bytes(with_odd[0].text)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>", b"null", b"{", b'{"data":[]', b'{"data":[NaN]}', b"[]", b'"a"', b'{"a":1}}',
        b'{"a":' + b"[" * 1_100 + b"]" * 1_100 + b',"b":"\\ud800"}',
    ],
)  # fmt: skip
def test_what_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(JsonTextError):
        fields_of(body)


@pytest.mark.parametrize("body", [b"{}", b"[1]", b"[null]", b'[{"id":1},2]', b'["\\ud800"]', b"3", b"[[]]", b"[{]"])
def test_what_is_no_list_of_objects_is_refused(body: bytes) -> None:
    with pytest.raises(JsonTextError):
        items_of(body)


@pytest.mark.parametrize(
    "member", [b'"input":' + b"[" * 1_100 + b"]" * 1_100, b'"input":"\xff"', b'"input":1e' + b"9" * 20, b'"\xff":1']
)
def test_an_object_that_cannot_be_parsed_is_refused_when_it_is(member: bytes) -> None:
    (item,) = items_of(b'[{"id":"a","trace":{},' + member + b"}]")
    assert (item["id"], item.get("traceId")) == ("a", None)
    looks: list[Callable[[], object]] = [lambda: parsed([item]), lambda: item.get("name"), lambda: dict(item)]
    if member == b'"\xff":1':
        looks += [
            item.fields,
            lambda: item.without("trace"),
            lambda: item.with_defaults({"sessionId": None}),
            lambda: content_hash(item, SCORE_LEGACY),
        ]
    for look in looks:
        with pytest.raises(RowError, match="cannot be read"):
            look()


@pytest.mark.parametrize("kind", Kind)
def test_whatever_cannot_be_made_a_row_is_said(kind: Kind) -> None:
    for text in (b'{"id":"a","\xff":1}', b'{"id":"a","observations":"\xff"}', b'{"id":["a"]}', b'{"id":1}', b"{}"):
        with pytest.raises(RowError):
            rows_of(kind, items_of(b"[" + text + b"]"), project_id="p", contents=True)


@pytest.mark.parametrize("odd", ["1", "1e-400", "true", "[]", '["a"]', "{}"])
def test_what_is_no_text_is_what_the_parser_says_it_is(odd: str) -> None:
    text = f'[{{"id":"a","traceId":{odd},"timestamp":{odd}}}]'.encode()
    (item,) = items_of(text)
    assert [dict(item)] == parse(text).value == [{name: item[name] for name in item}]
    one = identified(Kind.OBSERVATION, [item], contents=True)[0]
    (row,) = rows_of(Kind.OBSERVATION, [item], project_id="p", contents=True)["observations"]
    assert not one.is_found_by_key
    assert keys_of(Kind.OBSERVATION, [item]) == [(row["trace_id"], row["id"])]


@given(objects(), st.sampled_from(["", " "]), st.booleans())
@few
def test_a_listing_is_its_list_and_what_is_said_beside_it(
    values: list[dict[str, Any]], spaces: str, deprecated: bool
) -> None:
    beside = {"_deprecation": {"sunsetAt": "2026-11-16"}} if deprecated else {}
    listing = listing_of(written({"meta": {"page": 1}, "other": [1], "data": values, **beside}, spaces))
    assert equal(values, [dict(item) for item in listing.items])
    assert value_of(listing.meta) == {"page": 1}
    assert value_of(listing.deprecation) == beside.get("_deprecation")


def test_a_large_object_that_is_cut_slowly_is_held_once() -> None:
    at = "2026-02-19T00:00:00.000Z"
    body = written({"data": [{"id": "a", "timestamp": at, "input": "x" * 1_000_000 + "\ud800"}], "meta": {}}, " ")
    tracemalloc.start()
    try:
        (item,) = listing_of(body).items
        assert item["timestamp"] == at
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.1 * len(body)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"data":null}', b'{"data":[1]}', b'{"data":[{}]', b"{}{}"])
def test_what_is_no_listing_is_refused(body: bytes) -> None:
    with pytest.raises(JsonTextError):
        listing_of(body)


@given(objects())
@few
def test_fields_are_replaced_added_and_left_out(values: list[dict[str, Any]]) -> None:
    for item, value in zip(items_of(written(values, " ")), values, strict=True):
        new = {"metadata": [1], "id": "new"}
        assert equal(value | new, dict(item.with_fields(new)))
        assert equal(new | value, dict(item.with_defaults(new)))
        assert equal({n: v for n, v in value.items() if n not in new}, dict(item.without(*new)))


def test_the_hash_is_that_of_the_text_without_the_ignored_fields() -> None:
    one = {"id": "s", "name": "a", "comment": "", "trace": {"tags": [1]}}
    same = [one | {"trace": {"tags": [2]}}, dict(reversed(one.items())), {n: v for n, v in one.items() if n != "trace"}]
    assert {content_hash(item, SCORE_LEGACY) for item in as_read(same)} == {hash_of(one)}
    # Whatever moves from one field to another is a change.
    others = [
        one | {"name": "", "comment": "a"},
        one | {"name": 'a","comment":"'},
        {"id": "s", "name": "a", "trace": ""},
        {"id": "s", "name\x00a": "", "comment": ""},
        one | {"comment": None},
    ]
    hashes = {hash_of(other) for other in others}
    assert len(hashes) == len(others)
    assert hash_of(one) not in hashes
    # Without ignored fields it is simply the text.
    text = dumps(one).encode()
    assert content_hash(Item(text), OBSERVATION) == content_hash(items_of(b"[ " + text + b" ]")[0], OBSERVATION)
    assert content_hash(Item(text), OBSERVATION) != content_hash(Item(json.dumps(one).encode()), OBSERVATION)


def hash_of(value: dict[str, Any]) -> str:
    return content_hash(Item.of(value), SCORE_LEGACY)
