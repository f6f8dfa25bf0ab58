"""What to export and how, as the caller says it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from etl.load.types import instant_text


@dataclass(frozen=True)
class Selection:
    """Which traces; each part that is given narrows the choice.

    `start` is inclusive, `end` exclusive, both aware; `where` holds pairs of path and text. `all` says that every
    session is meant, and the traces without one. `project` is an id or a name.
    """

    sessions: tuple[str, ...] = ()
    traces: tuple[str, ...] = ()
    all: bool = False
    start: datetime | None = None
    end: datetime | None = None
    where: tuple[tuple[str, str], ...] = ()
    project: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was chosen at all."""
        return not (self.sessions or self.traces or self.all or self.start or self.end or self.where)

    def within_session(self) -> dict[str, Any]:
        """The part that chooses among the traces of one session, as its manifest keeps it."""
        return {
            "traces": sorted(set(self.traces)),
            "from": None if self.start is None else instant_text(self.start),
            "to": None if self.end is None else instant_text(self.end),
            "where": [list(pair) for pair in sorted(set(self.where))],
        }


@dataclass(frozen=True)
class Options:
    """How to write: one JSON file per trace, or one file of JSON Lines per session.

    `detail` is the shape of GET /traces/{id} (`full`) or of a row of GET /traces (`row`). `indent` is the number of
    spaces per level; 0 puts a document on one line. JSON Lines are never indented.
    """

    directory: Path
    name_by: str = "metadata.message_id"
    detail: Literal["full", "row"] = "full"
    format: Literal["json", "jsonl"] = "json"
    indent: int = 2


@dataclass(frozen=True)
class ExportedSession:
    """What one session's export did. `bytes` is the size of all its files, the manifest left out."""

    project_id: str
    session_id: str | None
    directory: Path
    traces: int
    written: int
    unchanged: int
    removed: int
    bytes: int
