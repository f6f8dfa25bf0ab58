"""Commands and what they print; no logic of its own."""

from etl.cli.app import main

__all__ = ["main"]
