"""Files of one folder that appear whole or not at all, and never outside it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import itertools
import os
import re
import secrets
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar

from etl.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_Item = TypeVar("_Item")

_TEMPORARY = ".langfuse-etl-{}.tmp"
_TEMPORARY_NAME = re.compile(r"\.langfuse-etl-[0-9a-f]{16}\.tmp")
_CHUNK_BYTES = 1 << 18
# So many files get their names together. A flush waits for the whole file system, so few are best.
_GROUP_FILES = 1_024
_GROUP_BYTES = 16 << 20
# So many are made before they are written: what makes them and the system's calls slow each other down in turn.
_BATCH_FILES = 64
_BATCH_BYTES = 1 << 20
# O_BINARY is Windows'; O_NOFOLLOW is everybody else's.
_AS_IT_STANDS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _AS_IT_STANDS


class Content(NamedTuple):
    """Size and checksum of a file; `written` is false if the same bytes stood there before."""

    bytes: int
    sha256: str
    written: bool


class _Staged(NamedTuple):
    """A file that is to get its name; `temporary` is where it is now, None if it stands in its place already."""

    name: str
    content: Content
    temporary: str | None


def _flush_of_file_system() -> Callable[[Path], None] | None:
    """What writes everything of a folder's file system to the disk and waits for it: Linux, syncfs(2); or None."""
    try:
        syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    except (AttributeError, OSError, TypeError):
        return None

    def flush_all(folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            if syncfs(descriptor) != 0:
                if ctypes.get_errno() != errno.ENOSYS:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                os.sync()  # a sandbox that knows only the older call
        finally:
            os.close(descriptor)

    return flush_all


# One flush for many files; without it each is flushed by itself, which takes as long for one as this for all.
_flush_all = _flush_of_file_system()


class Folder:
    """A folder that one export writes to; made by `open_folder`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._within = os.path.join(path, "")
        with os.scandir(path) as entries:
            self._was_empty = next(entries, None) is None
        # Random, so that no other program has these names; the digits are those of `_TEMPORARY_NAME`.
        token = secrets.token_hex(4)
        self._temporary_names = (_TEMPORARY.format(f"{token}{number:08x}") for number in itertools.count())

    def write_all(self, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, Content]]:
        """Makes each name hold these bytes; a file that does already is not touched.

        Files come under their names group by group, and while one group is flushed the next one is made: flushing a
        group at once takes little more time than flushing one file. Yields names and contents in the order given.

        Raises:
            ExportError: Something other than a file stands there.
        """
        batches = _bunches(files, _size_of, _BATCH_FILES, _BATCH_BYTES)
        staged = (self._stage(name, data) for batch in batches for name, data in batch)
        flushing: deque[Future[list[_Staged]]] = deque()
        with ThreadPoolExecutor(max_workers=1) as flusher:
            for group in _bunches(staged, _staged_size, _GROUP_FILES, _GROUP_BYTES):
                flushing.append(flusher.submit(self._flushed, group))
                if len(flushing) > 1:
                    yield from self._settle(flushing.popleft().result())
            while flushing:
                yield from self._settle(flushing.popleft().result())

    def _stage(self, name: str, data: bytes) -> _Staged:
        """Puts a file that is new or different beside its place."""
        target = self._within + name
        sha256 = hashlib.sha256(data).hexdigest()
        # In a folder that was empty nothing can stand there: no other export writes to it meanwhile.
        if not self._was_empty and _size_there(target) == len(data) and _holds(target, data):
            return _Staged(name, Content(len(data), sha256, written=False), None)
        return _Staged(name, Content(len(data), sha256, written=True), self._write_temporary(data))

    def _write_temporary(self, data: bytes) -> str:
        """A new file with this content beside the others, on the disk unless all are flushed together."""
        path = self._temporary_path()
        descriptor = os.open(path, _CREATE, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if _flush_all is None:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def _flushed(self, group: list[_Staged]) -> list[_Staged]:
        """The same files, once all that is in them is on the disk."""
        if _flush_all is not None and any(staged.temporary for staged in group):
            _flush_all(self.path)
        return group

    def _settle(self, group: Sequence[_Staged]) -> Iterator[tuple[str, Content]]:
        """Gives staged files their names."""
        for staged in group:
            if staged.temporary is not None:
                os.replace(staged.temporary, self._within + staged.name)
        yield from ((staged.name, staged.content) for staged in group)

    def write_chunks(self, name: str, chunks: Iterable[bytes]) -> Content:
        """Like `write_all` for one file, whose content need not fit into memory."""
        target = self._within + name
        _size_there(target)
        digest, size = hashlib.sha256(), 0
        temporary = self._temporary_path()
        with open(os.open(temporary, _CREATE, 0o666), "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
            written = checksum(target, size) != digest.hexdigest()
            if written:
                file.flush()
                os.fsync(file.fileno())
        if written:
            os.replace(temporary, target)
        else:
            os.unlink(temporary)
        return Content(size, digest.hexdigest(), written)

    def _temporary_path(self) -> str:
        return self._within + next(self._temporary_names)

    @contextmanager
    def scratch_file(self) -> Iterator[BinaryIO]:
        """A file without a name that is gone afterwards, and also if the process ends before."""
        with tempfile.TemporaryFile(dir=self.path) as file:
            yield file

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
            _remove_left_over(path)
            try:
                yield Folder(path)
            except BaseException:
                _remove_left_over(path)
                raise
    except OSError as error:
        raise ExportError(f"cannot write to {path}: {error.strerror or type(error).__name__}") from None


def _remove_left_over(folder: Path) -> None:
    """Removes temporary files of exports that failed or were killed."""
    for entry in os.scandir(folder):
        if _TEMPORARY_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            Path(entry.path).unlink(missing_ok=True)


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


def checksum(path: Path | str, size: int) -> str | None:
    """SHA-256 of a file of `size` bytes, as hexadecimal digits; None if there is no such file of that size."""
    try:
        if os.stat(path).st_size != size:
            return None
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(min(size, _CHUNK_BYTES)):
                digest.update(chunk)
        return digest.hexdigest()
    except FileNotFoundError:
        return None


def _holds(path: str, data: bytes) -> bool:
    descriptor = os.open(path, os.O_RDONLY | _AS_IT_STANDS)
    try:
        return os.read(descriptor, len(data) + 1) == data
    finally:
        os.close(descriptor)


def _size_of(file: tuple[str, bytes]) -> int:
    return len(file[1])


def _staged_size(staged: _Staged) -> int:
    return staged.content.bytes


def _bunches(items: Iterable[_Item], size: Callable[[_Item], int], most: int, most_bytes: int) -> Iterator[list[_Item]]:
    """Items together that are `most`, or that exceed `most_bytes` with the last of them."""
    bunch: list[_Item] = []
    held_bytes = 0
    for item in items:
        bunch.append(item)
        held_bytes += size(item)
        if len(bunch) == most or held_bytes > most_bytes:
            yield bunch
            bunch, held_bytes = [], 0
    if bunch:
        yield bunch


def _size_there(path: str) -> int | None:
    """Size of the file at `path`; None if there is nothing.

    Raises:
        ExportError: Something else stands there.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise ExportError(f"{path} is not a file of its own (a symbolic link or a folder?); move it away")
    return found.st_size


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
