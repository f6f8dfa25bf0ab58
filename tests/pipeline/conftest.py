"""A SQLite database for what does not depend on the kind of database, and the recorded data synced once per kind."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from databases import Databases
from sqlalchemy import Engine
from syncing import Recorded, sync_recorded


@pytest.fixture
def database(databases: Databases) -> Iterator[Engine]:
    """An empty SQLite database with all tables."""
    with databases.lent("sqlite") as engine:
        yield engine


@pytest.fixture(scope="session")
def recorded_syncs(databases: Databases) -> Iterator[Callable[[str], Recorded]]:
    """The recorded data after one sync and after a second one, by kind of database; made at first use."""
    with ExitStack() as lent:
        yield functools.cache(lambda kind: sync_recorded(lent.enter_context(databases.lent(kind))))


@pytest.fixture
def recorded_sync(kind: str, recorded_syncs: Callable[[str], Recorded]) -> Recorded:
    """The recorded data, synced twice; the test runs for each kind of database, and only looks."""
    return recorded_syncs(kind)
