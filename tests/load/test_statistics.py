"""Postgres plans for the rows that there are, a first sync long before autovacuum has seen them."""

from __future__ import annotations

from databases import Databases
from sqlalchemy import Connection

from etl.load.engine import schema_of, writing
from etl.load.statistics import keep_statistics
from tests.bench.made_rows import PROJECT, make_rows

ENOUGH = 1_500  # traces, each with five observations of about a kilobyte


def rows_planned_with(conn: Connection) -> int:
    """How many rows `observations` had when Postgres last looked."""
    query = f"SELECT greatest(reltuples, 0) FROM pg_class WHERE oid = '{schema_of(conn)}.observations'::regclass"
    return int(conn.exec_driver_sql(query).scalar_one())


def test_a_table_that_grew_is_looked_at_once(databases: Databases) -> None:
    with databases.lent("postgres") as engine:
        with writing(engine) as conn:
            assert keep_statistics(conn) == []
            make_rows(conn, traces=ENOUGH, io_bytes=1_000)
            assert rows_planned_with(conn) == 0
            assert keep_statistics(conn) == ["observations"]  # the other tables are small
            assert rows_planned_with(conn) == 5 * ENOUGH
            window = (
                f"EXPLAIN SELECT count(*) FROM {schema_of(conn)}.observations WHERE project_id = '{PROJECT}'"
                " AND start_time >= '2026-10-02' AND start_time < '2026-10-03' AND deleted_at IS NULL"
            )
            plan = "\n".join(conn.exec_driver_sql(window).scalars())
            assert "ix_observations_project_id_start_time" in plan
        with writing(engine) as conn:
            assert keep_statistics(conn) == []
            assert conn.exec_driver_sql("SHOW default_statistics_target").scalar_one() == "100"


def test_a_table_that_another_session_looks_after_is_not_waited_for(databases: Databases) -> None:
    with databases.lent("postgres") as engine:
        with writing(engine) as conn:
            make_rows(conn, traces=ENOUGH, io_bytes=1_000)
        with writing(engine) as other, writing(engine) as conn:
            other.exec_driver_sql(f"LOCK TABLE {schema_of(other)}.observations IN SHARE UPDATE EXCLUSIVE MODE")
            conn.exec_driver_sql("SET LOCAL lock_timeout = '1s'")
            assert keep_statistics(conn) == ["observations"]
            assert rows_planned_with(conn) == 0


def test_sqlite_keeps_none(databases: Databases) -> None:
    with databases.lent("sqlite") as engine, writing(engine) as conn:
        make_rows(conn, traces=ENOUGH, io_bytes=20)
        assert keep_statistics(conn) == []
        assert conn.exec_driver_sql("SELECT count(*) FROM sqlite_master WHERE name = 'sqlite_stat1'").scalar_one() == 0
