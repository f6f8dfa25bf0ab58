"""One history from both generations of the API: the same tables, whichever answered, and a change in the middle."""

from __future__ import annotations

import functools
import logging
import re
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import count, permutations
from pathlib import Path
from typing import Any

import pytest
from as_read import as_read
from databases import Databases
from json_values import exact
from sqlalchemy import Connection, Engine, delete, event, text, update
from syncing import EDGE, NOW, Recorded, Row, corpus, coverage, rows, same_tables, sync, watermarks, whole_tables

from etl.demo import Dataset, MockLangfuse
from etl.export import Options, Selection, export_sessions
from etl.intervals import Window
from etl.load.engine import reading, writing
from etl.load.meanings import VIEWS
from etl.load.status import stream_statuses
from etl.load.tables import sync_windows, traces
from etl.load.upsert import upsert
from etl.pipeline.store import store_rows
from etl.transform.derive import whole_trace
from etl.transform.documents import canonical
from etl.transform.fields import OBSERVATION, OBSERVATION_V2_ONLY, TRACE_DOCUMENT, TRACE_V2
from etl.transform.jsontext import loads
from etl.transform.pages import Kind, rows_of
from etl.transform.rows import to_api

DOCS = Path(__file__).parents[2] / "docs" / "upgrade-to-v4.md"
PROJECT = "proj-shop"
SEEN = NOW
START = datetime(2026, 11, 22, 11, tzinfo=UTC)
Item = dict[str, Any]
Tables = dict[str, list[Row]]

# Keep in step with the table in docs/upgrade-to-v4.md.
DIFFERENT = {
    "traces": {"html_path", "external_id", "updated_at"},
    "observations": {"version", "metadata", "usage_pricing_tier_id", "usage_pricing_tier_name"}
    | {field.column for field in OBSERVATION_V2_ONLY},
    "scores": set(),
    "sessions": {"created_at"},
}
OURS = {"content_hash", "read_from", "first_seen_at", "changed_at"}


def by_id(found: Iterable[Row]) -> dict[str, Row]:
    return {f"{row.get('trace_id') if 'start_time' in row else ''}/{row['id']}": row for row in found}


