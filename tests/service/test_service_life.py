"""The service from its start to its end: runs, signals, other settings, several projects."""

from __future__ import annotations

import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from database_looks import count
from instances import Instance, Setup, data, make_data
from nursery import Nursery

from etl.demo import MockLangfuse, Project, Request
from etl.load.engine import open_engine, reading
from etl.load.status import Run, last_runs
from etl.load.tables import ROW_TABLES, sync_lease

WRITING = (
    ["sync"],
    ["backfill", "--from", "2026-01-01T00:00:00Z"],
    ["verify", "--repair"],
    ["export", "x", "--refresh"],
)


def runs_in(url: str) -> list[Run]:
    engine = open_engine(url, "public")
    with reading(engine) as conn:
        found = last_runs(conn, "proj-shop", 1000)
    engine.dispose()
    return found


def rows(url: str, schema: str = "public") -> dict[str, int]:
    engine = open_engine(url, schema)
    with reading(engine) as conn:
        found = {name: count(conn, table) for name, table in ROW_TABLES.items()}
    engine.dispose()
    return found


def truth() -> dict[str, int]:
    return {name: len(getattr(data(), name)()) for name in ROW_TABLES}


def test_it_copies_at_once_then_on_its_schedule_and_ends_in_good_order(setup: Setup, sqlite_url: str) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop") >= 2)
        assert service.get("/healthz").json()["alive"] is True
        assert service.get("/readyz").json() == {"ready": True, "role": "leader", "reasons": [], "notes": []}
        status = setup.command("status", "--json").document
        assert status["database"]["service"]["running"] is True
        assert status["database"]["service"]["pid"] == service.pid
        (project,) = status["projects"]
        assert project["next_run"] is not None
        assert project["trouble"] is None
        for words in WRITING:
            one = setup.command(*words)
            assert (one.code, one.out) == (1, "")
            assert one.err.startswith(f"error: process {service.pid} on ")
        assert service.stop() == 0
        *_, last = service.log().splitlines()
        assert last.endswith("stopped")
        assert len(re.findall(r" run \d+ of shop: \w+, \d+ rows read", service.log())) == len(runs_in(sqlite_url))
    assert rows(sqlite_url) == truth()
    after = setup.command("status", "--json").document
    assert after["database"]["service"] == {"running": False, "host": None, "pid": None, "since": None}
    assert after["projects"][0]["next_run"] is None


@pytest.fixture
def patient(setup: Setup) -> Setup:
    """A request may take two minutes."""
    setup.settings["http"]["timeout"] = "2m"
    setup.write()
    return setup


@contextmanager
def held(server: MockLangfuse, path: str) -> Iterator[threading.Event]:
    """Requests of this path are answered after the block; gives what tells that one is waiting."""
    waiting, answers = threading.Event(), threading.Event()

    def hold(request: Request) -> None:
        if request.path.endswith(path):
            waiting.set()
            answers.wait(60)

    server.before_answer = hold
    try:
        yield waiting
    finally:
        server.before_answer = None
        answers.set()


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_within_ten_seconds_while_a_request_hangs(
    patient: Setup, server: MockLangfuse, sqlite_url: str, number: signal.Signals
) -> None:
    # Where it begins is found first.
    server.faults.add("slow", "/observations", times=None, after=12, delay_s=60)
    with Instance(patient) as service:
        service.wait_for(lambda: server.faults.fired)
        service.wait_for(lambda: service.metric("langfuse_etl_rows_written_total", stream="traces"))
        started = time.monotonic()
        assert service.stop(number) == 0
        assert time.monotonic() - started < 10
    runs = runs_in(sqlite_url)
    assert runs[0].status == "interrupted"
    assert sum(run.rows_written for run in runs) == sum(rows(sqlite_url).values()) > 0
    engine = open_engine(sqlite_url, "public")
    with reading(engine) as conn:
        assert count(conn, sync_lease) == 0
    engine.dispose()


@pytest.mark.long
@pytest.mark.parametrize("path", ["/projects", "/sessions"])
def test_it_ends_within_ten_seconds_while_the_run_itself_waits_for_an_answer(
    patient: Setup, server: MockLangfuse, sqlite_url: str, path: str
) -> None:
    """Who it is, and where its data begins, is asked before anything is read."""
    server.faults.add("slow", path, times=None, delay_s=60)
    with Instance(patient) as service:
        service.wait_for(lambda: server.faults.fired)
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 10
    assert {run.status for run in runs_in(sqlite_url)} <= {"interrupted"}


def test_a_second_signal_ends_it_at_once_and_nothing_is_lost(
    patient: Setup, server: MockLangfuse, sqlite_url: str
) -> None:
    server.faults.add("slow", "/projects", delay_s=60)
    with Instance(patient) as service:
        service.wait_for(lambda: server.faults.fired)
        service.send(signal.SIGTERM)
        service.wait_for_log("stopping")
        started = time.monotonic()
        assert service.stop() == 130
        assert time.monotonic() - started < 2
    with Instance(patient, name="again") as service:
        service.wait_for(lambda: service.runs("shop"))
        assert service.stop() == 0
    assert rows(sqlite_url) == truth()


