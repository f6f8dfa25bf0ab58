"""What the service plans for each project, for those who look at the database from another process."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, select

from etl.load.tables import sync_schedule
from etl.load.upsert import insert_or_update


class Planned(NamedTuple):
    """The next run of a project, and the trouble that it waits for, if there is some.

    `entry` is the project's name in the configuration, `owner` the token of the lease. `failures` counts the runs in
    a row that came to nothing, since `failing_since`, for the `reason` of the last one.
    """

    entry: str
    owner: str
    next_run_at: datetime | None
    failures: int = 0
    failing_since: datetime | None = None
    reason: str | None = None
    needs_person: bool = False


def save_planned(conn: Connection, planned: Planned) -> None:
    """Writes the plan of one project."""
    insert_or_update(conn, sync_schedule, planned._asdict())


def keep_planned(conn: Connection, entries: Sequence[str]) -> None:
    """Forgets the plans of all projects but these."""
    conn.execute(delete(sync_schedule).where(sync_schedule.c.entry.not_in(entries)))


def all_planned(conn: Connection) -> dict[str, Planned]:
    """Every plan, by the project's name in the configuration; of whatever service made it."""
    columns = [sync_schedule.c[name] for name in Planned._fields]
    return {row.entry: Planned(*row) for row in conn.execute(select(*columns))}
