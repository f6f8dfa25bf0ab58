"""The page on session files: what it tells people to type is typed here."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from export_data import ROOT, corpus, fill_with_corpus, read_tree

from etl.demo import PUBLIC_KEY, SECRET_KEY, MockLangfuse, load_corpus
from etl.load.engine import open_engine
from etl.load.migrate import upgrade

SESSION = "test_cases_alpha_20250806185514"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "docs" / "export.md").read_text())
CONSOLES = [text for language, text in BLOCKS if language == "console"]
OF_SESSION = [trace for trace in corpus("traces") if trace["sessionId"] == SESSION]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The commands of the page, and a server for those that ask one."""
    tools = tmp_path_factory.mktemp("bin")
    python = shlex.quote(sys.executable)
    for name, command in {"langfuse-etl": f"{python} -m etl", "python3": python}.items():
        (tools / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (tools / name).chmod(0o755)
    with MockLangfuse(load_corpus()) as server:
        yield {
            **{name: value for name, value in os.environ.items() if not name.startswith("LANGFUSE")},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path))),
            "LANGFUSE_BASE_URL": server.base_url.removesuffix("/api/public"),
            "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY,
            "LANGFUSE_SECRET_KEY": SECRET_KEY,
            "SESSION": SESSION,
        }


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded data, as a sync leaves it."""
    path = tmp_path_factory.mktemp("filled") / "langfuse.db"
    engine = open_engine(f"sqlite:///{path}", "public")
    upgrade(engine)
    fill_with_corpus(engine)
    engine.dispose()
    return path


@pytest.fixture
def folder(tmp_path: Path, database: Path, request: pytest.FixtureRequest) -> Path:
    """The database and the programs of the page."""
    if "refresh" not in request.node.name:  # that one begins with nothing
        (tmp_path / "langfuse.db").write_bytes(database.read_bytes())
    for language, text in BLOCKS:
        if language == "python":
            name = text.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(text)
    return tmp_path


def typed(text: str) -> list[str]:
    return [line[2:].replace("SESSION", SESSION) for line in text.splitlines() if line.startswith("$ ")]


def run(command: str, folder: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("block", CONSOLES, ids=lambda block: typed(block)[0])
def test_every_command_works_and_does_what_the_page_says(block: str, folder: Path, environ: dict[str, str]) -> None:
    shown = {word for line in block.splitlines() if not line.startswith("$ ") for word in line.split()} - {"…"}
    before = {*folder.iterdir()}

    printed = "".join(run(command, folder, environ) for command in typed(block))

    assert shown <= set(printed.split())
    assert {*folder.iterdir()} - before
    for words, check in CHECKS.items():
        if words in block:
            check(folder, environ)


def test_every_recipe_has_a_check() -> None:
    assert [1] * len(CHECKS) == [sum(words in block for block in CONSOLES) for words in CHECKS]
    assert len(CHECKS) == len(CONSOLES)


def has_the_files_of_the_script(folder: Path, environ: dict[str, str]) -> None:
    run("python3 script.py", folder, environ)
    by_hand, ours = contents(folder / "by-hand" / SESSION), contents(folder / "result" / SESSION)
    assert ours.pop("manifest.json")["traces"] == len(OF_SESSION)
    assert by_hand == ours


def contents(folder: Path) -> dict[str, Any]:
    """Files by name; lists of ids have no order."""
    found = {name: json.loads(content) for name, content in read_tree(folder).items()}
    for trace in found.values():
        for part in ("observations", "scores"):
            if isinstance(trace.get(part), list):
                trace[part].sort()
    return found


def has_the_session(folder: Path, _: dict[str, str]) -> None:
    assert len(OF_SESSION) + 1 == len(read_tree(folder / "result"))


def has_every_case(folder: Path, _: dict[str, str]) -> None:
    cases = [json.loads(line) for line in (folder / "cases.jsonl").read_bytes().splitlines()]
    assert {trace["id"]: trace["input"] for trace in OF_SESSION} == {case["id"]: case["input"] for case in cases}


def has_a_whole_archive(folder: Path, environ: dict[str, str]) -> None:
    run("rm -r report && tar -xzf report.tar.gz", folder, environ)
    assert len(OF_SESSION) + 1 == len(read_tree(folder / "report"))


def has_one_turn(folder: Path, _: dict[str, str]) -> None:
    assert {f"{SESSION}/17400353.json", f"{SESSION}/manifest.json"} == set(read_tree(folder / "turn"))


def has_every_trace(folder: Path, _: dict[str, str]) -> None:
    tree = read_tree(folder / "backup" / "langfuse")
    found = {json.loads(content)["id"] for name, content in tree.items() if not name.endswith("manifest.json")}
    assert {trace["id"] for trace in corpus("traces")} == found


# By words that only one block has.
CHECKS: dict[str, Callable[[Path, dict[str, str]], None]] = {
    "ls result": has_the_session,
    "--refresh --detail row": has_the_files_of_the_script,
    "cases.jsonl": has_every_case,
    "report.tar.gz": has_a_whole_archive,
    "--where metadata.message_id=17400353": has_one_turn,
    "--all": has_every_trace,
}
