"""What follows from the observations of a trace: its metrics, and on v4 the trace itself.

Metrics: the formulas of GET /traces/{id}, checked against all 1,200 traces of the recorded data set: every latency and
every cost agrees to the last digit. The trace: langfuse packages/shared/src/server/queries/clickhouse-sql/
event-query-builder.ts, the aggregation by which the server itself makes traces of observations. Where that leaves a
choice (two observations with the same `updatedAt`), the later start decides, then the larger id.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, NamedTuple

from etl.transform.fields import TRACE_V2
from etl.transform.jsontext import dumps, loads
from etl.transform.rows import Row, exact_text, exact_values, row_hash

# The server adds costs as decimals with 12 places (ClickHouse `Decimal64(12)`); adding doubles would differ.
COST_UNITS_PER_USD = 10**12
_EPOCH_MS = 1000

# The columns of observations that `whole_trace` needs, and those that it takes from the root, if they are there.
PART_COLUMNS = (
    "id", "start_time", "parent_observation_id", "name", "trace_name", "session_id", "user_id", "version", "release",
    "environment", "tags", "bookmarked", "public", "created_at", "updated_at", "exact", "content_hash",
)  # fmt: skip
CONTENT_COLUMNS = ("input", "output", "metadata")

# Column of the trace -> field of the API: the newest observation that has one gives it.
_NEWEST_VALUE = {
    "session_id": "sessionId",
    "user_id": "userId",
    "version": "version",
    "release": "release",
    "environment": "environment",
    "tags": "tags",
}
_NO_VALUE = (None, "", "[]")
# As GET /traces answers them for a trace that has none.
NO_METADATA, _NO_TAGS = "{}", "[]"


class Span(NamedTuple):
    """The part of an observation that its trace needs: start and end, and the cost in USD."""

    start: datetime | None
    end: datetime | None
    cost_usd: float | None


class Metrics(NamedTuple):
    """`latency` in seconds from the first start to the last end; `total_cost` in USD; both 0 without observations."""

    latency: float
    total_cost: float


def metrics(spans: Iterable[Span]) -> Metrics:
    """Latency and cost of a trace from all of its observations."""
    starts: list[datetime] = []
    ends: list[datetime] = []
    cost_units = 0
    for start, end, cost_usd in spans:
        if start is not None:
            starts.append(start)
            ends.append(start if end is None else max(start, end))
        if cost_usd:
            units = cost_usd * COST_UNITS_PER_USD
            cost_units += round(units) if isfinite(units) else int(cost_usd) * COST_UNITS_PER_USD
    latency_ms = round((max(ends) - min(starts)).total_seconds() * _EPOCH_MS) if starts else 0
    return Metrics(latency_ms / _EPOCH_MS, _usd(cost_units))


def _usd(cost_units: int) -> float:
    """The nearest double; the server's decimals end long before the largest one."""
    try:
        return cost_units / COST_UNITS_PER_USD
    except OverflowError:
        return sys.float_info.max if cost_units > 0 else -sys.float_info.max


def whole_trace(project_id: str, trace_id: str, parts: Sequence[Mapping[str, Any]]) -> Row:
    """The row of a trace that no traces API gave, without its metrics.

    A value that a column could not hold (`exact`) goes with the observation that it is taken from. The hash is the same
    with and without the root's contents.

    Args:
        project_id, trace_id: The trace.
        parts: All its observations, at least one, with `PART_COLUMNS`; for a whole row the root with `CONTENT_COLUMNS`.
    """
    newest_first = sorted(parts, key=_version, reverse=True)
    root = root_of(parts)
    row: Row = dict.fromkeys(field.column for field in TRACE_V2.fields)
    exact: dict[str, str] = {}

    def take(column: str, api: str, part: Mapping[str, Any] | None, source: str, source_api: str) -> None:
        if part is None:
            return
        row[column] = part.get(source)
        if part["exact"] and source_api in (values := exact_values(part)):
            exact[api] = values[source_api]

    for column, api in _NEWEST_VALUE.items():
        take(column, api, _newest_with(column, newest_first), column, api)
    named = _newest_with("trace_name", newest_first)
    if named is not None:
        take("name", "name", named, "trace_name", "traceName")
    else:
        take("name", "name", root, "name", "name")
    for column in (*CONTENT_COLUMNS, "bookmarked"):
        take(column, column, root, column, column)
    row |= {
        "project_id": project_id,
        "id": trace_id,
        "timestamp": _least(parts, "start_time"),
        "created_at": _least(parts, "created_at"),
        "updated_at": newest_first[0]["updated_at"],
        # Postgres gives JSON back in its own layout; the hash must not tell which database it was.
        "tags": dumps(loads(row["tags"])) if row["tags"] else _NO_TAGS,
        "metadata": row["metadata"] or NO_METADATA,
        "bookmarked": bool(row["bookmarked"]),
        "public": any(part["public"] for part in parts),
        "extra": None,
        "exact": exact_text(exact),
        "read_from": "observations",
    }
    # For the same reason the root's hash stands for its contents.
    contents = dict.fromkeys(CONTENT_COLUMNS) | {"input": root and root["content_hash"]}
    row["content_hash"] = row_hash(row | contents)
    return row


def root_of(parts: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest of these observations without a parent; None if each has one."""
    roots = (part for part in parts if part["parent_observation_id"] is None)
    return max(roots, key=_version, default=None)


def session(project_id: str, session_id: str, environment: str | None) -> Row:
    """The row of a session that only its traces tell of; when the server first saw it is not known then."""
    row: Row = {
        "id": session_id,
        "created_at": None,
        "project_id": project_id,
        "environment": environment,
        "extra": None,
        "exact": None,
        "read_from": "observations",
    }
    row["content_hash"] = row_hash(row)
    return row


def _version(part: Mapping[str, Any]) -> tuple[str, str, str]:
    return (part["updated_at"] or "", part["start_time"] or "", part["id"])


def _newest_with(column: str, newest_first: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    # Where the server could not send its contents, a row has not all columns.
    return next((part for part in newest_first if part.get(column) not in _NO_VALUE), None)


def _least(parts: Iterable[Mapping[str, Any]], column: str) -> str | None:
    return min((part[column] for part in parts if part[column] is not None), default=None)
