"""What follows from stored observations: on v4 the traces and sessions themselves; of metrics see `load.metrics`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, collate, select

from etl.load.compare import Differences, differences
from etl.load.keys import Key, listed, listed_ids, of_listed, rows_by_key
from etl.load.metrics import NONE_KNOWN, columns_by_key
from etl.load.tables import observations, sessions, traces
from etl.load.upsert import upsert
from etl.transform import derive
from etl.transform.derive import CONTENT_COLUMNS, NO_METADATA, PART_COLUMNS, Metrics
from etl.transform.rows import Row

# What tells of a stored row whether it was derived, and is as it would be now.
_DERIVED_SO = ("read_from", "content_hash", "deleted_at")
# What is read of so many traces or sessions may be in memory together.
_IDS_PER_SELECT = 10_000
# Inputs and outputs of many traces do not fit in memory together; how large they are is seen as they come.
_FIRST_GROUP, _GROUP_CHARACTERS = 8, 4_000_000


def derive_traces(
    conn: Connection,
    project_id: str,
    trace_ids: Collection[str],
    now: datetime,
    *,
    if_missing: Collection[str] = (),
    known: Mapping[str, Metrics] = NONE_KNOWN,
    distrust: bool = False,
) -> None:
    """Makes these traces of all their stored observations, as far as no traces API and no copy gave them.

    Args:
        if_missing: Others, which are looked at only if they are not stored.
        known: The metrics of all these traces, for those that are new; without them they are to be refreshed.
        distrust: Look at the stored columns themselves, not only at their hashes.
    """
    unless_stored = set(if_missing).difference(trace_ids)
    with_new = columns_by_key(known)
    for ids in _chunks(unless_stored.union(trace_ids)):
        derived = _derivable(conn, project_id, ids, unless_stored)
        changed = [(row, root) for row, root, stored_so in derived if distrust or not stored_so]
        for rows in _with_contents(conn, changed):
            upsert(
                conn,
                "traces",
                rows,
                now,
                damaged=differences(conn, "traces", rows).keys if distrust else (),
                with_new=with_new,
            )


def differing_traces(conn: Connection, project_id: str, trace_ids: Collection[str], *, light: bool) -> Differences:
    """What of these traces is not stored as it follows from the stored observations; see `derive_traces`.

    Args:
        light: Do not look at contents.
    """
    missing, changed = set[Key](), set[Key]()
    for ids in _chunks(trace_ids):
        expected = [(row, root) for row, root, _ in _derivable(conn, project_id, ids, ())]
        groups = [[_without_contents(row) for row, _ in expected]] if light else _with_contents(conn, expected)
        for rows in groups:
            found = differences(conn, "traces", rows)
            missing |= found.missing
            changed |= found.changed
    return Differences(missing, changed)


def derive_sessions(
    conn: Connection,
    project_id: str,
    session_ids: Collection[str],
    now: datetime,
    *,
    left: Collection[str] = (),
    distrust: bool = False,
) -> None:
    """A row for each of these sessions that no traces API gave, in the environment of its earliest trace.

    Args:
        left: Others, which traces may have left; those that are stored and have any are looked at, too.
        distrust: As in `derive_traces`.
    """
    for derived in _derived_sessions(conn, project_id, session_ids, left):
        rows = [row for row, stored_so in derived if distrust or not stored_so]
        upsert(conn, "sessions", rows, now, damaged=differences(conn, "sessions", rows).keys if distrust else ())


def differing_sessions(conn: Connection, project_id: str, session_ids: Collection[str]) -> Differences:
    """What of these sessions is not stored as it follows from the stored traces; see `derive_sessions`."""
    missing, changed = set[Key](), set[Key]()
    for derived in _derived_sessions(conn, project_id, session_ids, ()):
        found = differences(conn, "sessions", [row for row, _ in derived])
        missing |= found.missing
        changed |= found.changed
    return Differences(missing, changed)


def _derivable(
    conn: Connection, project_id: str, trace_ids: Sequence[str], unless_stored: Collection[str]
) -> Iterator[tuple[Row, Key | None, bool]]:
    """Each of these traces that no traces API and no copy gave, without the contents of its root.

    Args:
        unless_stored: Those that are passed over if they are stored.
    Yields:
        The row, the key of its root (None if it has none), and whether it is stored so by its hash.
    """
    keys = [(project_id, trace_id) for trace_id in trace_ids]
    stored = {trace_id: values for (_, trace_id), values in rows_by_key(conn, traces, keys, _DERIVED_SO)}
    wanted = [
        id_ for id_ in trace_ids if id_ not in stored or (stored[id_][0] == "observations" and id_ not in unless_stored)
    ]
    for trace_id, parts in _parts(conn, project_id, wanted).items():
        row, root = derive.whole_trace(project_id, trace_id, parts), derive.root_of(parts)
        yield row, None if root is None else (project_id, trace_id, root["id"]), _is_so(row, stored.get(trace_id))


def _is_so(row: Row, stored: Sequence[Any] | None) -> bool:
    """Whether a derived row is stored with all it holds, by `_DERIVED_SO` of what is stored."""
    return stored is not None and tuple(stored) == ("observations", row["content_hash"], None)


def _derived_sessions(
    conn: Connection, project_id: str, session_ids: Collection[str], left: Collection[str]
) -> Iterator[list[tuple[Row, bool]]]:
    """The rows of sessions, each with whether it is stored so by its hash; in groups."""
    named = set(session_ids)
    for ids in _chunks(named.union(left)):
        first = conn.execute(_first_environments(conn.dialect.name), {"project": project_id, **listed(ids)}).all()
        environments = {session_id: environment for session_id, trace_id, environment in first if trace_id is not None}
        keys = [(project_id, session_id) for session_id in ids]
        stored = {key[1]: values for key, values in rows_by_key(conn, sessions, keys, _DERIVED_SO)}
        rows = [
            derive.session(project_id, session_id, environments.get(session_id))
            for session_id in ids
            if _is_derivable(session_id in named, session_id in environments, stored.get(session_id))
        ]
        yield [(row, _is_so(row, stored.get(row["id"]))) for row in rows]


@cache
def _first_environments(dialect: str) -> Select[Any]:
    """The earliest trace of each session that `listed` names, and its environment; both null if it has none."""
    # Postgres sorts text by the language of the database, SQLite by its bytes.
    by_bytes = collate(traces.c.id, "C") if dialect == "postgresql" else traces.c.id
    session_id = listed_ids(dialect).c.value
    earliest = (
        select(column)
        .where(
            traces.c.project_id == bindparam("project"),
            traces.c.session_id == session_id,
            traces.c.deleted_at.is_(None),
        )
        .order_by(traces.c.timestamp, by_bytes)
        .limit(1)
        .scalar_subquery()
        for column in (traces.c.id, traces.c.environment)
    )
    return select(session_id, *earliest)


def _is_derivable(named: bool, has_traces: bool, stored: Sequence[Any] | None) -> bool:
    """Whether a session has to be as its traces say, by `_DERIVED_SO` of what is stored."""
    if stored is None:
        return named
    read_from, _, deleted_at = stored
    # One that all its traces have left stays as it was.
    return read_from == "observations" and (has_traces or (named and deleted_at is not None))


def _parts(conn: Connection, project_id: str, trace_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The stored observations of each trace that has any, without their contents."""
    found: dict[str, list[dict[str, Any]]] = {}
    if not trace_ids:
        return found
    query = _parts_query(conn.dialect.name)
    for trace_id, *values in conn.execute(query, {"project": project_id, **listed(trace_ids)}).all():
        found.setdefault(trace_id, []).append(dict(zip(PART_COLUMNS, values, strict=True)))
    return found


@cache
def _parts_query(dialect: str) -> Select[Any]:
    columns = observations.c
    parts = select(columns.trace_id, *(columns[name] for name in PART_COLUMNS)).where(
        columns.project_id == bindparam("project"), columns.deleted_at.is_(None)
    )
    return of_listed(dialect, parts, columns.trace_id)


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


def _without_contents(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in CONTENT_COLUMNS}


def _with_metadata(row: Row) -> Row:
    return row if row["metadata"] else row | {"metadata": NO_METADATA}


def _chunks(ids: Iterable[str]) -> Iterator[list[str]]:
    wanted = sorted(ids)
    for start in range(0, len(wanted), _IDS_PER_SELECT):
        yield wanted[start : start + _IDS_PER_SELECT]
