"""The program under test: syncs that meet faults, changes and death half-way; and what must hold after each."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from unittest import mock

from events import LOOKBACK, Event, World
from sqlalchemy import Connection, Engine, event, text
from syncing import Row, project, rows

from etl.config import Config
from etl.demo import MockLangfuse
from etl.demo.endpoints.context import Request
from etl.extract.walks import SeekWalk
from etl.intervals import DAY, Window, merge, subtract
from etl.load.engine import schema_of, writing
from etl.pipeline.plan import Due, cut_for_reader
from etl.pipeline.report import RunReport
from etl.pipeline.scope import Scope
from etl.pipeline.verify import Comparison, compare_with_server
from etl.service.lease import write_lease
from etl.service.projects import Connected
from etl.service.sync import Explicit, for_each_project, run_project, sync_projects
from etl.settings import Http, Sync

PAGE, SEGMENT, MOST_GONE = 3, 8, 4
LAG = Sync().lag
ROW_TABLES = ("traces", "observations", "scores", "sessions")
_NO_SUCH_PROCESS = 2**30
_PROVEN, _COVERING = ("counted", "walked"), ("counted", "walked", "partial")
_MOST_RUNS_TO_SETTLE = 25
_USUAL_PASSES, _MOST_PASSES = 5, 8
# After this time passes settle, whatever they found.
_LONGEST_COPY = timedelta(days=31)
_TOO_MANY_GONE = "verify --repair"
# Nothing tells that the last page of a cursor is cut: what it lacks is found by a tier that comes by, or by verify.
_CURSOR_LISTS = ("/v2/observations", "/v3/scores")

FAULTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("status", {"status": 429, "retry_after_s": 0}),
    ("status", {"status": 422, "error": "timed_out"}),
    ("status", {"status": 422, "error": "too_large"}),
    ("status", {"status": 524}),
    ("status", {"status": 500}),
    ("status", {"status": 502}),
    ("reset", {}),
    ("cut", {}),
    ("half_page", {}),
    ("html", {}),
)


class Killed(BaseException):
    """The process is no more."""


@dataclass(frozen=True)
class Kill:
    """Power off before the commit of the nth transaction."""

    transaction: int


@dataclass(frozen=True)
class Interrupt:
    """An exception that nobody expects, after the nth page."""

    page: int


@dataclass(frozen=True)
class Stop:
    """SIGTERM at the nth request."""

    request: int


@dataclass(frozen=True)
class Wait:
    minutes: int


@dataclass(frozen=True)
class Switch:
    """The server is upgraded to v4. Before each run it copies so many rows of its history to where the v4 API looks."""

    rows_per_run: int


@dataclass(frozen=True)
class Trouble:
    """Faults of these kinds hit a share `rate` of the requests."""

    seed: int
    rate: float
    kinds: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One sync; `meanwhile` happens at the server before the nth request is answered."""

    ends: Kill | Interrupt | Stop | None = None
    trouble: Trouble | None = None
    meanwhile: tuple[tuple[int, Event], ...] = ()


Step = Event | Wait | Switch | Run


@contextlib.contextmanager
def few_rows_are_many() -> Iterator[None]:
    """Pages, segments and slices of a few rows, so that a small history has many of them; and retries without waits."""
    sizes: dict[str, Any] = {
        "etl.extract.traces_api.MAX_LIMIT": PAGE,
        "etl.extract.traces_api.SeekWalk": partial(SeekWalk, limit=PAGE),
        "etl.extract.walks.SeekWalk._segment_rows": SEGMENT,
        "etl.extract.observations_api.MAX_LIMIT": PAGE,
        "etl.extract.scores_v3.MAX_LIMIT": PAGE,
        "etl.extract.cursor.SEGMENT_ROWS": SEGMENT,
        "etl.pipeline.plan._ROWS_OF_ONE_REQUEST": PAGE,
        "etl.pipeline.sources._ROWS_PER_SLICE": SEGMENT,
        "etl.pipeline.sources._REREAD_ROWS_PER_RUN": 3 * SEGMENT,
        "etl.pipeline.run._POLL_S": 0.01,
        "etl.pipeline.verify._ROWS_PER_WINDOW": SEGMENT,
        "etl.load.deletions.MOST_ROWS": MOST_GONE,
        "etl.extract.client._BACKOFF": lambda state: 0.0,
        "etl.extract.client._SHORTEST_HOLD_S": 0.0,
    }
    with contextlib.ExitStack() as stack:
        for name, value in sizes.items():
            stack.enter_context(mock.patch(name, value))
        yield


