"""kill -9 at any moment: only whole files, and the next run finishes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from export_data import ROOT, fill, read_tree, trace
from sqlalchemy import Engine

from etl.export import Options, Selection, export_sessions, verify_directory
from etl.load.engine import schema_of

EXPORT = """
import sys
from pathlib import Path
from etl.export import Options, Selection, export_sessions
from etl.load.engine import open_engine
print("ready", flush=True)
export_sessions(open_engine(sys.argv[1], sys.argv[2]), Selection(all=True), Options(Path(sys.argv[3])))
print("done", flush=True)
"""


def test_a_killed_export_leaves_whole_files_and_the_next_one_finishes(engine: Engine, tmp_path: Path) -> None:
    fill(engine, *(trace(f"t{n}", sessionId=f"s{n % 3}", input="x" * 20_000) for n in range(600)))
    export_sessions(engine, Selection(all=True), Options(tmp_path / "whole"))
    whole = read_tree(tmp_path / "whole")
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-c", EXPORT, url, schema_of(engine) or "public", str(tmp_path / "out")]
    chance, killed, in_between = random.Random(7), 0, 0

    for _ in range(12):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0, 0.25))
            os.kill(process.pid, signal.SIGKILL)
            killed += process.wait() == -signal.SIGKILL
        tree = read_tree(tmp_path / "out") if (tmp_path / "out").exists() else {}
        files = {name: content for name, content in tree.items() if not name.endswith(".tmp")}
        assert files.items() <= whole.items()
        in_between += 0 < len(files) < len(whole)
        for name, content in files.items():
            if name.endswith("manifest.json"):
                listed = {f"{name.split('/')[0]}/{one['name']}" for one in json.loads(content)["files"]}
                assert listed <= set(files)

    assert killed
    assert in_between
    export_sessions(engine, Selection(all=True), Options(tmp_path / "out"))
    assert whole == read_tree(tmp_path / "out")
    assert verify_directory(tmp_path / "out") == []
