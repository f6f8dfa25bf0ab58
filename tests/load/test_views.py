"""The views for people, against the same numbers computed in Python."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
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
}


def total(items: Iterable[Item], field: str) -> int:
    return sum(item.get(field) or 0 for item in items)


def cost(items: Iterable[Item], field: str) -> float:
    """Costs have 12 decimal places, and are added as decimals."""
    whole = sum((Decimal(repr(float(item[field]))) for item in items if item.get(field) is not None), Decimal(0))
    return float(round(whole, 12))


def summaries(traces: list[Item], observations: list[Item], scores: list[Item]) -> dict[str, list[Item]]:
    """All three views over these objects, in no order."""
    parts, marks, sessions = defaultdict(list), defaultdict(list), defaultdict(list)
    for item in observations:
        parts[item["traceId"]].append(item)
    for item in scores:
        marks[item["traceId"]].append(item)
    for item in traces:
        if item["sessionId"] is not None:
            sessions[item["sessionId"]].append(item)
    days: dict[Any, list[Item]] = defaultdict(list)
    for item in observations:
        if item["model"] is not None:
            days[item["startTime"][:10], item["model"]].append(item)
    return {
        "trace_summary": [
            {
                "project_id": t["projectId"], "trace_id": t["id"], "timestamp": t["timestamp"], "name": t["name"],
                "session_id": t["sessionId"], "user_id": t["userId"], "environment": t["environment"],
                "release": t["release"], "version": t["version"], "latency": t["latency"],
                "total_cost": t["totalCost"], "observations": len(parts[t["id"]]),
                "generations": sum(o["type"] == "GENERATION" for o in parts[t["id"]]),
                "errors": sum(o["level"] == "ERROR" for o in parts[t["id"]]),
                "input_tokens": total(parts[t["id"]], "promptTokens"),
                "output_tokens": total(parts[t["id"]], "completionTokens"),
                "total_tokens": total(parts[t["id"]], "totalTokens"), "scores": len(marks[t["id"]]),
            }
            for t in traces
        ],
        "session_summary": [
            {
                "project_id": members[0]["projectId"], "session_id": session,
                "first_timestamp": min(t["timestamp"] for t in members),
                "last_timestamp": max(t["timestamp"] for t in members), "duration": duration(members),
                "traces": len(members), "users": len({t["userId"] for t in members} - {None}),
                "observations": sum(len(parts[t["id"]]) for t in members),
                "errors": sum(o["level"] == "ERROR" for t in members for o in parts[t["id"]]),
                "total_tokens": sum(total(parts[t["id"]], "totalTokens") for t in members),
                "total_cost": cost(members, "totalCost"),
            }
            for session, members in sessions.items()
        ],
        "daily_usage": [
            {
                "project_id": uses[0]["projectId"], "day": day, "model": model, "calls": len(uses),
                "input_tokens": total(uses, "promptTokens"), "output_tokens": total(uses, "completionTokens"),
                "total_tokens": total(uses, "totalTokens"), "total_cost": cost(uses, "calculatedTotalCost"),
            }
            for (day, model), uses in days.items()
        ],
    }  # fmt: skip


def duration(members: list[Item]) -> float:
    moments = [datetime.fromisoformat(t["timestamp"]) for t in members]
    return (max(moments) - min(moments)).total_seconds()


def in_order(rows: list[Item]) -> list[Item]:
    return sorted(rows, key=lambda row: [(value is not None, str(value)) for value in row.values()])


@pytest.mark.parametrize("name", ["trace_summary", "session_summary", "daily_usage"])
def test_views_over_the_recorded_data_say_what_python_computes(recorded_pair: Pair, name: str) -> None:
    expected = summaries(recorded("traces"), recorded("observations_v1"), recorded("scores_v2"))[name]

    assert expected
    for engine in recorded_pair:
        with reading(engine) as conn:
            assert in_order(expected) == view(conn, name)


@pytest.mark.parametrize("name", COLUMNS)
def test_views_have_the_promised_columns_and_are_empty_over_empty_tables(shared_pair: Pair, name: str) -> None:
    for engine in shared_pair:
        with scratch(engine) as conn:
            assert view(conn, name) == []
            schema = schema_of(conn)
            qualified = f"{schema}.{name}" if schema else name
            assert COLUMNS[name].split() == list(conn.exec_driver_sql(f"SELECT * FROM {qualified}").keys())


costs = st.none() | st.integers(0, 999_999_999_999_999).map(lambda units: units / 10**12) | st.just(0)
tokens = st.none() | st.integers(0, 2**40)
moments = st.sampled_from(
    ["2026-11-08T23:59:59.999Z", "2026-11-09T00:00:00.000Z", "2026-11-09T12:00:00.001Z", "2024-02-29T00:00:00.007Z"]
)
ids = st.sampled_from(["a", "b", "c", ""])


def objects(shape: Any, **fields: Any) -> st.SearchStrategy[Item]:
    nothing = {field.api: None for field in shape.fields if field.api not in shape.optional} | {"projectId": "p"}
    return st.fixed_dictionaries({**fields, "_gone": st.sampled_from([False, False, True])}).map(
        lambda item: nothing | item
    )


some_traces = st.lists(
    objects(
        TRACE_DOCUMENT, id=ids, timestamp=moments, sessionId=st.sampled_from([None, "s", "S", ""]),
        userId=st.sampled_from([None, "u", "v", ""]), totalCost=costs, latency=st.none() | st.just(1.5),
    ),
    max_size=4, unique_by=lambda item: item["id"],
)  # fmt: skip
some_observations = st.lists(
    objects(
        STREAMS["observations"].shape, id=ids, traceId=ids | st.none(), startTime=moments,
        type=st.sampled_from(["SPAN", "GENERATION"]), level=st.sampled_from(["DEFAULT", "ERROR", None]),
        model=st.sampled_from([None, "m", "M", ""]), promptTokens=tokens, completionTokens=tokens, totalTokens=tokens,
        calculatedTotalCost=costs,
    ),
    max_size=8, unique_by=lambda item: (item["traceId"] or "", item["id"]),
)  # fmt: skip
some_scores = st.lists(
    objects(STREAMS["scores of v2"].shape, id=ids, traceId=ids | st.none()), max_size=4, unique_by=lambda i: i["id"]
)


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
    there = [[item for item in items if not item["_gone"]] for _, items in shapes.values()]
    # A null trace id is stored as the empty one, and is that of no trace.
    expected = summaries(there[0], [o | {"traceId": o["traceId"] or ""} for o in there[1]], there[2])
    for engine in shared_pair:
        with scratch(engine) as conn:
            for name, (stream, items) in shapes.items():
                table = ROW_TABLES[name]
                for item in items:
                    row = to_row({field: part for field, part in item.items() if field != "_gone"}, stream, "p")
                    upsert(conn, name, [row], instant(0))
                    if item["_gone"]:
                        key = [column == row[column.name] for column in table.primary_key]
                        conn.execute(update(table).where(*key).values(deleted_at=instant(1)))
                assert len(items) == len(conn.execute(select(table.c.id)).all())
            for name, rows in expected.items():
                assert in_order(rows) == view(conn, name)
