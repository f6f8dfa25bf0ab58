"""The document behind `langfuse-etl status`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine

from etl.config import Config
from etl.load import lease, ledger
from etl.load.engine import open_engine, reading
from etl.load.lease import Holder
from etl.load.migrate import current_revision, head_revision
from etl.load.schedule import Planned, all_planned
from etl.load.status import StreamStatus, stream_statuses
from etl.load.types import instant_text
from etl.pipeline.sources import switch_of
from etl.pipeline.switch import Switch
from etl.settings import STREAMS


def status_report(config: Config) -> dict[str, Any]:
    """`{projects: [{name, id, api, streams: […], next_run, trouble}], database: {url, revision, head, service}}`.

    Nulls for what was never read; `next_run` and `trouble` are null while no service runs.

    `after_switch` of a stream tells of the passes after a change of the API, while they last; null at other times.

    Raises:
        DatabaseRefusedError: The database is not ours, or is newer than this program.
        DatabaseError: It cannot be read.
    """
    engine = open_engine(config.database.url, config.database.schema_)
    try:
        revision = current_revision(engine)
        projects, planned, holder = _stored(engine) if revision == head_revision() else ([], {}, None)
    finally:
        engine.dispose()
    # Which Langfuse project an entry of the configuration belongs to is known once it was read.
    read = {project["name"] for project in projects}
    projects += [_never_read(project.name) for project in config.projects if project.name not in read]
    return {
        "projects": [project | _plan(planned.get(project["name"])) for project in projects],
        "database": {
            "url": config.database.safe_url,
            "revision": revision,
            "head": head_revision(),
            "service": _service(holder),
        },
    }


def _stored(engine: Engine) -> tuple[list[dict[str, Any]], dict[str, Planned], Holder | None]:
    """Every project, and what the service plans and who it is, if one runs."""
    now = datetime.now(UTC)
    with reading(engine) as conn:
        projects = [_project(conn, project, now) for project in ledger.stored_projects(conn)]
        holder = lease.living_holder(conn)
        # Other commands hold the lease, too, but plan nothing.
        plans = all_planned(conn) if holder is not None else {}
        planned = {entry: plan for entry, plan in plans.items() if holder is not None and plan.owner == holder.token}
    return projects, planned, holder if planned else None


def _project(conn: Connection, project: ledger.ProjectRecord, now: datetime) -> dict[str, Any]:
    switches = {name: switch_of(state) for name, state in ledger.stream_states(conn, project.id).items()}
    return {
        "name": project.entry or project.name or project.id,
        "id": project.id,
        "api": project.api,
        "server_version": project.server_version,
        "streams": [_stream(stream, now, switches.get(stream.stream)) for stream in stream_statuses(conn, project.id)],
    }


def _plan(planned: Planned | None) -> dict[str, Any]:
    if planned is None:
        return {"next_run": None, "trouble": None}
    since = planned.failing_since
    trouble = None if since is None else {
        "failures": planned.failures,
        "since": instant_text(since),
        "reason": planned.reason,
        "needs_person": planned.needs_person,
    }  # fmt: skip
    return {"next_run": planned.next_run_at and instant_text(planned.next_run_at), "trouble": trouble}


def _service(holder: Holder | None) -> dict[str, Any]:
    if holder is None:
        return {"running": False, "host": None, "pid": None, "since": None}
    return {"running": True, "host": holder.host, "pid": holder.pid, "since": instant_text(holder.acquired_at)}


def _stream(stream: StreamStatus, now: datetime, switch: Switch | None = None) -> dict[str, Any]:
    # Early in a first sync the newest windows may be read, and empty: that is no data that is so many seconds old.
    edge = stream.live_edge if stream.rows or stream.watermark else None
    return {
        "stream": stream.stream,
        "watermark": None if stream.watermark is None else instant_text(stream.watermark),
        "lag_seconds": None if edge is None else round((now - edge).total_seconds()),
        "rows": stream.rows,
        "gaps": stream.gaps,
        "last_run": stream.last_run,
        "after_switch": None if switch is None or switch.settled_at is not None else _passes(switch),
    }


def _passes(switch: Switch) -> dict[str, Any]:
    left = sum((window.end - window.start for window in switch.left), timedelta())
    return {
        "pass": switch.passes,
        "started_at": instant_text(switch.started_at),
        "rows": switch.rows,
        "rows_before": switch.rows_before,
        "days_left": round(left / timedelta(days=1), 2),
    }


def _never_read(name: str) -> dict[str, Any]:
    nothing = StreamStatus("", None, None, 0, None, None)
    now = datetime.now(UTC)
    streams = [_stream(nothing._replace(stream=stream), now) for stream in STREAMS]
    return {"name": name, "id": None, "api": None, "server_version": None, "streams": streams}