def test_a_hangup_reads_the_settings_again_and_keeps_the_former_ones_if_they_are_wrong(setup: Setup) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop"))
        setup.settings["sync"]["every"] = "often"
        setup.write()
        service.send(signal.SIGHUP)
        service.wait_for_log("the former one stays: sync.every: 'often'")
        service.wait_for_runs("shop")

        setup.settings["sync"]["every"] = "2s"
        setup.settings["projects"][0]["name"] = "renamed"
        setup.settings["service"] = {"listen": "127.0.0.1:1", "ready_lag": "1s"}
        setup.write()
        service.send(signal.SIGHUP)
        service.wait_for_log("service.listen was changed; that takes a restart")
        service.wait_for(lambda: service.runs("renamed"))
        assert service.metric("langfuse_etl_running", project="shop") is None
        assert "service.ready_lag (1s)" in service.get("/readyz").text
        assert service.stop() == 0


@pytest.mark.long
def test_a_broken_and_a_slow_project_do_not_stop_the_others(
    nursery: Nursery, tmp_path: Path, server: MockLangfuse, sqlite_url: str
) -> None:
    with MockLangfuse(make_data(50)) as slow:
        slow.faults.add("slow", times=None, delay_s=60)
        setup = Setup(
            nursery, tmp_path, {"dead": "http://127.0.0.1:9", "slow": slow, "shop": server}, database_url=sqlite_url
        )
        setup.settings["http"]["timeout"] = "2m"
        setup.write()
        with Instance(setup) as service:
            service.wait_for(lambda: service.runs("shop") >= 3)
            service.wait_for(lambda: service.metric("langfuse_etl_consecutive_failures", project="dead"))
            assert service.metric("langfuse_etl_running", project="slow") == 1
            ready = service.get("/readyz")
            assert ready.status_code == 503
            assert any("dead" in reason for reason in ready.json()["reasons"])
            assert service.stop() == 0
    assert rows(sqlite_url) == truth()


def test_a_revoked_key_is_waited_for_and_recovers_without_a_restart(setup: Setup, server: MockLangfuse) -> None:
    with Instance(setup) as service:
        service.wait_for(lambda: service.runs("shop"))
        server.faults.add("status", times=None, status=401)
        service.wait_for(lambda: service.runs("shop", "failed") >= 2)
        answer = service.get("/readyz")
        assert answer.status_code == 503
        assert "does not know the key pair" in answer.text
        (project,) = setup.command("status", "--json").document["projects"]
        assert project["trouble"]["needs_person"] is True
        assert "does not know the key pair" in project["trouble"]["reason"]
        server.faults.clear()
        service.wait_for(lambda: service.get("/readyz").status_code == 200)
        (project,) = setup.command("status", "--json").document["projects"]
        assert project["trouble"] is None
        assert service.stop() == 0


def test_two_entries_for_one_langfuse_project_do_not_take_turns_at_undoing_each_other(
    nursery: Nursery, tmp_path: Path, server: MockLangfuse, sqlite_url: str
) -> None:
    setup = Setup(nursery, tmp_path, {"one": server, "other": server}, database_url=sqlite_url)
    with Instance(setup) as service:
        troubled = service.wait_for(
            lambda: [n for n in ("one", "other") if service.metric("langfuse_etl_needs_person", project=n)]
        )
        (well,) = {"one", "other"} - set(troubled)
        service.wait_for(lambda: service.runs(well) >= 2)
        assert "keys of the same Langfuse project (proj-shop); remove one of them" in service.get("/readyz").text
        assert service.stop() == 0
    assert rows(sqlite_url) == truth()


def test_two_entries_that_swap_their_projects_go_on_after_a_hangup(
    nursery: Nursery, tmp_path: Path, server: MockLangfuse, sqlite_url: str
) -> None:
    with MockLangfuse(make_data(20), project=Project(id="proj-toys")) as toys:
        setup = Setup(nursery, tmp_path, {"one": server, "other": toys}, database_url=sqlite_url)
        with Instance(setup) as service:
            service.wait_for(lambda: service.runs("one") and service.runs("other"))
            one, other = setup.settings["projects"]
            one["base_url"], other["base_url"] = other["base_url"], one["base_url"]
            setup.write()
            # Of both a run is under way that learns only afterwards whose its keys are, by its own settings.
            with held(server, "/projects") as first, held(toys, "/projects") as second:
                assert first.wait(30)
                assert second.wait(30)
                service.send(signal.SIGHUP)
                service.wait_for_log("the configuration was read again")
            service.wait_for_runs("one", 2)
            service.wait_for_runs("other", 2)
            service.wait_for(lambda: service.get("/readyz").status_code == 200)
            assert service.stop() == 0


def test_logs_are_json_lines_if_wanted(setup: Setup) -> None:
    with Instance(setup, options=["--log-json"]) as service:
        service.wait_for(lambda: "run 1 of shop: ok" in service.log())
        assert service.stop() == 0
        for line in service.log().splitlines():
            assert json.loads(line).keys() >= {"time", "level", "logger", "message"}


def test_an_address_that_is_taken_is_said_and_nothing_is_started(setup: Setup, sqlite_url: str) -> None:
    with Instance(setup) as service:
        setup.environ["LANGFUSE_ETL_SERVICE__LISTEN"] = service.url.removeprefix("http://")
        setup.environ["LANGFUSE_ETL_DATABASE_URL"] = f"{sqlite_url}.other"
        refused = setup.command("run")
        assert refused.code == 3
        assert "service.listen" in refused.err


def test_what_is_not_there_is_not_found(setup: Setup) -> None:
    with Instance(setup) as service:
        answer = service.get("/nothing")
        assert answer.status_code == 404
        assert answer.headers["Cache-Control"] == "no-store"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert requests.post(service.url + "/", timeout=5).status_code == 501
