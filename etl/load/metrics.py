"""Latency and cost of traces, as they follow from the stored observations."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Double,
    Select,
    and_,
    bindparam,
    case,
    cast,
    extract,
    func,
    select,
    true,
    type_coerce,
)

from etl.load.bulk import update_values
from etl.load.keys import Key, listed, of_listed, rows_by_key
from etl.load.tables import observations, traces
from etl.load.types import instant_text
from etl.transform.derive import COST_UNITS_PER_USD, Metrics, Span, metrics
from etl.transform.rows import Row

NONE_KNOWN: Mapping[str, Metrics] = MappingProxyType({})
# Doubles hold every whole number below the second; a cost of the first has fewer units.
_DEAR_USD, _EXACT_BELOW = 9_000.0, 2.0**53


def trace_metrics(conn: Connection, project_id: str, trace_ids: Collection[str]) -> dict[str, Metrics]:
    """What follows from the stored observations of each of these traces, whether it is stored itself or not."""
    if not trace_ids:
        return {}
    spans: dict[str, list[Span]] = {trace_id: [] for trace_id in trace_ids}
    spans_query, costs_query = _metrics_queries(conn.dialect.name)
    wanted = {"project": project_id, **listed(list(spans))}
    for trace_id, start, end in conn.execute(spans_query, wanted).all():
        spans[trace_id].append(Span(_moment(start), _moment(end), None))
    for trace_id, cost_usd in conn.execute(costs_query, wanted).all():
        spans[trace_id].append(Span(None, None, cost_usd))
    return {trace_id: metrics(parts) for trace_id, parts in spans.items()}


def metrics_at_hand(at_hand: Mapping[str, Iterable[Row]]) -> dict[str, Metrics]:
    """The same of traces of which these are all the stored observations."""
    return {
        trace_id: metrics(
            Span(_moment(part["start_time"]), _moment(part["end_time"]), part.get("calculated_total_cost"))
            for part in parts
        )
        for trace_id, parts in at_hand.items()
    }


def refresh_trace_metrics(
    conn: Connection,
    project_id: str,
    trace_ids: Collection[str],
    now: datetime,
    *,
    known: Mapping[str, Metrics] = NONE_KNOWN,
) -> int:
    """Sets `latency` and `total_cost` of these traces where they differ; returns how many did.

    Traces that are not stored are passed over: they get theirs in the transaction that stores them.

    Args:
        known: Those that were worked out already.
    """
    others = _other_metrics(conn, project_id, trace_ids, known)
    set_trace_metrics(conn, project_id, others, now)
    return len(others)


def set_trace_metrics(conn: Connection, project_id: str, new: Mapping[str, Metrics], now: datetime) -> None:
    """Sets `latency` and `total_cost` of these traces, which are stored with others."""
    moment = instant_text(now)
    changes = [(*values, moment, project_id, trace_id) for trace_id, values in new.items()]
    update_values(conn, traces, ("latency", "total_cost", "changed_at"), changes)


def differing_metrics(conn: Connection, project_id: str, trace_ids: Collection[str]) -> set[Key]:
    """The stored traces whose latency or cost is not what follows from the stored observations."""
    return {(trace_id,) for trace_id in _other_metrics(conn, project_id, trace_ids, NONE_KNOWN)}


def columns_by_key(known: Mapping[str, Metrics]) -> dict[Key, Row]:
    """Metrics as columns of `traces`, by the keys of the traces without the project."""
    return {(trace_id,): found._asdict() for trace_id, found in known.items()}


def _other_metrics(
    conn: Connection, project_id: str, trace_ids: Collection[str], known: Mapping[str, Metrics]
) -> dict[str, Metrics]:
    """What follows from the stored observations of these traces, where something else is stored."""
    doubtful = _not_surely_right(conn, project_id, trace_ids)
    keys = [(project_id, trace_id) for trace_id in doubtful]
    stored = {key[1]: Metrics(*values) for key, values in rows_by_key(conn, traces, keys, ["latency", "total_cost"])}
    fresh = {**trace_metrics(conn, project_id, stored.keys() - known.keys()), **known}
    return {trace_id: fresh[trace_id] for trace_id, old in stored.items() if fresh[trace_id] != old}


def _not_surely_right(conn: Connection, project_id: str, trace_ids: Collection[str]) -> Sequence[str]:
    """The stored ones of these traces, without those of which the database itself finds latency and cost right.

    Hardly any trace that is read again is left. What is right is not fetched: each row fetched from SQLite would have
    to wait for the other threads.
    """
    if not trace_ids:
        return []
    wanted = {"project": project_id, **listed(list(trace_ids))}
    return conn.execute(_not_surely_right_query(conn.dialect.name), wanted).scalars().all()


@cache
def _not_surely_right_query(dialect: str) -> Select[Any]:
    """What `transform.derive.metrics` does, in SQL; sure are no nulls and no sums that doubles may have to round.

    SQLite rounds half a unit up, where Python rounds to even: a cost wrong by just that unit passes for right there.
    """
    columns = observations.c
    first, last = func.min(columns.start_time), _last_end(dialect)
    latency = case(
        (first.is_(None), 0.0), else_=(_milliseconds(dialect, last) - _milliseconds(dialect, first)) / 1000.0
    )
    cost = columns.calculated_total_cost
    # Postgres refuses a number of units that is too large for a double.
    units = case((func.abs(cost) >= _DEAR_USD, _EXACT_BELOW), else_=func.round(cost * float(COST_UNITS_PER_USD)))
    are_right = and_(
        traces.c.latency == latency,
        traces.c.total_cost == func.coalesce(func.sum(units), 0.0) / float(COST_UNITS_PER_USD),
        func.coalesce(func.sum(func.abs(units)), 0.0) < _EXACT_BELOW,
    )
    surely = (
        select(are_right)
        .where(columns.project_id == traces.c.project_id, columns.trace_id == traces.c.id, columns.deleted_at.is_(None))
        .correlate(traces)
        .scalar_subquery()
    )
    query = select(traces.c.id).where(traces.c.project_id == bindparam("project"), surely.is_not(true()))
    return of_listed(dialect, query, traces.c.id)


def _milliseconds(dialect: str, instant: ColumnElement[Any]) -> ColumnElement[Any]:
    """A whole number, since 1970."""
    if dialect == "postgresql":
        return func.round(cast(extract("epoch", instant), Double) * 1000.0)
    # As a number SQLite gives an instant with its seconds only, or as a fraction of days.
    seconds = cast(func.strftime("%s", func.substr(instant, 1, 19)), BigInteger)
    return seconds * 1000 + cast(func.substr(instant, 21, 3), BigInteger)


def _last_end(dialect: str) -> ColumnElement[Any]:
    """The last end of the observations of a trace; one without an end ends as it starts."""
    columns = observations.c
    later = func.greatest if dialect == "postgresql" else func.max
    end = later(columns.start_time, func.coalesce(columns.end_time, columns.start_time))
    # A condition on the start would lead SQLite to an index of times, and so through the whole table.
    last_end = func.max(case((columns.start_time.is_not(None), end)))
    return type_coerce(last_end, columns.start_time.type)


@cache
def _metrics_queries(dialect: str) -> tuple[Select[Any], Select[Any]]:
    """Of each trace that `listed` names: its first start and last end; the cost of each observation with one.

    Costs are added in Python, where they are added as the server does.
    """
    columns = observations.c
    alive = columns.project_id == bindparam("project"), columns.deleted_at.is_(None)
    spans = (
        select(columns.trace_id, func.min(columns.start_time), _last_end(dialect))
        .where(*alive)
        .group_by(columns.trace_id)
    )
    costs = select(columns.trace_id, columns.calculated_total_cost)
    costs = costs.where(*alive, columns.calculated_total_cost != 0)
    return of_listed(dialect, spans, columns.trace_id), of_listed(dialect, costs, columns.trace_id)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
