"""What people and machines get wrong: one clear line, the right exit code, and nothing half-written."""

from __future__ import annotations

import hashlib
import shutil
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from command_result import Result
from commands import Cli, keys

from etl.demo import Faults, MockLangfuse
from etl.load.engine import open_engine
from etl.load.migrate import upgrade
from etl.service.lease import write_lease


def assert_one_line(result: Result, code: int, *said: str) -> None:
    """Exit code, one line on stderr with these words, nothing on stdout."""
    assert result.code == code, result.err
    assert result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ")
    for words in said:
        assert words in line


def assert_one_document(result: Result, code: int, *said: str) -> None:
    """Exit code, one JSON document on stdout that says the same."""
    assert result.code == code, result.err
    assert result.document["status"] == "failed"
    text = result.out
    for words in said:
        assert words in text


def fingerprint(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.is_file()}


# Langfuse


def test_a_wrong_key_names_its_variables_and_where_to_make_one(cli: Cli, server: MockLangfuse) -> None:
    cli.environ |= keys(server.base_url, secret="sk-lf-wrong-1234")
    said = ("LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY", "Settings > API Keys")
    assert_one_line(cli("sync"), 4, *said)
    assert_one_document(cli("sync", "--json"), 4, *said)
    result = cli("check", "--json")
    assert result.code == 4
    (failed,) = [one for one in result.document["checks"] if not one["ok"]]
    assert failed["name"] == "default: keys"
    assert "does not know the key pair" in failed["message"]
    assert "Settings > API Keys" in failed["fix"]
    assert "API Keys" not in failed["message"]
    assert "wrong-1234" not in result.out


TIME = "2026-11-20T00:00:00Z"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("check", 4), ("sync", 4), ("verify", 4), (f"backfill --from {TIME}", 4), (f"backfill --from {TIME} --plan", 4),
        ("sync --project other", 3), ("sync --stream other", 2), ("verify --from yesterday", 2), ("export", 2),
        ("export none", 1), ("export none --refresh", 4), ("export --verify none", 1), ("report --project other", 3),
    ],
)  # fmt: skip
def test_with_json_every_failure_begins_alike(synced: Cli, server: MockLangfuse, words: str, code: int) -> None:
    synced.environ |= keys(server.base_url, secret="sk-lf-wrong-1234")
    result = synced(*words.split(), "--json")

    assert result.code == code, result.err
    assert list(result.document)[:2] == ["status", "error"]
    assert result.document["status"] == "failed"
    assert result.document["error"].strip()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_a_server_that_is_not_there_is_said(bare_cli: Cli) -> None:
    bare_cli.environ |= keys(f"http://127.0.0.1:{closed_port()}")
    assert_one_line(bare_cli("sync"), 1, "refuses connections", "LANGFUSE_BASE_URL")
    assert_one_document(bare_cli("sync", "--json"), 1, "refuses connections")


def test_a_host_that_nobody_knows_is_said(bare_cli: Cli) -> None:
    bare_cli.environ |= keys("https://langfuse.invalid")
    assert_one_line(bare_cli("sync"), 1, "langfuse.invalid", "LANGFUSE_BASE_URL")


def test_an_address_that_is_not_langfuse_is_said(cli: Cli, server: MockLangfuse) -> None:
    server.faults.add("html", times=None)
    assert_one_line(cli("sync"), 1, "LANGFUSE_BASE_URL")
    result = cli("check", "--json")
    assert result.code == 1
    (failed,) = [one for one in result.document["checks"] if not one["ok"]]
    assert failed["name"] == "default: server"
    assert "LANGFUSE_BASE_URL" in failed["fix"]


def test_a_path_that_is_not_langfuse_is_said(cli: Cli, server: MockLangfuse) -> None:
    cli.environ["LANGFUSE_BASE_URL"] = f"{server.base_url}/somewhere/else"
    assert_one_line(cli("sync"), 1, "LANGFUSE_BASE_URL")
    result = cli("check", "--json")
    assert result.code == 1
    assert [one["name"] for one in result.document["checks"] if not one["ok"]] == ["default: server"]
    assert not any(one["name"].startswith("default") for one in result.document["checks"] if one["ok"])


