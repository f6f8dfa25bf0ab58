"""`langfuse-etl backfill` and `langfuse-etl verify`: a range of time, read again."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from etl.cli import views
from etl.cli.invocation import json_option
from etl.cli.output import print_json, print_table, say, say_error, sync_progress

if TYPE_CHECKING:
    from datetime import datetime

    from etl.pipeline.backfill import Estimate
    from etl.pipeline.report import RunReport

_DIFFERENCES_FOUND = 5

Project = Annotated[list[str] | None, typer.Option(help="Only this project of the configuration; repeatable.")]


def backfill(
    since: Annotated[str, typer.Option("--from", metavar="TIME", help="ISO 8601 with a zone; inclusive.")],
    until: Annotated[
        str | None, typer.Option("--to", metavar="TIME", help="Exclusive; default: all that can be read.")
    ] = None,
    only_plan: Annotated[bool, typer.Option("--plan", help="Say what it would cost, and read nothing.")] = False,
    project: Project = None,
    as_json: json_option = False,
) -> None:
    """Read an explicit range again, whatever was read before; run it again to go on where it stopped.

    Example: langfuse-etl backfill --from 2026-01-01T00:00:00Z --to 2026-02-01T00:00:00Z
    """
    from etl.cli.context import exit_with, settings, stop_on_signals, unchanged_engine, writable
    from etl.service.backfill import backfill_projects, plan_backfill
    from etl.service.sync import choose_projects

    start, end = time_option("--from", since), None if until is None else time_option("--to", until)
    config = settings()
    chosen = choose_projects(config, project or [])
    if only_plan:
        with unchanged_engine(config) as engine:
            reports, estimates = plan_backfill(config, engine, projects=chosen, start=start, end=end)
        _print_plan(reports, estimates, as_json)
        exit_with(reports)
        return
    stop = threading.Event()
    with stop_on_signals(stop), writable(config) as (engine, owner), sync_progress(not as_json) as on_progress:
        reports = backfill_projects(
            config, engine, owner, projects=chosen, start=start, end=end, stop=stop, on_progress=on_progress
        )
    views.show_sync("backfill", reports, as_json)
    exit_with(reports)


def verify(
    since: Annotated[
        str | None, typer.Option("--from", metavar="TIME", help="Default: as far as the largest lookback.")
    ] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="TIME", help="Default: all that was read.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Read windows that differ again, and store them.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Compare contents, too.")] = False,
    project: Project = None,
    as_json: json_option = False,
) -> None:
    """Compare the database with the server once more; exit 5 if they differ and that was not repaired.

    Example: langfuse-etl verify --repair
    """
    from etl.cli.context import engine_of, exit_with, settings, stop_on_signals, writable
    from etl.load.migrate import require_current
    from etl.service.sync import choose_projects
    from etl.service.verify import verify_projects

    start = None if since is None else time_option("--from", since)
    end = None if until is None else time_option("--to", until)
    config = settings()
    chosen = choose_projects(config, project or [])
    stop = threading.Event()
    if repair:
        with stop_on_signals(stop), writable(config) as (engine, owner):
            found, reports = verify_projects(
                config, engine, owner, projects=chosen, start=start, end=end, full=full, stop=stop
            )
    else:
        engine = engine_of(config)
        require_current(engine)
        with stop_on_signals(stop):
            found, reports = verify_projects(
                config, engine, None, projects=chosen, start=start, end=end, full=full, stop=stop
            )
    errors = views.errors_in(reports)
    if as_json:
        print_json(views.failing_first(asdict(found), reports))
    else:
        print_table("langfuse-etl verify", tuple(asdict(found)), [tuple(asdict(found).values())])
        for error in errors:
            say_error(error)
        if not errors and not found.windows:
            say(
                "nothing was compared: nothing of this range has been read; run `langfuse-etl sync` or `backfill` first"
            )
        elif not errors and not found.differs:
            reach = "; `--from` compares what is older than the largest lookback" if start is None else ""
            say(f"no differences in {found.windows} windows{reach}")
        elif found.repaired:
            say(f"{found.repaired} windows were read again whole, and mended where they differed")
    exit_with(reports)
    if found.differs and not repair:
        if found.missing or found.changed or found.deleted:
            say("the database differs from the server; `langfuse-etl verify --repair` mends it")
        else:
            say(f"{found.doubtful} windows could not be compared with proof; `langfuse-etl check` looks at the server")
        raise typer.Exit(_DIFFERENCES_FOUND)


def time_option(option: str, text: str) -> datetime:
    """A time from the command line.

    Raises:
        BadParameter: It is none, or has no zone.
    """
    from etl.values import parse_time

    try:
        return parse_time(text)
    except ValueError as error:
        raise typer.BadParameter(f"{option}: {error}") from None


def _print_plan(reports: list[RunReport], estimates: dict[str, Estimate], as_json: bool) -> None:
    from etl.pipeline.backfill import Estimate

    errors = views.errors_in(reports)
    if as_json:
        documents = [one.as_json() for one in estimates.values()]
        total = {
            name: None if errors or any(one[name] is None for one in documents) else sum(one[name] for one in documents)
            for name in Estimate._fields
        }
        projects = {"projects": {name: one.as_json() for name, one in estimates.items()}}
        print_json(views.failing_first(total | projects, reports))
    else:
        print_table(
            "langfuse-etl backfill --plan",
            ("project", *Estimate._fields),
            [(name, *("?" if value is None else value for value in one)) for name, one in estimates.items()],
        )
        if any(None in one for one in estimates.values()):
            say("?: a server with only the observations API does not say how many rows it has")
    for error in errors:
        say_error(error)
