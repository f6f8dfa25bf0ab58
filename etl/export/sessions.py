"""One export: chosen sessions from the database into folders, or as one stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine

from etl.errors import ExportError
from etl.export.assemble import NamedDocument, SessionPlan, plan_session
from etl.export.choose import choose_sessions
from etl.export.files import Content, Folder, is_plain_file, is_plain_name, open_folder, require_real_folder
from etl.export.fingerprints import Fingerprints, fingerprint
from etl.export.manifest import (
    MANIFEST,
    FileEntry,
    FileList,
    Manifest,
    listed_files,
    read_manifest,
    render_manifest,
)
from etl.export.names import Wanted, fold, unique_names
from etl.export.render import render
from etl.export.selection import ExportedSession, Options, Selection
from etl.load.engine import reading
from etl.load.migrate import require_current
from etl.load.queries import StoredSession

Progress = Callable[[int, int], None]

# The folder of traces without a session, and the file of a session as JSON Lines.
NO_SESSION = "no-session"
JSON_LINES = "traces.jsonl"
_WIDEST_INDENT = 16


def export_sessions(
    engine: Engine, selection: Selection, options: Options, on_progress: Progress | None = None
) -> list[ExportedSession]:
    """Writes the selected traces, each session into a folder of its own; running it again changes nothing.

    Each session is one consistent view of the database. Sessions without a selected trace are passed over, except that
    what the same selection wrote earlier is cleaned up.

    Args:
        engine: An open database.
        selection: Which traces.
        options: Where and how.
        on_progress: Called with the number of traces done and of all traces; the latter may fall on the way.
    Raises:
        ExportError: The selection means nothing that is stored, or a folder cannot be written.
        DatabaseError: The database cannot be read.
    """
    _require_sound(options)
    sessions = _chosen(engine, selection)
    folders = _folder_names(sessions)
    count = _Count(sum(session.traces for session in sessions), on_progress)
    exported: list[ExportedSession] = []
    for session in sessions:
        with reading(engine) as conn:
            plan = plan_session(conn, session, selection, options.name_by)
            count.found(plan.traces, expected=session.traces)
            folder, old = _find_folder(options.directory, folders[session], session)
            is_same = old is not None and old.selection == selection.within_session()
            if plan.traces or is_same:
                exported.append(_SessionExport(plan, options, folder, count, is_same=is_same).run())
    if not exported:
        raise ExportError("no stored trace matches the selection")
    return exported


def write_stream(engine: Engine, selection: Selection, options: Options, out: BinaryIO) -> int:
    """Writes the selected traces as JSON Lines; returns how many.

    Raises:
        ExportError: The selection means nothing that is stored.
        DatabaseError: The database cannot be read.
    """
    _require_sound(options)
    written = 0
    for session in _chosen(engine, selection):
        with reading(engine) as conn:
            plan = plan_session(conn, session, selection, options.name_by)
            for one in plan.documents(options.detail):
                out.write(render(one.document.item, 0))
                written += 1
    if not written:
        raise ExportError("no stored trace matches the selection")
    return written


class _SessionExport:
    """One session into its folder: files, then what is gone, then the manifest.

    Args:
        is_same: Whether the folder holds what the same selection wrote before, so that what is gone now is removed.
    """

    def __init__(self, plan: SessionPlan, options: Options, path: Path, count: _Count, *, is_same: bool) -> None:
        self._plan = plan
        self._options = options
        self._path = path
        self._count = count
        self._is_same = is_same
        self._names = Fingerprints()
        self._files = self._bytes = 0
        self._traces = self._observations = self._scores = self._written = 0
        self._complete = True

    def run(self) -> ExportedSession:
        with open_folder(self._path) as folder, folder.scratch_file() as scratch:
            listed = FileList(scratch)
            for entry in self._write_lines(folder) if self._options.format == "jsonl" else self._write_files(folder):
                listed.add(entry)
            removed = self._remove_gone(folder)
            folder.sync()
            folder.write_chunks(MANIFEST, render_manifest(self._manifest(), listed))
            folder.sync()
        session = self._plan.session
        return ExportedSession(
            project_id=session.project_id,
            session_id=session.session_id,
            directory=self._path,
            traces=self._traces,
            written=self._written,
            unchanged=self._files - self._written,
            removed=removed,
            bytes=self._bytes,
        )

    def _write_files(self, folder: Folder) -> Iterator[FileEntry]:
        staged: deque[str] = deque()

        def files() -> Iterator[tuple[str, bytes]]:
            for one in self._documents():
                staged.append(one.trace_id)
                yield one.name, render(one.document.item, self._options.indent)

        for name, content in folder.write_all(files()):
            yield self._entry(name, staged.popleft(), content)

    def _write_lines(self, folder: Folder) -> Iterator[FileEntry]:
        lines = (render(one.document.item, 0) for one in self._documents())
        yield self._entry(JSON_LINES, None, folder.write_chunks(JSON_LINES, lines))

    def _documents(self) -> Iterator[NamedDocument]:
        for one in self._plan.documents(self._options.detail):
            self._traces += 1
            self._observations += one.document.observations
            self._scores += one.document.scores
            self._complete &= one.document.complete
            yield one
            self._count.one_more()

    def _entry(self, name: str, trace_id: str | None, content: Content) -> FileEntry:
        self._files += 1
        self._bytes += content.bytes
        self._written += content.written
        if self._is_same:
            self._names.add(fingerprint(name))
        return FileEntry(name, trace_id, content.bytes, content.sha256)

    def _remove_gone(self, folder: Folder) -> int:
        """Removes what the old manifest of the same selection lists and this one does not; nothing else, ever."""
        if not self._is_same:
            return 0
        gone = [
            entry.name
            for entry in listed_files(self._path / MANIFEST)
            if is_plain_name(entry.name) and entry.name != MANIFEST and fingerprint(entry.name) not in self._names
        ]
        if not gone:
            return 0
        folds = {fold(name) for name in gone}
        names = [JSON_LINES] if self._options.format == "jsonl" else self._plan.file_names()
        kept = {fold(name): name for name in names if fold(name) in folds}
        return sum(folder.remove(name, respelled=kept.get(fold(name))) for name in gone)

    def _manifest(self) -> Manifest:
        return Manifest(
            project_id=self._plan.session.project_id,
            session_id=self._plan.session.session_id,
            selection=self._plan.selection.within_session(),
            traces=self._traces,
            observations=self._observations,
            scores=self._scores,
            complete=self._complete,
        )


class _Count:
    """How far an export is."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._on_progress = on_progress

    def found(self, traces: int, *, expected: int) -> None:
        self._total += traces - expected

    def one_more(self) -> None:
        self._done += 1
        if self._on_progress is not None:
            self._on_progress(self._done, self._total)


