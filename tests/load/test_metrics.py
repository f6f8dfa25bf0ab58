"""Latency and cost of stored traces, as the database keeps them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from database_looks import Pair, instant, scratch, write
from databases import Databases
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm
from recorded_rows import Row
from sqlalchemy import Connection, Engine, event, select, update

from etl.load.engine import reading, writing
from etl.load.metrics import refresh_trace_metrics
from etl.load.tables import traces
from etl.load.types import instant_text
from etl.load.upsert import upsert
from etl.transform import fields
from etl.transform.derive import Metrics, Span, metrics
from etl.transform.rows import from_api
from tests.bench.made_rows import PROJECT, make_rows

TIME = "2026-11-21T10:00:00.000Z"
ODD_ID = 'a\'b"c\\d {"e": [1]} \u00e9\U0001f600 %s :name'


def row(shape: fields.Shape, **item: Any) -> Row:
    return from_api(item, shape, project_id="p", read_from="traces", plain=True)


@pytest.mark.parametrize(
    ("costs", "total"),
    [
        ((), 0.0),
        ((0.1, 0.2, 0.3), 0.6),
        ((12345678.123456789,), 12345678.123456789),
        ((1.7e308, 1.7e308), sys.float_info.max),
        ((-1.7e308, -1.7e308), -sys.float_info.max),
    ],
)
def test_they_are_kept_to_the_last_digit(engine: Engine, costs: tuple[float, ...], total: float) -> None:
    ids = [ODD_ID, "other"]
    write(engine, "traces", [row(fields.TRACE, id=key, timestamp=TIME, updatedAt=TIME) for key in ids], instant(0))
    parts = [
        row(fields.OBSERVATION, id=str(n), traceId=ODD_ID, startTime=TIME, updatedAt=TIME, calculatedTotalCost=cost)
        for n, cost in enumerate(costs)
    ]
    write(engine, "observations", parts, instant(0))

    with writing(engine) as conn:
        assert refresh_trace_metrics(conn, "p", ids, instant(60)) == 2
    with reading(engine) as conn:
        found = {row.id: row.total_cost for row in conn.execute(select(traces.c.id, traces.c.total_cost))}
        times = conn.execute(select(traces.c.changed_at)).scalars().all()
    assert found == {ODD_ID: total, "other": 0.0}
    assert times == [instant(60)] * 2

    with writing(engine) as conn:
        assert refresh_trace_metrics(conn, "p", ids, instant(90)) == 0


moments = st.none() | st.integers(0, 100_000_000).map(lambda ms: instant(ms / 1000))
# Prices by the token; a price a quarter of a unit from the next one; what doubles cannot add or hold.
prices = st.integers(0, 10**13).map(lambda units: units * 1.1e-9)
costs = st.none() | prices | st.sampled_from([0.1, -0.2, 2.5e-13, 8_999.999, 9_000.0, 1e300, -1e300, 1.7e308])
spans = st.lists(st.builds(Span, moments, moments, costs), max_size=6)


def observation(number: int, span: Span) -> Row:
    start, end = (moment and instant_text(moment) for moment in (span.start, span.end))
    return row(
        fields.OBSERVATION, id=str(number), traceId="t", updatedAt=TIME, startTime=start, endTime=end,
        calculatedTotalCost=span.cost_usd,
    )  # fmt: skip


@settings(calm, max_examples=25)
@given(spans)
def test_a_value_that_does_not_follow_is_mended_and_one_that_does_stays(shared_pair: Pair, spans: list[Span]) -> None:
    expected = metrics(spans)
    wrong = [{"latency": value} for value in (None, expected.latency + 0.001, -1.0)]
    wrong += [{"total_cost": value} for value in (None, expected.total_cost + 1, expected.total_cost / 2 + 1e-9)]
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, "traces", [row(fields.TRACE, id="t", timestamp=TIME, updatedAt=TIME)], instant(0))
            upsert(conn, "observations", [observation(n, span) for n, span in enumerate(spans)], instant(0))
            assert (refreshed(conn), stored_metrics(conn)) == (1, expected)
            for change in wrong:
                conn.execute(update(traces).values(change))
                differs = stored_metrics(conn) != expected  # what is added to 1e300 is nothing
                assert (refreshed(conn), stored_metrics(conn)) == (differs, expected)


def refreshed(conn: Connection) -> int:
    return refresh_trace_metrics(conn, "p", ["t", "not stored"], instant(0))


def stored_metrics(conn: Connection) -> Metrics:
    return Metrics(*conn.execute(select(traces.c.latency, traces.c.total_cost)).one())


def test_what_is_right_is_not_fetched(engine: Engine) -> None:
    spans = [Span(instant(n), instant(n + 60.001 * n), n * 0.001234567) for n in range(30)]
    write(engine, "traces", [row(fields.TRACE, id="t", timestamp=TIME, updatedAt=TIME)], instant(0))
    write(engine, "observations", [observation(n, span) for n, span in enumerate(spans)], instant(0))
    asked: list[str] = []
    with writing(engine) as conn:
        assert refreshed(conn) == 1
        event.listen(conn, "before_cursor_execute", lambda *about: asked.append(about[2]))
        assert refreshed(conn) == 0
    assert len(asked) == 1


def test_postgres_looks_traces_up_by_key_before_it_has_any_statistics(databases: Databases) -> None:
    asked: list[tuple[str, Any]] = []
    with databases.lent("postgres") as engine, writing(engine) as conn:
        make_rows(conn, traces=3000, io_bytes=20)
        ids = conn.execute(select(traces.c.id).limit(200)).scalars().all()
        event.listen(conn, "before_cursor_execute", lambda *about: asked.append((about[2], about[3])))
        assert refresh_trace_metrics(conn, PROJECT, ids, instant(0)) > 0
        first, values = asked[0]
        plan = "\n".join(conn.exec_driver_sql(f"EXPLAIN {first}", values).scalars())
    assert plan.count("Index Scan using") == 2, plan
    assert "Seq Scan" not in plan, plan
