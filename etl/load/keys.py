"""Stored rows looked up by key, many at a time, by an index on both databases.

SQLite reads the whole table for `(a, b) IN ((…), (…))`; joined to a list of keys it searches once for each. And a
statement that does not depend on the number of keys is put together once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Connection, FromClause, Select, Table, Text, and_, any_, bindparam, func, select
from sqlalchemy.dialects.postgresql import ARRAY

from etl.load.tables import ROW_TABLES
from etl.transform.jsontext import dumps

Key = tuple[str, ...]

_KEYS_PER_SELECT = 5_000


def rows_by_key(
    conn: Connection, table: Table, keys: Collection[Key], columns: Sequence[str]
) -> Iterator[tuple[Key, Sequence[Any]]]:
    """The whole key of each row that is stored, and the values of `columns`.

    Args:
        keys: Values of the primary key, the project first.
    """
    statement = _rows_by_key(conn.dialect.name, table.name, tuple(columns))
    parts = len(table.primary_key)
    ordered = list(keys)
    for start in range(0, len(ordered), _KEYS_PER_SELECT):
        for row in conn.execute(statement, _keys_listed(conn, ordered[start : start + _KEYS_PER_SELECT])).all():
            yield tuple(row[:parts]), row[parts:]


def is_listed(dialect: str, column: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether `column` is one of the ids that `ids_listed` gives to the statement."""
    if dialect == "postgresql":
        return column == any_(bindparam("ids", type_=ARRAY(Text)))
    return column.in_(select(func.json_each(bindparam("ids", type_=Text)).table_valued("value").c.value))


def ids_listed(conn: Connection, ids: Sequence[str]) -> Mapping[str, Any]:
    """The parameter of a statement with `is_listed`."""
    return {"ids": list(ids) if conn.dialect.name == "postgresql" else dumps(ids)}


def _listed(dialect: str, parts: int) -> tuple[FromClause, list[ColumnElement[str]]]:
    """Keys as a table to join with, and its columns; `_keys_listed` says which keys."""
    if dialect == "postgresql":
        arrays = [bindparam(f"part_{n}", type_=ARRAY(Text)) for n in range(parts)]
        names = [f"part_{n}" for n in range(parts)]
        wanted = func.unnest(*arrays).table_valued(*names, name="wanted").render_derived()
        return wanted, [wanted.c[name] for name in names]
    listing = func.json_each(bindparam("keys", type_=Text)).table_valued("value", name="wanted")
    return listing, [func.json_extract(listing.c.value, f"$[{n}]") for n in range(parts)]


def _keys_listed(conn: Connection, keys: Sequence[Key]) -> Mapping[str, Any]:
    """The parameters of a statement with `_listed` for these keys, at least one."""
    if conn.dialect.name == "postgresql":
        return {f"part_{n}": list(values) for n, values in enumerate(zip(*keys, strict=True))}
    return {"keys": dumps(keys)}


@cache
def _rows_by_key(dialect: str, table_name: str, columns: tuple[str, ...]) -> Select[Any]:
    table = ROW_TABLES[table_name]
    parts = list(table.primary_key)
    wanted, values = _listed(dialect, len(parts))
    matches = and_(*(part == value for part, value in zip(parts, values, strict=True)))
    return select(*parts, *(table.c[name] for name in columns)).select_from(wanted.join(table, matches))