def test_a_refreshed_session_that_nobody_has_is_said_without_advice_to_refresh(cli: Cli) -> None:
    result = cli("export", "nosuch", "--refresh")
    assert (result.code, result.out) == (1, "")
    *_, error = result.err.splitlines()
    assert error == "error: no session 'nosuch' is stored; Langfuse has none of that name either"


def test_a_refresh_that_fails_in_the_middle_writes_nothing(bare_cli: Cli) -> None:
    faults = Faults()
    faults.add("status", path="/observations", status=400, times=None, after=2)
    with MockLangfuse(faults=faults) as server:
        bare_cli.environ |= keys(server.base_url)
        assert_one_line(bare_cli("export", "test_cases_alpha_20250806185514", "--refresh"), 1, "400")
    connection = sqlite3.connect(bare_cli.database)
    tables = ("projects", "traces", "observations", "scores", "sessions", "sync_windows", "sync_state")
    counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    connection.close()
    assert counts == dict.fromkeys(tables, 0)
    assert not (bare_cli.folder / "result").exists()


@pytest.mark.parametrize(
    "words",
    [["export", "\udcff"], ["export", "--trace", "a\udc80"], ["export", "--name-by", "\ud800", "s"],
     ["sync", "--project", "\udcff"], ["export", "s", "--json", "--where", "name=\udcff"]],
    ids=ascii,
)  # fmt: skip
def test_an_argument_that_is_no_utf_8_is_a_usage_error(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert result.code == 2
    assert result.out == "" if "--json" not in words else "is not text in UTF-8" in result.document["error"]
    assert "is not text in UTF-8" in result.err
    assert result.err.count("\n") == 1
    assert not cli.database.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["export", "s", "--where", "=x"], "PATH=VALUE"),
        (["export", "s", "--where", "name"], "PATH=VALUE"),
        (["export", "s", "--indent", "-1"], "--indent"),
        (["export", "s", "--detail", "rows"], "full, row"),
        (["export", "s", "--format", "csv"], "json, jsonl"),
        (["export", "s", "--from", "yesterday"], "--from"),
        (["export", "s", "--from-file", "none.txt"], "none.txt"),
        (["export", "--from-file", "odd.txt"], "odd.txt"),
        (["export", "--from-file", "nul.txt"], "nul.txt"),
        (["export", "--all", "--refresh"], "--refresh needs the ids"),
        (["export", "s", "--stdout", "--json"], "--stdout and --json"),
        (["export", "s", "--verify", "."], "--verify"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_odd_arguments_of_export_are_usage_errors(cli: Cli, words: list[str], said: str) -> None:
    (cli.folder / "odd.txt").write_bytes(b"s1\n\xff\n")
    (cli.folder / "nul.txt").write_bytes(b"s1\n\x00\n")
    assert_failure = assert_one_document if "--json" in words else assert_one_line
    assert_failure(cli(*words), 2, said)
    assert not cli.database.exists()


@pytest.mark.parametrize(
    "words",
    [["export", ""], ["export", "x" * 100_000], ["export", "s", "--trace", ""], ["export", "\u202e"],
     ["export", "s\n"], ["export", "--project", "", "--all"], ["export", "s", "--where", "metadata....=x"],
     ["export", "s", "--name-by", ""], ["export", "%s'; DROP TABLE traces; --"]],
    ids=lambda words: ascii(" ".join(words))[:40],
)  # fmt: skip
def test_odd_names_are_one_clear_line(cli: Cli, words: list[str]) -> None:
    cli("db", "upgrade")
    result = cli(*words)
    assert result.code in (1, 2, 3)
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1


# Settings


def test_nothing_configured_says_how_to_and_mentions_the_demo(bare_cli: Cli) -> None:
    for command in ("sync", "check"):
        result = bare_cli(command)
        assert result.code == 3
        assert "LANGFUSE_BASE_URL, LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" in result.err + result.out
        assert "langfuse-etl demo" in result.err + result.out
    assert fingerprint(bare_cli.folder) == {}


def test_a_malformed_settings_file_is_said_with_its_line(cli: Cli) -> None:
    (cli.folder / "config.yaml").write_text("sync:\n  every: 5m\n every: 6m\n")
    assert_one_line(cli("sync"), 3, "config.yaml, line 3")
    assert_one_document(cli("sync", "--json"), 3, "config.yaml")
    assert not cli.database.exists()


def test_an_unknown_setting_is_said_with_the_one_that_is_meant(cli: Cli) -> None:
    (cli.folder / "config.yaml").write_text("sync: {evry: 5m}\n")
    assert_one_line(cli("sync"), 3, "sync.evry", "sync.every")
    assert not cli.database.exists()


def test_all_mistakes_are_said_at_once_one_in_a_line(cli: Cli) -> None:
    (cli.folder / "config.yaml").write_text("sync: {every: 5}\nhttp: {concurrency: 0}\nnonsense: 1\n")
    result = cli("sync")
    assert (result.code, result.out) == (3, "")
    lines = result.err.splitlines()
    assert len(lines) == 3
    assert all(line.startswith("error: ") for line in lines)


def test_a_settings_file_that_is_not_there_is_said(cli: Cli) -> None:
    assert_one_line(cli("--config", "missing.yaml", "sync"), 3, "missing.yaml")


# The database


def broken(cli: Cli, statement: str) -> None:
    connection = sqlite3.connect(cli.database)
    connection.executescript(statement)
    connection.close()


COMMANDS = [["sync"], ["status"], ["export", "s"], ["db", "upgrade"], ["db", "current"]]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_database_from_a_newer_version_is_left_alone(cli: Cli, words: list[str]) -> None:
    cli("db", "upgrade")
    broken(cli, "UPDATE langfuse_etl_version SET version_num = '9999'")
    before = fingerprint(cli.folder)
    assert_one_line(cli(*words), 3, "9999", "newer version")
    assert fingerprint(cli.folder) == before


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_database_of_another_application_is_left_alone(cli: Cli, words: list[str]) -> None:
    broken(cli, "CREATE TABLE traces (id TEXT); CREATE TABLE users (id TEXT);")
    before = fingerprint(cli.folder)
    assert_one_line(cli(*words), 3, "traces", "LANGFUSE_ETL_DATABASE_URL")
    assert fingerprint(cli.folder) == before


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_file_that_is_no_database_is_left_alone(cli: Cli, words: list[str]) -> None:
    cli.database.write_text("These are my notes. They are not a database, whatever their name says.\n" * 50)
    before = fingerprint(cli.folder)
    assert_one_line(cli(*words), 1, "not a database")
    assert fingerprint(cli.folder) == before


def test_a_folder_that_does_not_exist_is_said(cli: Cli) -> None:
    cli.environ["LANGFUSE_ETL_DATABASE_URL"] = "sqlite:///no/such/folder/langfuse.db"
    assert_one_line(cli("sync"), 1, "folder")


def test_a_postgres_that_is_not_there_is_said_without_its_password(cli: Cli) -> None:
    cli.environ["LANGFUSE_ETL_DATABASE_URL"] = f"postgresql://etl:hunter22@127.0.0.1:{closed_port()}/db"
    result = cli("sync")
    assert_one_line(result, 1, "is the server running")
    assert "hunter22" not in result.err


# Root may write everywhere; without these two capabilities it is as bound by the modes of files as anybody.
_OBEY_MODES = """
import ctypes
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability)  # PR_CAPBSET_DROP; does nothing for others than root
"""


@pytest.fixture
def read_only(cli: Cli) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.chmod(0o444 if path.is_file() else 0o555)

    return make


def test_a_read_only_file_is_said_and_stays_as_it_was(cli: Cli, read_only: Callable[[Path], None]) -> None:
    cli("sync", "--stream", "sessions")
    read_only(cli.database)
    before = cli.database.read_bytes()
    assert_one_line(cli.process("sync", before=_OBEY_MODES), 1, "read", "LANGFUSE_ETL_DATABASE_URL")
    assert cli.database.read_bytes() == before
    assert cli.process("status", "--json", before=_OBEY_MODES).document["projects"][0]["id"] == "proj-shop"


def test_a_read_only_folder_is_said(cli: Cli, read_only: Callable[[Path], None]) -> None:
    folder = cli.folder / "closed"
    folder.mkdir()
    cli.environ["LANGFUSE_ETL_DATABASE_URL"] = f"sqlite:///{folder / 'langfuse.db'}"
    read_only(folder)
    assert_one_line(cli.process("sync", before=_OBEY_MODES), 1, "may you write there")
    assert list(folder.iterdir()) == []
    folder.chmod(0o755)


def test_a_full_disk_is_said_and_what_was_stored_is_whole(cli: Cli) -> None:
    cli("sync", "--stream", "sessions")
    size = cli.database.stat().st_size
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size + 60_000},) * 2)"
    result = cli.process("sync", before=limit)
    assert (result.code, result.out) == (1, "")
    *before, error = result.err.splitlines()
    assert error.startswith("error: ")
    assert "is the disk full" in error
    # To close the run and to give back the lease may take a page more than there is; the next process does both.
    warnings = ("run 2 could not be closed", "the write lease could not be given back")
    assert all(any(warning in line for warning in warnings) for line in before)
    connection = sqlite3.connect(cli.database)
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    for table, stored in connection.execute("SELECT stream, sum(stored) FROM sync_windows GROUP BY 1").fetchall():
        assert stored <= connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    connection.close()
    report = cli("sync", "--json").document
    assert report["status"] == "ok"


