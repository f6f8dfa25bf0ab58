"""Rows made in a second process, so that a long read uses two processors.

Threads cannot share that work: one Python process runs one of them at a time, and this part is all Python's. Both
processes call the same function, so nothing but the time depends on which one did it.
"""

from __future__ import annotations

import contextlib
import logging
import marshal
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import orjson

from etl.transform.pages import Kind, rows_of
from etl.transform.rows import Row

log = logging.getLogger(__name__)

# An ordinary run reads less, and would wait for the start of a process instead of rows.
AFTER_OBJECTS = 5_000
_PIPE_BYTES = 1_000_000  # about the most that Linux gives without asking
_LENGTH_BYTES = 8


class RowMaker:
    """`rows_of` of objects that were read whole; from the `AFTER_OBJECTS`th on in another process.

    Threads may share it. Where there is only one processor, and where the other process does not answer for whatever
    reason, the work is done here. It ends with this process, however that ends: its input does.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._objects = 0
        self._alone = _processors() < 2

    def rows_of(
        self, kind: Kind, items: Sequence[Mapping[str, Any]], *, project_id: str, plain: bool, contents: bool
    ) -> dict[str, list[Row]]:
        """As `pages.rows_of`.

        Raises:
            RowError: An object without a usable key.
        """
        made = self._asked(kind, items, project_id, contents) if plain else None
        return rows_of(kind, items, project_id=project_id, plain=plain, contents=contents) if made is None else made

    def close(self) -> None:
        """Ends the other process; threads that wait for it go on alone."""
        self._alone = True
        if self._process is not None:
            self._process.kill()  # whoever has the lock may wait for it
        with self._lock:
            if self._process is None:
                return
            with contextlib.suppress(OSError), self._process:  # what was on its way is lost with the other end
                self._process.kill()

    def _asked(
        self, kind: Kind, items: Sequence[Mapping[str, Any]], project_id: str, contents: bool
    ) -> dict[str, list[Row]] | None:
        """What the other process answers; None if it does not."""
        self._objects += len(items)
        if self._alone or not items or self._objects < AFTER_OBJECTS:
            return None
        with self._lock:  # what goes over is in memory once, not once for each thread
            if self._alone:
                return None
            try:
                body = orjson.dumps(items)
                self._process = self._process or _started()
                requests = cast(IO[bytes], self._process.stdin)
                _write(requests, marshal.dumps((kind.value, project_id, contents)))
                _write(requests, body)
                answer = _read(cast(IO[bytes], self._process.stdout))
            except orjson.JSONEncodeError:  # nested more deeply than it writes
                return None
            except (OSError, EOFError) as error:
                if not self._alone:  # nobody closed it
                    log.warning("no second process (%s): the run goes on with one", type(error).__name__)
                    self._alone = True
                return None
            except BaseException:  # half a question or half an answer would be taken for the next one's
                self._alone = True
                raise
        # Names of columns become those that are known here, which are found faster than equal ones.
        rows: dict[str, list[Row]] | None = marshal.loads(answer)  # noqa: S302 - from this very program
        return rows


def serve(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answers until there are no more requests; None to what fails, so that it fails where it was asked."""
    while True:
        try:
            name, project_id, contents = marshal.loads(_read(requests))  # noqa: S302 - from this very program
            body = _read(requests)
        except EOFError:
            return
        answer = marshal.dumps(None)
        with contextlib.suppress(Exception):
            items = orjson.loads(body)
            answer = marshal.dumps(rows_of(Kind(name), items, project_id=project_id, plain=True, contents=contents))
        _write(answers, answer)


def _started() -> subprocess.Popen[bytes]:
    root = str(Path(__file__).parents[2])  # where this code is, installed or not
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pipesize=_PIPE_BYTES,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,  # Ctrl-C is for the one that stores what is at hand
    )


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "big"))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """One message.

    Raises:
        EOFError: There is none any more, or only a part of one.
    """
    return _exactly(pipe, int.from_bytes(_exactly(pipe, _LENGTH_BYTES), "big"))


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    data = pipe.read(length)
    if len(data) < length:
        raise EOFError
    return data


def _processors() -> int:
    """How many this process may use, as far as the system tells."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    # systemd ends all processes of a service at once, but the first one still stores what is at hand.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
