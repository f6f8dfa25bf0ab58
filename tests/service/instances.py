"""The service in a process of its own, as people run it, and ways to look at it from outside."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import requests
import yaml
from prometheus_client.parser import text_string_to_metric_families

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, generate

_START_S = 60.0  # a loaded machine takes its time to start Python
# Starting Python costs more than most commands: one process imports the program, and forks for each of them.
_SERIES = """
import json, os, sys, tempfile
from etl.cli import main
done = []
for words in json.loads(sys.argv[1]):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        if not (pid := os.fork()):
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["langfuse-etl", *words]
            main()
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        out.seek(0)
        err.seek(0)
        done.append([code, out.read().decode(), err.read().decode()])
print(json.dumps(done))
"""


@functools.cache
def data() -> Dataset:
    """300 traces that end an hour before now: the service has no other clock than the machine's."""
    return make_data()


def make_data(traces: int = 300, days: float = 2.0) -> Dataset:
    """Data of its own, for a test that changes it."""
    end = datetime.now(UTC) - timedelta(hours=1)
    return generate(traces=traces, days=days, observations_per_trace=1, io_bytes=100, end=end, seed=11)


class Done(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


class Setup:
    """A folder with a settings file for one or several servers, and the environment for it."""

    def __init__(
        self, folder: Path, servers: dict[str, MockLangfuse | str], *, database_url: str, schema: str = "public"
    ) -> None:
        self.folder = folder
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
        self.environ |= {"LANGFUSE_ETL_DATABASE_URL": database_url, "PYTHONUNBUFFERED": "1"}
        self.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
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

    def commands(self, *commands: Sequence[str]) -> list[Done]:
        """Other commands beside the service, one after the other."""
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", _SERIES, json.dumps(commands)],
            capture_output=True, text=True, env=self.environ, cwd=self.folder, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert SECRET_KEY not in done.stdout
        return [Done(*one) for one in json.loads(done.stdout)]

    def command(self, *words: str) -> Done:
        """Another command beside the service."""
        (done,) = self.commands(words)
        return done


class Instance:
    """`langfuse-etl run`; killed at the end of the block if it still runs.

    Args:
        before: Python that runs first, in the process that becomes the service.
        options: Before the word `run`.
    """

    def __init__(self, setup: Setup, *, before: str = "", options: Sequence[str] = (), name: str = "service") -> None:
        self._log_path = setup.folder / f"{name}.log"
        self._log_file = self._log_path.open("wb")
        program = f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "-W", "error", "-m", "etl", *options, "run"],
            stdout=self._log_file, stderr=self._log_file, env=setup.environ, cwd=setup.folder,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._log_file.close()
        if error is None:
            assert SECRET_KEY not in self.log()
            assert "Traceback" not in self.log()

    def log(self) -> str:
        return self._log_path.read_text()

    def wait_for(self, holds: Callable[[], Any], timeout_s: float = _START_S) -> Any:
        """What `holds` returns as soon as it is true; an assertion with the log if that takes too long."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = holds()
            if found:
                return found
            assert self.process.poll() is None, f"it ended with {self.process.returncode}:\n{self.log()}"
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
        self.process.send_signal(number)
        return self.process.wait(timeout_s)
