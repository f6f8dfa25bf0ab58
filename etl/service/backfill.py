"""An explicit range of every project: planned, or read."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import Engine

from etl.config import Config, Project
from etl.errors import ConfigError
from etl.extract.budget import bucket_of
from etl.intervals import Window
from etl.load import lease
from etl.load.engine import reading
from etl.pipeline.backfill import Estimate, backfill_windows, estimate, trigger_of
from etl.pipeline.plan import newest_readable
from etl.pipeline.report import RunReport
from etl.pipeline.run import Progress
from etl.pipeline.scope import Scope
from etl.service.projects import Connected
from etl.service.sync import for_each_project, run_project

_PATHS = {"traces": "/traces", "observations": "/observations", "scores": "/v3/scores", "sessions": "/sessions"}
_MINUTE_S = 60.0


def backfill_projects(
    config: Config,
    engine: Engine,
    owner: lease.Owner,
    *,
    projects: Sequence[Project],
    start: datetime,
    end: datetime | None,
    stop: threading.Event,
    on_progress: Progress | None = None,
) -> list[RunReport]:
    """Reads `[start, end)` of each project, whatever was read before; a report for each.

    Raises:
        DatabaseError, LeaseLostError: Nothing can be written any more.
    """

    def run(one: Connected, scope: Scope) -> RunReport:
        span = _span(scope, start, end)
        with reading(engine) as conn:
            windows = backfill_windows(conn, one.reader, scope, span, trigger_of(start, end))
        return run_project(
            one,
            scope,
            engine,
            owner,
            trigger=trigger_of(start, end),
            stop=stop,
            on_progress=on_progress,
            explicit=windows,
        )

    return for_each_project(config, engine, projects=projects, streams=(), stop=stop, run=run)


def plan_backfill(
    config: Config, engine: Engine, *, projects: Sequence[Project], start: datetime, end: datetime | None
) -> tuple[list[RunReport], dict[str, Estimate]]:
    """What a backfill of each project would cost, by its name; reports tell what could not be asked."""
    estimates: dict[str, Estimate] = {}

    def run(one: Connected, scope: Scope) -> RunReport:
        span = _span(scope, start, end)
        with reading(engine) as conn:
            windows = backfill_windows(conn, one.reader, scope, span, trigger_of(start, end))

        def requests_per_second(source: str) -> float | None:
            limit = one.client.limit_per_minute(bucket_of(_PATHS[source] if one.api == "traces" else "/v2"))
            return None if limit is None else limit / _MINUTE_S

        estimates[one.settings.name] = estimate(one.reader, windows, span, requests_per_second)
        return RunReport(one.settings.name)

    reports = for_each_project(config, engine, projects=projects, streams=(), stop=threading.Event(), run=run)
    return reports, estimates


def _span(scope: Scope, start: datetime, end: datetime | None) -> Window:
    edge = newest_readable(scope.now, scope.lag)
    span = Window(start, min(edge, end) if end else edge)
    if span.start >= span.end:
        raise ConfigError(
            f"the range from {start:%Y-%m-%dT%H:%M:%SZ} to {span.end:%Y-%m-%dT%H:%M:%SZ} is empty: it must begin before"
            " it ends, and end in the past"
        )
    return span