def test_a_full_disk_leaves_no_half_made_database(cli: Cli) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)"
    assert_one_line(cli.process("sync", before=limit), 1, "is the disk full")
    assert cli("db", "current", "--json").document["revision"] is None
    assert cli("sync", "--json").document["status"] == "ok"


@pytest.mark.parametrize("words", [["sync"], ["export", "s", "--refresh"]], ids=" ".join)
def test_a_database_that_another_process_writes_to_is_left_to_it(cli: Cli, words: list[str]) -> None:
    engine = open_engine(f"sqlite:///{cli.database}", "public")
    upgrade(engine)
    with write_lease(engine) as owner:
        assert_one_line(cli(*words), 1, f"process {owner.pid} on {owner.host}", "since")
        assert_one_document(cli(*words, "--json"), 1, f"process {owner.pid}")
        assert cli("status", "--json").code == 0
    engine.dispose()
    assert cli("sync").code == 0


def test_a_database_that_is_deleted_is_made_again(cli: Cli) -> None:
    cli("sync", "--stream", "sessions")
    shutil.rmtree(cli.folder / "result", ignore_errors=True)
    for path in cli.folder.glob("langfuse.db*"):
        path.unlink()
    assert cli("sync", "--json").document["status"] == "ok"


# A stdout that takes nothing

FULL = "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
CLOSED = "os.close(1)"


@pytest.mark.parametrize(
    ("before", "said"),
    [(FULL, "stdout cannot be written (No space left on device)"), (CLOSED, "nothing can be printed")],
    ids=["full", "closed"],
)
@pytest.mark.parametrize("words", [("sync",), ("sync", "--json"), ("status",), ("status", "--json")], ids=" ".join)
def test_a_stdout_that_takes_nothing_is_said(
    cli: Cli, server: MockLangfuse, words: tuple[str, ...], before: str, said: str
) -> None:
    cli.environ |= keys(server.base_url)
    result = cli.process(*words, before=before)
    assert result.code == 1
    assert said in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert "bug" not in result.err


def test_a_failure_is_said_where_stdout_takes_nothing(cli: Cli, server: MockLangfuse) -> None:
    cli.environ |= keys(server.base_url)
    for before in (FULL, CLOSED):
        result = cli.process("sync", "--project", "nosuch", "--json", before=before)
        assert result.code == 3
        (line,) = result.err.splitlines()
        assert "nosuch" in line
