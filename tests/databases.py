"""Databases with all tables and no rows, used again by one test after the other.

Making one by the migrations takes half a second of processor time on Postgres, and each engine compiles every statement
anew; emptying one takes milliseconds, and an engine that stays has compiled what the next test sends.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, text

from etl.load.engine import open_engine, reading, schema_of, sqlite_path, writing
from etl.load.migrate import upgrade
from etl.load.tables import VERSION_TABLE, metadata

KINDS = ("sqlite", "postgres")
_LOOK = "SELECT relname, relkind, relnatts, relhastriggers FROM pg_class WHERE relnamespace = to_regnamespace(:schema)"

_numbers = itertools.count(1)


class Databases:
    """SQLite files in a folder, schemas on one Postgres; `postgres_url` is asked when the first one is wanted."""

    def __init__(self, folder: Path, postgres_url: Callable[[], str]) -> None:
        self._folder, self._postgres_url = folder, postgres_url
        self._free: dict[str, list[Engine]] = {kind: [] for kind in KINDS}
        self._empty_file: Path | None = None
        self._postgres: Engine | None = None
        self._untouched: set[tuple[object, ...]] = set()

    @contextmanager
    def lent(self, kind: str) -> Iterator[Engine]:
        """An empty database that nobody else has meanwhile; one in whose block something failed is not used again.

        What listens to this engine hears nothing of the next test.
        """
        free = self._free[kind]
        engine = free.pop() if free else self._new(kind)
        if kind == "sqlite":
            self._renew_file(engine)
        else:
            self._empty_schema(engine)
        yield engine.execution_options()
        free.append(engine)

    def close(self) -> None:
        for engine in (*self._free["sqlite"], *([self._postgres] if self._postgres else [])):
            engine.dispose()

    def _new(self, kind: str) -> Engine:
        number = next(_numbers)
        if kind == "sqlite":
            return open_engine(f"sqlite:///{self._folder / f'langfuse-{number}.db'}", "public")
        if self._postgres is None:
            self._postgres = open_engine(self._postgres_url(), "public")
        return self._postgres.execution_options(schema_translate_map={None: f"lent_{number}"})

    def _renew_file(self, engine: Engine) -> None:
        """Whatever a test did to the file, the next one has another."""
        if self._empty_file is None:
            self._empty_file = self._folder / "empty.db"
            empty = open_engine(f"sqlite:///{self._empty_file}", "public")
            upgrade(empty)
            empty.dispose()
        engine.dispose()
        path = sqlite_path(engine)
        assert path is not None
        for old in path.parent.glob(f"{path.name}*"):
            old.unlink()
        shutil.copyfile(self._empty_file, path)

    def _empty_schema(self, engine: Engine) -> None:
        schema = schema_of(engine)
        look = self._look(engine)
        if look and look == self._untouched:
            tables = ", ".join(f"{schema}.{name}" for name in metadata.tables)
            with writing(engine) as conn:
                # A test that left a transaction open shall fail the next one, not hang it.
                conn.execute(text("SET LOCAL lock_timeout = '10s'"))
                conn.execute(text(f"TRUNCATE {tables} RESTART IDENTITY"))
        else:
            with writing(engine) as conn:
                conn.execute(text(f"DROP SCHEMA IF EXISTS {schema} CASCADE"))
            upgrade(engine)
            self._untouched = self._look(engine)

    def _look(self, engine: Engine) -> set[tuple[object, ...]]:
        """What there is in the schema; a test may have added an index, removed a view, or forged the revision."""
        with reading(engine) as conn:
            found = {tuple(row) for row in conn.execute(text(_LOOK), {"schema": schema_of(engine)})}
            if any(name == VERSION_TABLE for name, *_ in found):
                revision = f"SELECT 'revision', version_num FROM {schema_of(engine)}.{VERSION_TABLE}"
                found |= {tuple(row) for row in conn.execute(text(revision))}
        return found
