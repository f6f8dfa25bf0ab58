"""One export: chosen sessions from the database into folders, or as one stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Engine

from etl.errors import ExportError
from etl.export.assemble import documents, plan_session
from etl.export.choose import choose_sessions
from etl.export.files import Content, Folder, is_plain_file, is_plain_name, open_folder, require_real_folder
from etl.export.manifest import MANIFEST, FileEntry, Manifest, parse_manifest
from etl.export.names import Wanted, fold, unique_names
from etl.export.render import render
from etl.export.selection import ExportedSession, Options, Selection
from etl.load.engine import reading
from etl.load.migrate import require_current
from etl.load.queries import StoredSession
from etl.transform.documents import Document

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
            count.found(len(plan), expected=session.traces)
            folder, old = _find_folder(options.directory, folders[session], session)
            same = old is not None and old.selection == selection.within_session()
            if plan or same:
                found = documents(conn, session, plan, options.detail)
                exporter = _SessionExport(session, selection, options, plan, old if same else None)
                exported.append(exporter.run(folder, count.each(found)))
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
            for _, document in documents(conn, session, plan, options.detail):
                out.write(render(document.item, 0))
                written += 1
    if not written:
        raise ExportError("no stored trace matches the selection")
    return written


class _SessionExport:
    """One session into its folder: files, then what is gone, then the manifest."""

    def __init__(
        self,
        session: StoredSession,
        selection: Selection,
        options: Options,
        names: dict[str, str],
        old: Manifest | None,
    ) -> None:
        self._session = session
        self._selection = selection
        self._options = options
        self._names = names
        self._old = old
        self._entries: list[FileEntry] = []
        self._traces = self._observations = self._scores = self._written = 0
        self._complete = True

    def run(self, path: Path, found: Iterator[tuple[str, Document]]) -> ExportedSession:
        with open_folder(path) as folder:
            if self._options.format == "jsonl":
                self._write_lines(folder, found)
            else:
                self._write_files(folder, found)
            removed = self._remove_gone(folder)
            folder.sync()
            folder.write(MANIFEST, self._manifest().render())
            folder.sync()
        return ExportedSession(
            project_id=self._session.project_id,
            session_id=self._session.session_id,
            directory=path,
            traces=self._traces,
            written=self._written,
            unchanged=len(self._entries) - self._written,
            removed=removed,
            bytes=sum(entry.bytes for entry in self._entries),
        )

    def _write_files(self, folder: Folder, found: Iterator[tuple[str, Document]]) -> None:
        def files() -> Iterator[tuple[str, bytes]]:
            for trace_id, document in found:
                self._add(document)
                yield self._names[trace_id], render(document.item, self._options.indent)

        owners = {name: trace_id for trace_id, name in self._names.items()}
        for name, content in folder.write_all(files()):
            self._enter(name, owners[name], content)

    def _write_lines(self, folder: Folder, found: Iterator[tuple[str, Document]]) -> None:
        def lines() -> Iterator[bytes]:
            for _, document in found:
                self._add(document)
                yield render(document.item, 0)

        self._enter(JSON_LINES, None, folder.write_chunks(JSON_LINES, lines()))

    def _add(self, document: Document) -> None:
        self._traces += 1
        self._observations += document.observations
        self._scores += document.scores
        self._complete &= document.complete

    def _enter(self, name: str, trace_id: str | None, content: Content) -> None:
        self._written += content.written
        self._entries.append(FileEntry(name, trace_id, content.bytes, content.sha256))

    def _remove_gone(self, folder: Folder) -> int:
        """Removes what the old manifest of the same selection lists and this one does not; nothing else, ever."""
        if self._old is None:
            return 0
        kept = {fold(entry.name): entry.name for entry in self._entries}
        names = set(kept.values()) | {MANIFEST}
        gone = [entry.name for entry in self._old.files if entry.name not in names and is_plain_name(entry.name)]
        return sum(folder.remove(name, respelled=kept.get(fold(name))) for name in gone)

    def _manifest(self) -> Manifest:
        return Manifest(
            project_id=self._session.project_id,
            session_id=self._session.session_id,
            selection=self._selection.within_session(),
            traces=self._traces,
            observations=self._observations,
            scores=self._scores,
            complete=self._complete,
            files=tuple(self._entries),
        )


class _Count:
    """How far an export is."""

    def __init__(self, total: int, on_progress: Progress | None) -> None:
        self._done = 0
        self._total = total
        self._on_progress = on_progress

    def found(self, traces: int, *, expected: int) -> None:
        self._total += traces - expected

    def each(self, found: Iterator[tuple[str, Document]]) -> Iterator[tuple[str, Document]]:
        for one in found:
            yield one
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
        found = parse_manifest(manifest.read_bytes())
    except OSError as error:
        raise ExportError(f"cannot read {manifest}: {error.strerror or type(error).__name__}") from None
    if found is None:
        raise ExportError(f"{manifest} was not written by langfuse-etl; move it away or choose another --directory")
    return found
