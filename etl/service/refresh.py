"""Sessions read from Langfuse on demand, before they are exported."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from sqlalchemy import Engine

from etl.config import Config, Project
from etl.errors import ConfigError
from etl.load import lease, ledger
from etl.load.engine import reading, writing
from etl.pipeline.refresh import refresh_session
from etl.service.projects import connect


def refresh_sessions(
    config: Config,
    engine: Engine,
    owner: lease.Owner,
    *,
    sessions: Sequence[str],
    project: str | None,
    stop: threading.Event,
) -> int:
    """Reads these sessions of every configured project (or of `project`, by name or id); how many objects came.

    Raises:
        ConfigError: No such project.
        ApiError, RowError: A session could not be read; nothing of it was written.
    """
    count, found = 0, False
    for settings in _candidates(config, engine, project):
        connected = connect(settings, config, engine, stop)
        try:
            if project is not None and project not in (settings.name, connected.info.id, connected.info.name):
                continue
            found = True
            for session_id in sessions:
                count += refresh_session(engine, owner, connected.reader, connected.scope(config), session_id)
            with writing(engine) as conn:
                lease.renew(conn, owner)
                ledger.save_project(conn, connected.record())
        finally:
            connected.client.close()
    if not found:
        names = ", ".join(settings.name for settings in config.projects)
        raise ConfigError(f"no project named {project}; the configuration has: {names}")
    return count


def _candidates(config: Config, engine: Engine, project: str | None) -> list[Project]:
    """The entries that `project` may mean; all if only their servers can tell."""
    known = {settings.name: settings for settings in config.projects}
    if project is None or project in known:
        return [known[project]] if project else list(config.projects)
    with reading(engine) as conn:
        recorded = [stored.entry for stored in ledger.stored_projects(conn) if project in (stored.id, stored.name)]
    return [known[entry] for entry in recorded if entry in known] or list(config.projects)
