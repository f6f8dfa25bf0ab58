"""Columns of a trace that follow from its stored observations."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime

from sqlalchemy import Connection, bindparam, select, update

from etl.load.tables import observations, traces
from etl.transform.derive import Metrics, Span, metrics


def refresh_trace_metrics(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> int:
    """Sets `latency` and `total_cost` of these traces where they differ; returns how many did.

    Traces that are not stored are passed over: they are refreshed in the transaction that stores them.
    """
    wanted = sorted(trace_ids)
    stored = {
        trace_id: Metrics(latency, total_cost)
        for trace_id, latency, total_cost in conn.execute(
            select(traces.c.id, traces.c.latency, traces.c.total_cost).where(
                traces.c.project_id == project_id, traces.c.id.in_(wanted)
            )
        )
    }
    spans: dict[str, list[Span]] = {trace_id: [] for trace_id in stored}
    columns = observations.c
    query = select(columns.trace_id, columns.start_time, columns.end_time, columns.calculated_total_cost).where(
        columns.project_id == project_id, columns.trace_id.in_(sorted(stored)), columns.deleted_at.is_(None)
    )
    for trace_id, start, end, cost_usd in conn.execute(query):
        spans[trace_id].append(Span(_moment(start), _moment(end), cost_usd))
    fresh = {trace_id: metrics(parts) for trace_id, parts in spans.items()}
    changes = [
        {"trace_id": trace_id, "new_latency": new.latency, "new_total_cost": new.total_cost}
        for trace_id, new in fresh.items()
        if new != stored[trace_id]
    ]
    if changes:
        conn.execute(
            update(traces)
            .where(traces.c.project_id == project_id, traces.c.id == bindparam("trace_id"))
            .values(latency=bindparam("new_latency"), total_cost=bindparam("new_total_cost"), changed_at=now),
            changes,
        )
    return len(changes)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
