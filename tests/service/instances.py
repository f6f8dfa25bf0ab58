"""The service in a process of its own, as people run it, and ways to look at it from outside."""

from __future__ import annotations

import functools
import os
import re
import signal
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests
import yaml
from command_result import Result
from nursery import Nursery
from prometheus_client.parser import text_string_to_metric_families

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, generate

_START_S = 60.0  # a loaded machine takes its time


@functools.cache
def data() -> Dataset:
    """300 traces that end an hour before now: the service has no other clock than the machine's."""
    return make_data()


def make_data(traces: int = 300, days: float = 2.0) -> Dataset:
    """Data of its own, for a test that changes it."""
    end = datetime.now(UTC) - timedelta(hours=1)
    return generate(traces=traces, days=days, observations_per_trace=1, io_bytes=100, end=end, seed=11)


class Setup:
    """A folder with a settings file for one or several servers, and the environment for it."""

    def __init__(
        self,
        nursery: Nursery,
        folder: Path,
        servers: dict[str, MockLangfuse | str],
        *,
        database_url: str,
        schema: str = "public",
    ) -> None:
        self.nursery, self.folder = nursery, folder
        self._commands = 0
        self.settings: dict[str, Any] = {
            "projects": [
                {
                    "name": name,
                    "base_url": server if isinstance(server, str) else server.base_url,
                    "public_key_env": f"KEY_{index}_PUBLIC",
                    "secret_key_env": f"KEY_{index}_SECRET",
                }
                for index, (name, server) in enumerate(servers.items())
            ],
            "database": {"schema": schema},
            "sync": {"every": "1s"},
            "http": {"timeout": "5s", "give_up_after": "20s"},
            "service": {"listen": "127.0.0.1:0"},
        }
        self.environ = {
            name: value for name, value in os.environ.items() if not name.startswith(("LANGFUSE", "KEY_", "COV"))
        }
        self.environ["LANGFUSE_ETL_DATABASE_URL"] = database_url
        for index in range(len(servers)):
            self.secret_file(index).write_text(SECRET_KEY)
            self.environ[f"KEY_{index}_PUBLIC"] = PUBLIC_KEY
            self.environ[f"KEY_{index}_SECRET_FILE"] = str(self.secret_file(index))
        self.write()

    def secret_file(self, index: int) -> Path:
        return self.folder / f"secret-{index}"

    def write(self) -> None:
        """Writes the settings as they stand now."""
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.settings))

    def command(self, *words: str) -> Result:
        """Another command beside the service."""
        self._commands += 1
        log = self.folder / f"command-{self._commands}"
        code = self.nursery.wait(self.nursery.fork(self.folder, self.environ, words, log))
        done = Result(code, Path(f"{log}.out").read_text(), log.read_text())
        assert SECRET_KEY not in done.out + done.err
        return done


class Instance:
    """`langfuse-etl run`; killed at the end of the block if it still runs.

    Args:
        before: Python that runs first, in the same process.
        options: Before the word `run`.
    """

    def __init__(self, setup: Setup, *, before: str = "", options: Sequence[str] = (), name: str = "service") -> None:
        self._nursery, self._log = setup.nursery, setup.folder / f"{name}.log"
        self._log.write_text("")
        self.pid = self._nursery.fork(setup.folder, setup.environ, [*options, "run"], self._log, before=before)
        self._code: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.code() is None:
            self.stop(signal.SIGKILL)
        if error is None:
            assert SECRET_KEY not in self.log()
            assert "Traceback" not in self.log()

    def code(self) -> int | None:
        """The exit code (negative: the signal that ended it); None while it runs."""
        if self._code is None:
            self._code = self._nursery.poll(self.pid)
        return self._code

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, holds: Callable[[], Any], timeout_s: float = _START_S) -> Any:
        """What `holds` returns as soon as it is true; an assertion with the log if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = holds()
            if found:
                return found
            assert self.code() is None, f"it ended with {self.code()}:\n{self.log()}"
            time.sleep(0.05)
        raise AssertionError(f"not within {timeout_s:g} s; the log:\n{self.log()}")

    def wait_for_log(self, text: str, timeout_s: float = _START_S) -> None:
        self.wait_for(lambda: text in self.log(), timeout_s)

    @functools.cached_property
    def url(self) -> str:
        """Where it listens."""
        match: re.Match[str] = self.wait_for(lambda: re.search(r"http://\S+?:\d+(?=/\n)", self.log()))
        return match[0]

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, timeout=10)

    def metric(self, name: str, **labels: str) -> float | None:
        """The value of the one series with these labels; None if there is none."""
        for family in text_string_to_metric_families(self.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None

    def runs(self, project: str, status: str = "ok") -> int:
        """How many runs of a project ended so."""
        return int(self.metric("langfuse_etl_run_duration_seconds_count", project=project, status=status) or 0)

    def wait_for_runs(self, project: str, more: int = 1, status: str = "ok", timeout_s: float = _START_S) -> None:
        """Waits until `more` further runs have ended."""
        before = self.runs(project, status)
        self.wait_for(lambda: self.runs(project, status) >= before + more, timeout_s)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout_s: float = 10.0) -> int:
        """Sends a signal; the exit code."""
        self.send(number)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 10.0) -> int:
        """The exit code; an assertion if it does not end."""
        deadline = time.monotonic() + timeout_s
        while (code := self.code()) is None:
            assert time.monotonic() < deadline, f"it has not ended within {timeout_s:g} s:\n{self.log()}"
            time.sleep(0.02)
        return code
