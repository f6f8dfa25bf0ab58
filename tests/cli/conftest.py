"""A mock server, and a command line that is set up for it, or for nothing."""

from __future__ import annotations

import logging
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
