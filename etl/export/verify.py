"""Whether folders hold what their manifests say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from etl.errors import ExportError
from etl.export.files import checksum, is_plain_file, is_plain_name
from etl.export.fingerprints import Fingerprints, fingerprint
from etl.export.manifest import MANIFEST, FileEntry, Manifest, listed_files, read_manifest


def verify_directory(directory: Path) -> list[str]:
    """One line for each file that is not as its manifest says; none if all is well.

    Args:
        directory: The folder of one session, or one that holds such folders. Hidden folders are passed over.
    Raises:
        ExportError: There is no such folder, or it cannot be read.
    """
    try:
        if not directory.is_dir():
            raise ExportError(f"{directory} is not a folder")
        if (directory / MANIFEST).exists():
            return list(_problems(directory, ""))
        folders = sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
        if not folders:
            return [f"no {MANIFEST} in {directory}"]
        return [problem for folder in folders for problem in _problems(folder, f"{folder.name}/")]
    except OSError as error:
        raise ExportError(f"cannot read {directory}: {error.strerror or type(error).__name__}") from None


def _problems(folder: Path, prefix: str) -> Iterator[str]:
    if folder.is_symlink():
        yield f"{prefix}: a symbolic link, not a folder"
    elif not (folder / MANIFEST).exists():
        yield f"{prefix}{MANIFEST}: missing; was the export interrupted?"
    elif not is_plain_file(folder / MANIFEST) or (manifest := read_manifest(folder / MANIFEST)) is None:
        yield f"{prefix}{MANIFEST}: not a manifest of langfuse-etl"
    else:
        yield from _contradictions(manifest, folder, prefix)
        for entry in listed_files(folder / MANIFEST):
            problem = _problem(folder, entry)
            if problem is not None:
                yield f"{prefix}{entry.name}: {problem}"


def _contradictions(manifest: Manifest, folder: Path, prefix: str) -> Iterator[str]:
    names = Fingerprints()
    listed = traces = 0
    for entry in listed_files(folder / MANIFEST):
        names.add(fingerprint(entry.name))
        listed += 1
        traces += entry.trace_id is not None
    if names.repeated():
        yield f"{prefix}{MANIFEST}: lists a file twice"
    if traces == listed != manifest.traces:
        yield f"{prefix}{MANIFEST}: lists {listed} files for {manifest.traces} traces"


def _problem(folder: Path, entry: FileEntry) -> str | None:
    if not is_plain_name(entry.name):
        return "a name that leads out of the folder"
    path = folder / entry.name
    if not is_plain_file(path):
        return "not a file of its own" if path.is_symlink() or path.exists() else "missing"
    size = path.stat().st_size
    if size != entry.bytes:
        return f"{size} bytes, the manifest says {entry.bytes}"
    return None if checksum(path, size) == entry.sha256 else "its content differs from the manifest's SHA-256"
