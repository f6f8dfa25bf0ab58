"""The document behind `langfuse-etl status`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Engine

from etl.config import Config
from etl.load import ledger
from etl.load.engine import open_engine, reading
from etl.load.migrate import current_revision, head_revision
from etl.load.status import StreamStatus, stream_statuses
from etl.load.types import instant_text
from etl.settings import STREAMS


def status_report(config: Config) -> dict[str, Any]:
    """`{projects: [{name, id, api, streams: […]}], database: {…}}`; nulls for what was never read.

    Raises:
        DatabaseRefusedError: The database is not ours, or is newer than this program.
        DatabaseError: It cannot be read.
    """
    engine = open_engine(config.database.url, config.database.schema_)
    try:
        revision = current_revision(engine)
        projects = _stored(engine) if revision == head_revision() else []
    finally:
        engine.dispose()
    database = {"url": config.database.safe_url, "revision": revision, "head": head_revision()}
    # Which Langfuse project an entry of the configuration belongs to is known once it was read.
    read = {project["name"] for project in projects}
    waiting = [_never_read(project.name) for project in config.projects if project.name not in read]
    return {"projects": [*projects, *waiting], "database": database}


def _stored(engine: Engine) -> list[dict[str, Any]]:
    now = datetime.now(UTC)
    with reading(engine) as conn:
        return [
            {
                "name": project.entry or project.name or project.id,
                "id": project.id,
                "api": project.api,
                "server_version": project.server_version,
                "streams": [_stream(stream, now) for stream in stream_statuses(conn, project.id)],
            }
            for project in ledger.stored_projects(conn)
        ]


def _stream(stream: StreamStatus, now: datetime) -> dict[str, Any]:
    edge = stream.live_edge
    return {
        "stream": stream.stream,
        "watermark": None if stream.watermark is None else instant_text(stream.watermark),
        "lag_seconds": None if edge is None else round((now - edge).total_seconds()),
        "rows": stream.rows,
        "gaps": stream.gaps,
        "last_run": stream.last_run,
    }


def _never_read(name: str) -> dict[str, Any]:
    nothing = StreamStatus("", None, None, 0, None, None)
    now = datetime.now(UTC)
    streams = [_stream(nothing._replace(stream=stream), now) for stream in STREAMS]
    return {"name": name, "id": None, "api": None, "server_version": None, "streams": streams}
