"""What one call of the program is about, before anything else is loaded: its settings file, what it opened, options."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

json_option = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]

opened = ExitStack()
"""What the command opened; it is closed at its end, however it ends."""

_chosen: dict[str, Path | None] = {"config": None}


def choose_settings_file(path: Path | None) -> None:
    """Notes `--config` for the command that follows."""
    _chosen["config"] = path


def chosen_settings_file() -> Path | None:
    """What `--config` named, if it was given."""
    return _chosen["config"]
