"""What every command needs: settings, the database, and an orderly end on a signal."""

from __future__ import annotations

import gc
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Engine

from etl.cli.invocation import chosen_settings_file, opened
from etl.cli.output import say
from etl.config import Config, load_config
from etl.load.engine import open_engine
from etl.load.lease import Owner
from etl.load.migrate import current_revision, head_revision, require_current, upgrade
from etl.pipeline.report import RunReport
from etl.service.lease import write_lease


def settings(*, require_projects: bool = True, overrides: Mapping[str, Any] | None = None) -> Config:
    """The settings of this command; see `config.load_config`.

    Raises:
        ConfigError: With every mistake.
    """
    return load_config(chosen_settings_file(), require_projects=require_projects, overrides=overrides)


def engine_of(config: Config) -> Engine:
    """The database of the settings, as it is; closed at the end of the command, when SQLite tidies up its files."""
    gc.freeze()  # what the command loaded stays for good, the collector need not walk it again and again
    engine = open_engine(config.database.url, config.database.schema_)
    opened.callback(engine.dispose)
    return engine


def upgraded_engine(config: Config) -> Engine:
    """The database of the settings, made or brought to this version's revision.

    Raises:
        DatabaseRefusedError: It is not ours, or newer than this version.
        LeaseHeldError: It needs an upgrade, and another process writes to it.
    """
    engine = engine_of(config)
    if current_revision(engine) != head_revision():
        with write_lease(engine, on_copy=say_copy):
            pass  # taking it upgrades
    return engine


@contextmanager
def writable(config: Config) -> Iterator[tuple[Engine, Owner]]:
    """The database of the settings, upgraded, and the lease on it for as long as the block runs; see `write_lease`."""
    engine = engine_of(config)
    with write_lease(engine, on_copy=say_copy) as owner:
        yield engine, owner


def say_copy(copy: Path) -> None:
    """Tells where the copy of a SQLite file is that was made before an upgrade."""
    say(f"the database was upgraded to revision {head_revision()}; the copy from before is {copy}")


@contextmanager
def unchanged_engine(config: Config) -> Iterator[Engine]:
    """The database of the settings as it is; where there is none yet, an empty one that is thrown away.

    Raises:
        DatabaseRefusedError: It is not ours, or of another revision.
    """
    engine = engine_of(config)
    if current_revision(engine) is not None:
        require_current(engine)
        yield engine
        return
    with tempfile.TemporaryDirectory() as folder:
        empty = open_engine(f"sqlite:///{Path(folder) / 'empty.db'}", "public")
        try:
            upgrade(empty)
            yield empty
        finally:
            empty.dispose()


def exit_with(reports: Sequence[RunReport]) -> None:
    """Ends the command with the exit code of the first project that has one; returns if none has."""
    code = next((report.exit_code for report in reports if report.exit_code), 0)
    if code:
        raise typer.Exit(code)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """The first SIGINT or SIGTERM sets `stop`, so that the page at hand is stored; the second ends at once."""

    def on_signal(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        say("stopping after the page at hand; once more to stop at once")

    before = {name: signal.signal(name, on_signal) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
