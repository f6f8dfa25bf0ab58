"""Pairs of databases, SQLite and Postgres, that must behave the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from database_looks import Pair, instant, write
from databases import Databases
from recorded_rows import STREAMS, recorded, to_row

from etl.transform.fields import TRACE_DOCUMENT

OBSERVED = ("traces", "observations", "scores of v2", "sessions")


@contextmanager
def _lent_pair(databases: Databases) -> Iterator[Pair]:
    with databases.lent("sqlite") as sqlite, databases.lent("postgres") as postgres:
        yield Pair(sqlite, postgres)


@pytest.fixture(scope="session")
def shared_pair(databases: Databases) -> Iterator[Pair]:
    """Both databases, empty; what a test writes is rolled back (`database_looks.scratch`)."""
    with _lent_pair(databases) as pair:
        yield pair


@pytest.fixture(scope="session")
def recorded_pair(databases: Databases) -> Iterator[Pair]:
    """Both databases with all recorded rows; traces with the metrics that the server answered. Only for reading."""
    with _lent_pair(databases) as pair:
        for name in OBSERVED:
            stream = STREAMS[name]
            shape = TRACE_DOCUMENT if name == "traces" else stream.shape
            rows = [to_row(item, stream._replace(shape=shape)) for item in recorded(stream.file)]
            for engine in pair:
                write(engine, shape.table, rows, instant(0))
        yield pair
