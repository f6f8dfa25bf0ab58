"""Runs every project on its schedule, for as long as this process holds the lease.

Each project has a job and a thread of its own, so a slow or broken one stops no other. Their page transactions take
turns: one writer per database.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from apscheduler.events import EVENT_JOB_MAX_INSTANCES, JobSubmissionEvent
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger
from sqlalchemy import Engine

from etl.config import Config, Project
from etl.errors import ConfigError, EtlError, LeaseLostError
from etl.extract.budget import Budgets
from etl.load import lease, ledger
from etl.load.engine import writing
from etl.load.schedule import Planned, keep_planned, save_planned
from etl.pipeline.report import RunReport
from etl.pipeline.scope import Scope
from etl.service.backoff import after_run, wait_after
from etl.service.board import Board
from etl.service.metrics import Metrics
from etl.service.projects import Connected
from etl.service.sync import for_each_project, report_of, run_project

log = logging.getLogger(__name__)

# Threads are made when they are needed; beyond this many projects some wait for others.
_MOST_RUNS_AT_ONCE = 100
# A run costs some requests before it reads anything, so a first load is not cut into shorter ones.
_SHORTEST_RUN = timedelta(minutes=1)


class Leader:
    """The schedule of all projects, from `start` to `stop`.

    Args:
        owner: Holds the lease.
        on_lost: Called when another process has taken over the lease.
        on_change: Called when what the database says has changed.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        owner: lease.Owner,
        board: Board,
        metrics: Metrics,
        on_lost: Callable[[], None],
        on_change: Callable[[], None],
    ) -> None:
        self._engine, self._owner, self._board, self._metrics = engine, owner, board, metrics
        self._on_lost, self._on_change = on_lost, on_change
        self._config = config
        self._budgets = _budgets(config)
        self._idle = threading.Condition()
        self._running: dict[str, threading.Event] = {}  # how to stop the run of a project
        self._ended = False
        self._project_ids: dict[str, str] = {}
        self._scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={"default": ThreadPoolExecutor(_MOST_RUNS_AT_ONCE)},
            # A run that is late is due all the more: after a sleep or a stall there is one run, whatever was missed.
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": 1},
        )
        # The library warns of it; a run that takes longer than `every` is no trouble.
        logging.getLogger("apscheduler").setLevel(logging.ERROR)
        self._scheduler.add_listener(_say_skipped, EVENT_JOB_MAX_INSTANCES)

    def start(self) -> None:
        """Runs every project at once, then on its schedule."""
        self._scheduler.start()
        self._apply()

    def reload(self, config: Config) -> None:
        """Goes on with other settings: runs under way end with the old ones, those of removed projects stop."""
        with self._idle:
            before, self._config = self._config, config
            if before.http != config.http:
                self._budgets = _budgets(config)
            self._project_ids.clear()  # the keys may be others now; each next run tells whose they are
            names = {project.name for project in config.projects}
            for name in self._running.keys() - names:
                self._running[name].set()
        self._apply()

    def run_all_now(self) -> None:
        """Makes every project due."""
        for job in self._scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(UTC))

    def stop(self, wait_s: float) -> bool:
        """Asks every run to end after the page at hand; returns whether all have within `wait_s` seconds."""
        with self._idle:
            self._ended = True
            for stop in self._running.values():
                stop.set()
        self._scheduler.shutdown(wait=False)
        with self._idle:
            all_ended = self._idle.wait_for(lambda: not self._running, timeout=wait_s)
        return all_ended

    def note_stopped(self) -> None:
        """Writes that nothing runs any more, and nothing is planned.

        Raises:
            LeaseLostError, DatabaseError: It could not be written.
        """
        with writing(self._engine) as conn:
            lease.renew(conn, self._owner)
            ledger.interrupt_runs(conn, self._owner.token, datetime.now(UTC))
            for state in self._board.projects():
                save_planned(conn, self._planned(state.name, None))

    # The schedule

    def _apply(self) -> None:
        """Makes the jobs those of the configuration; all are due at once."""
        config = self._config
        names = [project.name for project in config.projects]
        self._board.keep(names)
        self._metrics.keep(names)
        now = datetime.now(UTC)
        for job in self._scheduler.get_jobs():
            if job.id not in names:
                job.remove()
        for name in names:
            self._board.note(name, next_run_at=now)
            self._scheduler.add_job(
                self._tick, IntervalTrigger(seconds=int(config.sync.every.total_seconds()), timezone=UTC),
                id=name, args=[name], replace_existing=True, next_run_time=now,
            )  # fmt: skip
        try:
            with writing(self._engine) as conn:
                lease.renew(conn, self._owner)
                keep_planned(conn, names)
                for name in names:
                    save_planned(conn, self._planned(name, now))
        except EtlError as error:
            log.warning("the schedule could not be noted: %s", error)

    def _tick(self, name: str) -> None:
        """One run of a project."""
        with self._idle:
            config = self._config
            project = next((one for one in config.projects if one.name == name), None)
            if project is None or self._ended:
                return
            stop = self._running[name] = threading.Event()
        self._board.note(name, running_since=datetime.now(UTC), windows_done=0, windows_planned=0)
        started_at = datetime.now(UTC)
        try:
            report = self._run(config, project, stop)
            self._plan_next(config, report)
            self._on_change()
            self._metrics.run_ended(report, datetime.now(UTC) - started_at)
        finally:
            stop.set()  # readers of this run that wait for an answer have nobody to bring it to
            self._board.note(name, running_since=None)
            with self._idle:
                del self._running[name]
                self._idle.notify_all()

    def _run(self, config: Config, project: Project, stop: threading.Event) -> RunReport:
        name = project.name
        count_rows = self._metrics.rows_of_run(name)

        def on_progress(report: RunReport, done: int, planned: int) -> None:
            self._board.note(name, windows_done=done, windows_planned=planned)
            count_rows(report)

        def run(one: Connected, scope: Scope) -> RunReport:
            self._refuse_twin(config, name, one.info.id)
            patient = replace(scope, backs_off=True, history_for=max(_SHORTEST_RUN, scope.every))
            return run_project(
                one, patient, self._engine, self._owner, trigger="service", stop=stop,
                on_progress=on_progress, on_window=self._metrics.windows_of(name),
            )  # fmt: skip

        try:
            (report,) = for_each_project(
                config, self._engine, projects=[project], streams=(), stop=stop, budgets=self._budgets,
                traffic=self._metrics.traffic_of(name), run=run,
            )  # fmt: skip
        except LeaseLostError as error:
            self._on_lost()
            return RunReport(name, status="interrupted", error=str(error))
        except EtlError as error:
            return report_of(project, error)
        except Exception as error:  # noqa: BLE001 - one project's bug must not end the others
            where = "".join(traceback.format_tb(error.__traceback__))  # without the message, which may hold data
            log.error(
                "project %s: unexpected %s; this is a bug, please report it\n%s", name, type(error).__name__, where
            )
            text = f"unexpected {type(error).__name__}; this is a bug, please report it with the log"
            return RunReport(name, status="failed", error=text, ended_by=error)
        return report

    def _refuse_twin(self, config: Config, name: str, project_id: str) -> None:
        with self._idle:
            if config is not self._config:
                return  # a run that ends with its former settings tells nothing of whose the keys are now
            configured = {project.name for project in self._config.projects}
            twins = [other for other, its_id in self._project_ids.items() if its_id == project_id and other != name]
            twin = next((other for other in twins if other in configured), None)
            if twin is None:
                self._project_ids[name] = project_id
                return
        raise ConfigError(
            f"projects {twin} and {name} have keys of the same Langfuse project ({project_id}); remove one of them"
        )

    def _plan_next(self, config: Config, report: RunReport) -> None:
        name, now = report.project, datetime.now(UTC)
        trouble = after_run(self._board.trouble(name), report, now)
        wait = wait_after(trouble, config.sync.every)
        with self._idle:
            job = self._scheduler.get_job(name) if not self._ended else None
        if job is None:
            return
        if report.put_off and trouble is None:
            # Live data first, then on with the history; not before this run has ended for the scheduler, too.
            self._move(name, now + timedelta(seconds=1))
        elif trouble is not None and job.next_run_time < now + wait:
            self._move(name, now + wait)
            log.warning(
                "project %s failed %d times in a row since %s, next try in %d s",
                name, trouble.failures, f"{trouble.since:%Y-%m-%dT%H:%M:%SZ}", wait / timedelta(seconds=1),
            )  # fmt: skip
        job = self._scheduler.get_job(name)
        next_run_at = None if job is None else job.next_run_time
        self._board.note(name, trouble=trouble, next_run_at=next_run_at)
        try:
            with writing(self._engine) as conn:
                lease.renew(conn, self._owner)
                save_planned(conn, self._planned(name, next_run_at))
        except LeaseLostError:
            self._on_lost()
        except EtlError as error:
            log.warning("the schedule of project %s could not be noted: %s", name, error)

    def _move(self, name: str, at: datetime) -> None:
        """Makes the next run of a project begin at another time."""
        with suppress(JobLookupError):  # the service ends, or the project was removed, at this very moment
            self._scheduler.modify_job(name, next_run_time=at)

    def _planned(self, name: str, next_run_at: datetime | None) -> Planned:
        trouble = self._board.trouble(name)
        if trouble is None:
            return Planned(name, self._owner.token, next_run_at)
        return Planned(
            name, self._owner.token, next_run_at, trouble.failures, trouble.since, trouble.reason, trouble.needs_person
        )


def _budgets(config: Config) -> Budgets:
    return Budgets(config.http.share, config.http.requests_per_minute)


def _say_skipped(event: JobSubmissionEvent) -> None:
    log.debug("project %s: its last run is still under way", event.job_id)
