"""`langfuse-etl demo`: the whole way, with a mock server and recorded data; no account needed."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from etl.cli import views
from etl.cli.output import print_table, print_text, say, sync_progress
from etl.errors import ConfigError

if TYPE_CHECKING:
    from etl.config import Config

demo = typer.Typer(rich_markup_mode=None)

SESSION = "test_cases_alpha_20250806185514"
# A moment after the last row of the recorded data, wherever the clock of this machine stands.
_DATA_ENDS = datetime(2026, 11, 22, tzinfo=UTC)
_QUERIES = {
    "Usage per day and model (daily_usage)": (
        "SELECT day, model, calls, total_tokens, round(total_cost, 4) AS cost_usd FROM daily_usage"
        " ORDER BY day DESC, total_cost DESC LIMIT 5"
    ),
    "Sessions with the most traces (session_summary)": (
        "SELECT session_id, traces, observations, errors, total_tokens, round(total_cost, 4) AS cost_usd"
        " FROM session_summary ORDER BY traces DESC, session_id LIMIT 5"
    ),
    "What was read, and how far (sync_coverage)": (
        "SELECT stream, range_start, range_end, state FROM sync_coverage ORDER BY stream"
    ),
}
_MARK = ".langfuse-etl-demo"


@demo.callback(invoke_without_command=True)
def run_demo(
    context: typer.Context,
    api: Annotated[str, typer.Option(help="Generation of the mock server: v3 or v4.")] = "v3",
    directory: Annotated[Path, typer.Option(help="Folder for the database and the files.")] = Path("langfuse-demo"),
) -> None:
    """Start a mock Langfuse, sync it into a fresh SQLite file, export a session, ask three questions.

    Example: langfuse-etl demo --api v3
    """
    if context.invoked_subcommand is not None:
        return
    if api not in ("v3", "v4"):
        raise typer.BadParameter("--api: allowed are v3, v4")
    from sqlalchemy import text

    from etl.cli.context import engine_of
    from etl.demo import MockLangfuse, load_corpus
    from etl.export import Options, Selection, export_sessions
    from etl.load.engine import reading
    from etl.service.lease import write_lease
    from etl.service.sync import sync_projects

    _make_fresh(directory)
    now = max(datetime.now(UTC), _DATA_ENDS)
    with MockLangfuse(load_corpus(), api="v3" if api == "v3" else "v4", clock=lambda: now) as server:
        say(f"1. A mock Langfuse ({api}) answers at {server.base_url}, with 1,200 recorded traces.")
        config = _config(server.base_url, directory)
        engine = engine_of(config)
        say(f"2. Syncing it into {directory / 'langfuse.db'}")
        with write_lease(engine) as owner, sync_progress(True) as on_progress:
            reports = sync_projects(
                config, engine, owner, projects=config.projects, streams=(), trigger="demo",
                stop=threading.Event(), on_progress=on_progress, now=lambda: now,
            )  # fmt: skip
    views.show_sync("sync", reports, as_json=False)
    if any(report.exit_code for report in reports):
        raise typer.Exit(1)
    say(f"3. Exporting session {SESSION}")
    (exported,) = export_sessions(engine, Selection(sessions=(SESSION,)), Options(directory=config.export.directory))
    names = sorted(path.name for path in exported.directory.iterdir())
    print_text("".join(f"   {exported.directory / name}\n" for name in names[:5]))
    print_text(f"   ... {len(names)} files: one for each of {exported.traces} traces, and the manifest\n")
    say("4. Three questions, answered by SQL")
    with reading(engine) as conn:
        for title, query in _QUERIES.items():
            result = conn.execute(text(query))
            print_table(title, list(result.keys()), [tuple(row) for row in result])
    program, database, question = _program(), directory / "langfuse.db", "SELECT * FROM daily_usage LIMIT 5"
    say(
        f"Look around:   sqlite3 {database}\n"
        f'               or, without that program: {sys.executable} -c "import sqlite3;'
        f" print(*sqlite3.connect('{database}').execute('{question}'), sep='\\n')\"\n"
        "Your own data: set LANGFUSE_BASE_URL, LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY, then\n"
        f"               {program} check && {program} sync && {program} export SESSION"
    )


@demo.command("serve")
def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all networks.")] = "127.0.0.1",
    api: Annotated[str, typer.Option(help="v3, v4, or dual (v4 with both generations).")] = "v3",
    traces: Annotated[int, typer.Option(min=0, help="Generate so many traces; 0 serves the recorded data.")] = 0,
) -> None:
    """Only serve the mock Langfuse, and print its address and keys.

    Example: langfuse-etl demo serve --port 8000
    """
    from etl.demo import PUBLIC_KEY, SECRET_KEY, MockLangfuse, generate, load_corpus

    apis = {"v3": "v3", "v4": "v4", "dual": "dual"}
    if api not in apis:
        raise typer.BadParameter("--api: allowed are v3, v4, dual")
    dataset = generate(traces=traces) if traces else load_corpus()
    try:
        server = MockLangfuse(dataset, api=apis[api], host=host, port=port)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"--port {port}: {error.strerror}; choose another, or 0 for a free one") from None
    print_text(
        f"export LANGFUSE_BASE_URL={server.base_url}\n"
        f"export LANGFUSE_PUBLIC_KEY={PUBLIC_KEY}\n"
        f"export LANGFUSE_SECRET_KEY={SECRET_KEY}\n"
    )
    say("serving until interrupted (Ctrl-C)")
    # A shell that starts it in the background has SIGINT ignored; asked to stop, it stops all the same.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.default_int_handler)
    server.serve_forever()


def _program() -> str:
    """As it was called: `.venv/bin/langfuse-etl` from the Makefile."""
    called = sys.argv[0]
    return called if Path(called).name == "langfuse-etl" else f"{sys.executable} -m etl"


def _config(base_url: str, directory: Path) -> Config:
    from pydantic import SecretStr

    from etl.config import Config, Database, Export, Project
    from etl.demo import PUBLIC_KEY, SECRET_KEY

    project = Project(name="demo", base_url=base_url, public_key=PUBLIC_KEY, secret_key=SecretStr(SECRET_KEY))
    return Config(
        projects=(project,),
        database=Database(url=f"sqlite:///{(directory / 'langfuse.db').absolute()}"),
        export=Export(directory=directory / "result"),
    )


def _make_fresh(directory: Path) -> None:
    """Empties the folder of an earlier demo; a folder that the demo did not make is left alone.

    Raises:
        ConfigError: The folder holds something else.
    """
    if directory.exists():
        if not (directory / _MARK).is_file():
            raise ConfigError(f"{directory} exists and was not made by the demo; choose another with --directory")
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    (directory / _MARK).touch()
