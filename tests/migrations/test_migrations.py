"""Databases brought to this program's revision, or refused."""

from __future__ import annotations

import os
import signal
import sqlite3
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from database_looks import instant, stored_in, view, write
from nursery import Nursery
from recorded_rows import STREAMS, recorded, to_row
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.schema import CreateSchema

from etl.errors import DatabaseRefusedError
from etl.load import migrate
from etl.load.engine import open_engine, reading, schema_of, sqlite_path, writing
from etl.load.migrate import current_revision, head_revision, require_current, upgrade
from etl.load.tables import VERSION_TABLE, metadata
from etl.values import identifier

NewEngine = Callable[[], Engine]
FIRST_VIEWS = {"trace_summary", "session_summary", "daily_usage", "sync_coverage"}
VIEWS = FIRST_VIEWS | {
    "daily_cost", "latency_daily", "user_summary", "score_summary", "error_observations", "prompt_version_stats",
}  # fmt: skip
OF_VIEWS = "vx_"  # what is there for the views alone; like those, only migrations know it


def migrated(engine: Engine, revision: str) -> None:
    """As an older or newer version of this program would leave it."""
    with writing(engine) as conn:
        schema = schema_of(conn)
        if schema is not None:
            conn.execute(CreateSchema(schema, if_not_exists=True))
            conn.exec_driver_sql(f'SET LOCAL search_path TO "{schema}"')
        config = migrate._config(conn)
        move = command.downgrade if revision < (migrate._revision(conn) or "") else command.upgrade
        (command.downgrade if revision == "base" else move)(config, revision)


def names(engine: Engine) -> tuple[set[str], set[str]]:
    """Tables and views."""
    with reading(engine) as conn:
        inspector, schema = inspect(conn), schema_of(conn)
        return set(own_tables(conn)), set(inspector.get_view_names(schema=schema))


def own_tables(conn: Connection) -> list[str]:
    return [name for name in inspect(conn).get_table_names(schema=schema_of(conn)) if not name.startswith(OF_VIEWS)]


def shape(conn: Connection) -> dict[str, Any]:
    """Everything that can differ between two databases with the same tables."""
    inspector, schema = inspect(conn), schema_of(conn)

    def default(column: Any) -> str:
        return str(column["default"]).replace(f"{schema}.", "")

    return {
        table: {
            "columns": [
                (c["name"], repr(c["type"]), c["nullable"], default(c), c.get("comment"))
                for c in inspector.get_columns(table, schema=schema)
            ],
            "key": {k: v for k, v in inspector.get_pk_constraint(table, schema=schema).items() if k != "comment"},
            "indexes": sorted(
                (index["name"], index["column_names"], index["unique"])
                for index in inspector.get_indexes(table, schema=schema)
                if not str(index["name"]).startswith(OF_VIEWS)
            ),
            "unique": inspector.get_unique_constraints(table, schema=schema),
            "foreign": inspector.get_foreign_keys(table, schema=schema),
            "checks": inspector.get_check_constraints(table, schema=schema),
        }
        for table in own_tables(conn)
        if table != VERSION_TABLE
    }  # fmt: skip


def fill(engine: Engine) -> None:
    for name in ("traces", "observations", "scores of v2", "sessions"):
        stream = STREAMS[name]
        rows = [to_row(item, stream) for item in recorded(stream.file)[:30]]
        write(engine, stream.shape.table, rows, instant(0))


def everything(engine: Engine) -> dict[str, Any]:
    return {table: stored_in(engine, table) for table in ("traces", "observations", "scores", "sessions")}


def test_an_empty_database_goes_to_head_to_base_and_to_head_again(new_engine: NewEngine) -> None:
    engine = new_engine()

    assert current_revision(engine) is None
    assert upgrade(engine) is None
    assert current_revision(engine) == head_revision()
    assert names(engine) == ({*metadata.tables, VERSION_TABLE}, VIEWS)
    migrated(engine, "base")
    assert names(engine) == ({VERSION_TABLE}, set())
    assert current_revision(engine) is None
    upgrade(engine)
    assert names(engine) == ({*metadata.tables, VERSION_TABLE}, VIEWS)
    require_current(engine)


