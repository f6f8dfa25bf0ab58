"""JSON text that keeps every value: big integers, long decimals, lone surrogates, NUL.

orjson does the work wherever it is exact. It is not exact for integers above 64 bits (it gives a float), and it
refuses lone surrogates and deep nesting; simplejson takes over there, because it alone writes `Decimal` as a number.
Whatever `parse` gives can be written again: both stop at the same depth.
"""

from __future__ import annotations

import re
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import orjson
import simplejson

# A number where a double might not be enough: 17 or more digits, or an exponent. Numbers follow one of `:,[`, or stand
# alone, as in a column that holds nothing else.
_LONG = rb"\s*(-?\d(?:[\d.]{16,}(?:[eE][-+]?\d+)?|[\d.]*[eE][-+]?\d+))"
# One pattern for each byte before it: a search for a single byte is many times faster than one for any of three.
_LONG_NUMBERS = [re.compile(before + _LONG) for before in (b":", b",", rb"\[")]
_LONG_NUMBER_ALONE = re.compile(_LONG)
# Most texts have none, which shows in a copy of the text where digits and points are zeros, what stands around a number
# is a comma, and signs and white space are gone: up to 15 digits with an exponent up to 99 are exact in a double.
_OUTLINE = bytes.maketrans(b"123456789.:[]}E", b"0000000000,,,,e")
_NO_OUTLINE = b"+- \t\r\n"
_SIXTEEN_DIGITS = b"0" * 16
_LARGE_EXPONENT = re.compile(rb"0e000+(?:,|\Z)")
_INT64_DIGITS = 18
# Python reads no integer of more digits (`sys.set_int_max_str_digits`); Postgres gives 1e9000 back with all its zeros.
_INT_DIGITS = 4_000
# The depth that orjson reads. Everything else here needs one frame of Python for each level.
_MAX_DEPTH = 1_024
_FRAMES = 4_000
sys.setrecursionlimit(max(sys.getrecursionlimit(), _FRAMES))
_NUL_ESCAPE = b"\\u0000"


class JsonTextError(ValueError):
    """The text is not JSON, or is nested too deeply to be read."""


class Parsed(NamedTuple):
    """A value, and whether all of it is `plain`: no NUL, no lone surrogate, no number beyond 64 bits."""

    value: Any
    plain: bool


class Spelled(NamedTuple):
    """A value, what `dumps_bytes` writes for it, and whether it is `plain` (`Parsed`)."""

    value: Any
    body: bytes
    plain: bool


def parse(body: bytes | bytearray) -> Parsed:
    """The value of a JSON text in UTF-8; floats are exact, or `Decimal` where a double would lose digits.

    Raises:
        JsonTextError: `body` is no JSON (`NaN` and `Infinity` are none), nested deeper than 1,024 levels, or holds a
            number with an exponent of 19 digits.
    """
    if not _may_have_long_number(body) or all(map(_fits_machine_number, _long_numbers(body))):
        try:
            return Parsed(orjson.loads(body), plain=_NUL_ESCAPE not in body)
        except orjson.JSONDecodeError as error:
            # Of JSON only lone surrogates, as escapes or in three bytes from ED on, and a leading mark are refused.
            if b"\\u" not in body and b"\xed" not in body and not body.startswith(BOM_UTF8):
                raise JsonTextError("not JSON, or nested too deeply") from error
    try:
        text = body.decode("utf-8", "surrogatepass")
        value = simplejson.loads(text, parse_float=_exact, parse_int=_whole, parse_constant=_refuse)
    except (ValueError, RecursionError, InvalidOperation) as error:
        raise JsonTextError("not JSON, or nested too deeply") from error
    if _is_deeper_than(_MAX_DEPTH, value):
        raise JsonTextError("nested too deeply")
    return Parsed(value, plain=False)


def loads(text: str) -> Any:
    """The value of a JSON text that `dumps` wrote, or that a database gave back."""
    return parse(text.encode("utf-8", "surrogatepass")).value


def loads_texts(text: str) -> Any:
    """`loads` of what holds no numbers: lists of texts, as a database puts them together."""
    return orjson.loads(text)


