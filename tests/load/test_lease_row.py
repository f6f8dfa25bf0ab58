"""The right to write, held by one process at a time."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from database_looks import instant, stored_in
from recorded_rows import STREAMS, to_row
from sqlalchemy import Engine, event, select, update

from etl.errors import LeaseHeldError, LeaseLostError
from etl.load import lease
from etl.load.engine import reading, writing
from etl.load.lease import Owner
from etl.load.schedule import Planned, save_planned
from etl.load.tables import sync_lease
from etl.load.upsert import upsert

HERE = socket.gethostname()


_ASK = "from etl.load import lease; print(*lease.this_process(), flush=True); input()"


@contextlib.contextmanager
def process_of_its_own() -> Iterator[Owner]:
    """An owner in another process of this host, which lives until the block ends."""
    with subprocess.Popen([sys.executable, "-c", _ASK], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        token, host, pid = process.stdout.readline().decode().split()
        yield Owner(token, host, int(pid))
        process.stdin.write(b"\n")


@functools.cache
def dead() -> Owner:
    with process_of_its_own() as owner:
        pass
    return owner


@pytest.fixture(scope="module")
def neighbour() -> Iterator[Owner]:
    """A process of this host that lives."""
    with process_of_its_own() as owner:
        yield owner


def somebody(host: str = "elsewhere") -> Owner:
    """Another owner, of another host."""
    return Owner(token=os.urandom(4).hex(), host=host, pid=4)


def identity(owner: Owner) -> list[str]:
    """The token itself, the place and the start of its process."""
    return owner.token.split(":")


def acquire(engine: Engine, owner: Owner) -> None:
    with writing(engine) as conn:
        lease.acquire(conn, owner)


def grow_old(engine: Engine, age: timedelta) -> None:
    """As if the holder had last been heard of that long ago."""
    with writing(engine) as conn:
        before = conn.execute(select(sync_lease.c.heartbeat_at)).scalar_one()
        conn.execute(update(sync_lease).values(heartbeat_at=before - age))


def holder(engine: Engine) -> Any:
    with reading(engine) as conn:
        return conn.execute(select(sync_lease.c.owner)).scalar()


def test_a_second_process_is_told_who_writes_and_since_when(engine: Engine, neighbour: Owner) -> None:
    first = neighbour
    acquire(engine, first)
    with reading(engine) as conn:
        since = conn.execute(select(sync_lease.c.acquired_at)).scalar_one()

    with pytest.raises(LeaseHeldError) as refused:
        acquire(engine, somebody())
    text = str(refused.value)
    assert "\n" not in text
    for part in (str(first.pid), HERE, f"{since:%Y-%m-%d %H:%M:%S} UTC", "stop it"):
        assert part in text
    assert holder(engine) == first.token


def test_beside_the_service_nobody_is_told_to_wait_until_it_is_done(engine: Engine) -> None:
    service = somebody()
    acquire(engine, service)
    with writing(engine) as conn:
        save_planned(conn, Planned("shop", service.token, None))
    with pytest.raises(LeaseHeldError, match=r"is the service, .* copies by itself: `langfuse-etl status`") as refused:
        acquire(engine, somebody())
    assert "until it is done" not in str(refused.value)


def test_the_holder_may_take_it_again_and_give_it_back(engine: Engine) -> None:
    me, other = lease.this_process(), somebody()
    acquire(engine, me)
    acquire(engine, me)
    with writing(engine) as conn:
        lease.renew(conn, me)
        lease.release(conn, other)
    assert holder(engine) == me.token, "only the holder gives it back"
    with writing(engine) as conn:
        lease.release(conn, me)
        lease.release(conn, me)
    assert holder(engine) is None
    acquire(engine, other)
    assert holder(engine) == other.token


def test_a_dead_process_of_this_host_frees_it_at_once(engine: Engine) -> None:
    acquire(engine, dead())
    me = lease.this_process()
    acquire(engine, me)

    assert holder(engine) == me.token


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where a process is and when it started")
@pytest.mark.parametrize("pid", ["its own", "mine", "a living one"])
def test_a_process_number_that_was_given_to_another_process_does_not_keep_it(
    engine: Engine, neighbour: Owner, pid: str
) -> None:
    """As in a container that is started again: same host name, same number, another process."""
    gone = dead()._replace(pid={"its own": dead().pid, "mine": os.getpid(), "a living one": neighbour.pid}[pid])
    acquire(engine, gone)
    me = lease.this_process()
    acquire(engine, me)

    assert holder(engine) == me.token


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has namespaces of process ids")
def test_a_container_with_the_same_host_name_is_not_judged_by_its_process_number(engine: Engine) -> None:
    token, place, started = identity(dead())
    boot, _, namespace = place.partition("/")
    acquire(engine, dead()._replace(token=f"{token}:{boot}/{int(namespace) + 1}:{started}"))

    with pytest.raises(LeaseHeldError):
        acquire(engine, lease.this_process())
    grow_old(engine, timedelta(seconds=21))
    acquire(engine, lease.this_process())


def test_another_holder_in_this_very_process_is_alive(engine: Engine) -> None:
    acquire(engine, lease.this_process())

    with pytest.raises(LeaseHeldError):
        acquire(engine, lease.this_process())


def test_a_dead_looking_process_of_another_host_holds_it(engine: Engine) -> None:
    acquire(engine, dead()._replace(host="elsewhere"))

    with pytest.raises(LeaseHeldError, match="elsewhere"):
        acquire(engine, lease.this_process())


def test_a_heartbeat_from_before_the_clock_was_set_back_an_hour_holds_nothing(engine: Engine) -> None:
    acquire(engine, somebody())
    grow_old(engine, timedelta(hours=-1))
    me = lease.this_process()
    acquire(engine, me)

    assert holder(engine) == me.token


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_process_that_is_silent_for_20_seconds_loses_it_and_no_sooner(
    engine: Engine, neighbour: Owner, where: str
) -> None:
    silent, me = neighbour if where == "here" else somebody(), lease.this_process()
    acquire(engine, silent)

    grow_old(engine, timedelta(seconds=15))
    with pytest.raises(LeaseHeldError):
        acquire(engine, me)
    grow_old(engine, timedelta(seconds=6))
    acquire(engine, me)
    assert holder(engine) == me.token


def test_a_heartbeat_keeps_it(engine: Engine) -> None:
    alive = somebody()
    acquire(engine, alive)
    grow_old(engine, timedelta(seconds=19))
    with writing(engine) as conn:
        lease.renew(conn, alive)
    grow_old(engine, timedelta(seconds=15))

    with pytest.raises(LeaseHeldError):
        acquire(engine, lease.this_process())


def test_who_lost_it_writes_nothing_more(engine: Engine) -> None:
    slow, fast = lease.this_process(), somebody()
    acquire(engine, slow)
    grow_old(engine, timedelta(seconds=30))
    acquire(engine, fast)

    def store_page(*, check_first: bool) -> None:
        with writing(engine) as conn:
            if check_first:
                lease.renew(conn, slow)
            upsert(conn, "traces", [to_row({"id": "t"}, STREAMS["traces"])], instant(0))
            lease.renew(conn, slow)

    for check_first in (True, False):
        with pytest.raises(LeaseLostError, match="took over"):
            store_page(check_first=check_first)
    assert stored_in(engine, "traces") == {}
    assert holder(engine) == fast.token


def test_renewing_what_was_never_taken_is_refused(engine: Engine) -> None:
    with pytest.raises(LeaseLostError), writing(engine) as conn:
        lease.renew(conn, lease.this_process())


@pytest.mark.parametrize("before", ["nobody", "a dead process"])
def test_of_two_that_ask_at_the_same_moment_exactly_one_gets_it(engine: Engine, before: str) -> None:
    if before == "a dead process":
        acquire(engine, dead())
    if engine.dialect.name == "postgresql" and before == "nobody":
        # Both have looked and found nobody before either of them writes. (SQLite lets only one so far.)
        both_looked = threading.Barrier(2)

        def wait_for_the_other(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT INTO") and "sync_lease" in statement:
                both_looked.wait(timeout=20)

        event.listen(engine, "before_cursor_execute", wait_for_the_other)
    outcomes: list[str] = []

    def ask() -> None:
        me = lease.this_process()
        try:
            acquire(engine, me)
        except LeaseHeldError:
            outcomes.append("refused")
        else:
            outcomes.append(me.token)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcome == "refused" for outcome in outcomes) == [False, True]
    assert holder(engine) in outcomes
