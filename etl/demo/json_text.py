"""JSON text as Langfuse writes it: compact, UTF-8, not ASCII-escaped.

orjson does the work; the standard library takes over for what orjson refuses (integers above 64 bits and lone
surrogates, which a real server can send).
"""

import json
from typing import Any

import orjson


def dumps(value: Any) -> bytes:
    """Compact JSON. A lone surrogate is written as its `\\ud800` escape, as JavaScript does."""
    try:
        return orjson.dumps(value)
    except (orjson.JSONEncodeError, TypeError):
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
        try:
            return text.encode()
        except UnicodeEncodeError:
            return json.dumps(value, separators=(",", ":")).encode()


def loads(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError if `text` is not JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return json.loads(text)
