"""Many rows into a table by the fastest way of each driver; SQLAlchemy's work for every value costs more than the
database's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table

from etl.load.engine import schema_of
from etl.load.tables import ROW_TABLES

_PAGE = "langfuse_etl_page"


def upsert_values(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Inserts rows, or overwrites all but `first_seen_at` of those under the same keys; a deletion mark goes.

    Args:
        columns: What the rows hold, in their order; other columns stay as they are.
    """
    insert = _insert(conn.dialect.name, schema_of(conn), table.name, columns)
    if conn.dialect.name == "sqlite":
        conn.exec_driver_sql(insert, list(rows))
        return
    driver = conn.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)  # noqa: S101 - the only driver there is
    page, table_name = sql.Identifier(_PAGE), sql.Identifier(schema_of(conn) or "public", table.name)
    with driver.cursor() as cursor:
        # A pooler may hand the next transaction another connection, so the table does not outlive this one.
        cursor.execute(sql.SQL("CREATE TEMP TABLE {} (LIKE {})").format(page, table_name))
        with cursor.copy(sql.SQL("COPY {} ({}) FROM STDIN").format(page, _list(columns))) as copy:
            for row in rows:
                copy.write_row(row)
        cursor.execute(insert.encode())
        cursor.execute(sql.SQL("DROP TABLE {}").format(page))


def update_values(conn: Connection, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
    """Overwrites `columns` of rows that are stored.

    Args:
        rows: Each the values of `columns`, then its key.
    """
    if rows:
        conn.exec_driver_sql(_update(conn.dialect.name, schema_of(conn), table.name, columns), list(rows))


@cache
def _update(dialect: str, schema: str | None, table_name: str, columns: tuple[str, ...]) -> str:
    place = "?" if dialect == "sqlite" else "%s"
    values = ", ".join(f'"{name}" = {place}' for name in columns)
    key = " AND ".join(f"{column.name} = {place}" for column in ROW_TABLES[table_name].primary_key)
    return f"UPDATE {_qualified(schema, table_name)} SET {values} WHERE {key}"  # noqa: S608 - our names


@cache
def _insert(dialect: str, schema: str | None, table_name: str, columns: tuple[str, ...]) -> str:
    """With a place for each value on SQLite, from the table of the page on Postgres."""
    key = [column.name for column in ROW_TABLES[table_name].primary_key]
    kept = {*key, "first_seen_at"}
    updates = [f'"{name}" = excluded."{name}"' for name in columns if name not in kept]
    listing = ", ".join(f'"{name}"' for name in columns)
    places = ", ".join("?" * len(columns))
    source = f"VALUES ({places})" if dialect == "sqlite" else f"SELECT {listing} FROM {_PAGE}"  # noqa: S608 - our names
    return (
        f"INSERT INTO {_qualified(schema, table_name)} ({listing}) {source}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {', '.join([*updates, 'deleted_at = NULL'])}"
    )


def _qualified(schema: str | None, table_name: str) -> str:
    return f'"{schema}".{table_name}' if schema else table_name


def _list(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
