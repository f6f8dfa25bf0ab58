"""Where every project and stream stands, for people and monitors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, func, select, type_coerce

from etl.intervals import Window, subtract
from etl.load import lease, ledger
from etl.load.tables import ROW_TABLES, sync_runs
from etl.load.types import Instant, instant_text
from etl.load.views import sync_coverage


class Range(NamedTuple):
    """A row of the view `sync_coverage`: a stretch that is `covered`, or was read without full proof."""

    stream: str
    window: Window
    state: str


@dataclass(frozen=True)
class StreamProgress:
    """What of one stream was read: whole, without full proof (`unproven`), and not at all (`gaps`); from old to new.

    Gaps are looked for between `origin` and an edge. That of a stream whose first load is through is its own: what is
    newer is lag. Until then it is the newest edge of all streams of the project, for what an interrupted first load
    did not come to is a gap, too.
    """

    name: str
    origin: datetime
    watermark: datetime | None
    covered: Sequence[Window]
    unproven: Sequence[Range]
    gaps: Sequence[Window]

    @property
    def live_edge(self) -> datetime | None:
        """The end of the newest stretch read; None before the first."""
        return self.covered[-1].end if self.covered else None

    @property
    def complete(self) -> bool:
        """Everything back to the start was read at least once."""
        return self.watermark is not None


def progress(conn: Connection, project_id: str) -> dict[str, StreamProgress]:
    """Every stream of a project that a run has begun to read, by name."""
    found = _ranges(conn, project_id)
    newest = max((one.window.end for one in found if one.state == "covered"), default=None)
    streams: dict[str, StreamProgress] = {}
    for name, state in ledger.stream_states(conn, project_id).items():
        mine = [one for one in found if one.stream == name]
        covered = [one.window for one in mine if one.state == "covered"]
        unproven = [one for one in mine if one.state != "covered"]
        edge = covered[-1].end if state.watermark and covered else newest
        gaps = subtract(Window(state.origin, edge), covered) if edge else []
        streams[name] = StreamProgress(name, state.origin, state.watermark, covered, unproven, gaps)
    return streams


class StreamStatus(NamedTuple):
    """`rows` leaves out deleted ones; `gaps` is None while nothing of the project was read."""

    stream: str
    watermark: datetime | None
    live_edge: datetime | None
    rows: int
    gaps: int | None
    last_run: dict[str, Any] | None


def stream_statuses(conn: Connection, project_id: str) -> list[StreamStatus]:
    """One entry for each stream of a project."""
    run = last_run(conn, project_id)
    begun = progress(conn, project_id)
    found: list[StreamStatus] = []
    for name, rows_of in ROW_TABLES.items():
        rows = select(func.count()).where(rows_of.c.project_id == project_id, rows_of.c.deleted_at.is_(None))
        count: int = conn.execute(rows).scalar_one()
        stream = begun.get(name)
        if stream is None:
            found.append(StreamStatus(name, None, None, count, None, None))
            continue
        gaps = len(stream.gaps) if stream.covered or stream.gaps else None
        found.append(StreamStatus(name, stream.watermark, stream.live_edge, count, gaps, run))
    return found


def last_run(conn: Connection, project_id: str) -> dict[str, Any] | None:
    """The newest run of a project, or None. One whose process died is `interrupted`; the next writer will note it."""
    columns = [c for c in sync_runs.c if c.name != "project_id"]
    query = select(*columns).where(sync_runs.c.project_id == project_id).order_by(sync_runs.c.id.desc()).limit(1)
    row = conn.execute(query).mappings().first()
    if row is None:
        return None
    run = {name: instant_text(value) if isinstance(value, datetime) else value for name, value in row.items()}
    owner = run.pop("owner")
    if run["status"] == "running":
        holder = lease.living_holder(conn)
        if holder is None or holder.token != owner:
            run["status"] = "interrupted"
    return run


def _ranges(conn: Connection, project_id: str) -> list[Range]:
    """What was read of a project, stream by stream, from old to new."""
    view = sync_coverage.c
    start, end = type_coerce(view.range_start, Instant()), type_coerce(view.range_end, Instant())
    query = select(view.stream, start, end, view.state)
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
