"""The members of a large JSON object, read piece by piece: a long list in it is never in memory as a whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_NO_SPACE = re.compile(r"[^ \t\r\n]")
_DECODER = json.JSONDecoder()
_CHUNK_CHARACTERS = 1 << 16


def members(file: TextIO, long_list: str) -> Iterator[tuple[str, Any]]:
    """Name and value of each member of the object in `file`, in order.

    The value of `long_list` is an iterator over its elements, good until the next member is asked for.

    Raises:
        ValueError: The file holds no JSON object, or something else in the place of the list.
        RecursionError: A value is nested too deeply.
    """
    text = _Text(file)
    text.take("{")
    mark = text.take("}") if text.peek() == "}" else ","
    while mark == ",":
        name = text.value()
        if type(name) is not str:
            raise ValueError("a name was expected")
        text.take(":")
        if name == long_list:
            elements = _elements(text)
            yield name, elements
            for _ in elements:
                pass
        else:
            yield name, text.value()
        mark = text.take(",}")
    if text.peek():
        raise ValueError("something follows the object")


def _elements(text: _Text) -> Iterator[Any]:
    text.take("[")
    mark = text.take("]") if text.peek() == "]" else ","
    while mark == ",":
        yield text.value()
        mark = text.take(",]")


class _Text:
    """A file of which a piece is in memory."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._piece = ""
        self._at = 0
        self._is_last = False

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            found = _NO_SPACE.search(self._piece, self._at)
            self._at = found.start() if found else len(self._piece)
            if found or self._is_last:
                return found[0] if found else ""
            self._read_on()

    def take(self, expected: str) -> str:
        """Steps over one of these characters."""
        found = self.peek()
        if not found or found not in expected:
            raise ValueError(f"one of {expected} was expected")
        self._at += 1
        return found

    def value(self) -> Any:
        """Steps over a whole value."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._piece, self._at)
            except ValueError:
                if self._is_last:
                    raise
            else:
                if end < len(self._piece) or self._is_last:  # more digits may follow a number at the end of a piece
                    self._at = end
                    return value
            self._read_on()

    def _read_on(self) -> None:
        # At least as much as there is, so that a long value is not tried again too often.
        more = self._file.read(max(_CHUNK_CHARACTERS, len(self._piece) - self._at))
        self._piece = self._piece[self._at :] + more
        self._at = 0
        self._is_last = not more
