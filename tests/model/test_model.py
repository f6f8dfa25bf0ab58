"""Any history of a server, any trouble on the way: after a few quiet runs the tables are the server's truth."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from events import (
    LARGEST_TIER,
    AddObservation,
    AddScore,
    AddTrace,
    Delete,
    EditObservation,
    EditScore,
    EditTrace,
    Event,
    Insert,
    Merge,
    Orphan,
    OtherDate,
    World,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from machine import (
    FAULTS,
    ROW_TABLES,
    Interrupt,
    Kill,
    Machine,
    Run,
    Step,
    Stop,
    Switch,
    Trouble,
    Wait,
    few_rows_are_many,
    sync,
)
from sqlalchemy import Engine, text
from syncing import Row, same_tables

from etl.demo import MockLangfuse
from etl.load.engine import open_engine, writing
from etl.load.migrate import upgrade
from etl.load.tables import metadata
from etl.transform.fields import OBSERVATION_V2_ONLY

APIS = ("v3", "v4", "switch")

# What a row of the older API may have otherwise; keep in step with the table in docs/upgrade-to-v4.md.
_OURS = {"content_hash", "read_from"}
DIFFERENT: dict[str, set[str]] = {
    "traces": {"html_path", "external_id", "updated_at"} | _OURS,
    "observations": {"version", "metadata", "usage_pricing_tier_id", "usage_pricing_tier_name"}
    | {field.column for field in OBSERVATION_V2_ONLY}
    | _OURS,
    "scores": set(),
    "sessions": {"created_at"} | _OURS,
}

# Minutes. Half of the largest tier is 30 hours: what is 50 hours late lies outside every tier.
AGES = (0, 1, 5, 20, 90, 300, 720, 1500, 1790, 3000)
WAITS = (5, 10, 25, 65, 65, 200, 400, 720, 1500, 4000)

_age = st.sampled_from(AGES)
_back = st.integers(0, 12)
_few = st.integers(0, 3)
INSERTS = st.builds(Insert, _age, st.integers(1, 7), _few, st.integers(0, 2), st.integers(0, 2), st.booleans())
EVENTS: st.SearchStrategy[Event] = st.one_of(
    INSERTS,
    st.builds(EditTrace, _back, st.integers(0, 2)),
    st.builds(EditObservation, _back, st.booleans(), st.booleans()),
    st.builds(AddObservation, _back, _age),
    st.builds(AddScore, _back, _age),
    st.builds(Orphan, _age),
    st.builds(AddTrace, _back, _age),
    st.builds(EditScore, _back),
    st.builds(Delete, st.just("trace"), _back),
    st.builds(Delete, st.sampled_from(("observation", "score")), _back),
    st.builds(OtherDate, _back, st.sampled_from((-1, 1))),
    st.builds(Merge),
)
TROUBLE = st.builds(
    Trouble,
    st.integers(0, 999),
    st.sampled_from((0.1, 0.3, 0.6)),
    st.lists(st.integers(0, len(FAULTS) - 1), min_size=1, max_size=3, unique=True).map(tuple),
)
ENDS = st.one_of(
    st.builds(Kill, st.integers(1, 30)), st.builds(Stop, st.integers(1, 30)), st.builds(Interrupt, st.integers(1, 12))
)
RUNS = st.builds(
    Run,
    st.one_of(st.none(), ENDS),
    st.one_of(st.none(), TROUBLE),
    st.one_of(st.just(()), st.lists(st.tuples(st.integers(1, 40), EVENTS), max_size=3).map(tuple)),
)
WAIT = st.builds(Wait, st.sampled_from(WAITS))


def _flat(parts: Iterable[Sequence[Step]]) -> list[Step]:
    return [step for part in parts for step in part]


# Some time passes, some things happen, and a run sees them.
ROUNDS = st.tuples(
    st.lists(WAIT, max_size=1), st.lists(EVENTS, min_size=1, max_size=4), st.lists(RUNS, max_size=2)
).map(_flat)
HISTORIES: st.SearchStrategy[list[Step]] = st.tuples(
    st.lists(INSERTS, min_size=1, max_size=3),
    st.lists(RUNS, max_size=1),
    st.lists(ROUNDS, min_size=1, max_size=4).map(_flat),
).map(_flat)


class Databases:
    """Empty databases of one kind, made quickly: a copy of a file, or the same tables emptied."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._numbers = folder, itertools.count()
        self._postgres: Engine | None = None
        self._template = folder / "template.db"
        engine = open_engine(f"sqlite:///{self._template}", "public")
        upgrade(engine)
        engine.dispose()

    @contextmanager
    def sqlite(self) -> Iterator[Engine]:
        path = self._folder / f"{next(self._numbers)}.db"
        shutil.copy(self._template, path)
        engine = open_engine(f"sqlite:///{path}", "public")
        try:
            yield engine
        finally:
            engine.dispose()
            path.unlink()

    @contextmanager
    def postgres(self, url: str) -> Iterator[Engine]:
        if self._postgres is None:
            self._postgres = open_engine(url, "model")
            upgrade(self._postgres)
        with writing(self._postgres) as conn:
            conn.execute(text("TRUNCATE " + ", ".join(f"model.{name}" for name in metadata.tables)))
        yield self._postgres

    def close(self) -> None:
        if self._postgres is not None:
            self._postgres.dispose()


class Case(NamedTuple):
    """A history, and the server on which it happens: `overcount` as the real one's totals do, `far` see `World`."""

    history: list[Step]
    overcount: bool
    far: bool


