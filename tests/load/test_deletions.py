"""What a complete read says about stored rows, and what it asks the database for that."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from database_looks import instant, write
from databases import Databases
from recorded_rows import Row
from sqlalchemy import Connection, Engine, event, select

from etl.intervals import Window
from etl.load.deletions import CONFIRM_AFTER, Absences, settle_absences
from etl.load.engine import writing
from etl.load.keys import Key
from etl.load.tables import sync_absences
from etl.transform import fields
from etl.transform.rows import from_api
from tests.bench.made_rows import PROJECT, make_rows

WINDOW = Window(instant(0), instant(1000))
TIME = "2026-11-20T00:00:01.000Z"
READ = instant(2000)


def rows(stream: str) -> list[Row]:
    """Two rows of the window, and one beside it."""
    shape, time = (fields.OBSERVATION, "startTime") if stream == "observations" else (fields.SCORE_LEGACY, "timestamp")
    return [
        from_api({"id": id_, "traceId": "t", time: at}, shape, project_id="p", read_from="traces", plain=True)
        for id_, at in (("a", TIME), ("b", TIME), ("beside", "2026-11-21T00:00:00.000Z"))
    ]


def keys(stream: str, *ids: str) -> list[Key]:
    return [("t", id_) if stream == "observations" else (id_,) for id_ in ids]


def settle(
    conn: Connection, stream: str, seen: list[Key], *, later: timedelta = timedelta(), all_stored: bool = False
) -> Absences:
    return settle_absences(
        conn, "p", stream, WINDOW, seen,
        read_from=("traces",), read_started_at=READ + later, read_at=READ + later, all_stored=all_stored,
    )  # fmt: skip


@pytest.mark.parametrize("stream", ["observations", "scores"])
def test_a_read_that_lacks_nothing_asks_once(engine: Engine, stream: str) -> None:
    write(engine, stream, rows(stream), instant(0))
    asked: list[str] = []
    with writing(engine) as conn:
        event.listen(conn, "before_cursor_execute", lambda *about: asked.append(about[2]))
        assert settle(conn, stream, keys(stream, "a", "b")) == Absences([], too_many=False)
    assert len(asked) == 1


@pytest.mark.parametrize("stream", ["observations", "scores"])
def test_where_all_that_was_seen_is_stored_its_number_tells_as_much(engine: Engine, stream: str) -> None:
    write(engine, stream, rows(stream), instant(0))
    everything, (lacking,) = keys(stream, "a", "b"), keys(stream, "b")
    texts: list[str] = []

    def read(seen: list[Key], later: timedelta) -> list[Key]:
        with writing(engine) as conn:
            texts.clear()
            event.listen(conn, "before_cursor_execute", lambda *about: texts.append(about[2]))
            return settle(conn, stream, seen, later=later, all_stored=True).deleted

    assert read(everything, timedelta()) == []
    assert len(texts) == 1
    assert "json" not in texts[0], "no key was asked for"
    assert read([everything[0]], timedelta()) == []
    assert read([everything[0]], CONFIRM_AFTER) == [lacking]
    # What was noted as absent and is seen again is forgotten, although as many rows are stored as were seen.
    write(engine, stream, rows(stream), instant(0))
    assert read([everything[0]], timedelta()) == []
    assert read(everything, CONFIRM_AFTER) == []
    assert read([everything[0]], CONFIRM_AFTER) == []


@pytest.mark.parametrize("stream", ["observations", "scores"])
def test_a_row_that_this_run_stored_makes_up_for_none_that_is_lacking(engine: Engine, stream: str) -> None:
    (stale, new, _), (_, seen) = rows(stream), keys(stream, "a", "b")
    write(engine, stream, [stale], instant(0))
    write(engine, stream, [new], READ)
    with writing(engine) as conn:
        settle(conn, stream, [seen], all_stored=True)
        assert len(conn.execute(select(sync_absences)).all()) == 1


@pytest.mark.parametrize("stream", ["observations", "scores"])
def test_rows_of_the_other_generation_are_not_told_by_the_number(engine: Engine, stream: str) -> None:
    (own, foreign, _), (seen, _) = rows(stream), keys(stream, "a", "b")
    write(engine, stream, [own, foreign | {"read_from": "observations"}], instant(0))
    with writing(engine) as conn:
        settle_absences(
            conn, "p", stream, WINDOW, [seen],
            read_from=("traces",), read_started_at=READ, read_at=READ, known_since=READ, all_stored=True,
        )  # fmt: skip
        assert len(conn.execute(select(sync_absences)).all()) == 1


@pytest.mark.parametrize("stream", ["observations", "scores"])
def test_what_two_reads_lack_is_deleted_and_what_is_seen_again_is_not(engine: Engine, stream: str) -> None:
    write(engine, stream, rows(stream), instant(0))
    everything, (lacking,) = keys(stream, "a", "b"), keys(stream, "b")

    def read(seen: list[Key], later: timedelta) -> list[Key]:
        with writing(engine) as conn:
            return settle(conn, stream, seen, later=later).deleted

    def noted() -> int:
        with writing(engine) as conn:
            return len(conn.execute(select(sync_absences.c.id)).all())

    assert (read([everything[0]], timedelta()), noted()) == ([], 1)
    assert (read(everything, CONFIRM_AFTER), noted()) == ([], 0)
    assert (read([everything[0]], CONFIRM_AFTER), noted()) == ([], 1)
    assert (read([everything[0]], 2 * CONFIRM_AFTER), noted()) == ([lacking], 0)


def test_postgres_looks_at_the_window_alone_with_statistics_and_without(databases: Databases) -> None:
    asked: list[tuple[str, Any]] = []
    window = Window(datetime(2026, 10, 2, tzinfo=UTC), datetime(2026, 10, 3, tzinfo=UTC))
    with databases.lent("postgres") as engine, writing(engine) as conn:
        make_rows(conn, traces=3000, io_bytes=20)
        event.listen(conn, "before_cursor_execute", lambda *about: asked.append((about[2], about[3])))
        settle_absences(
            conn, PROJECT, "observations", window, [], read_from=("traces",), read_started_at=READ, read_at=READ
        )
        first, values = asked[0]
        for prepare in ("SELECT 1", "ANALYZE"):
            conn.exec_driver_sql(prepare)
            plan = "\n".join(conn.exec_driver_sql(f"EXPLAIN {first}", values).scalars())
            assert "Seq Scan on observations" not in plan, plan
