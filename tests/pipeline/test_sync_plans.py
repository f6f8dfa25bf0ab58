"""How the database finds what a sync asks of it: each page would else read as much as is stored already.

SQLite has no statistics; there every look-up goes by a key or between two times. Postgres is made to keep some.
"""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from databases import Databases
from sqlalchemy import Engine, event
from syncing import NOW, small, sync

from etl.demo import MockLangfuse, generate
from etl.load.engine import reading, schema_of
from etl.load.tables import ROW_TABLES

_TABLES = "|".join(ROW_TABLES)
# The whole table; all of a project; what lies beyond one value.
_WITHOUT_END = re.compile(rf"SCAN ({_TABLES})\b|SEARCH ({_TABLES})\b.* \((project_id=\?|[^()]*[<>]\?)\)")
_BETWEEN = re.compile(r"\b(\w+)>\? AND \1<\?")


@pytest.mark.parametrize("api", ["v3", "v4"])
def test_a_sync_reads_no_more_of_a_table_than_it_needs(database: Engine, api: str) -> None:
    asked: dict[str, Any] = {}

    def note(_conn: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        if not many:
            asked.setdefault(statement, values)

    event.listen(database, "before_cursor_execute", note)
    with MockLangfuse(small(), api=api) as server:
        sync(database, server)
        sync(database, server, now=NOW + timedelta(hours=7))
    event.remove(database, "before_cursor_execute", note)

    with reading(database) as conn:
        steps = [
            (step, statement)
            for statement, values in asked.items()
            if re.search(rf"\b({_TABLES})\b", statement) and statement.startswith(("SELECT", "UPDATE", "DELETE"))
            for *_, step in conn.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
        ]
    assert len(steps) > 20
    assert [one for one in steps if _WITHOUT_END.search(_BETWEEN.sub(r"\1=?", one[0]))] == []


def test_postgres_plans_a_first_sync_for_what_it_has_stored_by_then(databases: Databases) -> None:
    with databases.lent("postgres") as engine:
        with MockLangfuse(generate(traces=900, days=1, io_bytes=1_000, end=NOW - timedelta(hours=1))) as server:
            sync(engine, server)
        with reading(engine) as conn:
            table = f"{schema_of(engine)}.observations"
            query = f"SELECT reltuples FROM pg_class WHERE oid = '{table}'::regclass"
            # Autovacuum comes by once a minute.
            assert conn.exec_driver_sql(query).scalar_one() > 2_000