def test_migrations_make_exactly_the_tables_that_the_program_knows(new_engine: NewEngine) -> None:
    by_migrations, by_metadata = new_engine(), new_engine()
    upgrade(by_migrations)
    with writing(by_metadata) as conn:
        if (schema := schema_of(conn)) is not None:
            conn.execute(CreateSchema(schema))
        metadata.create_all(conn)
    shapes = []
    for engine in (by_migrations, by_metadata):
        with reading(engine) as conn, warnings.catch_warnings():
            warnings.filterwarnings("ignore", f"Skipped unsupported reflection of expression-based index {OF_VIEWS}")
            shapes.append(shape(conn))

    migrated_shape, known_shape = shapes
    assert migrated_shape.keys() == known_shape.keys()
    for table, known in known_shape.items():
        assert known == migrated_shape[table]


def test_upgrading_what_is_current_changes_nothing_and_copies_nothing(engine: Engine, tmp_path: Path) -> None:
    fill(engine)
    before, files = everything(engine), {path.name for path in tmp_path.iterdir()}

    assert upgrade(engine) is None
    assert before == everything(engine)
    assert files >= {path.name for path in tmp_path.iterdir()}


def test_asking_for_the_revision_does_not_make_a_file(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'none.db'}", "public")

    assert current_revision(engine) is None
    with pytest.raises(DatabaseRefusedError, match="empty; run `langfuse-etl sync`"):
        require_current(engine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["TABLE {}(x integer)", "VIEW {} AS SELECT 1 AS x"])
@pytest.mark.parametrize("name", ["traces", "projects", "sync_lease"])
def test_a_table_of_our_name_without_our_version_table_is_refused_and_untouched(
    new_engine: NewEngine, name: str, kind: str
) -> None:
    engine = new_engine()
    with writing(engine) as conn:
        schema = schema_of(conn)
        if schema is not None:
            conn.execute(CreateSchema(schema))
        conn.exec_driver_sql(f"CREATE {kind.format(f'{schema}.{name}' if schema else name)}")
    engine.dispose()
    before = names(engine)
    path = sqlite_path(engine)
    content = path.read_bytes() if path else b""

    for refuse in (upgrade, current_revision, require_current):
        with pytest.raises(DatabaseRefusedError, match=rf"already has tables named {name}\b.*DATABASE_URL") as refused:
            refuse(engine)
        assert refused.value.exit_code == 3
    engine.dispose()
    assert before == names(engine)
    if path:
        assert [path] == [other for other in path.parent.iterdir() if other.name.startswith(path.name)]
        assert content == path.read_bytes(), "not even the journal mode was changed"


def test_a_database_that_holds_other_tables_only_is_shared_and_they_stay(new_engine: NewEngine) -> None:
    """Design 5.1: only tables of our names make a database somebody else's."""
    engine = new_engine()
    with writing(engine) as conn:
        schema = schema_of(conn)
        if schema is not None:
            conn.execute(CreateSchema(schema))
        customers = f"{schema}.customers" if schema else "customers"
        conn.exec_driver_sql(f"CREATE TABLE {customers}(name text)")
        conn.exec_driver_sql(f"INSERT INTO {customers} VALUES ('Ada')")

    assert current_revision(engine) is None
    upgrade(engine)
    fill(engine)
    migrated(engine, "base")
    assert names(engine) == ({"customers", VERSION_TABLE}, set())
    with reading(engine) as conn:
        assert [tuple(row) for row in conn.exec_driver_sql(f"SELECT * FROM {customers}")] == [("Ada",)]