def configuration(server: MockLangfuse, readers: int) -> Config:
    http = Http(timeout="5s", give_up_after="5s", concurrency=readers)
    return Config(projects=(project(server),), sync=Sync(lookback=LOOKBACK), http=http)


def sync(
    engine: Engine,
    server: MockLangfuse,
    now: datetime,
    *,
    readers: int = 1,
    stop: threading.Event | None = None,
    on_progress: Any = None,
    explicit: Explicit | None = None,
) -> RunReport:
    """One run as `langfuse-etl sync` does it, at a given time."""
    config = configuration(server, readers)
    with write_lease(engine) as owner:
        (report,) = sync_projects(
            config, engine, owner, projects=config.projects, streams=(), trigger="test",
            stop=stop or threading.Event(), now=lambda: now, on_progress=on_progress, explicit=explicit,
        )  # fmt: skip
    return report


@dataclass
class Machine:
    """The program, its database, and the server that it reads, with so many readers at once."""

    engine: Engine
    server: MockLangfuse
    world: World
    readers: int = 1
    _commits_left: int | None = None
    _dead: bool = False
    _copied_per_run: int | None = None
    switched: bool = False
    lost: dict[str, set[tuple[str, ...]]] = field(default_factory=dict)
    """By table: what was deleted before the passes after a switch had agreed; nobody can tell that it is gone."""
    _settled: bool = False

    def __post_init__(self) -> None:
        event.listen(self.engine, "begin", self._on_begin)
        event.listen(self.engine, "commit", self._on_commit)

    def take(self, step: Step) -> None:
        if isinstance(step, Event):
            self.world.happen(step)
        elif isinstance(step, Wait):
            self.world.now += timedelta(minutes=step.minutes)
        elif isinstance(step, Switch):
            self.server.api = "v4"
            self.switched = self.world.modern = True
            self.world.data.empty_v4()
            self._copied_per_run = step.rows_per_run
            if not rows(self.engine, "sync_state"):
                # Without a window that was read whole there is no change to notice: nothing tells such a first sync
                # that the server is still copying, or that some of the rows are from another API.
                self._copied_per_run, self.lost = None, self.world.lost()
        else:
            self.run(step)

    @property
    def reads(self) -> str:
        """The generation of the API that the server has now."""
        return "observations" if self.server.api == "v4" else "traces"

    # Runs

    def run(self, step: Run) -> RunReport | None:
        """One sync; None if it did not live to report."""
        stop = threading.Event()
        requests, pages = itertools.count(1), itertools.count(1)

        def before_answer(_: Request) -> None:
            number = next(requests)
            for at, happening in step.meanwhile:
                if at == number:
                    self.world.happen(happening)
            if isinstance(step.ends, Stop) and number == step.ends.request:
                stop.set()

        def on_progress(*_: Any) -> None:
            if isinstance(step.ends, Interrupt) and next(pages) == step.ends.page:
                raise Killed

        if self.switched:
            self.world.data.fill_v4(self._copied_per_run)
        last_run = max((row["id"] for row in rows(self.engine, "sync_runs")), default=0)
        upgraded = any(row["api"] != self.reads for row in rows(self.engine, "projects"))
        if step.trouble:
            trouble = step.trouble
            self.server.faults.random(trouble.seed, trouble.rate, [FAULTS[n] for n in trouble.kinds], most=25)
        self.server.before_answer = before_answer
        self._commits_left = step.ends.transaction if isinstance(step.ends, Kill) else None
        report: RunReport | None = None
        try:
            report = sync(
                self.engine, self.server, self.world.now, readers=self.readers, stop=stop, on_progress=on_progress
            )
        except Killed:
            pass
        finally:
            self._join_readers()
            self.server.before_answer = None
            self.server.faults.clear()
            fired = self.server.faults.fired
            halves = [path for kind, path in fired if kind == "half_page" and path in _CURSOR_LISTS]
            self.world.beyond += [f"half of {path}" for path in halves]
            fired.clear()
            self._commits_left, died, self._dead = None, self._dead, False
        if died:
            self._bury()
        self.check(last_run, report, upgraded)
        if self.switched and not self._settled and self._passes() and self._passes_agreed():
            self._settled, self.lost = True, self.world.lost()
        return report

    def settle(self) -> None:
        """Runs five minutes apart until nothing is left to do."""
        report: RunReport | None = None
        for _ in range(_MOST_RUNS_TO_SETTLE):
            report = self.run(Run())
            assert report is not None
            if report.status == "ok" and not self._busy():
                return
            if report.error and _TOO_MANY_GONE in report.error:
                assert self.world.deleted > MOST_GONE
                self.repair()
            self.world.now += timedelta(minutes=5)
        raise AssertionError(f"not done after {_MOST_RUNS_TO_SETTLE} clean runs: {report}")

    def finish_switch(self) -> None:
        """The server ends its copying, and what was read before a switch is read again until two passes agree.

        Where most of what is stored was deleted meanwhile they agree on too little: that is believed after a month.
        """
        self.world.data.fill_v4()
        for number in range(_MOST_PASSES):
            self.settle()
            if self._passes_agreed():
                return
            self.world.now += DAY if number < _USUAL_PASSES else _LONGEST_COPY
        raise AssertionError(f"no two passes agreed: {self._passes()}")

    def look_before_the_origin(self) -> bool:
        """`langfuse-etl backfill` of what is older than all that was ever wanted; whether the server has any such."""
        origins = {row["stream"]: row["origin"] for row in rows(self.engine, "sync_state")}
        tables = self.world.data
        times = {
            "traces": [row["timestamp"] for row in tables.traces()],
            "observations": [row["startTime"] for row in (*tables.observations(), *self.world.native_events())],
            "scores": [row["timestamp"] for row in tables.scores()],
        }
        older = any(datetime.fromisoformat(time) < origins[name] for name, found in times.items() for time in found)
        if not older:
            return False

        def windows(one: Connected, scope: Scope) -> dict[str, list[Due]]:
            return {
                name: [
                    Due(part, "backfill", light=False)
                    for part in cut_for_reader(
                        Window(self.world.began - 10 * DAY, origins[name]), one.reader.midnight_bound(name)
                    )
                ]
                for name in one.reader.sources(scope.streams)
            }

        report = sync(self.engine, self.server, self.world.now, readers=self.readers, explicit=windows)
        assert (report.status, report.error) == ("ok", None)
        return True

    def repair(self) -> None:
        """`verify --repair --full` over everything."""

        def run(one: Connected, scope: Scope) -> RunReport:
            found = self._compared(one, scope)
            if found.agrees:
                return RunReport(one.settings.name)
            return run_project(
                one, scope, self.engine, owner, trigger="verify --repair", stop=threading.Event(),
                explicit=found.differing, repair=True,
            )  # fmt: skip

        with write_lease(self.engine) as owner:
            self._for_the_project(run)

    def verify(self) -> None:
        """`verify --full` over everything finds nothing, but for what was deleted while absence did not count."""

        def run(one: Connected, scope: Scope) -> RunReport:
            found = self._compared(one, scope)
            assert (found.missing, found.changed, found.doubtful) == (0, 0, 0), found
            assert found.deleted <= sum(map(len, self.lost.values())), found
            return RunReport(one.settings.name)

        self._for_the_project(run)

    def _compared(self, one: Connected, scope: Scope) -> Comparison:
        everything = Window(self.world.began - 10 * DAY, self.world.now - LAG)
        return compare_with_server(self.engine, one.reader, scope, everything, full=True)

    def _for_the_project(self, run: Callable[[Connected, Scope], RunReport]) -> None:
        config = configuration(self.server, self.readers)
        (report,) = for_each_project(
            config, self.engine, projects=config.projects, streams=(), stop=threading.Event(),
            now=lambda: self.world.now, run=run,
        )  # fmt: skip
        assert (report.status, report.error) == ("ok", None)

    # What holds after every run

    def check(self, last_run: int, report: RunReport | None, upgraded: bool) -> None:
        """`upgraded`: the server was, since it was read; the run that meets it so ends, and another one goes on."""
        runs = [row for row in rows(self.engine, "sync_runs") if row["id"] > last_run]
        ledger = rows(self.engine, "sync_windows")
        new = [row for row in ledger if row["run_id"] > last_run]
        for row in ledger:
            assert row["proof"] != "counted" or row["promised"] == row["read"], row
        for table in ROW_TABLES:
            keys = {_key(row) for row in rows(self.engine, table)}
            assert keys <= self.world.ever[table], f"{table} holds what the server never had"
        self._check_states(ledger)
        for run, stream in itertools.product(runs, ROW_TABLES):
            of_run = (row for row in new if (row["run_id"], row["stream"]) == (run["id"], stream))
            proven = sorted(window(row) for row in of_run if row["proof"] in _COVERING)
            assert all(a.end <= b.start for a, b in itertools.pairwise(proven)), f"counted twice: {proven}"
        statuses = [row["status"] for row in runs]
        if report is None:
            # It may have died after its last word, with only the lease to give back.
            assert set(statuses) <= {"running", "failed", "ok"}
        elif report.status == "ok":
            # What both generations of the server have, or what is not asked for, tells nothing of the upgrade.
            met = upgraded and any(row["stream"] != "scores" for row in new)
            assert statuses == (["failed", "ok"] if met else ["ok"])
            assert report.error is None
        else:
            assert report.error or report.status == "interrupted"
            # Where not even the project could be asked for there is no run.
            assert statuses in ([], [report.status], *([["failed"], ["failed", report.status]] if upgraded else []))
        if statuses[-1:] == ["ok"]:
            assert all(row["proof"] in _PROVEN for row in new if row["run_id"] == runs[-1]["id"])
            for state in rows(self.engine, "sync_state"):
                assert state["watermark"] == self.world.now - LAG, f"ok, but {state['stream']} is not whole"

    def _check_states(self, ledger: Sequence[Row]) -> None:
        for state in rows(self.engine, "sync_state"):
            derived = state["stream"] == "sessions" and state["api"] == "observations"
            stream = "traces" if derived else state["stream"]
            closed = merge(window(row) for row in ledger if row["stream"] == stream and row["proof"] in _COVERING)
            if state["watermark"] is not None:
                gaps = subtract(Window(state["origin"], state["watermark"]), closed)
                assert not gaps, f"a watermark over a gap: {state['stream']} {gaps}"

    def _busy(self) -> bool:
        """Whether a pass is under way, or has something to try again."""
        tiers = [tier for plan in self._plans() for tier in plan["tiers"]]
        return any(one["current"] or one["failed"] for one in tiers) or any(
            one["left"] or one["failed"] for one in self._passes()
        )

    def _passes(self) -> list[dict[str, Any]]:
        return [plan["switch"] for plan in self._plans() if plan["switch"]]

    def _passes_agreed(self) -> bool:
        """Whether no pass after a change is due any more; a change that no run has met yet has all of them to come."""
        met = all(state["api"] == self.reads for state in rows(self.engine, "sync_state"))
        return met and all(one["settled_at"] for one in self._passes())

    def _plans(self) -> list[dict[str, Any]]:
        return [json.loads(state["plan"]) for state in rows(self.engine, "sync_state")]

    # Death

    def _on_begin(self, _: Connection) -> None:
        if self._dead:
            raise Killed

    def _on_commit(self, conn: Connection) -> None:
        if self._commits_left is None or not conn.get_execution_options().get("etl_writes"):
            return
        self._commits_left -= 1
        if self._commits_left == 0:
            self._dead = True
            raise Killed

    def _bury(self) -> None:
        """The lease of a process that is no more, as another one finds it."""
        schema = schema_of(self.engine)
        table = f"{schema}.sync_lease" if schema else "sync_lease"
        with writing(self.engine) as conn:
            conn.execute(text(f"UPDATE {table} SET pid = {_NO_SUCH_PROCESS}"))

    def _join_readers(self) -> None:
        for thread in threading.enumerate():
            if thread.name.startswith("reader"):
                thread.join()


def window(row: Row) -> Window:
    return Window(row["window_start"], row["window_end"])


def _key(row: Row) -> tuple[str, ...]:
    return (row["trace_id"], row["id"]) if "start_time" in row else (row["id"],)