def _chosen(engine: Engine, selection: Selection) -> list[StoredSession]:
    require_current(engine)
    with reading(engine) as conn:
        return choose_sessions(conn, selection)


def _require_sound(options: Options) -> None:
    if not 0 <= options.indent <= _WIDEST_INDENT:
        raise ExportError(f"--indent must be between 0 and {_WIDEST_INDENT}")


def _folder_names(sessions: list[StoredSession]) -> dict[StoredSession, list[str]]:
    """For each session its folder's name, then the one to use if that folder belongs to another session."""
    wanted = {session: _wanted_folder(session) for session in sessions}
    first = unique_names(wanted, tag_changed=True)
    return {
        session: [name, unique_names({session: wanted[session]}, taken=[name, wanted[session].text])[session]]
        for session, name in first.items()
    }


def _wanted_folder(session: StoredSession) -> Wanted:
    # No file name can hold a slash: the tag is always a digest of both.
    tag = f"{session.project_id}/{session.session_id or ''}"
    return Wanted(NO_SESSION if session.session_id is None else session.session_id, tag)


def _find_folder(root: Path, names: list[str], session: StoredSession) -> tuple[Path, Manifest | None]:
    """The session's folder and the manifest that is in it; earlier exports may have given the first name away."""
    for name in names:
        old = _manifest_in(root / name)
        if old is None or (old.project_id, old.session_id) == (session.project_id, session.session_id):
            return root / name, old
    raise ExportError(f"{root / names[0]} and {root / names[-1]} belong to other sessions; choose another --directory")


def _manifest_in(path: Path) -> Manifest | None:
    manifest = path / MANIFEST
    try:
        if path.is_symlink():
            require_real_folder(path)
        if not is_plain_file(manifest):
            return None
        found = read_manifest(manifest)
    except OSError as error:
        raise ExportError(f"cannot read {manifest}: {error.strerror or type(error).__name__}") from None
    if found is None:
        raise ExportError(f"{manifest} was not written by langfuse-etl; move it away or choose another --directory")
    return found
