"""The right to write: one row of `sync_lease`, so that it works on SQLite, on Postgres and behind a pooler."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, delete, func, select, update

from etl.errors import LeaseHeldError, LeaseLostError
from etl.load.tables import sync_lease
from etl.load.upsert import insert_or_update

HEARTBEAT_EVERY = timedelta(seconds=5)
EXPIRES_AFTER = timedelta(seconds=20)
_NAME = "writer"


class Owner(NamedTuple):
    """Who holds or wants the lease. `token` is new for each process that asks."""

    token: str
    host: str
    pid: int


def this_process() -> Owner:
    """An owner for this process, unlike any other."""
    return Owner(token=os.urandom(8).hex(), host=socket.gethostname(), pid=os.getpid())


def acquire(conn: Connection, owner: Owner) -> None:
    """Takes the lease if nobody alive holds it. Needs a transaction of `engine.writing`.

    Raises:
        LeaseHeldError: A live process holds it; the text says which and since when.
    """
    now = _clock(conn)
    holder = _holder(conn)
    if holder is not None and holder.owner != owner.token and _is_alive(holder, now):
        raise _held_by(holder)
    values = {
        "name": _NAME, "owner": owner.token, "host": owner.host, "pid": owner.pid,
        "acquired_at": now, "heartbeat_at": now,
    }  # fmt: skip
    # Where there was no row to lock, another process may have been faster.
    only_over = sync_lease.c.owner == (holder.owner if holder is not None else owner.token)
    if not insert_or_update(conn, sync_lease, values, only_over=only_over):
        faster = _holder(conn)
        raise _held_by(faster) if faster is not None else LeaseHeldError("another process took it; try again")


def _holder(conn: Connection) -> Row[Any] | None:
    return conn.execute(select(sync_lease).where(sync_lease.c.name == _NAME).with_for_update()).first()


def _held_by(holder: Row[Any]) -> LeaseHeldError:
    return LeaseHeldError(
        f"process {holder.pid} on {holder.host} writes to this database since"
        f" {holder.acquired_at:%Y-%m-%d %H:%M:%S} UTC; wait until it is done, or stop it"
    )


def renew(conn: Connection, owner: Owner) -> None:
    """Proves, inside a transaction, that the lease is still ours; every page transaction begins with it.

    Raises:
        LeaseLostError: Another process took it.
    """
    held = update(sync_lease).where(sync_lease.c.name == _NAME, sync_lease.c.owner == owner.token)
    if conn.execute(held.values(heartbeat_at=_clock(conn))).rowcount != 1:
        raise LeaseLostError("another process took over writing to this database; this one stops, nothing is lost")


def release(conn: Connection, owner: Owner) -> None:
    """Gives the lease back, if it is still ours."""
    conn.execute(delete(sync_lease).where(sync_lease.c.name == _NAME, sync_lease.c.owner == owner.token))


def _clock(conn: Connection) -> datetime:
    """Real time; the database's where several hosts may compete."""
    if conn.dialect.name == "postgresql":
        moment: datetime = conn.execute(select(func.clock_timestamp())).scalar_one()
        return moment
    return datetime.now(UTC)


def _is_alive(holder: Row[Any], now: datetime) -> bool:
    if now - holder.heartbeat_at > EXPIRES_AFTER:
        return False
    if holder.host != socket.gethostname():
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it exists, but belongs to somebody else
    return True
