"""One session on demand: all of it or nothing, and nothing that a later sync would do differently."""

from __future__ import annotations

import threading

import pytest
from databases import Databases
from sqlalchemy import Engine
from syncing import (
    EDGE,
    Row,
    ledger,
    listed_traces,
    make_small,
    objects,
    project,
    rows,
    same_tables,
    small,
    sync,
    watermarks,
)

from etl.config import Config
from etl.demo import MockLangfuse
from etl.errors import ApiError, ConfigError
from etl.service.lease import write_lease
from etl.service.refresh import refresh_sessions
from etl.settings import Http

STREAMS = ("traces", "observations", "scores", "sessions")


def session_of(dataset_traces: list[Row]) -> str:
    names = [row["sessionId"] for row in dataset_traces if row["sessionId"]]
    return max(sorted(set(names)), key=names.count)


SESSION = session_of(small().traces())
TRACES = {row["id"] for row in small().traces() if row["sessionId"] == SESSION}


def refresh(engine: Engine, server: MockLangfuse, *sessions: str, wanted: str | None = None) -> int:
    http = Http(timeout="5s", give_up_after="5s")
    config = Config(projects=(project(server),), http=http)
    with write_lease(engine) as owner:
        return refresh_sessions(
            config, engine, owner, sessions=sessions, project=wanted, stop=threading.Event()
        )  # fmt: skip


@pytest.fixture(scope="module")
def synced(databases: Databases) -> dict[str, list[Row]]:
    """The tables of one sync without any refresh."""
    with databases.lent("sqlite") as engine, MockLangfuse(small()) as server:
        sync(engine, server)
        return same_tables(engine)


def test_a_session_is_stored_whole_and_no_watermark_moves(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        count = refresh(database, server, SESSION)
    expected = {key: item for key, item in listed_traces(small()).items() if key in TRACES}
    assert objects(database, "traces") == expected
    children = {row["id"] for row in small().observations() if row["traceId"] in TRACES}
    assert {row["id"] for row in rows(database, "observations")} == children
    scores = {row["id"] for row in small().scores() if row["traceId"] in TRACES}
    assert {row["id"] for row in rows(database, "scores")} >= scores
    assert count >= len(TRACES) + len(children) + len(scores)
    assert (ledger(database), watermarks(database), rows(database, "sync_runs")) == ([], {}, [])
    assert [row["id"] for row in rows(database, "projects")] == ["proj-shop"]


def test_a_sync_after_a_refresh_ends_with_the_tables_of_a_sync_alone(
    database: Engine, synced: dict[str, list[Row]]
) -> None:
    with MockLangfuse(small()) as server:
        refresh(database, server, SESSION)
        report = sync(database, server)
    assert report.status == "ok"
    assert same_tables(database) == synced


def test_a_refresh_after_a_sync_changes_nothing(database: Engine, synced: dict[str, list[Row]]) -> None:
    with MockLangfuse(small()) as server:
        sync(database, server)
        refresh(database, server, SESSION)
    assert same_tables(database) == synced
    assert watermarks(database) == dict.fromkeys(STREAMS, EDGE)


@pytest.mark.parametrize(("path", "after"), [("/traces", 1), ("/observations", 2), ("/v3/scores", 2)])
def test_a_refresh_that_fails_in_the_middle_writes_nothing(database: Engine, path: str, after: int) -> None:
    with MockLangfuse(small()) as server:
        server.faults.add("status", path=path, status=400, times=None, after=after)
        with pytest.raises(ApiError):
            refresh(database, server, SESSION)
    assert [rows(database, name) for name in ("projects", *STREAMS)] == [[]] * 5


def test_a_refresh_keeps_to_the_streams_that_are_set_and_to_the_latency_that_the_server_tells(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        config = Config(projects=(project(server, streams=("traces",)),), http=Http(give_up_after="5s"))
        with write_lease(database) as owner:
            count = refresh_sessions(
                config, database, owner, sessions=[SESSION], project=None, stop=threading.Event()
            )  # fmt: skip
    assert count == len(TRACES)
    told = {(row["id"], row["latency"], row["totalCost"]) for row in small().traces() if row["id"] in TRACES}
    stored = objects(database, "traces").values()
    assert {(item["id"], item["latency"], item["totalCost"]) for item in stored} == told
    assert (rows(database, "observations"), rows(database, "scores")) == ([], [])


def test_a_session_that_langfuse_does_not_know_brings_nothing(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        assert refresh(database, server, "nobody") == 0
    assert rows(database, "traces") == []


def test_a_project_that_is_not_configured_is_said(database: Engine) -> None:
    with MockLangfuse(small()) as server, pytest.raises(ConfigError, match="no project named other"):
        refresh(database, server, SESSION, wanted="other")


def test_only_the_wanted_project_is_asked(database: Engine) -> None:
    """By the name of its entry at once; by the server's name or id as soon as one run has noted whose they are."""
    with MockLangfuse(small()) as server, MockLangfuse(small()) as other:
        config = Config(projects=(project(other, "other"), project(server, "wanted")), http=Http(give_up_after="5s"))
        for wanted in ("wanted", "proj-shop"):
            with write_lease(database) as owner:
                count = refresh_sessions(
                    config, database, owner, sessions=[SESSION], project=wanted, stop=threading.Event()
                )  # fmt: skip
            assert count > 0
        assert other.requests == []


def test_a_later_row_of_the_session_is_found_by_refreshing_again(database: Engine) -> None:
    dataset = make_small()
    with MockLangfuse(dataset) as server:
        refresh(database, server, SESSION)
        dataset.put_trace({"id": "later", "timestamp": "2026-11-18T00:00:00.000Z", "sessionId": SESSION})
        refresh(database, server, SESSION)
    assert {row["id"] for row in rows(database, "traces")} == TRACES | {"later"}
    assert ledger(database) == []
