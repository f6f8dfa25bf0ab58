"""The views as SQLAlchemy sees them; migrations make them, `etl/load/meanings.py` says what is in them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Column, Double, MetaData, Table, Text
from sqlalchemy.types import TypeEngine

from etl.load.types import InstantText

_metadata = MetaData()


def _view(name: str, **columns: TypeEngine[Any]) -> Table:
    return Table(name, _metadata, *(Column(column, kind) for column, kind in columns.items()))


_TEXT: TypeEngine[Any] = Text()
_NUMBER: TypeEngine[Any] = Double()
_COUNT: TypeEngine[Any] = BigInteger()

daily_cost = _view(
    "daily_cost",
    project_id=_TEXT,
    day=_TEXT,
    trace_name=_TEXT,
    user_id=_TEXT,
    session_id=_TEXT,
    trace_id=_TEXT,
    model=_TEXT,
    calls=_COUNT,
    total_tokens=_COUNT,
    total_cost=_NUMBER,
)
daily_usage = _view(
    "daily_usage",
    project_id=_TEXT,
    day=_TEXT,
    model=_TEXT,
    calls=_COUNT,
    total_tokens=_COUNT,
    total_cost=_NUMBER,
)
latency_daily = _view(
    "latency_daily",
    project_id=_TEXT,
    day=_TEXT,
    scope=_TEXT,
    count=_COUNT,
    errors=_COUNT,
    latency_p50=_NUMBER,
    latency_p95=_NUMBER,
    latency_p99=_NUMBER,
    first_token_p50=_NUMBER,
    first_token_p95=_NUMBER,
    first_token_p99=_NUMBER,
)
sync_coverage = _view(
    "sync_coverage",
    project_id=_TEXT,
    stream=_TEXT,
    range_start=InstantText(),
    range_end=InstantText(),
    state=_TEXT,
)
