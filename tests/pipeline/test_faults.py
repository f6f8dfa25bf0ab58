"""Whatever networks, proxies and overloaded servers do: afterwards the tables are those of one undisturbed run."""

import functools
import random
from datetime import UTC, datetime
from typing import Any

import pytest
from databases import Databases
from sqlalchemy import Engine, select, update
from syncing import Row, coverage, ledger, project, rows, same_tables, sync_all

from etl.demo import Dataset, MockLangfuse, Request, generate
from etl.demo.service import Api
from etl.errors import AuthError, LeaseLostError
from etl.load.engine import reading, writing
from etl.load.ledger import interrupt_runs_of_others
from etl.load.tables import ROW_TABLES, sync_lease, sync_runs
from etl.pipeline.report import RunReport
from etl.settings import Http

Kind = tuple[str, dict[str, Any]]

KINDS: list[tuple[Kind, int]] = [
    (("status", {"status": 429, "retry_after_s": 0}), 30),
    (("status", {"status": 500}), 20),
    (("status", {"status": 502}), 20),
    (("status", {"status": 503}), 20),
    (("status", {"status": 524}), 20),
    (("status", {"status": 422}), 20),
    (("status", {"status": 422, "error": "too_large"}), 20),
    (("status", {"status": 401}), 3),
    (("status", {"status": 400}), 3),
    (("reset", {}), 20),
    (("cut", {}), 20),
    (("html", {}), 20),
    (("not_json", {}), 20),
    (("wrong_shape", {}), 20),
    (("wrong_shape", {"shape": "object"}), 20),
    (("slow", {"delay_s": 0.05}), 20),
    (("stall", {"seconds": 5}), 2),
    (("close_idle", {}), 30),
]


@functools.cache
def data() -> Dataset:
    return generate(traces=250, days=2, observations_per_trace=2, io_bytes=150, seed=3)


@pytest.fixture(scope="module")
def undisturbed(databases: Databases) -> dict[str, list[Row]]:
    """The tables of one clean run."""
    with databases.lent("sqlite") as engine, MockLangfuse(data()) as server:
        (report,) = run(engine, server)
        assert report.status == "ok"
        return same_tables(engine)


def run(engine: Engine, server: MockLangfuse, *, concurrency: int = 4) -> list[RunReport]:
    http = Http(timeout="1s", give_up_after="20s", concurrency=concurrency)
    return sync_all(engine, [project(server)], http=http)


def assert_the_same_after_at_most_two_more_runs(
    engine: Engine, server: MockLangfuse, undisturbed: dict[str, list[Row]]
) -> None:
    server.faults.clear()
    for _ in range(2):
        (report,) = run(engine, server)
        if report.status == "ok":
            break
    assert (report.status, report.error) == ("ok", None)
    assert same_tables(engine) == undisturbed
    for stream in ("traces", "observations", "scores", "sessions"):
        assert len(coverage(engine, stream)) == 1
    counted = [(row["promised"], row["read"], row["stored"]) for row in ledger(engine) if row["proof"] == "counted"]
    assert [row for row in counted if len(set(row)) > 1] == []


@pytest.mark.parametrize(("kind", "most"), KINDS, ids=str)
def test_after_trouble_of_one_kind_the_tables_are_those_of_a_clean_run(
    database: Engine, undisturbed: dict[str, list[Row]], kind: Kind, most: int
) -> None:
    with MockLangfuse(data()) as server:
        server.faults.random(seed=most, rate=0.25, kinds=[kind], most=most)
        (report,) = run(database, server)
        assert server.faults.fired
        assert report.status == "ok" or report.error
        assert_the_same_after_at_most_two_more_runs(database, server, undisturbed)


@pytest.mark.parametrize("path", ["/traces", "/observations", "/sessions"])
def test_after_half_pages_the_tables_are_those_of_a_clean_run(
    database: Engine, undisturbed: dict[str, list[Row]], path: str
) -> None:
    with MockLangfuse(data()) as server:
        for after in (1, 4, 6, 9):  # the second request looks for the oldest row
            server.faults.add("half_page", path=path, after=after)
        run(database, server, concurrency=1)
        assert server.faults.fired
        assert_the_same_after_at_most_two_more_runs(database, server, undisturbed)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_after_trouble_of_every_kind_the_tables_are_those_of_a_clean_run(
    database: Engine, undisturbed: dict[str, list[Row]], seed: int
) -> None:
    with MockLangfuse(data(), shuffle_ties=True) as server:
        passing = [kind for kind, _ in KINDS if kind[0] != "stall" and kind[1].get("status") not in (400, 401)]
        server.faults.random(seed, rate=0.4, kinds=passing, most=40)
        run(database, server)
        assert len(server.faults.fired) > 5
        assert_the_same_after_at_most_two_more_runs(database, server, undisturbed)


def test_on_postgres_trouble_of_every_kind_leaves_the_same_tables(
    databases: Databases, undisturbed: dict[str, list[Row]]
) -> None:
    with databases.lent("postgres") as engine, MockLangfuse(data()) as server:
        server.faults.random(7, rate=0.3, kinds=["status", "cut", "reset", "html", "wrong_shape"], most=30)
        run(engine, server)
        assert_the_same_after_at_most_two_more_runs(engine, server, undisturbed)


