"""One run of every project, one after the other; the trouble of one does not stop the next."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import Engine

from etl.config import Config, Project
from etl.errors import ApiGoneError, ConfigError, DatabaseError, EtlError, LeaseLostError, ShutdownRequested
from etl.extract.budget import Budgets
from etl.extract.client import Traffic
from etl.load import lease, ledger
from etl.load.engine import writing
from etl.pipeline.plan import Due
from etl.pipeline.report import RunReport
from etl.pipeline.run import OnWindow, Progress, sync
from etl.pipeline.scope import Scope
from etl.pipeline.upkeep import tidy_ledger_daily
from etl.service.projects import Connected, connect, refuse_twins

log = logging.getLogger(__name__)


def choose_projects(config: Config, names: Sequence[str]) -> list[Project]:
    """The projects of these names, or all.

    Raises:
        ConfigError: A name that is not in the configuration.
    """
    known = {project.name: project for project in config.projects}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"no project named {', '.join(unknown)}; the configuration has: {', '.join(known)}")
    return [known[name] for name in names] if names else list(config.projects)


# Which windows of a project to read, in place of those that are due.
Explicit = Callable[[Connected, Scope], Mapping[str, Sequence[Due]]]


def sync_projects(
    config: Config,
    engine: Engine,
    owner: lease.Owner,
    *,
    projects: Sequence[Project],
    streams: Sequence[str],
    trigger: str,
    stop: threading.Event,
    on_progress: Progress | None = None,
    now: Callable[[], datetime] | None = None,
    explicit: Explicit | None = None,
) -> list[RunReport]:
    """One run of each project, in the order given; a report for each.

    Args:
        streams: Only these; empty for those of the configuration.
        now: In place of the clocks of this machine and of the server.
        explicit: Windows to read in place of those that are due.
    Raises:
        DatabaseError, LeaseLostError: Nothing can be written any more.
        ConfigError: Two entries are one project.
    """

    def run(one: Connected, scope: Scope) -> RunReport:
        return run_project(
            one, scope, engine, owner, trigger=trigger, stop=stop, on_progress=on_progress,
            explicit=explicit(one, scope) if explicit else None,
        )  # fmt: skip

    return for_each_project(config, engine, projects=projects, streams=streams, stop=stop, now=now, run=run)


def for_each_project(
    config: Config,
    engine: Engine,
    *,
    projects: Sequence[Project],
    streams: Sequence[str],
    stop: threading.Event,
    now: Callable[[], datetime] | None = None,
    budgets: Budgets | None = None,
    traffic: Traffic | None = None,
    run: Callable[[Connected, Scope], RunReport],
) -> list[RunReport]:
    """Connects every project, then runs `run` for each; what cannot be connected or run is reported as failed.

    Args:
        budgets, traffic: See `open_client`.
    Raises:
        DatabaseError, LeaseLostError: Nothing can be written any more.
        ConfigError: Two entries are one project.
    """
    budgets = budgets or Budgets(config.http.share, config.http.requests_per_minute)
    reports: list[RunReport] = []
    connected: list[Connected] = []
    for project in projects:
        try:
            moment = now() if now else None
            connected.append(connect(project, config, engine, stop, budgets=budgets, traffic=traffic, now=moment))
        except EtlError as error:
            reports.append(report_of(project, error))
    refuse_twins(connected)
    for one in connected:
        scope = one.scope(config)
        if streams:
            scope = replace(scope, streams=[stream for stream in scope.streams if stream in streams])
            if not scope.streams:
                nothing = ConfigError(
                    f"none of {', '.join(streams)} is among the streams of the configuration:"
                    f" {', '.join(one.settings.streams)}"
                )
                reports.append(report_of(one.settings, nothing))
                one.client.close()
                continue
        try:
            reports.append(run(one, scope))
        except ApiGoneError as error:
            # The server was upgraded since it was read last: ask it again what it has, and go on with that.
            reports.append(_after_upgrade(one, config, engine, budgets, traffic, scope, stop, run, error))
        except (DatabaseError, LeaseLostError):
            raise
        except EtlError as error:
            reports.append(report_of(one.settings, error))
        finally:
            one.client.close()
    return reports


def _after_upgrade(
    one: Connected,
    config: Config,
    engine: Engine,
    budgets: Budgets,
    traffic: Traffic | None,
    scope: Scope,
    stop: threading.Event,
    run: Callable[[Connected, Scope], RunReport],
    gone: ApiGoneError,
) -> RunReport:
    try:
        again = connect(
            one.settings, config, engine, stop, budgets=budgets, traffic=traffic, now=one.now, probe_again=True
        )
        if again.api == one.api:
            raise gone
        try:
            return run(again, scope)
        finally:
            again.client.close()
    except (DatabaseError, LeaseLostError):
        raise
    except EtlError as error:
        return report_of(one.settings, error)


def run_project(
    one: Connected,
    scope: Scope,
    engine: Engine,
    owner: lease.Owner,
    *,
    trigger: str,
    stop: threading.Event,
    on_progress: Progress | None = None,
    on_window: OnWindow | None = None,
    explicit: Mapping[str, Sequence[Due]] | None = None,
    repair: bool = False,
) -> RunReport:
    """One run of a connected project; see `pipeline.run.sync`."""
    with writing(engine) as conn:
        lease.renew(conn, owner)
        ledger.save_project(conn, one.record())
    report = sync(
        engine, owner, one.reader, scope, trigger=trigger, requests_sent=lambda: one.client.requests_sent,
        stop=stop, on_progress=on_progress, on_window=on_window, explicit=explicit, repair=repair,
    )  # fmt: skip
    if report.status != "interrupted":
        tidy_ledger_daily(engine, owner, scope.project_id, scope.now)
    return report


def report_of(project: Project, error: EtlError) -> RunReport:
    """The report of a run that came to nothing."""
    if isinstance(error, ShutdownRequested):
        return RunReport(project.name, status="interrupted", error=str(error), exit_code=error.exit_code)
    log.info("project %s: %s", project.name, error)
    return RunReport(project.name, status="failed", error=str(error), exit_code=error.exit_code, ended_by=error)
