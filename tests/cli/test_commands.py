"""Every command: its help, its JSON, its exit code."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
import requests
import typer
from commands import Cli, data, keys

from etl import __version__
from etl.cli.app import app
from etl.cli.views import show_sync
from etl.demo import SECRET_KEY, MockLangfuse
from etl.pipeline.report import RunReport

STREAMS = ["traces", "observations", "scores", "sessions"]
REPORT = {"status", "rows_read", "rows_written", "requests", "windows", "failed_windows", "seconds", "streams"}
STREAM_REPORT = {"rows_read", "rows_written", "windows", "failed_windows", "watermark"}


def leaves(command: click.Command, *path: str) -> list[tuple[str, ...]]:
    """The words of every command."""
    children = getattr(command, "commands", None)
    if not children:
        return [path]
    found = [leaf for name, child in children.items() for leaf in leaves(child, *path, name)]
    return [path, *found] if getattr(command, "invoke_without_command", False) else found


@pytest.mark.parametrize("words", leaves(typer.main.get_command(app)), ids=" ".join)
def test_the_help_of_every_command_has_a_runnable_example(bare_cli: Cli, words: tuple[str, ...]) -> None:
    result = bare_cli(*words, "--help")
    assert result.code == 0
    assert f"Example: langfuse-etl {' '.join(words)}" in " ".join(result.out.split())


def test_a_help_text_does_not_wait_for_the_libraries_of_a_command() -> None:
    code = """
import sys
from etl.cli import main
sys.argv = ["langfuse-etl", "sync", "--help"]
try:
    main()
finally:
    print("loaded:", *{"sqlalchemy", "alembic", "requests", "etl.demo"} & set(sys.modules))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "loaded:"


def test_every_command_of_the_design_is_there(bare_cli: Cli) -> None:
    names = {words[0] for words in leaves(typer.main.get_command(app))}
    assert {"check", "sync", "export", "status", "db", "demo"} <= names
    assert bare_cli("--help").code == 0


@pytest.mark.parametrize("words", [(), ("db",), ("export",), ("demo", "serve")], ids=" ".join)
def test_h_is_short_for_help(bare_cli: Cli, words: tuple[str, ...]) -> None:
    result = bare_cli(*words, "-h")
    assert (result.code, result.out) == (0, bare_cli(*words, "--help").out)


@pytest.mark.parametrize("words", [("demo",), ("demo", "serve")], ids=" ".join)
def test_the_page_about_the_demo_has_every_option(bare_cli: Cli, words: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text("utf-8")
    options = set(re.findall(r"--[a-z-]+", bare_cli(*words, "--help").out)) - {"--help"}
    assert len(options) >= 2
    assert {option for option in options if f"| `{option}` |" not in page} == set()


@pytest.mark.parametrize("words", [(), ("db",)], ids=["nothing", "a group"])
def test_a_group_alone_shows_its_help_and_not_as_an_error(bare_cli: Cli, words: tuple[str, ...]) -> None:
    result = bare_cli(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"Usage: {' '.join(['langfuse-etl', *words])} ")
    assert "error:" not in result.err


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("no-such-command",), "langfuse-etl"),
        (("backfill",), "langfuse-etl backfill"),
        (("export",), "langfuse-etl export"),
        (("db", "search", "maybe"), "langfuse-etl db search"),
    ],
)
def test_a_wrong_command_line_names_the_help_of_its_command(cli: Cli, words: tuple[str, ...], command: str) -> None:
    assert cli(*words).err.endswith(f"(see `{command} --help`)\n")


def test_ctrl_c_before_everything_is_loaded_leaves_no_traceback(tmp_path: Path) -> None:
    package = tmp_path / "typer"
    package.mkdir()
    (package / "__init__.py").write_text("raise KeyboardInterrupt\n", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from etl.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "error: interrupted\n")


def test_it_tells_its_version(bare_cli: Cli) -> None:
    assert bare_cli("--version").out == f"langfuse-etl {__version__}\n"


@pytest.mark.parametrize(
    "words",
    [["--no-such-option"], ["no-such-command"], ["sync", "--stream", "nonsense"], ["export"], ["export", "--refresh"]],
)
def test_a_wrong_command_line_is_said_with_exit_2(cli: Cli, words: list[str]) -> None:
    result = cli(*words)
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    assert not cli.database.exists()


# check


