"""Reads a settings file: YAML with its traps taken out.

Only text, numbers, true, false and null are recognised. `5m`, `1:30`, `on`, `010` and `2025-01-01` stay text, so
that each setting can judge what was really written. A key given twice is a mistake, not a silent override.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from etl.errors import ConfigError

_BYTE_ORDER_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}


def read_mapping(path: Path) -> tuple[dict[str, Any], list[str]]:
    """The settings in a YAML file.

    Returns:
        The top-level mapping, empty for an empty file; and a line for every key that is given twice.
    Raises:
        ConfigError: The file cannot be read, is not UTF-8, is not YAML, or does not hold a mapping. The text names
            file, line and column, and never quotes the line: it may hold a password.
    """
    text = _read_text(path)
    try:
        loader = _Loader(text)
        content = loader.get_single_data()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_problem(path, error)) from None
    except yaml.reader.ReaderError as error:  # no mark, only an offset
        line, column = _line_and_column(text, error.position)
        code = error.character if isinstance(error.character, int) else ord(error.character)
        raise ConfigError(f"{path}, line {line}, column {column}: the character U+{code:04X} is not allowed") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply; settings have at most four levels") from None
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f'{path}: not readable as YAML; expected lines such as "sync:" and "  every: 5m"') from None
    if content is None:
        return {}, loader.problems_in(path)
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: holds {_kind(content)} where sections are expected; begin with lines such as"
            ' "sync:" and "  every: 5m"'
        )
    return content, loader.problems_in(path)


class _Loader(yaml.SafeLoader):
    """A safe loader that resolves the few types of YAML 1.2's core schema and notices duplicate keys."""

    # Not the inherited mapping: that one knows dates, octal numbers, base 60 and yes/no/on/off.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - PyYAML's own way

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.duplicates: list[tuple[str, yaml.Mark]] = []

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As inherited, but keys must be text and duplicates are noted."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, "a key that is not text", key_node.start_mark)
            if key in seen:
                self.duplicates.append((key, key_node.start_mark))
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def problems_in(self, path: Path) -> list[str]:
        """One line for each key that was given again."""
        return [
            f"{path}, line {mark.line + 1}, column {mark.column + 1}: '{key}' is given twice; keep one of them"
            for key, mark in self.duplicates
        ]


for _tag, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("merge", r"<<$", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or type(error).__name__}") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if encoding or b"\x00" in content:
        raise ConfigError(f"{path}: is {encoding or 'UTF-16 or binary'}; save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from None


def _syntax_problem(path: Path, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else f"{path}"
    problem = error.problem or error.context or "not YAML"
    return f"{place}: {problem}; expected {_expected(problem)}"


def _expected(problem: str) -> str:
    """The remedy for a complaint of PyYAML's."""
    if "'\\t'" in problem or "tab" in problem:
        return "spaces: YAML does not allow tabs for indentation"
    if "constructor for the tag" in problem:
        return "plain values without tags (a value that begins with ! needs quotes)"
    if "undefined alias" in problem:
        return "quotes around a value that begins with *"
    if "a key that is not text" in problem or "unhashable" in problem:
        return "the name of a setting"
    if "'%'" in problem or "'@'" in problem or "'`'" in problem:
        return "quotes around a value that begins with one of % @ `"
    if "another document" in problem:
        return "one document, without a second '---'"
    return '"name: value" in every line, lines of one section indented by the same number of spaces'


def _line_and_column(text: str, position: int) -> tuple[int, int]:
    before = text[:position]
    return before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1


def _kind(content: object) -> str:
    return "a list" if isinstance(content, list) else "a single value"