def histories(api: str) -> st.SearchStrategy[Case]:
    history = HISTORIES
    if api == "switch":
        history = st.tuples(HISTORIES, HISTORIES).map(lambda parts: [*parts[0], Switch(), *parts[1]])
    return st.builds(Case, history, st.booleans(), st.booleans())


def play(databases: Databases, engine: Engine, case: Case, api: str) -> None:
    """The history, then quiet; the database is then compared with that of one run over what the server has now."""
    world = World(far=case.far, modern=api == "v4")
    server = MockLangfuse(
        world.data, api="v4" if api == "v4" else "v3", clock=lambda: world.now, shuffle_ties=True,
        overcount=case.overcount,
    )  # fmt: skip
    with few_rows_are_many(), server, databases.sqlite() as clean:
        machine = Machine(engine, server, world)
        try:
            for step in case.history:
                machine.take(step)
            converge(machine)
        finally:
            machine.close()
        report = sync(clean, server, world.now)
        assert (report.status, report.error) == ("ok", None)
        compare(same_tables(engine), same_tables(clean), api)


def converge(machine: Machine) -> None:
    """Enough quiet time for a pass of every tier, and for the second look at what it found missing.

    Half of the largest tier is what a late row, an edit or a deletion may be behind. What happened further back, and
    what half a page hid (see `machine`), is found by `verify --repair`; verify looks at what was read once, so rows
    older than everything that was there at the first sync need a `backfill`.
    """
    machine.world.now += timedelta(minutes=5)
    machine.settle()
    for wait in (LARGEST_TIER / 2, timedelta(minutes=70)):
        machine.world.now += wait
        machine.settle()
    if machine.look_before_the_origin():
        assert machine.world.beyond
    if machine.world.beyond:
        machine.repair()
        machine.settle()


def compare(found: dict[str, list[Row]], truth: dict[str, list[Row]], api: str) -> None:
    """Rows that are not marked as deleted are those of one clean run; every other row is marked.

    On v4 a session stays when its traces moved to another one, as it does on a v3 server; only of a deletion it learns.
    Of rows that the older API gave before a switch, docs/upgrade-to-v4.md lists the columns that may differ from what
    the newer one answers. Its reads do not tell that such a row is gone (design 4.6).
    """
    assert found["projects"] == truth["projects"]
    kept = {table: {_key(row): row for row in found[table] if not row["deleted_at"]} for table in ROW_TABLES}
    expected = {table: {_key(row): row for row in truth[table]} for table in ROW_TABLES}
    older = {
        table: {key for key, row in kept[table].items() if api == "switch" and row["read_from"] == "traces"}
        for table in ROW_TABLES
    }
    gone_unnoticed = {trace_id for trace_id, _ in older["observations"] - expected["observations"].keys()}
    for table in ROW_TABLES:
        more = kept[table].keys() - expected[table].keys() - older[table]
        if table == "sessions" and api != "v3":
            more = set()
        missing = expected[table].keys() - kept[table].keys()
        assert (more, missing) == (set(), set()), f"{table}: not marked as deleted {more}, missing {missing}"
        for key, row in expected[table].items():
            ignored = DIFFERENT[table] if key in older[table] else set()
            if table == "traces" and api == "switch":
                ignored = ignored | {"html_path"}  # what the newer API does not know is kept
            if table == "traces" and key[0] in gone_unnoticed:
                ignored = ignored | {"latency", "total_cost"}
            stored = kept[table][key]
            different = {n: (stored[n], row[n]) for n in row if stored[n] != row[n] and n not in ignored}
            assert not different, f"{table} {key}: found, expected {different}"


def _key(row: Row) -> tuple[str, ...]:
    return (row["trace_id"] or "", row["id"]) if "start_time" in row else (row["id"],)


@pytest.fixture(scope="module")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    made = Databases(tmp_path_factory.mktemp("model"))
    yield made
    made.close()


def quick(examples: int) -> settings:
    """The same examples each time."""
    return settings(COMMON, derandomize=True, max_examples=examples)


def long(examples: int) -> settings:
    """Other examples each time."""
    return settings(COMMON, max_examples=examples, print_blob=True)


# A first version: it stays out of `make test` until what it finds is mended.
pytestmark = pytest.mark.soak

COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))


def check_histories(chosen: settings, api: str, databases: Databases, url: str | None = None) -> None:
    @chosen
    @given(histories(api))
    def check(case: Case) -> None:
        with databases.sqlite() if url is None else databases.postgres(url) as engine:
            play(databases, engine, case, api)

    check()


@pytest.mark.parametrize("api", APIS)
def test_after_any_history_the_tables_are_the_servers_truth(databases: Databases, api: str) -> None:
    check_histories(quick(30), api, databases)


@pytest.mark.parametrize("api", APIS)
def test_on_postgres_the_tables_are_the_servers_truth(databases: Databases, postgres_url: str, api: str) -> None:
    check_histories(quick(4), api, databases, postgres_url)


@pytest.mark.soak
@pytest.mark.parametrize("api", APIS)
def test_after_thousands_of_histories_the_tables_are_the_servers_truth(databases: Databases, api: str) -> None:
    check_histories(long(1_500), api, databases)


@pytest.mark.soak
@pytest.mark.parametrize("api", APIS)
def test_after_hundreds_of_histories_postgres_holds_the_servers_truth(
    databases: Databases, postgres_url: str, api: str
) -> None:
    check_histories(long(300), api, databases, postgres_url)
