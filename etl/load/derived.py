"""What follows from stored observations: metrics of traces, and on v4 the traces and sessions themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, case, collate, func, select, update

from etl.load.tables import observations, sessions, traces
from etl.load.upsert import upsert
from etl.transform import derive
from etl.transform.derive import CONTENT_COLUMNS, PART_COLUMNS, Metrics, Span, metrics

# SQLite allows 32,766 variables in a statement (SQLITE_MAX_VARIABLE_NUMBER since 3.32).
_IDS_PER_SELECT = 10_000


def refresh_trace_metrics(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> int:
    """Sets `latency` and `total_cost` of these traces where they differ; returns how many did.

    Traces that are not stored are passed over: they are refreshed in the transaction that stores them.
    """
    changes: list[dict[str, Any]] = []
    for ids in _chunks(trace_ids):
        stored = {
            trace_id: Metrics(latency, total_cost)
            for trace_id, latency, total_cost in conn.execute(
                select(traces.c.id, traces.c.latency, traces.c.total_cost).where(
                    traces.c.project_id == project_id, traces.c.id.in_(ids)
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
        changes += [
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


def derive_traces(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> None:
    """Makes these traces of all their stored observations, as far as no traces API and no copy gave them."""
    for ids in _chunks(trace_ids):
        given = select(traces.c.id).where(
            traces.c.project_id == project_id, traces.c.id.in_(ids), traces.c.read_from != "observations"
        )
        wanted = sorted(set(ids).difference(conn.execute(given).scalars()))
        rows = [
            derive.whole_trace(project_id, trace_id, parts)
            for trace_id, parts in _parts(conn, project_id, wanted).items()
        ]
        upsert(conn, "traces", rows, now)


def derive_sessions(conn: Connection, project_id: str, session_ids: Collection[str], now: datetime) -> None:
    """A row for each of these sessions that no traces API gave, in the environment of its earliest trace."""
    for ids in _chunks(session_ids):
        # Postgres sorts text by the language of the database, SQLite by its bytes.
        by_bytes = collate(traces.c.id, "C") if conn.dialect.name == "postgresql" else traces.c.id
        place = func.row_number().over(partition_by=traces.c.session_id, order_by=(traces.c.timestamp, by_bytes))
        ranked = (
            select(traces.c.session_id, traces.c.environment, place.label("place"))
            .where(traces.c.project_id == project_id, traces.c.session_id.in_(ids), traces.c.deleted_at.is_(None))
            .subquery()
        )
        first = select(ranked.c.session_id, ranked.c.environment).where(ranked.c.place == 1)
        environments = {row.session_id: row.environment for row in conn.execute(first)}
        given = select(sessions.c.id).where(
            sessions.c.project_id == project_id, sessions.c.id.in_(ids), sessions.c.read_from != "observations"
        )
        wanted = sorted(set(ids).difference(conn.execute(given).scalars()))
        rows = [derive.session(project_id, session_id, environments.get(session_id)) for session_id in wanted]
        upsert(conn, "sessions", rows, now)


def _parts(conn: Connection, project_id: str, trace_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The stored observations of each trace that has any, with the contents of those without a parent only."""
    columns = observations.c
    is_root = columns.parent_observation_id.is_(None)
    contents = [case((is_root, columns[name])).label(name) for name in CONTENT_COLUMNS]
    query = select(columns.trace_id, *(columns[name] for name in PART_COLUMNS), *contents).where(
        columns.project_id == project_id, columns.trace_id.in_(trace_ids), columns.deleted_at.is_(None)
    )
    names = (*PART_COLUMNS, *CONTENT_COLUMNS)
    found: dict[str, list[dict[str, Any]]] = {}
    for trace_id, *values in conn.execute(query):
        found.setdefault(trace_id, []).append(dict(zip(names, values, strict=True)))
    return found


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), _IDS_PER_SELECT):
        yield wanted[start : start + _IDS_PER_SELECT]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
