"""Holds the right to write for as long as a block runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine

from etl.errors import EtlError, LeaseLostError
from etl.load import lease
from etl.load.engine import writing
from etl.load.migrate import current_revision, head_revision, upgrade

log = logging.getLogger(__name__)


@contextmanager
def write_lease(
    engine: Engine,
    *,
    on_upgrade: Callable[[], None] = lambda: None,
    on_copy: Callable[[Path], None] = lambda copy: None,
    on_lost: Callable[[], None] = lambda: None,
) -> Iterator[lease.Owner]:
    """Takes the lease, brings the database to this program's revision, renews the lease every 5 s, and gives it back.

    Args:
        on_upgrade: Called before the tables of an older program are upgraded, which may take minutes.
        on_copy: Told of the copy of a SQLite file that was made before an upgrade.
        on_lost: Called once, from a thread of its own, when another process has taken over.
    Raises:
        LeaseHeldError: A live process holds it; nothing was changed.
        DatabaseRefusedError: The database is not ours, or newer than this program.
        DatabaseError: The database cannot be written.
    """
    owner = lease.this_process()
    if current_revision(engine) is None:
        upgrade(engine)  # there is nothing yet that could be held
    with writing(engine) as conn:
        lease.acquire(conn, owner)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(engine, owner, ended, on_lost), name="lease-heartbeat", daemon=True)
    heart.start()
    try:
        # An older program may be at work in the tables until the lease is ours.
        if current_revision(engine) != head_revision():
            on_upgrade()
        if (copy := upgrade(engine)) is not None:
            on_copy(copy)
        yield owner
    finally:
        ended.set()
        heart.join()
        try:
            with writing(engine) as conn:
                lease.release(conn, owner)
        except EtlError as error:
            log.warning("the write lease could not be given back, it expires by itself: %s", error)


def _beat(engine: Engine, owner: lease.Owner, ended: threading.Event, on_lost: Callable[[], None]) -> None:
    while not ended.wait(lease.HEARTBEAT_EVERY.total_seconds()):
        try:
            with writing(engine) as conn:
                lease.renew(conn, owner)
        except LeaseLostError:
            on_lost()  # whatever is still written finds out in its own transaction
            return
        except EtlError as error:
            log.warning("heartbeat: %s", error)
