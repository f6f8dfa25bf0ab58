"""Column types hold the same value on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from database_looks import Pair, instant, scratch, stored
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm
from recorded_rows import STREAMS, to_row
from sqlalchemy import Engine, insert, literal, select, text
from sqlalchemy.exc import StatementError

from etl.load.engine import reading, writing
from etl.load.tables import sync_lease, traces
from etl.load.types import Instant, instant_text
from etl.load.upsert import upsert


def test_an_instant_is_written_in_utc_and_in_milliseconds() -> None:
    east = timezone(timedelta(hours=2))

    assert instant_text(datetime(2026, 11, 8, 3, 4, 5, 6_999, east)) == "2026-11-08T01:04:05.006Z"
    assert instant_text(datetime(999, 1, 1, tzinfo=UTC)) == "0999-01-01T00:00:00.000Z"


def test_a_moment_without_a_time_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(ValueError, match="time zone"):
        instant_text(datetime(2026, 11, 8))  # noqa: DTZ001
    row = {"name": "n", "owner": "o", "host": "h", "pid": 1, "acquired_at": instant(0)}
    naive = row | {"heartbeat_at": datetime(2026, 11, 8)}  # noqa: DTZ001
    with pytest.raises(StatementError, match="time zone"), writing(engine) as conn:
        conn.execute(insert(sync_lease).values(**naive))
    with reading(engine) as conn:
        assert conn.execute(select(sync_lease)).all() == []


@settings(calm, max_examples=30)
@given(
    moment=st.datetimes(
        min_value=datetime(2, 1, 1),  # noqa: DTZ001
        max_value=datetime(9998, 12, 31),  # noqa: DTZ001
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=14)), timezone(timedelta(hours=-12, minutes=-30))]),
    )
)
def test_any_instant_comes_back_to_the_millisecond(shared_pair: Pair, moment: datetime) -> None:
    whole = moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    for engine in shared_pair:
        with scratch(engine) as conn:
            found = conn.execute(select(literal(moment, Instant()))).scalar_one()
            assert (found, found.tzinfo) == (whole, UTC)
            assert conn.execute(select(literal(None, Instant()))).scalar_one() is None


def test_instants_compare_as_moments_and_not_as_text(shared_pair: Pair) -> None:
    stamps = ["1969-12-31T23:59:59.999Z", "1970-01-01T00:00:00.000Z", "2026-11-08T00:00:00.000Z"]
    rows = [to_row({"id": stamp, "timestamp": stamp}, STREAMS["traces"], "p") for stamp in stamps]
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, "traces", rows, instant(0))
            later = select(traces.c.id).where(traces.c.timestamp >= stamps[1]).order_by(traces.c.timestamp)
            assert stamps[1:] == list(conn.execute(later).scalars())


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "Pacific/Kiritimati", "Europe/Amsterdam"])
def test_the_time_zone_of_a_postgres_server_changes_nothing(shared_pair: Pair, zone: str) -> None:
    stamps = [
        "0002-01-01T00:00:00.000Z", "9998-12-31T23:59:59.999Z", "1937-06-30T22:40:00.000Z", "2026-11-08T00:00:00.001Z",
        "0001-01-01T00:00:00.000Z", "9999-12-31T23:59:59.999Z",
    ]  # fmt: skip
    items = [{"id": stamp, "timestamp": stamp} for stamp in stamps]
    with scratch(shared_pair.postgres) as conn:
        conn.execute(text(f"SET LOCAL TIME ZONE '{zone}'"))
        upsert(conn, "traces", [to_row(item, STREAMS["traces"], "p") for item in items], instant(0))
        found = {row["id"]: row["timestamp"] for row in stored(conn, "traces").values()}

    assert {stamp: stamp for stamp in stamps[:4]} | dict.fromkeys(stamps[4:]) == found


def test_json_of_one_number_is_text_and_not_a_number_on_sqlite(shared_pair: Pair) -> None:
    for value in (5, 5.5, 2**70, "5", True, [], {}):
        item = {"id": "t", "input": value}
        for engine in shared_pair:
            with scratch(engine) as conn:
                upsert(conn, "traces", [to_row(item, STREAMS["traces"], "p")], instant(0))
                assert isinstance(conn.execute(select(traces.c.input)).scalar_one(), str)
