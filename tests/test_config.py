"""Settings: sources, precedence, every rule, and messages that name the key and the remedy and hold no secret."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from etl import config as config_module
from etl import logs
from etl.config import Config, Database, Export, Http, Project, Service, Sync, describe, load_config
from etl.errors import ConfigError

ROOT = Path(__file__).parent.parent
PUBLIC, SECRET = "pk-lf-0000-public", "sk-lf-0000-secret"
KEYS = {"LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_SECRET_KEY": SECRET}
SECTIONS = {"database": Database, "sync": Sync, "http": Http, "export": Export, "service": Service}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "_secrets", set())


def load(text: str | bytes | None = None, environ: dict[str, str] = KEYS, **options: Any) -> Config:
    """Load this text as a settings file, or no file."""
    path = None
    if text is not None:
        path = Path("settings.yaml")
        path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_config(path, environ, **options)


def problems(text: str | bytes | None = None, environ: dict[str, str] = KEYS, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(text, environ, **options)
    return caught.value.problems


# --- Where values come from ---


def test_two_keys_are_enough(tmp_path: Path) -> None:
    config = load()
    assert config.projects == (
        Project(name="default", public_key=PUBLIC, secret_key=SECRET, base_url="https://cloud.langfuse.com"),
    )
    assert config.projects[0].base_url == "https://cloud.langfuse.com/api/public"
    assert config.projects[0].secret_key.get_secret_value() == SECRET
    assert config.database.url == f"sqlite:///{tmp_path}/langfuse.db"
    assert config.export.directory == tmp_path / "result"


def test_defaults_are_those_of_the_design() -> None:
    config = load()
    assert config.database.schema_ == "public"
    assert config.sync == Sync(
        every=timedelta(minutes=5),
        lag=timedelta(minutes=2),
        lookback=(timedelta(minutes=45), timedelta(hours=6), timedelta(days=2), timedelta(days=14)),
        deletes="mark",
    )
    assert config.http == Http(
        timeout=timedelta(seconds=60),
        concurrency=4,
        share=0.5,
        requests_per_minute=None,
        give_up_after=timedelta(minutes=15),
    )
    assert config.service == Service(listen="127.0.0.1:9464", ready_lag=timedelta(minutes=30))
    assert config.export.name_by == "metadata.message_id"
    project = config.projects[0]
    assert (project.api, project.start, project.filters, project.content) == ("auto", None, {}, "full")
    assert project.streams == ("traces", "observations", "scores", "sessions")


def test_command_line_wins_over_environment_over_file_over_default() -> None:
    text = "sync: {every: 1m, lag: 1m}\nhttp: {timeout: 1m, share: 1}\n"
    environ = KEYS | {"LANGFUSE_ETL_SYNC__EVERY": "2m", "LANGFUSE_ETL_HTTP__TIMEOUT": "2m"}
    config = load(text, environ, overrides={"sync.every": "3m", "sync.lag": None})
    assert config.sync.every == timedelta(minutes=3)
    assert config.http.timeout == timedelta(minutes=2)
    assert config.sync.lag == timedelta(minutes=1)
    assert config.http.share == 1
    assert config.http.concurrency == 4


def test_every_setting_can_come_from_the_environment() -> None:
    environ = {
        "LANGFUSE_ETL_DATABASE__SCHEMA": "copy",
        "LANGFUSE_ETL_SYNC__EVERY": "1m",
        "LANGFUSE_ETL_SYNC__LAG": "0s",
        "LANGFUSE_ETL_SYNC__LOOKBACK": "[1m, 1h30m]",
        "LANGFUSE_ETL_SYNC__DELETES": "ignore",
        "LANGFUSE_ETL_HTTP__TIMEOUT": "5s",
        "LANGFUSE_ETL_HTTP__CONCURRENCY": "8",
        "LANGFUSE_ETL_HTTP__SHARE": "0.25",
        "LANGFUSE_ETL_HTTP__REQUESTS_PER_MINUTE": "100",
        "LANGFUSE_ETL_HTTP__GIVE_UP_AFTER": "1h",
        "LANGFUSE_ETL_EXPORT__DIRECTORY": "/srv/out",
        "LANGFUSE_ETL_EXPORT__NAME_BY": "name",
        "LANGFUSE_ETL_SERVICE__LISTEN": "[::1]:80",
        "LANGFUSE_ETL_SERVICE__READY_LAG": "1d",
        "LANGFUSE_ETL_DATABASE__URL": "sqlite:////srv/a.db",
    }
    assert set(environ) == {name for name in config_module.VARIABLES if "__" in name}
    dump = describe(load(None, KEYS | environ))
    assert dump["database"] == {"url": "sqlite:////srv/a.db", "schema": "copy"}
    assert dump["sync"] == {"every": "1m", "lag": "0s", "lookback": ["1m", "1h30m"], "deletes": "ignore"}
    assert dump["http"] == {
        "timeout": "5s",
        "concurrency": 8,
        "share": 0.25,
        "requests_per_minute": 100,
        "give_up_after": "1h",
    }
    assert dump["export"] == {"directory": "/srv/out", "name_by": "name"}
    assert dump["service"] == {"listen": "[::1]:80", "ready_lag": "1d"}


def test_the_environment_can_set_null_and_lists_without_brackets() -> None:
    environ = KEYS | {"LANGFUSE_ETL_HTTP__REQUESTS_PER_MINUTE": "null", "LANGFUSE_ETL_SYNC__LOOKBACK": "1m, 2m"}
    config = load("http: {requests_per_minute: 9}", environ)
    assert config.http.requests_per_minute is None
    assert config.sync.lookback == (timedelta(minutes=1), timedelta(minutes=2))


def test_only_the_environment_handed_in_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANGFUSE_ETL_SYNC__EVERY", "9m")
    assert load().sync.every == timedelta(minutes=5)


def test_blank_variables_count_as_not_set() -> None:
    assert load(None, KEYS | {"LANGFUSE_BASE_URL": "", "LANGFUSE_ETL_SYNC__EVERY": " "}) == load()


def test_config_yaml_of_the_current_folder_is_read_if_present(tmp_path: Path) -> None:
    Path("config.yaml").write_text("sync: {every: 7m}")
    assert load().sync.every == timedelta(minutes=7)


def test_a_named_file_must_exist() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: there is no such settings file"):
        load_config(Path("nowhere.yaml"), KEYS)
    with pytest.raises(ConfigError, match="is not a file"):
        load_config(Path(), KEYS)


def test_paths_of_the_file_are_relative_to_it_and_others_to_the_current_folder(tmp_path: Path) -> None:
    folder = tmp_path / "et c%?"
    folder.mkdir()
    file = folder / "a.yaml"
    file.write_text("database: {url: 'sqlite:///data/x.db'}\nexport: {directory: out}\n")
    config = load_config(file, KEYS)
    assert config.database.url == f"sqlite:///{tmp_path}/et%20c%25%3F/data/x.db"  # as SQLAlchemy decodes it
    assert config.export.directory == folder / "out"
    environ = KEYS | {"LANGFUSE_ETL_DATABASE_URL": "sqlite:///y.db", "LANGFUSE_ETL_EXPORT__DIRECTORY": "o"}
    config = load_config(file, environ)
    assert (config.database.url, config.export.directory) == (f"sqlite:///{tmp_path}/y.db", tmp_path / "o")
    config = load_config(file, KEYS, overrides={"database.url": "sqlite:///z.db", "export.directory": Path("p")})
    assert (config.database.url, config.export.directory) == (f"sqlite:///{tmp_path}/z.db", tmp_path / "p")
    file.write_text("")
    assert load_config(file, KEYS).export.directory == folder / "result"


def test_an_override_that_is_no_setting_or_wrong_says_so() -> None:
    found = problems("", overrides={"export.directry": "x", "foo.bar": 1, "export.name_by": 3})
    assert found == [
        "export.name_by (command line): must be text, not the number 3; put it in quotes if it is meant",
        "export.directry (command line): unknown setting; did you mean export.directory? Allowed: directory, name_by",
        "foo: unknown setting; allowed: projects, database, sync, http, export, service",
    ]


# --- The file as a file ---


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "sync:\nhttp:\nprojects:\n", b"\xef\xbb\xbfsync: {every: 5m}"])
def test_an_empty_file_or_section_means_defaults(text: str | bytes) -> None:
    assert load(text) == load()


@pytest.mark.parametrize(
    ("text", "place", "remedy"),
    [
        ("sync:\n  every: 5m\n lag: 2m\n", "line 3, column 2", "indented by the same number of spaces"),
        ("sync:\n\tevery: 5m\n", "line 2, column 1", "does not allow tabs"),
        ("a: b: c", "line 1, column 5", '"name: value" in every line'),
        ("sync: {every: 5m", "line 1, column 17", "in every line"),
        ("sync: {every: !x 5m}", "line 1, column 15", "without tags"),
        ("sync: {every: *x}", "line 1, column 15", "begins with \\*"),
        ("sync: {every: @x}", "line 1, column 15", "quotes"),
        ("sync:\n  1: 5m", "line 2, column 3", "the name of a setting"),
        ("sync:\n  [a]: 5m", "line 2, column 3", "the name of a setting"),
        ("a: 1\n---\nb: 2\n", "line 2, column 1", "one document"),
        ("a: 1\nb: \x07", "line 2, column 4", "U\\+0007 is not allowed"),
        (b"a: 1\nb: \xe9", "line 2", "save the file as UTF-8"),
        ("a: 1".encode("utf-16"), "UTF-16", "save it as UTF-8"),
        ("a: 1".encode("utf-32"), "UTF-", "save it as UTF-8"),
        ("a: 1".encode("utf-16-le"), "UTF-16", "save it as UTF-8"),
        ("- a", "holds a list", "begin with lines such as"),
        ("hello", "holds a single value", "begin with lines such as"),
        ("[" * 5000, "nested too deeply", ""),
        ("a: !!int x", "not readable as YAML", "expected lines"),
    ],
)
def test_a_malformed_file_names_the_place_and_what_is_expected(text: str | bytes, place: str, remedy: str) -> None:
    (line,) = problems(text)
    assert line.startswith("settings.yaml")
    assert place in line
    assert re.search(remedy, line)
    assert "\n" not in line


def test_a_malformed_file_is_not_quoted() -> None:
    (line,) = problems("database: {url: 'postgresql://u:hush-hush@h/d'\n  x: [")
    assert "hush" not in line


def test_a_key_given_twice_is_refused() -> None:
    assert problems("sync:\n  every: 1m\n  every: 2m\nsync: {lag: 1x}\n") == [
        "settings.yaml, line 4, column 1: 'sync' is given twice; keep one of them",
        "settings.yaml, line 3, column 3: 'every' is given twice; keep one of them",
        "sync.lag: '1x' is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d",
    ]


def test_anchors_and_merges_work() -> None:
    text = """
