"""API objects to rows and back."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import any_json, calm, equal
from recorded_rows import STREAMS, hostile_items, kept, recorded, to_item, to_row

from etl.errors import RowError
from etl.transform.fields import SCORE_LEGACY, SCORE_V3, SESSION, TRACE
from etl.transform.items import Item
from etl.transform.jsontext import dumps
from etl.transform.rows import canonical_instant, content_hash, from_api, merged_exact, to_api

every_stream = pytest.mark.parametrize("name", list(STREAMS))
few = settings(calm, max_examples=25)


def trace(**fields: Any) -> dict[str, Any]:
    return {field.api: None for field in TRACE.fields} | {"id": "t", "projectId": "p"} | fields


def row_of(item: dict[str, Any], **options: Any) -> dict[str, Any]:
    return from_api(item, TRACE, **({"project_id": "p", "read_from": "traces", "plain": False} | options))


@every_stream
def test_every_recorded_object_comes_back_as_it_was(name: str) -> None:
    stream = STREAMS[name]
    for item in recorded(stream.file):
        assert kept(item, stream.shape) == to_item(to_row(item, stream), stream)


@every_stream
def test_nearly_every_recorded_object_fits_the_columns(name: str) -> None:
    stream = STREAMS[name]
    rows = [to_row(item, stream) for item in recorded(stream.file)]

    assert sum(row["exact"] is not None for row in rows) <= len(rows) / 500
    assert [None] * len(rows) == [row["extra"] for row in rows]


@every_stream
def test_rows_of_one_shape_have_the_same_columns(name: str) -> None:
    stream = STREAMS[name]
    columns = {tuple(to_row(item, stream)) for item in recorded(stream.file)}

    assert len(columns) == 1


@every_stream
@given(st.data())
@few
def test_hostile_objects_come_back_as_they_were(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    (item,) = data.draw(hostile_items(name))
    row = to_row(item, stream)

    assert equal(kept(item, stream.shape), to_item(row, stream))
    assert all(isinstance(row[name], str) for name in ("project_id", "id", "content_hash"))


@every_stream
@given(st.data())
@few
def test_equal_objects_have_equal_hashes_in_whatever_order_and_company_they_come(
    name: str, data: st.DataObject
) -> None:
    stream = STREAMS[name]
    (item,) = data.draw(hostile_items(name))
    pairs = list(item.items())
    data.draw(st.randoms()).shuffle(pairs)
    hashed = to_row(item, stream)["content_hash"]

    assert hashed == to_row(dict(pairs), stream)["content_hash"]
    assert hashed == to_row(item, stream, plain=False)["content_hash"]


@every_stream
@given(st.data())
@few
def test_different_objects_have_different_hashes(name: str, data: st.DataObject) -> None:
    stream = STREAMS[name]
    (item,) = data.draw(hostile_items(name))
    chosen = data.draw(
        st.sampled_from([field for field in item if field not in {"id", *stream.shape.ignored}] or ["new"])
    )
    without = {field: value for field, value in item.items() if field != chosen}
    others = [without, without | {chosen: None}, without | {chosen: data.draw(any_json(max_leaves=3))}]
    hashed = to_row(item, stream)["content_hash"]

    for other in others:
        # v3 scores have no such field: it is made of their value.
        if chosen != "dataType" or not stream.v3:
            assert equal(item, other) or hashed != to_row(other, stream)["content_hash"]


def test_hashes_stay_the_same_between_versions_of_this_program() -> None:
    """A new hash for old content would write every row again."""
    item = {"id": "s\x00", "environment": "\ud800", "new": {"b": [1e-7, 2**70, "ü"], "a": None}}
    row = from_api(item, SESSION, project_id="p", read_from="traces", plain=False)

    assert row["content_hash"] == "5c61068a68ed65b6a1a64e500e803652"
    assert row["content_hash"] == content_hash(Item(dumps(item).encode("utf-8", "surrogatepass")), SESSION)


def test_null_and_absent_are_kept_apart() -> None:
    absent = trace()
    del absent["name"], absent["input"]

    for item in (trace(), absent):
        assert equal(item, to_api(row_of(item), TRACE))


@pytest.mark.parametrize("levels", [1_023, 1_024])
def test_values_as_deep_as_the_parser_allows_are_read_beside_others(levels: int) -> None:
    row = row_of(trace(output={"b": 1, "a": [1.5]}, metadata=2)) | {"input": "[" * levels + "]" * levels}

    item = to_api(row, TRACE)

    assert (item["output"], item["metadata"]) == ({"b": 1, "a": [1.5]}, 2)
    assert dumps(item["input"]) == row["input"]


def test_null_in_a_field_that_may_be_missing_stays_null() -> None:
    for shape in (SCORE_LEGACY, SCORE_V3):
        for item in ({"id": "s", "value": None}, {"id": "s"}):
            row = from_api(item, shape, project_id="p", read_from="traces", plain=True)
            assert equal(item, to_api(row, shape))


def test_a_new_field_beside_a_missing_optional_one_is_kept() -> None:
    item = {field.api: None for field in SCORE_V3.fields if field.api not in SCORE_V3.optional} | {"id": "s"}
    for new in ({"new": 1}, {"new": 1, "newer": [2]}):
        row = from_api(item | new, SCORE_V3, project_id="p", read_from="traces", plain=True)
        assert equal(item | new, to_api(row, SCORE_V3))


@pytest.mark.parametrize("item", [{}, {"id": None}, {"id": 5}, {"id": ["t"]}, {"name": "n"}])
def test_an_object_without_a_usable_id_is_refused(item: dict[str, Any]) -> None:
    for shape in (TRACE, SESSION):
        with pytest.raises(RowError, match=shape.table):
            from_api(item, shape, project_id="p", read_from="traces", plain=True)


def test_a_row_belongs_to_the_project_that_was_asked() -> None:
    for project in ("p", "other", None, 5):
        item = trace(projectId=project)
        row = row_of(item)

        assert row["project_id"] == "p"
        assert (row["exact"] is None) == (project == "p")
        assert equal(item, to_api(row, TRACE))


def test_an_observation_without_a_trace_is_stored_under_the_empty_id() -> None:
    for trace_id in (None, "", "t"):
        stream = STREAMS["observations"]
        item = {field.api: None for field in stream.shape.fields} | {"id": "o", "projectId": "p", "traceId": trace_id}
        row = to_row(item, stream)

        assert (trace_id or "") == row["trace_id"]
        assert equal(item, to_item(row, stream))


def test_columns_show_the_nearest_thing_to_what_they_cannot_hold() -> None:
    row = row_of(
        trace(
            id="a\x00b", name="\ud800!", userId=5, sessionId={"a": "\x00"}, bookmarked="yes",
            timestamp="2026-11-08T01:02:03.123999+02:00", createdAt="0001-01-01T00:00:00.000Z", input="\x00",
            new="\x00",
        )
    )  # fmt: skip

    wanted = {
        "id": "a\\u0000b", "name": "\\ud800!", "user_id": "5", "session_id": '{"a":"\\\\u0000"}', "bookmarked": None,
        "timestamp": "2026-11-07T23:02:03.123Z", "created_at": None, "input": '"\\\\u0000"',
        "extra": '{"new":"\\\\u0000"}',
    }  # fmt: skip
    assert wanted == {name: row[name] for name in wanted}


def test_fields_that_were_not_requested_are_no_columns_of_the_row() -> None:
    core = STREAMS["traces without contents"].shape
    row = from_api(trace(input="x"), core, project_id="p", read_from="traces", plain=True)

    assert not {"input", "output", "metadata", "latency", "total_cost"} & set(row)
    assert "input" not in to_api(row, core)


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("2026-11-08T01:02:03.004Z", "2026-11-08T01:02:03.004Z"),
        ("2026-11-08T01:02:03Z", "2026-11-08T01:02:03.000Z"),
        ("2026-11-08T01:02:03.9999Z", "2026-11-08T01:02:03.999Z"),
        ("2026-11-08T01:02:03.123456+05:30", "2026-11-07T19:32:03.123Z"),
        ("2026-11-08T01:02:03", None),
        ("2026-11-08", None),
        ("", None),
        ("yesterday", None),
        ("2026-02-30T00:00:00Z", None),
        ("0001-01-01T00:00:00Z", None),
        ("9999-12-31T23:59:59Z", None),
        ("\x00", None),
        ("\ud800", None),
    ],
)
def test_an_instant_has_one_spelling(text: str, instant: str | None) -> None:
    assert instant == canonical_instant(text)


@given(first=hostile_items("traces"), second=hostile_items("traces without contents"))
@few
def test_what_a_lighter_reading_leaves_out_keeps_its_exact_values(first: Any, second: Any) -> None:
    (whole,), (seen,) = first, second
    core = STREAMS["traces without contents"]
    stored, light = to_row(whole, STREAMS["traces"], "p"), to_row(seen | {"id": whole["id"]}, core, "p")
    after = stored | light | {"exact": merged_exact(light["exact"], stored["exact"], set(light))}
    contents = ("input", "output", "metadata")
    wanted = {name: value for name, value in whole.items() if name in contents} | {
        name: value for name, value in seen.items() if name not in contents
    }

    assert equal(wanted | {"id": whole["id"]}, to_api(after, TRACE))
