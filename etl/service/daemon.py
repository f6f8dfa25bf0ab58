"""The background service: one process that leads or stands by, listens, and ends in good order."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine

from etl import __version__
from etl.config import Config
from etl.errors import ConfigError, DatabaseError, DatabaseRefusedError, EtlError, LeaseHeldError
from etl.load.engine import reading
from etl.load.lease import Owner, refuse_if_held
from etl.load.migrate import current_revision
from etl.service.board import Board
from etl.service.health import Readiness, readiness
from etl.service.leader import Leader
from etl.service.lease import write_lease
from etl.service.metrics import Metrics
from etl.service.page import POLICY, render
from etl.service.snapshot import Snapshots
from etl.service.web import Response, Routes, listening, metrics, text

log = logging.getLogger(__name__)

_TURN_S = 1.0
_STANDBY_ASKS_EVERY_S = 2.0
_DATABASE_ASKED_EVERY_S = 5.0
# Of the 10 seconds in which a stop is promised: for the pages at hand, and for everything.
_RUNS_END_WITHIN_S = 6.0
_ALL_ENDS_WITHIN_S = 9.0
# The wall clock may drift from the steady one by this much between two turns; more is a jump, or a sleep.
_CLOCK_JUMP_S = 30.0


class Daemon:
    """One life of the service.

    Args:
        config: As the configuration stands now.
        reload: Reads the configuration again.
        on_copy: Told of the copy of a SQLite file that was made before an upgrade.
    """

    def __init__(
        self, config: Config, engine: Engine, *, reload: Callable[[], Config], on_copy: Callable[[Path], None]
    ) -> None:
        self._config, self._engine = config, engine
        self._reload_config, self._on_copy = reload, on_copy
        self._board = Board()
        self._snapshots = Snapshots(engine)
        self._metrics = Metrics(self._board, self._snapshots.newest)
        self._signals: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._leader: Leader | None = None

    def run(self) -> None:
        """Returns when a signal asked to stop.

        Raises:
            LeaseHeldError: Another process writes to this SQLite file.
            ConfigError: The database is not ours or newer than this program, or the address is taken.
            DatabaseError: The database cannot be reached at the start.
        """
        with self._signal_handlers():
            try:
                self._serve()
            except (DatabaseError, LeaseHeldError) as error:
                if not self._stopping:
                    raise
                log.warning("%s", error)  # it was asked to stop while it waited for the database
        log.info("stopped")

    def _serve(self) -> None:
        self._first_look()
        with listening(self._config.service.address, self._routes()) as (host, port):
            shown = f"[{host}]" if ":" in host else host
            log.info(
                "langfuse-etl %s: %d project(s) every %d s into %s, http://%s:%d/", __version__,
                len(self._config.projects), self._config.sync.every.total_seconds(),
                self._config.database.safe_url, shown, port,
            )  # fmt: skip
            while not self._stopping:
                self._lead_or_wait()

    def _first_look(self) -> None:
        """What cannot work is said at once, before anything listens."""
        revision = current_revision(self._engine)
        if revision is not None and self._is_sqlite:
            with reading(self._engine) as conn:
                refuse_if_held(conn)

    @property
    def _stopping(self) -> bool:
        return self._stop.is_set()

    @property
    def _is_sqlite(self) -> bool:
        return self._engine.dialect.name == "sqlite"

    # Leading and standing by

    def _lead_or_wait(self) -> None:
        # One for each leadership: a run that an earlier one left behind finds out late that its lease is lost.
        lost = threading.Event()
        try:
            with write_lease(
                self._engine, on_upgrade=self._say_upgrade, on_copy=self._on_copy, on_lost=lost.set
            ) as owner:
                if not self._stopping:
                    self._lead(owner, lost)
        except LeaseHeldError as held:
            if self._is_sqlite:
                raise
            waits_already = self._board.role == "standby"
            self._board.become("standby", str(held))
            if not waits_already:
                log.info("standby: %s", held)
            self._attend(_STANDBY_ASKS_EVERY_S)
        except DatabaseRefusedError:
            raise
        except DatabaseError as error:
            if self._is_sqlite and self._board.role == "starting":
                raise
            log.warning("%s", error)
            self._board.become("standby", str(error))
            self._attend(_DATABASE_ASKED_EVERY_S)

    def _say_upgrade(self) -> None:
        log.info("the tables are brought to the revision of this program; that may take minutes")
        self._board.become("upgrading", "the tables are brought to the revision of this program")

    def _lead(self, owner: Owner, lost: threading.Event) -> None:
        self._board.become("leader")
        log.info("this process writes to the database from now on")
        self._snapshots.forget()
        leader = Leader(self._config, self._engine, owner, self._board, self._metrics, lost.set, self._snapshots.forget)
        leader.start()
        self._leader = leader
        try:
            offset_s = time.time() - time.monotonic()
            while not (self._stopping or lost.is_set()):
                self._attend(_TURN_S)
                jump_s = time.time() - time.monotonic() - offset_s
                if abs(jump_s) > _CLOCK_JUMP_S:
                    log.warning("the clock moved by %+.0f s (or this machine slept); every project runs now", jump_s)
                    offset_s += jump_s
                    leader.run_all_now()
        finally:
            self._leader = None
            self._end(leader, lost)

    def _end(self, leader: Leader, lost: threading.Event) -> None:
        if lost.is_set():
            log.warning("another process took over writing to this database; nothing is lost, this one stands by")
        ended = leader.stop(_RUNS_END_WITHIN_S)
        if not ended:
            log.info("a run waits for an answer of Langfuse; it is left behind")
        if not lost.is_set():
            try:
                leader.note_stopped()
            except EtlError as error:
                log.warning("the end of the runs could not be noted: %s", error)
        self._board.become(
            "stopping" if self._stopping else "standby", None if self._stopping else "the lease was lost"
        )

    # Signals

    @contextmanager
    def _signal_handlers(self) -> Iterator[None]:
        """Signals are heard by a thread of their own: the main one may wait for the database in C code."""
        heard, told = socket.socketpair()
        told.setblocking(False)
        threading.Thread(target=self._hear, args=(heard,), name="signals", daemon=True).start()
        names = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
        fd_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        before = {name: signal.signal(name, lambda *_: None) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
            signal.set_wakeup_fd(fd_before)
            told.close()

    def _hear(self, heard: socket.socket) -> None:
        with heard:
            while numbers := heard.recv(64):
                for number in numbers:
                    self._on_signal(number)

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGINT, signal.SIGTERM):
            if self._stopping:
                os._exit(130)  # what is not committed is rolled back by the database, and read again
            self._stop.set()
            log.info("stopping after the pages at hand; once more to stop at once")
            # Whatever hangs, a request or the database: nothing that was committed is lost by leaving.
            deadline = threading.Timer(_ALL_ENDS_WITHIN_S, os._exit, (0,))
            deadline.daemon = True
            deadline.start()
        elif number != getattr(signal, "SIGHUP", None):
            return
        self._signals.put(number)

    def _attend(self, timeout_s: float) -> None:
        """Waits for a signal, and does what it asks for."""
        self._board.beat()
        try:
            number = self._signals.get(timeout=timeout_s)
        except queue.Empty:
            return
        if number not in (signal.SIGINT, signal.SIGTERM):
            self._reload()

    def _reload(self) -> None:
        try:
            config = self._reload_config()
        except ConfigError as error:
            for problem in error.problems:
                log.error("the configuration was not read again, the former one stays: %s", problem)
            return
        if config.database != self._config.database:
            log.warning("database was changed; that takes a restart, the former one stays")
        if config.service.listen != self._config.service.listen:
            log.warning("service.listen was changed; that takes a restart, the former one stays")
        config = config.model_copy(
            update={
                "database": self._config.database,
                "service": config.service.model_copy(update={"listen": self._config.service.listen}),
            }
        )
        self._config = config
        log.info("the configuration was read again: %d project(s)", len(config.projects))
        if self._leader is not None:
            self._leader.reload(config)

    # What the listener answers

    def _routes(self) -> Routes:
        return {
            "/": self._page,
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/metrics": lambda: metrics(self._metrics.exposition()),
        }

    def _page(self) -> Response:
        page = render(
            self._board.role, self._board.detail, self._board.projects(), self._snapshots.newest(), self._readiness(),
            ready_lag=self._config.service.ready_lag, database=self._config.database.safe_url, now=datetime.now(UTC),
        )  # fmt: skip
        return Response(200, "text/html; charset=utf-8", page.encode(), POLICY)

    def _healthz(self) -> Response:
        alive = self._board.alive
        return text(200 if alive else 503, {"alive": alive, "role": self._board.role, "version": __version__})

    def _readyz(self) -> Response:
        found = self._readiness()
        return text(
            200 if found.ready else 503,
            {
                "ready": found.ready, "role": self._board.role, "reasons": list(found.reasons),
                "notes": list(found.notes),
            },
        )  # fmt: skip

    def _readiness(self) -> Readiness:
        return readiness(
            self._board.role, self._board.detail, self._board.projects(), self._snapshots.newest(),
            now=datetime.now(UTC), ready_lag=self._config.service.ready_lag,
        )  # fmt: skip
