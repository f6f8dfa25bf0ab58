"""How fast a big session becomes files, beside the script that people write for it; see `docs/performance.md`.

Every way of writing runs in a process of its own (`python -m tests.bench.exports WAY …`), so that each shows its own
memory, and begins with the same nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import requests
from sqlalchemy import Engine, func, select

from etl.demo import PUBLIC_KEY, SECRET_KEY
from etl.export import Options, Selection, export_sessions
from etl.load.engine import open_engine, reading, schema_of
from etl.load.tables import traces
from etl.runtime import prepare_for_bulk
from tests.bench.measure import Database, Server, forget_peak_memory, memory_mib, peak_memory_mib, sync

WAYS = {"script": "script by hand", "row": "--detail row", "again": "row once more", "full": "--detail full"}
# What is to be compared with what, and how much it may be at most.
RATIOS = {"row / script": ("row", "script", 1.0), "full / script": ("full", "script", None)}
_ROOT = Path(__file__).parents[2]


def script(base_url: str, session_id: str, directory: Path) -> int:
    """The script: page by page, one file for each trace, named by `metadata.message_id`; returns how many."""
    http = requests.Session()
    http.auth = (PUBLIC_KEY, SECRET_KEY)
    page = written = 0
    while True:
        page += 1
        query = {"sessionId": session_id, "page": str(page), "limit": "100"}
        answer = http.get(f"{base_url}/traces", params=query, timeout=60)
        answer.raise_for_status()
        content = answer.json()
        for trace in content["data"]:
            with open(directory / f"{trace['metadata']['message_id']}.json", "w", encoding="utf-8") as file:
                json.dump(trace, file, ensure_ascii=False, indent=2)
            written += 1
        if page >= content["meta"]["totalPages"]:
            return written


def ours(database: str, schema: str, session_id: str, directory: Path, way: str) -> int:
    """What `langfuse-etl export` does, without its command line; returns how many traces."""
    engine = open_engine(database, schema)
    options = Options(directory, detail="full" if way == "full" else "row")
    (exported,) = export_sessions(engine, Selection(sessions=(session_id,)), options)
    engine.dispose()
    return exported.traces


def measure(database: Database, large: Server, small: Server, rounds: int) -> dict[str, Any]:
    """All ways in turn, `rounds` times, for one big session; then ours for a small one, to compare memory."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        engine = database.new()
        sync(engine, large)
        seen: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        # Nothing is removed in between: ext4 is slow at making files for some seconds after many were removed.
        for number in range(rounds):
            for way, results in seen.items():
                target = folder / f"{'row' if way == 'again' else way}-{number}"
                target.mkdir(exist_ok=True)
                results.append(_in_own_process(way, large, engine, target))
        different = _different_files(folder / "script-0", folder / "row-0")
        engine.dispose()
        engine = database.new()
        sync(engine, small)
        few = {way: _in_own_process(way, small, engine, folder / f"small-{way}") for way in ("row", "full")}
        engine.dispose()
    count = seen["row"][0]["traces"]
    best = {
        way: {clock: round(min(one[clock] for one in results) / count * 1_000, 3) for clock in ("wall", "cpu")}
        for way, results in seen.items()
    }
    return {
        "traces": {"large": count, "small": few["row"]["traces"]},
        "ms_per_trace": best,
        "ratios": {
            name: {clock: round(best[upper][clock] / best[lower][clock], 2) for clock in ("wall", "cpu")}
            for name, (upper, lower, _) in RATIOS.items()
        },
        "memory_growth_mib": {
            way: {"large": min(one["growth_mib"] for one in seen[way]), "small": one["growth_mib"]}
            for way, one in few.items()
        },
        "different_files": different,
        "rounds": seen,
    }


def mistakes_in(result: dict[str, Any]) -> list[str]:
    """What the comparison may fail for."""
    found = [
        f"{way} wrote {one['traces']} traces, not {result['traces']['large']}"
        for way, results in result["rounds"].items()
        for one in results
        if one["traces"] != result["traces"]["large"]
    ]
    if result["different_files"]:
        found.append(f"{result['different_files']} files differ from those of the script")
    return found


def print_table(kind: str, result: dict[str, Any]) -> None:
    count, rounds = result["traces"]["large"], len(result["rounds"]["row"])
    lines = [f"{kind}: a session of {count:,} traces; best of {rounds} rounds", ""]
    lines.append(f"{'ms per trace':20}{'wall':>9}{'cpu':>9}")
    for way, title in WAYS.items():
        took = result["ms_per_trace"][way]
        lines.append(f"{title:20}{took['wall']:9.3f}{took['cpu']:9.3f}")
    lines += ["", f"{'':20}{'wall':>9}{'cpu':>9}{'goal':>9}"]
    for name, (_, _, goal) in RATIOS.items():
        ratio = result["ratios"][name]
        lines.append(f"{name:20}{ratio['wall']:9.2f}{ratio['cpu']:9.2f}{goal or '':>9}")
    lines.append("")
    for way, growth in result["memory_growth_mib"].items():
        lines.append(
            f"memory on top of an idle process, {WAYS[way]}: {growth['large']} MiB;"
            f" for {result['traces']['small']:,} traces {growth['small']} MiB"
        )
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


def _in_own_process(way: str, server: Server, engine: Engine, directory: Path) -> dict[str, Any]:
    session_id = _largest_session(engine)
    given = [server.project.base_url, engine.url.render_as_string(hide_password=False), schema_of(engine) or "public"]
    os.sync()  # an export waits for the disk, so what others left in memory must not be its to write
    command = [sys.executable, "-m", "tests.bench.exports", way, *given, session_id, str(directory)]
    done = subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _largest_session(engine: Engine) -> str:
    column = traces.c.session_id
    query = select(column).where(column.is_not(None)).group_by(column).order_by(func.count().desc()).limit(1)
    with reading(engine) as conn:
        return str(conn.execute(query).scalar_one())


def _different_files(script_folder: Path, our_root: Path) -> int:
    """How many files do not say the same, name for name and value for value; lists of ids have no order."""
    (our_folder,) = our_root.iterdir()
    names = {path.name for folder in (script_folder, our_folder) for path in folder.iterdir()} - {"manifest.json"}
    return sum(_content(script_folder / name) != _content(our_folder / name) for name in names)


def _content(path: Path) -> Any:
    if not path.exists():
        return None
    trace = json.loads(path.read_bytes())
    return trace | {name: sorted(trace[name]) for name in ("observations", "scores")}


def _main(way: str, base_url: str, database: str, schema: str, session_id: str, directory: str) -> None:
    if way != "script":
        prepare_for_bulk()  # as the command does
    forget_peak_memory()
    before, wall, cpu = memory_mib(), time.perf_counter(), time.process_time()
    if way == "script":
        written = script(base_url, session_id, Path(directory))
    else:
        written = ours(database, schema, session_id, Path(directory), way)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    growth = round((peak_memory_mib() or 0) - (before or 0), 1)
    json.dump({"traces": written, "wall": wall, "cpu": cpu, "growth_mib": growth}, sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
