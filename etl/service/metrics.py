"""Numbers for Prometheus: counted as runs go, and looked up in the database when they are asked for.

Names and labels are a contract with dashboards and alert rules; docs/production.md lists them.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from etl import __version__
from etl.pipeline.report import RunReport
from etl.pipeline.run import OnWindow
from etl.service.board import Board
from etl.service.snapshot import Snapshot

_PREFIX = "langfuse_etl"
_REQUEST_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_RUN_S = (0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600)


class Metrics:
    """Every metric of one service.

    Args:
        snapshot: The newest known state of the database; None while it was never read.
    """

    def __init__(self, board: Board, snapshot: Callable[[], Snapshot | None]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each one, which nobody asks for
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        registry = self._registry
        self._rows_read = Counter(
            "rows_read", "Rows that the API sent.", ("project", "stream"), _PREFIX, "", "", registry
        )
        self._rows_written = Counter(
            "rows_written", "Rows that were new or different.", ("project", "stream"), _PREFIX, "", "", registry
        )
        self._requests = Counter(
            "requests", "Requests to Langfuse by HTTP status; none: no whole answer came.", ("project", "status"),
            _PREFIX, "", "", registry,
        )  # fmt: skip
        self._rate_limited = Counter(
            "rate_limited", "Requests that Langfuse refused with 429.", ("project",), _PREFIX, "", "", registry
        )
        self._retries = Counter(
            "retries", "Requests that were sent once more.", ("project",), _PREFIX, "", "", registry
        )
        self._request_seconds = Histogram(
            "request_duration_seconds", "Until the whole answer was there.", ("project",), _PREFIX, "", "", registry,
            buckets=_REQUEST_S,
        )  # fmt: skip
        self._runs = Histogram(
            "run_duration_seconds", "Runs by how they ended: ok, failed, interrupted.", ("project", "status"),
            _PREFIX, "", "", registry, buckets=_RUN_S,
        )  # fmt: skip
        self._windows = Histogram(
            "window_duration_seconds", "Windows read, by proof.", ("project", "stream", "proof"), _PREFIX, "", "",
            registry, buckets=_RUN_S,
        )  # fmt: skip
        Info("build", "The version that runs.", (), _PREFIX, "", "", registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        registry.register(_State(board, snapshot))
        self._lock = threading.Lock()

    def exposition(self) -> bytes:
        """Everything, in Prometheus' text format."""
        return generate_latest(self._registry)

    def keep(self, names: Sequence[str]) -> None:
        """Makes the series of these projects, so that a first failure is an increase from 0."""
        for name in names:
            self._rate_limited.labels(name)
            self._retries.labels(name)
            for status in ("ok", "failed", "interrupted"):
                self._runs.labels(name, status)

    def run_ended(self, report: RunReport, took: timedelta) -> None:
        """Notes how a run ended."""
        self._runs.labels(report.project, report.status).observe(took.total_seconds())

    def windows_of(self, name: str) -> OnWindow:
        """Takes the windows of a project."""

        def on_window(stream: str, proof: str, seconds: float) -> None:
            self._windows.labels(name, stream, proof).observe(seconds)

        return on_window

    def rows_of_run(self, name: str) -> Callable[[RunReport], None]:
        """Takes the growing report of one run."""
        counted: dict[str, tuple[int, int]] = {}

        def on_report(report: RunReport) -> None:
            for stream, now in report.streams.items():
                read, written = counted.get(stream, (0, 0))
                self._rows_read.labels(name, stream).inc(now.rows_read - read)
                self._rows_written.labels(name, stream).inc(now.rows_written - written)
                counted[stream] = now.rows_read, now.rows_written

        return on_report

    def traffic_of(self, name: str) -> _Traffic:
        """Takes the requests of a project."""
        return _Traffic(name, self._requests, self._rate_limited, self._retries, self._request_seconds)


