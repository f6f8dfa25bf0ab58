"""How a command ended."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)
