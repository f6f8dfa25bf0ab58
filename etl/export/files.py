"""Files of one folder that appear whole or not at all, and never outside it."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from etl.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".langfuse-etl-{}.tmp"
_TEMPORARY_NAME = re.compile(r"\.langfuse-etl-[0-9a-f]{16}\.tmp")
_CHUNK_BYTES = 1 << 20
_WRITERS = 4
_MOST_WAITING = 64
_MOST_WAITING_BYTES = 16 << 20
# O_BINARY is Windows'; O_NOFOLLOW is everybody else's.
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class Content(NamedTuple):
    """Size and checksum of a file; `written` is false if the same bytes stood there before."""

    bytes: int
    sha256: str
    written: bool


class Folder:
    """A folder that one export writes to; made by `open_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Content]]:
        """Like `write` for each file, several at once, because waiting for the disk takes most of the time.

        Yields names and contents in the order given.
        """
        waiting: deque[tuple[str, int, Future[Content]]] = deque()
        held_bytes = 0
        with ThreadPoolExecutor(_WRITERS, thread_name_prefix="export") as pool:
            for name, data in files:
                waiting.append((name, len(data), pool.submit(self.write, name, data)))
                held_bytes += len(data)
                while len(waiting) > _MOST_WAITING or (held_bytes > _MOST_WAITING_BYTES and waiting):
                    oldest, size, content = waiting.popleft()
                    held_bytes -= size
                    yield oldest, content.result()
            for oldest, _, content in waiting:
                yield oldest, content.result()

    def write(self, name: str, data: bytes) -> Content:
        """Makes `name` hold these bytes; it is not touched if it does already.

        Raises:
            ExportError: Something other than a file stands there.
        """
        target = self.path / name
        _require_plain_file(target)
        sha256 = hashlib.sha256(data).hexdigest()
        if checksum(target, len(data)) == sha256:
            return Content(len(data), sha256, written=False)
        with self._temporary() as (file, temporary):
            file.write(data)
            _replace(file, temporary, target)
        return Content(len(data), sha256, written=True)

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> Content:
        """Like `write`, for content that need not fit into memory."""
        target = self.path / name
        _require_plain_file(target)
        digest, size = hashlib.sha256(), 0
        with self._temporary() as (file, temporary):
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            written = checksum(target, size) != digest.hexdigest()
            if written:
                _replace(file, temporary, target)
            else:
                file.close()
                temporary.unlink()
        return Content(size, digest.hexdigest(), written)

    @contextmanager
    def _temporary(self) -> Iterator[tuple[BinaryIO, Path]]:
        """A new file beside the others; it is removed if the block raises."""
        path = self.path / _TEMPORARY.format(secrets.token_hex(8))
        try:
            with open(os.open(path, _CREATE, 0o666), "wb") as file:
                yield file, path
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def remove(self, name: str, *, respelled: str | None = None) -> bool:
        """Removes a file; returns whether it was there. Links and folders stay, they are not ours.

        Args:
            name: The file.
            respelled: A file to keep whose name may be the same one on this system, as `A` and `a` are on macOS.
        """
        target = self.path / name
        if not is_plain_file(target) or (respelled is not None and _same_file(target, self.path / respelled)):
            return False
        target.unlink()
        return True

    def remove_left_over(self) -> None:
        """Removes temporary files of exports that were killed."""
        for entry in os.scandir(self.path):
            if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)

    def sync(self) -> None:
        """Makes the names of files survive a power failure, where the system can."""
        if os.name == "posix":
            descriptor = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


@contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """The folder at `path`, made if needed, for this export alone.

    Raises:
        ExportError: It cannot be written, is a symbolic link, or another export writes to it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        require_real_folder(path)
        with _lock(path):
            folder = Folder(path)
            folder.remove_left_over()
            yield folder
    except OSError as error:
        raise ExportError(f"cannot write to {path}: {error.strerror or type(error).__name__}") from None


def require_real_folder(path: Path) -> None:
    """
    Raises:
        ExportError: There is a symbolic link, which may lead anywhere, or no folder.
    """
    mode = path.lstat().st_mode
    if not stat.S_ISDIR(mode):
        what = "is a symbolic link" if stat.S_ISLNK(mode) else "is not a folder"
        raise ExportError(f"{path} {what}; move it away or choose another --directory")


def is_plain_file(path: Path) -> bool:
    """Whether a file stands there that is no symbolic link."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def is_plain_name(name: str) -> bool:
    """Whether `name` names something inside a folder, on any system."""
    return name not in ("", ".", "..") and not re.search(r"[/\\:\x00]", name)


def checksum(path: Path, size: int) -> str | None:
    """SHA-256 of a file of `size` bytes, as hexadecimal digits; None if there is no such file of that size."""
    try:
        if path.stat().st_size != size:
            return None
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()
    except FileNotFoundError:
        return None


def _replace(file: BinaryIO, temporary: Path, target: Path) -> None:
    """Puts a whole file under its name; it is closed first, which Windows asks for."""
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(temporary, target)


def _require_plain_file(path: Path) -> None:
    if os.path.lexists(path) and not is_plain_file(path):
        raise ExportError(f"{path} is not a file of its own (a symbolic link or a folder?); move it away")


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except FileNotFoundError:
        return False


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keeps other exports out of the folder; ends with the process, so that nothing is left over. Not on Windows."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(f"another export is writing to {path}; try again when it is done") from None
        except OSError:
            pass  # some network file systems cannot lock folders
        yield
    finally:
        os.close(descriptor)
