"""Processes that begin at once: starting Python and importing the program costs seconds, so one process does that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_NURSERY = """
import json, os, sys
# What commands load when they need it, each fork anew.
import etl.cli.app, etl.cli.context, etl.export, etl.service.daemon, etl.service.refresh, etl.service.verify, psycopg
from etl.cli import main
for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        pid, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    pid = os.fork()
    if pid == 0:
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environ"])
        for number, name in enumerate([os.devnull, asked["out"], asked["err"]]):
            opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        sys.argv = ["langfuse-etl", *asked["words"]]
        exec(asked["before"])
        main()
    print(pid, flush=True)
"""


class Nursery:
    """Forks commands of the program; every one is a process of its own."""

    def __init__(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LANGFUSE")}
        environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _NURSERY],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True,
        )  # fmt: skip

    def fork(
        self, folder: Path, environ: Mapping[str, str], words: Sequence[str], log: Path, *, before: str = ""
    ) -> int:
        """The process id; what it prints goes to `log` (stderr) and to the same name with `.out`.

        `before` is Python that runs first, in the same process; it may do something else and leave.
        """
        asked = {"folder": str(folder), "environ": dict(environ), "words": words, "before": before}
        return int(self._ask(asked | {"err": str(log), "out": f"{log}.out"}))

    def poll(self, pid: int) -> int | None:
        """The exit code of a process that it forked; asked for again, an error."""
        code: int | None = json.loads(self._ask({"poll": pid}))
        return code

    def wait(self, pid: int) -> int:
        """The exit code of a process that it forked (negative: the signal that ended it), once it has ended."""
        while (code := self.poll(pid)) is None:
            time.sleep(0.02)
        return code

    def close(self) -> None:
        self._process.communicate(timeout=30)

    def _ask(self, asked: dict[str, Any]) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the nursery has ended"
        return line
