"""Rows that Langfuse has no more: seen by their absence, never by one look alone.

A generation of the API vouches for the rows that it gave, and, once its history is whole (`known_since`), for those of
the other generation, too, but for the ones that it lacked by then: `note_unknown` has noted these, and whoever noted
what in `sync_absences` is told by the time. On v4 a trace that the traces API gave is seen through its copy or through
its observations; only with the last of these gone it can be missed.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Exists,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from etl.intervals import MILLISECOND, Window
from etl.load.keys import Key, is_key_listed, listed, of_listed, rows_by_key
from etl.load.tables import ROW_TABLES, TIME_COLUMNS, observations, sessions, sync_absences, traces
from etl.load.types import instant_text

# Deletion shows in Langfuse after seconds, but a replica or a backlog may hide rows for a while.
CONFIRM_AFTER = timedelta(hours=1)
# More at once is rather a filter, a retention rule or a broken answer than somebody's delete button.
MOST_ROWS, MOST_SHARE = 10, 0.05
_MOST_CONFIRMED_PER_RUN = 20


class Absences(NamedTuple):
    """What a complete read of a window says about stored rows.

    `deleted` are keys that were marked now. If `too_many`, nothing was marked, and the window is doubtful.
    """

    deleted: list[Key]
    too_many: bool


def settle_absences(
    conn: Connection,
    project_id: str,
    stream: str,
    window: Window,
    seen: Collection[Key],
    *,
    read_from: Collection[str],
    read_started_at: datetime,
    read_at: datetime,
    known_since: datetime | None = None,
    confirmed: bool = False,
    environments: Collection[str] | None = None,
    all_stored: bool = False,
) -> Absences:
    """Compares a complete read of `window` with what is stored there.

    A row is marked `deleted_at` when two complete reads by a generation that knew it, at least `CONFIRM_AFTER` apart
    and both begun after it was stored, lack it.

    Args:
        seen: The keys that the read brought, without the project: (id,), or (trace_id, id) for observations.
        read_from: Which rows this generation gives, by their `read_from`.
        known_since: See `stored_keys`.
        read_started_at: The run's clock reading; marks carry it.
        read_at: The same clock when the read was over. What is lacking is noted with it: a long run may look hours
            after it began, and the next one, a minute later, must not count as a look an hour later.
        environments: Only rows of these were asked for; None for all.
        confirmed: A person asked for it (`verify --repair`): one look is enough, and there is no limit.
        all_stored: Each row that was seen is surely stored, with the time that it came with. Then their number tells
            whether there are others.
    """
    place = _Place(project_id, stream, window, read_from, read_started_at, environments)
    # Rows that this very run stored are among those seen, and count.
    if all_stored and known_since is None and not _has_others(conn, place._replace(before=None), len(seen)):
        return Absences([], too_many=False)
    if not _to_settle(conn, place, seen, foreign=known_since is not None):
        return Absences([], too_many=False)
    _forget(conn, project_id, stream, set(seen))
    missing = _keys_in(conn, place, known_since, but=seen)
    if not missing:
        return Absences([], too_many=False)
    believed = confirmed or len(missing) <= MOST_ROWS
    if not believed and len(missing) > MOST_SHARE * len(_keys_in(conn, place, known_since)):
        return Absences([], too_many=True)
    noticed = _noticed(conn, project_id, stream, missing)
    due = missing if confirmed else {k for k, at in noticed.items() if read_started_at - at >= CONFIRM_AFTER}
    _mark(conn, ROW_TABLES[stream], project_id, due, read_started_at)
    _forget(conn, project_id, stream, due)
    _note(conn, project_id, stream, missing - due - set(noticed), read_at)
    return Absences(sorted(due), too_many=False)


def note_unknown(
    conn: Connection,
    project_id: str,
    stream: str,
    window: Window,
    seen: Collection[Key],
    *,
    read_from: Collection[str],
    now: datetime,
    environments: Collection[str] | None = None,
) -> None:
    """Notes the stored rows of `window` that the other generation gave and that this one lacks, before it is whole."""
    _forget(conn, project_id, stream, set(seen))
    unknown = _keys_but(conn, _Place(project_id, stream, window, read_from, None, environments), seen, foreign=True)
    _note(conn, project_id, stream, unknown - set(_noticed(conn, project_id, stream, unknown)), now)


def absences_to_confirm(
    conn: Connection, project_id: str, stream: str, now: datetime, *, noticed_from: datetime | None = None
) -> list[Window]:
    """The milliseconds of stored rows that a complete read lacked long enough ago, newest first; few at a time.

    No tier may come by there again: rows are read about twice per tier in their life.

    Args:
        noticed_from: What was noted earlier is no deletion; see `note_unknown`.
    """
    absent = sync_absences.c
    due = select(absent.trace_id, absent.id).where(
        absent.project_id == project_id,
        absent.stream == stream,
        absent.noticed_at <= now - CONFIRM_AFTER,
        *(() if noticed_from is None else (absent.noticed_at >= noticed_from,)),
    )
    keys = [(project_id, *_key_noted_as(stream, *row)) for row in conn.execute(due).all()]
    # Not joined: there are few absences, and SQLite would read the times of all rows to have the newest first.
    stored = rows_by_key(conn, ROW_TABLES[stream], keys, [TIME_COLUMNS[stream].name, "deleted_at"])
    times = {time for _, (time, deleted_at) in stored if time is not None and deleted_at is None}
    starts = map(datetime.fromisoformat, sorted(times, reverse=True)[:_MOST_CONFIRMED_PER_RUN])
    return [Window(start, start + MILLISECOND) for start in starts]


def mark_left_without_rows(
    conn: Connection, project_id: str, trace_ids: Collection[str], now: datetime, *, read_at: datetime
) -> None:
    """Marks derived traces whose last observation was deleted.

    A trace that the traces API gave may have a copy among the observations; so it is noted as absent, and marked when
    a read of its place an hour later shows none. What was read from this API itself is missed by its own reads.
    """
    of_trace = _with_observations()
    derived = (traces.c.project_id == project_id, traces.c.read_from == "observations", traces.c.deleted_at.is_(None))
    given = (traces.c.project_id == project_id, traces.c.read_from == "traces", traces.c.deleted_at.is_(None))

    def without_rows(*conditions: ColumnElement[bool]) -> set[Key]:
        query = of_listed(conn.dialect.name, select(traces.c.id).where(*conditions, ~of_trace), traces.c.id)
        return {(trace_id,) for trace_id in conn.execute(query, listed(list(trace_ids))).scalars()}

    _mark(conn, traces, project_id, without_rows(*derived), now)
    left = without_rows(*given)
    _note(conn, project_id, "traces", left - set(_noticed(conn, project_id, "traces", left)), read_at)


def mark_sessions_left_without_traces(
    conn: Connection, project_id: str, session_ids: Collection[str], now: datetime
) -> set[str]:
    """Marks those of these sessions that were derived and have no trace any more; the other derived ones, by id."""
    of_session = exists().where(
        traces.c.project_id == sessions.c.project_id,
        traces.c.session_id == sessions.c.id,
        traces.c.deleted_at.is_(None),
    )
    derived = select(sessions.c.id, sessions.c.deleted_at, of_session.label("lives")).where(
        sessions.c.project_id == project_id, sessions.c.read_from == "observations"
    )
    query = of_listed(conn.dialect.name, derived, sessions.c.id)
    found = conn.execute(query, listed(list(session_ids))).all()
    left: set[Key] = {(row.id,) for row in found if not row.lives and row.deleted_at is None}
    _mark(conn, sessions, project_id, left, now)
    return {row.id for row in found if row.lives}


def derived_without_observations(conn: Connection, project_id: str, window: Window) -> set[str]:
    """Traces of a window that were derived, by id, though no observation of them is stored."""
    place = _Place(project_id, "traces", window, ("observations",))
    derived = _in_window(place.look).where(_own(place.look), ~_with_observations())
    return set(conn.execute(derived, place.values()).scalars())


def stored_keys(
    conn: Connection,
    project_id: str,
    stream: str,
    window: Window,
    *,
    read_from: Collection[str],
    known_since: datetime | None = None,
    before: datetime | None = None,
    environments: Collection[str] | None = None,
    but: Collection[Key] = (),
) -> set[Key]:
    """The keys, without the project, of stored rows of a window that a generation of the API would bring now.

    Args:
        read_from: Which rows it gives itself, by that column.
        known_since: When it was found to have its whole history; rows of the other generation that it did not lack
            then are among the keys. None if it was not, or if there never was another generation.
        before: Only rows first seen before this moment; None for all.
        environments: Only rows of these environments; None for all.
        but: Keys that are not asked for.
    """
    place = _Place(project_id, stream, window, read_from, before, environments)
    return _keys_in(conn, place, known_since, but=but)


class _Look(NamedTuple):
    """What makes one statement about rows of a window another than the next one."""

    stream: str
    read_from: tuple[str, ...]
    only_before: bool
    by_environment: bool


class _Place(NamedTuple):
    """Rows of a window, as `stored_keys` describes them."""

    project_id: str
    stream: str
    window: Window
    read_from: Collection[str]
    before: datetime | None = None
    environments: Collection[str] | None = None

    @property
    def look(self) -> _Look:
        read_from = tuple(sorted(self.read_from))
        return _Look(self.stream, read_from, self.before is not None, self.environments is not None)

    def values(self, keys: Collection[Key] = ()) -> dict[str, Any]:
        """For the statements of `look`, with `is_key_listed`."""
        found = {
            "project": self.project_id,
            "from_time": instant_text(self.window.start),
            "to_time": instant_text(self.window.end),
            **listed(list(keys)),
        }
        if self.before is not None:
            found["before"] = self.before
        if self.environments is not None:
            found["environments"] = sorted(self.environments)
        return found


def _keys_in(conn: Connection, place: _Place, known_since: datetime | None, *, but: Collection[Key] = ()) -> set[Key]:
    """See `stored_keys`."""
    keys = _keys_but(conn, place, but, foreign=False)
    if known_since is not None:
        given = _keys_but(conn, place, but, foreign=True)
        noticed = _noticed(conn, place.project_id, place.stream, given)
        keys |= {key for key in given if key not in noticed or noticed[key] >= known_since}
    return keys


def _keys_but(conn: Connection, place: _Place, but: Collection[Key], *, foreign: bool) -> set[Key]:
    """The keys of the rows beside `but`; the database leaves these out, so that they are not fetched.

    Args:
        foreign: Of the rows that the other generation of the API gave, and that this one can be missing.
    """
    others = _others(conn.dialect.name, place.look, foreign)
    return {tuple(row) for row in conn.execute(others, place.values(but)).all()}


def _has_others(conn: Connection, place: _Place, seen: int) -> bool:
    """Whether there are other rows than so many of this generation, or any row of the stream was noted as absent."""
    rows, notes = conn.execute(_counts(place.look), place.values()).one()
    return bool(rows != seen or notes)


@cache
def _counts(look: _Look) -> Select[Any]:
    absent = sync_absences.c
    rows = _in_window(look).where(_own(look)).with_only_columns(func.count())
    notes = select(func.count()).where(absent.project_id == bindparam("project"), absent.stream == look.stream)
    return select(rows.scalar_subquery(), notes.scalar_subquery())


def _to_settle(conn: Connection, place: _Place, seen: Collection[Key], *, foreign: bool) -> bool:
    """Whether stored rows are not among those seen, or any of those was noted as absent: mostly neither is so.

    Args:
        foreign: Whether to look at rows that the other generation of the API gave, too.
    """
    anything = _to_settle_query(conn.dialect.name, place.look, foreign)
    return conn.execute(anything, place.values(seen)).first() is not None


@cache
def _to_settle_query(dialect: str, look: _Look, foreign: bool) -> Select[Any]:
    absent = sync_absences.c
    noted_as = (absent.trace_id, absent.id) if look.stream == "observations" else (absent.id,)
    noted = select(absent.id).where(
        absent.project_id == bindparam("project"), absent.stream == look.stream, is_key_listed(dialect, noted_as)
    )
    found = [noted, _others(dialect, look, False), *([_others(dialect, look, True)] if foreign else [])]
    # Asked whether there is any, Postgres reads the table from its beginning instead of the index of times.
    counts = (query.with_only_columns(func.count()).scalar_subquery() for query in found)
    return select(literal_column("1")).where(or_(*(count > 0 for count in counts)))


@cache
def _others(dialect: str, look: _Look, foreign: bool) -> Select[Any]:
    """The keys of rows of a window, without those that `listed` gives to the statement."""
    chosen = _foreign(look) if foreign else _own(look)
    return _in_window(look).where(chosen, ~is_key_listed(dialect, _key_columns(ROW_TABLES[look.stream])))


def _own(look: _Look) -> ColumnElement[bool]:
    return or_(*(ROW_TABLES[look.stream].c.read_from == one for one in look.read_from))


def _foreign(look: _Look) -> ColumnElement[bool]:
    if "trace_copy" in look.read_from:
        return and_(traces.c.read_from == "traces", ~_with_observations())
    return ~_own(look)


def _in_window(look: _Look) -> Select[Any]:
    """The keys of rows of a window that are not marked as deleted."""
    table, time = ROW_TABLES[look.stream], TIME_COLUMNS[look.stream]
    query = select(*_key_columns(table)).where(
        table.c.project_id == bindparam("project"),
        time >= bindparam("from_time"),
        time < bindparam("to_time"),
        table.c.deleted_at.is_(None),
    )
    if look.by_environment:
        query = query.where(table.c.environment.in_(bindparam("environments", expanding=True)))
    return query.where(table.c.first_seen_at < bindparam("before")) if look.only_before else query


def _with_observations() -> Exists:
    """Whether a row of `traces` has observations that are not marked as deleted."""
    return exists().where(
        observations.c.project_id == traces.c.project_id,
        observations.c.trace_id == traces.c.id,
        observations.c.deleted_at.is_(None),
    )


def _note(conn: Connection, project_id: str, stream: str, keys: Collection[Key], now: datetime) -> None:
    rows = [
        {"project_id": project_id, "stream": stream, "trace_id": _trace_id(key), "id": key[-1], "noticed_at": now}
        for key in sorted(keys)
    ]
    if rows:
        conn.execute(insert(sync_absences), rows)


def _key_columns(table: Table) -> list[Column[Any]]:
    return [column for column in table.primary_key if column.name != "project_id"]


def _noticed(conn: Connection, project_id: str, stream: str, keys: set[Key]) -> dict[Key, datetime]:
    columns = sync_absences.c
    query = select(columns.trace_id, columns.id, columns.noticed_at).where(
        columns.project_id == project_id,
        columns.stream == stream,
        is_key_listed(conn.dialect.name, (columns.trace_id, columns.id)),
    )
    found = conn.execute(query, listed(_noted_as(keys))).all()
    return {_key_noted_as(stream, trace_id, row_id): at for trace_id, row_id, at in found}


def _forget(conn: Connection, project_id: str, stream: str, keys: set[Key]) -> None:
    columns = sync_absences.c
    seen_again = delete(sync_absences).where(
        columns.project_id == project_id,
        columns.stream == stream,
        is_key_listed(conn.dialect.name, (columns.trace_id, columns.id)),
    )
    if keys:
        conn.execute(seen_again, listed(_noted_as(keys)))


def _mark(conn: Connection, table: Table, project_id: str, keys: set[Key], now: datetime) -> None:
    gone = is_key_listed(conn.dialect.name, _key_columns(table))
    statement = update(table).where(table.c.project_id == project_id, gone)
    if keys:
        conn.execute(statement.values(deleted_at=now, changed_at=now), listed(sorted(keys)))


def _key_noted_as(stream: str, trace_id: str, row_id: str) -> Key:
    return (trace_id, row_id) if stream == "observations" else (row_id,)


def _noted_as(keys: Collection[Key]) -> list[Key]:
    return [(_trace_id(key), key[-1]) for key in keys]


def _trace_id(key: Key) -> str:
    return key[0] if len(key) == 2 else ""
