"""When to try again what fails; pure."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

from etl.errors import DatabaseError
from etl.pipeline.report import RunReport

_LONGEST_WAIT = timedelta(hours=1)
# A database that is restarted, or a disk that is full for a moment, is nobody's business; one that stays so is.
_FAILURES_UNTIL_IT_LASTS = 5


class Trouble(NamedTuple):
    """Why a project is not synced: how many runs in a row came to nothing, since when, and the last one's reason."""

    failures: int
    since: datetime
    reason: str
    needs_person: bool


def after_run(before: Trouble | None, report: RunReport, now: datetime) -> Trouble | None:
    """The trouble after a run; None as soon as one got through to its end, with gaps or without."""
    if report.status == "interrupted":
        return before
    error = report.ended_by
    if error is None:
        return None
    failures = before.failures + 1 if before else 1
    lasts = failures >= _FAILURES_UNTIL_IT_LASTS
    return Trouble(
        failures=failures,
        since=before.since if before else now,
        reason=report.error or "unknown",
        # What nobody expected is a mistake of this program, and will not pass either.
        needs_person=(isinstance(error, DatabaseError) and lasts) or getattr(error, "needs_person", True),
    )


def wait_after(trouble: Trouble | None, every: timedelta) -> timedelta:
    """How long until the next run: `every`, after a second failure in a row twice that, and so on up to an hour.

    Args:
        every: Time between runs; a longer one than an hour is kept.
    """
    if trouble is None:
        return every
    return max(every, min(_LONGEST_WAIT, every * (1 << min(trouble.failures - 1, 20))))
