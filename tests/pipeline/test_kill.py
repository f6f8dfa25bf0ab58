"""A real process that is killed at any moment, or asked to stop: nothing is lost, nothing is doubled."""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import pytest
from nursery import Nursery
from sqlalchemy import Engine
from syncing import ledger, rows, same_tables

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, Request, generate
from etl.load.engine import open_engine, sqlite_path


@functools.cache
def data(traces: int) -> Dataset:
    """Traces that end an hour before now: a command has no other clock than the machine's."""
    end = datetime.now(UTC) - timedelta(hours=1)
    return generate(traces=traces, days=2, observations_per_trace=0, scores_per_trace=0, io_bytes=100, end=end)


class Commands:
    """Runs commands of the program, each in a process of its own; `on_start` gets its id."""

    def __init__(
        self, nursery: Nursery, folder: Path, server: MockLangfuse, database_url: str, schema: str, *, readers: int = 4
    ) -> None:
        self._nursery, self._folder = nursery, folder
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("LANGFUSE")} | {
            "LANGFUSE_BASE_URL": server.base_url,
            "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY,
            "LANGFUSE_SECRET_KEY": SECRET_KEY,
            "LANGFUSE_ETL_DATABASE_URL": database_url,
            "LANGFUSE_ETL_DATABASE__SCHEMA": schema,
            "LANGFUSE_ETL_HTTP__CONCURRENCY": str(readers),
        }
        self._logs: list[Path] = []

    def run(self, command: str, on_start: Callable[[int], None] = lambda pid: None) -> tuple[int, str]:
        """The exit code (negative: the signal that ended it), and what it printed on stdout."""
        log = self._folder / f"command-{len(self._logs)}"
        self._logs.append(log)
        pid = self._nursery.fork(self._folder, self._environ, command.split(), log)
        on_start(pid)
        code = self._nursery.wait(pid)
        return code, Path(f"{log}.out").read_text()

    def errors(self) -> str:
        """All that was printed on stderr so far."""
        return "".join(log.read_text() for log in self._logs)


class Trigger:
    """Sends a signal to a process, once, some milliseconds after the server got a request at which it is `due`."""

    def __init__(
        self, server: MockLangfuse, due: Callable[[], bool], chosen: signal.Signals, delay_s: float = 0.0
    ) -> None:
        self._due, self._signal, self._delay_s = due, chosen, delay_s
        self._pid = 0
        self._started = threading.Event()
        self._was_due = False
        self._lock = threading.Lock()
        server.before_answer = self._look

    def start(self, pid: int) -> None:
        self._pid = pid
        self._started.set()

    def _look(self, _: Request) -> None:
        with self._lock:
            if self._was_due or not self._due():
                return
            self._was_due = True
        if self._started.wait(5):
            threading.Timer(self._delay_s, self._send).start()

    def _send(self) -> None:
        try:
            os.kill(self._pid, self._signal)
        except ProcessLookupError:
            return  # it was faster


def at_request(number: int) -> Callable[[], bool]:
    numbers = count(1)
    return lambda: next(numbers) == number


Tables = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def undisturbed_of(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Tables]:
    """The tables of one clean run over so many traces."""

    @functools.cache
    def make(traces: int) -> Tables:
        folder = tmp_path_factory.mktemp("clean")
        url = f"sqlite:///{folder / 'a.db'}"
        with MockLangfuse(data(traces)) as server:
            commands = Commands(nursery, folder, server, url, "public")
            code, _ = commands.run("sync")
            assert code == 0, commands.errors()
        engine = open_engine(url, "public")
        tables = same_tables(engine)
        engine.dispose()
        assert len(tables["traces"]) == traces
        return tables

    return make


@pytest.fixture
def undisturbed(undisturbed_of: Callable[[int], Tables]) -> Tables:
    return undisturbed_of(3_000)


