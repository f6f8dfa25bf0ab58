"""Paths into a trace, and what they find as text."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.export.paths import MISSING, find, matches, name_text

ITEM = {
    "name": "n",
    "metadata": {"message_id": 17400353, "a.b": {"c": 1}, "a": {"b": {"c": 2}, "d": 3}, "": 4, "list": [{"x": 5}]},
    "tags": ["t0", "t1"],
}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("name", "n"),
        ("metadata.message_id", 17400353),
        ("metadata.a.b.c", 1),
        ("metadata.a.d", 3),
        ("metadata.", 4),
        ("metadata.list.0.x", 5),
        ("tags.1", "t1"),
        ("tags.01", "t1"),
        ("tags.2", MISSING),
        ("tags.-1", MISSING),
        ("tags.²", MISSING),
        ("tags.x", MISSING),
        ("name.x", MISSING),
        ("metadata.absent", MISSING),
        ("", MISSING),
        ("metadata.a.b.x", MISSING),
    ],
)
def test_a_path_finds_what_it_leads_to(path: str, expected: Any) -> None:
    assert expected == find(ITEM, path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("abc", "abc"),
        ("", None),
        (17400353, "17400353"),
        (17400353.0, "17400353"),
        (-0.0, "0"),
        (2**53 + 1, "9007199254740993"),
        (10**40, "1" + "0" * 40),
        (1e22, "1" + "0" * 22),
        (10**22, "1" + "0" * 22),
        (0.5, "0.5"),
        (1e-7, "1e-7"),
        (Decimal("0.12345678901234567890"), "0.1234567890123456789"),
        (None, None),
        (True, None),
        (False, None),
        ([1], None),
        ({"a": 1}, None),
        (MISSING, None),
    ],
)
def test_strings_and_numbers_name_a_file(value: Any, expected: str | None) -> None:
    assert expected == name_text(value)


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        ("metadata.message_id", "17400353", True),
        ("metadata.message_id", "17400353.0", False),
        ("name", "n", True),
        ("name", '"n"', False),
        ("public", "true", True),
        ("public", "True", False),
        ("userId", "null", True),
        ("absent", "null", False),
        ("absent", "", False),
        ("tags", '["a","b"]', True),
        ("metadata.o", '{"x":1,"y":2}', True),
    ],
)
def test_values_are_compared_as_text(path: str, text: str, expected: bool) -> None:
    metadata = {"message_id": 17400353.0, "o": {"y": 2, "x": 1.0}}
    item = {"name": "n", "public": True, "userId": None, "tags": ["a", "b"], "metadata": metadata}

    assert expected == matches(item, path, text)


keys = st.text("ab.", max_size=3)
trees = st.recursive(st.integers(), lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8)


@given(st.dictionaries(keys, trees, max_size=3), st.text("ab.", max_size=9))
def test_the_longest_key_that_is_there_wins(item: dict[str, Any], path: str) -> None:
    """Against a slower rule: of all keys that begin the path, follow the longest."""
    value: Any = item
    rest: str | None = path
    while rest is not None:
        fitting = [key for key in value if f"{rest}.".startswith(f"{key}.")] if isinstance(value, dict) else []
        if not fitting:
            assert find(item, path) is MISSING
            return
        key = max(fitting, key=len)
        value = value[key]
        rest = None if key == rest else rest[len(key) + 1 :]
    assert value == find(item, path)
