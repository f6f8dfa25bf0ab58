"""The data dictionary is what the databases are, and nothing in it is left unexplained."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from etl.load.engine import open_engine, reading
from etl.load.meanings import _SHARED, _SPECIAL, TABLES, VIEWS, meaning_of
from etl.load.migrate import upgrade
from etl.load.tables import metadata
from tests.docs.dictionary import dictionary

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data-dictionary.md"


@pytest.fixture(scope="module")
def postgres(postgres_url: str):
    engine = open_engine(postgres_url, "dictionary")
    upgrade(engine)
    yield engine
    engine.dispose()


def test_the_page_is_what_the_schema_says(postgres) -> None:
    assert dictionary(postgres) == PAGE.read_text(encoding="utf-8"), "run `make docs`"


def test_postgres_carries_a_comment_on_every_table_view_and_column(postgres) -> None:
    inspector = inspect(postgres)
    assert set(TABLES) == set(metadata.tables)
    assert set(VIEWS) == set(inspector.get_view_names("dictionary"))
    with reading(postgres) as conn:
        for relation, meaning in {**TABLES, **VIEWS}.items():
            query = text("SELECT obj_description(CAST(:name AS regclass), 'pg_class')")
            assert meaning == conn.execute(query, {"name": f"dictionary.{relation}"}).scalar()
            for column in inspector.get_columns(relation, schema="dictionary"):
                assert column["comment"], f"{relation}.{column['name']}: say in etl/load/meanings.py what it holds"
                assert column["comment"] == meaning_of(relation, column["name"])


def test_no_meaning_is_of_a_column_that_is_not_there(postgres) -> None:
    inspector = inspect(postgres)
    columns = {
        name: {column["name"] for column in inspector.get_columns(name, schema="dictionary")}
        for name in (*TABLES, *VIEWS)
    }
    assert set(_SPECIAL) <= set(columns)
    for relation, meanings in _SPECIAL.items():
        assert set(meanings) <= columns[relation]
    assert set(_SHARED) <= set().union(*columns.values())
