"""What keeps a database small that is synced for years."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from sqlalchemy import Engine

from etl.load import lease
from etl.load.engine import reading, writing
from etl.load.upkeep import Upkeep, forget_runs, is_first_run_since, merge_windows

log = logging.getLogger(__name__)

_KEPT = timedelta(days=30)


def tidy_ledger(engine: Engine, owner: lease.Owner, project_id: str, now: datetime) -> Upkeep:
    """Merges windows of a project that are older than 30 days, and forgets runs of that age that nothing refers to.

    Coverage, gaps, doubts and what `sync_coverage` shows stay the same.

    Args:
        owner: Holds the lease.
        now: The run's clock; aware.
    Raises:
        DatabaseError, LeaseLostError: Nothing was changed.
    """
    with writing(engine) as conn:
        lease.renew(conn, owner)
        done = Upkeep(merge_windows(conn, project_id, now - _KEPT), forget_runs(conn, project_id, now - _KEPT))
    if done.windows or done.runs:
        log.info("ledger: %d windows merged, %d runs forgotten", done.windows, done.runs)
    return done


def tidy_ledger_daily(engine: Engine, owner: lease.Owner, project_id: str, now: datetime) -> None:
    """`tidy_ledger` after a project's first run of a UTC day; call it at the end of each run."""
    with reading(engine) as conn:
        due = is_first_run_since(conn, project_id, now.replace(hour=0, minute=0, second=0, microsecond=0))
    if due:
        tidy_ledger(engine, owner, project_id, now)
