"""A mock server, and the settings for one service that copies it into a SQLite file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from instances import Setup, data
from nursery import Nursery

from etl.demo import MockLangfuse


@pytest.fixture
def server() -> Iterator[MockLangfuse]:
    with MockLangfuse(data()) as server:
        yield server


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'langfuse.db'}"


@pytest.fixture
def setup(nursery: Nursery, tmp_path: Path, server: MockLangfuse, sqlite_url: str) -> Setup:
    return Setup(nursery, tmp_path, {"shop": server}, database_url=sqlite_url)
