"""Documents as text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from etl.transform.jsontext import dumps_indented

# Line breaks inside strings are escaped, so every real one is layout.
_LINE_START = re.compile(rb"\n( *)")
_BETWEEN_MEMBERS = re.compile(rb",\n *")
_INDENT_OF_DUMPS = 2


def render(item: Mapping[str, Any], indent: int) -> bytes:
    """`item` as JSON in UTF-8 with a line break at its end.

    Args:
        item: A document of `etl.transform.documents`.
        indent: Spaces per level; 0 for everything on one line.
    """
    text = dumps_indented(item)
    if indent == 0:
        text = _LINE_START.sub(b"", _BETWEEN_MEMBERS.sub(b", ", text))
    elif indent != _INDENT_OF_DUMPS:
        text = _LINE_START.sub(lambda match: b"\n" + b" " * (len(match[1]) // _INDENT_OF_DUMPS * indent), text)
    return text + b"\n"
