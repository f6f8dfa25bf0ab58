"""Full-text search: the same finds on both databases, right after every kind of write, nothing left when off."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from itertools import islice, product
from typing import Any

import pytest
from database_looks import instant, write
from recorded_rows import STREAMS, recorded, to_row
from sqlalchemy import Engine, inspect, update

from etl.load.engine import reading, schema_of, writing
from etl.load.search import search_is_on, switch_search_off, switch_search_on
from etl.load.tables import ROW_TABLES
from etl.transform.fields import TRACE_DOCUMENT

TRACES = STREAMS["traces"]._replace(shape=TRACE_DOCUMENT)
OBSERVATIONS = STREAMS["observations"]


def find(engine: Engine, word: str, table: str = "traces") -> list[str]:
    """Ids of the rows with a word."""
    with reading(engine) as conn:
        schema = schema_of(conn)
        key = "trace_id" if table == "traces" else "observation_id"
        if schema is None:
            query, parameters = f"SELECT {key} FROM {table}_search WHERE {table}_search MATCH ?", (f'"{word}"',)
        else:
            query = (
                f"SELECT id FROM {schema}.{table} WHERE {schema}.search_words(input, output) @@"
                " phraseto_tsquery('simple', %s) AND deleted_at IS NULL"
            )
            parameters = (word,)
        return sorted(conn.exec_driver_sql(query, parameters).scalars())


def trace(id_: str, text: Any, **more: Any) -> dict[str, Any]:
    nothing = {field.api: None for field in TRACE_DOCUMENT.fields}
    return nothing | {"id": id_, "projectId": "p", "timestamp": "2026-11-01T00:00:00.000Z", "input": text} | more


def store(engine: Engine, *items: dict[str, Any], seconds: int = 0) -> None:
    for item in items:
        write(engine, "traces", [to_row(item, TRACES, "p")], instant(seconds))


def test_what_was_stored_before_and_what_comes_after_is_found(engine: Engine) -> None:
    store(engine, trace("before", {"q": "Where is\nmy Parcel?", "n": 4711}), trace("other", "nothing"))
    assert not search_is_on(engine)
    switch_search_on(engine)
    assert search_is_on(engine)
    store(engine, trace("after", None, output=["a parcel"]))

    assert find(engine, "parcel") == ["after", "before"]
    assert find(engine, "my parcel") == ["before"], "a line break in JSON is no letter"
    assert find(engine, "4711") == ["before"]
    assert find(engine, "q") == [], "names of keys are not searched"
    switch_search_on(engine)
    assert find(engine, "parcel") == ["after", "before"], "once more does no harm"


def test_edits_deletions_and_returns_are_followed(engine: Engine) -> None:
    switch_search_on(engine)
    store(engine, trace("a", "red", updatedAt="2026-11-01T00:00:00.000Z"))
    store(engine, trace("a", "green", updatedAt="2026-11-02T00:00:00.000Z"), seconds=1)
    assert (find(engine, "red"), find(engine, "green")) == ([], ["a"])

    table = ROW_TABLES["traces"]
    with writing(engine) as conn:
        conn.execute(update(table).values(deleted_at=instant(2)))
    assert find(engine, "green") == []
    store(engine, trace("a", "blue", updatedAt="2026-11-03T00:00:00.000Z"), seconds=3)
    assert (find(engine, "green"), find(engine, "blue")) == ([], ["a"])
    with writing(engine) as conn:
        conn.execute(update(table).values(user_id="somebody"))
    assert find(engine, "blue") == ["a"]
    with writing(engine) as conn:
        conn.execute(table.delete())
    assert find(engine, "blue") == []


@pytest.mark.parametrize("odd", ["[" * 1500 + "]" * 1500, '"' + "word%d " * 10 + '"', '""', "null", "17", "true"])
def test_no_content_stops_a_write(engine: Engine, odd: str) -> None:
    switch_search_on(engine)
    with writing(engine) as conn:
        row = to_row(trace("a", "text"), TRACES, "p") | {"input": odd, "output": odd, "metadata": None}
        conn.execute(ROW_TABLES["traces"].insert(), [row | {"first_seen_at": instant(0), "changed_at": instant(0)}])
        conn.execute(ROW_TABLES["traces"].update().values(input='"found"'))
    assert find(engine, "found") == ["a"]


def test_two_megabytes_of_different_words_are_stored_and_their_beginning_is_found(engine: Engine) -> None:
    switch_search_on(engine)
    store(engine, trace("big", " ".join(f"word{number}" for number in range(250_000))))

    assert find(engine, "word7") == ["big"]


def test_two_large_contents_of_an_alphabet_of_two_bytes_are_stored_and_their_beginning_is_found(engine: Engine) -> None:
    """Each word takes nine bytes in a Postgres vector, apart from what it costs to tell where it stands."""
    words = islice(map("".join, product("абвгдежзийклмнопрстуфхцчшщъыьэюя", repeat=4)), 120_000)
    asked, answered = list(islice(words, 60_000)), list(words)
    switch_search_on(engine)
    store(engine, trace("big", " ".join(asked), output=" ".join(answered)))

    assert len({*asked, *answered}) == 120_000
    assert [find(engine, word) for word in (asked[7], answered[7])] == [["big"], ["big"]]


def test_both_databases_find_the_same_in_the_recorded_data_in_any_order_of_switching(engine: Engine) -> None:
    rows = [to_row(item, TRACES) for item in recorded(TRACES.file)]
    parts = [to_row(item, OBSERVATIONS) for item in recorded(OBSERVATIONS.file)]
    write(engine, "traces", rows[:700], instant(0))
    switch_search_on(engine)
    write(engine, "traces", rows, instant(1))
    write(engine, "observations", parts, instant(1))
    expected = sorted(row["id"] for row in rows if "rechnungen" in f"{row['input']} {row['output']}".lower())

    assert len(expected) > 10
    assert find(engine, "rechnungen") == expected
    assert find(engine, "rechnungen", "observations")


def test_switched_off_nothing_is_left(engine: Engine) -> None:
    store(engine, trace("a", "red"))
    with reading(engine) as conn:
        before = set(inspect(conn).get_table_names(schema_of(conn))), set(inspect(conn).get_view_names(schema_of(conn)))
    for _ in range(2):
        switch_search_on(engine)
        switch_search_off(engine)
    switch_search_off(engine)
    store(engine, trace("b", "red"))

    assert not search_is_on(engine)
    with reading(engine) as conn:
        inspector, schema = inspect(conn), schema_of(conn)
        assert before == (set(inspector.get_table_names(schema)), set(inspector.get_view_names(schema)))
        if schema is None:
            left = "SELECT name FROM sqlite_master WHERE type = 'trigger' AND name NOT LIKE 'vx_%%'"
        else:
            left = f"SELECT indexname FROM pg_indexes WHERE schemaname = '{schema}' AND indexname LIKE '%%search%%'"
        assert conn.exec_driver_sql(left).all() == []


def test_sqlite_finds_the_right_rows_after_a_vacuum_that_renumbers_them(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return
    switch_search_on(engine)
    store(engine, *(trace(f"t{n}", f"word{n}") for n in range(20)))
    with writing(engine) as conn:
        conn.execute(ROW_TABLES["traces"].delete().where(ROW_TABLES["traces"].c.id.in_(["t0", "t1", "t5"])))
    engine.dispose()
    with closing(sqlite3.connect(str(engine.url.database))) as conn:
        conn.execute("VACUUM")
    store(engine, trace("t9", "new", updatedAt="2026-11-03T00:00:00.000Z"), seconds=3)

    assert find(engine, "word12") == ["t12"]
    assert (find(engine, "word9"), find(engine, "new")) == ([], ["t9"])
    kept = [n for n in range(20) if n not in (0, 1, 5, 9)]
    assert [find(engine, f"word{n}") for n in kept] == [[f"t{n}"] for n in kept]
