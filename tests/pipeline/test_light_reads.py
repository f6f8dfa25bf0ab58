"""What a light re-read has to leave as it is, and what it has to heal."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import Engine, update
from syncing import rows, sync
from test_lookback import NOW, iso

from etl.demo import Dataset, MockLangfuse, generate
from etl.load.engine import writing
from etl.load.tables import traces


def a_day(traces: int) -> Dataset:
    end = NOW - timedelta(minutes=3)
    return generate(traces=traces, days=1, observations_per_trace=1, io_bytes=50, end=end)


def test_a_trace_with_an_odd_id_is_never_taken_for_deleted(engine: Engine) -> None:
    """Its key is stored in another form than it came in, and a light reading has to know it in that form."""
    data = a_day(150)
    data.put_trace({"id": "a\x00b", "timestamp": iso(NOW - timedelta(hours=3)), "name": "odd", "createdAt": iso(NOW)})
    with MockLangfuse(data) as server:
        for hours in (0, 30, 31.5, 60, 62):
            report = sync(engine, server, now=NOW + timedelta(hours=hours))
            assert (report.status, report.error) == ("ok", None)
            (odd,) = (row for row in rows(engine, "traces") if row["name"] == "odd")
            assert odd["deleted_at"] is None
            assert rows(engine, "sync_absences") == []


def test_metrics_are_worked_out_again_for_traces_that_did_not_change(database: Engine) -> None:
    with MockLangfuse(a_day(100)) as server:
        sync(database, server)
        before = metrics(database)
        with writing(database) as conn:
            conn.execute(update(traces).values(latency=1e6, total_cost=1e6))
        sync(database, server, now=NOW + timedelta(hours=30))
    with_observations = {row["trace_id"] for row in rows(database, "observations")}
    after = metrics(database)
    assert len(with_observations) > 50
    assert [key for key in with_observations if after[key] != before[key]] == []


def metrics(engine: Engine) -> dict[str, tuple[float, float]]:
    return {row["id"]: (row["latency"], row["total_cost"]) for row in rows(engine, "traces")}


def test_of_a_trace_on_two_dates_the_newest_version_is_read_whole(engine: Engine) -> None:
    """One page of v4 shows both; an older version may stand in it after the one that was edited."""
    data = a_day(20)
    late, early = NOW - timedelta(hours=3), NOW - timedelta(hours=14)

    def put(moment: datetime, minute: int, name: str) -> None:
        data.put_trace(
            {"id": "t", "timestamp": iso(moment), "name": name, "updatedAt": iso(NOW + timedelta(minutes=minute))}
        )

    put(late, 0, "first")
    with MockLangfuse(data, api="v4") as server:
        sync(engine, server)
        put(early, 5, "on another date")
        put(late, 9, "edited")
        report = sync(engine, server, now=NOW + timedelta(hours=30))
        assert (report.status, report.error) == ("ok", None)
    (stored,) = (row for row in rows(engine, "traces") if row["id"] == "t")
    assert (stored["name"], stored["deleted_at"]) == ("edited", None)
