"""Commands and what they print; no logic of its own."""

import os
import sys

__all__ = ["main"]


def main() -> None:
    """Entry point. Loading all that the commands need takes a moment: Ctrl-C in it ends without a traceback, too."""
    try:
        from etl.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.stderr.flush()
        os._exit(130)
    run()