def test_check_finds_everything_in_place_and_changes_nothing(cli: Cli) -> None:
    result = cli("check", "--json")
    assert result.code == 0
    assert set(result.document) == {"ok", "checks"}
    assert result.document["ok"] is True
    assert {frozenset(one) for one in result.document["checks"]} == {frozenset({"name", "ok", "message", "fix"})}
    assert [one["name"] for one in result.document["checks"]] == [
        "configuration", "database", "default: server", "default: keys", "default: api", "default: clock",
    ]  # fmt: skip
    assert not cli.database.exists()


def test_check_is_a_table_for_people(cli: Cli) -> None:
    result = cli("check")
    assert result.code == 0
    assert "default: keys" in result.out
    assert result.err == ""


# sync and status


def test_sync_copies_everything_and_says_how_much(cli: Cli) -> None:
    result = cli("sync", "--json")
    assert (result.code, result.err) == (0, "")
    report = result.document
    assert report.keys() >= REPORT
    assert report["status"] == "ok"
    assert set(report["streams"]) == set(STREAMS)
    assert {frozenset(one) for one in report["streams"].values()} == {frozenset(STREAM_REPORT)}
    counts = {stream: report["streams"][stream]["rows_written"] for stream in STREAMS}
    assert counts == counts_in_data() == counts_in(cli.database)
    again = cli("sync", "--json").document
    assert (again["status"], again["rows_written"]) == ("ok", 0)


def counts_in_data() -> dict[str, int]:
    return {stream: len(getattr(data(), stream)()) for stream in STREAMS}


def counts_in(database: Path) -> dict[str, int]:
    connection = sqlite3.connect(database)
    counts = {s: connection.execute(f"SELECT count(*) FROM {s}").fetchone()[0] for s in STREAMS}
    connection.close()
    return counts


def test_sync_is_a_table_for_people_and_one_line_on_stderr(cli: Cli) -> None:
    result = cli("sync")
    assert result.code == 0
    assert "traces" in result.out
    assert result.err.startswith("default: ok, ")
    assert len(result.err.splitlines()) == 1


def test_sync_of_one_stream_and_one_project_reads_only_that(cli: Cli) -> None:
    report = cli("sync", "--project", "default", "--stream", "sessions", "--json").document
    assert set(report["streams"]) == {"sessions"}
    result = cli("sync", "--project", "other", "--json")
    assert (result.code, result.document["status"]) == (3, "failed")
    assert "other" in result.err


def test_status_has_nulls_before_the_first_run_and_numbers_after_it(cli: Cli) -> None:
    before = cli("status", "--json")
    assert before.code == 0
    assert set(before.document) == {"projects", "database"}
    (project,) = before.document["projects"]
    assert project.keys() >= {"name", "id", "api", "streams"}
    assert (project["name"], project["id"], project["api"]) == ("default", None, None)
    assert [one["stream"] for one in project["streams"]] == STREAMS
    values = [one[name] for one in project["streams"] for name in ("watermark", "lag_seconds", "gaps", "last_run")]
    assert set(values) == {None}
    assert (project["next_run"], project["trouble"]) == (None, None)
    assert before.document["database"]["service"] == {"running": False, "host": None, "pid": None, "since": None}
    assert not cli.database.exists()

    cli("sync")
    (project,) = cli("status", "--json").document["projects"]
    assert (project["id"], project["api"]) == ("proj-shop", "traces")
    assert {one["stream"]: one["rows"] for one in project["streams"]} == counts_in_data()
    for one in project["streams"]:
        assert 100 < one["lag_seconds"] < 400
        assert one["gaps"] == 0
        assert one["watermark"].endswith("Z")
        assert one["last_run"]["status"] == "ok"


def test_there_is_no_lag_before_a_first_row_or_a_watermark(cli: Cli) -> None:
    cli("sync", "--stream", "traces")
    connection = sqlite3.connect(cli.database)
    connection.executescript("DELETE FROM traces; UPDATE sync_state SET watermark = NULL")
    connection.close()
    (project,) = cli("status", "--json").document["projects"]
    (traces,) = [one for one in project["streams"] if one["stream"] == "traces"]
    assert (traces["rows"], traces["watermark"], traces["lag_seconds"]) == (0, None, None)


def test_status_is_a_table_for_people(cli: Cli) -> None:
    assert "never read" in cli("status").out
    cli("sync")
    assert "traces" in cli("status").out


