"""Search for words in inputs and outputs: off unless somebody switches it on, and then right after every write.

On SQLite `traces_search` and `observations_search` are FTS5 tables, kept by triggers; each refers to rows by a number
of its own, because SQLite may renumber rows that have no integer key. On Postgres there is an index over
`search_words(input, output)`. Only values are searched, not the names of JSON keys. A migration that makes `traces` or
`observations` anew on SQLite has to switch the search off before and on after, for triggers go with their table.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection, Engine

from etl.load.engine import reading, schema_of, writing

_ROWS_PER_TRANSACTION = 2_000
# A tsvector holds at most 1 MB of words; of larger contents only the beginning is searched. A character takes up to
# four bytes, and two contents share the megabyte.
_SEARCHED_CHARACTERS = 60_000


class _Searched(NamedTuple):
    """A table whose contents are searched: column of the search table -> column of the table."""

    table: str
    keys: dict[str, str]


_TABLES = (
    _Searched("traces", {"project_id": "project_id", "trace_id": "id"}),
    _Searched("observations", {"project_id": "project_id", "trace_id": "trace_id", "observation_id": "id"}),
)


def search_is_on(engine: Engine) -> bool:
    """Whether the database has been prepared for searching."""
    with reading(engine) as conn:
        schema = schema_of(conn)
        if schema is None:
            query = "SELECT count(*) FROM sqlite_master WHERE name = 'traces_search'"
            return bool(conn.exec_driver_sql(query).scalar())
        return conn.exec_driver_sql(f"SELECT to_regprocedure('{_words_of(conn)}(jsonb, jsonb)')").scalar() is not None


def switch_search_on(engine: Engine) -> None:
    """Prepares the database; what is stored already is taken in step by step, and running it again goes on.

    On SQLite others may write meanwhile; on Postgres they wait until the index is made.

    Raises:
        DatabaseError: The database cannot be written.
    """
    if engine.dialect.name == "sqlite":
        for searched in _TABLES:
            with writing(engine) as conn:
                for statement in _sqlite_objects(searched):
                    conn.exec_driver_sql(statement)
            last: int | None = 0
            while last is not None:
                with writing(engine) as conn:
                    last = _take_in(conn, searched, last)
        return
    with writing(engine) as conn:
        if conn.exec_driver_sql(f"SELECT to_regprocedure('{_words_of(conn)}(jsonb, jsonb)')").scalar() is not None:
            return
        for statement in _postgres_objects(conn):
            conn.exec_driver_sql(statement)


def switch_search_off(engine: Engine) -> None:
    """Removes all that `switch_search_on` made.

    Raises:
        DatabaseError: The database cannot be written.
    """
    with writing(engine) as conn:
        if conn.dialect.name == "sqlite":
            for table, _ in _TABLES:
                for event in ("insert", "update", "delete"):
                    conn.exec_driver_sql(f"DROP TRIGGER IF EXISTS {table}_search_{event}")
                conn.exec_driver_sql(f"DROP TABLE IF EXISTS {table}_search")
                conn.exec_driver_sql(f"DROP VIEW IF EXISTS {table}_search_words")
                conn.exec_driver_sql(f"DROP TABLE IF EXISTS {table}_search_rows")
        else:
            conn.exec_driver_sql(f"DROP FUNCTION IF EXISTS {_words_of(conn)}(jsonb, jsonb) CASCADE")


def _sqlite_words(row: str) -> str:
    """All texts and numbers in the contents of a row; contents that are nested too deep for SQLite as they are."""
    parts = (
        f"CASE WHEN json_valid({row}.{column}) THEN (SELECT group_concat(atom, ' ') FROM json_tree({row}.{column})"
        f" WHERE type IN ('text', 'integer', 'real')) ELSE {row}.{column} END"
        for column in ("input", "output")
    )
    return " || ' ' || ".join(f"coalesce({part}, '')" for part in parts)


def _sqlite_objects(searched: _Searched) -> list[str]:
    table, keys = searched
    names = ", ".join(keys)
    search, rows = f"{table}_search", f"{table}_search_rows"
    new_values = ", ".join(f"NEW.{column}" for column in keys.values())

    def here(row: str) -> str:
        return " AND ".join(f"{name} = {row}.{column}" for name, column in keys.items())

    forget = (
        f"INSERT INTO {search} ({search}, rowid, words) SELECT 'delete', id, {_sqlite_words('OLD')} FROM {rows}"
        f" WHERE {here('OLD')}; DELETE FROM {rows} WHERE {here('OLD')};"
    )
    # A statement's own rule for conflicts would count for those of its triggers, so there must be none.
    learn = (
        f"INSERT INTO {rows} ({names}) SELECT {new_values} WHERE NEW.deleted_at IS NULL;"
        f" INSERT INTO {search} (rowid, words) SELECT id, {_sqlite_words('NEW')} FROM {rows}"
        f" WHERE NEW.deleted_at IS NULL AND {here('NEW')};"
    )
    changed = " OR ".join(f"OLD.{column} IS NOT NEW.{column}" for column in ("input", "output", "deleted_at"))
    columns = ", ".join(f"r.{name}" for name in keys)
    joined = " AND ".join(f"t.{column} = r.{name}" for name, column in keys.items())
    unindexed = ", ".join(f"{name} UNINDEXED" for name in keys)
    typed = ", ".join(f"{name} text NOT NULL" for name in keys)
    return [
        f"CREATE TABLE IF NOT EXISTS {rows} (id integer PRIMARY KEY, {typed}, UNIQUE ({names}))",
        f"CREATE VIEW IF NOT EXISTS {search}_words AS SELECT r.id, {columns}, {_sqlite_words('t')} AS words"
        f" FROM {rows} r JOIN {table} t ON {joined}",
        f"CREATE VIRTUAL TABLE IF NOT EXISTS {search} USING fts5({unindexed}, words, content='{search}_words',"
        " content_rowid='id')",
        f"CREATE TRIGGER IF NOT EXISTS {search}_insert AFTER INSERT ON {table} BEGIN {learn} END",
        f"CREATE TRIGGER IF NOT EXISTS {search}_update AFTER UPDATE OF input, output, deleted_at ON {table}"
        f" WHEN {changed} BEGIN {forget} {learn} END",
        f"CREATE TRIGGER IF NOT EXISTS {search}_delete AFTER DELETE ON {table} BEGIN {forget} END",
    ]


def _take_in(conn: Connection, searched: _Searched, after: int) -> int | None:
    """Takes in some rows that were stored before; returns the last one's row number, None after the last of all."""
    table, keys = searched
    some = f"SELECT rowid FROM {table} WHERE rowid > {after} ORDER BY rowid LIMIT {_ROWS_PER_TRANSACTION}"
    last: int | None = conn.exec_driver_sql(f"SELECT max(rowid) FROM ({some})").scalar()
    if last is None:
        return None
    names, columns = ", ".join(keys), ", ".join(f"t.{column}" for column in keys.values())
    same = " AND ".join(f"r.{name} = t.{column}" for name, column in keys.items())
    known = conn.exec_driver_sql(f"SELECT coalesce(max(id), 0) FROM {table}_search_rows").scalar_one()
    conn.exec_driver_sql(
        f"INSERT INTO {table}_search_rows ({names}) SELECT {columns} FROM {table} t WHERE t.rowid > {after}"
        f" AND t.rowid <= {last} AND t.deleted_at IS NULL AND NOT EXISTS"
        f" (SELECT 1 FROM {table}_search_rows r WHERE {same})"
    )
    conn.exec_driver_sql(
        f"INSERT INTO {table}_search (rowid, words) SELECT id, words FROM {table}_search_words WHERE id > {known}"
    )
    return last