projects:
  - &base {name: a, public_key_env: A_PK, secret_key_env: A_SK, content: none}
  - {<<: *base, name: b}
"""
    a, b = load(text, {"A_PK": PUBLIC, "A_SK": SECRET}).projects
    assert (a.content, b.content, b.name) == ("none", "none", "b")


def test_text_that_yaml_1_1_would_change_stays_text() -> None:
    text = "projects:\n  - {name: on, filters: {version: 010, release: 2025-01-01, name: 1:30}}\n"
    project = load(text).projects[0]
    assert project.name == "on"
    assert project.filters == {"version": "010", "release": "2025-01-01", "name": "1:30"}


# --- Rules of single settings ---

NO_DURATION = "is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d"


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("sync.every", "5", "'5' has no unit; write a unit after it, such as 5s or 5m"),
        ("sync.every", "6x", f"'6x' {NO_DURATION}"),
        ("sync.every", "-5m", f"'-5m' {NO_DURATION}"),
        ("sync.every", "1.5h", f"'1.5h' {NO_DURATION}"),
        ("sync.every", "1m1h", f"'1m1h' {NO_DURATION}"),
        ("sync.every", "true", f"true {NO_DURATION}"),
        ("sync.every", "", f"null {NO_DURATION}"),
        ("sync.every", "[1m]", f"a list {NO_DURATION}"),
        ("sync.every", "0s", "0s is out of range; allowed: 1s to 1d"),
        ("sync.every", "9999999999999999d", f"'9999999999999999d' {NO_DURATION}"),
        ("sync.lag", "2d", "2d is out of range; allowed: 0s to 1d"),
        ("sync.lookback", "[]", "is empty; write at least one duration, such as [45m, 6h, 2d, 14d]"),
        ("sync.lookback", "[6h, 45m]", "must rise: 6h stands before 45m"),
        ("sync.lookback", "[6h, 360m]", "must rise: 6h stands before 6h"),
        ("sync.lookback", "7", "must be a list, not the number 7"),
        ("sync.deletes", "on", "'on' is not known; allowed: mark, ignore"),
        ("sync.deletes", "marked", "'marked' is not known, did you mean mark?; allowed: mark, ignore"),
        ("http.timeout", "0s", "0s is out of range; allowed: 1s to 10m"),
        ("http.give_up_after", "0m", "0s is out of range; allowed: 1s to 1d"),
        ("http.concurrency", "0", "0 is out of range; allowed: 1 to 64"),
        ("http.concurrency", "65", "65 is out of range; allowed: 1 to 64"),
        ("http.concurrency", "2.5", "the number 2.5 is not a whole number"),
        ("http.concurrency", "true", "true is not a whole number"),
        ("http.concurrency", "many", "'many' is not a whole number"),
        ("http.share", "0", "the number 0 is not a share; write a number above 0 and at most 1, such as 0.5"),
        ("http.share", "1.1", "the number 1.1 is not a share; write a number above 0 and at most 1, such as 0.5"),
        ("http.share", "nan", "'nan' is not a share; write a number above 0 and at most 1, such as 0.5"),
        ("http.share", "true", "true is not a share; write a number above 0 and at most 1, such as 0.5"),
        ("http.requests_per_minute", "0", "0 is out of range; allowed: 1 to 1000000"),
        ("export.directory", "3", "must be text, not the number 3; put it in quotes if it is meant"),
        ("export.directory", "''", "must be text that can be read, and not empty"),
        ("export.name_by", "", "must be text, not null; put it in quotes if it is meant"),
        ("database.schema", "my-schema", "'my-schema' is not a schema name; use letters, digits and _, at most 63, "),
        ("service.ready_lag", "0s", "0s is out of range; allowed: 1s to 365d"),
        ("service.listen", "'9464'", "'9464' is not an address to listen on; write host:port such as 127.0.0.1:9464"),
        ("service.listen", "':9464'", "':9464' is not an address to listen on"),
        ("service.listen", "a:99999", "'a:99999' is not an address to listen on"),
        ("service.listen", "'::1:80'", "'::1:80' is not an address to listen on"),
        ("service.listen", "'[::x]:80'", "'[::x]:80' is not an address to listen on"),
    ],
)
def test_a_wrong_value_names_the_key_the_problem_and_the_allowed(setting: str, value: str, problem: str) -> None:
    section, _, name = setting.partition(".")
    (line,) = problems(f"{section}:\n  {name}: {value}\n")
    assert line.startswith(f"{setting}: {problem}")


def test_an_item_of_a_list_is_named_by_its_place() -> None:
    assert problems("sync: {lookback: [45m, 6x, 1s]}") == [
        f"sync.lookback[1]: '6x' {NO_DURATION}",
        "sync.lookback[2]: 1s is out of range; allowed: 1m to 3650d",
    ]


def test_a_value_of_the_environment_is_named_by_its_variable() -> None:
    environ = KEYS | {"LANGFUSE_ETL_SYNC__LOOKBACK": "45m,6x", "LANGFUSE_ETL_HTTP__SHARE": "2"}
    assert problems(None, environ) == [
        f"LANGFUSE_ETL_SYNC__LOOKBACK[1]: '6x' {NO_DURATION}",
        "LANGFUSE_ETL_HTTP__SHARE: '2' is not a share; write a number above 0 and at most 1, such as 0.5",
    ]


def test_unknown_settings_get_a_suggestion_and_the_allowed_names() -> None:
    text = "http: {timeuot: 3s}\nsinc: {}\nconcurrency: 3\nprojects: [{name: a, stream: []}]\n"
    assert problems(text) == [
        "http.timeuot: unknown setting; did you mean http.timeout? "
        "Allowed: timeout, concurrency, share, requests_per_minute, give_up_after",
        "sinc: unknown setting; did you mean sync? Allowed: projects, database, sync, http, export, service",
        "concurrency: unknown setting; did you mean http.concurrency? "
        "Allowed: projects, database, sync, http, export, service",
        "projects[0].stream: unknown setting; did you mean projects[0].streams? "
        "Allowed: name, base_url, public_key_env, secret_key_env, api, start, streams, filters, content",
    ]


def test_unknown_variables_get_the_nearest_known_name() -> None:
    environ = KEYS | {"LANGFUSE_ETL_SYNC__EVREY": "1m", "LANGFUSE_ETL_SYNC": "{}", "LANGFUSE_ETL_DATABASE_URI": "x"}
    lines = problems(None, environ)
    assert lines[0] == "LANGFUSE_ETL_SYNC__EVREY: unknown setting, did you mean LANGFUSE_ETL_SYNC__EVERY?"
    assert lines[1].startswith("LANGFUSE_ETL_SYNC: unknown setting")
    assert lines[2] == "LANGFUSE_ETL_DATABASE_URI: unknown setting, did you mean LANGFUSE_ETL_DATABASE_URL?"


def test_a_section_that_is_no_mapping_is_refused() -> None:
    assert problems("sync: 5m\nprojects: {name: a}\n") == [
        "sync: must be a mapping of settings, not '5m'",
        "projects: must be a list, each entry beginning with '- name: …', not a mapping",
    ]


def test_all_mistakes_are_reported_at_once() -> None:
    text = """
