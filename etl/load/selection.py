"""Rows of the traces that are stored: under filters, only those of selected traces are kept."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection

from etl.load.keys import rows_by_key
from etl.load.tables import traces
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
