"""Ways to look at the tables of a database, the same for SQLite and Postgres."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from json_values import exact
from sqlalchemy import Connection, Engine, func, literal_column, select, text

from etl.load.engine import reading, schema_of, writing
from etl.load.tables import ROW_TABLES
from etl.load.types import JsonText, instant_text
from etl.load.upsert import Written, upsert
from etl.transform.jsontext import loads
from etl.transform.rows import Row

BOOKKEEPING = ("first_seen_at", "changed_at", "deleted_at")
_START = datetime(2026, 11, 20, tzinfo=UTC)


class Pair(NamedTuple):
    sqlite: Engine
    postgres: Engine


def instant(seconds: float) -> datetime:
    """A moment of our own clock."""
    return _START + timedelta(seconds=seconds)


@contextmanager
def scratch(engine: Engine) -> Iterator[Connection]:
    """A transaction of which nothing stays."""
    with engine.connect() as conn, conn.begin() as transaction:
        yield conn
        transaction.rollback()


def write(engine: Engine, table: str, rows: Iterable[Row], now: datetime) -> Written:
    with writing(engine) as conn:
        return upsert(conn, table, rows, now)


def stored(conn: Connection, table_name: str) -> dict[tuple[str, ...], Row]:
    """All rows of a table by key, with all columns."""
    table = ROW_TABLES[table_name]
    rows = [dict(row) for row in conn.execute(select(table)).mappings()]
    return {tuple(row[column.name] for column in table.primary_key): row for row in rows}


def stored_in(engine: Engine, table_name: str) -> dict[tuple[str, ...], Row]:
    with reading(engine) as conn:
        return stored(conn, table_name)


def contents(table_name: str, row: Mapping[str, Any]) -> Row:
    """A row as design 5.1 compares databases: JSON by value, bookkeeping times left out, deletion by being set."""
    columns = ROW_TABLES[table_name].c
    values = {name: value for name, value in row.items() if name not in BOOKKEEPING}
    for name, value in values.items():
        if isinstance(columns[name].type, JsonText) and value is not None:
            values[name] = exact(loads(value))
    return values | {"deleted": row.get("deleted_at") is not None}


def all_contents(conn: Connection, table_name: str) -> dict[tuple[str, ...], Row]:
    return {key: contents(table_name, row) for key, row in stored(conn, table_name).items()}


def physical_rows(conn: Connection, table_name: str) -> Any:
    """Something that differs after any write to the table, of whatever values."""
    if conn.dialect.name == "sqlite":
        return conn.connection.driver_connection.total_changes
    table = ROW_TABLES[table_name]
    marks = select(literal_column("xmin::text"), literal_column("ctid::text"), *table.primary_key).select_from(table)
    return sorted(tuple(row) for row in conn.execute(marks))


def view(conn: Connection, name: str) -> list[dict[str, Any]]:
    """All rows of a view, ordered by all columns; instants as text."""
    schema = schema_of(conn)
    rows = conn.execute(text(f"SELECT * FROM {schema}.{name}" if schema else f"SELECT * FROM {name}")).mappings()
    found = [{column: _as_text(value) for column, value in row.items()} for row in rows]
    return sorted(found, key=lambda row: [(value is not None, str(value)) for value in row.values()])


def _as_text(value: Any) -> Any:
    return instant_text(value) if isinstance(value, datetime) else value


def count(conn: Connection, table: Any) -> int:
    return int(conn.execute(select(func.count()).select_from(table)).scalar_one())