@pytest.mark.parametrize("at", ['"environment":"', '"environment', '"version":"'])
@pytest.mark.parametrize("api", ["v3", "v4"])
def test_objects_that_cannot_be_read_are_said_and_read_again(
    database: Engine, undisturbed: dict[str, list[Row]], api: Api, at: str
) -> None:
    """Where an object begins and ends shows before anything shows that the rest of it is no JSON."""
    with MockLangfuse(data(), api=api) as server:
        for path in ("/traces", "/observations", "/v2/observations", "/v3/scores", "/sessions"):
            server.faults.add("not_utf8", path=path, after=2, times=None, at=at)
        (report,) = run(database, server)
        assert (report.status, report.exit_code) == ("failed", 1)
        failed = [row for row in ledger(database) if row["proof"] == "failed"]
        assert {"an object that Langfuse answered cannot be read: not JSON, or nested too deeply"} == {
            row["error"] for row in failed
        }
        server.faults.clear()
        (report,) = run(database, server)
        assert (report.status, report.error) == ("ok", None)
        if api == "v3":
            assert same_tables(database) == undisturbed


def test_a_window_that_fails_is_a_gap_with_its_reason_and_holds_up_no_other(
    database: Engine, undisturbed: dict[str, list[Row]]
) -> None:
    with MockLangfuse(data()) as server:
        server.faults.add("status", path="/observations", times=None, status=400, after=4)
        (report,) = run(database, server)
        assert (report.status, report.exit_code) == ("failed", 1)
        failed = [row for row in ledger(database) if row["proof"] == "failed"]
        assert {row["stream"] for row in failed} == {"observations"}
        assert all("400" in row["error"] for row in failed)
        tables = same_tables(database)
        assert tables["scores"] == undisturbed["scores"]
        assert len(tables["traces"]) == len(undisturbed["traces"])
        assert_the_same_after_at_most_two_more_runs(database, server, undisturbed)


def test_a_key_that_stops_working_in_the_middle_ends_the_run_and_keeps_what_was_read(
    database: Engine, undisturbed: dict[str, list[Row]]
) -> None:
    with MockLangfuse(data()) as server:
        server.faults.add("status", path="/traces", times=None, status=401, after=11)
        (report,) = run(database, server)
        assert (report.status, report.exit_code) == ("failed", 4)
        assert len(rows(database, "traces")) + len(rows(database, "observations")) > 0
        assert rows(database, "sync_runs")[-1]["status"] == "failed"
        assert_the_same_after_at_most_two_more_runs(database, server, undisturbed)


def test_a_rate_limited_server_is_read_whole(database: Engine, undisturbed: dict[str, list[Row]]) -> None:
    with MockLangfuse(data()) as server:
        server.faults.add("status", times=4, status=429, retry_after_s=1, after=9)
        (report,) = run(database, server)
    assert (report.status, report.error) == ("ok", None)
    assert same_tables(database) == undisturbed


def test_what_was_read_before_a_key_was_revoked_is_counted(database: Engine) -> None:
    with MockLangfuse(data()) as server:
        server.faults.add("status", status=401, times=None, after=30)
        (report,) = run(database, server, concurrency=1)
    assert (report.status, report.exit_code) == ("failed", 4)
    assert isinstance(report.ended_by, AuthError)
    assert report.total("rows_read") > 0
    assert report.total("rows_written") == sum(len(rows(database, name)) for name in ROW_TABLES)
    (noted,) = rows(database, "sync_runs")
    assert (noted["status"], noted["rows_read"]) == ("failed", report.total("rows_read"))
    assert report.requests == noted["requests"] > 0


def test_an_id_that_is_too_long_for_postgres_fails_its_window_and_no_other(databases: Databases) -> None:
    own = generate(traces=100, days=2, observations_per_trace=2, io_bytes=50)
    before = {row["id"] for row in own.scores()}
    too_long = random.Random(7).randbytes(4_000).hex()
    own.put_score(own.scores()[0] | {"id": too_long})
    with databases.lent("postgres") as engine, MockLangfuse(own) as server:
        (report,) = run(engine, server)
        assert report.status == "failed"
        assert "longer than Postgres takes" in str(report.error)
        assert too_long not in str(report.error)
        assert {row["id"] for row in rows(engine, "traces")} == {row["id"] for row in own.traces()}
        assert {row["id"] for row in rows(engine, "observations")} == {row["id"] for row in own.observations()}
        assert {row["id"] for row in rows(engine, "scores")} < before
        assert {row["stream"] for row in ledger(engine) if row["proof"] == "failed"} == {"scores"}
        assert {row["finished_at"] is None for row in rows(engine, "sync_runs")} == {False}


def test_a_run_that_lost_its_lease_leaves_the_ledger_to_who_took_over(engine: Engine) -> None:
    noted: list[Row] = []

    def take_over(request: Request) -> None:
        if runs_of(engine) and not noted:
            with writing(engine) as conn:
                conn.execute(update(sync_lease).values(owner="thief:x:y", host="elsewhere"))
                interrupt_runs_of_others(conn, "thief:x:y", datetime.now(UTC))
            noted.extend(runs_of(engine))

    with MockLangfuse(data()) as server:
        server.before_answer = take_over
        with pytest.raises(LeaseLostError):
            run(engine, server)
    assert [one["status"] for one in noted] == ["interrupted"]
    assert runs_of(engine) == noted


def runs_of(engine: Engine) -> list[Row]:
    with reading(engine) as conn:
        return [dict(row) for row in conn.execute(select(sync_runs)).mappings()]
