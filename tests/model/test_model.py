"""Any history of a server, any trouble on the way: after a few quiet runs the tables are the server's truth."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
from databases import Databases
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
from hypothesis import HealthCheck, given, seed, settings
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
from syncing import Row, same_tables

from etl.demo import MockLangfuse
from etl.transform.fields import OBSERVATION_V2_ONLY

APIS = ("v3", "v4", "switch")
# Files there are never written to a disk.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of an unguessable name is made there

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
_few = st.integers(0, 2)
INSERTS = st.builds(Insert, _age, st.integers(1, 5), _few, st.integers(0, 2), st.integers(0, 2), st.booleans())
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
    st.sampled_from((0.05, 0.15, 0.3)),
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


Key = tuple[str, ...]


class Case(NamedTuple):
    """A history, and the server on which it happens: `overcount` as the real one's totals do, `far` see `World`.

    With several `readers` requests come in another order each time, so a failure may not come again.
    """

    history: list[Step]
    overcount: bool
    far: bool
    readers: int


def histories(api: str) -> st.SearchStrategy[Case]:
    history = HISTORIES
    if api == "switch":
        history = st.tuples(HISTORIES, st.builds(Switch, st.sampled_from((10, 30, 90))), HISTORIES).map(
            lambda parts: [*parts[0], parts[1], *parts[2]]
        )
    return st.builds(Case, history, st.booleans(), st.booleans(), st.sampled_from((1, 1, 4)))


def play(databases: Databases, kind: str, case: Case, api: str) -> None:
    """The history, then quiet; the database is then compared with that of one run over what the server has now.

    That run reads pages of the usual size, so that nothing of how small ones are put together is in both.
    """
    world = World(far=case.far, modern=api == "v4")
    server = MockLangfuse(
        world.data, api="v4" if api == "v4" else "v3", clock=lambda: world.now, shuffle_ties=True,
        overcount=case.overcount,
    )  # fmt: skip
    with databases.lent(kind) as engine, databases.lent("sqlite") as clean, server:
        machine = Machine(engine, server, world, case.readers)
        with few_rows_are_many():
            for step in case.history:
                machine.take(step)
            converge(machine)
            machine.verify()
        report = sync(clean, server, world.now)
        assert (report.status, report.error) == ("ok", None)
        compare(same_tables(engine), same_tables(clean), machine)


def converge(machine: Machine) -> None:
    """Enough quiet time for a pass of every tier, and for the second look at what it found missing.

    Of a row that was written twice a page border may hide the newer one, so the server merges them first. Half of the
    largest tier is what a late row, an edit or a deletion may be behind. What happened further back, and what half a
    page hid (see `machine`), is found by `verify --repair`; verify looks at what was read once, so rows older than
    everything that was there at the first sync need a `backfill`.
    """
    machine.world.data.merge()
    if machine.switched:
        machine.finish_switch()
    # A trace of the older API is missed once the last of its observations is marked, and then looked for again.
    looks = 2 if machine.switched else 1
    for wait in (LARGEST_TIER / 2, *([timedelta(minutes=70)] * looks)):
        machine.world.now += wait
        machine.settle()
    if machine.look_before_the_origin():
        assert machine.world.beyond
    if machine.world.beyond:
        machine.repair()
        machine.settle()


def compare(found: dict[str, list[Row]], truth: dict[str, list[Row]], machine: Machine) -> None:
    """Rows that are not marked as deleted are those of one clean run; every other row is marked.

    On v4 a session stays when its traces moved to another one, as it does on a v3 server; only of a deletion it learns.
    Of rows that the older API gave before a switch, docs/upgrade-to-v4.md lists the columns that may differ from what
    the newer one answers, and says that what was deleted before the newer one was whole may stay.
    """
    assert found["projects"] == truth["projects"]
    kept = {table: {_key(row): row for row in found[table] if not row["deleted_at"]} for table in ROW_TABLES}
    expected = {table: {_key(row): row for row in truth[table]} for table in ROW_TABLES}
    for table in ROW_TABLES:
        more = kept[table].keys() - expected[table].keys() - machine.lost.get(table, set())
        if table == "traces":  # what has an observation that nobody can tell is gone is not gone either
            more -= {key[:1] for key in kept["observations"].keys() & machine.lost.get("observations", set())}
        if table == "sessions" and machine.server.api == "v4":
            more = set()
        missing = expected[table].keys() - kept[table].keys()
        assert (more, missing) == (set(), set()), f"{table}: not marked as deleted {more}, missing {missing}"
    differing = _differing_after_switch(kept, expected) if machine.switched else {}
    for table in ROW_TABLES:
        for key, row in expected[table].items():
            stored = kept[table][key]
            ignored = differing.get((table, key), set())
            different = {n: (stored[n], row[n]) for n in row if stored[n] != row[n] and n not in ignored}
            assert not different, f"{table} {key}: found, expected {different}"


def _differing_after_switch(
    kept: dict[str, dict[Key, Row]], expected: dict[str, dict[Key, Row]]
) -> dict[tuple[str, Key], set[str]]:
    """The columns that may differ, by table and row."""
    stay = {table: kept[table].keys() - expected[table].keys() for table in ROW_TABLES}
    of_older_rows = {key[0] for key, row in kept["observations"].items() if row["read_from"] == "traces"}
    with_more_rows = {trace_id for trace_id, _ in stay["observations"]}
    with_more_traces = {kept["traces"][key]["session_id"] for key in stay["traces"]}
    found: dict[tuple[str, Key], set[str]] = {}
    for table in ROW_TABLES:
        for key, row in kept[table].items():
            columns = set(DIFFERENT[table]) if row["read_from"] == "traces" else set()
            if table == "traces":
                columns.add("html_path")  # what the newer API does not know is kept
                if key[0] in with_more_rows:
                    columns |= set(row) if row["read_from"] == "observations" else {"latency", "total_cost"}
                if key[0] in of_older_rows and row["read_from"] == "observations":
                    columns.add("content_hash")  # that of its root is a part of it
            if table == "sessions" and (row["read_from"] == "traces" or key[0] in with_more_traces):
                columns |= {"environment", "content_hash"}
            found[table, key] = columns
    return found


def _key(row: Row) -> Key:
    return (row["trace_id"] or "", row["id"]) if "start_time" in row else (row["id"],)


@pytest.fixture(autouse=True)
def hand_over_quickly() -> Iterator[None]:
    """A page goes through the threads of server, reader and writer: each would wait 5 ms for the one before."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.000_5)
    yield
    sys.setswitchinterval(usual)