def test_settings_come_from_the_file_too(cli: Cli, server: MockLangfuse) -> None:
    del cli.environ["LANGFUSE_BASE_URL"]
    settings = cli.folder / "settings.yaml"
    settings.write_text(
        f"projects:\n  - name: shop\n    base_url: {server.base_url}\n    streams: [sessions]\n"
        "database: {url: 'sqlite:///elsewhere.db'}\n"
    )
    report = cli("--config", str(settings), "sync", "--json").document
    assert (report["status"], list(report["streams"])) == ("ok", ["sessions"])
    assert report["projects"][0]["name"] == "shop"
    assert (cli.folder / "elsewhere.db").exists()


# db


def test_the_revision_is_none_then_the_newest(bare_cli: Cli) -> None:
    before = bare_cli("db", "current", "--json").document
    assert before["revision"] is None
    assert not bare_cli.database.exists()
    assert bare_cli("db", "current").out.startswith("none ")
    upgraded = bare_cli("db", "upgrade")
    assert (upgraded.code, upgraded.out) == (0, "")
    after = bare_cli("db", "current", "--json").document
    assert after["revision"] == after["head"] == before["head"]
    assert bare_cli("db", "upgrade").code == 0


def test_the_database_may_be_postgres(bare_cli: Cli, server: MockLangfuse, postgres_url: str) -> None:
    bare_cli.environ |= keys(server.base_url) | {
        "LANGFUSE_ETL_DATABASE_URL": postgres_url, "LANGFUSE_ETL_DATABASE__SCHEMA": "cli",
    }  # fmt: skip
    assert bare_cli("db", "current", "--json").document["revision"] is None
    report = bare_cli("sync", "--json").document
    assert report["status"] == "ok"
    rows = {one["stream"]: one["rows"] for one in bare_cli("status", "--json").document["projects"][0]["streams"]}
    assert rows == counts_in_data()


def test_a_plan_of_a_backfill_makes_and_changes_no_database(cli: Cli) -> None:
    words = ("backfill", "--from", "2020-01-01T00:00:00Z", "--plan", "--json")
    before = cli(*words).document
    assert before["windows"] > 0
    assert not cli.database.exists()
    cli("sync")
    files = {path.name: path.read_bytes() for path in cli.folder.glob("*.db")}
    assert cli(*words).document["rows"] == before["rows"] > 100
    assert {path.name: path.read_bytes() for path in cli.folder.glob("*.db")} == files


def test_a_plan_that_could_not_be_made_does_not_say_that_it_costs_nothing(cli: Cli, server: MockLangfuse) -> None:
    cli.environ |= keys(server.base_url, secret="sk-lf-wrong-1234")
    result = cli("backfill", "--from", "2020-01-01T00:00:00Z", "--plan", "--json")
    assert result.code == 4
    assert [result.document[name] for name in ("windows", "rows", "requests", "seconds")] == [None] * 4
    assert "LANGFUSE_SECRET_KEY" in result.document["error"]


def test_a_verify_of_nothing_says_so(cli: Cli) -> None:
    cli("db", "upgrade")
    result = cli("verify")
    assert result.code == 0
    assert "nothing was compared" in result.err
    assert "no differences" not in result.err


def test_a_plan_for_a_database_of_another_revision_is_refused(cli: Cli) -> None:
    cli("db", "upgrade")
    with closing(sqlite3.connect(cli.database)) as conn, conn:
        conn.execute("UPDATE langfuse_etl_version SET version_num = '0001'")
    result = cli("backfill", "--from", "2020-01-01T00:00:00Z", "--plan")
    assert result.code == 3
    assert "langfuse-etl db upgrade" in result.err


# export


def a_session() -> tuple[str, set[str]]:
    """A session and the ids of its traces."""
    sessions = [row["sessionId"] for row in data().traces() if row["sessionId"]]
    name = max(set(sessions), key=sessions.count)
    return name, {row["id"] for row in data().traces() if row["sessionId"] == name}


def written(folder: Path) -> dict[str, Any]:
    return {p.name: json.loads(p.read_text()) for p in folder.rglob("*.json") if p.name != "manifest.json"}


def test_export_writes_a_file_for_each_trace_of_a_session(synced: Cli) -> None:
    session, traces = a_session()
    result = synced("export", session, "--json")
    assert result.code == 0
    (one,) = result.document["sessions"]
    assert one.keys() == {"project_id", "session_id", "directory", "traces", "written", "unchanged", "removed"}
    assert (one["session_id"], one["traces"], one["written"]) == (session, len(traces), len(traces))
    assert {item["id"] for item in written(Path(one["directory"])).values()} == traces
    again = synced("export", session, "--json").document["sessions"][0]
    assert (again["written"], again["unchanged"]) == (0, len(traces))


