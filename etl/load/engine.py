"""Engines and transactions for SQLite and Postgres."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InvalidatePoolError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from etl.errors import DatabaseError, RowRefusedError
from etl.load.tables import VERSION_TABLE

_BUSY_TIMEOUT_S = 30
_CONNECT_TIMEOUT_S = 15
# A server that vanished without a word is noticed before the lease has long expired (libpq, connection parameters).
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 25_000}
_PING_AFTER_S = 1.0
_WRITES, _USED_AT = "etl_writes", "etl_used_at"


def open_engine(url: str, schema: str) -> Engine:
    """An engine for `sqlite:///path` or `postgresql+psycopg://…`; nothing is opened before it is used.

    Args:
        url: As `etl.config` normalised it.
        schema: The Postgres schema of our tables; SQLite has none.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = create_engine(parsed, connect_args={"timeout": _BUSY_TIMEOUT_S, "check_same_thread": False})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(
        parsed,
        # A pooler may hand each transaction another server connection, where a prepared statement is unknown.
        connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "prepare_threshold": None, **_KEEPALIVE},
    )
    event.listen(engine, "checkin", _note_use)
    event.listen(engine, "checkout", partial(_ping_if_idle, engine.dialect))
    return engine.execution_options(schema_translate_map={None: schema})


def schema_of(engine: Engine | Connection) -> str | None:
    """The Postgres schema of our tables; None on SQLite."""
    schemas: dict[str | None, str] = engine.get_execution_options().get("schema_translate_map", {})
    return schemas.get(None)


def sqlite_path(engine: Engine) -> Path | None:
    """The database file; None on Postgres."""
    return Path(engine.url.database) if engine.dialect.name == "sqlite" and engine.url.database else None


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """One consistent view of the database.

    Raises:
        DatabaseError: The database cannot be reached or read.
    """
    with _plain_errors(engine), engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """One transaction that takes the write lock first; it is rolled back if the block raises.

    Raises:
        DatabaseError: The database cannot be reached or written, or its disk is full.
        RowRefusedError: Only what was written here is more than it takes.
    """
    writer = engine.execution_options(**{_WRITES: True})
    with _turn(engine), _plain_errors(engine), writer.begin() as connection:
        yield connection


def _turn(engine: Engine) -> AbstractContextManager[Any]:
    """The writers of one process take turns on SQLite, which would let them poll. Postgres has its own queue."""
    if engine.dialect.name != "sqlite":
        return nullcontext()
    with _turns_lock:
        return _turns.setdefault(engine, threading.Lock())


_turns: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_turns_lock = threading.Lock()


def let_readers_in(engine: Engine) -> None:
    """Switches a SQLite file to its write-ahead log, so that readers and the writer do not wait for each other.

    Raises:
        DatabaseError: The file cannot be written.
    """
    with _plain_errors(engine), closing(engine.raw_connection()) as connection:
        _set_up_sqlite(connection.driver_connection, None)


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # SQLAlchemy docs, "Serializable isolation / Savepoints / Transactional DDL": the driver must not begin by itself.
    connection.isolation_level = None
    # The log is a property of the file; that of another application stays as it is.
    if connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (VERSION_TABLE,)).fetchone():
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")


def _note_use(_connection: Any, record: ConnectionPoolEntry) -> None:
    record.info[_USED_AT] = time.monotonic()


def _ping_if_idle(dialect: Dialect, connection: Any, record: ConnectionPoolEntry, _proxy: Any) -> None:
    """What `pool_pre_ping` does, but not for a connection that was in use a moment ago: a ping is a round trip."""
    used_at = record.info.get(_USED_AT)
    if used_at is None or time.monotonic() - used_at < _PING_AFTER_S:
        return
    try:
        dialect.do_ping(connection)
    except dialect.loaded_dbapi.Error:
        raise InvalidatePoolError from None  # the pool opens another one, and pings no other of that time


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _plain_errors(engine: Engine) -> Iterator[None]:
    """Driver errors as one line; SQLAlchemy's own text would hold statements and values."""
    try:
        yield
    except DBAPIError as error:
        raise _explained(error.orig or error, engine) from None
    except _driver(engine).Error as error:  # from the driver itself, where it is used directly
        raise _explained(error, engine) from None
    except PoolTimeoutError:
        raise DatabaseError(f"{_name(engine.url)}: every connection of this process is busy") from None


def _driver(engine: Engine) -> Any:
    """`sqlite3` or `psycopg`, with the errors of PEP 249; the one that is not used is not even imported."""
    return engine.dialect.loaded_dbapi


def _name(url: URL) -> str:
    # Without the query, where a password may stand as well.
    return f"database {url.database if url.get_backend_name() == 'sqlite' else url.set(query={}).render_as_string()}"


def _explained(error: BaseException, engine: Engine) -> DatabaseError:
    url, on_postgres = engine.url, engine.dialect.name == "postgresql"
    cause = (str(error).strip() or type(error).__name__).splitlines()[0]
    if on_postgres and isinstance(error, _driver(engine).DataError):
        cause = cause.split(': "')[0]  # the value follows
    if getattr(error, "sqlstate", None) == _PROGRAM_LIMIT_EXCEEDED:
        return RowRefusedError(f"{_name(url)}: {cause}; {_TOO_LARGE}", needs_person=True)
    known = _POSTGRES_ADVICE if on_postgres else _SQLITE_ADVICE
    advice = next((advice for part, advice in known.items() if part in cause), "")
    needs_person = advice not in ("", _LOCKED)
    if not advice and on_postgres and isinstance(error, _driver(engine).OperationalError):
        advice = "is the server running, and are the URL, user and password right?"
    return DatabaseError(f"{_name(url)}: {cause}" + (f"; {advice}" if advice else ""), needs_person=needs_person)


_PROGRAM_LIMIT_EXCEEDED = "54000"  # Postgres manual, appendix A
# An index row of Postgres holds 2,704 bytes after compression (nbtree: a third of a page).
_TOO_LARGE = (
    "an id (of a row, a session, a trace) or another value is longer than Postgres takes; shorten it where it is made,"
    " or use SQLite, which has no such limit"
)
_NO_SPACE = "nothing of the page at hand was kept, free some space and run again"
_LOCKED = "another program is writing to it, try again when it is done"
_SQLITE_ADVICE = {
    "readonly": "make the file and its folder writable, or choose another with LANGFUSE_ETL_DATABASE_URL",
    "disk is full": _NO_SPACE,
    "disk I/O error": "is the disk full or broken? Nothing of the page at hand was kept",
    "unable to open database file": "does the folder exist, and may you write there?",
    "not a database": "choose another file with LANGFUSE_ETL_DATABASE_URL",
    "malformed": "the file is damaged, restore a copy or choose another with LANGFUSE_ETL_DATABASE_URL",
    "locked": _LOCKED,
}
_POSTGRES_ADVICE = {
    "No space left": _NO_SPACE,
    "read-only transaction": "is it a standby? The URL must be that of the server that takes writes",
    "permission denied": "the user needs the right to create and write tables in `database.schema`",
}
