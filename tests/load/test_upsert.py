"""New, newer, older and equal rows; what is written and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from as_read import as_read
from database_looks import Pair, all_contents, instant, physical_rows, scratch, stored, stored_in, write
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm, equal
from recorded_rows import STREAMS, recorded, to_item, to_row
from sqlalchemy import Engine, update

from etl.load.engine import writing
from etl.load.tables import ROW_TABLES
from etl.load.upsert import Written, upsert
from etl.transform.pages import Kind, contents_missing, rows_of
from etl.transform.rows import Row, from_api, to_api

TRACE, CORE = STREAMS["traces"], STREAMS["traces without contents"]
KEYED = pytest.mark.parametrize("name", ["traces", "observations", "scores of v2", "sessions"])
VERSIONED = pytest.mark.parametrize("name", ["traces", "observations", "scores of v2"])


def at(minute: int) -> str:
    return f"2026-11-08T00:{minute:02}:00.000Z"


def row(stream: str = "traces", key: str = "k", /, *, read_from: str = "traces", **fields: Any) -> Row:
    shape = STREAMS[stream].shape
    item = {field.api: None for field in shape.fields if field.api not in shape.optional}
    item |= {"id": key, "projectId": "p"} | fields
    return from_api(item, shape, project_id="p", read_from=read_from, plain=False)


def only(engine: Engine, table: str) -> Row:
    (found,) = stored_in(engine, table).values()
    return found


def mark_deleted(engine: Engine, table: str) -> None:
    with writing(engine) as conn:
        conn.execute(update(ROW_TABLES[table]).values(deleted_at=instant(500)))


@KEYED
def test_the_same_rows_twice_are_written_once(engine: Engine, name: str) -> None:
    stream = STREAMS[name]
    table = stream.shape.table
    rows = [to_row(item, stream) for item in recorded(stream.file)[:200]]

    assert Written(stored=len(rows), changed=len(rows), contested=0) == write(engine, table, rows, instant(0))
    with writing(engine) as conn:
        before, physical = stored(conn, table), physical_rows(conn, table)
        assert Written(stored=len(rows), changed=0, contested=0) == upsert(conn, table, rows[::-1], instant(60))
        assert physical == physical_rows(conn, table), "not one row was written"
        assert before == stored(conn, table)


@KEYED
def test_no_rows_are_nothing_to_do(engine: Engine, name: str) -> None:
    assert Written(0, 0, contested=0) == write(engine, STREAMS[name].shape.table, [], instant(0))


def test_only_the_row_that_changed_is_written(engine: Engine) -> None:
    rows = [row("traces", key, updatedAt=at(1)) for key in "abc"]
    write(engine, "traces", rows, instant(0))

    with writing(engine) as conn:
        physical = physical_rows(conn, "traces")
        rows[1] = row("traces", "b", name="new", updatedAt=at(2))
        assert Written(stored=3, changed=1, contested=1) == upsert(conn, "traces", rows, instant(60))
        if conn.dialect.name == "sqlite":
            assert physical_rows(conn, "traces") - physical == 1
        else:
            assert len(set(physical) & set(physical_rows(conn, "traces"))) == 2
        found = stored(conn, "traces")
    assert [instant(0), instant(60), instant(0)] == [found["p", key]["changed_at"] for key in "abc"]
    assert {instant(0)} == {found["p", key]["first_seen_at"] for key in "abc"}


@KEYED
def test_the_same_content_under_another_hash_is_no_change(engine: Engine, name: str) -> None:
    """An answer may say the same in another order; an older version of this program hashed in another way."""
    stream = STREAMS[name]
    table = stream.shape.table
    rows = [to_row(item, stream) for item in recorded(stream.file)[:200]]
    write(engine, table, [row | {"content_hash": "of another spelling"} for row in rows], instant(0))
    before = stored_in(engine, table)

    with writing(engine) as conn:
        assert Written(stored=len(rows), changed=0, contested=0) == upsert(conn, table, rows, instant(60))
        physical = physical_rows(conn, table)
        assert Written(stored=len(rows), changed=0, contested=0) == upsert(conn, table, rows, instant(90))
        assert physical == physical_rows(conn, table), "now the hash is known"
    hashes = {key: row["content_hash"] for key, row in stored_in(engine, table).items()}
    assert stored_in(engine, table) == {key: row | {"content_hash": hashes[key]} for key, row in before.items()}
    assert set(hashes.values()) == {row["content_hash"] for row in rows}


@VERSIONED
@pytest.mark.parametrize(("updated_at", "replaces"), [(at(2), True), (at(1), True), (at(0), False), (None, False)])
def test_newer_or_equal_replaces_and_older_does_not(
    engine: Engine, name: str, updated_at: str | None, replaces: bool
) -> None:
    table = STREAMS[name].shape.table
    first, second = row(name, updatedAt=at(1)), row(name, updatedAt=updated_at, environment="later")
    write(engine, table, [first], instant(0))

    assert Written(stored=1, changed=int(replaces), contested=1) == write(engine, table, [second], instant(60))
    wanted, found = second if replaces else first, only(engine, table)
    assert wanted == {name: found[name] for name in wanted}


def test_of_one_trace_on_two_dates_the_later_one_stays_whatever_came_first(engine: Engine) -> None:
    early, late = (row(updatedAt=at(9), timestamp=at(minute), name=str(minute)) for minute in (1, 2))
    for order in ([early, late], [late, early], [late, early, late], [early]):
        for each in order:
            write(engine, "traces", [each], instant(0))
        assert only(engine, "traces")["timestamp"] == at(2)


@VERSIONED
@pytest.mark.parametrize(("updated_at", "replaces"), [(at(2), True), (at(1), False), (at(0), False)])
@pytest.mark.parametrize(("first_from", "then_from"), [("traces", "observations"), ("trace_copy", "traces")])
def test_another_generation_replaces_a_row_only_by_a_newer_one(
    engine: Engine, name: str, updated_at: str, replaces: bool, first_from: str, then_from: str
) -> None:
    table = STREAMS[name].shape.table
    first = row(name, read_from=first_from, updatedAt=at(1))
    second = row(name, read_from=then_from, updatedAt=updated_at, environment="later")
    write(engine, table, [first], instant(0))

    assert Written(stored=1, changed=int(replaces), contested=1) == write(engine, table, [second], instant(60))
    assert only(engine, table)["read_from"] == (then_from if replaces else first_from)
    assert only(engine, table)["environment"] == ("later" if replaces else None)


def test_the_same_key_several_times_in_a_page_is_one_row_of_its_newest_version(engine: Engine) -> None:
    versions = [row(updatedAt=at(minute), name=f"{minute}") for minute in (3, 5, 1, 5, 4)]

    assert Written(stored=1, changed=1, contested=0) == write(engine, "traces", versions, instant(0))
    assert only(engine, "traces")["name"] == "5"
    assert Written(stored=1, changed=0, contested=0) == write(engine, "traces", versions, instant(60))


def test_keys_are_told_apart_by_project_and_observations_by_trace_too(engine: Engine) -> None:
    first = row("observations", traceId="t1")
    rows = [first, first | {"project_id": "q"}, row("observations", traceId="t2"), row("observations", traceId=None)]

    assert Written(stored=4, changed=4, contested=0) == write(engine, "observations", rows, instant(0))
    assert stored_in(engine, "observations").keys() == {
        ("p", "t1", "k"), ("q", "t1", "k"), ("p", "t2", "k"), ("p", "", "k"),
    }  # fmt: skip


@KEYED
def test_a_deleted_row_that_is_seen_again_comes_back(engine: Engine, name: str) -> None:
    table = STREAMS[name].shape.table
    seen = row(name, updatedAt=at(1)) if name != "sessions" else row(name)
    write(engine, table, [seen], instant(0))
    mark_deleted(engine, table)

    assert Written(stored=1, changed=1, contested=1) == write(engine, table, [seen], instant(600))
    found = only(engine, table)
    assert (None, instant(600), instant(0)) == (found["deleted_at"], found["changed_at"], found["first_seen_at"])


@pytest.mark.parametrize("minute", [0, 1, 2])
def test_a_deleted_row_comes_back_as_it_is_now_even_if_that_is_an_older_version(engine: Engine, minute: int) -> None:
    write(engine, "traces", [row(updatedAt=at(1), name="old")], instant(0))
    mark_deleted(engine, "traces")
    write(engine, "traces", [row(updatedAt=at(minute), name="now")], instant(600))

    assert (only(engine, "traces")["deleted_at"], only(engine, "traces")["name"]) == (None, "now")


def test_a_sighting_by_another_generation_takes_the_mark_away_but_keeps_the_better_reading(engine: Engine) -> None:
    write(engine, "traces", [row(updatedAt=at(1), name="old")], instant(0))
    mark_deleted(engine, "traces")
    write(engine, "traces", [row(updatedAt=at(1), name="copy", read_from="trace_copy")], instant(600))

    assert (only(engine, "traces")["deleted_at"], only(engine, "traces")["name"]) == (None, "old")


def full(**fields: Any) -> dict[str, Any]:
    return (
        {field.api: None for field in TRACE.shape.fields} | {"id": "k", "projectId": "p", "updatedAt": at(1)} | fields
    )


HEAVY = {"input": {"a": "\x00"}, "output": "\ud800", "metadata": [1e308, 2**70]}


def test_a_reading_without_contents_that_shows_nothing_new_leaves_its_hash_alone(engine: Engine) -> None:
    """By which the next one is known, as where contents are not kept at all."""
    item = full(**HEAVY, name="\x00", tags=[1e308], new={"a": 1}, userId=5)
    light = {name: value for name, value in item.items() if name != "new"}
    write(engine, "traces", [to_row(item, TRACE, "p")], instant(0))

    with writing(engine) as conn:
        (before,) = stored(conn, "traces").values()
        for again in (light | {"tags": [1e308]}, item):
            row = to_row(again, CORE, "p")
            assert upsert(conn, "traces", [row], instant(60)) == (1, 0, 0)
            (found,) = stored(conn, "traces").values()
            assert {name: found[name] for name in row if found[name] != before[name]} == {
                "content_hash": row["content_hash"]
            }
            assert (found["changed_at"], equal(item, to_api(found, TRACE.shape))) == (before["changed_at"], True)
            physical = physical_rows(conn, "traces")
            assert upsert(conn, "traces", [row], instant(90)) == (1, 0, 0)
            assert physical == physical_rows(conn, "traces")


def test_a_reading_without_contents_never_touches_contents_nor_what_is_exact_in_them(engine: Engine) -> None:
    write(engine, "traces", [to_row(full(**HEAVY, name="\x00", new="\x00"), TRACE, "p")], instant(0))
    for minute in (1, 2):
        light = to_row(full(name="later", updatedAt=at(minute)), CORE, "p")
        assert Written(stored=1, changed=1, contested=1) == write(engine, "traces", [light], instant(minute))
        assert Written(stored=1, changed=0, contested=0) == write(engine, "traces", [light], instant(70))
        found = only(engine, "traces")
        wanted = full(**HEAVY, name="later", new="\x00", updatedAt=at(minute))
        assert equal(wanted, to_item(found, TRACE))
        assert found["changed_at"] == instant(minute)


def test_a_full_reading_after_one_without_contents_brings_the_contents(engine: Engine) -> None:
    item = full(**HEAVY, new=1)
    write(engine, "traces", [to_row(item, CORE, "p")], instant(0))

    assert Written(1, 1, contested=1) == write(engine, "traces", [to_row(item, TRACE, "p")], instant(60))
    assert equal(item, to_item(only(engine, "traces"), TRACE))
    assert only(engine, "traces")["content_hash"] == to_row(item, TRACE, "p")["content_hash"]


def test_metrics_that_were_derived_stay_when_the_trace_is_read_again(engine: Engine) -> None:
    write(engine, "traces", [row(updatedAt=at(1))], instant(0))
    with writing(engine) as conn:
        conn.execute(update(ROW_TABLES["traces"]).values(latency=1.5, total_cost=0.25))
    write(engine, "traces", [row(updatedAt=at(2), name="new")], instant(60))

    found = only(engine, "traces")
    assert (found["name"], found["latency"], found["total_cost"]) == ("new", 1.5, 0.25)


@pytest.mark.parametrize("count", [1, 30], ids=["few", "many"])
def test_rows_that_replace_others_are_stored_whole_however_many_they_are(engine: Engine, count: int) -> None:
    odd = {
        "name": "%s 'quoted' \\N \\. \t\r\n", "calculatedTotalCost": 1e-7, "completionTokens": 2**40,
        "input": {"text": "\\u0041 100% \"'\n"}, "output": "", "promptName": "", "metadata": {"null": None},
    }  # fmt: skip
    keys = [f"o{number}" for number in range(count)]
    write(engine, "observations", [row("observations", key, traceId="t", updatedAt=at(1)) for key in keys], instant(0))
    newer = {key: row("observations", key, traceId="t", updatedAt=at(2), **odd) for key in keys}

    assert Written(count, count, contested=count) == write(engine, "observations", list(newer.values()), instant(60))
    for found in stored_in(engine, "observations").values():
        assert equal(to_api(newer[found["id"]], STREAMS["observations"].shape), to_item(found, STREAMS["observations"]))
        assert (found["first_seen_at"], found["changed_at"]) == (instant(0), instant(60))


@pytest.mark.parametrize("keys", [5_001])
def test_a_page_of_more_keys_than_one_statement_takes_is_looked_up_and_written(engine: Engine, keys: int) -> None:
    template = row("observations", traceId="t", updatedAt=at(1))
    rows = [template | {"id": f"o{number}"} for number in range(keys)]

    with writing(engine) as conn:
        assert Written(stored=keys, changed=keys, contested=0) == upsert(conn, "observations", rows, instant(0))
        assert Written(stored=keys, changed=0, contested=0) == upsert(conn, "observations", rows, instant(1))
        rows[-1] = rows[-1] | {"content_hash": "new", "name": "new"}
        assert Written(stored=keys, changed=1, contested=1) == upsert(conn, "observations", rows, instant(2))


def test_a_page_that_fails_leaves_nothing(engine: Engine) -> None:
    def one_page_and_a_fault() -> None:
        with writing(engine) as conn:
            upsert(conn, "traces", [row()], instant(0))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        one_page_and_a_fault()
    assert stored_in(engine, "traces") == {}


ids = st.sampled_from(["a", "b", "c"])
versions = st.lists(
    st.tuples(ids, st.sampled_from(["t", "u"]), st.integers(0, 9)), min_size=1, max_size=12, unique=True
)


@VERSIONED
@given(versions=versions, data=st.data())
@settings(calm, max_examples=15)
def test_any_order_and_batching_of_versions_gives_the_same_table(
    shared_pair: Pair, name: str, versions: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    table = STREAMS[name].shape.table
    rows = [
        row(name, key, traceId=trace, updatedAt=at(minute), environment=f"{minute}", metadata={"n": minute})
        if name != "traces"
        else row(name, f"{trace}{key}", updatedAt=at(minute // 2), timestamp=at(minute), name=f"{minute}")
        for key, trace, minute in versions
    ]
    if name == "scores of v2":  # the key of a score leaves its trace out
        rows = list({(each["id"], each["updated_at"]): each for each in rows}.values())
    newest: dict[tuple[str, ...], Row] = {}
    for each in sorted(rows, key=lambda each: (each["updated_at"], each.get("timestamp") or "")):
        newest[tuple(each[column.name] for column in ROW_TABLES[table].primary_key)] = each
    results = []
    for engine in (*shared_pair, *shared_pair):
        shuffled = data.draw(st.permutations(rows * data.draw(st.integers(1, 2))))
        with scratch(engine) as conn:
            while shuffled:
                size = data.draw(st.integers(1, len(shuffled)))
                upsert(conn, table, shuffled[:size], instant(len(shuffled)))
                shuffled = shuffled[size:]
            results.append(all_contents(conn, table))
            found = stored(conn, table)
        assert found.keys() == newest.keys()
        for key, each in found.items():
            assert equal(to_api(newest[key], STREAMS[name].shape), to_api(each, STREAMS[name].shape))

    assert [results[0]] * 4 == results


def test_contents_that_are_stored_stay_known_when_the_server_cannot_send_them_for_a_while(engine: Engine) -> None:
    item = full(**HEAVY, name="\x00")
    write(engine, "traces", [to_row(item, TRACE, "p")], instant(0))
    (marked,) = rows_of(Kind.TRACE_CORE, as_read([item]), project_id="p", contents=True)["traces"]

    hashed = only(engine, "traces")["content_hash"]
    write(engine, "traces", [marked], instant(60))
    assert equal(item, to_item(only(engine, "traces"), TRACE))
    assert only(engine, "traces")["content_hash"] == hashed

    newer = item | {"updatedAt": at(2)}
    (marked,) = rows_of(Kind.TRACE_CORE, as_read([newer]), project_id="p", contents=True)["traces"]
    write(engine, "traces", [marked], instant(120))
    assert contents_missing(only(engine, "traces")["exact"])  # what is stored may be what the edit replaced
