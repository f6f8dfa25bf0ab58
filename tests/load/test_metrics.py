"""Latency and cost of stored traces, as the database keeps them."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from database_looks import instant, write
from recorded_rows import Row
from sqlalchemy import Engine, select

from etl.load.derived import refresh_trace_metrics
from etl.load.engine import reading, writing
from etl.load.tables import traces
from etl.transform import fields
from etl.transform.rows import from_api

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
