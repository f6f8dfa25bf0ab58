"""Where every project and stream stands, for people and monitors."""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Column, Connection, MetaData, Table, Text, func, select

from etl.intervals import Window, merge, subtract
from etl.load import ledger
from etl.load.tables import ROW_TABLES, sync_runs
from etl.load.types import Instant, instant_text

# A view, kept apart from the tables that migrations are compared with.
_COVERAGE = Table(
    "sync_coverage",
    MetaData(),
    Column("project_id", Text),
    Column("stream", Text),
    Column("range_start", Instant()),
    Column("range_end", Instant()),
    Column("state", Text),
)


class StreamStatus(NamedTuple):
    """`live_edge` is the end of the newest covered interval; `gaps` counts uncovered ones.

    They are looked for between the start and the newest edge of all streams of the project: what an interrupted run did
    not come to is a gap, too.
    """

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
    covered = {
        name: merge(ledger.coverage(conn, project_id, name, state.filters_hash)) for name, state in states.items()
    }
    newest = max((windows[-1].end for windows in covered.values() if windows), default=None)
    found: list[StreamStatus] = []
    for name, rows_of in ROW_TABLES.items():
        rows = select(func.count()).where(rows_of.c.project_id == project_id, rows_of.c.deleted_at.is_(None))
        count: int = conn.execute(rows).scalar_one()
        state = states.get(name)
        if state is None:
            found.append(StreamStatus(name, None, None, count, None, None))
            continue
        windows = covered[name]
        edge = windows[-1].end if windows else None
        gaps = len(subtract(Window(state.origin, newest), windows)) if newest and newest > state.origin else None
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


class Range(NamedTuple):
    """A row of the view `sync_coverage`: a stretch that is `covered`, or was read without full proof."""

    stream: str
    window: Window
    state: str


def ranges(conn: Connection, project_id: str) -> list[Range]:
    """What was read of a project, stream by stream, from old to new."""
    view = _COVERAGE.c
    query = select(view.stream, view.range_start, view.range_end, view.state)
    query = query.where(view.project_id == project_id).order_by(view.stream, view.range_start, view.range_end)
    return [Range(stream, Window(start, end), state) for stream, start, end, state in conn.execute(query)]


class Run(NamedTuple):
    """A row of `sync_runs`."""

    id: int
    trigger: str
    status: str
    started_at: datetime
    finished_at: datetime | None
    rows_read: int
    rows_written: int
    requests: int
    error: str | None


def last_runs(conn: Connection, project_id: str, count: int) -> list[Run]:
    """The newest runs of a project, the newest first."""
    columns = [sync_runs.c[name] for name in Run._fields]
    query = select(*columns).where(sync_runs.c.project_id == project_id).order_by(sync_runs.c.id.desc()).limit(count)
    return [Run(*row) for row in conn.execute(query)]


def last_success(conn: Connection, project_id: str) -> datetime | None:
    """When the last run of a project that was ok ended."""
    runs = sync_runs.c
    query = select(runs.finished_at).where(runs.project_id == project_id, runs.status == "ok")
    moment: datetime | None = conn.execute(query.order_by(runs.id.desc()).limit(1)).scalar()
    return moment
