"""`manifest.json`: what an export put into a folder; written last, so that it vouches for whole files only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from etl.transform.jsontext import JsonTextError, dumps_indented, parse

MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of the folder; `trace_id` is None if it holds many traces."""

    name: str
    trace_id: str | None
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """One folder's export.

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
    files: tuple[FileEntry, ...]

    def render(self) -> bytes:
        """The file's content: the same for equal exports, since it holds no time."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        fields["files"] = [{name: getattr(entry, name) for name in entry.__slots__} for entry in self.files]
        return dumps_indented({"format": _FORMAT, **fields}).encode() + b"\n"


def parse_manifest(content: bytes) -> Manifest | None:
    """The manifest in `content`; None if it is not one of ours."""
    try:
        found = parse(content).value
        if type(found) is not dict or found.pop("format", None) != _FORMAT:
            return None
        files = tuple(FileEntry(**entry) for entry in found.pop("files"))
        manifest = Manifest(**found, files=files)
    except (JsonTextError, KeyError, TypeError):
        return None
    return manifest if _is_well_formed(manifest) else None


def _is_well_formed(manifest: Manifest) -> bool:
    counts = (manifest.traces, manifest.observations, manifest.scores, *(entry.bytes for entry in manifest.files))
    texts = (manifest.project_id, *(part for entry in manifest.files for part in (entry.name, entry.sha256)))
    return (
        all(type(count) is int for count in counts)
        and all(type(text) is str for text in texts)
        and isinstance(manifest.session_id, str | None)
        and isinstance(manifest.selection, dict)
    )
