"""Brings a database to this program's revision, and refuses one that is not ours to touch."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.sql import quoted_name

from etl.errors import DatabaseRefusedError
from etl.load.engine import let_readers_in, reading, schema_of, sqlite_path, writing
from etl.load.tables import VERSION_TABLE, metadata

# Any constant will do; it keeps two processes from upgrading one Postgres at the same time.
_ADVISORY_LOCK = 7_203_771_044


def current_revision(engine: Engine) -> str | None:
    """The revision of the database; None if nothing of ours is there. A SQLite file is not made by asking.

    Raises:
        DatabaseRefusedError: It holds tables of our names that we did not make, or is newer than this program.
    """
    path = sqlite_path(engine)
    if path is not None and not path.exists():
        return None
    with reading(engine) as conn:
        return _revision(conn)


def head_revision() -> str:
    """The revision that this program needs."""
    head = _scripts().get_current_head()
    assert head is not None  # noqa: S101 - the wheel holds at least one revision, a test installs it
    return head


def upgrade(engine: Engine) -> Path | None:
    """Makes the tables, or brings them to `head_revision()`; returns the copy of the SQLite file made before, if any.

    All revisions run in one transaction, on both databases: after a crash the old state is whole.

    Raises:
        DatabaseRefusedError: See `current_revision`.
        DatabaseError: The database cannot be reached or written.
    """
    before = current_revision(engine)
    if before == head_revision():
        return None
    path = sqlite_path(engine)
    copy = _copy(path, before) if path is not None and before is not None else None
    with writing(engine) as conn:
        schema = schema_of(conn)
        if schema is not None:
            quoted = conn.dialect.identifier_preparer.quote(quoted_name(schema, quote=None))
            conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            if not inspect(conn).has_schema(schema):
                conn.exec_driver_sql(f"CREATE SCHEMA {quoted}")
            conn.exec_driver_sql(f"SET LOCAL search_path TO {quoted}")
        _revision(conn)
        command.upgrade(_config(conn), "head")
    if path is not None:
        let_readers_in(engine)
    return copy


def require_current(engine: Engine) -> None:
    """For commands that only read.

    Raises:
        DatabaseRefusedError: The database is empty, of another revision, or not ours.
    """
    revision = current_revision(engine)
    if revision is None:
        raise DatabaseRefusedError("the database is empty; run `langfuse-etl sync` first")
    if revision != head_revision():
        raise DatabaseRefusedError(
            f"the database has revision {revision}, this program needs {head_revision()}; run `langfuse-etl db upgrade`"
        )


def _revision(conn: Connection) -> str | None:
    schema = schema_of(conn)
    inspector = inspect(conn)
    present = set(inspector.get_table_names(schema=schema)) | set(inspector.get_view_names(schema=schema))
    if VERSION_TABLE not in present:
        foreign = sorted(present & set(metadata.tables))
        if foreign:
            where = f"schema {schema}" if schema else "the file"
            raise DatabaseRefusedError(
                f"{where} already has tables named {', '.join(foreign)} that langfuse-etl did not make; choose another"
                " database with LANGFUSE_ETL_DATABASE_URL" + (" or another `database.schema`" if schema else "")
            )
        return None
    preparer = conn.dialect.identifier_preparer
    name = f"{preparer.quote_schema(schema)}.{VERSION_TABLE}" if schema else VERSION_TABLE
    revision: str | None = conn.exec_driver_sql(f"SELECT version_num FROM {name}").scalar()  # noqa: S608
    known = {script.revision for script in _scripts().walk_revisions()}
    if revision is not None and revision not in known:
        raise DatabaseRefusedError(
            f"the database has revision {revision}, which this version of langfuse-etl does not know; it was written by"
            " a newer version, install that or choose another database"
        )
    return revision


def _copy(path: Path, revision: str) -> Path:
    target = path.with_name(f"{path.name}.{revision}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.backup")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)
    return target


@cache
def _scripts() -> ScriptDirectory:
    """The migrations of this program; read once, for every run asks for them."""
    return ScriptDirectory.from_config(_config())


def _config(conn: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(_migrations()))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn
    return config


def _migrations() -> Path:
    """Inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "migrations"
    return inside if inside.is_dir() else package.parent / "migrations"
