"""What the tables hold, for those who read them: which sessions there are, and all rows of one of them.

Rows that are marked as deleted are left out. Rows come as dicts of column to value, one at a time, so that a session
of any size needs the memory of a few of its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Table, collate, func, select

from etl.load.tables import projects, traces
from etl.load.types import instant_text

# Rows are fetched in small groups: each may hold megabytes. Those of a few short columns come in larger ones.
_ROWS_PER_FETCH = 16
_SHORT_ROWS_PER_FETCH = 500
# SQLite allows 32,766 variables in a statement (SQLITE_MAX_VARIABLE_NUMBER since 3.32).
_IDS_PER_SELECT = 10_000


@dataclass(frozen=True, slots=True)
class StoredSession:
    """A session of a project and how many traces of it are stored; those that are marked as deleted do not count.

    `session_id` is None for the traces that belong to no session.
    """

    project_id: str
    session_id: str | None
    traces: int


def project_names(conn: Connection) -> dict[str, str | None]:
    """Id and name of each project that has been read, or that traces are stored of."""
    found: dict[str, str | None] = dict.fromkeys(_projects_of_traces(conn))
    found.update((row.id, row.name) for row in conn.execute(select(projects.c.id, projects.c.name)))
    return found


def stored_sessions(
    conn: Connection,
    *,
    project_ids: Collection[str],
    session_ids: Collection[str] | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
) -> list[StoredSession]:
    """Sessions that traces are stored of, by project and session, traces without a session last.

    A session all of whose traces are marked as deleted is among them, with no traces.

    Args:
        conn: An open connection.
        project_ids: The projects to look into.
        session_ids: None for all sessions and the traces without one.
        start: Only traces from this instant on; aware.
        end: Only traces before this instant; aware.
    """
    columns = traces.c
    query = select(columns.project_id, columns.session_id, func.count().filter(columns.deleted_at.is_(None)))
    query = query.where(columns.project_id.in_(project_ids)).group_by(columns.project_id, columns.session_id)
    if start is not None:
        query = query.where(columns.timestamp >= instant_text(start))
    if end is not None:
        query = query.where(columns.timestamp < instant_text(end))
    found = [
        StoredSession(*row) for part in _with_ids(query, columns.session_id, session_ids) for row in conn.execute(part)
    ]
    return sorted(found, key=lambda one: (one.project_id, one.session_id is None, one.session_id or ""))


def sessions_of_traces(
    conn: Connection, project_ids: Collection[str], trace_ids: Collection[str]
) -> dict[str, set[tuple[str, str | None]]]:
    """The (project, session) of each of these traces that is stored; several if projects share its id."""
    columns = traces.c
    query = select(columns.id, columns.project_id, columns.session_id)
    query = query.where(columns.project_id.in_(project_ids), columns.deleted_at.is_(None))
    found: dict[str, set[tuple[str, str | None]]] = {}
    for part in _with_ids(query, columns.id, trace_ids):
        for trace_id, project_id, session_id in conn.execute(part):
            found.setdefault(trace_id, set()).add((project_id, session_id))
    return found


def latest_session_ids(conn: Connection, project_ids: Collection[str], limit: int) -> list[str]:
    """Ids of stored sessions, at most `limit`, the latest first."""
    columns = traces.c
    query = select(columns.session_id).where(columns.project_id.in_(project_ids), columns.deleted_at.is_(None))
    query = query.where(columns.session_id.is_not(None)).group_by(columns.session_id)
    return list(conn.execute(query.order_by(func.max(columns.timestamp).desc()).limit(limit)).scalars())


def session_traces(
    conn: Connection,
    session: StoredSession,
    *,
    columns: Sequence[str] | None = None,
    ids: Collection[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The traces of a session in the order (timestamp, id).

    Args:
        conn: An open connection.
        session: Whose traces.
        columns: The columns that are wanted; None for all.
        ids: At most a few thousand trace ids to choose from the session; None for all.
    """
    return _stream(conn, traces, _of_session(conn, select(*_columns(traces, columns)), session, ids), columns)


def session_children(
    conn: Connection,
    table: Table,
    session: StoredSession,
    *,
    columns: Sequence[str] | None = None,
    ids: Collection[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The observations or scores of the traces that `session_traces` gives, grouped by trace and in its order.

    Args: as there; `columns` are short ones, such as ids.
    """
    of_trace = (table.c.project_id == traces.c.project_id) & (table.c.trace_id == traces.c.id)
    # An outer join, because SQLite then begins with the traces; else it would read all that the project has.
    query = (
        select(*_columns(table, columns))
        .select_from(traces)
        .join(table, of_trace & table.c.deleted_at.is_(None), isouter=True)
    )
    size = _ROWS_PER_FETCH if columns is None else _SHORT_ROWS_PER_FETCH
    rows = _stream(conn, table, _of_session(conn, query, session, ids), columns, size)
    return (row for row in rows if row["id"] is not None)


def _projects_of_traces(conn: Connection) -> Iterator[str]:
    """One look into the index for each; DISTINCT would read all of it."""
    column = traces.c.project_id
    found = conn.scalar(select(func.min(column)))
    while found is not None:
        yield found
        found = conn.scalar(select(func.min(column)).where(column > found))


def _of_session(
    conn: Connection, query: Select[Any], session: StoredSession, ids: Collection[str] | None
) -> Select[Any]:
    columns = traces.c
    query = query.where(
        columns.project_id == session.project_id,
        columns.session_id == session.session_id,
        columns.deleted_at.is_(None),
    )
    if ids is not None:
        query = query.where(columns.id.in_(sorted(ids)))
    # Postgres sorts text by the language of the database, SQLite by its bytes; files must not tell which it was.
    by_bytes = collate(columns.id, "C") if conn.dialect.name == "postgresql" else columns.id
    return query.order_by(columns.timestamp, by_bytes)


def _columns(table: Table, names: Sequence[str] | None) -> list[ColumnElement[Any]]:
    return list(table.c) if names is None else [table.c[name] for name in names]


def _stream(
    conn: Connection,
    table: Table,
    query: Select[Any],
    columns: Sequence[str] | None,
    rows_per_fetch: int = _ROWS_PER_FETCH,
) -> Iterator[dict[str, Any]]:
    names = table.c.keys() if columns is None else columns
    with conn.execute(query, execution_options={"yield_per": rows_per_fetch}) as result:
        for row in result:
            yield dict(zip(names, row, strict=True))


def _with_ids(query: Select[Any], column: ColumnElement[Any], ids: Collection[str] | None) -> Iterator[Select[Any]]:
    if ids is None:
        yield query
        return
    wanted = sorted(set(ids))
    for first in range(0, len(wanted), _IDS_PER_SELECT):
        yield query.where(column.in_(wanted[first : first + _IDS_PER_SELECT]))
