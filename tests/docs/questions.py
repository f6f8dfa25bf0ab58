"""The questions of `docs/sql.md`: found in the page, asked of a database, and their results printed as there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine

from etl.load.engine import reading, schema_of
from etl.load.types import instant_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "sql.md"
_QUESTION = re.compile(r"^## (\d+\. .+?)$(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_BLOCK = re.compile(r"^```(sql|sql sqlite|sql postgres|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_LARGE = 10_000  # from here on four digits would need an exponent


class Question(NamedTuple):
    """`sqlite` and `postgres` are the same text where one does for both."""

    title: str
    sqlite: str
    postgres: str
    result: str


def questions(page: str) -> list[Question]:
    """All of a page, in its order."""
    found = []
    for title, body in _QUESTION.findall(page):
        blocks = dict(_BLOCK.findall(body))
        both = blocks.get("sql", "")
        found.append(
            Question(title, blocks.get("sql sqlite", both), blocks.get("sql postgres", both), blocks.get("text", ""))
        )
    return found


def answer(engine: Engine, question: Question) -> str:
    """The result of a question, as a table of text."""
    sql = question.sqlite if engine.dialect.name == "sqlite" else question.postgres
    with reading(engine) as conn:
        schema = schema_of(conn)
        if schema:
            conn.exec_driver_sql(f'SET LOCAL search_path TO "{schema}"')
        result = conn.exec_driver_sql(sql.replace("%", "%%") if schema else sql)
        return _table(list(result.keys()), [[_cell(value) for value in row] for row in result])


def with_answers(page: str, engine: Engine) -> str:
    """The page with the results of this database."""

    def filled(match: re.Match[str]) -> str:
        (question,) = questions(match[0])
        before, _, rest = match[0].partition("```text\n")
        return f"{before}```text\n{answer(engine, question)}```{rest.partition('```')[2]}"

    return _QUESTION.sub(filled, page)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    lines.insert(1, "-+-".join("-" * width for width in widths))
    return "".join(f"{line.rstrip()}\n" for line in lines)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return instant_text(value)
    if isinstance(value, Decimal) and value == int(value):
        return str(int(value))
    if isinstance(value, float | Decimal):
        return f"{value:.4g}" if abs(value) < _LARGE else f"{value:.0f}"
    return str(value)
