"""Filters of the configuration: which traces are copied, and what comes with them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from syncing import Row, rows, sync

from etl.demo import Dataset, MockLangfuse, generate

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def dataset() -> Dataset:
    return generate(traces=150, days=2, observations_per_trace=2, io_bytes=200, end=NOW - timedelta(minutes=3))


def selected(data: Dataset, filters: dict[str, Any]) -> set[str]:
    """What the filters mean, computed here."""
    fields = {"name": "name", "userId": "userId", "sessionId": "sessionId", "version": "version", "release": "release"}

    def fits(row: Row) -> bool:
        for name, value in filters.items():
            if name == "environment" and row["environment"] not in value:
                return False
            if name == "tags" and not set(value) <= set(row["tags"]):
                return False
            if name in fields and row[fields[name]] != value:
                return False
        return True

    return {row["id"] for row in data.traces() if fits(row)}


def assert_just_these(engine: Engine, data: Dataset, ids: set[str]) -> None:
    """Those traces, and all observations and scores that belong to them, and no others."""
    assert ids == {row["id"] for row in rows(engine, "traces")}
    of_ids = {(row["traceId"], row["id"]) for row in data.observations() if row["traceId"] in ids}
    assert of_ids == {(row["trace_id"], row["id"]) for row in rows(engine, "observations")}
    assert {row["id"] for row in data.scores() if row["traceId"] in ids} == {r["id"] for r in rows(engine, "scores")}


def some(data: Dataset, field: str) -> str:
    """A value that some traces have and others have not."""
    values = [row[field] for row in data.traces() if row[field]]
    return str(max(set(values), key=values.count))


@pytest.mark.parametrize("name", ["environment", "tags", "name", "userId", "sessionId", "version", "release"])
def test_a_filter_copies_just_the_traces_it_selects_and_what_is_theirs(engine: Engine, name: str) -> None:
    data = dataset()
    value: Any = some(data, name) if name != "tags" else next(row["tags"][0] for row in data.traces() if row["tags"])
    filters = {name: [value] if name in ("environment", "tags") else value}
    with MockLangfuse(data) as server:
        report = sync(engine, server, now=NOW, filters=filters)
    ids = selected(data, filters)
    assert (report.status, 0 < len(ids) < 150) == ("ok", True)
    assert_just_these(engine, data, ids)


def test_the_json_filter_is_sent_as_it_is(engine: Engine) -> None:
    data = dataset()
    user = some(data, "userId")
    condition = {"type": "string", "column": "userId", "operator": "=", "value": user}
    with MockLangfuse(data) as server:
        assert sync(engine, server, now=NOW, filters={"filter": [condition]}).status == "ok"
    assert_just_these(engine, data, selected(data, {"userId": user}))


def test_a_tag_with_a_comma_is_asked_for_as_one(engine: Engine) -> None:
    data = dataset()
    first, second, third, *_ = data.traces()
    data.put_trace(first | {"tags": ["a,b"]})
    data.put_trace(second | {"tags": ["a", "b"]})
    data.put_trace(third | {"tags": ["a,b", "c"]})
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW, filters={"tags": ["a,b"]})
    assert_just_these(engine, data, {first["id"], third["id"]})


def test_a_trace_that_is_selected_later_comes_with_all_that_was_read_before(engine: Engine) -> None:
    data = dataset()
    trace = max(
        (row for row in data.traces() if row["environment"] != "production" and row["observations"]),
        key=lambda row: row["timestamp"],
    )
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW, filters={"tags": ["picked"]})
        assert rows(engine, "observations") == []
        data.put_trace(trace | {"tags": ["picked"]})
        for minutes in (30, 200, 1500, 3000):
            sync(engine, server, now=NOW + timedelta(minutes=minutes), filters={"tags": ["picked"]})
    assert_just_these(engine, data, {trace["id"]})


def test_another_filter_is_new_coverage_and_takes_nothing_away(engine: Engine) -> None:
    data = dataset()
    first, second = some(data, "environment"), "development"
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW, filters={"environment": [first]})
        before = {row["id"] for row in rows(engine, "traces")}
        for minutes in (30, 60, 90, 120, 200):
            sync(engine, server, now=NOW + timedelta(minutes=minutes), filters={"environment": [second]})
        after = rows(engine, "traces")
    assert before <= {row["id"] for row in after}
    assert {None} == {row["deleted_at"] for row in after}
    assert selected(data, {"environment": [first, second]}) == {row["id"] for row in after}
