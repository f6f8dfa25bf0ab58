"""kill -9 at any moment: only whole files, and the next run finishes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
from export_data import ROOT, fill, read_tree, trace
from nursery import Nursery
from sqlalchemy import Engine

from etl.export import Options, Selection, export_sessions, verify_directory
from etl.load.engine import schema_of

EXPORT = """
from pathlib import Path
from etl.export import Options, Selection, export_sessions
from etl.load.engine import open_engine
export_sessions(open_engine(sys.argv[1], sys.argv[2]), Selection(all=True), Options(Path(sys.argv[3])))
sys.exit()
"""


@pytest.mark.long
def test_a_killed_export_leaves_whole_files_and_the_next_one_finishes(
    engine: Engine, nursery: Nursery, tmp_path: Path
) -> None:
    fill(engine, *(trace(f"t{n}", sessionId=f"s{n % 3}", input="x" * 20_000) for n in range(600)))
    export_sessions(engine, Selection(all=True), Options(tmp_path / "whole"))
    whole = read_tree(tmp_path / "whole")
    url = engine.url.render_as_string(hide_password=False)
    words = [url, schema_of(engine) or "public", str(tmp_path / "out")]
    in_between = 0

    # Files of an earlier run count as well, so that each kill comes later than the one before.
    for wanted in sorted(random.Random(7).sample(range(1, 550), 5)):
        pid = nursery.fork(ROOT, os.environ, words, tmp_path / "log", before=EXPORT)
        while count(tmp_path / "out") < wanted:
            assert nursery.poll(pid) is None, (tmp_path / "log").read_text()
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        assert nursery.wait(pid) == -signal.SIGKILL
        tree = read_tree(tmp_path / "out")
        files = {name: content for name, content in tree.items() if not name.endswith(".tmp")}
        assert files.items() <= whole.items()
        in_between += 0 < len(files) < len(whole)
        for name, content in files.items():
            if name.endswith("manifest.json"):
                listed = {f"{name.split('/')[0]}/{one['name']}" for one in json.loads(content)["files"]}
                assert listed <= set(files)

    assert in_between
    export_sessions(engine, Selection(all=True), Options(tmp_path / "out"))
    assert whole == read_tree(tmp_path / "out")
    assert verify_directory(tmp_path / "out") == []


def count(directory: Path) -> int:
    """Files that are under their names."""
    return sum(1 for path in directory.glob("*/*.json") if path.name != "manifest.json")
