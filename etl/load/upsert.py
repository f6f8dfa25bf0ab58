"""Rows into tables: what is new, what changed, what stays. Unchanged rows cost no write."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, bindparam, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from etl.load.tables import ROW_TABLES
from etl.transform.rows import Row

Key = tuple[str, ...]

# A greater version replaces a smaller one. One trace id can have a row on each of several dates
# (Langfuse deduplicates by date and id); the time makes the choice between them the same in every order.
_VERSION_COLUMNS = {
    "traces": ("updated_at", "timestamp"),
    "observations": ("updated_at",),
    "scores": ("updated_at",),
    "sessions": (),
}
_TRACES_GENERATION = ("traces", "trace_copy")
# SQLite allows 32,766 variables in a statement (SQLITE_MAX_VARIABLE_NUMBER since 3.32); keys have up to 3 parts.
_KEYS_PER_SELECT = 5_000


class Written(NamedTuple):
    """What became of the rows of one page: `stored` are in the table now, `changed` of them were written."""

    stored: int
    changed: int


class _Stored(NamedTuple):
    content_hash: str
    read_from: str
    deleted: bool
    version: tuple[str, ...]


def upsert(conn: Connection, table_name: str, rows: Iterable[Row], now: datetime) -> Written:
    """Writes what is new or newer; the same rows again write nothing.

    A row replaces a stored one if its `updated_at` is newer or equal, across generations only if it is newer. Of rows
    with equal `updated_at` the one with the later time wins, so that the order of reading does not matter. Columns
    that are not in a row keep their value. Any sighting takes a deletion mark away.

    Args:
        table_name: `traces`, `observations`, `scores` or `sessions`.
        rows: As `transform.rows.from_api` gives them; the same columns in each.
        now: The time of `first_seen_at` and `changed_at`.
    """
    table = ROW_TABLES[table_name]
    key_columns = [column.name for column in table.primary_key]
    newest: dict[Key, Row] = {}
    for row in rows:
        key = tuple(row[name] for name in key_columns)
        if key not in newest or _version(table, row) >= _version(table, newest[key]):
            newest[key] = row
    stored = _stored_rows(conn, table, list(newest))
    inserts = [row for key, row in newest.items() if key not in stored]
    updates = [row for key, row in newest.items() if key in stored and _replaces(table, row, stored[key])]
    written = {id(row) for row in updates}
    revived = [key for key, row in newest.items() if key in stored and stored[key].deleted and id(row) not in written]
    _write(conn, table, inserts + updates, now)
    _unmark(conn, table, revived, now)
    return Written(stored=len(newest), changed=len(inserts) + len(updates) + len(revived))


def insert_or_update(conn: Connection, table: Table, values: Mapping[str, Any]) -> None:
    """Writes one row of a table of ours, whatever stood under its key."""
    insert = _insert(conn, table)
    key = {column.name for column in table.primary_key}
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key), set_={n: insert.excluded[n] for n in values if n not in key}
    )
    conn.execute(statement, [dict(values)])


def _insert(conn: Connection, table: Table) -> Any:
    """Both dialects' own insert, which alone knows ON CONFLICT; their methods have the same names."""
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)


def _version(table: Table, row: Row) -> tuple[str, ...]:
    return tuple(row.get(name) or "" for name in _VERSION_COLUMNS[table.name])


def _replaces(table: Table, row: Row, stored: _Stored) -> bool:
    if row["content_hash"] == stored.content_hash and row["read_from"] == stored.read_from:
        return False
    new = _version(table, row)
    if (row["read_from"] in _TRACES_GENERATION) != (stored.read_from in _TRACES_GENERATION):
        return new[:1] > stored.version[:1]
    # What was deleted comes back as it is now, even as an older version (the same trace id on another date).
    return new >= stored.version or stored.deleted


def _stored_rows(conn: Connection, table: Table, keys: Sequence[Key]) -> dict[Key, _Stored]:
    key_columns = list(table.primary_key)
    state = [table.c.content_hash, table.c.read_from, table.c.deleted_at.is_not(None)]
    version = [table.c[name] for name in _VERSION_COLUMNS[table.name]]
    found: dict[Key, _Stored] = {}
    for start in range(0, len(keys), _KEYS_PER_SELECT):
        chunk = keys[start : start + _KEYS_PER_SELECT]
        query = select(*key_columns, *state, *version).where(tuple_(*key_columns).in_(chunk))
        for row in conn.execute(query):
            key, known = tuple(row[: len(key_columns)]), row[len(key_columns) :]
            found[key] = _Stored(known[0], known[1], known[2], tuple(part or "" for part in known[3:]))
    return found


def _write(conn: Connection, table: Table, rows: list[Row], now: datetime) -> None:
    if not rows:
        return
    insert = _insert(conn, table)
    kept = {column.name for column in table.primary_key} | {"first_seen_at", "deleted_at"}
    written = [*rows[0], "changed_at"]
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: insert.excluded[name] for name in written if name not in kept} | {"deleted_at": None},
    )
    conn.execute(statement, [row | {"first_seen_at": now, "changed_at": now} for row in rows])


def _unmark(conn: Connection, table: Table, keys: list[Key], now: datetime) -> None:
    if not keys:
        return
    columns = list(table.primary_key)
    matches = [column == bindparam(f"key_{column.name}") for column in columns]
    statement = update(table).where(*matches).values(deleted_at=None, changed_at=now)
    conn.execute(statement, [{f"key_{c.name}": part for c, part in zip(columns, key, strict=True)} for key in keys])