def loads_sorted(text: str) -> Spelled:
    """`loads`, with the keys of every object in order."""
    body = text.encode("utf-8", "surrogatepass")
    try:
        value = orjson.loads(body)
        if type(value) is str:  # no keys and no digits to lose
            return Spelled(value, body, plain=True)
        in_order = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
        if in_order == body:  # written again as it was read, so that not a digit was lost
            return Spelled(value, body, plain=True)
        # Postgres keeps another order, and puts spaces in between.
        if orjson.dumps(value).translate(None, b" ") == body.translate(None, b" "):
            return Spelled(orjson.loads(in_order), in_order, plain=True)
    except (orjson.JSONDecodeError, TypeError):
        pass
    value, plain = parse(body)
    in_order = dumps_bytes(value)
    return Spelled(orjson.loads(in_order) if plain else parse(in_order).value, in_order, plain)


def dumps(value: Any) -> str:
    """Compact JSON text with sorted keys; the same text for equal values, whatever parser read them."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError:
        return _dumps_exactly(value)


def dumps_bytes(value: Any) -> bytes:
    """`dumps` in UTF-8."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _dumps_exactly(value).encode()


def _dumps_exactly(value: Any) -> str:
    """What orjson refuses: a surrogate, a Decimal, a big integer or deep nesting."""
    text: str = simplejson.dumps(value, sort_keys=True, separators=(",", ":"), use_decimal=True)
    return text


def dumps_indented(value: Any) -> bytes:
    """JSON for people, in UTF-8: indent 2, keys in the order given, nothing escaped that UTF-8 can hold."""
    try:
        return orjson.dumps(value, option=orjson.OPT_INDENT_2)
    except TypeError:
        text = simplejson.dumps(value, indent=2, ensure_ascii=False, use_decimal=True)
        return _LONE_SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text).encode()


def holdable(value: Any) -> Any:
    """`value` with what a column cannot hold replaced: NUL and lone surrogates by their escapes, huge numbers by null.

    Returns the very same object if there is nothing to replace, so that `is` tells.
    """
    if isinstance(value, str):
        return _UNHOLDABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", value) if _UNHOLDABLE.search(value) else value
    if isinstance(value, Decimal):
        exponent = value.as_tuple().exponent
        fits = isinstance(exponent, int) and exponent > -_JSONB_DIGITS and value.adjusted() < _JSONB_DIGITS
        return value if fits else None
    if isinstance(value, list):
        items = value
        for index, item in enumerate(value):
            if (held := holdable(item)) is not item:
                items = list(value) if items is value else items
                items[index] = held
        return items
    if isinstance(value, dict):
        same = True
        pairs: dict[str, Any] = {}
        for key, item in value.items():
            held_key, held = holdable(key), holdable(item)
            same = same and held_key is key and held is item
            pairs[held_key] = held
        return value if same else pairs
    return value


_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_UNHOLDABLE = re.compile("[\x00\ud800-\udfff]")
# Postgres 18 manual, 8.1.2: numeric holds 131,072 digits before and 16,383 after the point.
_JSONB_DIGITS = 16_000


def _may_have_long_number(body: bytes | bytearray) -> bool:
    outline = body.translate(_OUTLINE, _NO_OUTLINE)
    if b"," + _SIXTEEN_DIGITS in outline or outline.startswith(_SIXTEEN_DIGITS):
        return True
    return _LARGE_EXPONENT.search(outline) is not None


def _long_numbers(body: bytes | bytearray) -> Iterator[bytes]:
    if alone := _LONG_NUMBER_ALONE.match(body):
        yield alone[1]
    for pattern in _LONG_NUMBERS:
        yield from pattern.findall(body)


def _fits_machine_number(token: bytes) -> bool:
    text = token.decode()
    if text.lstrip("-").isdigit():
        return len(text.lstrip("-")) <= _INT64_DIGITS
    return _is_exact(text)


def _whole(text: str) -> int | Decimal:
    return int(text) if len(text) <= _INT_DIGITS else Decimal(text)


def _is_deeper_than(levels: int, value: Any) -> bool:
    """Counts without calling itself, one level at a time."""
    level = [value]
    while levels > 0 and level:
        level = [
            part
            for item in level
            if isinstance(item, list | dict)
            for part in (item.values() if isinstance(item, dict) else item)
            if isinstance(part, list | dict)
        ]
        levels -= 1
    return bool(level)


def _is_exact(text: str) -> bool:
    try:
        return Decimal(text) == Decimal(repr(float(text)))
    except InvalidOperation:  # an exponent that no Decimal holds
        return False


def _exact(text: str) -> float | Decimal:
    return float(text) if _is_exact(text) else Decimal(text)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
