"""What an endpoint sees of the server and of the request."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from etl.demo.dataset import Dataset
from etl.demo.filters import Column, Condition, parse_filter
from etl.demo.pages import Selections, shuffle_ties
from etl.demo.query import Params, Reader
from etl.demo.table import Entry, Row

_SINCE = {
    "environment": (3, 31),
    "scores_v2": (3, 53),
    "fields": (3, 73),  # of the list of traces
    "filter": (3, 117),
    "observations_v2": (3, 133),  # which 3.x answers with a 404 of its own
    "fields_by_id": (3, 166),
    "scores_v3": (3, 179),
}
ALL_FEATURES = frozenset(_SINCE)


def features_of(version: str) -> frozenset[str]:
    """What a server of this version can do, of the things that came during v3."""
    major, minor, *_ = (int(part) for part in version.split("."))
    return frozenset(name for name, since in _SINCE.items() if (major, minor) >= since)


@dataclass(frozen=True, slots=True)
class Project:
    """The one project that the keys belong to; `retention_days` None keeps data forever."""

    id: str = "proj-shop"
    name: str = "shop-assistant"
    organization_id: str = "org-shop"
    organization_name: str = "Shop Assistants"
    retention_days: int | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it came; `number` counts from 1, `path` is decoded by nobody yet."""

    method: str
    path: str
    params: Params
    headers: Mapping[str, str]
    number: int = 0


class Guard(Protocol):
    """Refuses what a weak database would: raises the 422 of a timed-out query."""

    def __call__(self, matching: int, ids: Collection[str], *, heavy: bool, legacy: bool) -> None: ...


@dataclass(slots=True)
class Context:
    """One request at one server.

    Attributes:
        page_is_int: Whether a fraction as page number is a 400 (4.x) or reaches the database (3.x).
        overcount: Totals count rows that were put twice, where the real server's do.
        ties: Whether rows with equal sort keys change places from request to request.
    """

    dataset: Dataset
    request: Request
    project: Project
    version: str
    features: frozenset[str]
    selections: Selections
    guard: Guard
    overcount: bool = False
    ties: bool = False
    page_is_int: bool = field(init=False)

    def __post_init__(self) -> None:
        self.page_is_int = int(self.version.split(".")[0]) >= 4

    @property
    def params(self) -> Params:
        return self.request.params

    def total(self, entries: list[Entry], *, overcounted: bool) -> int:
        """`overcounted`: the real server counts this selection without looking for duplicates."""
        if self.overcount and overcounted:
            return sum(entry.sends for entry in entries)
        return len(entries)

    def conditions(self, read: Reader, columns: Mapping[str, Column], *, matches: bool = False) -> list[Condition]:
        """The `filter` parameter, which old servers ignore."""
        return parse_filter(read.text("filter"), columns, matches=matches) if "filter" in self.features else []

    def select(self, kind: str, unpaged: Iterable[str], select: Callable[[], list[Entry]]) -> list[Entry]:
        """A selection, remembered while the data stays; parameters named in `unpaged` do not shape it."""
        skipped = frozenset(unpaged)
        shape = tuple((name, *values) for name, values in sorted(self.params.items()) if name not in skipped)
        return self.selections.get((kind, self.dataset.version, shape), select)

    def tied(self, entries: list[Entry], sort_key: Callable[[Entry], Any]) -> list[Entry]:
        """The order of this very request."""
        return shuffle_ties(entries, sort_key, self.request.number) if self.ties else entries

    def render(self, entry: Entry, trace_id: str | None, shape: Any, make: Callable[[], Row]) -> bytes:
        """JSON of a row as this version of the server shows it."""
        if "environment" in self.features:
            return self.dataset.rendered(entry, trace_id, shape, make)
        return self.dataset.rendered(entry, trace_id, (shape, "old"), lambda: _without_environment(make()))


def _without_environment(row: Row) -> Row:
    return {name: value for name, value in row.items() if name != "environment"}


@dataclass(slots=True)
class Choice:
    """Which rows of a list are asked for: simple parameters by column, overruled by `filter` conditions."""

    simple: dict[str, Callable[[Row], bool]]
    conditions: list[Condition]
    from_ms: int | None
    to_ms: int | None

    def overrule(self, time_column: str) -> None:
        """A condition replaces every simple parameter on the same column; those on time become the window."""
        named = {condition.column.name for condition in self.conditions}
        for name in named:
            self.simple.pop(name, None)
        if time_column in named:
            self.from_ms = self.to_ms = None
            for condition in self.conditions:
                if condition.column.name == time_column and condition.kind == "datetime":
                    self._narrow(condition.operator, condition.value)
            self.conditions = [c for c in self.conditions if c.column.name != time_column or c.kind != "datetime"]

    def columns(self) -> set[str]:
        """Columns other than time that are looked at."""
        return {*self.simple, *(condition.column.name for condition in self.conditions)}

    def exact(self, column: str) -> str | None:
        """The only value that `column` may have, if a condition says so."""
        for condition in self.conditions:
            if condition.column.name == column and condition.kind == "string" and condition.operator == "=":
                value: str = condition.value
                return value
        return None

    def keep(self, entries: list[Entry]) -> list[Entry]:
        tests = [*self.simple.values(), *(condition.holds for condition in self.conditions)]
        return [entry for entry in entries if all(test(entry.row) for test in tests)] if tests else entries

    def _narrow(self, operator: str, value: int) -> None:
        if operator in (">=", ">"):
            bound = value + (operator == ">")
            self.from_ms = bound if self.from_ms is None else max(self.from_ms, bound)
        else:
            bound = value + (operator == "<=")
            self.to_ms = bound if self.to_ms is None else min(self.to_ms, bound)


def equals(column: str, value: str | None) -> dict[str, Callable[[Row], bool]]:
    """A simple parameter: exact match, off if absent. An empty one matches the empty text only."""
    return {} if value is None else {column: lambda row: row.get(column) == value}


def any_of(column: str, values: Iterable[Any] | None) -> dict[str, Callable[[Row], bool]]:
    if values is None:
        return {}
    wanted = frozenset(values)
    return {column: lambda row: row.get(column) in wanted}


def all_tags(values: Iterable[str] | None) -> dict[str, Callable[[Row], bool]]:
    if values is None:
        return {}
    wanted = frozenset(values)
    return {"tags": lambda row: wanted.issubset(row["tags"])}
