"""Many rows into a table by the fastest way of each driver; SQLAlchemy's work for every value costs more than the
database's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import Connection, Table, Update, cast, update

from etl.load.engine import schema_of
from etl.load.keys import are_equal, listed, listing
from etl.load.tables import ROW_TABLES

_PAGE = "langfuse_etl_page"
# Making a temporary table takes Postgres as long as writing so many values by single rows.
_FEW_VALUES = 400


def insert_values(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """`upsert_values` of rows of which none is stored; Postgres has a way that takes half of the time.

    Args:
        columns: What the rows hold, in their order; the others stay null.
    """
    name = qualified(schema_of(conn), table.name)
    if conn.dialect.name == "sqlite" or not _takes_copies(conn, name):
        upsert_values(conn, table, columns, rows)
        return
    with _cursor(conn) as cursor:
        _copy(cursor, name, columns, rows)


def upsert_values(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts rows, or overwrites all but `first_seen_at` of those under the same keys; a deletion mark goes.

    Args:
        columns: What the rows hold, in their order; other columns stay as they are.
    """
    schema = schema_of(conn)
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(_upsert("?", schema, table.name, columns), list(rows))
        return
    with _cursor(conn) as cursor:
        if len(rows) * len(columns) <= _FEW_VALUES:
            cursor.executemany(_upsert("%s", schema, table.name, columns), rows)
            return
        # A pooler may hand the next transaction another connection, so the table does not outlive this one.
        cursor.execute(f"CREATE TEMP TABLE {_PAGE} (LIKE {qualified(schema, table.name)})")
        _copy(cursor, _PAGE, columns, rows)
        cursor.execute(_upsert(None, schema, table.name, columns))
        cursor.execute(f"DROP TABLE {_PAGE}")


def update_values(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Overwrites `columns` of rows that are stored.

    Args:
        rows: Each the values of `columns`, then its key; text, finite numbers and null.
    """
    if not rows:
        return
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(_update_sqlite(table.name, columns), list(rows))
    else:
        conn.execute(_update_postgres(table.name, columns), listed(rows))


def _takes_copies(conn: Connection, name: str) -> bool:
    """Whether the table has no row-level security, with which Postgres refuses COPY (manual, COPY, notes)."""
    known: dict[str, bool] = conn.info.setdefault("takes copies", {})
    if name not in known:
        known[name] = not conn.exec_driver_sql("SELECT row_security_active(%s)", (name,)).scalar_one()
    return known[name]


def _cursor(conn: Connection) -> Any:
    """The driver's own: psycopg alone knows COPY."""
    driver: Any = conn.connection.driver_connection
    return driver.cursor()


def _copy(cursor: Any, name: str, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    with cursor.copy(f"COPY {name} ({_quoted(columns)}) FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


@cache
def _update_sqlite(table_name: str, columns: tuple[str, ...]) -> str:
    values = ", ".join(f'"{name}" = ?' for name in columns)
    key = " AND ".join(f"{column.name} = ?" for column in ROW_TABLES[table_name].primary_key)
    return f"UPDATE {table_name} SET {values} WHERE {key}"  # noqa: S608 - our names


@cache
def _update_postgres(table_name: str, columns: tuple[str, ...]) -> Update:
    """Of all rows at once: psycopg sends a statement for each, which take three times as long."""
    table = ROW_TABLES[table_name]
    changed, key = [table.c[name] for name in columns], list(table.primary_key)
    new = listing("postgresql", len(changed) + len(key))
    values = {column: cast(part, column.type) for column, part in zip(changed, new.parts, strict=False)}
    return update(table).values(values).where(are_equal(key, new.parts[len(changed) :]))


@cache
def _upsert(place: str | None, schema: str | None, table_name: str, columns: tuple[str, ...]) -> str:
    """With a place for each value, as the driver writes it; without one all rows of the table of the page."""
    key = [column.name for column in ROW_TABLES[table_name].primary_key]
    kept = {*key, "first_seen_at"}
    updates = [f'"{name}" = excluded."{name}"' for name in columns if name not in kept]
    listing = _quoted(columns)
    source = f"VALUES ({', '.join([place] * len(columns))})" if place else f"SELECT {listing} FROM {_PAGE}"  # noqa: S608 - our names
    return (
        f"INSERT INTO {qualified(schema, table_name)} ({listing}) {source}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join([*updates, 'deleted_at = NULL'])}"
    )


def qualified(schema: str | None, table_name: str) -> str:
    """The name of a table of ours as a statement takes it."""
    return f'"{schema}".{table_name}' if schema else table_name


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
