"""Both databases in one test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from databases import Databases
from sqlalchemy import Engine


@pytest.fixture
def both(databases: Databases) -> Iterator[list[Engine]]:
    """The two databases side by side, empty."""
    with databases.lent("sqlite") as sqlite, databases.lent("postgres") as postgres:
        yield [sqlite, postgres]
