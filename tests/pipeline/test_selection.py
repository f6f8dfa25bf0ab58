"""Filters of the configuration: which traces are copied, and what comes with them."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from syncing import Row, project, rows, sync, sync_all

from etl.config import Config
from etl.demo import Dataset, MockLangfuse, generate
from etl.demo.endpoints.context import Request
from etl.service.backfill import plan_backfill
from etl.settings import Http, Sync

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


def test_children_are_completed_in_a_run_that_reads_only_traces(engine: Engine) -> None:
    data = dataset()
    trace = max((row for row in data.traces() if row["observations"]), key=lambda row: row["timestamp"])
    with MockLangfuse(data) as server:
        sync(engine, server, now=NOW, filters={"tags": ["picked"]})
        data.put_trace(trace | {"tags": ["picked"]})
        only = [project(server, filters={"tags": ["picked"]})]
        sync_all(engine, only, now=NOW + timedelta(minutes=30), streams=["traces"])
    assert_just_these(engine, data, {trace["id"]})


def test_a_trace_that_is_selected_later_brings_no_stream_that_is_switched_off(database: Engine) -> None:
    data = dataset()
    trace = max((row for row in data.traces() if row["observations"]), key=lambda row: row["timestamp"])
    settings: dict[str, Any] = {"filters": {"tags": ["picked"]}, "streams": ("traces", "scores")}
    with MockLangfuse(data) as server:
        sync(database, server, now=NOW, **settings)
        data.put_trace(trace | {"tags": ["picked"]})
        sync(database, server, now=NOW + timedelta(minutes=30), **settings)
    (stored,) = rows(database, "traces")
    assert (stored["id"], stored["latency"]) == (trace["id"], trace["latency"])
    assert rows(database, "observations") == []
    assert {row["id"] for row in data.scores() if row["traceId"] == trace["id"]} == {
        row["id"] for row in rows(database, "scores")
    }


# On a server with only the observations API, where filters select rows


@pytest.mark.parametrize("name", ["environment", "tags", "name", "userId", "sessionId", "version"])
def test_on_v4_a_filter_copies_the_same_traces(database: Engine, name: str) -> None:
    data = dataset()
    value: Any = some(data, name) if name != "tags" else next(row["tags"][0] for row in data.traces() if row["tags"])
    filters = {name: [value] if name in ("environment", "tags") else value}
    with MockLangfuse(data, api="v4") as server:
        report = sync(database, server, now=NOW, filters=filters)
        lists = [request.query for request in server.requests if request.path.endswith("/v2/observations")]
    ids = selected(data, filters)
    assert (report.status, 0 < len(ids) < 150) == ("ok", True)
    assert_just_these(database, data, ids)
    # The bisection for the oldest row and the probe come without a filter.
    assert all("filter" in query for query in lists if query["limit"] != ["1"])


def event(trace_id: str, id_: str, minutes: float, **changes: Any) -> Row:
    at = (NOW - timedelta(minutes=minutes)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    given = {"parentObservationId": "root", "createdAt": at, "updatedAt": at, "environment": "default"}
    return {"id": id_, "traceId": trace_id, "startTime": at, "type": "SPAN", **given, **changes}


def native() -> Dataset:
    """Traces whose rows do not all say what the trace is."""
    data = Dataset()
    data.put_event(event("a", "root", 50, parentObservationId=None, userId="u", name="job", metadata={"tier": "gold"}))
    data.put_event(event("a", "child", 49, metadata={"tier": "lead"}))
    data.put_event(event("b", "root", 40, parentObservationId=None, traceName="other", name="job"))
    data.put_event(event("b", "child", 30, userId="u", metadata={"tier": "gold"}))
    data.put_event(event("c", "root", 20, parentObservationId=None, name="else", traceName="job", tags=["x", "y"]))
    data.put_event(event("c", "child", 19, name="job"))
    data.put_score(
        {"id": "score-b", "traceId": "b", "name": "s", "value": 1, "timestamp": event("b", "", 10)["startTime"]}
    )
    return data


def condition(kind: str, column: str, operator: str, value: Any, **more: str) -> dict[str, Any]:
    """A filter of one condition."""
    return {"filter": [{"type": kind, "column": column, "operator": operator, "value": value, **more}]}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"userId": "u"}, {"a", "b"}),
        ({"name": "job"}, {"a", "c"}),
        ({"name": "job", "userId": "u"}, {"a"}),
        ({"tags": ["x", "y"]}, {"c"}),
        (condition("stringObject", "metadata", "=", "gold", key="tier"), {"a"}),
        (condition("categoryOptions", "metadata", "any of", ["gold", "lead"], key="tier"), {"a"}),
        (condition("stringOptions", "tags", "any of", ["y", "z"]), {"c"}),
        (condition("string", "name", "starts with", "j"), {"a", "c"}),
        (condition("stringOptions", "id", "any of", ["b", "z"]), {"b"}),
        ({"environment": ["none such"]}, set()),
    ],
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:40],
)  # fmt: skip
def test_on_v4_a_trace_is_selected_by_a_row_and_comes_whole(
    database: Engine, filters: dict[str, Any], expected: set[str]
) -> None:
    with MockLangfuse(native(), api="v4") as server:
        assert sync(database, server, now=NOW, filters=filters).status == "ok"
    assert {row["id"] for row in rows(database, "traces")} == expected
    children = {(row["trace_id"], row["id"]) for row in rows(database, "observations")}
    assert children == {(trace_id, id_) for trace_id in expected for id_ in ("root", "child")}
    assert {row["trace_id"] for row in rows(database, "scores")} == expected & {"b"}


def test_on_v4_later_rows_come_with_the_selected_one_that_shows_them(database: Engine) -> None:
    data = native()
    filters = {"userId": "u"}
    with MockLangfuse(data, api="v4") as server:
        sync(database, server, now=NOW, filters=filters)
        data.put_event(event("a", "late", 48))
        data.put_event(event("a", "root", 50, parentObservationId=None, userId="u", name="job", updatedAt=LATER))
        data.put_event(event("c", "picked", 18, userId="u"))
        assert sync(database, server, now=NOW + timedelta(minutes=200), filters=filters).status == "ok"
        before = rows(database, "observations")
        server.requests.clear()
        assert sync(database, server, now=NOW + timedelta(minutes=205), filters=filters).total("rows_written") == 0
        assert len([r for r in server.requests if r.path.endswith("/v2/observations")]) <= 2, "nothing to complete"
    assert rows(database, "observations") == before
    assert {row["id"] for row in before if row["trace_id"] == "a"} == {"root", "child", "late"}
    assert {row["id"] for row in before if row["trace_id"] == "c"} == {"root", "child", "picked"}


LATER = (NOW + timedelta(minutes=1)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_on_v4_a_trace_whose_completion_failed_is_completed_by_the_next_run(database: Engine) -> None:
    data = native()
    for number in range(1_500):  # more than a page, so that a part of it is stored before the failure
        data.put_event(event("a", f"step-{number}", 45, metadata={}))
    filters = {"userId": "u"}
    broken = threading.Event()

    def break_second_page(request: Request) -> None:
        if "cursor" in request.params and not broken.is_set():
            broken.set()
            server.faults.add("status", path="/v2/observations", status=400)

    with MockLangfuse(data, api="v4") as server:
        server.before_answer = break_second_page
        assert sync(database, server, now=NOW, filters=filters).status == "failed"
        assert 0 < len([row for row in rows(database, "observations") if row["trace_id"] == "a"]) < 1_502
        assert sync(database, server, now=NOW + timedelta(minutes=5), filters=filters).status == "ok"
    assert len([row for row in rows(database, "observations") if row["trace_id"] == "a"]) == 1_502


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ({"release": "v1"}, "release: its rows have no release"),
        ({"userId": ""}, "userId: an empty userId would select every trace"),
        (condition("number", "latency", ">", 1), "filter[0]: its rows have no latency"),
        (condition("arrayOptions", "tags", "none of", ["x"]), "filter[0]: 'none of' would"),
        (condition("null", "userId", "is null", ""), "filter[0]: 'is null' would"),
    ],
)  # fmt: skip
def test_on_v4_filters_that_its_api_cannot_answer_are_refused_with_the_reason(
    database: Engine, filters: dict[str, Any], said: str
) -> None:
    with MockLangfuse(native(), api="v4") as server:
        report = sync(database, server, now=NOW, filters=filters)
    assert (report.status, report.exit_code) == ("failed", 3)
    assert said in (report.error or "")
    assert rows(database, "traces") == []


def test_on_v4_an_environment_hides_rows_and_deletes_none(database: Engine) -> None:
    data = native()
    data.put_event(event("a", "elsewhere", 45, environment="other"))
    filters = {"environment": ["default"]}
    with MockLangfuse(data, api="v4") as server:
        for hours in (0, 1, 2, 4, 8):
            assert sync(database, server, now=NOW + timedelta(hours=hours), filters=filters).status == "ok"
        assert {row["deleted_at"] for row in rows(database, "observations")} == {None}
        data.delete_trace("c")
        for hours in (26, 28, 30):
            assert sync(database, server, now=NOW + timedelta(hours=hours), filters=filters).status == "ok"
    assert {row["trace_id"] for row in rows(database, "observations") if row["deleted_at"]} == {"c"}
    assert {row["id"] for row in rows(database, "traces") if row["deleted_at"]} == {"c"}


def test_on_v4_a_plan_counts_what_completing_takes(database: Engine) -> None:
    end = datetime(2026, 11, 20, 12, tzinfo=UTC)  # before the machine's clock
    data = generate(traces=150, days=2, observations_per_trace=2, io_bytes=200, end=end)
    filters = {"environment": ["production"]}
    with MockLangfuse(data, api="v4") as server:
        for streams, rows_known in ((["traces", "observations"], True), (["traces", "observations", "scores"], False)):
            config = Config(
                projects=(project(server, filters=filters, streams=streams),), sync=Sync(),
                http=Http(timeout="5s", give_up_after="20s"),
            )  # fmt: skip
            _, found = plan_backfill(config, database, projects=config.projects, start=end - timedelta(days=3), end=end)
            (estimate,) = found.values()
            ids = selected(data, filters)
            assert estimate.selected_traces == len(ids)
            assert estimate.completing_requests == 2 * -(-len(ids) // 20)
            assert (estimate.rows is not None) is rows_known
        assert all("io" not in str(request.query.get("fields")) for request in server.requests)
