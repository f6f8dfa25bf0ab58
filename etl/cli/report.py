"""`langfuse-etl report`: one page with charts."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from etl.cli.invocation import json_option
from etl.cli.output import print_json, say
from etl.cli.ranges import time_option
from etl.errors import ConfigError


def report(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page to write.")] = Path(
        "langfuse-report.html"
    ),
    since: Annotated[
        str | None,
        typer.Option("--from", metavar="TIME", help="ISO 8601 with a zone; default: 30 days before the end, at most."),
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Exclusive; default: the day of the newest trace.")
    ] = None,
    project: Annotated[
        list[str] | None, typer.Option(help="Only this stored project, by name or id; repeatable.")
    ] = None,
    as_json: json_option = False,
) -> None:
    """Write one HTML page with charts of cost, latency, errors, sessions, users and coverage; whole UTC days.

    Example: langfuse-etl report --output report.html --from 2026-11-01T00:00:00Z
    """
    from etl.cli.context import engine_of, settings
    from etl.load.engine import reading
    from etl.load.migrate import require_current
    from etl.load.queries import project_names
    from etl.report import collect, render

    start = None if since is None else time_option("--from", since)
    end = None if until is None else time_option("--to", until)
    if start is not None and end is not None and start >= end:
        raise typer.BadParameter("--from must be before --to")
    engine = engine_of(settings(require_projects=False))
    require_current(engine)
    with reading(engine) as conn:
        chosen = _choose(project_names(conn), project or [])
        reports = [collect(conn, id_, name, start=start, end=end) for id_, name in chosen.items()]
    page = render(reports, now=datetime.now(UTC)).encode("utf-8", "replace")
    _write(output, page)
    if as_json:
        print_json({"file": str(output), "bytes": len(page), "projects": list(chosen)})
    else:
        say(f"wrote {output} ({len(page) / 1e6:.1f} MB); open it in a browser, it needs no network")


def _choose(stored: dict[str, str | None], wanted: list[str]) -> dict[str, str | None]:
    """The stored projects by id that are wanted, by id or name; all if none is named.

    Raises:
        ConfigError: One is not stored.
    """
    unknown = [one for one in wanted if one not in stored and one not in stored.values()]
    if unknown:
        names = ", ".join(sorted(name or id_ for id_, name in stored.items())) or "none"
        raise ConfigError(f"--project {unknown[0]}: not in the database; there are {names}")
    return {id_: name for id_, name in stored.items() if not wanted or id_ in wanted or name in wanted}


def _write(path: Path, page: bytes) -> None:
    """The file appears whole or not at all.

    Raises:
        ConfigError: It cannot be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(page)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"--output {path}: {error.strerror}; choose another place") from None
