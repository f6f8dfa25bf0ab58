"""The right to write, held by one process at a time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
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
from etl.load.tables import sync_lease
from etl.load.upsert import upsert

HERE = socket.gethostname()


def somebody(host: str = HERE, pid: int | None = None) -> Owner:
    """Another owner; on this host it is a process that lives."""
    return Owner(token=os.urandom(4).hex(), host=host, pid=os.getppid() if pid is None else pid)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


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


def test_a_second_process_is_told_who_writes_and_since_when(engine: Engine) -> None:
    first = somebody()
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
    acquire(engine, somebody(pid=dead_process()))
    me = lease.this_process()
    acquire(engine, me)

    assert holder(engine) == me.token


def test_a_dead_looking_process_of_another_host_holds_it(engine: Engine) -> None:
    acquire(engine, somebody("elsewhere", dead_process()))

    with pytest.raises(LeaseHeldError, match="elsewhere"):
        acquire(engine, lease.this_process())


@pytest.mark.parametrize("host", [HERE, "elsewhere"])
def test_a_process_that_is_silent_for_20_seconds_loses_it_and_no_sooner(engine: Engine, host: str) -> None:
    silent, me = somebody(host), lease.this_process()
    acquire(engine, silent)

    grow_old(engine, timedelta(seconds=15))
    with pytest.raises(LeaseHeldError):
        acquire(engine, me)
    grow_old(engine, timedelta(seconds=6))
    acquire(engine, me)
    assert holder(engine) == me.token


def test_a_heartbeat_keeps_it(engine: Engine) -> None:
    alive = somebody("elsewhere")
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
        acquire(engine, somebody(pid=dead_process()))
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
