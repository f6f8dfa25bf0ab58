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
from collections.abc import Sequence
from typing import IO, cast

from etl import __version__
from etl.transform.items import Item, items_of, listed_text
from etl.transform.pages import Kind, rows_of
from etl.transform.rows import Row

log = logging.getLogger(__name__)

# An ordinary run reads less, and would wait for the start of a process instead of rows.
AFTER_OBJECTS = 5_000
# What is larger would be in memory several times over in both processes.
_MOST_BYTES = 8_000_000
_PIPE_BYTES = 1_000_000  # about the most that Linux gives without asking
_LENGTH_BYTES = 8
# Whatever else was printed where an answer should begin makes a greater number of its first bytes.
_LONGEST = 2**48
# With the paths of this process: neither the environment nor the folder at hand decides whose code it is.
_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from etl.pipeline import rowmaker; rowmaker.main()"


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

    def rows_of(self, kind: Kind, items: Sequence[Item], *, project_id: str, contents: bool) -> dict[str, list[Row]]:
        """As `pages.rows_of`.

        Raises:
            RowError: An object that cannot be read, or has no usable key.
        """
        made = self._asked(kind, items, project_id, contents)
        return rows_of(kind, items, project_id=project_id, contents=contents) if made is None else made

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

    def _asked(self, kind: Kind, items: Sequence[Item], project_id: str, contents: bool) -> dict[str, list[Row]] | None:
        """What the other process answers; None if it does not."""
        self._objects += len(items)
        if self._alone or not items or self._objects < AFTER_OBJECTS:
            return None
        with self._lock:  # what goes over is in memory once, not once for each thread
            if self._alone:
                return None
            body = listed_text(items)
            if len(body) > _MOST_BYTES:
                return None
            try:
                return self._answer(marshal.dumps((kind.value, project_id, contents)), body)
            except Exception as error:  # noqa: BLE001 - whatever it is, the work can be done here
                if not self._alone:  # nobody closed it
                    log.warning("no second process (%s): the run goes on with one", type(error).__name__)
            except BaseException:
                self._alone = True
                raise
            # Half a question or half an answer would be taken for the next one's.
            self._alone = True
            return None

    def _answer(self, settings: bytes, body: bytes) -> dict[str, list[Row]] | None:
        greets = self._process is None
        self._process = process = self._process or _started()
        requests, answers = cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout)
        # An upgrade may have put other code in the place of what runs here.
        if greets and _read(answers) != __version__.encode():
            raise EOFError
        _write(requests, settings)
        _write(requests, body)
        # Names of columns become those that are known here, which are found faster than equal ones.
        rows: dict[str, list[Row]] | None = marshal.loads(_read(answers))  # noqa: S302 - from this very program
        return rows


def main() -> None:
    """The second process: answers until its input ends."""
    # systemd ends all processes of a service at once, but the first one still stores what is at hand.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that is printed gets between two answers
    if sys.platform == "linux":
        import fcntl

        for pipe in (0, answers.fileno()):
            with contextlib.suppress(OSError):  # not more than a user may have
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    with contextlib.suppress(OSError, EOFError):
        _write(answers, __version__.encode())
        while True:
            _write(answers, _made(_read(sys.stdin.buffer), _read(sys.stdin.buffer)))
    os._exit(0)  # nobody reads what may be left to write


def _made(settings: bytes, body: bytes) -> bytes:
    """The rows; None for what fails, so that it fails where it was asked."""
    try:
        name, project_id, contents = marshal.loads(settings)  # noqa: S302 - from this very program
        rows = rows_of(Kind(name), items_of(body), project_id=project_id, contents=contents)
        return marshal.dumps(rows)
    except Exception:  # noqa: BLE001 - as said
        return marshal.dumps(None)


def _started() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - this very program
        [sys.executable, "-I", *(["-B"] if sys.dont_write_bytecode else []), "-c", _PROGRAM, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the one that stores what is at hand
    )


def _write(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(len(message).to_bytes(_LENGTH_BYTES, "big"))
    pipe.write(message)
    pipe.flush()


def _read(pipe: IO[bytes]) -> bytes:
    """One message.

    Raises:
        EOFError: There is none any more, or only a part of one, or something else.
    """
    length = int.from_bytes(_exactly(pipe, _LENGTH_BYTES), "big")
    if length > _LONGEST:
        raise EOFError
    return _exactly(pipe, length)


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
