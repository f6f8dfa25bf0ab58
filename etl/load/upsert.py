"""Rows into tables: what is new, what changed, what stays. Unchanged rows cost no write."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from operator import itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, bindparam, update
from sqlalchemy.dialects import postgresql, sqlite

from etl.load.bulk import insert_values, update_values, upsert_values
from etl.load.keys import Key, rows_by_key
from etl.load.tables import CONTENTS, ROW_TABLES
from etl.load.types import JsonText, instant_text
from etl.transform.documents import canonical
from etl.transform.jsontext import dumps, loads
from etl.transform.pages import contents_missing, with_contents_known
from etl.transform.rows import Row, merged_exact

# A greater version replaces a smaller one. One trace id can have a row on each of several dates
# (Langfuse deduplicates by date and id); the time makes the choice between them the same in every order.
_VERSION_COLUMNS = {
    "traces": ("updated_at", "timestamp"),
    "observations": ("updated_at",),
    "scores": ("updated_at",),
    "sessions": (),
}
# Rows of these tables that were read from observations were put together from them: there is no such answer.
_DERIVABLE = ("traces", "sessions")
NOTHING_MORE: Mapping[Key, Row] = MappingProxyType({})


class Written(NamedTuple):
    """What became of the rows of one page.

    Attributes:
        stored: How many are in the table now.
        changed: How many of them were written.
        contested: How many of them met a stored row that said something else, or was marked as deleted, whichever of
            the two is stored now. The same in another spelling is none of these.
    """

    stored: int
    changed: int
    contested: int


def written_together(parts: Iterable[Written]) -> Written:
    """What became of the rows of several tables."""
    stored, changed, contested = map(sum, zip(*parts, strict=True))
    return Written(stored, changed, contested)


class Stored(NamedTuple):
    """What decides, of a stored row, whether a reading replaces it."""

    content_hash: str
    read_from: str
    deleted: bool
    extra: str | None
    exact: str | None
    version: tuple[str, ...]


def upsert(
    conn: Connection,
    table_name: str,
    rows: Iterable[Row],
    now: datetime,
    *,
    damaged: Collection[Key] = (),
    with_new: Mapping[Key, Row] = NOTHING_MORE,
    stored: Mapping[Key, Stored] | None = None,
) -> Written:
    """Writes what is new or newer; the same rows again write nothing.

    A row replaces a stored one if its `updated_at` is newer or equal; if another API (or the copy of a trace among
    observations) gave the stored one, only if it is newer, or if it has the contents that the other API could not send.
    Of rows with equal `updated_at` the one with the later time wins, so that the order of reading does not matter. A
    row that was derived gives way to every answer of an API, and to the next derivation. Columns that are not in a row
    keep their value, with their part of `exact`. A row of another hash that says the same is unchanged, as is a row
    without contents that shows nothing new. Any sighting takes a deletion mark away.

    Args:
        table_name: `traces`, `observations`, `scores` or `sessions`.
        rows: As `transform.rows.from_api` gives them, or derived; the same columns in each.
        now: The time of `first_seen_at` and `changed_at`.
        damaged: Keys, without the project, whose stored columns may not be what their hash says: they are written anew.
        with_new: More columns of rows that are not stored yet, by their keys without the project; for all of the rows
            or for none.
        stored: Those of the rows that are stored, by their whole keys, where that is known; else they are looked up.
    """
    table = ROW_TABLES[table_name]
    newest = newest_by_key(table, rows)
    if stored is None:
        stored = stored_rows(conn, table, newest)
    unsent = {key for key in newest.keys() & stored.keys() if contents_missing(newest[key]["exact"])}
    for key in unsent:
        newest[key] = _with_contents_known(table, newest[key], stored[key])
    inserts = [row | with_new[key[1:]] if with_new else row for key, row in newest.items() if key not in stored]
    differing = {
        key: row
        for key, row in newest.items()
        if key in stored and (key[1:] in damaged or not _is_known(row, stored[key]))
    }
    replacing = {key: row for key, row in differing.items() if key[1:] in damaged or _replaces(table, row, stored[key])}
    same = {key: replacing.pop(key) for key in _saying_the_same(conn, table, replacing, stored)}
    updates = [_with_rest(table, row, stored[key]) for key, row in replacing.items()]
    revived = [key for key in newest if key in stored and stored[key].deleted and key not in replacing]
    _write(conn, table, inserts, now, insert_values)
    _write(conn, table, updates, now, upsert_values)
    _unmark(conn, table, revived, now)
    # The next look at them shall be a short one; that is no change of content.
    # Where contents could not be sent, the hash leaves them out.
    hashes = [(row["content_hash"], *key) for key, row in same.items() if key not in unsent]
    update_values(conn, table, ("content_hash",), hashes)
    return Written(
        stored=len(newest),
        changed=len(inserts) + len(updates) + len(revived),
        contested=len(differing) - len(same) + len(revived),
    )


def insert_or_update(
    conn: Connection, table: Table, values: Mapping[str, Any], *, only_over: ColumnElement[bool] | None = None
) -> bool:
    """Writes one row of a table of ours, whatever stood under its key, or only over a row that fits `only_over`.

    Returns:
        Whether it was written.
    """
    insert = _insert(conn, table)
    key = {column.name for column in table.primary_key}
    statement = insert.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={n: insert.excluded[n] for n in values if n not in key},
        where=only_over,
    )
    result = conn.execute(statement, dict(values), execution_options={"preserve_rowcount": True})
    return result.rowcount == 1


def _insert(conn: Connection, table: Table) -> Any:
    """Both dialects' own insert, which alone knows ON CONFLICT; their methods have the same names."""
    return postgresql.insert(table) if conn.dialect.name == "postgresql" else sqlite.insert(table)


