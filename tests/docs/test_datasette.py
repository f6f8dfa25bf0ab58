"""Datasette over a synced database, started as its page says and clicked through in a browser."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import yaml
from playwright.sync_api import Browser, Page, expect

from etl.load.engine import open_engine
from etl.load.migrate import upgrade
from tests.docs.corpus import synced
from tests.docs.datasette_metadata import datasette_metadata

METADATA = Path(__file__).resolve().parents[2] / "docs" / "datasette" / "metadata.yml"


def test_the_metadata_is_what_the_schema_says(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'empty.db'}", "public")
    upgrade(engine)
    assert datasette_metadata(engine) == METADATA.read_text(encoding="utf-8"), "run `make docs`"
    engine.dispose()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    file = tmp_path_factory.mktemp("datasette") / "langfuse.db"
    synced(f"sqlite:///{file}", "public").dispose()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "datasette", str(file), "-m", str(METADATA), "-p", str(port)]
    with subprocess.Popen(
        [*command, "--setting", "sql_time_limit_ms", "5000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        url = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{url}/-/versions.json").close()  # noqa: S310 - our own address
                break
            except OSError:
                assert process.poll() is None, "datasette ended"
                time.sleep(0.1)
        yield url
        process.terminate()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    page = context.new_page()
    heard: list[str] = []
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("response", lambda r: heard.append(r.url) if r.status >= 400 and "favicon" not in r.url else None)
    page.goto(address)
    yield page
    assert heard == []
    context.close()


def test_a_way_through_its_pages(page: Page) -> None:
    expect(page.locator("h1")).to_have_text("Langfuse, copied")
    page.get_by_role("link", name="langfuse", exact=True).first.click()
    page.get_by_role("link", name="Which models cost most?").click()
    expect(page.locator("table.rows-and-columns tbody tr")).to_have_count(4)
    expect(page.locator("table.rows-and-columns tbody tr").first).to_contain_text("claude-sonnet-4-20250514")

    page.go_back()
    page.get_by_role("link", name="One session", exact=True).click()
    page.locator("input[name=session_id]").fill("web-014")
    page.get_by_role("button", name="Run SQL").click()
    rows = page.locator("table.rows-and-columns tbody tr")
    expect(rows.first).to_contain_text("意图识别")

    page.goto(re.sub(r"(:\d+)/.*", r"\1/langfuse/session_summary", page.url))
    expect(page.locator("body")).to_contain_text("its turns, how long it took, what it cost")
    assert page.locator("table.rows-and-columns tbody tr").count() > 40


def test_every_ready_query_answers(address: str) -> None:
    queries = yaml.safe_load(METADATA.read_text(encoding="utf-8"))["databases"]["langfuse"]["queries"]
    for name in queries:
        values = "?session_id=web-014&first_day=2026-11-12&end_day=2026-11-19" if ":" in queries[name]["sql"] else ""
        answer = requests.get(f"{address}/langfuse/{name}.json{values}", timeout=30)
        assert answer.json()["rows"], f"{name}: {answer.text}"
