"""Every project against its server, and the mending of what differs."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from etl.config import Config, Project
from etl.errors import ConfigError
from etl.intervals import Window
from etl.load import lease
from etl.pipeline.plan import newest_readable
from etl.pipeline.report import RunReport
from etl.pipeline.scope import Scope
from etl.pipeline.verify import Comparison, compare_with_server
from etl.service.projects import Connected
from etl.service.sync import for_each_project, run_project


@dataclass
class Verified:
    """The differences of all projects, and how many windows were read again to mend them."""

    windows: int = 0
    missing: int = 0
    changed: int = 0
    deleted: int = 0
    doubtful: int = 0
    repaired: int = 0

    @property
    def differs(self) -> bool:
        """Whether anything was found that differs or could not be proven."""
        return bool(self.missing or self.changed or self.deleted or self.doubtful)

    def add(self, found: Comparison) -> None:
        """Adds the differences of one project."""
        for name in ("windows", "missing", "changed", "deleted", "doubtful"):
            setattr(self, name, getattr(self, name) + getattr(found, name))


def verify_projects(
    config: Config,
    engine: Engine,
    owner: lease.Owner | None,
    *,
    projects: Sequence[Project],
    start: datetime | None,
    end: datetime | None,
    full: bool,
    stop: threading.Event,
) -> tuple[Verified, list[RunReport]]:
    """Compares each project with its server; with an `owner` of the lease, windows that differ are read again whole.

    Args:
        start: None for the span of the largest lookback tier.
        end: None for everything that was read.
    """
    verified = Verified()

    def run(one: Connected, scope: Scope) -> RunReport:
        edge = newest_readable(scope.now, scope.lag)
        span = Window(start or edge - scope.lookback[-1], min(end, edge) if end else edge)
        if span.start >= span.end:
            raise ConfigError(f"the range {span} is empty: it must begin before it ends, and begin in the past")
        found = compare_with_server(engine, one.reader, scope, span, full=full)
        verified.add(found)
        if found.agrees or owner is None:
            return RunReport(one.settings.name)
        report = run_project(
            one, scope, engine, owner, trigger="verify --repair", stop=stop, explicit=found.differing,
            repair=True,
        )  # fmt: skip
        verified.repaired += report.total("windows") - report.total("failed_windows")
        return report

    reports = for_each_project(config, engine, projects=projects, streams=(), stop=stop, run=run)
    return verified, reports
