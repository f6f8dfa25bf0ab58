"""What the database says about every project, kept for a few seconds for all who ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Engine

from etl.errors import EtlError
from etl.load import ledger
from etl.load.engine import reading
from etl.load.ledger import ProjectRecord
from etl.load.status import Run, StreamProgress, last_runs, last_success, progress

_RUNS_SHOWN = 10
_MAX_AGE_S = 5.0


@dataclass(frozen=True)
class ProjectSnapshot:
    """One project, by its name in the configuration."""

    name: str
    id: str
    api: str
    server_version: str | None
    streams: Sequence[StreamProgress]
    runs: Sequence[Run]
    last_success_at: datetime | None


@dataclass(frozen=True)
class Snapshot:
    """All projects as the database knew them; `error` says why it could not be asked again since."""

    projects: Sequence[ProjectSnapshot]
    error: str | None = None


class Snapshots:
    """The newest snapshot, taken again when it is older than a few seconds; safe for threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._taken = float("-inf")
        self._snapshot: Snapshot | None = None

    def forget(self) -> None:
        """The database has changed: who asks next gets a new one."""
        with self._lock:
            self._taken = float("-inf")

    def newest(self) -> Snapshot | None:
        """None while the database was never read."""
        with self._lock:
            if time.monotonic() - self._taken > _MAX_AGE_S:
                try:
                    self._snapshot = take_snapshot(self._engine)
                except EtlError as error:
                    self._snapshot = replace(self._snapshot or Snapshot(()), error=str(error))
                self._taken = time.monotonic()
            return self._snapshot


def take_snapshot(engine: Engine) -> Snapshot:
    """Reads everything anew.

    Raises:
        DatabaseError: The database cannot be read.
    """
    with reading(engine) as conn:
        projects = []
        for project in ledger.stored_projects(conn):
            streams = list(progress(conn, project.id).values())
            runs, success = last_runs(conn, project.id, _RUNS_SHOWN), last_success(conn, project.id)
            projects.append(
                ProjectSnapshot(_name(project), project.id, project.api, project.server_version, streams, runs, success)
            )
    return Snapshot(projects)


def _name(project: ProjectRecord) -> str:
    return project.entry or project.name or project.id