def _words_of(conn: Connection) -> str:
    quote = conn.dialect.identifier_preparer.quote
    return f"{quote(schema_of(conn) or 'public')}.search_words"


def _postgres_objects(conn: Connection) -> list[str]:
    words = _words_of(conn)
    schema = words.rpartition(".")[0]
    kinds = """'["string", "numeric"]'"""
    vector = " || ".join(f"jsonb_to_tsvector('simple', coalesce({part}, 'null'), {kinds})" for part in ("$1", "$2"))
    start = " || ' ' || ".join(f"left(coalesce({part}::text, ''), {_SEARCHED_CHARACTERS})" for part in ("$1", "$2"))
    return [
        f"CREATE FUNCTION {words}(input jsonb, output jsonb) RETURNS tsvector LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE"
        # What a handler raises is caught by none of its own block. A row is worth more than being found.
        f" AS $$ BEGIN RETURN {vector}; EXCEPTION WHEN program_limit_exceeded THEN BEGIN"
        f" RETURN to_tsvector('simple', {start}); EXCEPTION WHEN program_limit_exceeded THEN"
        " RETURN ''::tsvector; END; END $$",
        f"COMMENT ON FUNCTION {words}(jsonb, jsonb) IS 'The words in contents, for searching them'",
        *(
            f"CREATE INDEX {table}_search ON {schema}.{table} USING gin ({words}(input, output))"
            " WHERE deleted_at IS NULL"
            for table, _ in _TABLES
        ),
    ]
