"""What follows from stored observations: on v4 the traces and sessions themselves; of metrics see `load.metrics`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, collate, select

from etl.load.compare import Differences, differences
from etl.load.keys import Key, beside_listed, listed, of_listed, rows_by_key
from etl.load.tables import observations, sessions, traces
from etl.load.upsert import NOTHING_MORE, Stored, stored_columns, stored_of, stored_rows, upsert
from etl.transform import derive
from etl.transform.derive import CONTENT_COLUMNS, NO_METADATA, PART_COLUMNS
from etl.transform.rows import Row

# Metrics follow from the same rows.
_PART = (*PART_COLUMNS, "end_time", "calculated_total_cost")
# What is read of so many traces or sessions may be in memory together.
_IDS_PER_SELECT = 10_000
# Inputs and outputs of many traces do not fit in memory together; how large they are is seen as they come.
_FIRST_GROUP, _GROUP_CHARACTERS = 8, 4_000_000


def derive_traces(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> None:
    """Makes these traces of all their stored observations, as far as no traces API and no copy gave them.

    The metrics of those that are new are to be refreshed.
    """
    for stored, parts in _derivable(conn, project_id, trace_ids):
        write_traces(conn, project_id, parts, now, stored=stored)


def write_traces(
    conn: Connection,
    project_id: str,
    parts: Mapping[str, Sequence[Row]],
    now: datetime,
    *,
    stored: Mapping[Key, Stored],
    with_new: Mapping[Key, Row] = NOTHING_MORE,
    distrust: bool = False,
) -> set[str]:
    """Makes these traces of all their observations.

    Args:
        parts: The observations of each trace, as `stored_parts` gives them or as they were just written.
        stored: Those of the traces that are stored, by their whole keys.
        with_new: As in `upsert`: the metrics of these traces, without which they are to be refreshed.
        distrust: Look at the stored columns themselves, not only at their hashes.
    Returns:
        The sessions that the traces belong to.
    """
    derived = _whole_traces(project_id, parts)
    changed = [(row, root) for row, root in derived if distrust or not _is_so(row, stored)]
    for rows in _with_contents(conn, changed):
        damaged = differences(conn, "traces", rows).keys if distrust else ()
        upsert(conn, "traces", rows, now, damaged=damaged, with_new=with_new, stored=stored)
    return {row["session_id"] for row, _ in derived if row["session_id"]}


def is_derivable(stored: Stored | None) -> bool:
    """Whether a trace or a session is to be as what is stored of its parts says: no API and no copy gave it."""
    return stored is None or stored.read_from == "observations"


def differing_traces(conn: Connection, project_id: str, trace_ids: Collection[str], *, light: bool) -> Differences:
    """What of these traces is not stored as it follows from the stored observations; see `derive_traces`.

    Args:
        light: Do not look at contents.
    """
    missing, changed = set[Key](), set[Key]()
    for _, parts in _derivable(conn, project_id, trace_ids):
        expected = _whole_traces(project_id, parts)
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
    if_alive: Collection[str] = (),
    left: Collection[str] = (),
    distrust: bool = False,
) -> None:
    """A row for each of these sessions that no traces API gave, in the environment of its earliest trace.

    Args:
        if_alive: Others, which are looked at only if they have traces.
        left: Others, which traces may have left; those that are stored and have any are looked at, too.
        distrust: As in `write_traces`.
    """
    for derived, stored in _derived_sessions(conn, project_id, session_ids, if_alive, left):
        rows = [row for row in derived if distrust or not _is_so(row, stored)]
        damaged = differences(conn, "sessions", rows).keys if distrust else ()
        upsert(conn, "sessions", rows, now, damaged=damaged, stored=stored)


def differing_sessions(conn: Connection, project_id: str, session_ids: Collection[str]) -> Differences:
    """What of these sessions is not stored as it follows from the stored traces; see `derive_sessions`."""
    missing, changed = set[Key](), set[Key]()
    for derived, _ in _derived_sessions(conn, project_id, session_ids, (), ()):
        found = differences(conn, "sessions", derived)
        missing |= found.missing
        changed |= found.changed
    return Differences(missing, changed)


def _derivable(
    conn: Connection, project_id: str, trace_ids: Collection[str]
) -> Iterator[tuple[dict[Key, Stored], dict[str, list[Row]]]]:
    """Those of these traces that are stored, and the parts of those that no traces API and no copy gave; in groups."""
    for ids in _chunks(trace_ids):
        stored = stored_rows(conn, traces, [(project_id, trace_id) for trace_id in ids])
        wanted = [trace_id for trace_id in ids if is_derivable(stored.get((project_id, trace_id)))]
        yield stored, stored_parts(conn, project_id, wanted)


def _whole_traces(project_id: str, parts: Mapping[str, Sequence[Row]]) -> list[tuple[Row, Key | None]]:
    """The row of each trace that has parts, and the key of its root; None if the row lacks none of its contents."""
    found: list[tuple[Row, Key | None]] = []
    for trace_id, those in parts.items():
        if those:
            root = derive.root_of(those)
            # As `stored_parts` gives it; a row of a page has its contents with it.
            lacking = None if root is None or "metadata" in root else (project_id, trace_id, root["id"])
            found.append((derive.whole_trace(project_id, trace_id, those), lacking))
    return found


def _is_so(row: Row, stored: Mapping[Key, Stored]) -> bool:
    """Whether a derived row is stored with all it holds, by its hash."""
    old = stored.get((row["project_id"], row["id"]))
    return (
        old is not None
        and old.read_from == "observations"
        and old.content_hash == row["content_hash"]
        and not old.deleted
    )


def _derived_sessions(
    conn: Connection,
    project_id: str,
    session_ids: Collection[str],
    if_alive: Collection[str],
    left: Collection[str],
) -> Iterator[tuple[list[Row], dict[Key, Stored]]]:
    """The rows of sessions, and those of them that are stored; in groups."""
    named, alive = set(session_ids), set(if_alive)
    for ids in _chunks(named.union(alive, left)):
        found = conn.execute(_sessions_query(conn.dialect.name), {"project": project_id, **listed(ids)}).all()
        stored: dict[Key, Stored] = {
            (project_id, id_): stored_of(values) for id_, _, _, *values in found if values[0] is not None
        }
        rows = [
            derive.session(project_id, id_, environment)
            for id_, trace_id, environment, *_ in found
            if _is_told(id_ in named, id_ in alive, trace_id is not None, stored.get((project_id, id_)))
        ]
        yield rows, stored


@cache
def _sessions_query(dialect: str) -> Select[Any]:
    """The earliest trace of each session that `listed` names, and its environment; then what is stored of the session.

    All of it may be null.
    """
    # Postgres sorts text by the language of the database, SQLite by its bytes.
    by_bytes = collate(traces.c.id, "C") if dialect == "postgresql" else traces.c.id
    beside = beside_listed(dialect, sessions, stored_columns(sessions))
    earliest = (
        select(column)
        .where(
            traces.c.project_id == bindparam("project"),
            traces.c.session_id == beside.id,
            traces.c.deleted_at.is_(None),
        )
        .order_by(traces.c.timestamp, by_bytes)
        .limit(1)
        .correlate_except(traces)
        .scalar_subquery()
        for column in (traces.c.id, traces.c.environment)
    )
    return select(beside.id, *earliest, *beside.columns.values()).select_from(beside.source)


def _is_told(named: bool, if_alive: bool, has_traces: bool, stored: Stored | None) -> bool:
    """Whether a session has to be as its traces say."""
    if stored is None:
        return named or (if_alive and has_traces)
    # One that all its traces have left stays as it was.
    return is_derivable(stored) and (has_traces or (named and stored.deleted))


def stored_parts(conn: Connection, project_id: str, trace_ids: Collection[str]) -> dict[str, list[Row]]:
    """What traces are made of: the stored observations of each that has any, without their contents."""
    found: dict[str, list[Row]] = {}
    if not trace_ids:
        return found
    query = _parts_query(conn.dialect.name)
    for trace_id, *values in conn.execute(query, {"project": project_id, **listed(list(trace_ids))}).all():
        found.setdefault(trace_id, []).append(dict(zip(_PART, values, strict=True)))
    return found


@cache
def _parts_query(dialect: str) -> Select[Any]:
    columns = observations.c
    parts = select(columns.trace_id, *(columns[name] for name in _PART)).where(
        columns.project_id == bindparam("project"), columns.deleted_at.is_(None)
    )
    return of_listed(dialect, parts, columns.trace_id)


def _with_contents(conn: Connection, rows: Sequence[tuple[Row, Key | None]]) -> Iterator[list[Row]]:
    """The rows with the contents of their roots, in groups of a few megabytes; first those that lack nothing.

    Args:
        rows: Each with the key of its root; None if it lacks nothing.
    """
    if whole := [row for row, root in rows if root is None]:
        yield whole
    lacking = [(row, root) for row, root in rows if root is not None]
    start, size = 0, _FIRST_GROUP
    while start < len(lacking):
        group = lacking[start : start + size]
        contents = {
            key: dict(zip(CONTENT_COLUMNS, values, strict=True))
            for key, values in rows_by_key(conn, observations, [root for _, root in group], CONTENT_COLUMNS)
        }
        held = sum(len(value) for values in contents.values() for value in values.values() if value is not None)
        # Rows of their own, so that those of the groups before do not stay.
        yield [_with_metadata(row | contents.pop(root)) for row, root in group]
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
