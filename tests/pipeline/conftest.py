"""A SQLite database for what does not depend on the kind of database, and the recorded data synced once per kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from syncing import Recorded, sync_recorded

from etl.load.engine import open_engine
from etl.load.migrate import upgrade


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """An empty SQLite database with all tables."""
    engine = open_engine(f"sqlite:///{tmp_path / 'langfuse.db'}", "public")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def recorded_syncs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Recorded]]:
    """The recorded data after one sync and after a second one, by kind of database; made at first use."""
    made: dict[str, Recorded] = {}
    engines: list[Engine] = []

    def make(kind: str) -> Recorded:
        if kind not in made:
            if kind == "sqlite":
                url, schema = f"sqlite:///{tmp_path_factory.mktemp('recorded') / 'a.db'}", "public"
            else:
                url, schema = request.getfixturevalue("postgres_url"), "recorded"
            engines.append(open_engine(url, schema))
            upgrade(engines[-1])
            made[kind] = sync_recorded(engines[-1])
        return made[kind]

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def recorded_sync(request: pytest.FixtureRequest, recorded_syncs: Callable[[str], Recorded]) -> Recorded:
    """The recorded data, synced twice; the test runs for each kind of database, and only looks."""
    return recorded_syncs(request.param)
