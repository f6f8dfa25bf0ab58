"""Values inside a trace by a path such as `metadata.message_id` or `tags.0`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from etl.transform.documents import canonical, whole_number
from etl.transform.jsontext import dumps


class _Missing:
    """There is nothing at the path; not the same as null."""


MISSING: Final = _Missing()


def find(item: Mapping[str, Any], path: str) -> Any:
    """The value at `path`, or `MISSING`.

    Steps are divided by dots. Where keys hold dots themselves the longest key that is there wins; a step into a list is
    an index from 0.
    """
    value: Any = item
    rest: str | None = path
    while rest is not None:
        value, rest = _step(value, rest)
    return value


def name_text(value: Any) -> str | None:
    """The text that names a file: strings and numbers; None for all that cannot name one."""
    if isinstance(value, str):
        return value or None
    return _number_text(value)


def matches(item: Mapping[str, Any], path: str, text: str) -> bool:
    """Whether the value at `path` reads `text`: a string as it is, anything else as compact JSON (`true`, `null`)."""
    value = find(item, path)
    if value is MISSING:
        return False
    return text == (value if isinstance(value, str) else _number_text(value) or dumps(canonical(value)))


def _number_text(value: Any) -> str | None:
    """A number as people write it: all digits of an integer, and no fraction that is zero."""
    if type(value) is int:
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    whole = whole_number(value)
    return dumps(canonical(value)) if whole is None else str(whole)


def _step(value: Any, path: str) -> tuple[Any, str | None]:
    """What the first step of a path leads to, and the rest of the path; None for its end."""
    if isinstance(value, dict):
        for key, rest in _ways(path):
            if key in value:
                return value[key], rest
    elif isinstance(value, list):
        index, rest = _ways(path)[-1]
        if index.isascii() and index.isdigit() and int(index) < len(value):
            return value[int(index)], rest
    return MISSING, None


@lru_cache(maxsize=256)
def _ways(path: str) -> tuple[tuple[str, str | None], ...]:
    """The keys that a path may begin with, the longest one first, and what is left of it then."""
    steps = path.split(".")
    shorter = ((".".join(steps[:n]), ".".join(steps[n:])) for n in range(len(steps) - 1, 0, -1))
    return ((path, None), *shorter)
