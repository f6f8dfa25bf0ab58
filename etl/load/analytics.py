"""Figures over some days of one project, from the views: what a report shows. Days are UTC, `YYYY-MM-DD`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, func, select

from etl.load.tables import traces
from etl.load.views import daily_cost, daily_usage, latency_daily, sync_coverage

# Costs have 12 decimal places; what adding them as doubles leaves behind those is no cost.
_PLACES = 12


class Days(NamedTuple):
    """`first` is inclusive, `end` exclusive."""

    first: str
    end: str


class Usage(NamedTuple):
    """Calls of one model on one day; the cost in USD."""

    day: str
    model: str
    calls: int
    total_tokens: int
    total_cost: float


class Latencies(NamedTuple):
    """One day's traces or calls of models: how many, how many in error, and percentiles in seconds."""

    day: str
    number: int
    errors: int
    p50: float | None
    p95: float | None
    p99: float | None
    first_token_p50: float | None
    first_token_p95: float | None
    first_token_p99: float | None


class Spender(NamedTuple):
    """A session or a user, with what was spent for it in USD."""

    id: str
    traces: int
    calls: int
    total_tokens: int
    total_cost: float


class Coverage(NamedTuple):
    """A stretch of time of a stream, and whether it is read: `covered`, `partial`, `doubtful` or `failed`."""

    stream: str
    start: str
    end: str
    state: str


def first_and_last_day(conn: Connection, project_id: str) -> tuple[str, str] | None:
    """The days of the oldest and the newest trace; None if there is none."""
    mine = (traces.c.project_id == project_id, traces.c.timestamp.is_not(None), traces.c.deleted_at.is_(None))
    times = select(traces.c.timestamp).where(*mine).limit(1)
    oldest: str | None = conn.execute(times.order_by(traces.c.timestamp)).scalar()
    newest: str | None = conn.execute(times.order_by(traces.c.timestamp.desc())).scalar()
    return None if oldest is None or newest is None else (oldest[:10], newest[:10])


def usage(conn: Connection, project_id: str, days: Days) -> list[Usage]:
    """By day and model."""
    view = daily_usage.c
    columns = (view.day, view.model, view.calls, view.total_tokens, view.total_cost)
    query = select(*columns).where(*_within(daily_usage, project_id, days)).order_by(view.day, view.model)
    return [Usage(*row) for row in conn.execute(query)]


def latencies(conn: Connection, project_id: str, days: Days, scope: Literal["traces", "calls"]) -> list[Latencies]:
    """By day."""
    view = latency_daily.c
    columns = (
        view.day, view.count, view.errors, view.latency_p50, view.latency_p95, view.latency_p99,
        view.first_token_p50, view.first_token_p95, view.first_token_p99,
    )  # fmt: skip
    query = select(*columns).where(*_within(latency_daily, project_id, days), view.scope == scope)
    return [Latencies(*row) for row in conn.execute(query.order_by(view.day))]


def top_spenders(
    conn: Connection, project_id: str, days: Days, who: Literal["session_id", "user_id"], limit: int
) -> list[Spender]:
    """At most `limit` sessions or users, those that cost most first."""
    view = daily_cost.c
    cost, tokens = func.sum(view.total_cost), func.sum(view.total_tokens)
    query = (
        select(view[who], func.count(view.trace_id.distinct()), func.sum(view.calls), tokens, cost)
        .where(*_within(daily_cost, project_id, days), view[who].is_not(None))
        .group_by(view[who])
        .order_by(cost.desc(), tokens.desc(), view[who])
        .limit(limit)
    )
    rows = conn.execute(query)
    return [Spender(id_, n, int(calls), int(total), round(usd, _PLACES)) for id_, n, calls, total, usd in rows]


def coverage(conn: Connection, project_id: str) -> list[Coverage]:
    """All stretches that were read, by stream and start; those in doubt after the covered ones."""
    view = sync_coverage.c
    query = select(view.stream, view.range_start, view.range_end, view.state).where(view.project_id == project_id)
    rows = [Coverage(*row) for row in conn.execute(query)]
    return sorted(rows, key=lambda one: (one.state != "covered", one.stream, one.start))


def _within(view: Table, project_id: str, days: Days) -> Sequence[ColumnElement[Any]]:
    return view.c.project_id == project_id, view.c.day >= days.first, view.c.day < days.end
