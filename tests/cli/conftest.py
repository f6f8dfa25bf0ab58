"""A mock server, and a command line that is set up for it, or for nothing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Cli, data, keys

from etl.demo import MockLangfuse


@pytest.fixture
def server() -> Iterator[MockLangfuse]:
    with MockLangfuse(data()) as server:
        yield server


@pytest.fixture
def bare_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Nothing is configured."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield Cli(tmp_path, {}, monkeypatch, capfd)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def cli(bare_cli: Cli, server: MockLangfuse) -> Cli:
    """The three variables point to the mock server."""
    bare_cli.environ |= keys(server.base_url)
    return bare_cli


@pytest.fixture(scope="session")
def synced_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a synced database is kept, once there is one."""
    return tmp_path_factory.mktemp("synced") / "langfuse.db"


@pytest.fixture
def synced(cli: Cli, synced_file: Path) -> Cli:
    """With a database that holds all of the server's data: the first one is synced, the others are copies."""
    if not synced_file.exists():
        assert cli("sync").code == 0
        shutil.copyfile(cli.database, synced_file)
    shutil.copyfile(synced_file, cli.database)
    return cli
