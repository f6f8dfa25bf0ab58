"""`docs/data-dictionary.md`, made from the databases that migrations build and from `etl/load/meanings.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Engine, inspect
from sqlalchemy.dialects import postgresql, sqlite

from etl.load.engine import schema_of
from etl.load.meanings import TABLES, VIEWS, meaning_of
from etl.load.tables import metadata

_ON_SQLITE = {
    "TIMESTAMP": "text", "DATE": "text", "BIGINT": "integer", "DOUBLE PRECISION": "real", "TEXT": "text",
}  # fmt: skip
# The diagram: which table points to which, and by what.
_RELATIONS = (
    ("projects", "||--o{", "traces", "project_id"),
    ("projects", "||--o{", "sessions", "project_id"),
    ("sessions", "|o--o{", "traces", "session_id"),
    ("traces", "|o--o{", "observations", "trace_id"),
    ("observations", "|o--o{", "observations", "parent_observation_id"),
    ("traces", "|o--o{", "scores", "trace_id"),
    ("observations", "|o--o{", "scores", "observation_id"),
    ("sessions", "|o--o{", "scores", "session_id"),
    ("projects", "||--o{", "sync_state", "project_id"),
    ("sync_runs", "||--o{", "sync_windows", "run_id"),
    ("sync_state", "||--o{", "sync_windows", "stream"),
)
_INTRODUCTION = """\
# Data dictionary

Made by `make docs` from the tables and views that the migrations build; a test holds it in step. On Postgres the same
texts are comments: `\\d+ traces` in psql shows them, and most tools do.

The same names on both databases. Instants are `timestamptz` on Postgres, on SQLite text like
`2026-11-18T10:31:48.395Z`, which sorts by time. JSON is `jsonb` on Postgres and text on SQLite. Truth is a boolean on
Postgres, 0 or 1 on SQLite. Durations are seconds, money is USD. There are no foreign keys: rows arrive in any order,
and an observation may be there before its trace, or without one.

Views leave out deleted rows; tables keep them, marked by `deleted_at`. Questions and their SQL are in
[`sql.md`](sql.md).
"""


def dictionary(postgres: Engine) -> str:
    """The whole page.

    Args:
        postgres: An upgraded database; SQLite has the same columns, but does not tell the types of views.
    """
    return "\n".join((_INTRODUCTION, *_diagram(), *_tables(), *_views(postgres)))


def _diagram() -> Iterator[str]:
    yield "## How tables belong together\n\n```mermaid\nerDiagram"
    for one, arrow, other, column in _RELATIONS:
        yield f"    {one} {arrow} {other} : {column}"
    yield "```\n\nAll of these hold within one `project_id`.\n"


def _tables() -> Iterator[str]:
    yield "## Tables\n"
    dialect = sqlite.dialect()
    for name, meaning in TABLES.items():
        table = metadata.tables[name]
        key = ", ".join(column.name for column in table.primary_key)
        yield f"### {name}\n\n{meaning} Key: `{key}`.\n"
        yield "| column | Postgres | SQLite | null | meaning |\n|---|---|---|---|---|"
        for column in table.c:
            types = (_postgres_name(column.type), column.type.compile(dialect=dialect).lower())
            null = "yes" if column.nullable else ""
            yield f"| `{column.name}` | {' | '.join(types)} | {null} | {meaning_of(name, column.name)} |"
        yield ""


def _views(postgres: Engine) -> Iterator[str]:
    yield "## Views\n"
    columns = inspect(postgres)
    for name, meaning in VIEWS.items():
        yield f"### {name}\n\n{meaning}\n"
        yield "| column | Postgres | SQLite | meaning |\n|---|---|---|---|"
        for column in columns.get_columns(name, schema=schema_of(postgres)):
            kind = column["type"].compile(dialect=postgres.dialect).split(" WITH")[0]
            types = (_short(kind), _ON_SQLITE[kind])
            yield f"| `{column['name']}` | {' | '.join(types)} | {meaning_of(name, column['name'])} |"
        yield ""


def _postgres_name(kind: Any) -> str:
    return _short(kind.compile(dialect=postgresql.dialect()).split(" WITH")[0])


def _short(name: str) -> str:
    return {"TIMESTAMP": "timestamptz", "DOUBLE PRECISION": "double precision"}.get(name, name.lower())
