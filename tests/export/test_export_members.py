"""A large JSON object read piece by piece."""

from __future__ import annotations

import io
import json
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.export.members import members

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def read(text: str) -> dict[str, Any]:
    return {
        name: list(value) if name == "files" else value
        for name, value in members(io.StringIO(text, newline=""), "files")
    }


@given(
    st.dictionaries(st.text(max_size=5), values, max_size=4),
    st.lists(values, max_size=5),
    st.integers(0, 4),
    st.sampled_from([None, 0, 3]),
    st.integers(1, 12),
)
def test_any_object_is_read_as_it_is_wherever_the_pieces_end(
    others: dict[str, Any], files: list[Any], place: int, indent: int | None, piece: int
) -> None:
    others.pop("files", None)
    pairs = list(others.items())
    item = dict([*pairs[:place], ("files", files), *pairs[place:]])
    text = f" {json.dumps(item, indent=indent)}\n"

    with mock.patch("etl.export.members._CHUNK_CHARACTERS", piece):
        assert item == read(text)
        assert list(item) == [name for name, _ in members(io.StringIO(text), "files")]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "3", "{", '{"a"', '{"a":', '{"a":1', '{"a":1,}', '{"a":1} x', '{"a":1}{', '{1:2}', '{"a" 1}',
     '{"files":3}', '{"files":[1', '{"files":[1,]}', '{"files":[1 2]}', '{"files":[1}', '{"files":[]]}', "{'a':1}"],
)  # fmt: skip
def test_what_is_no_object_is_said_to_be_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read(text)


def test_a_long_list_is_never_in_memory_as_a_whole() -> None:
    class Counting(io.StringIO):
        read_so_far = 0

        def read(self, size: int | None = -1) -> str:
            piece = super().read(size)
            self.read_so_far += len(piece)
            return piece

    file = Counting(json.dumps({"files": [{"name": "x" * 100}] * 10_000, "after": 1}))
    found = members(file, "files")
    name, elements = next(found)

    assert (name, next(elements)) == ("files", {"name": "x" * 100})
    assert file.read_so_far < 100_000
    assert list(found) == [("after", 1)]
