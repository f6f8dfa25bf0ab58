"""Where every project and stream stands, for people and monitors."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select

from etl.intervals import Window, merge, subtract
from etl.load import ledger
from etl.load.tables import ROW_TABLES, sync_runs
from etl.load.types import instant_text


class StreamStatus(NamedTuple):
    """`live_edge` is the end of the newest covered interval; `gaps` counts uncovered ones between start and there."""

    stream: str
    watermark: datetime | None
    live_edge: datetime | None
    rows: int
    gaps: int | None
    last_run: dict[str, Any] | None


def stream_statuses(conn: Connection, project_id: str) -> list[StreamStatus]:
    """One entry for each stream of a project."""
    states = ledger.stream_states(conn, project_id)
    run = last_run(conn, project_id)
    found: list[StreamStatus] = []
    for name, table in ROW_TABLES.items():
        rows = select(func.count()).where(table.c.project_id == project_id, table.c.deleted_at.is_(None))
        count: int = conn.execute(rows).scalar_one()
        state = states.get(name)
        if state is None:
            found.append(StreamStatus(name, None, None, count, None, None))
            continue
        covered = merge(ledger.coverage(conn, project_id, name, state.filters_hash))
        edge = covered[-1].end if covered else None
        gaps = len(subtract(Window(state.origin, edge), covered)) if edge and edge > state.origin else None
        found.append(StreamStatus(name, state.watermark, edge, count, gaps, run))
    return found


def last_run(conn: Connection, project_id: str) -> dict[str, Any] | None:
    """The newest run of a project, or None."""
    columns = [c for c in sync_runs.c if c.name not in ("owner", "project_id")]
    query = select(*columns).where(sync_runs.c.project_id == project_id).order_by(sync_runs.c.id.desc()).limit(1)
    row = conn.execute(query).mappings().first()
    if row is None:
        return None
    return {name: instant_text(value) if isinstance(value, datetime) else value for name, value in row.items()}
