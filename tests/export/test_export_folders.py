"""Folders that are not what they should be, and `verify_directory`."""

from __future__ import annotations

import json
import os
import pkgutil
from pathlib import Path
from typing import Any

import pytest
from export_data import fill, read_tree, trace
from sqlalchemy import Engine

from etl.errors import ExportError
from etl.export import Options, Selection, export_sessions, verify_directory
from etl.export.files import open_folder

S1 = Selection(sessions=("s1",))


@pytest.fixture
def session(engine: Engine, tmp_path: Path) -> Path:
    """The exported session `s1` with the traces `a` and `b`."""
    fill(engine, trace("a"), trace("b"))
    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    return result.directory


def test_a_link_in_place_of_the_folder_is_refused(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "s1").symlink_to(outside)

    with pytest.raises(ExportError, match="is a symbolic link"):
        export_sessions(engine, S1, Options(tmp_path / "out"))

    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("name", ["a.json", "manifest.json"])
def test_a_link_in_place_of_a_file_is_refused(engine: Engine, tmp_path: Path, name: str) -> None:
    fill(engine, trace("a"))
    outside = tmp_path / "outside.json"
    outside.write_text("kept")
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / name).symlink_to(outside)

    with pytest.raises(ExportError, match="is not a file of its own"):
        export_sessions(engine, S1, Options(tmp_path))

    assert outside.read_text() == "kept"


def test_a_link_that_the_old_manifest_lists_is_not_followed(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    outside = tmp_path / "outside.json"
    (result.directory / "a.json").rename(outside)
    (result.directory / "a.json").symlink_to(outside)

    export_sessions(engine, S1, Options(tmp_path / "out", name_by="name"))

    assert outside.exists()
    assert (result.directory / "a.json").is_symlink()


def test_a_folder_in_place_of_a_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (tmp_path / "s1" / "a.json").mkdir(parents=True)

    with pytest.raises(ExportError, match=r"a\.json is not a file of its own"):
        export_sessions(engine, S1, Options(tmp_path))


def test_a_file_in_place_of_the_folder_is_refused(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (tmp_path / "s1").write_text("kept")

    with pytest.raises(ExportError, match="cannot write to"):
        export_sessions(engine, S1, Options(tmp_path))


def test_a_manifest_of_somebody_else_is_not_overwritten(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (tmp_path / "s1").mkdir()
    (tmp_path / "s1" / "manifest.json").write_text('{"name": "a web page"}')

    with pytest.raises(ExportError, match="was not written by langfuse-etl"):
        export_sessions(engine, S1, Options(tmp_path))

    assert os.listdir(tmp_path / "s1") == ["manifest.json"]


def test_two_exports_cannot_write_to_one_folder(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))

    with open_folder(tmp_path / "s1"), pytest.raises(ExportError, match="another export is writing"):
        export_sessions(engine, S1, Options(tmp_path))

    export_sessions(engine, S1, Options(tmp_path))


@pytest.mark.parametrize("call", ["os.replace", "os.write", "os.fsync", "_flush_all"])
def test_a_failed_write_leaves_neither_halves_nor_temporary_files(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """With the flush of Linux, which is done in the background, and file by file as elsewhere."""
    fill(engine, *(trace(f"t{n}") for n in range(200)))
    monkeypatch.setattr("etl.export.files._GROUP_FILES", 20)
    with monkeypatch.context() as patch:
        if call == "os.fsync":
            patch.setattr("etl.export.files._flush_all", None)
        fails_at = 4 if call == "_flush_all" else 90
        name = f"etl.export.files.{call}"
        calls, real = iter(range(10_000)), pkgutil.resolve_name(name)

        def fails(*args: Any) -> Any:
            if next(calls) == fails_at:
                raise OSError(28, "No space left on device")
            return real(*args)

        patch.setattr(name, fails)
        with pytest.raises(ExportError, match="s1: No space left on device"):
            export_sessions(engine, S1, Options(tmp_path / "out"))

    tree = read_tree(tmp_path / "out")
    assert all(json.loads(content) for content in tree.values())
    assert not [name for name in tree if not name.endswith(".json")]
    assert "s1/manifest.json" not in tree
    assert 0 < len(tree) < 200
    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    assert (200, len(tree)) == (result.traces, result.unchanged)
    assert verify_directory(tmp_path / "out") == []


def test_verify_tells_each_difference(session: Path) -> None:
    root = session.parent
    assert [] == verify_directory(root) == verify_directory(session)

    whole = (session / "a.json").read_bytes()
    (session / "a.json").write_bytes(whole.replace(b"chat", b"chit"))
    assert verify_directory(session) == ["a.json: its content differs from the manifest's SHA-256"]

    (session / "a.json").write_bytes(whole + b" ")
    said = f"s1/a.json: {len(whole) + 1} bytes, the manifest says {len(whole)}"
    assert [said] == verify_directory(root)

    (session / "a.json").unlink()
    (session / "b.json").rename(session / "c.json")
    (session / "b.json").symlink_to(session / "c.json")
    assert verify_directory(root) == ["s1/a.json: missing", "s1/b.json: not a file of its own"]


def test_verify_asks_for_manifests(session: Path) -> None:
    root = session.parent
    (session / "manifest.json").write_text("{}")
    (root / "s2").mkdir()
    (root / ".git").mkdir()

    expected = [
        "s1/manifest.json: not a manifest of langfuse-etl",
        "s2/manifest.json: missing; was the export interrupted?",
    ]

    assert expected == verify_directory(root)
    assert [f"no manifest.json in {root / 's2'}"] == verify_directory(root / "s2")
    with pytest.raises(ExportError, match="is not a folder"):
        verify_directory(root / "none")


def test_verify_does_not_follow_a_manifest_out_of_its_folder(session: Path) -> None:
    content = json.loads((session / "manifest.json").read_text())
    content["files"][0]["name"] = "../s1/a.json"
    content["files"][1]["name"] = "a.json"
    (session / "manifest.json").write_text(json.dumps(content))

    assert "../s1/a.json: a name that leads out of the folder" in verify_directory(session)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", '{"format": 2}', '{"format": 1, "files": 3}', '{"format": 1, "files": [{"name": 1}]}', "\xff"],
)
def test_what_is_no_manifest_is_said_to_be_none(session: Path, content: str) -> None:
    (session / "manifest.json").write_bytes(content.encode("latin-1"))

    assert verify_directory(session) == ["manifest.json: not a manifest of langfuse-etl"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"traces": 3}, "manifest.json: lists 2 files for 3 traces"),
        ({"traces": "2"}, "manifest.json: not a manifest of langfuse-etl"),
        ({"selection": None}, "manifest.json: not a manifest of langfuse-etl"),
        ({"more": 1}, "manifest.json: not a manifest of langfuse-etl"),
    ],
)
def test_a_manifest_must_agree_with_itself(session: Path, change: dict[str, object], said: str) -> None:
    content = json.loads((session / "manifest.json").read_text())
    (session / "manifest.json").write_text(json.dumps(content | change))

    assert [said] == verify_directory(session)
