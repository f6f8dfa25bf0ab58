"""`langfuse-etl report` and `langfuse-etl db search`, from the command line."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
from commands import Cli


def test_a_synced_database_becomes_one_page(synced: Cli) -> None:
    result = synced("report", "--json")

    page = synced.folder / "langfuse-report.html"
    assert result.code == 0
    assert result.document == {"file": page.name, "bytes": page.stat().st_size, "projects": ["proj-shop"]}
    assert "Cost per day and model" in page.read_text(encoding="utf-8")
    assert [path.name for path in synced.folder.glob(".*.part")] == []
    assert synced("report", "--project", "proj-shop", "-o", "other.html", "--from", "2026-01-01T00:00:00Z").code == 0
    assert (synced.folder / "other.html").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--project", "nobody"), 3, "not in the database; there are"),
        (("--from", "2026-01-02T00:00:00Z", "--to", "2026-01-02T00:00:00Z"), 2, "--from must be before --to"),
        (("--from", "yesterday"), 2, "--from"),
        (("--output", "no/such/folder/report.html"), 3, "choose another place"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(synced: Cli, words: tuple[str, ...], code: int, says: str) -> None:
    result = synced("report", *words)

    assert result.code == code
    assert says in result.err
    assert list(synced.folder.glob("*.html")) == []


def test_an_empty_database_says_what_to_do(bare_cli: Cli) -> None:
    result = bare_cli("report")

    assert result.code == 3
    assert "run `langfuse-etl sync` first" in result.err


def test_search_is_switched_on_and_off(synced: Cli) -> None:
    refused = synced("db", "search", "perhaps")
    assert (refused.code, "allowed are on, off" in refused.err) == (2, True)

    assert synced("db", "search", "on").code == 0
    with closing(sqlite3.connect(synced.database)) as conn:
        assert conn.execute("SELECT count(*) FROM traces_search_rows").fetchone() == (120,)
    assert synced("sync").code == 0
    assert synced("db", "search", "off").code == 0
    with closing(sqlite3.connect(synced.database)) as conn:
        assert conn.execute("SELECT name FROM sqlite_master WHERE name LIKE '%search%'").fetchall() == []