def test_export_with_refresh_works_on_an_empty_database(cli: Cli) -> None:
    session, traces = a_session()
    result = cli("export", session, "--refresh", "--json")
    assert result.code == 0
    (one,) = result.document["sessions"]
    assert {item["id"] for item in written(Path(one["directory"])).values()} == traces
    (project,) = cli("status", "--json").document["projects"]
    assert {stream["watermark"] for stream in project["streams"]} == {None}


def test_an_unknown_session_is_exit_1_with_near_names_and_the_way_to_get_it(synced: Cli) -> None:
    session, _ = a_session()
    result = synced("export", f"{session[:-1]}x", "--json")
    assert result.code == 1
    assert result.document["status"] == "failed"
    assert f"did you mean '{session[:8]}" in result.err
    assert "--refresh" in result.err
    assert not (synced.folder / "result").exists()


def test_export_before_the_first_sync_says_what_to_do(cli: Cli) -> None:
    result = cli("export", "anything")
    assert result.code in (1, 3)
    assert "langfuse-etl sync" in result.err
    assert not cli.database.exists()


# demo


def test_the_demo_goes_all_the_way_without_an_account(bare_cli: Cli) -> None:
    result = bare_cli("demo")
    assert result.code == 0, result.err
    files = list((bare_cli.folder / "langfuse-demo").rglob("*.json"))
    assert len(files) == 138
    assert (bare_cli.folder / "langfuse-demo" / "langfuse.db").exists()
    for title in ("daily_usage", "session_summary", "sync_coverage"):
        assert title in result.out
    assert "LANGFUSE_SECRET_KEY" in result.err
    assert "langfuse-etl check && langfuse-etl sync" in result.err
    connection = sqlite3.connect(bare_cli.folder / "langfuse-demo" / "langfuse.db")
    ((newest,),) = connection.execute("SELECT max(watermark) FROM sync_state")
    connection.close()
    # The recorded data ends there, wherever the clock of this machine stands.
    assert newest < max(datetime.now(UTC).isoformat(), "2026-11-22")
    assert bare_cli("demo", "--api", "v2").code == 2


def test_what_follows_from_another_stream_is_called_derived_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    report = RunReport("shop")
    report.stream("observations").rows_read = 7
    report.stream("traces").derived = True
    show_sync("sync", [report], as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert ["derived" in line for line in lines if "traces" in line or "observations" in line] == [False, True]


def test_verify_says_in_words_that_nothing_differs(cli: Cli) -> None:
    cli("sync", "--stream", "scores")
    result = cli("verify")
    assert result.code == 0
    assert re.search(r"no differences in [1-9]\d* windows", result.err)


def test_the_demo_leaves_a_folder_alone_that_it_did_not_make(bare_cli: Cli) -> None:
    mine = bare_cli.folder / "langfuse-demo" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    result = bare_cli("demo")
    assert result.code == 3
    assert "--directory" in result.err
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("chosen", [signal.SIGINT, signal.SIGTERM])
def test_demo_serve_prints_what_to_set_and_serves_until_it_is_stopped(bare_cli: Cli, chosen: signal.Signals) -> None:
    with bare_cli.start("demo", "serve", "--traces", "10") as process:
        assert process.stdout
        printed = dict(process.stdout.readline().removeprefix("export ").strip().split("=", 1) for _ in range(3))
        assert set(printed) == {"LANGFUSE_BASE_URL", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"}
        url = f"{printed['LANGFUSE_BASE_URL']}/api/public/projects"
        keys = (printed["LANGFUSE_PUBLIC_KEY"], printed["LANGFUSE_SECRET_KEY"])
        assert requests.get(url, auth=keys, timeout=5).status_code == 200
        process.send_signal(chosen)
        _, err = process.communicate(timeout=10)
    assert "Traceback" not in err
    assert process.returncode in (0, 130, -signal.SIGTERM)


def test_a_port_that_is_taken_is_said(bare_cli: Cli, server: MockLangfuse) -> None:
    result = bare_cli("demo", "serve", "--port", str(server.port), "--traces", "1")
    assert result.code == 3
    assert "--port" in result.err


# Privacy


def test_neither_the_database_nor_the_logs_hold_a_key(cli: Cli) -> None:
    started = time.monotonic()
    result = cli("--log-level", "debug", "sync")
    assert result.code == 0, result.err
    assert "window" in result.err
    for secret in (SECRET_KEY, "fromTimestamp"):
        assert secret not in result.err
        assert secret.encode() not in cli.database.read_bytes()
    assert time.monotonic() - started < 60
