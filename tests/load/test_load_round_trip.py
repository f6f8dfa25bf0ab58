"""Objects through both databases and back."""

from __future__ import annotations

from typing import Any

import pytest
from database_looks import BOOKKEEPING, Pair, all_contents, instant, scratch, stored, stored_in
from hypothesis import given, settings
from hypothesis import strategies as st
from json_values import calm, equal
from recorded_rows import STREAMS, hostile_items, kept, recorded, to_item, to_row

from etl.load.tables import ROW_TABLES
from etl.load.types import JsonText
from etl.load.upsert import upsert
from etl.transform.jsontext import JsonTextError, dumps, loads


def key_of(table: str, row: dict[str, str]) -> tuple[str, ...]:
    return tuple(row[column.name] for column in ROW_TABLES[table].primary_key)


def parsed(table: str, row: dict[str, Any]) -> dict[str, Any]:
    columns = ROW_TABLES[table].c
    return {
        name: loads(value) if isinstance(columns[name].type, JsonText) and value is not None else value
        for name, value in row.items()
        if name not in BOOKKEEPING
    }


def alike(one: Any, other: Any) -> bool:
    """As `equal`, and quick where Python thinks so, too."""
    return bool(one == other or equal(one, other))


@pytest.mark.parametrize("name", ["traces", "observations", "scores of v2", "sessions"])
def test_recorded_objects_are_the_same_in_both_databases_and_come_back(recorded_pair: Pair, name: str) -> None:
    stream = STREAMS[name]
    table = stream.shape.table
    both = [stored_in(engine, table) for engine in recorded_pair]

    for rows in both:
        assert len(rows) == len(recorded(stream.file))
        for item in recorded(stream.file):
            key = (item["projectId"], item["id"])
            row = rows[(key[0], item["traceId"] or "", key[1]) if table == "observations" else key]
            assert alike(kept(item, stream.shape), to_item(row, stream))
    first, second = both
    assert first.keys() == second.keys()
    for key, row in first.items():
        assert alike(parsed(table, row), parsed(table, second[key]))


@pytest.mark.parametrize("name", STREAMS)
@given(st.data())
@settings(calm, max_examples=10)
def test_hostile_objects_are_the_same_in_both_databases_and_come_back(
    shared_pair: Pair, name: str, data: st.DataObject
) -> None:
    stream = STREAMS[name]
    table = stream.shape.table
    items = {key_of(table, to_row(item, stream, "p")): item for item in data.draw(hostile_items(name, most=8))}
    rows = {key: to_row(item, stream, "p") for key, item in items.items()}
    found = []
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, table, rows.values(), instant(0))
            for key, row in stored(conn, table).items():
                assert equal(kept(items[key], stream.shape), to_item(row, stream))
                assert rows[key]["content_hash"] == row["content_hash"]
            assert upsert(conn, table, rows.values(), instant(1)) == (len(rows), 0, 0)
            found.append(all_contents(conn, table))

    assert found[0] == found[1]
    assert found[0].keys() == rows.keys()


@pytest.mark.parametrize("levels", [300, 900, 1_000])
def test_deep_nesting_goes_through_both_databases(shared_pair: Pair, levels: int) -> None:
    stream = STREAMS["traces"]
    for innermost in ('"x"', '"\\u0000"'):
        item = loads('{"id":"t","input":' + '{"a":[' * (levels // 2) + innermost + "]}" * (levels // 2) + "}")
        for engine in shared_pair:
            with scratch(engine) as conn:
                upsert(conn, "traces", [to_row(item, stream, "p")], instant(0))
                (row,) = stored(conn, "traces").values()
                assert dumps(item) == dumps({k: v for k, v in to_item(row, stream).items() if v is not None})


def test_numbers_that_postgres_spells_with_all_their_zeros_are_read_back(shared_pair: Pair) -> None:
    stream = STREAMS["traces"]
    item = loads('{"id":"t","input":[1e15999,1e-15999,1e5000,1e308,5e-324,1e16000,1e-16000,1.5e16383,-0.0]}')
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, "traces", [to_row(item, stream, "p")], instant(0))
            (row,) = stored(conn, "traces").values()
            assert equal(item, to_item(row, stream))


def test_ids_as_long_as_the_object_store_of_the_server_allows_are_stored(shared_pair: Pair) -> None:
    """Postgres indexes at most 2,704 bytes of a row's key."""
    stream = STREAMS["observations"]
    key = "".join(chr(0x4E00 + n * 7919 % 20_000) for n in range(300))
    item = {"id": key, "traceId": key[::-1]}
    for engine in shared_pair:
        with scratch(engine) as conn:
            upsert(conn, "observations", [to_row(item, stream, "p")], instant(0))
            (row,) = stored(conn, "observations").values()
            assert equal(item, to_item(row, stream))


def test_what_no_parser_reads_never_gets_as_far_as_a_row() -> None:
    with pytest.raises(JsonTextError):
        loads("[" * 2_000 + "]" * 2_000)
