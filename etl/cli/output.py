"""What commands print: data to stdout, everything said to people to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from etl.errors import StdoutError
from etl.logs import redact
from etl.transform.jsontext import dumps_indented

if TYPE_CHECKING:
    from etl.pipeline.run import Progress as OnProgress

_WIDTH_OF_FILES = 200

people = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def stdout() -> Iterator[TextIO]:
    """Where data goes; it is flushed at the end.

    Raises:
        StdoutError: It takes nothing: it was closed before the program began, or its disk is full.
    """
    if sys.stdout is None:
        raise StdoutError("nothing can be printed, stdout is closed; what was done stays done")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read it has seen enough
        raise
    except OSError as error:
        # What is still to be printed would fail again at the end of the program.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StdoutError(f"stdout cannot be written ({error.strerror}); what was done stays done") from None


def print_text(text: str) -> None:
    """Lines on stdout."""
    with stdout() as out:
        out.write(text)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    with stdout() as out:
        out.buffer.write(dumps_indented(document) + b"\n")


def failure(error: str, status: str = "failed") -> dict[str, str]:
    """What the document of every command begins with that came to nothing: `{status, error}`, a line for each problem.

    Args:
        status: `failed` or `interrupted`.
    """
    return {"status": status, "error": redact(error)}


def say(text: str) -> None:
    """One line for people, on stderr."""
    people.print(redact(text))


def say_error(text: str) -> None:
    """A failure, one line for each problem, on stderr."""
    for line in text.splitlines() or [""]:
        people.print(redact(f"error: {line}"), style="red")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table on stdout, for people."""
    table = Table(title=title, title_justify="left", highlight=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    with stdout() as out:
        # In a pipe or a file nothing is folded to the width of a terminal that is not there.
        Console(markup=False, highlight=False, width=None if out.isatty() else _WIDTH_OF_FILES).print(table)


@contextmanager
def progress_bar(wanted: bool, unit: str) -> Iterator[Callable[[int, int, str], None]]:
    """A callback that takes what is done, what there is to do and a text, and moves a bar on a terminal."""
    if not wanted or not people.is_terminal:
        yield lambda done, total, text: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=people, transient=True) as progress:
        task = progress.add_task("")
        yield lambda done, total, text: progress.update(task, completed=done, total=total, description=text)


@contextmanager
def sync_progress(wanted: bool) -> Iterator[OnProgress]:
    """A bar for runs: windows done of windows planned, and the rows read so far."""
    with progress_bar(wanted, "windows") as move:
        yield lambda report, done, planned: move(done, planned, f"{report.project}: {report.total('rows_read'):,} rows")
