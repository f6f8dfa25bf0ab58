"""The right to write: one row of `sync_lease`, so that it works on SQLite, on Postgres and behind a pooler."""

from __future__ import annotations

import os
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, delete, exists, func, inspect, select, update

from etl.errors import LeaseHeldError, LeaseLostError
from etl.load.engine import schema_of
from etl.load.tables import sync_lease, sync_schedule
from etl.load.upsert import insert_or_update

HEARTBEAT_EVERY = timedelta(seconds=5)
EXPIRES_AFTER = timedelta(seconds=20)
_NAME = "writer"


class Owner(NamedTuple):
    """Who holds or wants the lease.

    `token` is new for each owner and ends with what tells this process from every other: where its process id counts
    (this boot of this machine, this container), and when it started. The table never changes, so that a newer
    program can hold the lease while it upgrades the tables of an older one.
    """

    token: str
    host: str
    pid: int


class Holder(NamedTuple):
    """Who is in the table."""

    token: str
    host: str
    pid: int
    acquired_at: datetime
    heartbeat_at: datetime


def this_process() -> Owner:
    """An owner for this process, unlike any other."""
    place = _place()
    started = _started(os.getpid()) if place else None
    return Owner(token=f"{os.urandom(8).hex()}:{place}:{started or _NONCE}", host=socket.gethostname(), pid=os.getpid())


def living_holder(conn: Connection) -> Holder | None:
    """Who holds the lease now; None if nobody alive does."""
    holder = _holder(conn, lock=False)
    return holder if holder is not None and _is_alive(holder, _clock(conn)) else None


def refuse_if_held(conn: Connection) -> None:
    """Says so if the lease could not be taken now; changes nothing.

    Raises:
        LeaseHeldError: A live process holds it.
    """
    holder = living_holder(conn)
    if holder is not None:
        raise _held_by(conn, holder)


def acquire(conn: Connection, owner: Owner) -> None:
    """Takes the lease if nobody alive holds it. Needs a transaction of `engine.writing`.

    Raises:
        LeaseHeldError: A live process holds it; the text says which and since when.
    """
    now = _clock(conn)
    holder = _holder(conn)
    if holder is not None and holder.token != owner.token and _is_alive(holder, now):
        raise _held_by(conn, holder)
    values = {
        "name": _NAME, "owner": owner.token, "host": owner.host, "pid": owner.pid,
        "acquired_at": now, "heartbeat_at": now,
    }  # fmt: skip
    # Where there was no row to lock, another process may have been faster.
    only_over = sync_lease.c.owner == (holder.token if holder is not None else owner.token)
    if not insert_or_update(conn, sync_lease, values, only_over=only_over):
        faster = _holder(conn)
        raise _held_by(conn, faster) if faster is not None else LeaseHeldError("another process took it; try again")


def _holder(conn: Connection, *, lock: bool = True) -> Holder | None:
    columns = sync_lease.c
    query = select(columns.owner, columns.host, columns.pid, columns.acquired_at, columns.heartbeat_at)
    query = query.where(columns.name == _NAME)
    row = conn.execute(query.with_for_update() if lock else query).first()
    return None if row is None else Holder(*row)


def _held_by(conn: Connection, holder: Holder) -> LeaseHeldError:
    if _plans(conn, holder):
        return LeaseHeldError(
            f"process {holder.pid} on {holder.host} is the service, which runs since"
            f" {holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC and copies by itself: `langfuse-etl status` shows how far;"
            " only one process writes at a time, so stop it if this has to run now"
        )
    return LeaseHeldError(
        f"process {holder.pid} on {holder.host} writes to this database since"
        f" {holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC; wait until it is done, or stop it"
    )


def _plans(conn: Connection, holder: Holder) -> bool:
    """Whether the holder is the service, which alone plans runs; the tables may still be those of an older program."""
    if not inspect(conn).has_table(sync_schedule.name, schema=schema_of(conn)):
        return False
    return conn.execute(select(exists().where(sync_schedule.c.owner == holder.token))).scalar_one()


def renew(conn: Connection, owner: Owner) -> None:
    """Proves, inside a transaction, that the lease is still ours; every page transaction begins with it.

    Raises:
        LeaseLostError: Another process took it.
    """
    on_postgres = conn.dialect.name == "postgresql"
    now = {} if on_postgres else {"moment": _clock(conn)}
    if conn.execute(_RENEW_THERE if on_postgres else _RENEW, {"holder": owner.token, **now}).rowcount != 1:
        raise LeaseLostError("another process took over writing to this database; this one stops, nothing is lost")


_OWN = update(sync_lease).where(sync_lease.c.name == _NAME, sync_lease.c.owner == bindparam("holder"))
_RENEW = _OWN.values(heartbeat_at=bindparam("moment"))
# Every transaction begins with it: the clock is not asked for by a statement of its own.
_RENEW_THERE = _OWN.values(heartbeat_at=func.clock_timestamp())


def release(conn: Connection, owner: Owner) -> None:
    """Gives the lease back, if it is still ours."""
    conn.execute(delete(sync_lease).where(sync_lease.c.name == _NAME, sync_lease.c.owner == owner.token))


def _clock(conn: Connection) -> datetime:
    """Real time; the database's where several hosts may compete."""
    if conn.dialect.name == "postgresql":
        moment: datetime = conn.execute(select(func.clock_timestamp())).scalar_one()
        return moment
    return datetime.now(UTC)


def _is_alive(holder: Holder, now: datetime) -> bool:
    # A heartbeat from the future is one from before the clock was set back.
    if abs(now - holder.heartbeat_at) > EXPIRES_AFTER:
        return False
    _, _, identity = holder.token.partition(":")
    place, _, started = identity.rpartition(":")
    # Elsewhere, process ids are those of other processes: only its silence can tell.
    if holder.host != socket.gethostname() or place != _place() or sys.platform == "win32":
        return True
    if holder.pid == os.getpid():
        return started == (_started(holder.pid) or _NONCE)
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it exists, but belongs to somebody else
    # A process that got the number of a dead one started at another time.
    return _started(holder.pid) in (None, started)


# Tells this process from an earlier one with its number, where the system does not tell when a process started.
_NONCE = os.urandom(4).hex()


def _place() -> str:
    """Where process ids mean what they mean here: this boot of this kernel, and the namespace of process ids.

    Empty where there is no `/proc` for it (proc_pid_stat(5), pid_namespaces(7)); then the host name has to do.
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return ""  # it shows the processes of another namespace
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the boot; None if the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    # Field 22; the second one is a name in brackets, which may hold spaces and brackets.
    return stat.rpartition(")")[2].split()[19]
