"""Both databases in one test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import Engine

from etl.load.engine import open_engine
from etl.load.migrate import upgrade


@pytest.fixture
def both(tmp_path: Path, postgres_url: str) -> Iterator[list[Engine]]:
    """The two databases side by side."""
    urls = [(f"sqlite:///{tmp_path / 'both.db'}", "public"), (postgres_url, f"test_{uuid4().hex}")]
    engines = [open_engine(url, schema) for url, schema in urls]
    for engine in engines:
        upgrade(engine)
    yield engines
    for engine in engines:
        engine.dispose()
