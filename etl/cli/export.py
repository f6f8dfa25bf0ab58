"""`langfuse-etl export`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from etl.cli import output
from etl.cli.invocation import json_option
from etl.cli.output import failure, print_json, print_table, progress_bar, say
from etl.cli.ranges import time_option
from etl.errors import ExportError, UnknownSessionError

if TYPE_CHECKING:
    from etl.config import Config
    from etl.export import ExportedSession

_Choice = TypeVar("_Choice", bound=str)


def export_command(
    session: Annotated[list[str] | None, typer.Argument(metavar="[SESSION]...", help="Session ids.")] = None,
    directory: Annotated[
        Path | None, typer.Option("--directory", "-d", help="Where the session folders go; default export.directory.")
    ] = None,
    name_by: Annotated[str | None, typer.Option(help="Path in the trace that names its file.")] = None,
    detail: Annotated[str, typer.Option(help="full: with observations and scores; row: with their ids.")] = "full",
    file_format: Annotated[
        str, typer.Option("--format", help="json: a file per trace; jsonl: one per session.")
    ] = "json",
    indent: Annotated[int, typer.Option(min=0, max=8, help="Spaces per level in JSON files.")] = 2,
    trace: Annotated[list[str] | None, typer.Option(help="Only this trace id; repeatable.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(metavar="PATH=VALUE", help="Only traces with this value; repeatable.")
    ] = None,
    since: Annotated[str | None, typer.Option("--from", metavar="TIME", help="Traces from this time on.")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Traces before this time.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every session.")] = False,
    project: Annotated[str | None, typer.Option(help="Id or name of the Langfuse project.")] = None,
    from_file: Annotated[
        str | None, typer.Option("--from-file", metavar="FILE", help="Session ids, one a line; - for stdin.")
    ] = None,
    stdout: Annotated[bool, typer.Option("--stdout", help="Write JSON Lines to stdout instead of files.")] = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="Read the sessions from Langfuse first.")] = False,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="DIR", help="Check a folder of exports against its manifests.")
    ] = None,
    as_json: json_option = False,
) -> None:
    """Write sessions to JSON files, one a trace, with a manifest.

    Example: langfuse-etl export my-session --name-by metadata.message_id
    """
    from etl.cli.context import engine_of, settings
    from etl.export import Options, Selection, export_sessions, write_stream
    from etl.load.migrate import require_current

    sessions = tuple(dict.fromkeys([*(session or ()), *_listed(from_file)]))
    is_selecting = bool(sessions or trace or everything or since or until or where)
    if verify is not None:
        if is_selecting or refresh or stdout:
            raise typer.BadParameter("--verify DIR checks all of a folder; it goes with --json only")
        _verify(verify, as_json)
        return
    if stdout and as_json:
        raise typer.BadParameter("--stdout and --json both want standard output; choose one")
    selection = Selection(
        sessions=sessions,
        traces=tuple(trace or ()),
        all=everything,
        start=None if since is None else time_option("--from", since),
        end=None if until is None else time_option("--to", until),
        where=tuple(_condition(one) for one in where or ()),
        project=project,
    )
    if not is_selecting:
        raise typer.BadParameter("name a session, or choose with --all, --trace, --from, --to or --where")
    overrides = {"export.directory": None if directory is None else str(directory), "export.name_by": name_by}
    if refresh and not sessions:
        raise typer.BadParameter("--refresh needs the ids of the sessions to read")
    config = settings(require_projects=refresh, overrides=overrides)
    options = Options(
        directory=config.export.directory,
        name_by=config.export.name_by,
        detail=_choice("--detail", detail, "full", "row"),
        format=_choice("--format", file_format, "json", "jsonl"),
        indent=indent,
    )
    if refresh:
        _refresh(config, sessions, project)
    engine = engine_of(config)
    require_current(engine)
    if stdout:
        with _hint_at_langfuse(refresh), output.stdout() as out:
            write_stream(engine, selection, options, out.buffer)
        return
    started = time.monotonic()
    with _hint_at_langfuse(refresh), progress_bar(not as_json, "traces") as move:
        exported = export_sessions(engine, selection, options, lambda done, total: move(done, total, "export"))
    if as_json:
        print_json({"sessions": [_document(one) for one in exported]})
    else:
        _print(exported, time.monotonic() - started)


@contextmanager
def _hint_at_langfuse(asked: bool) -> Iterator[None]:
    """Adds to the error about a session that is not stored whether Langfuse has it, or how to ask."""
    try:
        yield
    except UnknownSessionError as error:
        hint = "Langfuse has none of that name either" if asked else "`--refresh` asks Langfuse for it"
        raise UnknownSessionError(f"{error}; {hint}") from None


def _refresh(config: Config, sessions: tuple[str, ...], project: str | None) -> None:
    from etl.cli.context import stop_on_signals, writable
    from etl.service.refresh import refresh_sessions

    stop = threading.Event()
    with stop_on_signals(stop), writable(config) as (engine, owner):
        count = refresh_sessions(config, engine, owner, sessions=sessions, project=project, stop=stop)
    say(f"read {count} objects from Langfuse")


def _verify(directory: Path, as_json: bool) -> None:
    from etl.export import verify_directory

    problems = verify_directory(directory)
    if as_json:
        failed = failure("\n".join(problems)) if problems else {}
        print_json(failed | {"directory": str(directory), "ok": not problems, "problems": problems})
        if problems:
            raise typer.Exit(ExportError.exit_code)
    elif problems:
        raise ExportError("\n".join(problems))
    say(f"{directory}: every file is as its manifest says")


def _listed(from_file: str | None) -> list[str]:
    if from_file is None:
        return []
    try:
        text = sys.stdin.read() if from_file == "-" else Path(from_file).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"--from-file {from_file}: {error}") from None
    if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
        raise typer.BadParameter(f"--from-file {from_file}: not a list of session ids, one a line, in UTF-8")
    return [line for line in text.split("\n") if line.strip()]


def _condition(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise typer.BadParameter(f"--where {text}: write PATH=VALUE, such as metadata.message_id=17400353")
    return path, value


def _choice(option: str, text: str, *allowed: _Choice) -> _Choice:
    for one in allowed:
        if one == text:
            return one
    raise typer.BadParameter(f"{option} {text}: allowed are {', '.join(allowed)}")


def _document(one: ExportedSession) -> dict[str, object]:
    return {
        "project_id": one.project_id,
        "session_id": one.session_id,
        "directory": str(one.directory),
        "traces": one.traces,
        "written": one.written,
        "unchanged": one.unchanged,
        "removed": one.removed,
    }


def _print(exported: list[ExportedSession], seconds: float) -> None:
    print_table(
        "langfuse-etl export",
        ("session", "folder", "traces", "written", "unchanged", "removed"),
        [(s.session_id or "(none)", s.directory, s.traces, s.written, s.unchanged, s.removed) for s in exported],
    )
    traces, written, unchanged, removed, size = (
        sum(getattr(one, name) for one in exported) for name in ("traces", "written", "unchanged", "removed", "bytes")
    )
    say(
        f"{len(exported)} session(s), {traces} traces: {written} files written, {unchanged} unchanged,"
        f" {removed} removed; {size:,} bytes, {seconds:.1f} s"
    )
