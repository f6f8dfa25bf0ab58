"""What the service is doing right now, for the pages and metrics of its own process; safe for threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from etl.service.backoff import Trouble

Role = Literal["starting", "standby", "upgrading", "leader", "stopping"]

# The main loop turns at least every few seconds.
_SILENT_AFTER_S = 60.0


@dataclass(frozen=True)
class ProjectState:
    """One project: since when it runs (None: it does not), how far that run is, what comes next, and its trouble."""

    name: str
    running_since: datetime | None = None
    windows_done: int = 0
    windows_planned: int = 0
    next_run_at: datetime | None = None
    trouble: Trouble | None = None


class Board:
    """Written by the main loop and the runs, read by the listener.

    Attributes:
        role: `leader` runs the projects; `standby` waits for another process to end; `upgrading` brings the
            tables to this program's revision.
        detail: Why it is not the leader; None if there is nothing to say.
    """

    def __init__(self) -> None:
        self.role: Role = "starting"
        self.detail: str | None = None
        self._lock = threading.Lock()
        self._projects: dict[str, ProjectState] = {}
        self._beat = time.monotonic()

    def beat(self) -> None:
        """The main loop has turned once more."""
        self._beat = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether the main loop still turns; an upgrade of large tables takes minutes, in which it does not."""
        return self.role == "upgrading" or time.monotonic() - self._beat < _SILENT_AFTER_S

    def become(self, role: Role, detail: str | None = None) -> None:
        """Changes the role; a process that does not lead knows nothing of projects."""
        with self._lock:
            self._beat = time.monotonic()
            self.role, self.detail = role, detail
            if role != "leader":
                self._projects = {}

    def keep(self, names: Sequence[str]) -> None:
        """These projects are configured, and no others."""
        with self._lock:
            self._projects = {name: self._projects.get(name, ProjectState(name)) for name in names}

    def note(self, name: str, **changes: object) -> None:
        """Changes what is known of a project, if it is still configured."""
        with self._lock:
            if name in self._projects:
                self._projects[name] = replace(self._projects[name], **changes)  # type: ignore[arg-type]

    def projects(self) -> list[ProjectState]:
        """Every project, in the order of the configuration."""
        with self._lock:
            return list(self._projects.values())

    def trouble(self, name: str) -> Trouble | None:
        """What the last runs of a project came to grief over."""
        with self._lock:
            return self._projects[name].trouble if name in self._projects else None
