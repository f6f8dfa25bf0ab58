"""Stored rows looked up by key, many at a time, by an index on both databases.

SQLite reads the whole table for `(a, b) IN ((…), (…))`; joined to a list of keys it searches once for each. And a
statement that does not depend on the number of keys is put together once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import (
    JSON,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    TableValuedAlias,
    Text,
    and_,
    bindparam,
    cast,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB

from etl.load.tables import ROW_TABLES
from etl.transform.jsontext import dumps

Key = tuple[str, ...]

_KEYS_PER_SELECT = 5_000
_LISTED = bindparam("listed", type_=Text)


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
        for row in conn.execute(statement, listed(ordered[start : start + _KEYS_PER_SELECT])).all():
            yield tuple(row[:parts]), row[parts:]


def not_stored_as(conn: Connection, table: Table, readings: Sequence[tuple[str, ...]]) -> set[int]:
    """The places in `readings` of those that are not stored just so: missing, marked as deleted, or another version.

    Args:
        readings: Each the whole primary key, the content hash, and the API that it was read from.
    """
    if not readings:
        return set()
    # What agrees is not fetched: each row fetched from SQLite would have to wait for the other threads.
    statement = _not_stored_as(conn.dialect.name, table.name)
    return {place for (place,) in conn.execute(statement, listed(readings)).all()}


def of_listed(dialect: str, query: Select[Any], column: ColumnElement[str]) -> Select[Any]:
    """`query` for the rows of which `column` is one of the ids that `listed` gives to the statement, each once."""
    ids = listed_ids(dialect)
    if dialect == "postgresql":
        # Without OFFSET this is a join to Postgres, for which it reads tables as a whole while it has no statistics.
        each = query.where(column == ids.c.value).offset(literal_column("0")).lateral("each")
        return select(each).select_from(ids.join(each, true()))
    return query.where(column.in_(select(ids.c.value)))


class Beside(NamedTuple):
    """The ids that `listed` gives to the statement, and beside each its row of a table; nulls where it has none."""

    source: FromClause
    id: ColumnElement[str]
    columns: Mapping[str, ColumnElement[Any]]


def beside_listed(dialect: str, table: Table, columns: Sequence[str]) -> Beside:
    """`columns` of the rows of `table`, which has the key (project_id, id); the statement takes `project`, too."""
    ids = listed_ids(dialect)
    is_its_row = and_(table.c.project_id == bindparam("project"), table.c.id == ids.c.value)
    wanted = [table.c[name] for name in columns]
    if dialect == "postgresql":
        # As in `of_listed`.
        each = select(*wanted).where(is_its_row).offset(literal_column("0")).lateral("each")
        return Beside(ids.join(each, true(), isouter=True), ids.c.value, dict(each.c))
    return Beside(ids.join(table, is_its_row, isouter=True), ids.c.value, {column.name: column for column in wanted})


def listed_ids(dialect: str) -> TableValuedAlias:
    """The ids that `listed` gives to the statement, as a table with a column `value`."""
    if dialect == "postgresql":
        return func.json_array_elements_text(cast(_LISTED, JSON)).table_valued("value", name="listing")
    return func.json_each(_LISTED).table_valued("value", name="listing")


def is_key_listed(dialect: str, key: Sequence[ColumnElement[str]]) -> ColumnElement[bool]:
    """Whether these columns are one of the keys that `listed` gives to the statement; each database hashes them."""
    keys = listing(dialect, len(key))
    return tuple_(*key).in_(select(*keys.parts).select_from(keys.table))


def listed(values: Sequence[str] | Sequence[tuple[Any, ...]]) -> Mapping[str, Any]:
    """The parameter of a statement of `of_listed`, with `is_key_listed`, or of one that joins with a `Listing`.

    It is JSON, because a driver puts lists together in Python, value by value.
    """
    return {_LISTED.key: dumps(values)}


class Listing(NamedTuple):
    """Tuples given to a statement as one text of JSON: a table to join with, their places, and their parts as text."""

    table: FromClause
    place: ColumnElement[int]
    parts: list[ColumnElement[str]]


def listing(dialect: str, parts: int) -> Listing:
    """What `listed` gives to the statement, `parts` values each."""
    if dialect == "postgresql":
        # As text each part would be looked for in the JSON of its tuple once more.
        elements = func.jsonb_array_elements(cast(_LISTED, JSONB))
        table = elements.table_valued("value", with_ordinality="nth", name="listing").render_derived()
        return Listing(table, table.c.nth - 1, [table.c.value.op("->>")(n) for n in range(parts)])
    each = func.json_each(_LISTED).table_valued("key", "value", name="listing")
    return Listing(each, each.c.key, [func.json_extract(each.c.value, f"$[{n}]") for n in range(parts)])


def are_equal(key: Sequence[ColumnElement[str]], values: Sequence[ColumnElement[str]]) -> ColumnElement[bool]:
    """Whether each of these columns is the value in its place."""
    return and_(*(part == value for part, value in zip(key, values, strict=True)))


@cache
def _rows_by_key(dialect: str, table_name: str, columns: tuple[str, ...]) -> Select[Any]:
    table = ROW_TABLES[table_name]
    key = list(table.primary_key)
    wanted = listing(dialect, len(key))
    matches = are_equal(key, wanted.parts)
    return select(*key, *(table.c[name] for name in columns)).select_from(wanted.table.join(table, matches))


@cache
def _not_stored_as(dialect: str, table_name: str) -> Select[Any]:
    table = ROW_TABLES[table_name]
    key = list(table.primary_key)
    read = listing(dialect, len(key) + 2)
    *values, content_hash, read_from = read.parts
    matches = are_equal(key, values)
    differs = or_(
        table.c.content_hash.is_distinct_from(content_hash),
        table.c.read_from.is_distinct_from(read_from),
        table.c.deleted_at.is_not(None),
    )
    return select(read.place).select_from(read.table.outerjoin(table, matches)).where(differs)
