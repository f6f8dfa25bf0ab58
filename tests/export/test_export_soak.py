"""A session of 20,000 traces in flat memory, when it is new and when nothing changed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from export_data import ROOT, fill, trace

from etl.load.engine import open_engine
from etl.load.migrate import upgrade

FEW, MANY = 2_000, 20_000
MOST_MEGABYTES = 150
MOST_BYTES_PER_TRACE = 200

EXPORT = """
import json, re, sys, time
from pathlib import Path
from etl.export import Options, Selection, export_sessions
from etl.load.engine import open_engine
engine = open_engine(sys.argv[1], "public")
began = time.monotonic()
(result,) = export_sessions(engine, Selection(sessions=("s1",)), Options(Path(sys.argv[2])))
# Not getrusage: its peak begins with that of the process that started this one.
megabytes = int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024
print(json.dumps({"traces": result.traces, "megabytes": megabytes, "seconds": time.monotonic() - began}))
"""


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_session_of_20_000_traces_needs_hardly_more_memory_than_one_of_2_000(tmp_path: Path) -> None:
    seen = {}
    for traces in (FEW, MANY):
        url = f"sqlite:///{tmp_path / str(traces)}.db"
        engine = open_engine(url, "public")
        upgrade(engine)
        for first in range(0, traces, 1_000):
            fill(engine, *(trace(f"t{n:05}", input="x" * 20_000) for n in range(first, first + 1_000)))
        engine.dispose()
        run = [sys.executable, "-c", EXPORT, url, str(tmp_path / str(traces))]
        for _ in ("new", "unchanged"):
            said = json.loads(subprocess.run(run, cwd=ROOT, check=True, capture_output=True, text=True).stdout)
            print(said)  # noqa: T201 - the measure is worth reading
            assert said["traces"] == traces
            seen[traces] = max(said["megabytes"], seen.get(traces, 0))

    assert seen[MANY] < MOST_MEGABYTES
    assert (seen[MANY] - seen[FEW]) * 2**20 / (MANY - FEW) < MOST_BYTES_PER_TRACE