def newest_by_key(table: Table, rows: Iterable[Row]) -> dict[Key, Row]:
    """The greatest version of each row, by its whole key; of equal ones the last."""
    key_of = itemgetter(*(column.name for column in table.primary_key))
    newest: dict[Key, Row] = {}
    for row in rows:
        key = key_of(row)
        if key not in newest or version(table, row) >= version(table, newest[key]):
            newest[key] = row
    return newest


def version(table: Table, row: Mapping[str, Any]) -> tuple[str, ...]:
    """What decides between two readings of one row: the greater replaces the smaller."""
    return tuple(row.get(name) or "" for name in _VERSION_COLUMNS[table.name])


def outranks(table: Table, row: Row, read_from: str, stored_version: tuple[str, ...], *, brings_contents: bool) -> bool:
    """Whether a reading may stand in place of a stored one that was `read_from` there and has this `version`.

    Args:
        brings_contents: The server could not send the contents of the stored one, and this one has them, or may.
    """
    if table.name in _DERIVABLE and read_from == "observations":
        return True
    new = version(table, row)
    if row["read_from"] == read_from:
        return new >= stored_version
    return brings_contents or new[:1] > stored_version[:1]


def _is_known(row: Row, stored: Stored) -> bool:
    return bool(row["content_hash"] == stored.content_hash and row["read_from"] == stored.read_from)


def _replaces(table: Table, row: Row, stored: Stored) -> bool:
    """Of a row that is not known."""
    # What was deleted comes back as it is now, even as an older version (the same trace id on another date).
    brings = contents_missing(stored.exact) and not contents_missing(row["exact"])
    better = outranks(table, row, stored.read_from, stored.version, brings_contents=brings)
    return better or (row["read_from"] == stored.read_from and stored.deleted)


def stored_columns(table: Table) -> tuple[str, ...]:
    """What `stored_of` needs of a stored row."""
    return ("content_hash", "read_from", "deleted_at", "extra", "exact", *_VERSION_COLUMNS[table.name])


def stored_of(values: Sequence[Any]) -> Stored:
    """A stored row by the values of its `stored_columns`."""
    content_hash, read_from, deleted_at, extra, exact, *parts = values
    return Stored(content_hash, read_from, deleted_at is not None, extra, exact, tuple(part or "" for part in parts))


def stored_rows(conn: Connection, table: Table, keys: Collection[Key]) -> dict[Key, Stored]:
    """Those of these rows that are stored, by their whole keys."""
    return {key: stored_of(values) for key, values in rows_by_key(conn, table, keys, stored_columns(table))}


def _is_light(table: Table, row: Row) -> bool:
    """Whether the row was read without contents."""
    return any(name in table.c and name not in row for name in CONTENTS)


def _saying_the_same(
    conn: Connection, table: Table, rows: Mapping[Key, Row], stored: Mapping[Key, Stored]
) -> list[Key]:
    """Which of these rows say what is stored already, though their hashes differ.

    The texts may differ only in the order of keys; and the hash of a row without contents leaves the contents out.
    """
    known = [
        key
        for key, row in rows.items()
        if version(table, row) == stored[key].version
        and row["read_from"] == stored[key].read_from
        and not stored[key].deleted
    ]
    if not known:
        return []
    names = [name for name in rows[known[0]] if name not in ("content_hash", "read_from", "extra", "exact")]
    same: list[Key] = []
    for key, values in rows_by_key(conn, table, known, names):
        row = _with_rest(table, rows[key], stored[key])
        same_values = all(is_same(table, n, row[n], value) for n, value in zip(names, values, strict=True))
        if same_values and all(is_same(table, n, row[n], getattr(stored[key], n)) for n in ("extra", "exact")):
            same.append(key)
    return same


def is_same(table: Table, name: str, new: Any, old: Any) -> bool:
    """Whether a value just read is the one that the database gave back."""
    if isinstance(table.c[name].type, JsonText) and new is not None and old is not None:
        # Postgres orders keys and spells numbers in its own way.
        return bool(new == old or dumps(canonical(loads(new))) == dumps(canonical(loads(old))))
    return bool(new == old)


def _with_contents_known(table: Table, row: Row, stored: Stored) -> Row:
    """A row whose contents the server could not send this time; those that are stored of this version count."""
    if contents_missing(stored.exact) or version(table, row) != stored.version:
        return row
    return row | {"exact": with_contents_known(row["exact"])}


def _with_rest(table: Table, row: Row, stored: Stored) -> Row:
    """`row` with what `exact` and `extra` hold of stored fields that were not asked for this time."""
    if stored.extra is None and stored.exact is None:
        return row
    columns = set(row)
    if stored.extra is not None and row["extra"] is None and _is_light(table, row):
        # Which of the unknown fields belong to the contents cannot be known.
        columns.remove("extra")
        row = row | {"extra": stored.extra}
    return row | {"exact": merged_exact(row["exact"], stored.exact, columns)}


def _write(conn: Connection, table: Table, rows: list[Row], now: datetime, write: Callable[..., None]) -> None:
    if not rows:
        return
    names, moment = tuple(rows[0]), instant_text(now)
    values = [(*row, moment, moment) for row in map(itemgetter(*names), rows)]
    write(conn, table, (*names, "first_seen_at", "changed_at"), values)


def _unmark(conn: Connection, table: Table, keys: list[Key], now: datetime) -> None:
    if not keys:
        return
    columns = list(table.primary_key)
    matches = [column == bindparam(f"key_{column.name}") for column in columns]
    statement = update(table).where(*matches).values(deleted_at=None, changed_at=now)
    conn.execute(statement, [{f"key_{c.name}": part for c, part in zip(columns, key, strict=True)} for key in keys])
