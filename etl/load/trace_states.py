"""What is stored of the traces of a page before it is written, by one look: most pages bring traces that are new."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import BindParameter, Connection, Select, and_, bindparam, or_, select

from etl.load.keys import beside_listed, listed
from etl.load.tables import observations, sessions, traces
from etl.load.upsert import Stored, stored_columns, stored_of
from etl.transform.derive import Metrics


class TraceState(NamedTuple):
    """What is stored of a trace.

    Attributes:
        stored: Its row; None if there is none.
        session_id: The session that its row names, unless that is marked as deleted.
        has_observations: Whether there are any of it, marked as deleted or not.
        metrics: Latency and cost of its row; they may be null.
    """

    stored: Stored | None
    session_id: str | None
    has_observations: bool
    metrics: Metrics


def trace_states(conn: Connection, project_id: str, trace_ids: Collection[str]) -> dict[str, TraceState]:
    """What is stored of each of these traces."""
    return _found(conn, project_id, trace_ids, unsettled=False)


def unsettled_traces(conn: Connection, project_id: str, trace_ids: Collection[str]) -> dict[str, TraceState]:
    """Those of these traces that have no row, or whose session has none."""
    return _found(conn, project_id, trace_ids, unsettled=True)


def _found(conn: Connection, project_id: str, trace_ids: Collection[str], *, unsettled: bool) -> dict[str, TraceState]:
    if not trace_ids:
        return {}
    query = _query(conn.dialect.name, unsettled)
    found = conn.execute(query, {"project": project_id, **listed(list(trace_ids))}).all()
    return {trace_id: _state_of(*values) for trace_id, *values in found}


def _state_of(part: str | None, session_id: str | None, latency: Any, total_cost: Any, *values: Any) -> TraceState:
    # No stored row is without a hash, which comes first.
    stored = None if values[0] is None else stored_of(values)
    named = None if stored is None or stored.deleted else session_id
    return TraceState(stored, named, part is not None, Metrics(latency, total_cost))


@cache
def _query(dialect: str, unsettled: bool) -> Select[Any]:
    beside = beside_listed(dialect, traces, ("session_id", "latency", "total_cost", *stored_columns(traces)))
    trace = beside.columns
    project: BindParameter[str] = bindparam("project")
    # EXISTS may be answered by reading the whole table, where Postgres has no statistics; this may not.
    part = select(observations.c.id).where(observations.c.project_id == project, observations.c.trace_id == beside.id)
    part_seen = part.limit(1).correlate_except(observations).scalar_subquery()
    query = select(beside.id, part_seen, *trace.values()).select_from(beside.source)
    if not unsettled:
        return query
    session = select(sessions.c.id).where(sessions.c.project_id == project, sessions.c.id == trace["session_id"])
    session_seen = session.limit(1).correlate_except(sessions).scalar_subquery()
    without_session = and_(trace["session_id"].is_not(None), trace["deleted_at"].is_(None), session_seen.is_(None))
    return query.where(or_(trace["content_hash"].is_(None), without_session))