@pytest.fixture
def killed_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Engine, str, str]]:
    kind = request.param
    url = f"sqlite:///{tmp_path / 'a.db'}" if kind == "sqlite" else request.getfixturevalue("postgres_url")
    schema = "public" if kind == "sqlite" else "killed"
    engine = open_engine(url, schema)
    yield engine, url, schema
    engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize(
    ("killed_database", "traces", "kills"),
    [
        ("sqlite", 1_200, 12),
        ("postgres", 1_200, 5),
        pytest.param("sqlite", 20_000, 30, marks=pytest.mark.soak),
        pytest.param("postgres", 20_000, 30, marks=pytest.mark.soak),
    ],
    indirect=["killed_database"],
)
def test_killed_at_random_moments_it_ends_with_the_tables_of_one_undisturbed_run(
    killed_database: tuple[Engine, str, str],
    traces: int,
    kills: int,
    nursery: Nursery,
    tmp_path: Path,
    undisturbed_of: Callable[[int], Tables],
) -> None:
    """The larger the history, the later the kills come, so that some of them hit a first sync that is nearly done."""
    engine, url, schema = killed_database
    rng = random.Random(kills)
    killed = 0
    with MockLangfuse(data(traces)) as server:
        commands = Commands(nursery, tmp_path, server, url, schema)
        while True:
            due = at_request(rng.randrange(3, 10 + traces // 100))
            trigger = Trigger(server, due, signal.SIGKILL, rng.random() * 0.05)
            if killed >= kills:
                server.before_answer = None
            code, _ = commands.run("sync", trigger.start)
            assert code in (-signal.SIGKILL, 0), commands.errors()
            killed += code != 0
            if code == 0:  # it was done before the kill came
                assert_no_window_counted_twice(engine)
                *before, last = rows(engine, "sync_runs")
                if before and before[-1]["status"] == "ok":  # killed when it had nothing more to do than to end
                    assert last["rows_written"] == 0
                    before.pop()
                assert {run["status"] for run in before} <= {"interrupted"}
                assert last["status"] == "ok"
                if killed >= kills:
                    break
                start_over(engine)
        assert same_tables(engine) == undisturbed_of(traces)
        assert "Traceback" not in commands.errors(), commands.errors()


def start_over(engine: Engine) -> None:
    """An empty database again."""
    path = sqlite_path(engine)
    if path is None:
        with engine.begin() as conn:
            conn.exec_driver_sql("DROP SCHEMA killed CASCADE")
    engine.dispose()
    for file in path.parent.glob(f"{path.name}*") if path else ():
        file.unlink()


def assert_no_window_counted_twice(engine: Engine) -> None:
    """What was read for the first time does not overlap, and adds up to the rows that are there."""
    for stream in ("traces", "observations", "scores", "sessions"):
        first = [
            row
            for row in ledger(engine)
            if row["stream"] == stream and row["tier"] in ("live", "history") and row["proof"] in ("counted", "walked")
        ]
        first.sort(key=lambda row: row["window_start"])
        assert all(one["window_end"] <= following["window_start"] for one, following in pairwise(first))
        assert sum(row["read"] for row in first) == len(rows(engine, stream))


@pytest.mark.parametrize("chosen", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_it_keeps_its_pages_and_says_interrupted(
    nursery: Nursery, tmp_path: Path, chosen: signal.Signals, undisturbed: Tables
) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    engine = open_engine(url, "public")
    with MockLangfuse(data(3_000)) as server:
        # Several readers may have all of it in hand before the first page is stored.
        commands = Commands(nursery, tmp_path, server, url, "public", readers=1)
        trigger = Trigger(server, lambda: bool(rows(engine, "traces")), chosen)
        code, printed = commands.run("sync --json", trigger.start)
        server.before_answer = None
        report = json.loads(printed)
        assert (code, report["status"]) == (130, "interrupted")
        assert report["error"].endswith(": interrupted")
        assert report["rows_written"] == len(rows(engine, "traces")) + len(rows(engine, "sessions")) > 0
        (run,) = rows(engine, "sync_runs")
        assert (run["status"], run["rows_written"]) == ("interrupted", report["rows_written"])
        assert rows(engine, "sync_lease") == []
        code, printed = commands.run("sync --json")
        assert (code, json.loads(printed)["status"]) == (0, "ok")
        assert "Traceback" not in commands.errors(), commands.errors()
    assert same_tables(engine) == undisturbed
    engine.dispose()
