"""What was read, with what proof: runs, windows, coverage, and the state that the planner starts from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cache
from typing import Literal, NamedTuple

from sqlalchemy import Connection, Insert, Select, bindparam, func, insert, select, update

from etl.intervals import Window, intersect, merge, subtract
from etl.load.tables import ROW_TABLES, TIME_COLUMNS, projects, sync_runs, sync_state, sync_windows
from etl.load.types import instant_text
from etl.load.upsert import insert_or_update

Proof = Literal["counted", "walked", "doubtful", "partial", "failed"]
# A window with one of these was read whole.
COVERING: tuple[Proof, ...] = ("counted", "walked", "partial")
RunStatus = Literal["running", "ok", "failed", "interrupted"]


@dataclass(frozen=True)
class WindowRecord:
    """One row of `sync_windows`.

    `promised` is the server's total (None if it gives none), `read` the distinct rows it sent, `changed` those of
    them that were new or different, `deleted` the stored rows marked because the read lacked them. The column
    `stored` is counted in the table when the row is written.
    """

    project_id: str
    stream: str
    filters_hash: str
    window: Window
    tier: str
    api: str
    proof: Proof
    promised: int | None
    read: int
    changed: int
    deleted: int
    requests: int
    run_id: int
    error: str | None = None


class StreamState(NamedTuple):
    """Where one stream of a project stands.

    `origin` is where coverage is wanted from; `plan` is the planner's own memory, as JSON text.
    """

    api: str
    origin: datetime
    watermark: datetime | None
    filters_hash: str
    plan: str | None


class ProjectRecord(NamedTuple):
    """A row of `projects`."""

    id: str
    name: str | None
    base_url: str
    organization_id: str | None
    server_version: str | None
    api: str
    retention_days: int | None
    entry: str | None = None


def save_project(conn: Connection, project: ProjectRecord) -> None:
    """Writes what the server says of the project now."""
    insert_or_update(conn, projects, project._asdict())


def stored_projects(conn: Connection) -> list[ProjectRecord]:
    """All projects that this database holds, by id."""
    columns = [projects.c[name] for name in ProjectRecord._fields]
    return [ProjectRecord(*row) for row in conn.execute(select(*columns).order_by(projects.c.id))]


def start_run(conn: Connection, *, project_id: str, trigger: str, owner: str, now: datetime) -> int:
    """Opens a run and returns its id."""
    result = conn.execute(
        insert(sync_runs).values(
            project_id=project_id, trigger=trigger, owner=owner, started_at=now, status="running",
            rows_read=0, rows_written=0, requests=0,
        )
    )  # fmt: skip
    key = result.inserted_primary_key
    assert key is not None  # noqa: S101 - an insert of one row has a key
    return int(key[0])


def add_to_run(conn: Connection, run_id: int, *, rows_read: int, rows_written: int, requests: int) -> None:
    """Adds to the counts of a run, in the transaction that stored the rows counted."""
    more = {"more_read": rows_read, "more_written": rows_written, "more_requests": requests}
    conn.execute(_ADD_TO_RUN, {"run": run_id, **more})


_ADD_TO_RUN = (
    update(sync_runs)
    .where(sync_runs.c.id == bindparam("run"))
    .values(
        rows_read=sync_runs.c.rows_read + bindparam("more_read"),
        rows_written=sync_runs.c.rows_written + bindparam("more_written"),
        requests=sync_runs.c.requests + bindparam("more_requests"),
    )
)


def finish_run(conn: Connection, run_id: int, *, status: RunStatus, error: str | None, now: datetime) -> None:
    """Closes a run."""
    conn.execute(update(sync_runs).where(sync_runs.c.id == run_id).values(status=status, error=error, finished_at=now))


def interrupt_runs_of_others(conn: Connection, owner: str, now: datetime) -> None:
    """Marks runs as interrupted that no live process can still be in: only the holder of the lease has any."""
    conn.execute(
        update(sync_runs)
        .where(sync_runs.c.status == "running", sync_runs.c.owner != owner)
        .values(status="interrupted", finished_at=now)
    )


def interrupt_runs(conn: Connection, owner: str, now: datetime) -> None:
    """Marks the runs of this owner as interrupted that did not end: it ends itself."""
    conn.execute(
        update(sync_runs)
        .where(sync_runs.c.status == "running", sync_runs.c.owner == owner)
        .values(status="interrupted", finished_at=now)
    )


def record_window(conn: Connection, record: WindowRecord, now: datetime) -> None:
    """Adds a ledger row."""
    values = {
        "window_start": record.window.start,
        "window_end": record.window.end,
        "finished_at": now,
        **{name: getattr(record, name) for name in _AS_RECORDED},
    }
    bounds = _bounds(record.project_id, record.window)
    conn.execute(_record_window(record.stream), {**values, **bounds})


_AS_RECORDED = tuple(field.name for field in fields(WindowRecord) if field.name != "window")


@cache
def _record_window(stream: str) -> Insert:
    stored = _rows_stored(stream).scalar_subquery()
    # Without `inline` the number of the row would be asked for, too.
    return insert(sync_windows).values(stored=stored).inline()


def rows_stored(conn: Connection, project_id: str, stream: str, window: Window) -> int:
    """How many rows of the window the table holds, leaving out those marked as deleted."""
    count: int = conn.execute(_rows_stored(stream), _bounds(project_id, window)).scalar_one()
    return count


def _bounds(project_id: str, window: Window) -> dict[str, str]:
    return {
        "counted_project": project_id,
        "from_time": instant_text(window.start),
        "to_time": instant_text(window.end),
    }


@cache
def _rows_stored(stream: str) -> Select[int]:
    table, time = ROW_TABLES[stream], TIME_COLUMNS[stream]
    return select(func.count()).where(
        table.c.project_id == bindparam("counted_project"),
        time >= bindparam("from_time"),
        time < bindparam("to_time"),
        table.c.deleted_at.is_(None),
    )


def ever_stored(conn: Connection, project_id: str, streams: Iterable[str]) -> bool:
    """Whether the tables of these streams hold any row of the project, be it marked as deleted."""
    return any(
        conn.execute(
            select(ROW_TABLES[stream].c.id).where(ROW_TABLES[stream].c.project_id == project_id).limit(1)
        ).first()
        for stream in streams
    )


def coverage(conn: Connection, project_id: str, stream: str, filters_hash: str) -> list[Window]:
    """The intervals read whole, ascending and disjoint."""
    columns = sync_windows.c
    query = select(columns.window_start, columns.window_end).where(
        columns.project_id == project_id,
        columns.stream == stream,
        columns.filters_hash == filters_hash,
        columns.proof.in_(COVERING),
    )
    return merge(Window(start, end) for start, end in conn.execute(query))


def windows_of_unfinished_runs(conn: Connection, project_id: str, trigger: str) -> dict[str, list[Window]]:
    """What runs of one trigger have read whole, by stream, since the last of them that was `ok`."""
    runs, windows = sync_runs.c, sync_windows.c
    mine = (runs.project_id == project_id, runs.trigger == trigger)
    finished = select(func.coalesce(func.max(runs.id), 0)).where(*mine, runs.status == "ok").scalar_subquery()
    query = (
        select(windows.stream, windows.window_start, windows.window_end)
        .join(sync_runs, runs.id == windows.run_id)
        .where(*mine, runs.id > finished, windows.proof.in_(COVERING))
    )
    found: dict[str, list[Window]] = {}
    for stream, start, end in conn.execute(query):
        found.setdefault(stream, []).append(Window(start, end))
    return {stream: merge(parts) for stream, parts in found.items()}


def failed_windows(conn: Connection, project_id: str, stream: str, filters_hash: str) -> list[tuple[Window, datetime]]:
    """Windows that could not be read with proof and were not since, with the time of each failure."""
    windows = sync_windows.c
    query = select(windows.window_start, windows.window_end, windows.finished_at).where(
        windows.project_id == project_id,
        windows.stream == stream,
        windows.filters_hash == filters_hash,
        windows.proof.not_in(COVERING),
    )
    covered = coverage(conn, project_id, stream, filters_hash)
    return [(left, at) for start, end, at in conn.execute(query) for left in subtract(Window(start, end), covered)]


def failed_again(
    conn: Connection, project_id: str, stream: str, filters_hash: str, wanted: Sequence[Window]
) -> list[tuple[Window, datetime]]:
    """What of `wanted` was read without proof since it was last read whole, with the time of each such read."""
    columns = sync_windows.c
    scope = (columns.project_id == project_id, columns.stream == stream, columns.filters_hash == filters_hash)
    query = select(columns.id, columns.window_start, columns.window_end, columns.finished_at).where(
        *scope, columns.proof.not_in(COVERING)
    )
    failed = [
        (number, part, at)
        for number, start, end, at in (conn.execute(query) if wanted else ())
        for part in intersect(wanted, Window(start, end))
    ]
    if not failed:
        return []
    later = conn.execute(
        select(columns.id, columns.window_start, columns.window_end).where(
            *scope,
            columns.proof.in_(COVERING),
            columns.id > min(number for number, _, _ in failed),
            columns.window_end > min(part.start for _, part, _ in failed),
            columns.window_start < max(part.end for _, part, _ in failed),
        )
    ).all()
    return [
        (left, at)
        for number, part, at in failed
        for left in subtract(part, [Window(start, end) for other, start, end in later if other > number])
    ]


def stream_states(conn: Connection, project_id: str) -> dict[str, StreamState]:
    """The state of each stream of a project that was ever read."""
    columns = sync_state.c
    query = select(columns.stream, columns.api, columns.origin, columns.watermark, columns.filters_hash, columns.plan)
    return {
        stream: StreamState(*state)
        for stream, *state in conn.execute(query.where(columns.project_id == project_id).order_by(columns.stream))
    }


def save_stream_state(conn: Connection, project_id: str, stream: str, state: StreamState) -> None:
    """Writes where a stream stands, in the transaction that made it so."""
    insert_or_update(conn, sync_state, {"project_id": project_id, "stream": stream, **state._asdict()})
