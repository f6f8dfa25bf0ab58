"""What Postgres plans by: how large a table is, and what stands in its columns.

Autovacuum finds that out, a minute late at best. A first sync has filled the tables by then, and a plan for empty ones
reads all observations of a project where it should read those of a window.
"""

from __future__ import annotations

from sqlalchemy import Connection

from etl.load.bulk import qualified
from etl.load.engine import schema_of
from etl.load.tables import ROW_TABLES, TIME_COLUMNS

# In smaller tables every plan is as good; 4 MiB with the usual pages of 8 KiB, some thousand rows.
_FEW_PAGES = 512
# It reads 300 times as many rows (Postgres manual, ANALYZE); autovacuum reads ten times more, and all columns.
_STATISTICS_TARGET = 10
_GROWN = f"""
    SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
    WHERE nspname = %s AND relname = ANY (%s)
    AND pg_relation_size(pg_class.oid) / current_setting('block_size')::int >= greatest(2 * relpages, {_FEW_PAGES})
"""  # noqa: S608 - our number


def keep_statistics(conn: Connection) -> list[str]:
    """Has Postgres look again at the tables of rows that are twice as large as when it last did.

    It reads the columns that windows and keys ask for, in at most 3,000 rows of as many pages: some 30 ms, if they are
    in memory. It leaves out, and warns of, a table that another session looks after and one of another owner. SQLite
    goes by rules of thumb that need no statistics.

    Returns:
        The tables that it was asked to look at.
    """
    if conn.dialect.name == "sqlite":
        return []
    schema = schema_of(conn)
    grown: list[str] = list(conn.exec_driver_sql(_GROWN, (schema, list(ROW_TABLES))).scalars())
    if grown:
        conn.exec_driver_sql(f"SET LOCAL default_statistics_target = {_STATISTICS_TARGET}")
    for name in grown:
        key = [column.name for column in ROW_TABLES[name].primary_key]
        columns = ", ".join([*key, TIME_COLUMNS[name].name, "deleted_at", "read_from", "first_seen_at"])
        conn.exec_driver_sql(f"ANALYZE (SKIP_LOCKED) {qualified(schema, name)} ({columns})")
    return grown
