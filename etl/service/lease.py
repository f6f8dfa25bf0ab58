"""Holds the right to write for as long as a block runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from etl.errors import EtlError
from etl.load import lease
from etl.load.engine import writing

log = logging.getLogger(__name__)


@contextmanager
def write_lease(engine: Engine) -> Iterator[lease.Owner]:
    """Takes the lease, renews it every 5 s in the background, and gives it back.

    Raises:
        LeaseHeldError: A live process holds it.
        DatabaseError: The database cannot be written.
    """
    owner = lease.this_process()
    with writing(engine) as conn:
        lease.acquire(conn, owner)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(engine, owner, ended), name="lease-heartbeat", daemon=True)
    heart.start()
    try:
        yield owner
    finally:
        ended.set()
        heart.join()
        try:
            with writing(engine) as conn:
                lease.release(conn, owner)
        except EtlError as error:
            log.warning("the write lease could not be given back, it expires by itself: %s", error)


def _beat(engine: Engine, owner: lease.Owner, ended: threading.Event) -> None:
    while not ended.wait(lease.HEARTBEAT_EVERY.total_seconds()):
        try:
            with writing(engine) as conn:
                lease.renew(conn, owner)
        except EtlError as error:
            # The next page transaction finds out for itself, and stops if the lease is lost.
            log.warning("heartbeat: %s", error)