projects:
  - {name: a, api: trace, start: 2025-01-01, public_key: pk-lf-inside, filters: {page: 2, tags: [1]}}
  - {name: a, streams: [traces, traces, logs], content: some}
  - shop
database: {url: "mysql://root:hush-hush@h/db"}
sync: {every: 5}
http: {share: 0}
"""
    lines = problems(text, KEYS | {"LANGFUSE_ETL_SERVICE__LISTEN": "x", "LANGFUSE_BASE_URL": "cloud.langfuse.com"})
    starts = [
        "database.url: ",
        "sync.every: ",
        "http.share: ",
        "LANGFUSE_ETL_SERVICE__LISTEN: ",
        "projects[2]: must be a mapping",
        "LANGFUSE_BASE_URL: 'cloud.langfuse.com' does not begin with https:// or http://",
        "projects[1].name: 'a' is the name of projects[0] already",
        "projects[0].public_key: a key must not stand in the file",
        "projects[0].api: 'trace' is not known, did you mean traces?; allowed: auto, traces, observations",
        "projects[0].start: '2025-01-01' has no time zone; write 2025-01-01T00:00:00Z for UTC",
        "projects[0].filters.page: is set by the engine itself",
        "projects[0].filters.tags: must hold texts only",
        "projects[1].streams[2]: 'logs' is not known; allowed: traces, observations, scores, sessions",
        "projects[1].content: 'some' is not known; allowed: full, none",
        "projects[0].public_key_env: is missing",
    ]
    for start in starts:
        assert any(line.startswith(start) for line in lines), start
    assert "hush" not in "\n".join(lines)
    assert "inside" not in "\n".join(lines)


# --- The database's address ---


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("sqlite:////srv/a b.db", "sqlite:////srv/a b.db"),
        ("sqlite:///C:/data/a.db", "sqlite:///C:/data/a.db"),
        ("postgresql://u:p%40ss@h:5432/d?sslmode=require", "postgresql+psycopg://u:p%40ss@h:5432/d?sslmode=require"),
        ("postgres://h/d", "postgresql+psycopg://h/d"),
        ("postgresql+psycopg:///d?host=/tmp", "postgresql+psycopg:///d?host=/tmp"),
    ],
)
def test_database_addresses_are_normalised(url: str, normal: str) -> None:
    assert load(None, KEYS | {"LANGFUSE_ETL_DATABASE_URL": url}).database.url == normal


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", "a database in memory is lost at the end of the run; name a file"),
        ("sqlite:///", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory"),
        ("sqlite://langfuse.db", "three slashes"),
        ("langfuse.db", "write sqlite:///file.db, or postgresql://"),
        ("mysql://u:hush-hush@h/d", "postgres:// and postgresql+psycopg://"),
        ("postgresql://u:hush/hush@h/d", "%2F"),
        ("postgresql://u:12?hush@h/d", "%3F"),
        ("postgresql://u:hush-hush@h:99999/d", "%40"),
    ],
)
def test_other_database_addresses_are_refused_with_the_reason(url: str, problem: str) -> None:
    (line,) = problems(None, KEYS | {"LANGFUSE_ETL_DATABASE_URL": url})
    assert line.startswith("LANGFUSE_ETL_DATABASE_URL: ")
    assert problem in line
    assert "hush" not in line


def test_the_database_address_may_come_from_a_file_and_only_from_one_place() -> None:
    Path("url").write_text("postgresql://u:hush-hush@h/d\n")
    environ = KEYS | {"LANGFUSE_ETL_DATABASE_URL_FILE": "url"}
    assert load(None, environ).database.url == "postgresql+psycopg://u:hush-hush@h/d"
    assert problems(None, environ | {"LANGFUSE_ETL_DATABASE_URL": "sqlite:///a"}) == [
        "LANGFUSE_ETL_DATABASE_URL and LANGFUSE_ETL_DATABASE_URL_FILE are both set; keep one"
    ]
    assert problems(None, environ | {"LANGFUSE_ETL_DATABASE__URL": "sqlite:///a"}) == [
        "LANGFUSE_ETL_DATABASE_URL and LANGFUSE_ETL_DATABASE__URL are both set; keep one"
    ]


def test_a_sqlite_path_may_hold_spaces_and_any_letters(tmp_path: Path) -> None:
    config = load(None, KEYS | {"LANGFUSE_ETL_DATABASE_URL": "sqlite:///meine daten/数据.db"})
    assert config.database.url == f"sqlite:///{tmp_path}/meine daten/数据.db"


# --- Projects, addresses, keys ---


@pytest.mark.parametrize(
    "form",
    [
        "https://h.example/base",
        "https://h.example/base/",
        "https://h.example/base//",
        "HTTPS://H.example/base/api/public",
        "https://h.example//base/api/public/",
        " https://h.example/base\n",
    ],
)
def test_every_form_of_the_base_url_is_accepted(form: str) -> None:
    config = load(None, KEYS | {"LANGFUSE_HOST": form})
    assert config.projects[0].base_url == "https://h.example/base/api/public"


@pytest.mark.parametrize(
    ("form", "normal"),
    [
        ("http://localhost:3000", "http://localhost:3000/api/public"),
        ("https://us.cloud.langfuse.com/api/public", "https://us.cloud.langfuse.com/api/public"),
        ("http://[::1]:3000/", "http://[::1]:3000/api/public"),
    ],
)
def test_ports_and_ipv6_are_kept(form: str, normal: str) -> None:
    assert load(None, KEYS | {"LANGFUSE_BASE_URL": form}).projects[0].base_url == normal


@pytest.mark.parametrize(
    ("form", "problem"),
    [
        ("https://pk:hush@h.example", "holds credentials"),
        ("https://h.example/?token=hush", "holds a query or a fragment"),
        ("https://h.example#hush", "holds a query or a fragment"),
        ("cloud.langfuse.com", "write one such as https://cloud.langfuse.com"),
        ("ftp://h.example", "does not begin with https:// or http://"),
        ("https://", "names no host"),
        ("https://h:port", "is not an address"),
        ("https://a b", "holds a space"),
        ("https:/h.example", "does not begin with"),
    ],
)
def test_other_base_urls_are_refused(form: str, problem: str) -> None:
    (line,) = problems(None, KEYS | {"LANGFUSE_BASE_URL": form})
    assert line.startswith("LANGFUSE_BASE_URL: ")
    assert problem in line
    assert "hush" not in line


def test_host_and_base_url_must_agree() -> None:
    same = KEYS | {"LANGFUSE_BASE_URL": "https://a.example", "LANGFUSE_HOST": "https://a.example/api/public/"}
    assert load(None, same).projects[0].base_url == "https://a.example/api/public"
    assert problems(None, same | {"LANGFUSE_HOST": "https://b.example"}) == [
        "LANGFUSE_BASE_URL and LANGFUSE_HOST are both set and differ; keep one"
    ]


def test_the_address_of_the_environment_wins_for_a_single_project_with_the_plain_keys() -> None:
    url = {"LANGFUSE_BASE_URL": "https://env.example"}
    text = "projects: [{name: a, base_url: https://file.example}]"
    assert load(text, KEYS).projects[0].base_url == "https://file.example/api/public"
    assert load(text, KEYS | url).projects[0].base_url == "https://env.example/api/public"
    own = "projects: [{name: a, base_url: https://file.example, public_key_env: A_PK, secret_key_env: A_SK}]"
    environ = {"A_PK": PUBLIC, "A_SK": SECRET}
    assert load(own, KEYS | environ | url).projects[0].base_url == "https://file.example/api/public"


@pytest.mark.parametrize("text", [None, "", "sync: {every: 1m}", "projects: []", "projects: [{name: default}]"])
def test_without_anything_the_three_variables_and_the_demo_are_named(text: str | None) -> None:
    (line,) = problems(text, {})
    for name in ("LANGFUSE_BASE_URL", "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY", "langfuse-etl demo"):
        assert name in line


def test_one_missing_key_is_named() -> None:
    assert problems(None, {"LANGFUSE_PUBLIC_KEY": PUBLIC}) == [
        "LANGFUSE_SECRET_KEY is not set, but LANGFUSE_PUBLIC_KEY is; a project needs both of its keys"
    ]
    assert problems(None, {"LANGFUSE_SECRET_KEY": SECRET}) == [
        "LANGFUSE_PUBLIC_KEY is not set, but LANGFUSE_SECRET_KEY is; a project needs both of its keys"
    ]
    (line,) = problems(None, {"LANGFUSE_BASE_URL": "https://h.example"})
    assert "LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY are not set" in line
    assert "demo" in line


def test_swapped_keys_are_noticed() -> None:
    assert problems(None, {"LANGFUSE_PUBLIC_KEY": SECRET, "LANGFUSE_SECRET_KEY": PUBLIC}) == [
        "LANGFUSE_PUBLIC_KEY holds a secret key and LANGFUSE_SECRET_KEY a public one: the two are swapped"
    ]
    assert problems(None, KEYS | {"LANGFUSE_PUBLIC_KEY": SECRET}) == [
        "LANGFUSE_PUBLIC_KEY holds a secret key; put the public one there, it begins with pk-lf-"
    ]
    assert problems(None, KEYS | {"LANGFUSE_SECRET_KEY": PUBLIC}) == [
        "LANGFUSE_SECRET_KEY holds a public key; put the secret one there, it begins with sk-lf-"
    ]


@pytest.mark.parametrize("key", ["'sk-lf-hush'", '"sk-lf-hush"', "sk-lf-hush hush", "sk-lf-\u200bhush", "a\nhush"])
def test_a_key_that_cannot_be_one_is_refused_unseen(key: str) -> None:
    (line,) = problems(None, KEYS | {"LANGFUSE_SECRET_KEY": key})
    assert line.startswith("LANGFUSE_SECRET_KEY")
    assert "hush" not in line


def test_keys_of_any_form_are_taken_and_stripped() -> None:
    project = load(None, {"LANGFUSE_PUBLIC_KEY": " my-public\n", "LANGFUSE_SECRET_KEY": "my-secret\r\n"}).projects[0]
    assert (project.public_key, project.secret_key.get_secret_value()) == ("my-public", "my-secret")


def test_keys_may_come_from_files(tmp_path: Path) -> None:
    Path("pk").write_text(f"\ufeff{PUBLIC}\n")
    Path("sk").write_text(f"  {SECRET}\r\n")
    environ = {"LANGFUSE_PUBLIC_KEY_FILE": "pk", "LANGFUSE_SECRET_KEY_FILE": str(tmp_path / "sk")}
    assert load(None, environ).projects == load().projects
    text = "projects: [{name: default, secret_key_env: LANGFUSE_ETL_SK}]"
    project = load(text, {"LANGFUSE_PUBLIC_KEY": PUBLIC, "LANGFUSE_ETL_SK_FILE": "sk"}).projects[0]
    assert project.secret_key.get_secret_value() == SECRET


def test_a_secret_file_that_is_missing_empty_or_no_text_is_named() -> None:
    Path("empty").write_text("\n")
    Path("binary").write_bytes(b"\xff\xfe\x00")
    public = {"LANGFUSE_PUBLIC_KEY": PUBLIC}
    for name, problem in {
        "nowhere": "nowhere cannot be read: No such file or directory",
        ".": ". cannot be read: Is a directory",
        "empty": "empty is empty",
        "binary": "binary is not text in UTF-8",
    }.items():
        lines = problems(None, public | {"LANGFUSE_SECRET_KEY_FILE": name})
        assert lines == [f"LANGFUSE_SECRET_KEY_FILE: {problem}"]
    assert problems(None, KEYS | {"LANGFUSE_SECRET_KEY_FILE": "empty"}) == [
        "LANGFUSE_SECRET_KEY and LANGFUSE_SECRET_KEY_FILE are both set; keep one"
    ]


def test_a_key_in_place_of_a_variable_name_is_not_shown() -> None:
    (line,) = problems("projects: [{name: a, secret_key_env: sk-lf-hush-hush}]")
    assert line == (
        "projects[0].secret_key_env: must be the name of an environment variable, "
        "such as LANGFUSE_SECRET_KEY, not the key itself"
    )


SEVERAL = """
projects:
  - {name: a, public_key_env: A_PK, secret_key_env: A_SK}
  - {name: b, base_url: "https://b.example", public_key_env: LANGFUSE_ETL_B_PK, secret_key_env: B_SK, content: none}
