"""What follows from observations, by the server's own rules."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from as_read import as_read
from hypothesis import given
from hypothesis import strategies as st

import etl.demo
from etl.transform.derive import Metrics, Span, metrics, session, whole_trace
from etl.transform.fields import TRACE_V2
from etl.transform.pages import Kind, rows_of
from etl.transform.rows import Row, to_api

DATA = Path(etl.demo.__file__).parent / "data"
PROJECT = "proj-shop"
Item = dict[str, Any]


@cache
def corpus(name: str) -> list[Item]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rb") as file:
        return [json.loads(line) for line in file]


def of_traces(items: list[Item]) -> dict[str, list[Item]]:
    found: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        if item["id"] != f"t-{item['traceId']}":
            found[item["traceId"]].append(item)
    return found


def row_of(item: Item) -> Row:
    return rows_of(Kind.OBSERVATION_V2, as_read([item]), project_id=PROJECT, contents=True)["observations"][0]


def part(id_: str, **changes: Any) -> Row:
    """An observation as it is stored; times are seconds of one minute."""
    item = {
        "id": id_, "traceId": "t", "projectId": PROJECT, "parentObservationId": "p", "type": "SPAN", "name": id_,
        "createdAt": 30, "updatedAt": 30, "startTime": 10, "endTime": None, "environment": "", "metadata": {},
        "input": None, "output": None, "userId": "", "sessionId": "", "traceName": None, "release": "", "version": "",
        "tags": [], "bookmarked": False, "public": False,
    } | changes  # fmt: skip
    for name in ("createdAt", "updatedAt", "startTime"):
        item[name] = f"2026-11-01T00:00:{item[name]:02}.000Z"
    return row_of(item)


def derived(*parts: Mapping[str, Any]) -> Item:
    return to_api(whole_trace(PROJECT, "t", parts), TRACE_V2)


def test_every_recorded_trace_has_the_metrics_of_its_observations() -> None:
    observations = of_traces(corpus("observations_v1"))
    for trace in corpus("traces"):
        spans = [
            Span(
                datetime.fromisoformat(one["startTime"]),
                datetime.fromisoformat(one["endTime"]) if one["endTime"] else None,
                one["calculatedTotalCost"],
            )
            for one in observations[trace["id"]]
        ]
        assert metrics(spans) == Metrics(trace["latency"], trace["totalCost"])


def test_recorded_traces_can_be_told_from_their_observations_alone() -> None:
    """What the server copied from the trace into its observations comes back from them."""
    observations, checked = of_traces(corpus("observations_v2")), 0
    for trace in corpus("traces"):
        if not observations[trace["id"]]:
            continue
        checked += 1
        row = to_api(whole_trace(PROJECT, trace["id"], [row_of(o) for o in observations[trace["id"]]]), TRACE_V2)
        for name in ("id", "environment", "release", "sessionId", "tags", "userId", "public"):
            assert row[name] == trace[name], (trace["id"], name)
        if trace["name"]:  # else the name of the root
            assert row["name"] == trace["name"]
    assert checked == 983


def test_the_newest_observation_that_has_a_value_gives_it() -> None:
    trace = derived(
        part("a", updatedAt=31, userId="old", sessionId="s", release="r1", tags=["x"], version="1", traceName="old"),
        part("b", updatedAt=33, userId="new", environment="prod", traceName="new"),
        part("c", updatedAt=35, release="r2", tags=["y", "z"]),
    )
    assert (trace["userId"], trace["sessionId"], trace["release"]) == ("new", "s", "r2")
    assert (trace["tags"], trace["version"], trace["environment"]) == (["y", "z"], "1", "prod")
    assert trace["name"] == "new"


def test_of_two_as_new_the_later_start_decides_then_the_larger_id() -> None:
    assert derived(part("a", startTime=12, userId="late"), part("b", startTime=11, userId="early"))["userId"] == "late"
    assert derived(part("b", userId="larger"), part("a", userId="smaller"))["userId"] == "larger"


def test_the_root_gives_contents_and_bookmark_and_a_name_if_nothing_else_does() -> None:
    root = part("root", parentObservationId=None, input='{"q":1}', output="text", metadata={"a": 1}, bookmarked=True)
    trace = derived(part("child", input="not this", updatedAt=40), root)
    assert (trace["input"], trace["output"], trace["metadata"]) == ({"q": 1}, "text", {"a": 1})
    assert trace["bookmarked"] is True
    assert trace["name"] == "root"


def test_of_two_roots_the_newer_one_counts() -> None:
    old = part("r1", parentObservationId=None, updatedAt=31, input="old", bookmarked=True)
    new = part("r2", parentObservationId=None, updatedAt=32, input="new")
    trace = derived(new, old)
    assert (trace["input"], trace["name"], trace["bookmarked"]) == ("new", "r2", False)


def test_without_a_root_there_are_no_contents() -> None:
    trace = derived(part("child", input="not this", metadata={"not": "this"}, bookmarked=True))
    assert (trace["input"], trace["output"], trace["metadata"]) == (None, None, {})
    assert (trace["name"], trace["bookmarked"]) == (None, False)


def test_a_root_below_the_span_of_its_trace_is_a_root() -> None:
    assert derived(part("root", parentObservationId="t-t", input="this"))["input"] == "this"


def test_times_and_public() -> None:
    trace = derived(
        part("a", startTime=12, createdAt=33, updatedAt=34), part("b", startTime=11, createdAt=35, updatedAt=35),
        part("c", startTime=20, createdAt=32, updatedAt=32, public=True),
    )  # fmt: skip
    assert trace["timestamp"] == "2026-11-01T00:00:11.000Z"
    assert trace["createdAt"] == "2026-11-01T00:00:32.000Z"
    assert trace["updatedAt"] == "2026-11-01T00:00:35.000Z"
    assert trace["public"] is True


def test_values_that_no_column_holds_go_with_the_observation_they_are_from() -> None:
    root = part("r", parentObservationId=None, input='"a\\u0000b"', metadata={"big": 2**70}, traceName="\ud800")
    other = part("o", userId="u\x00", updatedAt=31)
    trace = derived(root, other)
    assert trace["input"] == "a\x00b"
    assert trace["metadata"] == {"big": 2**70}
    assert trace["name"] == "\ud800"
    assert trace["userId"] == "u\x00"
    assert whole_trace(PROJECT, "t", [part("r", parentObservationId=None)])["exact"] is None


def test_the_hash_moves_with_the_contents() -> None:
    root = part("r", parentObservationId=None, input="a")
    before = whole_trace(PROJECT, "t", [root])["content_hash"]
    assert whole_trace(PROJECT, "t", [root, part("c")])["content_hash"] == before
    for other in (
        [part("r", parentObservationId=None, input="b")],
        [root, part("c", userId="u")],
        [root, part("c", startTime=9)],
    ):
        assert whole_trace(PROJECT, "t", other)["content_hash"] != before


@given(st.permutations([
    part("a", userId="x", parentObservationId=None), part("b", userId="y", tags=["t"]), part("c", startTime=3),
    part("d", updatedAt=50, sessionId="s"), part("e", parentObservationId=None, input="1"),
]))  # fmt: skip
def test_the_order_of_the_observations_does_not_matter(parts: list[Row]) -> None:
    in_order = sorted(parts, key=lambda one: str(one["id"]))
    assert whole_trace(PROJECT, "t", parts) == whole_trace(PROJECT, "t", in_order)


@pytest.mark.parametrize("environment", ["prod", None])
def test_a_session_that_only_its_traces_tell_of(environment: str | None) -> None:
    row = session(PROJECT, "s", environment)
    assert (row["id"], row["environment"], row["created_at"]) == ("s", environment, None)
    assert row["read_from"] == "observations"