def test_the_tables_of_another_postgres_schema_are_nobodys_business(postgres_url: str) -> None:
    first, second = (open_engine(postgres_url, f"neighbour_{n}") for n in (1, 2))
    for engine in (first, second):
        upgrade(engine)
    fill(first)

    assert stored_in(first, "traces")
    assert stored_in(second, "traces") == {}
    for engine in (first, second):
        engine.dispose()


def test_a_database_of_a_newer_version_is_refused(engine: Engine) -> None:
    with writing(engine) as conn:
        schema = schema_of(conn)
        table = f"{schema}.{VERSION_TABLE}" if schema else VERSION_TABLE
        conn.exec_driver_sql(f"UPDATE {table} SET version_num = '9999'")
    before = names(engine)

    for refuse in (upgrade, current_revision, require_current):
        with pytest.raises(DatabaseRefusedError, match=r"revision 9999.*newer version") as refused:
            refuse(engine)
        assert refused.value.exit_code == 3
        assert "\n" not in str(refused.value)
    assert before == names(engine)


def test_an_upgrade_keeps_the_data_and_on_sqlite_a_copy_of_the_old_file(new_engine: NewEngine) -> None:
    engine = new_engine()
    migrated(engine, "0001")
    fill(engine)
    before = everything(engine)

    with pytest.raises(DatabaseRefusedError, match=r"has revision 0001.*db upgrade"):
        require_current(engine)
    copy = upgrade(engine)

    assert before == everything(engine)
    assert current_revision(engine) == head_revision()
    with reading(engine) as conn:
        assert view(conn, "trace_summary")
    path = sqlite_path(engine)
    assert (copy is None) == (path is None)
    if copy is not None and path is not None:
        assert copy.parent == path.parent
        old = open_engine(f"sqlite:///{copy}", "public")
        assert current_revision(old) == "0001"
        assert before == everything(old)
        assert names(old)[1] == set()
        old.dispose()


def test_what_a_writer_has_just_committed_is_in_the_copy(new_engine: NewEngine) -> None:
    """It may still be in the write-ahead log of a file that another connection holds open."""
    engine = new_engine()
    upgrade(engine)
    migrated(engine, "0001")
    with reading(engine):
        fill(engine)
        copy = upgrade(engine)

    if copy is not None:
        old = open_engine(f"sqlite:///{copy}", "public")
        assert everything(old) == everything(engine)
        old.dispose()


_UPGRADE = """
import signal
from sqlalchemy import event
from etl.load.engine import open_engine
from etl.load.migrate import upgrade
engine = open_engine(sys.argv[1], sys.argv[2])
if sys.argv[3]:
    @event.listens_for(engine, "after_cursor_execute")
    def die(conn, cursor, statement, *_):
        if sys.argv[3] in statement:
            os.kill(os.getpid(), signal.SIGKILL)
upgrade(engine)
engine.dispose()
sys.exit()
"""


def upgrading(nursery: Nursery, engine: Engine, log: Path, dies_after: str = "") -> int:
    """Another process that upgrades the database, or is killed after a statement."""
    words = [engine.url.render_as_string(hide_password=False), schema_of(engine) or "public", dies_after]
    return nursery.fork(log.parent, os.environ, words, log, before=_UPGRADE)


def test_two_processes_that_upgrade_at_once_both_succeed(
    new_engine: NewEngine, nursery: Nursery, tmp_path: Path
) -> None:
    for before in (None, "0001"):
        engine = new_engine()
        if before:
            migrated(engine, before)
            fill(engine)
        logs = [tmp_path / f"{before}-{number}" for number in range(2)]
        processes = [upgrading(nursery, engine, log) for log in logs]

        assert [nursery.wait(pid) for pid in processes] == [0, 0]
        assert [log.read_text() for log in logs] == ["", ""]
        assert current_revision(engine) == head_revision()
        assert names(engine) == ({*metadata.tables, VERSION_TABLE}, VIEWS)
        assert len(stored_in(engine, "traces")) == (30 if before else 0)


