"""What follows from stored observations: metrics of traces, and on v4 the traces and sessions themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, collate, func, select, type_coerce

from etl.load.bulk import update_values
from etl.load.keys import Key, ids_listed, is_listed, rows_by_key
from etl.load.tables import observations, sessions, traces
from etl.load.types import instant_text
from etl.load.upsert import upsert
from etl.transform import derive
from etl.transform.derive import CONTENT_COLUMNS, NO_METADATA, PART_COLUMNS, Metrics, Span, metrics
from etl.transform.rows import Row

# SQLite allows 32,766 variables in a statement (SQLITE_MAX_VARIABLE_NUMBER since 3.32).
_IDS_PER_SELECT = 10_000
# Inputs and outputs of many traces do not fit in memory together; how large they are is seen as they come.
_FIRST_GROUP, _GROUP_CHARACTERS = 8, 4_000_000


def refresh_trace_metrics(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> int:
    """Sets `latency` and `total_cost` of these traces where they differ; returns how many did.

    Traces that are not stored are passed over: they are refreshed in the transaction that stores them.
    """
    changes: list[tuple[Any, ...]] = []
    moment = instant_text(now)
    spans_query, costs_query = _metrics_queries(conn.dialect.name)
    for ids in _chunks(trace_ids):
        keys = [(project_id, trace_id) for trace_id in ids]
        stored = {
            trace_id: Metrics(*values)
            for (_, trace_id), values in rows_by_key(conn, traces, keys, ["latency", "total_cost"])
        }
        if not stored:
            continue
        spans: dict[str, list[Span]] = {trace_id: [] for trace_id in stored}
        wanted = {"project_id": project_id, **ids_listed(sorted(stored))}
        for trace_id, start, end in conn.execute(spans_query, wanted).all():
            spans[trace_id].append(Span(_moment(start), _moment(end), None))
        for trace_id, cost_usd in conn.execute(costs_query, wanted).all():
            spans[trace_id].append(Span(None, None, cost_usd))
        fresh = {trace_id: metrics(parts) for trace_id, parts in spans.items()}
        changes += [(*new, moment, project_id, trace_id) for trace_id, new in fresh.items() if new != stored[trace_id]]
    update_values(conn, traces, ("latency", "total_cost", "changed_at"), changes)
    return len(changes)


@cache
def _metrics_queries(dialect: str) -> tuple[Select[Any], Select[Any]]:
    """Of each trace that `ids_listed` names: its first start and last end; the cost of each observation with one.

    Costs are added in Python, where they are added as the server does.
    """
    columns = observations.c
    alive = (
        columns.project_id == bindparam("project_id"),
        is_listed(dialect, columns.trace_id),
        columns.deleted_at.is_(None),
    )
    later = func.greatest if dialect == "postgresql" else func.max
    last_end = func.max(later(columns.start_time, func.coalesce(columns.end_time, columns.start_time)))
    spans = (
        select(columns.trace_id, func.min(columns.start_time), type_coerce(last_end, columns.start_time.type))
        .where(*alive, columns.start_time.is_not(None))
        .group_by(columns.trace_id)
    )
    costs = select(columns.trace_id, columns.calculated_total_cost)
    return spans, costs.where(*alive, columns.calculated_total_cost != 0)


def derive_traces(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> None:
    """Makes these traces of all their stored observations, as far as no traces API and no copy gave them."""
    for ids in _chunks(trace_ids):
        columns = (traces.c.id, traces.c.read_from, traces.c.content_hash, traces.c.deleted_at)
        query = select(*columns).where(traces.c.project_id == project_id, traces.c.id.in_(ids))
        stored = {row.id: row for row in conn.execute(query)}
        wanted = [id_ for id_ in ids if id_ not in stored or stored[id_].read_from == "observations"]
        changed: list[tuple[Row, Key | None]] = []
        for trace_id, parts in _parts(conn, project_id, wanted).items():
            row, known = derive.whole_trace(project_id, trace_id, parts), stored.get(trace_id)
            if known is None or known.content_hash != row["content_hash"] or known.deleted_at is not None:
                root = derive.root_of(parts)
                changed.append((row, None if root is None else (project_id, trace_id, root["id"])))
        for rows in _with_contents(conn, changed):
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
    """The stored observations of each trace that has any, without their contents."""
    columns = observations.c
    query = select(columns.trace_id, *(columns[name] for name in PART_COLUMNS)).where(
        columns.project_id == project_id, columns.trace_id.in_(trace_ids), columns.deleted_at.is_(None)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for trace_id, *values in conn.execute(query):
        found.setdefault(trace_id, []).append(dict(zip(PART_COLUMNS, values, strict=True)))
    return found


def _with_contents(conn: Connection, rows: Sequence[tuple[Row, Key | None]]) -> Iterator[list[Row]]:
    """The rows with the contents of their roots, in groups of a few megabytes.

    Args:
        rows: Each with the key of its root; None if it has none.
    """
    start, size = 0, _FIRST_GROUP
    while start < len(rows):
        group = rows[start : start + size]
        roots = [root for _, root in group if root is not None]
        contents = {
            key: dict(zip(CONTENT_COLUMNS, values, strict=True))
            for key, values in rows_by_key(conn, observations, roots, CONTENT_COLUMNS)
        }
        held = sum(len(value) for values in contents.values() for value in values.values() if value is not None)
        # Rows of their own, so that those of the groups before do not stay.
        yield [row if root is None else _with_metadata(row | contents.pop(root)) for row, root in group]
        start += len(group)
        size = min(2 * size, max(1, len(group) * _GROUP_CHARACTERS // max(1, held)))


def _with_metadata(row: Row) -> Row:
    return row if row["metadata"] else row | {"metadata": NO_METADATA}


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), _IDS_PER_SELECT):
        yield wanted[start : start + _IDS_PER_SELECT]


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
