"""Logging to stderr, and the one place that keeps secrets out of text.

Redaction happens on the finished line, so it covers the message, its arguments and the traceback alike.
"""

from __future__ import annotations

import json as jsonlib
import logging
import re
import sys
from datetime import UTC, datetime

from etl.errors import ConfigError

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

# These tell about every request, job or statement, with query strings and parameters: never below WARNING.
_CHATTY = ("urllib3", "requests", "apscheduler", "alembic", "sqlalchemy", "pydantic_settings")

_MIN_SECRET = 4  # characters; replacing shorter text would garble every line
_HIDDEN = "***"

_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b([ps]k-lf-)[\w-]+"), rf"\1{_HIDDEN}"),
    # "Authorization: Basic x", and the same as a Python or JSON mapping, of str or bytes.
    (
        re.compile(r"(authorization['\"]?\s*[:=]\s*(?:b?['\"])?)(?:(?:basic|bearer)\s+)?[^\s'\",}]+", re.IGNORECASE),
        rf"\1{_HIDDEN}",
    ),
    (re.compile(r"\b(Basic|Bearer)\s+[\w+/.=-]{6,}"), rf"\1 {_HIDDEN}"),
    (re.compile(r"(://)[^\s/@'\"]*:[^\s'\"]*@"), rf"\1{_HIDDEN}@"),
    # SQLAlchemy quotes the values of a failed statement, and Postgres the values of a violated key.
    (re.compile(r"\[parameters: [^\n]*"), f"[parameters: {_HIDDEN}]"),
    (re.compile(r"(DETAIL:\s+)[^\n]*"), rf"\1{_HIDDEN}"),
)

_secrets: set[str] = set()


def register_secret(value: str) -> None:
    """Hide `value` wherever it turns up from now on; text under 4 characters is ignored.

    Called by `etl.config.load_config` for each secret it reads, and by nobody else.
    """
    if len(value) >= _MIN_SECRET:
        _secrets.add(value)


def redact(text: str) -> str:
    """`text` without registered secrets and without whatever looks like a key or a credential."""
    for secret in sorted(_secrets, key=len, reverse=True):  # a secret may contain another one
        text = text.replace(secret, _HIDDEN)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def _utc(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class _TextFormatter(logging.Formatter):
    """`2026-11-21T10:00:00Z INFO etl.pipeline message`; one line, except for a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        return _utc(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the standard library's name
        return "\\n".join(super().formatMessage(record).splitlines())

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, and `exception` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": _utc(record),
            "level": record.levelname,
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = redact(self.formatStack(record.stack_info))
        return jsonlib.dumps(line)


class _Handler(logging.StreamHandler):  # type: ignore[type-arg]  # generic in the stubs only
    """Writes to stderr. A line that cannot be written is dropped: the standard report would quote its arguments."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the standard library's name
        """Say where the line came from, without its message or arguments."""
        try:
            sys.stderr.write(f"a log line of {record.pathname}:{record.lineno} could not be written\n")
        except (OSError, ValueError):
            return  # stderr is gone; there is nobody left to tell


def configure_logging(level: str = "INFO", json: bool = False) -> None:
    """Send the logs of this process to stderr; calling it again replaces the former set-up.

    Args:
        level: DEBUG, INFO, WARNING or ERROR, in any case. Libraries stay at WARNING or above.
        json: One JSON object a line instead of text.
    Raises:
        ConfigError: `level` is not one of these.
    """
    if level.upper() not in LEVELS:
        raise ConfigError(f"log level: '{level}' is not one of: {', '.join(LEVELS)}")
    handler = _Handler()
    handler.setFormatter(_JsonFormatter() if json else _TextFormatter())
    root = logging.getLogger()
    for former in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(former)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
