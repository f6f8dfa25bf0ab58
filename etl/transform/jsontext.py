"""JSON text that keeps every value: big integers, long decimals, lone surrogates, NUL.

orjson does the work wherever it is exact. It is not exact for integers above 64 bits (it gives a float), and it
refuses lone surrogates and deep nesting; simplejson takes over there, because it alone writes `Decimal` as a number.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, NamedTuple

import orjson
import simplejson

# A number where a double might not be enough: 17 or more digits, or an exponent. Numbers follow one of `:,[`.
_LONG_NUMBER = re.compile(rb"[:,\[]\s*(-?\d(?:[\d.]{16,}(?:[eE][-+]?\d+)?|[\d.]*[eE][-+]?\d+))")
_INT64_DIGITS = 18
_NUL_ESCAPE = b"\\u0000"


class JsonTextError(ValueError):
    """The text is not JSON, or is nested too deeply to be read."""


class Parsed(NamedTuple):
    """A value, and whether all of it is `plain`: no NUL, no lone surrogate, no number beyond 64 bits."""

    value: Any
    plain: bool


def parse(body: bytes) -> Parsed:
    """The value of a JSON text in UTF-8; floats are exact, or `Decimal` where a double would lose digits.

    Raises:
        JsonTextError: `body` is no JSON (`NaN` and `Infinity` are none), or nested deeper than Python can follow.
    """
    if all(_fits_machine_number(match[1]) for match in _LONG_NUMBER.finditer(body)):
        try:
            return Parsed(orjson.loads(body), plain=_NUL_ESCAPE not in body)
        except orjson.JSONDecodeError:
            pass  # lone surrogates, or no JSON at all: the exact parser knows
    try:
        text = body.decode("utf-8", "surrogatepass")
        return Parsed(simplejson.loads(text, parse_float=_exact, parse_constant=_refuse), plain=False)
    except (ValueError, RecursionError) as error:
        raise JsonTextError("not JSON, or nested too deeply") from error


def loads(text: str) -> Any:
    """The value of a JSON text that `dumps` wrote, or that a database gave back."""
    return parse(text.encode("utf-8", "surrogatepass")).value


def dumps(value: Any) -> str:
    """Compact JSON text with sorted keys; the same text for equal values, whatever parser read them."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:  # orjson.JSONEncodeError: a surrogate, a Decimal, a big integer or deep nesting
        text: str = simplejson.dumps(value, sort_keys=True, separators=(",", ":"), use_decimal=True)
        return text


def dumps_indented(value: Any) -> str:
    """JSON for people: indent 2, keys in the order given, nothing escaped that UTF-8 can hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()
    except TypeError:
        text = simplejson.dumps(value, indent=2, ensure_ascii=False, use_decimal=True)
        return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def holdable(value: Any) -> Any:
    """`value` with what a column cannot hold replaced: NUL and lone surrogates by their escapes, huge numbers by null.

    Returns the very same object if there is nothing to replace, so that `is` tells.
    """
    if isinstance(value, str):
        return _UNHOLDABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value) if _UNHOLDABLE.search(value) else value
    if isinstance(value, Decimal):
        return value if abs(value.adjusted()) < _JSONB_MAX_EXPONENT else None
    if isinstance(value, list):
        items = [holdable(item) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict):
        pairs = [(holdable(key), holdable(item)) for key, item in value.items()]
        same = all(k is old_k and v is old_v for (k, v), (old_k, old_v) in zip(pairs, value.items(), strict=True))
        return value if same else dict(pairs)
    return value


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_UNHOLDABLE = re.compile("[\x00\ud800-\udfff]")
# Postgres 18 manual, 8.1.2: numeric holds 131,072 digits before and 16,383 after the point.
_JSONB_MAX_EXPONENT = 16_000


def _fits_machine_number(token: bytes) -> bool:
    text = token.decode()
    if text.lstrip("-").isdigit():
        return len(text.lstrip("-")) <= _INT64_DIGITS
    return _is_exact(text)


def _is_exact(text: str) -> bool:
    return Decimal(text) == Decimal(repr(float(text)))


def _exact(text: str) -> float | Decimal:
    return float(text) if _is_exact(text) else Decimal(text)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
