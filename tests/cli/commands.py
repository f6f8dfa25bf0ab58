"""Commands run in this process, or in one of their own, in an empty folder with an environment of their own."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from command_result import Result

from etl.cli import main
from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, generate


class Cli:
    """Runs commands as a user does: settings come from variables and from `config.yaml` in the folder."""

    def __init__(
        self, folder: Path, environ: dict[str, str], patch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.environ = folder, environ
        self._patch, self._capture = patch, capture

    @property
    def database(self) -> Path:
        """The default database."""
        return self.folder / "langfuse.db"

    def __call__(self, *words: str) -> Result:
        """In this process."""
        with self._patch.context() as patch:
            for name in [name for name in os.environ if name.startswith("LANGFUSE")]:
                patch.delenv(name)
            for name, value in self.environ.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["langfuse-etl", *words])
            patch.chdir(self.folder)
            self._capture.readouterr()
            with pytest.raises(SystemExit) as ended:
                main()
        printed = self._capture.readouterr()
        code = ended.value.code
        return self._checked(Result(code if isinstance(code, int) else 0, printed.out, printed.err))

    def process(self, *words: str, before: str = "") -> Result:
        """In a process of its own; `before` is Python that runs first."""
        with self.start(*words, before=before) as process:
            out, err = process.communicate(timeout=60)
        return self._checked(Result(process.returncode, out, err))

    def start(self, *words: str, before: str = "") -> subprocess.Popen[str]:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("LANGFUSE")}
        environ |= self.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
        program = f"import os, sys\n{before}\nos.execv(sys.executable, [sys.executable, '-m', 'etl', *sys.argv[1:]])"
        return subprocess.Popen(
            [sys.executable, "-c", program, *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ, cwd=self.folder, text=True,
        )  # fmt: skip

    @staticmethod
    def _checked(result: Result) -> Result:
        """No command ever shows a key or a traceback."""
        assert SECRET_KEY not in result.out + result.err
        assert "Traceback" not in result.err
        return result


@functools.cache
def data() -> Dataset:
    """120 traces that end an hour before now: a command has no other clock than the machine's."""
    end = datetime.now(UTC) - timedelta(hours=1)
    return generate(
        traces=120, days=1.5, observations_per_trace=2, io_bytes=150, traces_per_session=12, end=end, seed=5
    )


def keys(base_url: str, secret: str = SECRET_KEY) -> dict[str, str]:
    return {"LANGFUSE_BASE_URL": base_url, "LANGFUSE_PUBLIC_KEY": PUBLIC_KEY, "LANGFUSE_SECRET_KEY": secret}
