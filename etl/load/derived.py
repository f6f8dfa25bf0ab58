"""What follows from stored observations: metrics of traces, and on v4 the traces and sessions themselves."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Select, bindparam, case, collate, func, select, type_coerce

from etl.load.bulk import update_values
from etl.load.compare import Differences, differences
from etl.load.keys import Key, listed, of_listed, rows_by_key
from etl.load.tables import observations, sessions, traces
from etl.load.types import instant_text
from etl.load.upsert import upsert
from etl.transform import derive
from etl.transform.derive import CONTENT_COLUMNS, NO_METADATA, PART_COLUMNS, Metrics, Span, metrics
from etl.transform.rows import Row

# What is read of so many traces or sessions may be in memory together.
_IDS_PER_SELECT = 10_000
# Inputs and outputs of many traces do not fit in memory together; how large they are is seen as they come.
_FIRST_GROUP, _GROUP_CHARACTERS = 8, 4_000_000


def refresh_trace_metrics(conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime) -> int:
    """Sets `latency` and `total_cost` of these traces where they differ; returns how many did.

    Traces that are not stored are passed over: they are refreshed in the transaction that stores them.
    """
    moment = instant_text(now)
    changes = [
        (*new, moment, project_id, trace_id) for trace_id, new in _other_metrics(conn, project_id, trace_ids).items()
    ]
    update_values(conn, traces, ("latency", "total_cost", "changed_at"), changes)
    return len(changes)


def _other_metrics(conn: Connection, project_id: str, trace_ids: Collection[str]) -> dict[str, Metrics]:
    """What follows from the stored observations of these traces, where something else is stored."""
    found: dict[str, Metrics] = {}
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
        wanted = {"project": project_id, **listed(sorted(stored))}
        for trace_id, start, end in conn.execute(spans_query, wanted).all():
            spans[trace_id].append(Span(_moment(start), _moment(end), None))
        for trace_id, cost_usd in conn.execute(costs_query, wanted).all():
            spans[trace_id].append(Span(None, None, cost_usd))
        fresh = ((trace_id, metrics(parts)) for trace_id, parts in spans.items())
        found.update({trace_id: new for trace_id, new in fresh if new != stored[trace_id]})
    return found


@cache
def _metrics_queries(dialect: str) -> tuple[Select[Any], Select[Any]]:
    """Of each trace that `listed` names: its first start and last end; the cost of each observation with one.

    Costs are added in Python, where they are added as the server does.
    """
    columns = observations.c
    alive = columns.project_id == bindparam("project"), columns.deleted_at.is_(None)
    later = func.greatest if dialect == "postgresql" else func.max
    end = later(columns.start_time, func.coalesce(columns.end_time, columns.start_time))
    # A condition on the start would lead SQLite to an index of times, and so through the whole table.
    last_end = func.max(case((columns.start_time.is_not(None), end)))
    spans = (
        select(columns.trace_id, func.min(columns.start_time), type_coerce(last_end, columns.start_time.type))
        .where(*alive)
        .group_by(columns.trace_id)
    )
    costs = select(columns.trace_id, columns.calculated_total_cost)
    costs = costs.where(*alive, columns.calculated_total_cost != 0)
    return of_listed(dialect, spans, columns.trace_id), of_listed(dialect, costs, columns.trace_id)


def derive_traces(
    conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime, *, distrust: bool = False
) -> None:
    """Makes these traces of all their stored observations, as far as no traces API and no copy gave them.

    Args:
        distrust: Look at the stored columns themselves, not only at their hashes.
    """
    for ids in _chunks(trace_ids):
        derived = _derivable(conn, project_id, ids)
        changed = [(row, root) for row, root, stored_so in derived if distrust or not stored_so]
        for rows in _with_contents(conn, changed):
            upsert(
                conn, "traces", rows, now, damaged=set().union(*differences(conn, "traces", rows)) if distrust else ()
            )


def differing_traces(conn: Connection, project_id: str, trace_ids: Collection[str], *, light: bool) -> Differences:
    """What of these traces is not stored as it follows from the stored observations; see `derive_traces`.

    Args:
        light: Do not look at contents.
    """
    missing, changed = set[Key](), set[Key]()
    for ids in _chunks(trace_ids):
        expected = [(row, root) for row, root, _ in _derivable(conn, project_id, ids)]
        groups = [[_without_contents(row) for row, _ in expected]] if light else _with_contents(conn, expected)
        for rows in groups:
            found = differences(conn, "traces", rows)
            missing |= found.missing
            changed |= found.changed
    return Differences(missing, changed)


def differing_metrics(conn: Connection, project_id: str, trace_ids: Collection[str]) -> set[Key]:
    """The stored traces whose latency or cost is not what follows from the stored observations."""
    return {(trace_id,) for trace_id in _other_metrics(conn, project_id, trace_ids)}


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
    for rows in _derived_sessions(conn, project_id, session_ids, left):
        upsert(
            conn, "sessions", rows, now, damaged=set().union(*differences(conn, "sessions", rows)) if distrust else ()
        )


def differing_sessions(conn: Connection, project_id: str, session_ids: Collection[str]) -> Differences:
    """What of these sessions is not stored as it follows from the stored traces; see `derive_sessions`."""
    missing, changed = set[Key](), set[Key]()
    for rows in _derived_sessions(conn, project_id, session_ids, ()):
        found = differences(conn, "sessions", rows)
        missing |= found.missing
        changed |= found.changed
    return Differences(missing, changed)


def _derivable(conn: Connection, project_id: str, trace_ids: Sequence[str]) -> Iterator[tuple[Row, Key | None, bool]]:
    """Each of these traces that no traces API and no copy gave, without the contents of its root.

    Yields:
        The row, the key of its root (None if it has none), and whether it is stored so by its hash.
    """
    keys = [(project_id, trace_id) for trace_id in trace_ids]
    stored = {
        trace_id: values
        for (_, trace_id), values in rows_by_key(conn, traces, keys, ["read_from", "content_hash", "deleted_at"])
    }
    wanted = [id_ for id_ in trace_ids if id_ not in stored or stored[id_][0] == "observations"]
    for trace_id, parts in _parts(conn, project_id, wanted).items():
        row, root = derive.whole_trace(project_id, trace_id, parts), derive.root_of(parts)
        stored_so = tuple(stored.get(trace_id, ())) == ("observations", row["content_hash"], None)
        yield row, None if root is None else (project_id, trace_id, root["id"]), stored_so


def _derived_sessions(
    conn: Connection, project_id: str, session_ids: Collection[str], left: Collection[str]
) -> Iterator[list[Row]]:
    named = set(session_ids)
    for ids in _chunks(named.union(left)):
        first = conn.execute(_first_environments(conn.dialect.name), {"project": project_id, **listed(ids)}).all()
        environments = {row.session_id: row.environment for row in first}
        keys = [(project_id, session_id) for session_id in ids]
        stored = {key[1]: values for key, values in rows_by_key(conn, sessions, keys, ["read_from", "deleted_at"])}
        yield [
            derive.session(project_id, session_id, environments.get(session_id))
            for session_id in ids
            if _is_derivable(session_id in named, session_id in environments, *stored.get(session_id, ()))
        ]


@cache
def _first_environments(dialect: str) -> Select[Any]:
    """The environment of the earliest trace of each session that `listed` names."""
    # Postgres sorts text by the language of the database, SQLite by its bytes.
    by_bytes = collate(traces.c.id, "C") if dialect == "postgresql" else traces.c.id
    place = func.row_number().over(partition_by=traces.c.session_id, order_by=(traces.c.timestamp, by_bytes))
    placed = select(traces.c.session_id, traces.c.environment, place.label("place")).where(
        traces.c.project_id == bindparam("project"), traces.c.deleted_at.is_(None)
    )
    ranked = of_listed(dialect, placed, traces.c.session_id).subquery()
    return select(ranked.c.session_id, ranked.c.environment).where(ranked.c.place == 1)


def _is_derivable(named: bool, has_traces: bool, read_from: str | None = None, deleted_at: Any = None) -> bool:
    """Whether a session, stored with `read_from` or not at all, has to be as its traces say."""
    if read_from is None:
        return named
    # One that all its traces have left stays as it was.
    return read_from == "observations" and (has_traces or (named and deleted_at is not None))


def _parts(conn: Connection, project_id: str, trace_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The stored observations of each trace that has any, without their contents."""
    found: dict[str, list[dict[str, Any]]] = {}
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


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