@pytest.mark.parametrize("statement", ["CREATE TABLE", "CREATE INDEX", "CREATE VIEW session_summary"])
def test_a_process_that_is_killed_in_the_middle_leaves_the_old_state_whole(
    new_engine: NewEngine, nursery: Nursery, tmp_path: Path, statement: str
) -> None:
    engine = new_engine()
    before = None
    if statement.startswith("CREATE VIEW"):
        migrated(engine, "0001")
        fill(engine)
        before = everything(engine)
    tables_before = names(engine)[0] & set(metadata.tables)
    process = upgrading(nursery, engine, tmp_path / "log", statement)

    assert nursery.wait(process) == -signal.SIGKILL
    assert current_revision(engine) == ("0001" if before else None)
    tables, views = names(engine)
    assert (tables & set(metadata.tables), views) == (tables_before, set())
    upgrade(engine)
    assert names(engine) == ({*metadata.tables, VERSION_TABLE}, VIEWS)
    if before:
        assert before == everything(engine)


def test_one_revision_back_and_forth_leaves_the_first_views_in_between(new_engine: NewEngine) -> None:
    engine = new_engine()
    migrated(engine, "0003")
    fill(engine)
    with reading(engine) as conn:
        before = {name: view(conn, name) for name in FIRST_VIEWS}
    upgrade(engine)
    assert names(engine)[1] == VIEWS
    with reading(engine) as conn:
        assert before == {name: view(conn, name) for name in FIRST_VIEWS}
    migrated(engine, "0003")
    assert names(engine)[1] == FIRST_VIEWS
    with reading(engine) as conn:
        assert before == {name: view(conn, name) for name in FIRST_VIEWS}


def test_nothing_of_a_revision_stays_behind_and_what_was_stored_before_it_is_in_its_views(tmp_path: Path) -> None:
    """On SQLite, where views have a table and triggers of their own."""
    engine = open_engine(f"sqlite:///{tmp_path / 'langfuse.db'}", "public")
    migrated(engine, "0008")
    fill(engine)
    summed = ("trace_summary", "session_summary", "user_summary")
    with reading(engine) as conn:
        before = {name: view(conn, name) for name in summed}
        made = objects_in(conn)
    upgrade(engine)
    with reading(engine) as conn:
        assert {"vx_trace_totals", "vx_trace_totals_insert"} <= objects_in(conn)
        assert before == {name: view(conn, name) for name in summed}
    migrated(engine, "0008")
    with reading(engine) as conn:
        assert made == objects_in(conn)
        assert before == {name: view(conn, name) for name in summed}
    engine.dispose()


def objects_in(sqlite: Connection) -> set[str]:
    return set(sqlite.exec_driver_sql("SELECT name FROM sqlite_master").scalars())


@pytest.mark.parametrize("schema", ["Mixed_Case", "select", "user", "_x9"])
def test_any_schema_name_that_the_configuration_allows_works(postgres_url: str, schema: str) -> None:
    assert identifier(schema) == schema
    engine = open_engine(postgres_url, schema)
    upgrade(engine)
    fill(engine)
    with reading(engine) as conn:
        assert len(conn.execute(text(f'SELECT * FROM "{schema}".trace_summary')).all()) == 30
    migrated(engine, "base")
    assert names(engine) == ({VERSION_TABLE}, set())
    engine.dispose()


@pytest.mark.parametrize("schema", ["", "a b", "a-b", 'a"b', "a;b", "a.b", "1a", "a'b", "%s", "schéma", "a\x00"])
def test_schema_names_are_identifiers(schema: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        identifier(schema)


def test_a_file_is_ready_for_readers_beside_the_writer(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'langfuse.db'}", "public")
    upgrade(engine)
    engine.dispose()

    with closing(sqlite3.connect(tmp_path / "langfuse.db")) as conn:
        assert conn.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
