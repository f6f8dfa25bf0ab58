"""Query parameters, checked as the zod schemas of Langfuse check them, with the same issues in a 400."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etl.demo.answers import Issue, invalid_data
from etl.demo.times import ISO_PATTERN, is_iso, parse_ms

Params = Mapping[str, list[str]]
Check = Callable[[float], Issue | None]


class Reader:
    """Reads the parameters of one request; issues are collected in the order of reading and raised by `done`."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self._issues: list[Issue] = []

    def text(self, name: str) -> str | None:
        """The value as it stands (an empty one too); None if absent. Given twice it is an issue."""
        values = self._params.get(name)
        if not values:
            return None
        if len(values) > 1:
            self._issues.append(type_issue([name], "string", "array"))
        return values[0]

    def texts(self, name: str) -> list[str] | None:
        """One value is split at its commas, repeated ones are taken literally."""
        values = self._params.get(name)
        if not values:
            return None
        return values[0].split(",") if len(values) == 1 else values

    def repeated(self, name: str) -> list[str] | None:
        """Every value, none split."""
        return self._params.get(name) or None

    def moment_ms(self, name: str) -> int | None:
        """A datetime with zone, cut to milliseconds."""
        text = self.text(name)
        if text is None:
            return None
        if not is_iso(text):
            self._issues.append(
                {
                    "origin": "string",
                    "code": "invalid_format",
                    "format": "datetime",
                    "pattern": f"/{ISO_PATTERN}/",
                    "path": [name],
                    "message": "Invalid ISO datetime",
                }
            )
            return None
        return parse_ms(text)

    def option(self, name: str, values: Sequence[str]) -> str | None:
        """One of `values`."""
        text = self.text(name)
        if text is not None and text not in values:
            self.issue(option_issue([name], values))
        return text

    def page(self, *, whole: bool) -> float:
        """Page number from 1; 3.x lets a fraction through to the database (`whole=False`)."""
        return self._number("page", 1, [*([_is_int("page")] if whole else []), _above("page", 0)])

    def limit(self, most: int, least: int = 1) -> int:
        return int(self._number("limit", 50, [_is_int("limit"), _at_least("limit", least), _at_most("limit", most)]))

    def issue(self, issue: Issue) -> None:
        self._issues.append(issue)

    def done(self) -> None:
        """Raise the 400 if anything was wrong."""
        if self._issues:
            raise invalid_data(self._issues)

    def _number(self, name: str, default: int, checks: Sequence[Check]) -> float:
        values = self._params.get(name)
        if not values or values == [""]:
            return default
        number = js_number(values[0]) if len(values) == 1 else math.nan
        if math.isnan(number):
            self._issues.append(
                {
                    "expected": "number",
                    "code": "invalid_type",
                    "received": "NaN",
                    "path": [name],
                    "message": "Invalid input: expected number, received NaN",
                }
            )
            return default
        for check in checks:
            issue = check(number)
            if issue is not None:
                self._issues.append(issue)
                return default
        return number


def js_number(text: str) -> float:
    """`Number(text)` of JavaScript; NaN for what is no finite number."""
    text = text.strip()
    if not text:
        return 0
    try:
        number = float(int(text, 16)) if text[:2].lower() == "0x" else float(text.replace("_", "x"))
    except ValueError:
        return math.nan
    return number if math.isfinite(number) else math.nan


def option_issue(path: list[str | int], values: Sequence[str]) -> Issue:
    listed = "|".join(f'"{value}"' for value in values)
    return {
        "code": "invalid_value",
        "values": list(values),
        "path": path,
        "message": f"Invalid option: expected one of {listed}",
    }


def type_issue(path: list[str | int], expected: str, received: str) -> Issue:
    return {
        "expected": expected,
        "code": "invalid_type",
        "path": path,
        "message": f"Invalid input: expected {expected}, received {received}",
    }


def js_type(value: Any) -> str:
    """The name zod gives the type of a JSON value; Ellipsis stands for an absent key."""
    if value is ...:
        return "undefined"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def _is_int(name: str) -> Check:
    def check(number: float) -> Issue | None:
        if number == math.floor(number):
            return None
        return {
            "expected": "int",
            "format": "safeint",
            "code": "invalid_type",
            "path": [name],
            "message": "Invalid input: expected int, received number",
        }

    return check


def _above(name: str, bound: int) -> Check:
    def check(number: float) -> Issue | None:
        return None if number > bound else _small(name, bound, inclusive=False, sign=">")

    return check


def _at_least(name: str, bound: int) -> Check:
    def check(number: float) -> Issue | None:
        return None if number >= bound else _small(name, bound, inclusive=True, sign=">=")

    return check


def _at_most(name: str, bound: int) -> Check:
    def check(number: float) -> Issue | None:
        if number <= bound:
            return None
        return {
            "origin": "number",
            "code": "too_big",
            "maximum": bound,
            "inclusive": True,
            "path": [name],
            "message": f"Too big: expected number to be <={bound}",
        }

    return check


def _small(name: str, bound: int, *, inclusive: bool, sign: str) -> Issue:
    return {
        "origin": "number",
        "code": "too_small",
        "minimum": bound,
        "inclusive": inclusive,
        "path": [name],
        "message": f"Too small: expected number to be {sign}{bound}",
    }