@pytest.fixture(scope="module")
def databases(request: pytest.FixtureRequest) -> Iterator[Databases]:
    with tempfile.TemporaryDirectory(dir=_MEMORY if _MEMORY.is_dir() else None) as folder:
        made = Databases(Path(folder), lambda: request.getfixturevalue("postgres_url"))
        yield made
        made.close()


COMMON = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck))

# Kind of database, API, parts, examples of each: parts begin with a seed of their own each, and share the processors.
# Of the dearest, those of a change in the middle, there are the fewest.
ALWAYS = [
    ("sqlite", "v3", 4, 26), ("sqlite", "v4", 4, 32), ("sqlite", "switch", 3, 9),
    ("postgres", "v3", 1, 15), ("postgres", "v4", 1, 18), ("postgres", "switch", 1, 6),
]  # fmt: skip


def check_histories(chosen: settings, databases: Databases, kind: str, api: str, part: int | None = None) -> None:
    @chosen
    @given(histories(api))
    def check(case: Case) -> None:
        play(databases, kind, case, api)

    (check if part is None else seed(f"{kind} {api} {part}")(check))()


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "api", "part", "examples"),
    [(kind, api, part, examples) for kind, api, parts, examples in ALWAYS for part in range(parts)],
)
def test_after_any_history_the_tables_are_the_servers_truth(
    databases: Databases, kind: str, api: str, part: int, examples: int
) -> None:
    check_histories(settings(COMMON, max_examples=examples), databases, kind, api, part)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("part", "kind", "api", "examples"),
    [
        (part, kind, api, examples)
        for part in range(20)
        for kind, examples in (("sqlite", 100), ("postgres", 15))
        for api in APIS
    ],
)
def test_after_thousands_of_histories_the_tables_are_the_servers_truth(
    databases: Databases, kind: str, api: str, part: int, examples: int
) -> None:
    """Histories of its own each time. In parts, so that one that is ended early has shown something of each kind."""
    check_histories(settings(COMMON, max_examples=examples, print_blob=True), databases, kind, api)
