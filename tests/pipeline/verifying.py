"""`langfuse-etl verify` of the mock's project over a given range, and damage done to the database behind its back."""

from __future__ import annotations

import threading
from datetime import datetime

from sqlalchemy import Engine, text
from syncing import project

from etl.config import Config
from etl.demo import MockLangfuse
from etl.load.engine import schema_of, writing
from etl.service.lease import write_lease
from etl.service.verify import Verified, verify_projects
from etl.settings import Http, Sync


def config(server: MockLangfuse, *, give_up_after: str = "10s") -> Config:
    return Config(projects=(project(server),), sync=Sync(), http=Http(timeout="5s", give_up_after=give_up_after))


def verify(
    engine: Engine, server: MockLangfuse, start: datetime, end: datetime, *, repair: bool = False, full: bool = False
) -> Verified:
    """The mock's clock is the machine's, so the range is given."""
    settings, stop = config(server), threading.Event()
    if not repair:
        found, reports = verify_projects(
            settings, engine, None, projects=settings.projects, start=start, end=end, full=full, stop=stop
        )
    else:
        with write_lease(engine) as owner:
            found, reports = verify_projects(
                settings, engine, owner, projects=settings.projects, start=start, end=end, full=full, stop=stop
            )
    assert [report.error for report in reports] == [None]
    return found


def counts(found: Verified) -> tuple[int, int, int, int]:
    return found.missing, found.changed, found.deleted, found.doubtful


def execute(engine: Engine, statement: str) -> int:
    """Runs a statement, whose tables have `{at}` before their names; how many rows it touched."""
    schema = schema_of(engine)
    with writing(engine) as conn:
        return conn.execute(text(statement.format(at=f"{schema}." if schema else ""))).rowcount
