"""What differs between rows just read and rows stored, without writing anything."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table

from etl.intervals import Window
from etl.load.keys import Key, not_stored_as, rows_by_key
from etl.load.tables import ROW_TABLES, TIME_COLUMNS
from etl.load.upsert import is_same, newest_by_key, outranks, version
from etl.transform.pages import Identified, contents_missing
from etl.transform.rows import Row

_MILLISECOND = timedelta(milliseconds=1)
# Of these a row read lightly knows nothing, or only what its light reading left of them.
_NOT_COMPARED = frozenset({"content_hash", "read_from", "extra", "exact"})


def keys_and_times(table_name: str, rows: Sequence[Row]) -> dict[Key, str]:
    """The key of each row, without the project, and the time of its newest version; rows without one are left out.

    Versions of one trace may stand on several dates, and the newest is the one that is stored, or is to be read.
    """
    time = TIME_COLUMNS[table_name].name
    newest = newest_by_key(ROW_TABLES[table_name], rows)
    return {key[1:]: row[time] for key, row in newest.items() if row[time] is not None}


def stored_as_they_are(conn: Connection, project_id: str, objects: Iterable[Identified]) -> dict[str, dict[Key, str]]:
    """Which objects are stored with all they hold, by table: their keys, without the project, and their times.

    Args:
        objects: Of which the key is stored just as it is (`is_found_by_key`).
    """
    by_table: dict[str, dict[Key, Identified]] = {}
    twice: set[tuple[str, Key]] = set()  # in several versions, of which only one is the stored one
    for one in objects:
        other = by_table.setdefault(one.table, {}).setdefault(one.key, one)
        if other.content_hash != one.content_hash:
            twice.add((one.table, one.key))
    found: dict[str, dict[Key, str]] = {}
    for table_name, wanted in by_table.items():
        once = [one for one in wanted.values() if one.at is not None and (table_name, one.key) not in twice]
        readings = [(project_id, *one.key, one.content_hash, one.read_from) for one in once]
        others = not_stored_as(conn, ROW_TABLES[table_name], readings)
        found[table_name] = {one.key: one.at for n, one in enumerate(once) if one.at and n not in others}
    return found


class Differences(NamedTuple):
    """Keys of rows that are not stored (or marked as deleted), and of stored rows that differ; without the project."""

    missing: set[Key]
    changed: set[Key]

    @property
    def keys(self) -> set[Key]:
        """Both together."""
        return self.missing | self.changed


def differing_stretch(conn: Connection, tables: Mapping[str, Sequence[Row]]) -> Window | None:
    """The shortest window with all rows that are new or differ from what is stored; None if there are none."""
    times: list[str] = []
    for name, rows in tables.items():
        differing = differences(conn, name, rows).keys
        times += [time for key, time in keys_and_times(name, rows).items() if key in differing]
    if not times:
        return None
    return Window(datetime.fromisoformat(min(times)), datetime.fromisoformat(max(times)) + _MILLISECOND)


def differences(conn: Connection, table_name: str, rows: Sequence[Row]) -> Differences:
    """What of `rows` is missing, or differs in a column that the rows have; a reading that is outranked does not count,
    unless it is all that the server can have.

    A row that another generation of the API gave differs if this reading outranks it, else it is better as it is.
    """
    table = ROW_TABLES[table_name]
    read = newest_by_key(table, rows)
    if not read:
        return Differences(set(), set())
    names = [name for name in rows[0] if name not in _NOT_COMPARED]
    # A row read lightly cannot show whether contents that were missing can be had by now: they are asked for again.
    light = "input" in table.c and "input" not in names
    if not light:
        names += ["extra", "exact"]
    compared = ["deleted_at", "read_from", "exact", *names]
    missing, changed = set(read), set()
    for key, stored in rows_by_key(conn, table, read, compared):
        deleted_at, read_from, exact, *values = stored
        if deleted_at is not None:
            continue
        missing.discard(key)
        row, known = read[key], dict(zip(names, values, strict=True))
        same = read_from == row["read_from"] and all(is_same(table, n, row[n], known[n]) for n in names)
        if light and contents_missing(exact):
            same = False
        brings = contents_missing(exact) and (light or not contents_missing(row["exact"]))
        if not same and (
            outranks(table, row, read_from, version(table, known), brings_contents=brings)
            or _is_only_version(table, row, read_from, known)
        ):
            changed.add(key)
    return Differences({key[1:] for key in missing}, {key[1:] for key in changed})


def _is_only_version(table: Table, row: Row, read_from: str, stored: Mapping[str, Any]) -> bool:
    """Whether the server can have no other version in place of the stored one, however new that says it is.

    Its older lists have one row for each id and date, GET /v3/scores one for each id; GET /v2/observations may have
    several of one observation.
    """
    if row["read_from"] != read_from:
        return False
    if table.name == "scores" and read_from == "observations":
        return True
    time = TIME_COLUMNS[table.name].name
    return read_from == "traces" and str(row[time])[:10] == str(stored[time])[:10]