"""
SEVERAL_KEYS = {"A_PK": "pk-lf-a", "A_SK": "sk-lf-a", "LANGFUSE_ETL_B_PK": "pk-lf-b", "B_SK": "sk-lf-b"}


def test_several_projects_name_their_own_variables() -> None:
    a, b = load(SEVERAL, SEVERAL_KEYS).projects
    assert (a.name, a.base_url, a.public_key) == ("a", "https://cloud.langfuse.com/api/public", "pk-lf-a")
    assert (b.base_url, b.secret_key.get_secret_value(), b.content) == (
        "https://b.example/api/public",
        "sk-lf-b",
        "none",
    )
    a, b = load(SEVERAL, SEVERAL_KEYS | {"LANGFUSE_BASE_URL": "https://env.example"}).projects
    assert (a.base_url, b.base_url) == ("https://env.example/api/public", "https://b.example/api/public")


def test_plain_variables_beside_several_projects_are_an_error_unless_named() -> None:
    (first, second) = problems(SEVERAL, SEVERAL_KEYS | KEYS)
    assert first.startswith("LANGFUSE_PUBLIC_KEY is set, but there are several projects and none names it; ")
    assert second.startswith("LANGFUSE_SECRET_KEY is set")
    named = SEVERAL.replace("A_PK", "LANGFUSE_PUBLIC_KEY").replace("A_SK", "LANGFUSE_SECRET_KEY")
    assert load(named, SEVERAL_KEYS | KEYS).projects[0].public_key == PUBLIC
    owned = SEVERAL.replace("{name: a,", "{name: a, base_url: 'https://a.example',")
    (line,) = problems(owned, SEVERAL_KEYS | {"LANGFUSE_HOST": "https://env.example"})
    assert line.startswith("LANGFUSE_HOST is set, but there are several projects and each has its own base_url")


def test_several_projects_that_name_no_variables_are_refused() -> None:
    lines = problems("projects: [{name: a}, {name: b}]", {})
    assert [line.partition(":")[0] for line in lines] == [
        "projects[0].public_key_env",
        "projects[1].public_key_env",
        "projects[0].secret_key_env",
        "projects[1].secret_key_env",
    ]


def test_missing_keys_of_a_named_project_name_it() -> None:
    (line,) = problems(SEVERAL, {name: key for name, key in SEVERAL_KEYS.items() if name not in ("A_PK", "A_SK")})
    assert line.startswith("project 'a': A_PK and A_SK are not set")


@pytest.mark.parametrize(
    ("text", "environ", "names"),
    [
        (None, {}, []),
        ("projects: [{name: a}]", {}, ["a"]),
        ("projects: [{name: a}]", {"LANGFUSE_PUBLIC_KEY": PUBLIC}, ["a"]),
        ("projects: [{name: a}, {name: b}]", KEYS, ["a", "b"]),
        (None, {"LANGFUSE_PUBLIC_KEY_FILE": "nowhere"}, ["default"]),
    ],
)
def test_commands_without_need_for_keys_load_without_them(
    text: str | None, environ: dict[str, str], names: list[str]
) -> None:
    config = load(text, environ, require_projects=False)
    assert [project.name for project in config.projects] == names
    assert not any(project.has_keys for project in config.projects)
    assert load(None, KEYS, require_projects=False).projects[0].has_keys


def test_even_without_need_for_keys_wrong_settings_are_refused() -> None:
    assert problems("projects: [{name: a, api: x}]", {}, require_projects=False) == [
        "projects[0].api: 'x' is not known; allowed: auto, traces, observations"
    ]


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2025-01-01T00:00:00Z", datetime(2025, 1, 1, tzinfo=UTC)),
        ("2025-01-01T02:00:00.123999+02:00", datetime(2025, 1, 1, 0, 0, 0, 123000, tzinfo=UTC)),
        ("'2025-01-01 00:00Z'", datetime(2025, 1, 1, tzinfo=UTC)),
    ],
)
def test_start_is_utc_in_whole_milliseconds(text: str, time: datetime) -> None:
    start = load(f"projects: [{{name: a, start: {text}}}]").projects[0].start
    assert start == time
    assert start is not None
    assert start.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["2025-01-01T00:00:00", "2025-01-01", "yesterday", "5", "true", "0001-01-01T00:00+09:00"]
)
def test_other_starts_are_refused(text: str) -> None:
    (line,) = problems(f"projects: [{{name: a, start: {text}}}]")
    assert line.startswith("projects[0].start: ")


def test_filters_are_checked_and_made_lists() -> None:
    text = "projects: [{name: a, filters: {environment: production, tags: [a, b], userId: u}}]"
    assert load(text).projects[0].filters == {"environment": ["production"], "tags": ["a", "b"], "userId": "u"}


# --- Secrets ---


def test_keys_and_passwords_appear_in_no_text_of_a_config() -> None:
    environ = KEYS | {"LANGFUSE_ETL_DATABASE_URL": "postgresql://u:hush-hush@h/d?password=hush-two"}
    config = load(None, environ)
    for text in (repr(config), str(config), f"{config.projects[0]!r} {config.database}", repr(describe(config))):
        for secret in (PUBLIC, SECRET, "hush"):
            assert secret not in text
    assert "postgresql+psycopg://***@h/d" in repr(config)


def test_every_secret_is_registered_with_the_log() -> None:
    environ = {
        "LANGFUSE_PUBLIC_KEY": "my-public",
        "LANGFUSE_SECRET_KEY": "my-secret",
        "LANGFUSE_ETL_DATABASE_URL": "postgresql://u:hush%2Fhush@h/d?password=hush-two",
    }
    load(None, environ)
    assert {"my-public", "my-secret", "hush%2Fhush", "hush/hush", "hush-two"} == logs._secrets


def test_a_password_as_public_as_the_user_name_hides_nothing() -> None:
    load(None, KEYS | {"LANGFUSE_ETL_DATABASE_URL": "postgresql://langfuse:langfuse@db/etl"})
    assert "langfuse" not in logs._secrets


def test_a_config_cannot_be_changed() -> None:
    config = load()
    with pytest.raises(ValidationError):
        config.sync.every = timedelta(1)  # type: ignore[misc]


# --- What is shipped ---


def test_the_shipped_file_lists_every_setting_with_its_default() -> None:
    text = (ROOT / "config.yaml").read_text()
    Path("config.yaml").write_text(text)
    assert load() == load("")
    values = yaml.safe_load(re.sub(r"^(\s*)# (base_url: https://cloud)", r"\1\2", text, flags=re.MULTILINE))
    assert list(values) == list(Config.model_fields)
    assert [*values["projects"][0]] == list(config_module.PROJECT_SETTINGS)
    for section, model in SECTIONS.items():
        assert [*values[section]] == [field.alias or name for name, field in model.model_fields.items()]
        default, written = model(), model.model_validate(values[section])
        assert written == default
    assert Project(**values["projects"][0]) == Project(name="default")
    for line in text.splitlines():
        if re.match(r"\s+(- )?\w+: ", line) and "#" not in line:
            assert line.strip() in ("url: sqlite:///langfuse.db", "filters: {}"), f"no comment: {line}"


def test_the_docs_name_every_setting_variable_and_default() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([a-z_.\[\]]+)` \| (.*?) \|", text, flags=re.MULTILINE))
    names = [f"projects[].{name}" for name in config_module.PROJECT_SETTINGS] + list(config_module.SETTINGS)
    assert list(rows) == names
    for setting in config_module.SETTINGS:
        section, _, name = setting.partition(".")
        default = rows[setting].strip("`")
        assert SECTIONS[section].model_validate({name: yaml.safe_load(default)}) == SECTIONS[section]()
    plain = ("LANGFUSE_BASE_URL", "LANGFUSE_HOST", "LANGFUSE_PUBLIC_KEY_FILE", "LANGFUSE_SECRET_KEY_FILE")
    for variable in (*config_module.VARIABLES, *KEYS, *plain):
        assert f"`{variable}`" in text


def test_the_yaml_examples_of_the_docs_load() -> None:
    text = (ROOT / "docs" / "configuration.md").read_text()
    filters, several = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    names = re.findall(r"_key_env: (\w+)", several)
    assert len(load(several, dict.fromkeys(names, "key-value")).projects) == 2
    assert Project(name="a", **yaml.safe_load(filters)).filters["environment"] == ["production"]


# --- Whatever stands in the file ---

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["5m", "a", "traces"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "type", "column", "operator", "value", "filter", "tags", "x"]), inner
        )
    ),
    max_leaves=6,
)
FILES = st.dictionaries(
    st.sampled_from(["projects", "database", "sync", "http", "export", "service", "other"]),
    VALUES
    | st.dictionaries(st.sampled_from([setting.partition(".")[2] for setting in config_module.SETTINGS]), VALUES)
    | st.lists(st.dictionaries(st.sampled_from(config_module.PROJECT_SETTINGS), VALUES), max_size=3),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(FILES)
def test_any_file_loads_or_is_refused_in_plain_words(content: dict[str, Any]) -> None:
    found: list[str] = []
    try:
        load(yaml.safe_dump(content, allow_unicode=True))
    except ConfigError as error:
        found = error.problems
    for line in found:
        assert "\n" not in line
        assert not re.search("pydantic|Input should|validation error|errors\\.|<class|is not valid", line)
