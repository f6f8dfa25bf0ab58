"""Pairs of databases, SQLite and Postgres, that must behave the same."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from database_looks import Pair, instant, write
from recorded_rows import STREAMS, recorded, to_row

from etl.load.engine import open_engine
from etl.load.migrate import upgrade
from etl.transform.fields import TRACE_DOCUMENT

_schemas = itertools.count(1)
OBSERVED = ("traces", "observations", "scores of v2", "sessions")


def _make_pair(folder: Path, postgres_url: str) -> Pair:
    number = next(_schemas)
    sqlite = open_engine(f"sqlite:///{folder / f'pair-{number}.db'}", "public")
    postgres = open_engine(postgres_url, f"pair_{number}")
    for engine in (sqlite, postgres):
        upgrade(engine)
    return Pair(sqlite, postgres)


@pytest.fixture(scope="session")
def shared_pair(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Pair]:
    """Both databases, empty; what a test writes is rolled back (`database_looks.scratch`)."""
    pair = _make_pair(tmp_path_factory.mktemp("shared"), postgres_url)
    yield pair
    for engine in pair:
        engine.dispose()


@pytest.fixture(scope="session")
def recorded_pair(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Pair]:
    """Both databases with all recorded rows; traces with the metrics that the server answered. Only for reading."""
    pair = _make_pair(tmp_path_factory.mktemp("recorded"), postgres_url)
    for name in OBSERVED:
        stream = STREAMS[name]
        shape = TRACE_DOCUMENT if name == "traces" else stream.shape
        rows = [to_row(item, stream._replace(shape=shape)) for item in recorded(stream.file)]
        for engine in pair:
            write(engine, shape.table, rows, instant(0))
    yield pair
    for engine in pair:
        engine.dispose()
