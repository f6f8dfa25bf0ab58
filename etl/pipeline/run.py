"""One run: what is due is read in parallel, and written by one writer, page by page.

A window is entered in the ledger in the transaction that stores the last of its rows, so whatever is killed in
between is read again, and reading again changes nothing.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, Engine

from etl.errors import ApiError, ApiGoneError, AuthError, EtlError, RowError, RowRefusedError, ShutdownRequested
from etl.extract.readers import Page, Reader, Segment, SegmentProof
from etl.intervals import Window, intersect, subtract
from etl.load import lease, ledger
from etl.load.compare import differences, differing_stretch
from etl.load.deletions import derived_without_observations, note_unknown, settle_absences
from etl.load.engine import reading, writing
from etl.load.keys import Key
from etl.load.selection import stored_trace_ids
from etl.load.statistics import keep_statistics
from etl.load.types import instant_text
from etl.pipeline import switch
from etl.pipeline.batch import Batch, batch_of, resized
from etl.pipeline.plan import HISTORY, Due
from etl.pipeline.report import RunReport
from etl.pipeline.rowmaker import RowMaker
from etl.pipeline.scope import Scope
from etl.pipeline.sources import Source, plan
from etl.pipeline.store import of_selected_traces, refresh_after_deletion, store_rows
from etl.transform.pages import BRINGS, OBSERVATIONS_V2, SHAPES, Kind, keys_of, rows_of, selected_by_environment
from etl.transform.rows import Row

log = logging.getLogger(__name__)

# Batches that wait for the writer; with one in the hand of each reader this bounds memory.
_BATCHES_WAITING = 1
_POLL_S = 0.2
_ABOUT_NOW = timedelta(minutes=1)
# After so many rows were written, Postgres may have to look at the tables again.
_ROWS_PER_LOOK = 5_000
# Of several flaws the worst is that of the whole.
_WORST_FIRST: tuple[SegmentProof, ...] = ("failed", "doubtful", "partial")
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)

Progress = Callable[[RunReport, int, int], None]
# Told of each window that was read or failed: its stream, its proof, and the seconds it took.
OnWindow = Callable[[str, ledger.Proof, float], None]


class _Delivery(NamedTuple):
    """From a reading thread to the writer: a batch, or the end of a window, with the error that ended it."""

    work: _Work
    batch: Batch | None = None
    error: Exception | None = None
    put_off: bool = False  # what is left of the window is for a later run


@dataclass
class _Work:
    """A due window while it is read: what of it is closed, and what its open segment has brought so far."""

    source: Source
    due: Due
    read_before: bool  # at least in part, so that rows of it are stored
    closed: list[Window] = field(default_factory=list)
    changed: int = 0
    since: float = 0.0  # time.monotonic() when its open segment began
    seen: dict[str, dict[Key, str]] = field(default_factory=dict)  # by table: the keys that came, and their times
    completed: set[str] = field(default_factory=set)  # traces that were asked for whole
    held: Batch | None = None  # what came since the last transaction, of which nothing has to be written
    refused: RowRefusedError | None = None  # some of its rows could not be stored, so nothing of it is closed any more
    ended: bool = False

    def keys_in(self, window: Window, stream: str) -> list[Key]:
        """The keys that came of one table, as far as their times are in `window`."""
        start, end = _bounds(window)
        return [key for key, at in self.seen.get(stream, {}).items() if start <= at < end]

    def rows_in(self, window: Window) -> int:
        """How many rows came whose times are in `window`."""
        start, end = _bounds(window)
        return sum(start <= at < end for seen in self.seen.values() for at in seen.values())

    def forget(self, window: Window) -> None:
        """Drops the keys whose times are in `window`, which is closed."""
        start, end = _bounds(window)
        for stream, seen in self.seen.items():
            self.seen[stream] = {key: at for key, at in seen.items() if not start <= at < end}


def sync(
    engine: Engine,
    owner: lease.Owner,
    reader: Reader,
    scope: Scope,
    *,
    trigger: str,
    requests_sent: Callable[[], int],
    stop: threading.Event,
    on_progress: Progress | None = None,
    on_window: OnWindow | None = None,
    explicit: Mapping[str, Sequence[Due]] | None = None,
    repair: bool = False,
) -> RunReport:
    """Reads what is due of one project and stores it.

    Trouble with one window leaves a gap, which the next run reads; it does not stop the others. A key that does not
    work any more ends the run, as failed, with the exit code of `AuthError` in its report.

    Args:
        owner: Holds the lease for as long as this runs.
        requests_sent: How many requests went out so far, for the ledger.
        stop: When set, the page at hand is stored and the run ends as `interrupted`.
        on_progress: Called after each page with the report, the windows done and the windows planned.
        on_window: See `OnWindow`.
        explicit: Read these windows of each source instead of what is due.
        repair: Write what differs from the server even if its hash agrees, and mark what these windows lack at
            once, however much it is.
    Raises:
        ApiGoneError: The server has left this generation of the API; the run is closed as failed.
        EtlError: The database cannot be written, the lease is lost, or the clock is wrong.
    """
    run = _Run(engine, owner, reader, scope, requests_sent, stop, on_progress, on_window, repair)
    return run.go(trigger, explicit)


class _Run:
    def __init__(
        self,
        engine: Engine,
        owner: lease.Owner,
        reader: Reader,
        scope: Scope,
        requests_sent: Callable[[], int],
        stop: threading.Event,
        on_progress: Progress | None,
        on_window: OnWindow | None,
        repair: bool,
    ) -> None:
        self._engine, self._owner, self._reader, self._scope = engine, owner, reader, scope
        self._requests_sent, self._stop, self._on_progress = requests_sent, stop, on_progress
        self._on_window = on_window
        self._repair = repair
        self._maker = RowMaker()
        self._report = RunReport(scope.project_name)
        self._requests_before = self._requests_noted = requests_sent()
        self._children_read_to = _NEVER
        self._written_since_look = 0
        self._uncontested = True  # so far no stored row said anything else than what came
        self._saved: dict[str, ledger.StreamState] = {}  # what `sync_state` holds by now, as far as this run wrote it
        self._done = 0
        self._planned = 0
        self._history_read = False
        self._started = time.monotonic()

    def _clock(self) -> datetime:
        """The run's clock reading, moved on by what really passed."""
        return self._scope.now + timedelta(seconds=time.monotonic() - self._started)

    def go(self, trigger: str, explicit: Mapping[str, Sequence[Due]] | None) -> RunReport:
        with writing(self._engine) as conn:
            lease.renew(conn, self._owner)
            ledger.interrupt_runs_of_others(conn, self._owner.token, self._scope.now)
            self._run_id = ledger.start_run(
                conn, project_id=self._scope.project_id, trigger=trigger, owner=self._owner.token, now=self._scope.now
            )
            keep_statistics(conn)
        try:
            works = self._plan(explicit)
            self._planned = len(works)
            # Under filters the stored traces say which observations and scores to keep, so traces come first.
            first = [work for work in works if self._scope.filtered and "traces" in work.source.covers]
            self._read_and_store(first)
            self._read_and_store([work for work in works if work not in first])
        except ShutdownRequested:
            self._report.status, self._report.exit_code = "interrupted", ShutdownRequested.exit_code
        except AuthError as error:
            # What was read before the key was revoked is stored, and counts.
            self._report.fail(str(error))
            self._report.exit_code, self._report.ended_by = error.exit_code, error
        except EtlError as error:
            self._report.fail(str(error))
            raise
        except KeyboardInterrupt:
            self._report.status, self._report.exit_code = "interrupted", ShutdownRequested.exit_code
            raise
        except BaseException as error:
            self._report.fail(f"unexpected {type(error).__name__}")
            raise
        finally:
            self._maker.close()
            self._report.requests = self._requests_sent() - self._requests_before
            self._report.seconds = round(time.monotonic() - self._started, 3)
            self._finish()
        return self._report

    def _finish(self) -> None:
        report = self._report
        try:
            with writing(self._engine) as conn:
                lease.renew(conn, self._owner)  # who took over has noted the end of this run already
                self._note_requests(conn, 0, 0)
                ledger.finish_run(conn, self._run_id, status=report.status, error=report.error, now=self._clock())
        except EtlError as error:
            # What broke the run is worth more than what broke its closing note.
            log.error("run %d could not be closed: %s", self._run_id, error)
        log.info(
            "run %d of %s: %s, %d rows read, %d written, %d requests, %d windows, %d without proof, %.1f s",
            self._run_id, report.project, report.status, report.total("rows_read"), report.total("rows_written"),
            report.requests, report.total("windows"), report.total("failed_windows"), report.seconds,
        )  # fmt: skip

    # What is due

    def _plan(self, explicit: Mapping[str, Sequence[Due]] | None) -> list[_Work]:
        """Due windows of all sources, interleaved so that every stream has its newest day soon."""
        planned = plan(self._engine, self._reader, self._scope, explicit=explicit, on_failure=self._source_failed)
        if self._scope.filtered:
            self._children_read_to = self._end_of_children()
        per_source = [
            [_Work(source, one, bool(intersect(source.coverage, one.window))) for one in due] for source, due in planned
        ]
        longest = max(map(len, per_source), default=0)
        works = [works[rank] for rank in range(longest) for works in per_source if rank < len(works)]
        return sorted(works, key=lambda work: work.due.tier == switch.TIER)  # stable: nothing waits for these

    def _end_of_children(self) -> datetime:
        """Up to where observations or scores were read, in whichever run."""
        with reading(self._engine) as conn:
            ends = [
                window.end
                for stream in ("observations", "scores")
                for window in ledger.coverage(conn, self._scope.project_id, stream, self._scope.filters_hash)
            ]
        return max(ends, default=_NEVER)

    def _source_failed(self, name: str, error: ApiError) -> None:
        self._report.stream(name).failed_windows += 1
        self._report.fail(f"{name}: {error}")

    # Reading, in threads

    def _read_and_store(self, works: list[_Work]) -> None:
        deliveries: queue.Queue[_Delivery] = queue.Queue(_BATCHES_WAITING)
        abandon = threading.Event()

        def deliver(delivery: _Delivery) -> bool:
            while not abandon.is_set():
                try:
                    deliveries.put(delivery, timeout=_POLL_S)
                except queue.Full:
                    continue
                return True
            return False

        def read(work: _Work) -> None:
            error: Exception | None = None
            work.since = time.monotonic()
            put_off = self._may_wait(work)
            try:
                for page in () if put_off else resized(self._pages(work)):
                    batch = self._batch(page, compared=work.read_before)
                    page.items.clear()  # rows may wait for the writer, not what they were made of as well
                    if not deliver(_Delivery(work, batch)):
                        return
                    if page.closes and self._may_wait(work):
                        put_off = True
                        break
            except Exception as raised:  # noqa: BLE001 - handed to the writer, which judges it
                error = raised
            deliver(_Delivery(work, error=error, put_off=put_off))

        pool = ThreadPoolExecutor(self._scope.concurrency, thread_name_prefix="reader")
        try:
            for work in works:
                pool.submit(read, work)
            while not all(work.ended for work in works):
                if self._stop.is_set():
                    raise ShutdownRequested("stopped on request")
                try:
                    delivery = deliveries.get(timeout=_POLL_S)
                except queue.Empty:
                    continue
                self._take(delivery)
        except ApiError:
            raise  # of this project alone
        except BaseException:
            self._stop.set()  # nothing more can be written: nobody shall wait for requests under way
            raise
        finally:
            abandon.set()
            # Not waiting: a reader may sit in a request for a minute, and what it brings is not wanted any more.
            pool.shutdown(wait=False, cancel_futures=True)

    def _may_wait(self, work: _Work) -> bool:
        """Whether what is left of a window may be read by a later run; some of the history is read by every run."""
        limit = self._scope.history_for
        if limit is None or work.due.tier not in (HISTORY, switch.TIER) or not self._history_read:
            return False
        return time.monotonic() - self._started > limit.total_seconds()

    def _pages(self, work: _Work) -> Iterator[Page]:
        """The pages of a window; where a light page differs from what is stored, that stretch is read whole first."""
        name = work.source.name
        flaw: SegmentProof | None = None  # of what was read whole for the segment that is open
        for page in self._reader.read(name, work.due.window, light=work.due.light):
            if not page.light:
                yield from self._completed(work, page)
                continue
            stretch = self._differing_stretch(page)
            for whole in self._reader.read(name, stretch) if stretch is not None else ():
                flaws = {segment.proof for segment in whole.closes} - {"counted", "walked"}
                flaw = next((one for one in _WORST_FIRST if one == flaw or one in flaws), None)
                yield from self._completed(work, whole._replace(closes=()))
            if flaw is not None and page.closes:
                page = page._replace(closes=[segment._replace(proof=flaw) for segment in page.closes])
                flaw = None
            yield page

    def _differing_stretch(self, page: Page) -> Window | None:
        rows = self._rows_of(page)
        with reading(self._engine) as conn:
            return differing_stretch(conn, rows)

    def _rows_of(self, page: Page) -> dict[str, list[Row]]:
        scope = self._scope
        return rows_of(
            page.kind, page.items, project_id=scope.project_id, contents=scope.contents, light=page.light
        )  # fmt: skip

    def _batch(self, page: Page, *, compared: bool) -> Batch:
        """What of a page has to be written; not `compared` where hardly any of it can be stored yet."""
        scope, maker = self._scope, self._maker
        if page.light or not compared or self._repair:
            return batch_of(page, project_id=scope.project_id, contents=scope.contents, known_in=None, maker=maker)
        with reading(self._engine) as conn:
            return batch_of(page, project_id=scope.project_id, contents=scope.contents, known_in=conn, maker=maker)

    def _completed(self, work: _Work, page: Page) -> Iterator[Page]:
        """Under filters: all that belongs to a trace that is selected only now, and the page itself.

        The rows of the page are stored last: as long as they are not, the trace is completed again.
        """
        if self._scope.filtered:
            wanted = self._incomplete(page) - work.completed
            work.completed |= wanted
            own = {(page.kind, key) for key in keys_of(page.kind, page.items)}
            for part in self._reader.of_traces(sorted(wanted), self._scope.now) if wanted else ():
                if SHAPES[part.kind].table not in self._scope.kept:
                    continue
                keys = keys_of(part.kind, part.items)
                others = [item for item, key in zip(part.items, keys, strict=True) if (part.kind, key) not in own]
                yield part._replace(items=others, selected=True)
        yield page

    def _incomplete(self, page: Page) -> set[str]:
        """The traces of which the page shows something new, as far as the rest of it does not come by itself."""
        scope = self._scope
        if SHAPES[page.kind].table == "traces":
            ids = {str(item.get("id")): str(item.get("timestamp")) for item in page.items}
            with reading(self._engine) as conn:
                known = stored_trace_ids(conn, scope.project_id, ids)
            # Where its children were not read yet, they come by themselves.
            return {id_ for id_ in ids.keys() - known if ids[id_] < instant_text(self._children_read_to)}
        if page.kind not in OBSERVATIONS_V2:
            return set()
        # Rows are selected, not traces: others of the same trace, new ones, too, may lack what the filters ask for.
        found: set[str] = set()
        tables = self._rows_of(page)
        with reading(self._engine) as conn:
            for table, rows in tables.items():
                found |= {key[0] for key in differences(conn, table, rows).keys if key[0]}
        return found

    # Writing, here alone

    def _take(self, delivery: _Delivery) -> None:
        work, batch, error, put_off = delivery
        try:
            if batch is not None:
                self._store(work, batch)
            elif work.held is not None:
                held, work.held = work.held, None
                self._write(work, held)
        except RowRefusedError as refused:
            work.refused = refused
            self._saved.clear()  # what was saved last may have been rolled back with the rest
        if batch is None:
            self._end(work, error or work.refused, put_off)
        if self._on_progress is not None:
            self._on_progress(self._report, self._done, self._planned)

    def _store(self, work: _Work, batch: Batch) -> None:
        if batch.selected:
            work.changed += self._store_selected(batch)
            return
        for table, times in batch.seen.items():
            work.seen.setdefault(table, {}).update(times)
        if work.held is not None:
            batch = batch._replace(traces=work.held.traces | batch.traces, objects=work.held.objects + batch.objects)
        # A transaction has its price. What is unchanged can wait for the one that closes its segment: until then it
        # counts as not read.
        work.held = None if batch.closes or any(batch.rows.values()) else batch
        if work.held is None:
            self._write(work, batch)

    def _write(self, work: _Work, batch: Batch) -> None:
        """One transaction: the rows of a batch, what follows from them, and the segments that are whole with it."""
        scope = self._scope
        with writing(self._engine) as conn:
            lease.renew(conn, self._owner)
            written = store_rows(
                conn,
                batch.kind,
                of_selected_traces(conn, scope, batch.kind, batch.rows),
                project_id=scope.project_id,
                now=scope.now,
                traces=batch.traces,
                distrust=self._repair,
                observations_copied=scope.observations_copied,
            )
            work.changed += written.changed
            self._uncontested = self._uncontested and not written.contested
            for segment in batch.closes if work.refused is None else ():
                self._close(conn, work, batch.kind, segment)
            self._note_requests(conn, batch.objects, written.changed)
            self._keep_statistics(conn, written.changed)
        stream = self._report.stream(work.source.name)
        stream.rows_read += batch.objects
        stream.rows_written += written.changed

    def _store_selected(self, batch: Batch) -> int:
        """Stores what belongs to a selected trace; it is no part of the window at hand. Returns the rows written."""
        scope = self._scope
        with writing(self._engine) as conn:
            lease.renew(conn, self._owner)
            written = store_rows(
                conn, batch.kind, batch.rows, project_id=scope.project_id, now=scope.now,
                observations_copied=scope.observations_copied,
            )  # fmt: skip
            self._note_requests(conn, batch.objects, written.changed)
            self._keep_statistics(conn, written.changed)
        return written.changed

    def _keep_statistics(self, conn: Connection, rows_written: int) -> None:
        self._written_since_look += rows_written
        if self._written_since_look >= _ROWS_PER_LOOK:
            self._written_since_look = 0
            keep_statistics(conn)

    def _close(self, conn: Connection, work: _Work, kind: Kind, segment: Segment) -> None:
        source, deleted, reason = work.source, 0, None
        if segment.proof in ("counted", "walked"):
            if source.switch is not None and source.switch.notes_unknown(segment.window):
                self._note_unknown(conn, work, kind, segment.window)
            elif source.absence_counts(segment.window):
                deleted, too_many = self._settle_absences(conn, work, kind, segment.window)
                if too_many:
                    segment = segment._replace(proof="doubtful")
                    reason = (
                        "too many stored rows are missing; `langfuse-etl verify --repair` marks them if they are gone"
                    )
        if segment.proof in ledger.COVERING:
            source.note_read(segment.window, work.rows_in)
        else:
            source.note_failure(segment.window)
        self._record(conn, work, segment, deleted, reason)
        work.closed.append(segment.window)
        self._history_read = self._history_read or work.due.tier in (HISTORY, switch.TIER)
        work.changed = 0
        work.forget(segment.window)
        self._save_state(conn, work.source)

    def _settle_absences(self, conn: Connection, work: _Work, kind: Kind, window: Window) -> tuple[int, bool]:
        """How many stored rows were marked as deleted, and whether too many were missing to believe it."""
        scope = self._scope
        wanted = scope.mark_deletions or (self._repair and not scope.filtered)
        if not wanted or (scope.kept_from is not None and window.start < scope.kept_from):
            return 0, False
        marked, too_many = 0, False
        # Runs an hour apart begin looks an hour apart, give or take a minute; in a long run the look itself counts.
        read_at = clock if (clock := self._clock()) - scope.now > _ABOUT_NOW else scope.now
        touched: set[str] = set()
        for stream, read_from in BRINGS[kind].items():
            absences = settle_absences(
                conn, scope.project_id, stream, window, work.keys_in(window, stream), read_from=read_from,
                read_started_at=scope.now, read_at=read_at, known_since=work.source.known_since,
                confirmed=self._repair,
                environments=scope.environments if selected_by_environment(kind, stream) else None,
                all_stored=self._uncontested and not (scope.filtered or work.due.light or self._repair),
            )  # fmt: skip
            marked, too_many = marked + len(absences.deleted), too_many or absences.too_many
            if stream in ("traces", "observations"):
                touched |= {key[0] for key in absences.deleted}
        self._uncontested = self._uncontested and not marked
        if self._repair and kind in OBSERVATIONS_V2:
            touched |= derived_without_observations(conn, scope.project_id, window)
        if touched:
            refresh_after_deletion(conn, kind, scope.project_id, touched, scope.now, read_at=read_at)
        return marked, too_many

    def _note_unknown(self, conn: Connection, work: _Work, kind: Kind, window: Window) -> None:
        """Under filters a read says nothing of rows that were not asked for."""
        if self._scope.filtered and not self._scope.mark_deletions:
            return
        for stream, read_from in BRINGS[kind].items():
            note_unknown(
                conn, self._scope.project_id, stream, window, work.keys_in(window, stream), read_from=read_from,
                now=self._scope.now,
                environments=self._scope.environments if selected_by_environment(kind, stream) else None,
            )  # fmt: skip

    def _end(self, work: _Work, error: Exception | None, put_off: bool) -> None:
        """A window's last delivery: whatever of it was not closed has failed, or was put off."""
        self._done += 1
        work.ended = True
        if isinstance(error, ShutdownRequested):
            raise error
        left = subtract(work.due.window, work.closed)
        if error is not None and not isinstance(error, ApiError | RowError | RowRefusedError):
            raise error
        if left and put_off and error is None:
            self._report.put_off = True
        elif left:
            reason = str(error) if error else "the reader ended before the window did"
            with writing(self._engine) as conn:
                lease.renew(conn, self._owner)
                for window in left:
                    work.source.note_failure(window)
                    self._record(conn, work, Segment(window, "failed", None, 0, 0), 0, reason)
                self._save_state(conn, work.source)
        if isinstance(error, AuthError) or (isinstance(error, ApiGoneError) and error.left_behind):
            raise error

    def _record(self, conn: Connection, work: _Work, segment: Segment, deleted: int, reason: str | None = None) -> None:
        source = work.source
        stream = self._report.stream(source.name)
        stream.windows += 1
        if segment.proof not in ("counted", "walked"):
            stream.failed_windows += 1
            self._report.fail(f"{source.name} {segment.window}: {reason or segment.proof}")
        for name in source.covers:
            record = ledger.WindowRecord(
                project_id=self._scope.project_id,
                stream=name,
                filters_hash=self._scope.filters_hash,
                window=segment.window,
                tier=work.due.tier,
                api=self._reader.api,
                proof=segment.proof,
                promised=segment.promised,
                # What is derived comes without rows and requests of its own.
                read=segment.read if name == source.name else 0,
                changed=work.changed if name == source.name else 0,
                deleted=deleted if name == source.name else 0,
                requests=segment.requests if name == source.name else 0,
                run_id=self._run_id,
                error=reason,
            )
            ledger.record_window(conn, record, self._scope.now)
        now = time.monotonic()
        seconds, work.since = now - work.since, now
        log.info(
            "window of %s: %s %s %s: %s, %d rows, %d changed, %d deleted, %d requests, %.1f s",
            self._scope.project_name, source.name, work.due.tier, segment.window, segment.proof, segment.read,
            work.changed, deleted, segment.requests, seconds,
        )  # fmt: skip
        if self._on_window is not None:
            self._on_window(source.name, segment.proof, seconds)

    def _save_state(self, conn: Connection, source: Source) -> None:
        state = source.state()
        for name in source.covers:
            stream = self._report.stream(name)
            stream.watermark, stream.derived = state.watermark, name != source.name
            if self._saved.get(name) != state:
                ledger.save_stream_state(conn, self._scope.project_id, name, state)
                self._saved[name] = state

    def _note_requests(self, conn: Connection, rows_read: int, rows_written: int) -> None:
        sent = self._requests_sent()
        ledger.add_to_run(
            conn, self._run_id, rows_read=rows_read, rows_written=rows_written, requests=sent - self._requests_noted
        )
        self._requests_noted = sent


def _bounds(window: Window) -> tuple[str, str]:
    """As the times of rows are written."""
    return instant_text(window.start), instant_text(window.end)
