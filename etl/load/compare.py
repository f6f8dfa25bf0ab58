"""What differs between rows just read and rows stored, without writing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import Connection, select, tuple_

from etl.intervals import Window
from etl.load.tables import ROW_TABLES, TIME_COLUMNS
from etl.transform.rows import Row

Key = tuple[str, ...]

_MILLISECOND = timedelta(milliseconds=1)
# Of these a row read lightly knows nothing, or only what its light reading left of them.
_NOT_COMPARED = frozenset({"content_hash", "read_from", "extra", "exact"})
_KEYS_PER_SELECT = 5_000


def keys_and_times(table_name: str, rows: Sequence[Row]) -> dict[Key, str]:
    """The key of each row, without the project, and its time as text; rows without a time are left out."""
    time = TIME_COLUMNS[table_name].name
    keys = [column.name for column in ROW_TABLES[table_name].primary_key if column.name != "project_id"]
    return {tuple(row[name] for name in keys): row[time] for row in rows if row[time] is not None}


def differing_stretch(conn: Connection, tables: Mapping[str, Sequence[Row]]) -> Window | None:
    """The shortest window with all rows that are new or differ from what is stored; None if there are none."""
    times: list[str] = []
    for name, rows in tables.items():
        differing = {key[1:] for key in differing_keys(conn, name, rows)}
        times += [time for key, time in keys_and_times(name, rows).items() if key in differing]
    if not times:
        return None
    return Window(datetime.fromisoformat(min(times)), datetime.fromisoformat(max(times)) + _MILLISECOND)


def differing_keys(conn: Connection, table_name: str, rows: Sequence[Row]) -> set[Key]:
    """The keys, project first, of rows that are not stored, are marked as deleted, or differ in a column they have."""
    if not rows:
        return set()
    table = ROW_TABLES[table_name]
    keys = list(table.primary_key)
    names = [name for name in rows[0] if name not in _NOT_COMPARED]
    read = {tuple(row[column.name] for column in keys): row for row in rows}
    differing = set(read)
    ordered = list(read)
    for start in range(0, len(ordered), _KEYS_PER_SELECT):
        query = select(*keys, *(table.c[name] for name in names)).where(
            tuple_(*keys).in_(ordered[start : start + _KEYS_PER_SELECT]), table.c.deleted_at.is_(None)
        )
        for stored in conn.execute(query):
            key, values = tuple(stored[: len(keys)]), stored[len(keys) :]
            row = read[key]
            if all(value == row[name] for name, value in zip(names, values, strict=True)):
                differing.discard(key)
    return differing
