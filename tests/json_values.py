"""Generated JSON of every kind, and equality as design 5.2 has it: numbers exactly, key order and spelling not."""

from __future__ import annotations

import functools
from decimal import Decimal
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Machines differ in speed, and rows are large.
calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])

_ODD_TEXTS = [
    "",
    "\x00",
    "a\x00b",
    "\\u0000",
    "\ud800",
    "x\udfff",
    "\\ud800",
    "null",
    "1",
    "😀",
    "e\u0301",
    "\u2028",
    '"',
]
_ODD_NUMBERS: list[int | float | Decimal] = [
    0, -0.0, 1e-7, 1e22, 1e23, 5e-324, 1.7976931348623157e308, 0.1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1,
    2**64, 10**40, Decimal("1e400"), Decimal("-1e-400"), Decimal("0.1000000000000000055511151231257827"),
    Decimal("123456789012345678.5"), Decimal("1e99999"),
]  # fmt: skip


def any_text(*, plain: bool = False) -> st.SearchStrategy[str]:
    """Text, also of what no database takes; `plain` text is free of that."""
    if plain:
        return st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=8)
    lone = st.characters(categories=["Cs"])
    return st.sampled_from(_ODD_TEXTS) | st.text(st.characters(exclude_categories=[]) | lone, max_size=8).map(joined)


def joined(text: str) -> str:
    """`text` as JSON can hold it: two surrogates that form a pair are one character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def any_number(*, plain: bool = False) -> st.SearchStrategy[int | float | Decimal]:
    doubles = st.floats(allow_nan=False, allow_infinity=False)
    small = st.integers(-(10**17), 10**17)
    if plain:
        return small | doubles
    return st.sampled_from(_ODD_NUMBERS) | small | st.integers() | doubles | st.decimals(-1, 1, places=30).map(short)


def short(number: Decimal) -> float | Decimal:
    """A double if that is exactly the same number, as the parser has it."""
    double = float(number)
    return double if Decimal(repr(double)) == number else number


def any_json(*, plain: bool = False, max_leaves: int = 12) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | any_number(plain=plain) | any_text(plain=plain)
    keys = any_text(plain=plain)
    return st.recursive(
        scalars,
        lambda parts: st.lists(parts, max_size=4) | st.dictionaries(keys, parts, max_size=4),
        max_leaves=max_leaves,
    )


def exact(value: Any) -> Any:
    """`value` in a form where `==` is equality of JSON values."""
    if isinstance(value, bool) or value is None:
        return ("word", value)
    if isinstance(value, int | float | Decimal):
        return ("number", _decimal(value))
    if isinstance(value, str):
        return ("text", value)
    if isinstance(value, list):
        return [exact(part) for part in value]
    return {name: exact(part) for name, part in value.items()}


def equal(one: Any, other: Any) -> bool:
    return bool(exact(one) == exact(other))


@functools.lru_cache(maxsize=4096, typed=True)
def _decimal(number: int | float | Decimal) -> tuple[bool, str, int]:
    """Sign, digits and exponent: what was written, without trailing zeros. A double means its shortest text."""
    written = Decimal(repr(number)) if isinstance(number, float) else Decimal(number)
    sign, digits, exponent = written.as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).lstrip("0")
    kept = text.rstrip("0")
    return (bool(sign) and bool(kept), kept, exponent + len(text) - len(kept) if kept else 0)
