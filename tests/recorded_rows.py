"""The recorded rows as a real server answered them, and objects that no server should send."""

from __future__ import annotations

import functools
import gzip
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from json_values import any_json, any_text

from etl.transform import scores
from etl.transform.fields import OBSERVATION, SCORE_LEGACY, SCORE_V3, SESSION, TRACE, Field, Kind, Shape
from etl.transform.jsontext import dumps, parse
from etl.transform.rows import Row, from_api, to_api

Item = dict[str, Any]
TRACE_CORE = TRACE.without("input", "output", "metadata")
_HERE = Path(__file__).parent


class Stream(NamedTuple):
    """Where rows were recorded, and how they are stored."""

    file: str
    shape: Shape
    read_from: str = "traces"
    v3: bool = False


STREAMS = {
    "traces": Stream("traces", TRACE),
    "traces without contents": Stream("traces", TRACE_CORE),
    "observations": Stream("observations_v1", OBSERVATION),
    "scores of v2": Stream("scores_v2", SCORE_LEGACY),
    "scores of v3": Stream("scores_v3", SCORE_V3, read_from="observations", v3=True),
    "sessions": Stream("sessions", SESSION),
}


@functools.cache
def recorded(file: str) -> list[Item]:
    inside = resources.files("etl.demo") / "data" / f"{file}.jsonl.gz"
    path = inside if inside.is_file() else _HERE / "demo" / "data" / f"{file}.jsonl.gz"
    return [parse(line).value for line in gzip.decompress(path.read_bytes()).splitlines()]


def to_row(item: Mapping[str, Any], stream: Stream, project_id: str | None = None, *, plain: bool = True) -> Row:
    """The row of `item` as it comes off the wire: written, parsed, and stored with what the parser says of it.

    `plain` is false for an object that has odd ones beside it on its page.
    """
    value, is_plain = parse(dumps(item).encode())
    flat = scores.flatten(value) if stream.v3 else value
    own = item.get("projectId")
    project_id = project_id or (own if isinstance(own, str) else "p")
    return from_api(flat, stream.shape, project_id=project_id, read_from=stream.read_from, plain=plain and is_plain)


def to_item(row: Mapping[str, Any], stream: Stream) -> Item:
    item = to_api(row, stream.shape)
    return scores.unflatten(item) if stream.v3 else item


def kept(item: Mapping[str, Any], shape: Shape) -> Item:
    """The part of `item` that is stored at all."""
    return {name: value for name, value in item.items() if name not in shape.ignored}


_TARGETS = {
    "trace": ("id",),
    "observation": ("id", "traceId"),
    "session": ("id",),
    "experiment": ("id",),
}
_INSTANTS = [
    "2026-11-08T00:00:00.000Z", "1970-01-01T00:00:00.000Z", "0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z",
    "2026-11-08T01:02:03.123456Z", "2026-11-08T01:02:03+02:00", "2026-11-08T01:02:03", "2026-13-08T00:00:00.000Z",
    "2026-11-08", "20261108T000000Z", "0002-01-01T00:00:00.000+14:00", "",
]  # fmt: skip


def _right(field: Field) -> st.SearchStrategy[Any]:
    if field.kind is Kind.TEXT:
        return any_text()
    if field.kind is Kind.INSTANT:
        return st.sampled_from(_INSTANTS)
    if field.kind is Kind.NUMBER:
        return st.floats(allow_nan=False, allow_infinity=False) | st.integers()
    if field.kind is Kind.INTEGER:
        return st.integers() | st.sampled_from([2**63 - 1, 2**63, -(2**63), -(2**63) - 1])
    return st.booleans() if field.kind is Kind.FLAG else any_json(max_leaves=4)


@functools.cache
def hostile_items(name: str, most: int = 1) -> st.SearchStrategy[list[Item]]:
    """One to `most` objects with fields missing, null, of a wrong type or beyond their range, and unknown ones."""
    stream = STREAMS[name]
    shape = stream.shape
    known = {field.api: st.none() | _right(field) | any_json(max_leaves=3) for field in shape.fields}
    known = {name: values for name, values in known.items() if name != "id"}
    if stream.v3:
        known = {name: v for name, v in known.items() if name not in (*_FLAT, "dataType")} | {
            "dataType": st.sampled_from(["NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT", "CORRECTION", None, 1]),
            "value": st.none() | st.booleans() | st.integers(-2, 2) | any_text() | any_json(max_leaves=3),
            "subject": st.none() | any_json(max_leaves=3) | _subjects(),
        }
    names = set(known) | set(shape.known) | set(_FLAT if stream.v3 else ())
    unknown = st.dictionaries(any_text().filter(lambda name: name not in names), any_json(max_leaves=3), max_size=2)
    chosen = st.lists(st.sampled_from(sorted(known)), max_size=8, unique=True).flatmap(
        lambda picked: st.fixed_dictionaries({name: known[name] | st.just(_LEFT_OUT) for name in picked})
    )
    items = st.builds(
        lambda key, nothing, values, more: {
            name: value for name, value in ({"id": key} | nothing | values | more).items() if value is not _LEFT_OUT
        },
        any_text(),
        st.sampled_from([dict.fromkeys(known), {}]),
        chosen,
        unknown,
    )
    return st.lists(items, min_size=1, max_size=most)


_LEFT_OUT = object()
_FLAT = ("stringValue", "traceId", "observationId", "sessionId", "datasetRunId")


def _subjects() -> st.SearchStrategy[Item]:
    ids = any_text() | st.none() | st.integers()
    kinds = st.sampled_from([*_TARGETS, "new kind"])
    return kinds.flatmap(
        lambda kind: st.fixed_dictionaries(
            {"kind": st.just(kind)} | dict.fromkeys(_TARGETS.get(kind, ("id",)), ids),
            optional={"label": any_text()},
        )
    )
