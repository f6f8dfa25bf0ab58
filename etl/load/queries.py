"""What the tables hold, for those who read them: which sessions there are, and all rows of one of them.

Rows that are marked as deleted are left out. Rows come as dicts of column to value, a few at a time, so that a session
of any size needs the memory of a few of its rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    ScalarSelect,
    Select,
    Table,
    Text,
    bindparam,
    case,
    cast,
    func,
    select,
)

from etl.load.keys import listed, of_listed
from etl.load.tables import observations, projects, scores, traces
from etl.load.types import instant_text

_IDS_PER_FETCH = 1_000
# Rows of which a few columns are in memory together.
_ROWS_PER_FETCH = 256
_Row = TypeVar("_Row", bound=tuple[Any, ...])
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
    query = _within(query, start, end)
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


def trace_ids(
    conn: Connection, session: StoredSession, start: datetime | None = None, end: datetime | None = None
) -> Iterator[str]:
    """The id of each trace of a session, in the order (timestamp, id), those without a timestamp first.

    Texts are in the order of their code points, whatever the language of the database.

    Args:
        conn: An open connection.
        session: Whose traces.
        start: Only traces from this instant on; aware.
        end: Only traces before this instant; aware.
    """
    columns = traces.c
    trace_id = columns.id if conn.dialect.name == "sqlite" else columns.id.collate("C")
    query = _within(select(columns.id), start, end).where(*_in_session(session))
    query = query.order_by(columns.timestamp.nulls_first(), trace_id)
    with conn.execute(query, execution_options={"yield_per": _IDS_PER_FETCH}) as result:
        for ids in result.scalars().partitions():
            yield from ids


def rows_of_session(conn: Connection, session: StoredSession, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """These columns of each trace of a session, in no order."""
    query = select(*(traces.c[name] for name in columns)).where(*_in_session(session))
    with conn.execute(query, execution_options={"yield_per": _ROWS_PER_FETCH}) as result:
        for rows in result.partitions():
            yield from (dict(zip(columns, row, strict=True)) for row in rows)


def rows_of_traces(
    conn: Connection, table: Table, project_id: str, trace_ids: Sequence[str], columns: tuple[str, ...]
) -> dict[str, list[dict[str, Any]]]:
    """The rows that belong to each of a few traces, in no order; of `traces` that is the trace's own.

    Args:
        conn: An open connection.
        table: `traces`, `observations` or `scores`.
        project_id: Whose traces.
        trace_ids: As many as their rows may be in memory together.
        columns: The columns that are wanted, the trace's id among them.
    """
    trace_id = _trace_id(table).name
    found: dict[str, list[dict[str, Any]]] = {}
    statement = _of_traces(conn.dialect.name, table, columns)
    for values in conn.execute(statement, {"project_id": project_id, **listed(trace_ids)}).all():
        row = dict(zip(columns, values, strict=True))
        found.setdefault(row[trace_id], []).append(row)
    return found


def traces_with_part_ids(
    conn: Connection, project_id: str, trace_ids: Sequence[str], columns: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    """The row of each of a few traces, with `observation_ids` and `score_ids`: what a list of traces says of its parts.

    Both are JSON texts: a list of ids, each in a list with the column `exact` where that is not null; None or an empty
    list if there are none. As in the API, scores of sessions and of dataset runs and CORRECTION scores are left out.

    Args:
        conn: An open connection.
        project_id: Whose traces.
        trace_ids: As many as may be in memory together.
        columns: The columns that are wanted, `id` among them.
    """
    names = (*columns, "observation_ids", "score_ids")
    statement = _with_part_ids(conn.dialect.name, columns)
    found = conn.execute(statement, {"project_id": project_id, **listed(trace_ids)}).all()
    rows = (dict(zip(names, values, strict=True)) for values in found)
    return {row["id"]: row for row in rows}


@cache
def _of_traces(dialect: str, table: Table, columns: tuple[str, ...]) -> Select[Any]:
    """By the keys of the traces: an index is at hand for it, whether the database has statistics or not.

    One statement for a whole session, with the children joined to the traces and sorted, can make Postgres sort rows
    with all their contents on the disk.
    """
    query = select(*(table.c[name] for name in columns))
    query = query.where(table.c.project_id == bindparam("project_id"), table.c.deleted_at.is_(None))
    return of_listed(dialect, query, _trace_id(table))


@cache
def _with_part_ids(dialect: str, columns: tuple[str, ...]) -> Select[Any]:
    in_lists = (
        scores.c.data_type.is_distinct_from("CORRECTION"),
        scores.c.session_id.is_(None),
        scores.c.dataset_run_id.is_(None),
    )
    query = select(
        *(traces.c[name] for name in columns),
        _part_ids(dialect, observations).label("observation_ids"),
        _part_ids(dialect, scores, *in_lists).label("score_ids"),
    ).where(traces.c.project_id == bindparam("project_id"), traces.c.deleted_at.is_(None))
    return of_listed(dialect, query, traces.c.id)


def _part_ids(dialect: str, table: Table, *conditions: ColumnElement[bool]) -> ScalarSelect[Any]:
    """One text for each trace instead of a row for each part, which would cost more than all else that is read."""
    columns = table.c
    if dialect == "postgresql":
        pair = func.json_build_array(columns.id, cast(columns.exact, Text))
        one = case((columns.exact.is_(None), func.to_json(columns.id)), else_=pair)
        ids: ColumnElement[Any] = cast(func.json_agg(one), Text)
    else:
        pair = func.json_array(columns.id, columns.exact)
        ids = func.json_group_array(case((columns.exact.is_(None), columns.id), else_=pair))
    of_trace = columns.project_id == traces.c.project_id, columns.trace_id == traces.c.id
    return select(ids).where(*of_trace, columns.deleted_at.is_(None), *conditions).scalar_subquery()


def _trace_id(table: Table) -> Column[str]:
    return table.c.id if table is traces else table.c.trace_id


def _in_session(session: StoredSession) -> tuple[ColumnElement[bool], ...]:
    columns = traces.c
    return (
        columns.project_id == session.project_id,
        columns.session_id == session.session_id,
        columns.deleted_at.is_(None),
    )


def _within(query: Select[_Row], start: datetime | None, end: datetime | None) -> Select[_Row]:
    if start is not None:
        query = query.where(traces.c.timestamp >= instant_text(start))
    if end is not None:
        query = query.where(traces.c.timestamp < instant_text(end))
    return query


def _projects_of_traces(conn: Connection) -> Iterator[str]:
    """One look into the index for each; DISTINCT would read all of it."""
    column = traces.c.project_id
    found = conn.scalar(select(func.min(column)))
    while found is not None:
        yield found
        found = conn.scalar(select(func.min(column)).where(column > found))


def _with_ids(query: Select[Any], column: ColumnElement[Any], ids: Collection[str] | None) -> Iterator[Select[Any]]:
    if ids is None:
        yield query
        return
    wanted = sorted(set(ids))
    for first in range(0, len(wanted), _IDS_PER_SELECT):
        yield query.where(column.in_(wanted[first : first + _IDS_PER_SELECT]))
