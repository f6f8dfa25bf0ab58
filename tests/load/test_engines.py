"""Databases that cannot be opened, read or written: one line that says what to do, and nothing half-written."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from database_looks import instant, physical_rows, stored_in, write
from recorded_rows import STREAMS, to_row
from sqlalchemy import Engine, event, insert, text
from sqlalchemy.engine import make_url

from etl.errors import DatabaseError
from etl.load.engine import open_engine, reading, schema_of, sqlite_path, writing
from etl.load.migrate import upgrade
from etl.load.tables import traces

SECRET = "pa55-word"


@contextmanager
def opened(url: str, schema: str = "public") -> Iterator[Engine]:
    engine = open_engine(url, schema)
    yield engine
    engine.dispose()


def refusal(engine: Engine, *, write_too: bool = True) -> str:
    """What reading and writing say; it must be the same single line."""
    said = set()
    for opening in (reading, writing) if write_too else (reading,):
        with pytest.raises(DatabaseError) as refused, opening(engine) as conn:
            conn.execute(text("SELECT 1"))
        said.add(str(refused.value))
    (line,) = said
    assert "\n" not in line
    assert SECRET not in line
    assert "sqlalche.me" not in line
    return line


def rows(number: int, size: int = 10) -> list[Any]:
    items = [{"id": f"{number}-{n}", "input": "x" * size} for n in range(20)]
    return [to_row(item, STREAMS["traces"], "p") for item in items]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}/no/such/folder.db") as engine:
        line = refusal(engine)

    assert f"{tmp_path}/no/such/folder.db" in line
    assert "does the folder exist" in line


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path}") as engine:
        assert "unable to open" in refusal(engine)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader, " * 500)
    with opened(f"sqlite:///{path}") as engine:
        line = refusal(engine)

    assert "not a database; choose another file with LANGFUSE_ETL_DATABASE_URL" in line
    assert path.read_text() == "Dear reader, " * 500
    assert [path] == list(tmp_path.iterdir())


def test_a_damaged_database_is_said_to_be_damaged(tmp_path: Path) -> None:
    path = tmp_path / "langfuse.db"
    with opened(f"sqlite:///{path}") as engine:
        upgrade(engine)
        write(engine, "traces", rows(1, 5_000), instant(0))
    damaged = bytearray(path.read_bytes())
    damaged[4096:] = b"\xff" * (len(damaged) - 4096)
    path.write_bytes(damaged)

    with opened(f"sqlite:///{path}") as engine, pytest.raises(DatabaseError) as refused:
        stored_in(engine, "traces")
    assert "malformed; the file is damaged" in str(refused.value)


def test_a_file_that_may_not_be_written_says_so_and_stays_readable(tmp_path: Path) -> None:
    path = tmp_path / "langfuse.db"
    with opened(f"sqlite:///{path}") as engine:
        upgrade(engine)
        write(engine, "traces", rows(1), instant(0))

    # The driver's own read-only mode: root may write to any file.
    with opened(f"sqlite:///file:{path}?mode=ro&uri=true") as engine:
        with pytest.raises(DatabaseError) as refused:
            write(engine, "traces", rows(2), instant(0))
        assert len(stored_in(engine, "traces")) == 20
    assert "readonly database; make the file and its folder writable" in str(refused.value)


def test_a_full_disk_loses_the_page_at_hand_and_nothing_else(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'langfuse.db'}") as engine:
        upgrade(engine)
        write(engine, "traces", rows(1), instant(0))
        engine.dispose()
        event.listen(engine, "connect", lambda conn, _: conn.execute("PRAGMA max_page_count = 80"))
        with pytest.raises(DatabaseError) as refused:
            write(engine, "traces", rows(2, 50_000), instant(0))
        line = str(refused.value)
        assert "database or disk is full; nothing of the page at hand was kept, free some space" in line
        assert "\n" not in line
        assert {key[1] for key in stored_in(engine, "traces")} == {f"1-{n}" for n in range(20)}
        write(engine, "traces", rows(3), instant(0))
        assert len(stored_in(engine, "traces")) == 40


_FILL = """
import resource, sys
sys.path[:0] = sys.argv[3:]
from etl.errors import DatabaseError
from etl.load.engine import open_engine
from database_looks import instant, write
from test_engines import rows
engine = open_engine(sys.argv[1], "public")
write(engine, "traces", rows(0), instant(0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for number in range(1, 1000):
    try:
        write(engine, "traces", rows(number, 20_000), instant(0))
    except DatabaseError as error:
        print(error)
        sys.exit(number)
"""


def test_a_file_that_may_not_grow_holds_whole_pages_only(tmp_path: Path) -> None:
    path = tmp_path / "langfuse.db"
    with opened(f"sqlite:///{path}") as engine:
        upgrade(engine)
    places = [entry for entry in sys.path if entry]
    done = subprocess.run(
        [sys.executable, "-c", _FILL, f"sqlite:///{path}", "3000000", *places],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.stderr == ""
    assert re.fullmatch(r"database \S+: (disk I/O error|database or disk is full); .+\n", done.stdout)
    with opened(f"sqlite:///{path}") as engine:
        kept = {key[1].split("-")[0] for key in stored_in(engine, "traces")}
        assert kept == {str(number) for number in range(done.returncode)}
        assert len(stored_in(engine, "traces")) == 20 * done.returncode
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://user:{SECRET}@127.0.0.1:1/db",
        f"postgresql+psycopg:///db?host=127.0.0.1&port=1&user=user&password={SECRET}",
        f"postgresql+psycopg://user:{SECRET}@/db?host=/no/such/socket",
    ],
)
def test_a_postgres_that_does_not_answer_is_named_without_the_password(url: str) -> None:
    with opened(url) as engine:
        line = refusal(engine)

    assert "is the server running, and are the URL, user and password right?" in line
    assert line.startswith("database postgresql+psycopg://")


def test_a_wrong_password_is_said_without_being_shown(postgres_url: str) -> None:
    with opened(postgres_url) as admin:
        with writing(admin) as conn:
            hba = Path(str(conn.execute(text("SHOW hba_file")).scalar_one()))
            conn.execute(text("CREATE ROLE locked_out LOGIN PASSWORD 'another'"))
            hba.write_text(f"local all locked_out scram-sha-256\n{hba.read_text()}")
            conn.execute(text("SELECT pg_reload_conf()"))
        url = make_url(postgres_url).set(username="locked_out", password=SECRET).render_as_string(hide_password=False)
        line = None
        while line is None:  # until the server has read its file again
            with opened(url) as engine:
                try:
                    with reading(engine):
                        pass
                except DatabaseError:
                    line = refusal(engine)
        with writing(admin) as conn:
            conn.execute(text("DROP ROLE locked_out"))

    assert 'password authentication failed for user "locked_out"' in line
    assert "are the URL, user and password right?" in line


def test_idle_connections_that_the_server_closed_are_replaced_unnoticed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.load.engine._PING_AFTER_S", 0)
    with opened(postgres_url) as engine, opened(postgres_url) as admin:
        with reading(engine) as one, reading(engine) as other:
            pids = [conn.execute(text("SELECT pg_backend_pid()")).scalar_one() for conn in (one, other)]
        with writing(admin) as conn:
            for pid in pids:
                conn.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)"))
        for opening in (reading, writing):
            with opening(engine) as conn:
                assert conn.execute(text("SELECT pg_backend_pid()")).scalar_one() not in pids


def test_a_connection_that_was_in_use_a_moment_ago_is_not_pinged(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinged: list[Any] = []
    with opened(postgres_url) as engine:
        monkeypatch.setattr(engine.dialect, "do_ping", pinged.append)
        for idle_s, pings in ((60, 0), (60, 0), (0, 1), (0, 2)):
            monkeypatch.setattr("etl.load.engine._PING_AFTER_S", idle_s)
            with reading(engine):
                pass
            assert len(pinged) == pings


def test_an_unknown_database_is_named(postgres_url: str) -> None:
    with opened(make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)) as engine:
        assert 'database "nowhere" does not exist' in refusal(engine)


def test_errors_never_quote_values(engine: Engine) -> None:
    row = rows(1)[0] | {"first_seen_at": instant(0), "changed_at": instant(0), "name": SECRET}
    broken = [insert(traces).values(**(row | {"content_hash": None}))]
    if engine.dialect.name == "postgresql":
        broken += [text(f"SELECT CAST('{SECRET}' AS integer)"), text(f"SELECT CAST('{SECRET}' AS jsonb)")]
        broken += [text(f"SELECT CAST('{SECRET}' AS timestamptz)")]
    for statement in broken:
        with pytest.raises(DatabaseError) as refused, writing(engine) as conn:
            conn.execute(statement)
        assert SECRET not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_a_role_that_may_not_create_tables_is_told_so(postgres_url: str) -> None:
    with opened(postgres_url) as admin:
        with writing(admin) as conn:
            conn.execute(text("CREATE ROLE guest LOGIN"))
        url = make_url(postgres_url).set(username="guest").render_as_string(hide_password=False)
        with opened(url, "not_for_guests") as engine, pytest.raises(DatabaseError) as refused:
            upgrade(engine)
        with writing(admin) as conn:
            conn.execute(text("DROP ROLE guest"))

    assert "permission denied" in str(refused.value)
    assert "the user needs the right to create and write tables" in str(refused.value)


def test_a_reader_sees_one_state_while_a_writer_goes_on(engine: Engine) -> None:
    write(engine, "traces", rows(1), instant(0))
    with reading(engine) as conn:
        assert conn.execute(traces.select()).all()
        write(engine, "traces", rows(2), instant(1))
        assert len(conn.execute(traces.select()).all()) == 20
    assert len(stored_in(engine, "traces")) == 40


def test_a_reader_cannot_write_to_postgres_by_mistake(engine: Engine) -> None:
    if engine.dialect.name == "postgresql":
        with pytest.raises(DatabaseError, match="read-only transaction"), reading(engine) as conn:
            conn.execute(traces.delete())
        with writing(engine) as conn:  # the same pooled connection may write again
            conn.execute(traces.delete())


def test_tables_with_row_level_security_take_rows(postgres_url: str) -> None:
    with opened(postgres_url, "policed") as admin:
        upgrade(admin)
        with writing(admin) as conn:
            for statement in (
                "CREATE ROLE policed LOGIN",
                "GRANT USAGE ON SCHEMA policed TO policed",
                "GRANT ALL ON ALL TABLES IN SCHEMA policed TO policed",
                "ALTER TABLE policed.traces ENABLE ROW LEVEL SECURITY",
                "CREATE POLICY own ON policed.traces TO policed USING (true) WITH CHECK (true)",
            ):
                conn.execute(text(statement))
        url = make_url(postgres_url).set(username="policed").render_as_string(hide_password=False)
        try:
            with opened(url, "policed") as engine:
                write(engine, "traces", rows(1), instant(0))
                write(engine, "traces", rows(1) + rows(2), instant(1))
                assert len(stored_in(engine, "traces")) == 40
        finally:
            with writing(admin) as conn:
                conn.execute(text("DROP OWNED BY policed"))
                conn.execute(text("DROP ROLE policed"))


def test_engines_know_their_schema_and_file(tmp_path: Path, postgres_url: str) -> None:
    with opened(f"sqlite:///{tmp_path / 'a.db'}", "ignored") as engine:
        assert (schema_of(engine), sqlite_path(engine)) == (None, tmp_path / "a.db")
        assert not (tmp_path / "a.db").exists(), "nothing is opened before it is used"
    with opened(postgres_url, "mine") as engine:
        assert (schema_of(engine), sqlite_path(engine)) == ("mine", None)


def test_the_measure_of_these_tests_sees_every_write(engine: Engine) -> None:
    write(engine, "traces", rows(1), instant(0))
    with writing(engine) as conn:
        before = physical_rows(conn, "traces")
        conn.execute(traces.update().values(name=traces.c.name))
        assert before != physical_rows(conn, "traces")
