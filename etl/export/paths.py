"""Values inside a trace by a path such as `metadata.message_id` or `tags.0`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
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
    steps = path.split(".")
    while steps:
        taken, value = _step(value, steps)
        if value is MISSING:
            return MISSING
        steps = steps[taken:]
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


def _step(value: Any, steps: list[str]) -> tuple[int, Any]:
    """How many of the steps were taken, and where they led."""
    if isinstance(value, dict):
        for count in range(len(steps), 0, -1):
            key = ".".join(steps[:count])
            if key in value:
                return count, value[key]
    elif isinstance(value, list) and steps[0].isascii() and steps[0].isdigit():
        index = int(steps[0])
        if index < len(value):
            return 1, value[index]
    return 1, MISSING
