"""The views for people, against the same numbers computed in Python."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from operator import itemgetter
from typing import Any

import pytest
from database_looks import Pair, instant, scratch, view
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm
from recorded_rows import STREAMS, recorded, to_row
from sqlalchemy import select, update

from etl.load.engine import reading, schema_of
from etl.load.tables import ROW_TABLES
from etl.load.upsert import upsert
from etl.transform.fields import TRACE_DOCUMENT

Item = dict[str, Any]
COLUMNS = {
    "trace_summary": "project_id trace_id timestamp name session_id user_id environment release version latency"
    " total_cost observations generations errors input_tokens output_tokens total_tokens scores",
    "session_summary": "project_id session_id first_timestamp last_timestamp duration traces users observations errors"
    " total_tokens total_cost",
    "daily_usage": "project_id day model calls input_tokens output_tokens total_tokens total_cost",
    "sync_coverage": "project_id stream range_start range_end state read_at",
    "daily_cost": "project_id day trace_name user_id session_id trace_id model calls input_tokens output_tokens"
    " total_tokens total_cost",
    "latency_daily": "project_id day scope name count errors latency_p50 latency_p95 latency_p99 first_token_p50"
    " first_token_p95 first_token_p99",
    "user_summary": "project_id user_id first_timestamp last_timestamp sessions traces observations errors"
    " total_tokens total_cost",
    "score_summary": "project_id day name source data_type category scores average minimum maximum",
    "error_observations": "project_id start_time trace_id observation_id type name model status_message environment"
    " latency trace_name session_id user_id",
    "prompt_version_stats": "project_id prompt_name prompt_version first_used last_used calls errors input_tokens"
    " output_tokens total_tokens total_cost average_cost latency_p50 latency_p95 latency_p99 first_token_p50"
    " first_token_p95 first_token_p99",
}
PERCENTS = (50, 95, 99)


def total(items: Iterable[Item], field: str) -> int:
    """Whole numbers are added exactly, as far as 64 bits go."""
    return max(-(2**63), min(2**63 - 1, sum(item.get(field) or 0 for item in items)))


def tokens(items: Iterable[Item]) -> Item:
    items = list(items)
    fields = {"input_tokens": "promptTokens", "output_tokens": "completionTokens", "total_tokens": "totalTokens"}
    return {name: total(items, field) for name, field in fields.items()}


def ranks(name: str, values: Iterable[float | None]) -> Item:
    """Nearest rank: the smallest value that at least so many percent of the values do not exceed."""
    known = sorted(value for value in values if value is not None)
    return {f"{name}_p{p}": known[math.ceil(p * len(known) / 100) - 1] if known else None for p in PERCENTS}


def grouped(items: Iterable[Item], *keys: Callable[[Item], Any]) -> dict[tuple[Any, ...], list[Item]]:
    found: dict[tuple[Any, ...], list[Item]] = defaultdict(list)
    for item in items:
        found[tuple(key(item) for key in keys)].append(item)
    return found


def failed(item: Item) -> bool:
    return bool(item["level"] == "ERROR")


def day_of(item: Item) -> str:
    return str(item.get("startTime", item.get("timestamp")))[:10]


def cost(items: Iterable[Item], field: str) -> float:
    """Costs have 12 decimal places, and are added as decimals."""
    whole = sum((Decimal(repr(float(item[field]))) for item in items if item.get(field) is not None), Decimal(0))
    return float(round(whole, 12))


def summaries(traces: list[Item], observations: list[Item], scores: list[Item]) -> dict[str, list[Item]]:
    """All views over these objects, which are none of the deleted ones, in no order."""
    parts, marks = grouped(observations, itemgetter("traceId")), grouped(scores, itemgetter("traceId"))
    trace_of = {item["id"]: item for item in traces}
    nothing = dict.fromkeys(("name", "userId", "sessionId"))

    def parts_of(items: Iterable[Item]) -> list[Item]:
        return [part for item in items for part in parts.get((item["id"],), [])]

    def owner(item: Item) -> Item:
        trace = trace_of.get(item["traceId"], nothing)
        return {"trace_name": trace["name"], "user_id": trace["userId"], "session_id": trace["sessionId"]}

    def span(items: list[Item], field: str) -> tuple[str, str]:
        return min(item[field] for item in items), max(item[field] for item in items)

    calls = [item for item in observations if item["model"] is not None]
    prompted = [item for item in observations if item["promptName"] is not None]
    found: dict[str, list[Item]] = defaultdict(list)
    for t in traces:
        mine = parts.get((t["id"],), [])
        found["trace_summary"].append(
            {
                "project_id": "p",
                "trace_id": t["id"],
                "timestamp": t["timestamp"],
                "name": t["name"],
                "session_id": t["sessionId"],
                "user_id": t["userId"],
                "environment": t["environment"],
                "release": t["release"],
                "version": t["version"],
                "latency": t["latency"],
                "total_cost": t["totalCost"],
                "observations": len(mine),
                "generations": sum(o["type"] == "GENERATION" for o in mine),
                "errors": sum(map(failed, mine)),
                **tokens(mine),
                "scores": len(marks.get((t["id"],), [])),
            }
        )
    for (session,), members in grouped(traces, itemgetter("sessionId")).items():
        if session is not None:
            mine, (first, last) = parts_of(members), span(members, "timestamp")
            found["session_summary"].append(
                {
                    "project_id": "p",
                    "session_id": session,
                    "first_timestamp": first,
                    "last_timestamp": last,
                    "duration": duration(members),
                    "traces": len(members),
                    "users": len({t["userId"] for t in members} - {None}),
                    "observations": len(mine),
                    "errors": sum(map(failed, mine)),
                    "total_tokens": total(mine, "totalTokens"),
                    "total_cost": cost(members, "totalCost"),
                }
            )
    for (user,), members in grouped(traces, itemgetter("userId")).items():
        if user is not None:
            mine, (first, last) = parts_of(members), span(members, "timestamp")
            found["user_summary"].append(
                {
                    "project_id": "p",
                    "user_id": user,
                    "first_timestamp": first,
                    "last_timestamp": last,
                    "sessions": len({t["sessionId"] for t in members} - {None}),
                    "traces": len(members),
                    "observations": len(mine),
                    "errors": sum(map(failed, mine)),
                    "total_tokens": total(mine, "totalTokens"),
                    "total_cost": cost(members, "totalCost"),
                }
            )
    for (day, model), uses in grouped(calls, day_of, itemgetter("model")).items():
        found["daily_usage"].append(
            {"project_id": "p", "day": day, "model": model, "calls": len(uses), **tokens(uses)}
            | {"total_cost": cost(uses, "calculatedTotalCost")}
        )
    for (day, trace_id, model), uses in grouped(calls, day_of, itemgetter("traceId"), itemgetter("model")).items():
        found["daily_cost"].append(
            {"project_id": "p", "day": day, **owner(uses[0]), "trace_id": trace_id or None, "model": model}
            | {"calls": len(uses), **tokens(uses), "total_cost": cost(uses, "calculatedTotalCost")}
        )

    def latencies(scope: str, items: list[Item], name: Callable[[Item], Any], is_error: Callable[[Item], bool]) -> None:
        for (day, title), members in grouped(items, day_of, name).items():
            found["latency_daily"].append(
                {
                    "project_id": "p",
                    "day": day,
                    "scope": scope,
                    "name": title,
                    "count": len(members),
                    "errors": sum(map(is_error, members)),
                    **ranks("latency", (item["latency"] for item in members)),
                    **ranks("first_token", (item.get("timeToFirstToken") for item in members)),
                }
            )

    def has_error(trace: Item) -> bool:
        return any(map(failed, parts_of([trace])))

    latencies("traces", traces, lambda _: None, has_error)
    latencies("trace_name", traces, itemgetter("name"), has_error)
    latencies("calls", calls, lambda _: None, failed)
    latencies("model", calls, itemgetter("model"), failed)

    def category(score: Item) -> Any:
        return score["stringValue"] if score["dataType"] == "CATEGORICAL" else None

    keys = (day_of, itemgetter("name"), itemgetter("source"), itemgetter("dataType"), category)
    for key, members in grouped(scores, *keys).items():
        values = [Fraction(item["value"]) for item in members if item.get("value") is not None]
        found["score_summary"].append(
            {"project_id": "p"}
            | dict(zip(("day", "name", "source", "data_type", "category"), key, strict=True))
            | {
                "scores": len(members),
                "average": float(sum(values) / len(values)) if values else None,
                "minimum": float(min(values)) if values else None,
                "maximum": float(max(values)) if values else None,
            }
        )
    for item in filter(failed, observations):
        found["error_observations"].append(
            {
                "project_id": "p",
                "start_time": item["startTime"],
                "trace_id": item["traceId"] or None,
                "observation_id": item["id"],
                "type": item["type"],
                "name": item["name"],
                "model": item["model"],
                "status_message": item["statusMessage"],
                "environment": item["environment"],
                "latency": item["latency"],
                **owner(item),
            }
        )
    for (name, version), uses in grouped(prompted, itemgetter("promptName"), itemgetter("promptVersion")).items():
        first, last = span(uses, "startTime")
        spent = cost(uses, "calculatedTotalCost")
        found["prompt_version_stats"].append(
            {
                "project_id": "p",
                "prompt_name": name,
                "prompt_version": version,
                "first_used": first,
                "last_used": last,
                "calls": len(uses),
                "errors": sum(map(failed, uses)),
                **tokens(uses),
                "total_cost": spent,
                "average_cost": spent / len(uses),
                **ranks("latency", (item["latency"] for item in uses)),
                **ranks("first_token", (item["timeToFirstToken"] for item in uses)),
            }
        )
    return {name: found[name] for name in COLUMNS if name != "sync_coverage"}  # fmt: skip


def duration(members: list[Item]) -> float:
    moments = [datetime.fromisoformat(t["timestamp"]) for t in members]
    return (max(moments) - min(moments)).total_seconds()


def in_order(rows: list[Item]) -> list[Item]:
    """Averages last: they may differ in their last digit, because doubles are added in another order."""
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row.values()])


def check(expected: list[Item], found: list[Item]) -> None:
    """Equal row by row; averages of doubles may differ in their last digits, as they are added in any order."""
    expected, found = ([{"average": None} | row for row in rows] for rows in (expected, found))
    averages = [[row.pop("average") for row in in_order(rows)] for rows in (expected, found)]
    assert in_order(expected) == in_order(found)
    for wanted, got in zip(*averages, strict=True):
        assert wanted == got or math.isclose(wanted, got, rel_tol=1e-12, abs_tol=1e-12)


def kinds(rows: list[Item]) -> list[dict[str, str]]:
    """The type of each value: a number that one database gives as a decimal equals that of the other all the same."""
    return [{name: type(value).__name__ for name, value in row.items()} for row in in_order(rows)]


RECORDED = ("trace_summary", "session_summary", "daily_usage", "daily_cost", "latency_daily", "user_summary")


@pytest.mark.parametrize("name", [*RECORDED, "score_summary", "error_observations"])
def test_views_over_the_recorded_data_say_what_python_computes(recorded_pair: Pair, name: str) -> None:
    traces, observations, scores = (recorded(file) for file in ("traces", "observations_v1", "scores_v2"))
    expected = summaries(traces, observations, scores)[name]

    assert expected
    found = []
    for engine in recorded_pair:
        with reading(engine) as conn:
            found.append(view(conn, name))
            check([row | {"project_id": traces[0]["projectId"]} for row in expected], found[-1])
    assert kinds(found[0]) == kinds(found[1])


@pytest.mark.parametrize("name", COLUMNS)
def test_views_have_the_promised_columns_and_are_empty_over_empty_tables(shared_pair: Pair, name: str) -> None:
    for engine in shared_pair:
        with scratch(engine) as conn:
            assert view(conn, name) == []
            schema = schema_of(conn)
            qualified = f"{schema}.{name}" if schema else name
            assert COLUMNS[name].split() == list(conn.exec_driver_sql(f"SELECT * FROM {qualified}").keys())


costs = st.none() | st.integers(0, 999_999_999_999_999).map(lambda units: units / 10**12) | st.just(0)
counts = st.none() | st.integers(0, 2**40) | st.sampled_from([2**53 + 1, 2**62, 2**63 - 1, -(2**63)])
seconds = st.none() | st.sampled_from([0, 0.001, 0.002, 1.5, 76.101]) | st.integers(0, 10**6).map(lambda ms: ms / 1000)
moments = st.sampled_from(
    ["2026-11-08T23:59:59.999Z", "2026-11-09T00:00:00.000Z", "2026-11-09T12:00:00.001Z", "2024-02-29T00:00:00.007Z"]
)
ids = st.sampled_from(["a", "b", "c", ""])
names = st.sampled_from([None, "n", "N", ""])
PROJECTS = ["p", "p", "q"]


def objects(shape: Any, **fields: Any) -> st.SearchStrategy[Item]:
    nothing = {field.api: None for field in shape.fields if field.api not in shape.optional}
    fields["projectId"] = st.sampled_from(PROJECTS)
    return st.fixed_dictionaries({**fields, "_gone": st.sampled_from([False, False, True])}).map(
        lambda item: nothing | item
    )


some_traces = st.lists(
    objects(
        TRACE_DOCUMENT, id=ids, timestamp=moments, name=names, sessionId=st.sampled_from([None, "s", "S", ""]),
        userId=st.sampled_from([None, "u", "v", ""]), totalCost=costs, latency=seconds,
    ),
    max_size=6, unique_by=lambda item: (item["projectId"], item["id"]),
)  # fmt: skip
some_observations = st.lists(
    objects(
        STREAMS["observations"].shape, id=st.sampled_from("abcdefgh"), traceId=ids | st.none(), startTime=moments,
        type=st.sampled_from(["SPAN", "GENERATION"]), level=st.sampled_from(["DEFAULT", "ERROR", None]), name=names,
        model=st.sampled_from([None, "m", "m", "M", ""]), promptTokens=counts, completionTokens=counts,
        totalTokens=counts, calculatedTotalCost=costs, latency=seconds, timeToFirstToken=seconds,
        promptName=names, promptVersion=st.sampled_from([None, 1, 2]), statusMessage=names, environment=names,
    ),
    max_size=24, unique_by=lambda item: (item["projectId"], item["traceId"] or "", item["id"]),
)  # fmt: skip
some_scores = st.lists(
    objects(
        STREAMS["scores of v2"].shape, id=st.sampled_from("abcdefgh"), traceId=ids | st.none(), timestamp=moments,
        name=names, source=st.sampled_from(["API", "EVAL"]), stringValue=names,
        dataType=st.sampled_from(["NUMERIC", "CATEGORICAL", "BOOLEAN"]),
        value=st.sampled_from([None, 0, 1, 0.1, -2.5, 1e-7, 123456.789]),
    ),
    max_size=8, unique_by=lambda item: (item["projectId"], item["id"]),
)  # fmt: skip


@given(traces=some_traces, observations=some_observations, scores=some_scores)
@settings(calm, max_examples=25)
def test_views_over_any_rows_say_what_python_computes_on_both_databases(
    shared_pair: Pair, traces: list[Item], observations: list[Item], scores: list[Item]
) -> None:
    shapes = {
        "traces": (STREAMS["traces"]._replace(shape=TRACE_DOCUMENT), traces),
        "observations": (STREAMS["observations"], observations),
        "scores": (STREAMS["scores of v2"], scores),
    }
    expected = of_projects([[item for item in items if not item["_gone"]] for _, items in shapes.values()])
    found: dict[str, list[list[dict[str, str]]]] = defaultdict(list)
    for engine in shared_pair:
        with scratch(engine) as conn:
            for name, (stream, items) in shapes.items():
                table = ROW_TABLES[name]
                rows = [
                    to_row({f: part for f, part in item.items() if f != "_gone"}, stream, item["projectId"])
                    for item in items
                ]
                upsert(conn, name, rows, instant(0))
                for row, item in zip(rows, items, strict=True):
                    if item["_gone"]:
                        key = [column == row[column.name] for column in table.primary_key]
                        conn.execute(update(table).where(*key).values(deleted_at=instant(1)))
                assert len(items) == len(conn.execute(select(table.c.id)).all())
            for name, wanted in expected.items():
                rows = view(conn, name)
                check(wanted, rows)
                found[name].append(kinds(rows))
    for sqlite, postgres in found.values():
        assert sqlite == postgres


def of_projects(items: list[list[Item]]) -> dict[str, list[Item]]:
    """All views over traces, observations and scores of several projects, whose ids mean nothing in the others."""
    found: dict[str, list[Item]] = defaultdict(list)
    for project in sorted(set(PROJECTS)):
        traces, observations, scores = ([item for item in one if item["projectId"] == project] for one in items)
        # A null trace id is stored as the empty one, and is that of no trace.
        observations = [item | {"traceId": item["traceId"] or ""} for item in observations]
        for name, rows in summaries(traces, observations, scores).items():
            found[name] += [row | {"project_id": project} for row in rows]
    return found


@pytest.mark.parametrize("size", [1, 2, 100, 101, 237])
def test_percentiles_of_groups_of_any_size_are_nearest_rank(shared_pair: Pair, size: int) -> None:
    """From 101 values on p99 is not the largest."""
    shape, day = STREAMS["observations"].shape, "2026-11-09T12:00:00.000Z"
    nothing = {field.api: None for field in shape.fields} | {"startTime": day, "model": "m", "promptName": "n"}
    shuffled = random.Random(size).sample(range(size), size)
    traces = [
        {field.api: None for field in TRACE_DOCUMENT.fields} | {"id": str(n), "timestamp": day, "latency": n / 3}
        for n in shuffled
    ]
    calls = [
        nothing
        | {"id": str(n), "traceId": str(n), "latency": n / 7, "timeToFirstToken": (size - n) / 9 if n % 3 else None}
        for n in shuffled
    ]
    expected = summaries(traces, calls, [])
    for engine in shared_pair:
        with scratch(engine) as conn:
            document = STREAMS["traces"]._replace(shape=TRACE_DOCUMENT)
            upsert(conn, "traces", [to_row(trace, document, "p") for trace in traces], instant(0))
            upsert(conn, "observations", [to_row(call, STREAMS["observations"], "p") for call in calls], instant(0))
            for name in ("latency_daily", "prompt_version_stats"):
                check(expected[name], view(conn, name))


def test_the_largest_and_smallest_scores_have_an_average(shared_pair: Pair) -> None:
    nothing = {field.api: None for field in STREAMS["scores of v2"].shape.fields}
    for values in ([1.7e308, 1.7e308, 1.7e308], [5e-324, 0.0, 0.0]):
        for engine in shared_pair:
            with scratch(engine) as conn:
                for number, value in enumerate(values):
                    item = nothing | {"id": str(number), "projectId": "p", "value": value, "dataType": "NUMERIC"}
                    upsert(conn, "scores", [to_row(item, STREAMS["scores of v2"], "p")], instant(0))
                (row,) = view(conn, "score_summary")
                assert math.isclose(row["average"], sum(v / 3 for v in values), rel_tol=1e-12, abs_tol=1e-300)
                assert (row["minimum"], row["maximum"]) == (min(values), max(values))


def test_no_index_of_a_view_refuses_a_long_text(shared_pair: Pair) -> None:
    """Postgres takes no more than 2,704 bytes in an entry of a btree; random text cannot be compressed."""
    long = random.Random(1).randbytes(20_000).hex()
    trace = {field.api: None for field in TRACE_DOCUMENT.fields} | {"projectId": "p", "id": "t", "name": long}
    trace |= {"userId": long, "release": long, "version": long, "environment": long}
    trace["timestamp"] = "2026-11-09T00:00:00.000Z"
    shape = STREAMS["observations"].shape
    part = {field.api: None for field in shape.fields} | {"projectId": "p", "id": "o", "traceId": "t", "model": long}
    part |= {"name": long, "promptName": long, "statusMessage": long, "level": "ERROR", "environment": long}
    part["startTime"] = "2026-11-09T00:00:00.000Z"
    score = {field.api: None for field in STREAMS["scores of v2"].shape.fields} | {"projectId": "p", "id": "s"}
    score |= {"name": long, "stringValue": long, "source": long, "dataType": "CATEGORICAL", "traceId": "t"}
    score["timestamp"] = "2026-11-09T00:00:00.000Z"
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, "traces", [to_row(trace, STREAMS["traces"]._replace(shape=TRACE_DOCUMENT), "p")], instant(0))
            upsert(conn, "observations", [to_row(part, STREAMS["observations"], "p")], instant(0))
            upsert(conn, "scores", [to_row(score, STREAMS["scores of v2"], "p")], instant(0))
            for name, rows in summaries([trace], [part], [score]).items():
                check(rows, view(conn, name))
