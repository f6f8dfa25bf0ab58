"""Stored rows looked up by key, many at a time, by the primary key's index on both databases."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, and_, func, select, tuple_

from etl.transform.jsontext import dumps

Key = tuple[str, ...]

_KEYS_PER_SELECT = 5_000


def rows_by_key(
    conn: Connection, table: Table, keys: Collection[Key], columns: Sequence[ColumnElement[Any]]
) -> Iterator[tuple[Key, Sequence[Any]]]:
    """The whole key of each row that is stored, and the values of `columns`.

    Args:
        keys: Values of the primary key, the project first.
    """
    parts = list(table.primary_key)
    ordered = list(keys)
    for start in range(0, len(ordered), _KEYS_PER_SELECT):
        chunk = ordered[start : start + _KEYS_PER_SELECT]
        query = select(*parts, *columns)
        if conn.dialect.name == "sqlite":
            # SQLite reads the whole table for `(a, b) IN ((…), (…))`; joined to a list of keys it uses the index.
            wanted = func.json_each(dumps(chunk)).table_valued("value", name="wanted")
            matches = [part == func.json_extract(wanted.c.value, f"$[{i}]") for i, part in enumerate(parts)]
            query = query.select_from(wanted.join(table, and_(*matches)))
        else:
            query = query.where(tuple_(*parts).in_(chunk))
        for row in conn.execute(query):
            yield tuple(row[: len(parts)]), row[len(parts) :]