def instant(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(id_: str, start: float, trace_id: str = "t", **changes: Any) -> Item:
    """A row of GET /v2/observations; times are seconds after `START`."""
    item = {
        "id": id_, "traceId": trace_id, "projectId": PROJECT, "startTime": start, "endTime": None, "type": "SPAN",
        "name": id_, "level": "DEFAULT", "statusMessage": "", "version": "", "environment": "default",
        "parentObservationId": "root", "completionStartTime": None, "createdAt": start, "updatedAt": start,
        "input": None, "output": None, "metadata": {}, "model": "", "internalModelId": "", "modelParameters": {},
        "usageDetails": {}, "inputUsage": 0, "outputUsage": 0, "totalUsage": 0, "costDetails": {}, "inputCost": None,
        "outputCost": None, "totalCost": 0, "promptId": "", "promptName": "", "promptVersion": None,
        "usagePricingTierId": None, "usagePricingTierName": None, "latency": None, "timeToFirstToken": None,
        "userId": "", "sessionId": "", "isRootObservation": False, "traceName": None, "release": "", "tags": [],
        "bookmarked": False, "public": False, "modelId": None, "inputPrice": None, "outputPrice": None,
        "totalPrice": None,
    } | changes  # fmt: skip
    for name in ("startTime", "endTime", "createdAt", "updatedAt"):
        item[name] = None if item[name] is None else instant(item[name])
    return item


def store(engine: Engine, *pages: Sequence[Item], kind: Kind = Kind.OBSERVATION_V2, now: datetime = SEEN) -> None:
    """Each page in a transaction of its own, as a run stores it."""
    for page in pages:
        tables = rows_of(kind, as_read(page), project_id=PROJECT, contents=True)
        with writing(engine) as conn:
            store_rows(conn, kind, tables, project_id=PROJECT, now=now)


def one(engine: Engine, table: str) -> Row:
    (row,) = rows(engine, table)
    return row


@pytest.fixture(scope="module")
def v4_engines(databases: Databases) -> Iterator[Callable[[str], Engine]]:
    """The recorded data as a v4 server has it, synced once for each kind of database."""
    with ExitStack() as lent:

        @functools.cache
        def make(kind: str) -> Engine:
            engine = lent.enter_context(databases.lent(kind))
            with MockLangfuse(corpus(), api="v4") as server:
                assert sync(engine, server).status == "ok"
            return engine

        yield make


@pytest.fixture(scope="module")
def both_tables(
    recorded_syncs: Callable[[str], Recorded], v4_engines: Callable[[str], Engine]
) -> Callable[[str], tuple[Tables, Tables]]:
    """What both generations gave, read once for each kind of database."""
    return functools.cache(lambda kind: (same_tables(recorded_syncs(kind).engine), same_tables(v4_engines(kind))))


@pytest.fixture
def v3(kind: str, recorded_syncs: Callable[[str], Recorded]) -> Engine:
    return recorded_syncs(kind).engine


@pytest.fixture
def v4(kind: str, v4_engines: Callable[[str], Engine]) -> Engine:
    return v4_engines(kind)


# The recorded data through both


@pytest.mark.parametrize("table", DIFFERENT)
def test_both_generations_give_the_same_rows(
    kind: str, both_tables: Callable[[str], tuple[Tables, Tables]], table: str
) -> None:
    v3, v4 = both_tables(kind)
    old, new = by_id(v3[table]), by_id(v4[table])
    if table == "sessions":  # the traces of the others were not recorded
        named = {row["session_id"] for row in v3["traces"]}
        old = {key: row for key, row in old.items() if row["id"] in named}
    assert len(old) > 40
    assert old.keys() <= new.keys()
    different = Counter(name for key, row in old.items() for name in row if row[name] != new[key][name])
    assert set(different) - OURS <= DIFFERENT[table]
    # `external_id` is null in every answer; what else is listed does differ.
    assert set(different) - OURS >= DIFFERENT[table] - {"external_id"}


def test_what_v4_has_more_of_is_newer_than_the_recorded_lists(v3: Engine, v4: Engine) -> None:
    for table, more in (("traces", 37), ("observations", 2), ("scores", 0)):
        assert len(rows(v4, table)) - len(rows(v3, table)) == more


def test_the_docs_list_the_columns_that_differ() -> None:
    listed = {tuple(name.split(".")) for name in re.findall(r"^\| `(\w+\.\w+)`", DOCS.read_text("utf-8"), re.MULTILINE)}
    assert listed == {(table, column) for table, columns in DIFFERENT.items() for column in columns}


@pytest.mark.parametrize("view", sorted(VIEWS.keys() - {"sync_coverage"}))
def test_both_generations_give_the_same_views(v3: Engine, v4: Engine, view: str) -> None:
    """But for the days of traces that only v4 has, of which `latency_daily` shows percentiles."""
    known = {row["id"] for row in rows(v3, "traces")}
    days = {row["timestamp"][:10] for row in rows(v4, "traces") if row["id"] not in known}
    old, new = set[tuple[Any, ...]](), set[tuple[Any, ...]]()
    for engine, found in ((v3, old), (v4, new)):
        with reading(engine) as conn:
            shown = conn.execute(text(f"SELECT * FROM {_qualified(engine, view)}"))
            found |= {tuple(row) for row in shown if view != "latency_daily" or str(row.day) not in days}
    assert bool(old) == (view != "prompt_version_stats"), "no prompt is in the recorded data"
    assert old <= new


@pytest.mark.parametrize("detail", ["full", "row"])
def test_both_generations_give_the_same_session_files(
    recorded_syncs: Callable[[str], Recorded], v4_engines: Callable[[str], Engine], tmp_path: Path, detail: Any
) -> None:
    old = exported(recorded_syncs("sqlite").engine, tmp_path / "v3", detail)
    new = exported(v4_engines("sqlite"), tmp_path / "v4", detail)
    assert len(old) == 1_200
    assert old.keys() <= new.keys()
    different: set[tuple[str, str]] = set()
    for file, trace in old.items():
        different |= {("traces", name) for name in differing(trace, new[file], "observations", "scores")}
        for part in ("observations", "scores"):
            assert len(trace[part]) == len(new[file][part])
            for one, other in zip(trace[part], new[file][part], strict=True):
                if detail == "row":
                    assert one == other
                else:
                    assert one["id"] == other["id"]
                    different |= {(part, name) for name in differing(one, other)}
    fields = {"traces": TRACE_DOCUMENT.fields, "observations": OBSERVATION.fields + OBSERVATION_V2_ONLY}
    listed = {
        (table, field.api) for table, found in fields.items() for field in found if field.column in DIFFERENT[table]
    }
    expected = listed if detail == "full" else {(table, name) for table, name in listed if table == "traces"}
    assert different == expected, "the columns that the docs list, no others"


def exported(engine: Engine, folder: Path, detail: Any) -> dict[tuple[str, str], Item]:
    """The documents by session folder and file."""
    export_sessions(engine, Selection(all=True), Options(directory=folder, name_by="id", detail=detail))
    files = [path for path in folder.glob("*/*.json") if path.name != "manifest.json"]
    return {(path.parent.name, path.name): loads(path.read_text("utf-8")) for path in files}


def differing(one: Item, other: Item, *left_out: str) -> set[str]:
    """Fields that one has and the other has not, or has otherwise."""
    common = one.keys() & other.keys()
    different = {name for name in common if exact(one[name]) != exact(other[name])}
    return (different | (one.keys() ^ other.keys())) - set(left_out)


def _qualified(engine: Engine, view: str) -> str:
    schema = engine.get_execution_options().get("schema_translate_map", {}).get(None)
    return f"{schema}.{view}" if schema else view


def test_both_databases_are_the_same_after_a_sync_from_v4(v4_engines: Callable[[str], Engine]) -> None:
    one, other = (same_tables(v4_engines(kind)) for kind in ("sqlite", "postgres"))
    for table in DIFFERENT:  # the order of ids and the spelling of numbers is each database's own
        assert canonical(by_id(one[table])) == canonical(by_id(other[table]))


def test_a_second_sync_from_v4_writes_nothing(v4: Engine) -> None:
    before = whole_tables(v4)
    with MockLangfuse(corpus(), api="v4") as server:
        report = sync(v4, server, now=NOW + timedelta(minutes=5))
    assert (report.status, report.total("rows_written")) == ("ok", 0)
    assert whole_tables(v4) | {"projects": []} == before | {"projects": []}


def test_all_four_streams_have_a_state_and_coverage(v4: Engine) -> None:
    marks = watermarks(v4)
    assert set(marks) == {"traces", "observations", "scores", "sessions"}
    assert all(mark is not None and mark >= EDGE for mark in marks.values())
    assert coverage(v4, "traces") == coverage(v4, "sessions") == coverage(v4, "observations")
    with reading(v4) as conn:
        for status in stream_statuses(conn, PROJECT):
            assert status.gaps == 0
            assert status.live_edge == marks[status.stream]
            assert status.rows == len(rows(v4, status.stream))


# A trace is the same, however its rows arrive


LATE_ROOT = [
    span("child-1", 60, endTime=70, updatedAt=75, userId="u", sessionId="s", totalCost=0.25),
    span("child-2", 90, endTime=95, updatedAt=96, traceName="long job", tags=["a"]),
    span("root", 0, endTime=7_200, updatedAt=7_205, parentObservationId=None, input='{"q": 1}', output="plain {text"),
]  # fmt: skip


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_root_that_arrives_hours_after_its_children(engine: Engine, order: tuple[int, ...]) -> None:
    for position in order:
        store(engine, [LATE_ROOT[position]])
    row = one(engine, "traces")
    trace = to_api(row, TRACE_V2)
    assert (trace["timestamp"], trace["name"], trace["userId"]) == (instant(0), "long job", "u")
    assert (trace["input"], trace["output"], trace["tags"]) == ({"q": 1}, "plain {text", ["a"])
    assert (row["latency"], row["total_cost"]) == (7_200, 0.25)
    assert row["read_from"] == "observations"
    assert (one(engine, "sessions")["id"], one(engine, "sessions")["environment"]) == ("s", "default")


@pytest.mark.parametrize(
    "items",
    [
        [span("a", 1, userId="u"), span("b", 2)],
        [span("a", 1, parentObservationId=None, input="1"), span("b", 2, parentObservationId=None, input="2")],
        [span(f"o{n}", n * 500, updatedAt=9_000 - n, tags=[f"{n}"], parentObservationId=None) for n in range(10)],
        [
            span("a", 1, parentObservationId=None, userId=17, input='{"b": 1, "a": [1.50, null]}', totalCost=0.1),
            span("b", 2, endTime=9, tags=["z", "\N{GREEK SMALL LETTER ALPHA}"], sessionId="s", totalCost=0.2),
            span("c", 2, version=None, traceName="\x00", totalCost=0.7),
        ],
    ],
    ids=["no root", "two roots", "ten windows", "values that a column cannot hold"],
)
def test_pages_and_their_order_do_not_matter(new_database: Callable[[], Engine], items: list[Item]) -> None:
    found = []
    for pages in ([items], [[item] for item in items], [[item] for item in reversed(items)]):
        engine = new_database()
        store(engine, *pages)
        store(engine, *pages)
        found.append(same_tables(engine))
    assert found[0] == found[1] == found[2]
    assert len(found[0]["traces"]) == 1
    assert len(found[0]["observations"]) == len(items)


def test_an_edited_observation_edits_its_trace(engine: Engine) -> None:
    store(engine, [span("root", 0, parentObservationId=None, input="first")])
    before = one(engine, "traces")
    later = SEEN + timedelta(minutes=5)
    store(engine, [span("root", 0, parentObservationId=None, input="first")], now=later)
    assert one(engine, "traces") == before  # nothing new: nothing written
    store(engine, [span("root", 0, parentObservationId=None, input="second", updatedAt=9)], now=later)
    after = one(engine, "traces")
    assert to_api(after, TRACE_V2)["input"] == "second"
    assert (after["first_seen_at"], after["changed_at"]) == (SEEN, later)


def test_a_row_that_was_written_twice_counts_once_and_the_newer_one(engine: Engine) -> None:
    old, new = (span("a", 0, endTime=5, updatedAt=at, name=f"at {at}", totalCost=0.5) for at in (6, 8))
    store(engine, [new, old])
    store(engine, [old])
    assert one(engine, "observations")["name"] == "at 8"
    assert one(engine, "traces")["total_cost"] == 0.5


def test_large_metadata_and_raw_text(engine: Engine) -> None:
    metadata = {"long": "v" * 10_000, "nested": {"k": "v" * 10_000}}
    store(engine, [span("r", 0, parentObservationId=None, metadata=metadata, input='{"a": 1', output='{"a": 1}')])
    trace = to_api(one(engine, "traces"), TRACE_V2)
    assert (trace["metadata"], trace["input"], trace["output"]) == (metadata, '{"a": 1', {"a": 1})


def test_the_copy_of_a_trace_is_the_trace(engine: Engine) -> None:
    copy = span("t-t", 0, parentObservationId=None, isRootObservation=True, name="n", userId="u", input="asked")
    child = span("child", 1, endTime=3, parentObservationId="t-t", updatedAt=50, input="not this", userId="other")
    for pages in ([[child], [copy]], [[copy], [child]], [[copy, child]]):
        store(engine, *pages)
        row = one(engine, "traces")
        assert row["read_from"] == "trace_copy"
        trace = to_api(row, TRACE_V2)
        assert (trace["name"], trace["userId"], trace["input"]) == ("n", "u", "asked")
        assert row["latency"] == 2
        assert one(engine, "observations")["parent_observation_id"] is None
        with writing(engine) as conn:
            conn.execute(delete(traces))


def test_a_new_trace_is_written_once_and_with_its_metrics(engine: Engine) -> None:
    written: list[str] = []

    def note(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if re.search(r"(INSERT INTO|UPDATE) \S*\btraces\b", statement):
            written.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    derived = [span("root", 0, parentObservationId=None, endTime=3, totalCost=0.5), span("child", 1, endTime=5)]
    store(engine, [*derived, span("child", 1, "u", endTime=2), span("t-u", 0, "u")])
    event.remove(engine, "before_cursor_execute", note)

    found = {row["id"]: (row["read_from"], row["latency"], row["total_cost"]) for row in rows(engine, "traces")}
    assert found == {"t": ("observations", 5, 0.5), "u": ("trace_copy", 1, 0)}
    copied = engine.dialect.name == "postgresql"  # by COPY, which goes past SQLAlchemy
    assert len(written) == (0 if copied else 2)


def test_values_that_no_column_holds_reach_the_derived_trace(engine: Engine) -> None:
    store(engine, [span("r", 0, parentObservationId=None, input="a\x00b", metadata={"big": 2**70}, userId="\ud800")])
    trace = to_api(one(engine, "traces"), TRACE_V2)
    assert (trace["input"], trace["metadata"], trace["userId"]) == ("a\x00b", {"big": 2**70}, "\ud800")


# Which reading wins


def reading_of(read_from: str, updated: float, name: str) -> Row:
    """A row of one trace as one of the readers gives it."""
    if read_from == "observations":
        items = [span("o", 0, updatedAt=updated, parentObservationId=None, traceName=name)]
        parts = rows_of(Kind.OBSERVATION_V2, as_read(items), project_id=PROJECT, contents=True)["observations"]
        return whole_trace(PROJECT, "t", parts)
    if read_from == "trace_copy":
        items = [span("t-t", 0, updatedAt=updated, name=name)]
        return rows_of(Kind.OBSERVATION_V2, as_read(items), project_id=PROJECT, contents=True)["traces"][0]
    item = {
        "id": "t", "projectId": PROJECT, "name": name, "timestamp": instant(0), "environment": "default", "tags": [],
        "bookmarked": False, "release": None, "version": None, "userId": None, "sessionId": None, "public": False,
        "input": None, "output": None, "metadata": {}, "createdAt": instant(0), "updatedAt": instant(updated),
        "htmlPath": "/project/p/traces/t", "externalId": None,
    }  # fmt: skip
    return rows_of(Kind.TRACE, as_read([item]), project_id=PROJECT, contents=True)["traces"][0]


@pytest.mark.parametrize(
    ("stored", "new", "wins_if"),
    [
        ("traces", "traces", "equal"),
        ("trace_copy", "trace_copy", "equal"),
        ("traces", "trace_copy", "newer"),
        ("trace_copy", "traces", "newer"),
        ("observations", "traces", "always"),
        ("observations", "trace_copy", "always"),
        ("observations", "observations", "always"),
        ("traces", "observations", "never"),
        ("trace_copy", "observations", "never"),
    ],
)
def test_a_better_reading_is_not_replaced(database: Engine, stored: str, new: str, wins_if: str) -> None:
    for updated, wins in ((9, wins_if == "always"), (10, wins_if in ("always", "equal")), (11, wins_if != "never")):
        with writing(database) as conn:
            conn.execute(delete(traces))
            upsert(conn, "traces", [reading_of(stored, 10, "stored")], SEEN)
            if new == "observations" and stored != "observations":  # derivation does not even try
                continue
            upsert(conn, "traces", [reading_of(new, updated, "new")], SEEN)
        row = one(database, "traces")
        assert (row["name"], row["read_from"]) == (("new", new) if wins else ("stored", stored))


def test_what_only_the_traces_api_has_stays_when_a_newer_copy_comes(database: Engine) -> None:
    with writing(database) as conn:
        upsert(conn, "traces", [reading_of("traces", 10, "old")], SEEN)
        upsert(conn, "traces", [reading_of("trace_copy", 11, "new")], SEEN)
    row = one(database, "traces")
    assert (row["name"], row["html_path"]) == ("new", "/project/p/traces/t")


def test_new_observations_of_a_given_trace_move_only_its_metrics(engine: Engine) -> None:
    with writing(engine) as conn:
        upsert(conn, "traces", [reading_of("traces", 10, "given")], SEEN)
    before = one(engine, "traces")
    later = SEEN + timedelta(minutes=5)
    store(engine, [span("o", 50, endTime=60, updatedAt=99, traceName="other", totalCost=0.5)], now=later)
    after = one(engine, "traces")
    assert {name for name in after if after[name] != before[name]} == {"latency", "total_cost", "changed_at"}
    assert (after["latency"], after["total_cost"]) == (10, 0.5)


def test_an_older_session_row_keeps_its_time(engine: Engine) -> None:
    given = {"id": "s", "createdAt": instant(0), "projectId": PROJECT, "environment": "prod"}
    store(engine, [span("o", 0, sessionId="s")])
    assert one(engine, "sessions")["created_at"] is None
    store(engine, [given], kind=Kind.SESSION)
    store(engine, [span("o", 0, sessionId="s", updatedAt=9)])
    row = one(engine, "sessions")
    assert (row["created_at"], row["environment"], row["read_from"]) == (instant(0), "prod", "traces")


def test_a_session_that_a_trace_leaves_is_in_the_environment_of_the_earliest_that_stays(engine: Engine) -> None:
    for trace_id, start, environment in (("first", 0, "staging"), ("second", 5, "production")):
        store(engine, [span("o", start, trace_id, sessionId="s", environment=environment)])
    assert one(engine, "sessions")["environment"] == "staging"
    store(engine, [span("o", 0, "first", sessionId="other", environment="staging", updatedAt=9)])
    environments = {"s": "production", "other": "staging"}
    assert {row["id"]: row["environment"] for row in rows(engine, "sessions")} == environments
    store(engine, [span("o", 5, "second", sessionId="other", environment="production", updatedAt=9)])
    left = rows(engine, "sessions")
    assert {row["id"]: row["environment"] for row in left} == environments, "nobody is left"
    assert [row["deleted_at"] for row in left] == [None, None]


# A server that is upgraded in the middle of its history


def legacy(dataset: Dataset, trace_id: str, at: float, **changes: Any) -> None:
    """A trace with one observation, sent through the older ingestion."""
    given = {"sessionId": "s", "userId": "u", "name": "n", "createdAt": instant(at), "updatedAt": instant(at)} | changes
    dataset.put_trace({"id": trace_id, "timestamp": instant(at), **given})
    times = {"createdAt": instant(at), "updatedAt": instant(at)}
    span = {"id": f"{trace_id}-o", "traceId": trace_id, "type": "SPAN"}
    dataset.put_observation({**span, "startTime": instant(at), "endTime": instant(at + 1), **times})


def test_a_server_that_is_upgraded_goes_on_in_the_same_tables(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    dataset = Dataset()
    legacy(dataset, "kept", 0)
    legacy(dataset, "edited", 600)
    with MockLangfuse(dataset, api="v3") as server:
        assert sync(engine, server, now=START + timedelta(minutes=30)).status == "ok"
        before = {row["id"]: row for row in rows(engine, "traces")}
        observations_before = {row["id"]: row for row in rows(engine, "observations")}
        server.api = "v4"
        legacy(dataset, "edited", 600, name="edited", updatedAt=instant(1_900))
        legacy(dataset, "late", 1_700)
        dataset.put_event(span("root", 2_000, "native", parentObservationId=None, sessionId="s", input="hello"))
        dataset.put_event(span("child", 2_001, "native", endTime=2_003))
        dataset.put_event(span("more", 2_100, "kept", endTime=2_200, userId="somebody else"))
        with caplog.at_level(logging.INFO):
            for minutes in (60, 65):
                assert sync(engine, server, now=START + timedelta(minutes=minutes)).status == "ok"
    switched = [record for record in caplog.records if "observations API from now on" in record.getMessage()]
    assert len(switched) == 1
    found = {row["id"]: row for row in rows(engine, "traces")}
    assert {name: row["read_from"] for name, row in found.items()} == {
        "kept": "traces", "edited": "trace_copy", "late": "trace_copy", "native": "observations",
    }  # fmt: skip
    assert (found["edited"]["name"], found["edited"]["html_path"]) == ("edited", before["edited"]["html_path"])
    changed = {name for name in before["kept"] if before["kept"][name] != found["kept"][name]}
    assert changed == {"latency", "changed_at"}  # one more observation, hours later
    assert found["native"]["session_id"] == "s"
    ids = [(row["trace_id"], row["id"]) for row in rows(engine, "observations")]
    assert sorted(ids) == [
        ("edited", "edited-o"), ("kept", "kept-o"), ("kept", "more"), ("late", "late-o"), ("native", "child"),
        ("native", "root"),
    ]  # fmt: skip
    for row in rows(engine, "observations"):
        if row["id"] in observations_before:
            assert row == observations_before[row["id"]]
    assert [row["id"] for row in rows(engine, "sessions")] == ["s"]
    assert one(engine, "projects")["api"] == "observations"
    assert all(mark == START + timedelta(minutes=63) for mark in watermarks(engine).values())


def crowd(dataset: Dataset) -> None:
    """More than one request brings: what is read again here is read by itself, lightly."""
    for number in range(110):
        times = dict.fromkeys(("startTime", "createdAt", "updatedAt"), instant(300))
        dataset.put_observation({"id": f"crowd-{number}", "traceId": "crowd", **times})


def test_a_trace_that_comes_after_its_observation_is_the_trace(engine: Engine) -> None:
    """A light reading of its span replaces what was derived before, too."""
    dataset = Dataset()
    crowd(dataset)
    early = {"id": "o", "traceId": "t", "startTime": instant(600), "createdAt": instant(600), "updatedAt": instant(600)}
    dataset.put_observation(early)
    with MockLangfuse(dataset, api="v4") as server:
        assert sync(engine, server, now=START + timedelta(minutes=30)).status == "ok"
        assert by_id(rows(engine, "traces"))["/t"]["read_from"] == "observations"
        dataset.put_trace({"id": "t", "timestamp": instant(0), "name": "late", "input": "hello"})
        assert sync(engine, server, now=START + timedelta(hours=7)).status == "ok"
    trace = by_id(rows(engine, "traces"))["/t"]
    assert (trace["read_from"], trace["name"], trace["input"]) == ("trace_copy", "late", '"hello"')


def test_an_edit_after_the_upgrade_is_found_by_a_light_reading(engine: Engine) -> None:
    dataset = Dataset()
    crowd(dataset)
    legacy(dataset, "edited", 0)
    with MockLangfuse(dataset, api="v3") as server:
        assert sync(engine, server, now=START + timedelta(minutes=30)).status == "ok"
        server.api = "v4"
        assert sync(engine, server, now=START + timedelta(minutes=60)).status == "ok"
        assert by_id(rows(engine, "traces"))["/edited"]["read_from"] == "traces"
        legacy(dataset, "edited", 0, name="new name", updatedAt=instant(4_000))
        assert sync(engine, server, now=START + timedelta(hours=7)).status == "ok"
    trace = by_id(rows(engine, "traces"))["/edited"]
    assert (trace["read_from"], trace["name"]) == ("trace_copy", "new name")


def test_what_the_older_generation_had_not_read_is_read_by_the_newer(database: Engine) -> None:
    """Coverage counts whoever read it, but only where all of traces and observations was read."""
    dataset = Dataset()
    for day in range(5):
        legacy(dataset, f"day-{day}", -day * 86_400)
    with MockLangfuse(dataset, api="v3") as server:
        assert sync(database, server).status == "ok"
        gap = Window(START - timedelta(days=3, hours=1), START - timedelta(days=2, hours=-1))
        with writing(database) as conn:  # as if these traces had not been reached yet
            conn.execute(delete(traces).where(traces.c.id.in_(["day-2", "day-3"])))
            conn.execute(delete(sync_windows).where(sync_windows.c.stream == "traces"))
            windows = [w for w in rows(database, "sync_windows") if w["stream"] == "observations"][:1]
            for start, end in ((windows[0]["window_start"], gap.start), (gap.end, EDGE)):
                window = windows[0] | {"stream": "traces", "window_start": start, "window_end": end, "id": None}
                conn.execute(sync_windows.insert().values(window))
        server.api = "v4"
        assert sync(database, server, now=NOW + timedelta(minutes=5)).status == "ok"
    assert {row["id"]: row["read_from"] for row in rows(database, "traces")} == {
        "day-0": "traces", "day-1": "traces", "day-2": "trace_copy", "day-3": "trace_copy", "day-4": "traces",
    }  # fmt: skip
    assert coverage(database, "traces")[0].end == NOW + timedelta(minutes=3)


def test_a_deletion_mark_goes_when_a_derived_trace_is_seen_again(database: Engine) -> None:
    store(database, [span("o", 0)])
    with writing(database) as conn:
        conn.execute(update(traces).values(deleted_at=SEEN))
    store(database, [span("o", 0)])
    assert one(database, "traces")["deleted_at"] is None


# Rows that arrive over days, through whole runs


def test_traces_that_arrive_in_pieces_end_as_if_they_had_come_at_once(
    new_database: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours between children and root, no root, two roots, ten windows; texts that are JSON and that are not."""
    day, long, top = 86_400, {"long": "v" * 10_000, "nested": {"k": "é" * 10_000}}, {"parentObservationId": None}
    arriving = {
        0: [
            span("c1", -3_600, "late-root", endTime=-3_590, sessionId="s", totalCost=0.5),
            span("c2", -3_000, "late-root", traceName="named by a child"),
            span("a", -900, "no-root", userId="u", input='{"not": "shown"}'),
            span("r1", -800, "two-roots", input="first", metadata=long, **top),
            *(span(f"w{n}", -n * day, "ten-windows", tags=[str(n)], updatedAt=-n * day) for n in range(1, 11)),
        ],
        5: [
            span("root", -7_200, "late-root", endTime=10_000, updatedAt=10_001, input="[1, 2", **top),
            span("b", -850, "no-root", updatedAt=10_000, output='"text"'),
            span("r2", -700, "two-roots", updatedAt=12_000, input='{"q": 1e2}', output="00123", **top),
            span("w0", 9_000, "ten-windows", updatedAt=9_001, metadata=long, input="17400353", **top),
        ],
    }  # fmt: skip
    dataset = Dataset()
    pieces, whole = new_database(), new_database()
    with MockLangfuse(dataset, api="v4") as server:
        for hours in (0, 5, 12, 20, 30):  # the last one is a pass of the two days' tier
            now = START + timedelta(hours=hours)
            for item in arriving.get(hours, ()):
                dataset.put_event(item)
            with monkeypatch.context() as small:
                small.setattr("etl.extract.cursor.SEGMENT_ROWS", 1)
                small.setattr("etl.extract.observations_api.MAX_LIMIT", 1)
                assert sync(pieces, server, now=now).status == "ok"
        assert sync(whole, server, now=now).status == "ok"
    assert same_tables(pieces) == same_tables(whole)
    times = [datetime.fromisoformat(row["start_time"]) for row in rows(pieces, "observations") if row["id"][0] == "w"]
    first_read = [row for row in rows(pieces, "sync_windows") if row["tier"] in ("live", "history")]
    windows = {(row["window_start"], row["window_end"]) for row in first_read if row["stream"] == "observations"}
    assert sum(any(start <= at < end for at in times) for start, end in windows) >= 10
    found = {row["id"]: to_api(row, TRACE_V2) for row in rows(pieces, "traces")}
    assert set(found) == {"late-root", "no-root", "two-roots", "ten-windows"}
    assert (found["late-root"]["name"], found["late-root"]["input"]) == ("named by a child", "[1, 2")
    assert found["late-root"]["timestamp"] == instant(-7_200)
    assert (found["no-root"]["input"], found["no-root"]["userId"]) == (None, "u")
    assert (found["two-roots"]["input"], found["two-roots"]["output"]) == ({"q": 100}, "00123")
    assert (found["ten-windows"]["input"], found["ten-windows"]["metadata"]) == (17400353, long)
    assert found["ten-windows"]["timestamp"] == instant(-10 * day)
    latencies = {row["id"]: row["latency"] for row in rows(pieces, "traces")}
    assert (latencies["late-root"], latencies["ten-windows"]) == (17_200, 10 * day + 9_000)


def test_contents_of_many_traces_are_never_in_memory_together(engine: Engine) -> None:
    for number in range(20):
        root = span("root", 0, f"trace-{number}", parentObservationId=None, input=f"{number}" + "x" * 1_000_000)
        store(engine, [root])
    children = [span("child", 1, f"trace-{number}", updatedAt=9, userId="u") for number in range(20)]
    tracemalloc.start()
    try:
        store(engine, children)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 15_000_000, "of 20 MB that are stored"
    assert {row["user_id"] for row in rows(engine, "traces")} == {"u"}
    assert {len(row["input"]) for row in rows(engine, "traces")} <= {1_000_003, 1_000_004}


def test_an_observation_without_a_trace_has_one_after_the_upgrade(engine: Engine) -> None:
    """The older API does not derive traces; the newer one finds the observation unchanged."""
    dataset = Dataset()
    times = dict.fromkeys(("startTime", "createdAt", "updatedAt"), instant(0))
    dataset.put_observation({"id": "o", "traceId": "t", **times})
    with MockLangfuse(dataset, api="v3") as server:
        assert sync(engine, server, now=START + timedelta(minutes=30)).status == "ok"
        assert rows(engine, "traces") == []
        server.api = "v4"
        for minutes in (60, 130):
            assert sync(engine, server, now=START + timedelta(minutes=minutes)).status == "ok"
    assert (one(engine, "traces")["id"], one(engine, "observations")["read_from"]) == ("t", "traces")


class Killed(BaseException):
    """The process is no more."""


@contextmanager
def killed_at(engine: Engine, number: int) -> Iterator[list[str]]:
    """Death before the nth statement that touches rows in a writing transaction; gives the statements up to there."""
    statements: list[str] = []

    def before(conn: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        writes = conn.get_execution_options().get("etl_writes")
        if writes and re.search(r"\b(traces|observations|sessions)\b", statement):
            statements.append(statement)
            if len(statements) == number:
                raise Killed

    event.listen(engine, "before_cursor_execute", before)
    try:
        with suppress(Killed):
            yield statements
    finally:
        event.remove(engine, "before_cursor_execute", before)


def test_killed_between_a_page_and_what_follows_from_it_neither_is_there(
    new_database: Callable[[], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.extract.observations_api.MAX_LIMIT", 4)
    dataset = Dataset()
    for number in range(3):
        trace = {"trace_id": f"t{number}", "sessionId": f"s{number}", "totalCost": 0.5}
        dataset.put_event(span("root", number, parentObservationId=None, **trace))
        dataset.put_event(span("child", number + 1, endTime=number + 9, **trace))
    legacy(dataset, "copied", 5, sessionId="s0")
    engine, clean = new_database(), new_database()
    with MockLangfuse(dataset, api="v4") as server:
        assert sync(clean, server).status == "ok"
        for number in count(1):
            with killed_at(engine, number) as statements:
                sync(engine, server)
            observed, traced = rows(engine, "observations"), {row["id"]: row for row in rows(engine, "traces")}
            assert {row["trace_id"] for row in observed} <= traced.keys()
            assert {row["session_id"] for row in traced.values()} <= {row["id"] for row in rows(engine, "sessions")}
            for trace_id, trace in traced.items():
                costs = [row["calculated_total_cost"] or 0 for row in observed if row["trace_id"] == trace_id]
                assert trace["total_cost"] == sum(costs)
            if len(statements) < number:
                break
    assert number > 6
    assert same_tables(engine) == same_tables(clean)
