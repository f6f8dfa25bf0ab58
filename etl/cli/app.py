"""The commands of `langfuse-etl`.

A command imports what it needs when it is called: a help text, or a status that is asked for every minute, does not
wait for libraries of others.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from etl import __version__
from etl.cli import views
from etl.cli.demo import demo
from etl.cli.export import export_command
from etl.cli.invocation import choose_settings_file, json_option, opened
from etl.cli.output import failure, people, print_json, print_text, say, say_error, sync_progress
from etl.cli.ranges import backfill, verify
from etl.cli.report import report
from etl.errors import EtlError, ShutdownRequested, StdoutError
from etl.logs import configure_logging, redact
from etl.runtime import prepare_for_bulk

app = typer.Typer(
    name="langfuse-etl",
    help="Your Langfuse data in a database you own: complete, current, provably so.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(help="Show or upgrade the revision of the database.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(db, name="db")
app.add_typer(demo, name="demo")
app.command("export")(export_command)
app.command()(backfill)
app.command()(verify)
app.command()(report)


def main() -> None:
    """Entry point: expected failures are one line on stderr and an exit code, never a traceback."""
    prepare_for_bulk()
    try:
        _require_text(sys.argv[1:])
        # Without its standalone mode, click returns the code of a `typer.Exit`.
        code = app(prog_name="langfuse-etl", standalone_mode=False)
        if code == ShutdownRequested.exit_code:
            _leave(code)
        sys.exit(code)
    except (typer.Abort, KeyboardInterrupt):
        _say_failure("interrupted", ShutdownRequested.exit_code)
        _leave(ShutdownRequested.exit_code)
    except EtlError as error:
        _say_failure(str(error), error.exit_code)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        usage = getattr(error, "format_message", None)  # click's own errors: a wrong option, a missing argument
        if usage is not None:
            _explain_usage(error, usage())
            sys.exit(2)
        logging.getLogger(__name__).debug("unexpected failure", exc_info=True)
        # Where it happened, without the message: that may hold data.
        people.print(redact("".join(traceback.format_tb(error.__traceback__))), style="dim")
        _say_failure(f"unexpected {type(error).__name__}; this is a bug, please report it with the lines above", 1)
        sys.exit(1)
    finally:
        opened.close()


def _explain_usage(error: Exception, message: str) -> None:
    """A wrong line names the help of its own command; a command group alone shows its help, which is no error text."""
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{message}\n")
        return
    command = getattr(getattr(error, "ctx", None), "command_path", None) or "langfuse-etl"
    _say_failure(f"{message} (see `{command} --help`)", 2)


def _require_text(arguments: list[str]) -> None:
    """
    Raises:
        typer.BadParameter: The shell handed over bytes that are no UTF-8; nothing that is stored has such a name.
    """
    for number, argument in enumerate(arguments, 1):
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise typer.BadParameter(f"argument {number} ({argument!a}) is not text in UTF-8")


def _leave(code: int) -> NoReturn:
    """Ends the process without waiting for requests under way: what they bring is not wanted any more."""
    sys.stderr.flush()
    os._exit(code)


def _say_failure(message: str, exit_code: int) -> None:
    if "--json" in sys.argv:
        with suppress(StdoutError):  # it is said on stderr as well
            print_json(failure(message, "interrupted" if exit_code == ShutdownRequested.exit_code else "failed"))
    say_error(message)


@app.callback()
def common(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="PATH", help="Settings file; default ./config.yaml if present.")
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR, on stderr; default WARNING, for `run` INFO.")
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=lambda on: _print_version(on))
    ] = False,
) -> None:
    """Your Langfuse data in a database you own: complete, current, provably so.

    Try it without an account: langfuse-etl demo
    """
    choose_settings_file(config)
    usual = "INFO" if context.invoked_subcommand == "run" else "WARNING"
    configure_logging((log_level or usual).upper(), log_json)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_text(f"langfuse-etl {__version__}\n")
        raise typer.Exit


@app.command()
def check(as_json: json_option = False) -> None:
    """Check configuration, database, keys, server and clocks; change nothing.

    Example: langfuse-etl check
    """
    from etl.cli.context import settings
    from etl.service.check import run_checks

    checks = run_checks(settings)
    if as_json:
        print_json(views.checks_document(checks))
    else:
        views.print_checks(checks)
    code = next((one.exit_code for one in checks if not one.ok), 0)
    if code:
        raise typer.Exit(code)


@app.command("sync")
def sync_command(
    project: Annotated[
        list[str] | None, typer.Option(help="Only this project of the configuration; repeatable.")
    ] = None,
    stream: Annotated[
        list[str] | None, typer.Option(help="Only this stream (traces, observations, scores, sessions); repeatable.")
    ] = None,
    as_json: json_option = False,
) -> None:
    """Copy what is new, late or missing, once.

    Example: langfuse-etl sync --project default --stream traces
    """
    from etl.cli.context import exit_with, settings, stop_on_signals, writable
    from etl.service.sync import choose_projects, sync_projects
    from etl.settings import STREAMS

    unknown = sorted(set(stream or ()) - set(STREAMS))
    if unknown:
        raise typer.BadParameter(f"unknown stream {', '.join(unknown)}; allowed: {', '.join(STREAMS)}")
    config = settings()
    chosen = choose_projects(config, project or [])
    stop = threading.Event()
    with stop_on_signals(stop), writable(config) as (engine, owner), sync_progress(not as_json) as on_progress:
        reports = sync_projects(
            config, engine, owner, projects=chosen, streams=stream or [], trigger="sync", stop=stop,
            on_progress=on_progress,
        )  # fmt: skip
    views.show_sync("sync", reports, as_json)
    exit_with(reports)


@app.command("run")
def run_command() -> None:
    """Run in the background of everything: every project on its schedule, until SIGTERM or Ctrl-C.

    Listens on `service.listen`: / is a page for people, /metrics for Prometheus, /healthz and /readyz for monitors.
    SIGHUP reads the configuration again.

    Example: langfuse-etl run
    """
    from etl.cli.context import engine_of, say_copy, settings
    from etl.service.daemon import Daemon

    config = settings()
    Daemon(config, engine_of(config), reload=settings, on_copy=say_copy).run()
    opened.close()
    _leave(0)


@app.command()
def status(as_json: json_option = False) -> None:
    """Show how far every project and stream is, and whether anything is missing.

    Example: langfuse-etl status --json
    """
    from etl.cli.context import settings
    from etl.service.status import status_report

    document = status_report(settings(require_projects=False))
    if as_json:
        print_json(document)
    else:
        views.print_status(document)


@db.command("upgrade")
def db_upgrade() -> None:
    """Create the tables, or bring them to this version's revision. SQLite files are copied before.

    Example: langfuse-etl db upgrade
    """
    from etl.cli.context import settings, upgraded_engine
    from etl.load.migrate import head_revision

    upgraded_engine(settings(require_projects=False))
    say(f"the database has revision {head_revision()}")


@db.command("current")
def db_current(as_json: json_option = False) -> None:
    """Print the revision of the database, and the one this version needs.

    Example: langfuse-etl db current
    """
    from etl.cli.context import engine_of, settings
    from etl.load.migrate import current_revision, head_revision

    revision = current_revision(engine_of(settings(require_projects=False)))
    if as_json:
        print_json({"revision": revision, "head": head_revision()})
    else:
        print_text(f"{revision or 'none'} (this version: {head_revision()})\n")


@db.command("search")
def db_search(
    state: Annotated[str, typer.Argument(metavar="on|off", help="Prepare the database for searching, or undo that.")],
) -> None:
    """Switch full-text search in inputs and outputs on or off; it costs space, and a little time for each row written.

    Example: langfuse-etl db search on
    """
    from etl.cli.context import engine_of, settings
    from etl.load.migrate import require_current
    from etl.load.search import switch_search_off, switch_search_on

    if state not in ("on", "off"):
        raise typer.BadParameter(f"{state}: allowed are on, off")
    engine = engine_of(settings(require_projects=False))
    require_current(engine)
    if state == "on":
        switch_search_on(engine)
        say("search is on; docs/sql.md shows how to ask")
    else:
        switch_search_off(engine)
        say("search is off")
