"""Logs: two formats on stderr, and no secret in a message, an argument or a traceback."""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from etl import logs
from etl.errors import ConfigError
from etl.logs import configure_logging, redact, register_secret

log = logging.getLogger("etl.pipeline")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(logs, "_secrets", set())
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def fail(text: str) -> None:
    raise RuntimeError(text)


def test_a_text_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging("info")
    record = log.makeRecord(log.name, logging.INFO, "f", 1, "read %d rows", (3,), None)
    record.created = 1_795_255_200.9
    log.handle(record)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "2026-11-21T10:00:00Z INFO etl.pipeline read 3 rows\n")


def test_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True)
    register_secret('a"b"c')
    log.warning("two\nlines, %s and %s", "ü", 'a"b"c')
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert set(entry) == {"time", "level", "logger", "message"}
    assert entry["level"] == "WARNING"
    assert entry["logger"] == "etl.pipeline"
    assert entry["message"] == "two\nlines, ü and ***"
    assert entry["time"].endswith("Z")


def test_a_message_stays_on_one_line_of_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    log.info("a\n2026-11-21T10:00:00Z ERROR etl forged")
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_gone_from_messages_arguments_and_tracebacks(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    configure_logging("DEBUG", json=as_json)
    register_secret("my-secret-word")
    log.info("my-secret-word")
    log.info("%s", {"key": "my-secret-word"})
    try:
        try:
            fail("inner my-secret-word")
        except RuntimeError as error:
            raise ValueError("outer sk-lf-1234-abcd") from error
    except ValueError:
        log.exception("failed", stack_info=True)
    err = capsys.readouterr().err
    assert "my-secret-word" not in err
    assert "1234-abcd" not in err
    assert "inner ***" in err
    assert "outer sk-lf-***" in err
    assert "Traceback" in err


BASIC = base64.b64encode(b"pk-lf-1:sk-lf-2").decode()


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("key sk-lf-12-ab, pk-lf-34-cd.", "key sk-lf-***, pk-lf-***."),
        (f"Authorization: Basic {BASIC}", "Authorization: ***"),
        (f"authorization=Basic {BASIC} next", "authorization=*** next"),
        (f"{{'Authorization': 'Basic {BASIC}', 'a': 1}}", "{'Authorization': '***', 'a': 1}"),
        (f'{{"authorization": "Bearer {BASIC}"}}', '{"authorization": "***"}'),
        (f"{{b'Authorization': b'Basic {BASIC}'}}", "{b'Authorization': b'***'}"),
        ("Authorization: token-without-scheme", "Authorization: ***"),
        (f"sent Basic {BASIC} there", "sent Basic *** there"),
        ("postgresql://u:hush@h/d", "postgresql://***@h/d"),
        ("postgresql://u:hu@sh@h/d and http://h/a", "postgresql://***@h/d and http://h/a"),
        ("[SQL: INSERT]\n[parameters: {'input': 'hush'}]\n(end)", "[SQL: INSERT]\n[parameters: ***]\n(end)"),
        ("duplicate key\nDETAIL:  Key (id)=(hush) exists.", "duplicate key\nDETAIL:  ***"),
        ("nothing to hide: 3 rows, https://cloud.langfuse.com/api/public", None),
    ],
)
def test_what_looks_like_a_secret_is_hidden(text: str, hidden: str | None) -> None:
    assert redact(text) == (hidden or text)
    assert redact(redact(text)) == redact(text)


def test_a_secret_within_a_secret_is_hidden_whole() -> None:
    register_secret("abcd")
    register_secret("abcdefgh")
    assert redact("x abcdefgh y abcd") == "x *** y ***"


def test_very_short_secrets_are_not_replaced() -> None:
    for value in ("", "a", "abc"):
        register_secret(value)
    assert redact("abc a") == "abc a"


def test_libraries_stay_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("DEBUG")
    for name in ("urllib3.connectionpool", "requests", "apscheduler.scheduler", "sqlalchemy.engine", "alembic"):
        logging.getLogger(name).info("GET /api/public/traces?sessionId=x")
    logging.getLogger("urllib3").warning("seen")
    assert capsys.readouterr().err.count("\n") == 1


def test_the_level_counts_and_a_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("ERROR")
    configure_logging("WARNING")
    log.info("no")
    log.warning("once")
    assert capsys.readouterr().err.count("\n") == 1


def test_an_unknown_level_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="'loud' is not one of: DEBUG, INFO, WARNING, ERROR"):
        configure_logging("loud")


@pytest.mark.parametrize("as_json", [False, True])
def test_a_line_that_cannot_be_formatted_does_not_show_its_arguments(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    logging.getLogger().handlers.clear()  # pytest's own raises
    configure_logging("INFO", json=as_json)
    log.info("%d rows", "hush")
    err = capsys.readouterr().err
    assert "hush" not in err
    assert "could not be written" in err


def test_a_closed_stderr_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/null", "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        configure_logging()
    log.error("nobody listens")
