"""`manifest.json`: what an export put into a folder; written last, so that it vouches for whole files only.

It lists every file, and is both written and read without being in memory as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from etl.errors import ExportError
from etl.export.members import members
from etl.transform.jsontext import dumps_indented

MANIFEST = "manifest.json"
_FORMAT = 1
_LIST = "files"
_COPIED_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the folder; `trace_id` is None if it holds many traces."""

    name: str
    trace_id: str | None
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One folder's export, without its list of files.

    `traces`, `observations` and `scores` count what the files hold; `complete` is false if a trace names parts that the
    database does not hold. `session_id` is None for traces without a session.
    """

    project_id: str
    session_id: str | None
    selection: Mapping[str, Any]
    traces: int
    observations: int
    scores: int
    complete: bool


class FileList:
    """The list of files of a manifest that is being made; it waits in a file until the rest is known."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._is_empty = True

    def add(self, entry: FileEntry) -> None:
        item = {"name": entry.name, "trace_id": entry.trace_id, "bytes": entry.bytes, "sha256": entry.sha256}
        text = dumps_indented(item).replace(b"\n", b"\n    ")
        self._file.write((b"" if self._is_empty else b",") + b"\n    " + text)
        self._is_empty = False

    def text(self) -> Iterator[bytes]:
        """The list as it stands in the manifest."""
        yield b"["
        self._file.seek(0)
        while piece := self._file.read(_COPIED_BYTES):
            yield piece
        yield b"]" if self._is_empty else b"\n  ]"


def render_manifest(manifest: Manifest, files: FileList) -> Iterator[bytes]:
    """The file's content: the same for equal exports, since it holds no time."""
    head = dumps_indented({"format": _FORMAT} | {one.name: getattr(manifest, one.name) for one in fields(manifest)})
    yield head.removesuffix(b"\n}") + f',\n  "{_LIST}": '.encode()
    yield from files.text()
    yield b"\n}\n"


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None if it is not one of ours.

    Raises:
        OSError: The file cannot be read.
    """
    found: dict[str, Any] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for name, value in members(file, _LIST):
                found[name] = all(_entry(one) for one in value) if name == _LIST else value
        if not found.pop(_LIST) or found.pop("format") != _FORMAT:
            return None
        manifest = Manifest(**found)
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    return manifest if _is_well_formed(manifest) else None


def listed_files(path: Path) -> Iterator[FileEntry]:
    """The files that a manifest lists, one by one; `read_manifest` found it to be one of ours.

    Raises:
        ExportError: It is another file now.
        OSError: The file cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            for name, value in members(file, _LIST):
                if name == _LIST:
                    yield from map(_entry, value)
    except (ValueError, RecursionError, TypeError):
        raise ExportError(f"{path} changed while it was being read; try again") from None


def _entry(item: Any) -> FileEntry:
    """
    Raises:
        TypeError: It is none.
    """
    entry = FileEntry(**item)
    is_sound = (
        type(entry.name) is str
        and isinstance(entry.trace_id, str | None)
        and type(entry.bytes) is int
        and type(entry.sha256) is str
    )
    if not is_sound:
        raise TypeError("not an entry of a manifest")
    return entry


def _is_well_formed(manifest: Manifest) -> bool:
    return (
        all(type(count) is int for count in (manifest.traces, manifest.observations, manifest.scores))
        and type(manifest.project_id) is str
        and isinstance(manifest.session_id, str | None)
        and isinstance(manifest.selection, dict)
    )
