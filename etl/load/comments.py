"""Comments in a Postgres database on tables, views and columns, where psql and most tools show them."""

from __future__ import annotations

from sqlalchemy import Connection, inspect

from etl.load.engine import schema_of
from etl.load.meanings import TABLES, VIEWS, meaning_of


def comment_on_all(conn: Connection) -> None:
    """Writes a comment on each table, view and column of ours that is there; SQLite has no comments.

    Args:
        conn: A writing connection.
    """
    schema = schema_of(conn)
    if schema is None:
        return
    quote = conn.dialect.identifier_preparer.quote
    inspector = inspect(conn)
    present = {"TABLE": inspector.get_table_names(schema), "VIEW": inspector.get_view_names(schema)}
    for kind, names in present.items():
        for relation in names:
            meaning = (TABLES if kind == "TABLE" else VIEWS).get(relation)
            if meaning is None:
                continue
            name = f"{quote(schema)}.{quote(relation)}"
            _write(conn, f"{kind} {name}", meaning)
            for column in inspector.get_columns(relation, schema=schema):
                _write(conn, f"COLUMN {name}.{quote(column['name'])}", meaning_of(relation, column["name"]))


def _write(conn: Connection, what: str, comment: str | None) -> None:
    literal = "NULL" if comment is None else "'" + comment.replace("'", "''") + "'"
    # COMMENT takes no parameters; the driver takes a percent sign for one.
    conn.exec_driver_sql(f"COMMENT ON {what} IS {literal}".replace("%", "%%"))