class _Traffic:
    def __init__(
        self, name: str, requests: Counter, rate_limited: Counter, retries: Counter, seconds: Histogram
    ) -> None:
        self._name, self._requests = name, requests
        self._rate_limited, self._retries = rate_limited.labels(name), retries.labels(name)
        self._seconds = seconds.labels(name)

    def answered(self, status: int | None, seconds: float) -> None:
        self._requests.labels(self._name, "none" if status is None else str(status)).inc()
        self._seconds.observe(seconds)
        if status == 429:
            self._rate_limited.inc()

    def retried(self) -> None:
        self._retries.inc()


class _State(Collector):
    """Gauges: what the database says, and what the service does about it."""

    def __init__(self, board: Board, snapshot: Callable[[], Snapshot | None]) -> None:
        self._board, self._snapshot = board, snapshot

    def describe(self) -> Iterable[Metric]:
        return ()  # do not ask the database just to register

    def collect(self) -> Iterator[Metric]:
        leads = GaugeMetricFamily(f"{_PREFIX}_leader", "1: this process runs the projects; 0: it stands by.")
        leads.add_metric([], float(self._board.role == "leader"))
        yield leads
        yield from self._of_schedule()
        snapshot = self._snapshot()
        up = GaugeMetricFamily(f"{_PREFIX}_database_up", "1: the database answered when it was last asked.")
        up.add_metric([], float(snapshot is not None and snapshot.error is None))
        yield up
        if snapshot is not None:
            yield from _of_database(snapshot)

    def _of_schedule(self) -> Iterator[Metric]:
        failures = GaugeMetricFamily(
            f"{_PREFIX}_consecutive_failures", "Runs in a row that came to nothing.", labels=("project",)
        )
        person = GaugeMetricFamily(
            f"{_PREFIX}_needs_person", "1: what fails will not pass by waiting.", labels=("project",)
        )
        running = GaugeMetricFamily(f"{_PREFIX}_running", "1: a run is under way.", labels=("project",))
        following = GaugeMetricFamily(
            f"{_PREFIX}_next_run_timestamp_seconds", "When the next run begins.", labels=("project",)
        )
        for project in self._board.projects():
            trouble = project.trouble
            failures.add_metric([project.name], trouble.failures if trouble else 0)
            person.add_metric([project.name], float(trouble is not None and trouble.needs_person))
            running.add_metric([project.name], float(project.running_since is not None))
            if project.next_run_at is not None:
                following.add_metric([project.name], project.next_run_at.timestamp())
        yield from (failures, person, running, following)


def _of_database(snapshot: Snapshot) -> Iterator[Metric]:
    now = datetime.now(UTC)
    of_stream = ("project", "stream")
    lag = GaugeMetricFamily(
        f"{_PREFIX}_lag_seconds", "Now less the end of the newest stretch that was read.", labels=of_stream
    )
    gaps = GaugeMetricFamily(
        f"{_PREFIX}_gaps", "Stretches between start and live edge that were not read yet.", labels=of_stream
    )
    complete = GaugeMetricFamily(
        f"{_PREFIX}_first_load_complete", "1: everything back to the start was read.", labels=of_stream
    )
    unproven = GaugeMetricFamily(
        f"{_PREFIX}_unproven_windows", "Windows that were read without full proof.", labels=(*of_stream, "state")
    )
    success = GaugeMetricFamily(
        f"{_PREFIX}_last_success_timestamp_seconds", "When the last run that was ok ended.", labels=("project",)
    )
    for project in snapshot.projects:
        if project.last_success_at is not None:
            success.add_metric([project.name], project.last_success_at.timestamp())
        for stream in project.streams:
            labels = [project.name, stream.name]
            if stream.live_edge is not None:
                lag.add_metric(labels, (now - stream.live_edge).total_seconds())
            gaps.add_metric(labels, len(stream.gaps))
            complete.add_metric(labels, float(stream.complete))
            for state in ("doubtful", "partial", "failed"):
                unproven.add_metric([*labels, state], sum(one.state == state for one in stream.unproven))
    yield from (lag, gaps, complete, unproven, success)
