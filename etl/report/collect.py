"""What a report says of one project, read from the views."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Connection

from etl.load import analytics
from etl.load.analytics import Coverage, Days, Latencies, Spender, Usage

_DEFAULT_DAYS = 30
_SPENDERS = 10


@dataclass(frozen=True)
class ProjectReport:
    """`days` is None, and the rest but for coverage empty, where nothing is stored."""

    project_id: str
    name: str
    days: Days | None
    usage: list[Usage]
    traces: list[Latencies]
    calls: list[Latencies]
    sessions: list[Spender]
    users: list[Spender]
    coverage: list[Coverage]


def collect(
    conn: Connection, project_id: str, name: str | None, *, start: datetime | None, end: datetime | None
) -> ProjectReport:
    """Reads all that is shown of a project.

    Args:
        start: Whole UTC days from that of this instant on; None for the last 30 days, or as many as there are.
        end: Whole UTC days before that of this instant, and that day, too, if it is not midnight; None for the day of
            the newest trace.
    """
    days = _days(analytics.first_and_last_day(conn, project_id), start, end)
    covered = analytics.coverage(conn, project_id)
    if days is None:
        return ProjectReport(project_id, name or project_id, None, [], [], [], [], [], covered)
    return ProjectReport(
        project_id,
        name or project_id,
        days,
        analytics.usage(conn, project_id, days),
        analytics.latencies(conn, project_id, days, "traces"),
        analytics.latencies(conn, project_id, days, "calls"),
        analytics.top_spenders(conn, project_id, days, "session_id", _SPENDERS),
        analytics.top_spenders(conn, project_id, days, "user_id", _SPENDERS),
        covered,
    )


def _days(stored: tuple[str, str] | None, start: datetime | None, end: datetime | None) -> Days | None:
    if stored is None:
        return None
    oldest, newest = (date.fromisoformat(day) for day in stored)
    # The day that an instant just before the end lies in is the last one.
    last = newest if end is None else (end.astimezone(UTC) - timedelta(microseconds=1)).date()
    default = max(oldest, last - timedelta(days=_DEFAULT_DAYS - 1)) if last >= oldest else last
    first = default if start is None else start.astimezone(UTC).date()
    return Days(first.isoformat(), (last + timedelta(days=1)).isoformat())
