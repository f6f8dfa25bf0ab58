"""`langfuse-etl export` from its words to its last line; what it writes is tested in `tests/export`."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import Cli, data


def sessions() -> dict[str, list[dict[str, Any]]]:
    """The mock's traces by session."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in data().traces():
        found.setdefault(row["sessionId"], []).append(row)
    found.pop(None, None)  # type: ignore[call-overload]
    return found


def ids_in(folder: Path) -> set[str]:
    files = [path for path in folder.rglob("*.json") if path.name != "manifest.json"]
    return {json.loads(path.read_text())["id"] for path in files}


def test_session_ids_come_from_words_a_file_and_stdin(synced: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, third, *_ = sessions()
    (synced.folder / "ids.txt").write_bytes(f"\ufeff{first}\r\n\r\n{second}\r\n{first}\n".encode())

    result = synced("export", "--from-file", "ids.txt", third, second, "--json")
    assert [third, second, first] == [one["session_id"] for one in result.document["sessions"]]

    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{first}\n{second}\n"))
    result = synced("export", "--from-file", "-", "--json")
    assert [first, second] == [one["session_id"] for one in result.document["sessions"]]


def test_an_empty_list_of_ids_is_a_usage_error(synced: Cli) -> None:
    (synced.folder / "ids.txt").write_text("\n\n")

    result = synced("export", "--from-file", "ids.txt")

    assert result.code == 2
    assert "name a session" in result.err
    assert not (synced.folder / "result").exists()


def test_one_unknown_id_in_a_list_stops_before_anything_is_written(synced: Cli) -> None:
    (first, *_) = sessions()
    (synced.folder / "ids.txt").write_text(f"{first}\n{first}x\n")

    result = synced("export", "--from-file", "ids.txt")

    assert result.code == 1
    assert f"did you mean '{first}'" in result.err
    assert not (synced.folder / "result").exists()


def test_the_last_line_sums_up(synced: Cli) -> None:
    (session, traces), *_ = sessions().items()

    summary = synced("export", session).err.splitlines()[-1]

    said = rf"1 session\(s\), {len(traces)} traces: {len(traces)} files written, 0 unchanged, 0 removed; [\d,]+ bytes, "
    assert re.fullmatch(said + r"\d+\.\d s", summary)
    folder = synced.folder / "result"
    size = sum(path.stat().st_size for path in folder.rglob("*.json") if path.name != "manifest.json")
    assert f"; {size:,} bytes, " in summary
    assert f"0 files written, {len(traces)} unchanged" in synced("export", session).err.splitlines()[-1]


def test_stdout_gets_a_line_for_each_trace_and_nothing_else(synced: Cli) -> None:
    (session, traces), *_ = sessions().items()

    result = synced("export", session, "--stdout")

    assert result.code == 0
    assert {row["id"] for row in traces} == {json.loads(line)["id"] for line in result.out.splitlines()}
    assert not (synced.folder / "result").exists()


def test_a_reader_that_has_enough_ends_the_command_quietly(synced: Cli) -> None:
    with synced.start("export", "--all", "--stdout") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        json.loads(process.stdout.readline())
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


def test_options_narrow_what_is_written(synced: Cli) -> None:
    (session, traces), *_ = sessions().items()
    one, times = traces[0], sorted(row["timestamp"] for row in traces)
    start, end = times[1], times[-1]
    by_time = {row["id"] for row in traces if start <= row["timestamp"] < end}

    for number, (words, expected) in enumerate(
        [
            (["--trace", one["id"]], {one["id"]}),
            ([session, "--where", f"id={one['id']}"], {one["id"]}),
            ([session, "--from", start, "--to", end], by_time),
            ([session, "--project", one["projectId"]], {row["id"] for row in traces}),
        ]
    ):
        result = synced("export", *words, "--directory", f"out{number}")
        assert result.code == 0, result.err
        assert expected == ids_in(synced.folder / f"out{number}"), words


def test_layout_options_reach_the_files(synced: Cli) -> None:
    (session, traces), *_ = sessions().items()

    synced("export", session, "--name-by", "id", "--detail", "row", "--indent", "0")
    (folder,) = (synced.folder / "result").iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {f"{row['id']}.json" for row in traces} | {"manifest.json"} == names
    text = (folder / f"{traces[0]['id']}.json").read_text()
    assert (text.count("\n"), all(type(part) is str for part in json.loads(text)["observations"])) == (1, True)

    synced("export", session, "--format", "jsonl")
    assert {path.name for path in folder.iterdir()} == {"traces.jsonl", "manifest.json"}


def test_verify_is_0_for_whole_folders_and_1_with_a_line_for_each_difference(synced: Cli) -> None:
    (session, *_) = sessions()
    synced("export", session)
    (folder,) = (synced.folder / "result").iterdir()

    whole = synced("export", "--verify", "result")
    assert (whole.code, whole.out) == (0, "")
    assert synced("export", "--verify", "result", "--json").document == {
        "directory": "result",
        "ok": True,
        "problems": [],
    }

    name = next(path.name for path in sorted(folder.iterdir()) if path.name != "manifest.json")
    (folder / name).unlink()
    broken = synced("export", "--verify", "result")
    assert (broken.code, f"{folder.name}/{name}: missing" in broken.err) == (1, True)
    document = synced("export", "--verify", "result", "--json")
    assert (document.code, document.document["problems"]) == (1, [f"{folder.name}/{name}: missing"])


def test_an_unknown_project_is_exit_1_with_the_near_one(synced: Cli) -> None:
    (_, traces), *_ = sessions().items()
    project = traces[0]["projectId"]

    result = synced("export", "--all", "--project", f"{project}x")

    assert result.code == 1
    assert f"'{project}'" in result.err
