"""Rows of the traces that are stored: under filters, only those of selected traces are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, exists, select

from etl.load.keys import listed, of_listed, rows_by_key
from etl.load.tables import sessions, traces
from etl.transform.rows import Row


def stored_trace_ids(conn: Connection, project_id: str, trace_ids: Collection[str]) -> set[str]:
    """Which of these traces are stored."""
    return {key[1] for key, _ in rows_by_key(conn, traces, [(project_id, trace_id) for trace_id in trace_ids], ())}


def session_ids_of(
    conn: Connection, project_id: str, trace_ids: Collection[str], *, with_deleted: bool = False
) -> set[str]:
    """The sessions that the stored ones of these traces belong to, those marked as deleted only if asked for."""
    keys = [(project_id, trace_id) for trace_id in trace_ids]
    found = rows_by_key(conn, traces, keys, ["session_id", "deleted_at"])
    return {
        session_id
        for _, (session_id, deleted_at) in found
        if session_id is not None and (with_deleted or deleted_at is None)
    }


def session_ids_without_row(conn: Connection, project_id: str, trace_ids: Collection[str]) -> set[str]:
    """The sessions that these traces belong to and that have no row."""
    if not trace_ids:
        return set()
    query = _session_ids_without_row(conn.dialect.name)
    found = conn.execute(query, {"project": project_id, **listed(list(trace_ids))}).scalars()
    return {session_id for session_id in found if session_id is not None}


@cache
def _session_ids_without_row(dialect: str) -> Select[Any]:
    has_row = exists().where(sessions.c.project_id == traces.c.project_id, sessions.c.id == traces.c.session_id)
    # A condition on the session would lead SQLite to an index of sessions, and so through all traces.
    without_row = select(traces.c.session_id).where(
        traces.c.project_id == bindparam("project"), traces.c.deleted_at.is_(None), ~has_row
    )
    return of_listed(dialect, without_row, traces.c.id)


def of_stored_traces(conn: Connection, project_id: str, tables: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """`tables` without the observations and scores of traces that are not stored; other rows stay."""
    kept: dict[str, list[Row]] = {}
    for name, rows in tables.items():
        if name in ("observations", "scores"):
            stored = stored_trace_ids(conn, project_id, {row["trace_id"] for row in rows if row["trace_id"]})
            kept[name] = [row for row in rows if row["trace_id"] in stored]
        else:
            kept[name] = list(rows)
    return kept
