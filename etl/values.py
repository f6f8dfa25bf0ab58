"""Texts and numbers of the settings, and what they mean.

Pure. A reader takes whatever stands in the file, the environment or the command line, and raises ValueError with a
plain sentence that says what is wrong and what is allowed, without naming the setting; `etl.config` puts it in front.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator


class SeveralError(ValueError):
    """Several mistakes below one setting; each line begins with the rest of the setting's path."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("; ".join(lines))


_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(f"(?:([0-9]{{1,6}}){unit})?" for unit in _UNITS))


def parse_duration(text: str) -> timedelta:
    """`90s`, `45m`, `6h`, `2d` or a falling sequence of them such as `1h30m`, in whole seconds.

    Raises:
        ValueError: It is not a duration. Zero is one; ranges are up to the caller.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        if re.fullmatch(r"[0-9]+", text.strip()):
            raise ValueError(f"{shown(text.strip())} has no unit; write a unit after it, such as {text.strip()}s or 5m")
        raise ValueError(f"{shown(text)} is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d")
    return timedelta(seconds=sum(int(n or 0) * size for n, size in zip(match.groups(), _UNITS.values(), strict=True)))


def format_duration(duration: timedelta) -> str:
    """The shortest text that `parse_duration` reads as this duration of whole seconds, 0 or more."""
    rest = int(duration.total_seconds())
    parts = []
    for unit, size in _UNITS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def parse_time(text: str) -> datetime:
    """An ISO 8601 time with a zone, as aware UTC in whole milliseconds (the rest is cut off).

    Raises:
        ValueError: It is not a time, or it does not say its zone.
    """
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{shown(text)} is not a time; write one such as 2025-01-01T00:00:00Z") from None
    if time.tzinfo is None:
        fix = time.isoformat(timespec="seconds")
        raise ValueError(f"{shown(text)} has no time zone; write {fix}Z for UTC, or end it with +02:00 or the like")
    return _utc_ms(time)


def normalise_base_url(text: str) -> str:
    """The API root of a Langfuse server: `https://host[/base]/api/public`, without a slash at the end.

    Takes every usual form: with or without slashes at the end, with or without `/api/public`.

    Raises:
        ValueError: Not an http(s) address, or one with credentials, a query or a fragment. The text never quotes
            an address that holds credentials.
    """
    text = text.strip()
    if "@" in text:
        raise ValueError("holds credentials; write the address alone, keys come from the environment")
    if any(ord(char) <= 0x20 or ord(char) == 0x7F or char == "\\" for char in text):
        raise ValueError(f"{shown(text)} holds a space, a backslash or a control character; leave it out")
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme not in ("http", "https"):
        hint = f"https://{text}" if text and not scheme else "https://cloud.langfuse.com"
        raise ValueError(f"{shown(text)} does not begin with https:// or http://; write one such as {hint}")
    if "?" in text or "#" in text:
        raise ValueError("holds a query or a fragment; write the address up to the ? or #")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(f"{shown(text)} is not an address; write one such as https://cloud.langfuse.com") from None
    if not host:
        raise ValueError(f"{shown(text)} names no host; write one such as https://cloud.langfuse.com")
    path = re.sub(r"/{2,}", "/", url.path).rstrip("/").removesuffix("/api/public").rstrip("/")
    netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
    return f"{scheme}://{netloc}{path}/api/public"


def normalise_database_url(text: str) -> str:
    """A database address as SQLAlchemy takes it: `sqlite:///path` or `postgresql+psycopg://…`.

    Raises:
        ValueError: Another kind of address. The text never quotes it: it may hold a password.
    """
    text = text.strip()
    scheme, separator, rest = text.partition("://")
    if separator and scheme == "sqlite":
        path = rest.partition("?")[0]
        if path in ("", "/") or ":memory:" in rest or "mode=memory" in rest:
            raise ValueError("a database in memory is lost at the end of the run; name a file: sqlite:///langfuse.db")
        if not path.startswith("/"):
            raise ValueError("sqlite needs three slashes before the path: sqlite:///langfuse.db")
        return text
    if separator and scheme in ("postgresql", "postgres", "postgresql+psycopg"):
        try:
            url = urlsplit(text)
            whole = url.port is None or url.port > 0
        except ValueError:
            whole = False
        if not whole or "@" in url.path + url.query + url.fragment:
            raise ValueError(
                "not a valid address; in user name and password write @ : / ? # % as %40 %3A %2F %3F %23 %25"
            )
        return f"postgresql+psycopg://{rest}"
    raise ValueError(
        "not a database that is supported; write sqlite:///file.db, or postgresql://USER@HOST:5432/NAME "
        "with or without a password (also postgres:// and postgresql+psycopg://)"
    )


def shown(value: object) -> str:
    """A value as it may stand in a message: short, and in the words of the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 60 else f"'{value[:57]}…'"
    if isinstance(value, (int, float)):
        return f"the number {value}" if abs(value) < 1e15 else "a very large number"
    if isinstance(value, (list, tuple)):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else f"a {type(value).__name__}"


def _utc_ms(time: datetime) -> datetime:
    try:
        time = time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is outside the years 1 to 9999") from None
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def read_text(value: object) -> str:
    """Text that is not blank and can be printed, without the space around it."""
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value.strip()
    if isinstance(value, str):
        raise ValueError("must be text that can be read, and not empty")
    raise ValueError(f"must be text, not {shown(value)}; put it in quotes if it is meant")


def read_duration(value: object) -> timedelta:
    """A duration, as `parse_duration` reads it; a number alone is refused."""
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return parse_duration(str(value))
    raise ValueError(f"{shown(value)} is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d")


def read_time(value: object) -> datetime | None:
    """A time, as `parse_time` reads it, or None."""
    if value is None:
        return None
    if isinstance(value, datetime) and value.tzinfo:
        return _utc_ms(value)
    if isinstance(value, (str, datetime)):
        return parse_time(str(value))
    raise ValueError(f"{shown(value)} is not a time; write one such as 2025-01-01T00:00:00Z")


def read_integer(value: object) -> int:
    """A whole number; true and false are none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise ValueError(f"{shown(value)} is not a whole number")


def read_count_or_null(value: object) -> int | None:
    """A whole number, or None for null."""
    return None if value is None or value in ("null", "~") else read_integer(value)


def read_share(value: object) -> float:
    """A number above 0 and at most 1."""
    try:
        share = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{shown(value)} is not a share; write a number above 0 and at most 1, such as 0.5")
    return share


def read_list(value: object) -> list[object]:
    """A list, or text with commas (the form for the environment: `45m,6h` or `[45m, 6h]`)."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return [part.strip().strip("'\"") for part in value.strip().removeprefix("[").removesuffix("]").split(",")]
    raise ValueError(f"must be a list, not {shown(value)}")


def one_of(*allowed: str) -> BeforeValidator:
    """One of these words."""

    def check(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise ValueError(f"{shown(value)} is not known{near(value, allowed)}; allowed: {', '.join(allowed)}")

    return BeforeValidator(check)


def between(low: str, high: str) -> AfterValidator:
    """A duration in this range, both ends included."""

    def check(value: timedelta) -> timedelta:
        if parse_duration(low) <= value <= parse_duration(high):
            return value
        text = format_duration(value) if value >= timedelta(0) else "a negative duration"
        raise ValueError(f"{text} is out of range; allowed: {low} to {high}")

    return AfterValidator(check)


def from_to(low: int, high: int) -> AfterValidator:
    """A number in this range, both ends included, or None."""

    def check(value: int | None) -> int | None:
        if value is None or low <= value <= high:
            return value
        raise ValueError(f"{value} is out of range; allowed: {low} to {high}")

    return AfterValidator(check)


def rising(tiers: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
    """At least one duration, each longer than the one before."""
    if not tiers:
        raise ValueError("is empty; write at least one duration, such as [45m, 6h, 2d, 14d]")
    for one, following in pairwise(tiers):
        if one >= following:
            raise ValueError(f"must rise: {format_duration(one)} stands before {format_duration(following)}")
    return tiers


def each_once(names: tuple[str, ...]) -> tuple[str, ...]:
    """At least one name, and none twice."""
    if not names:
        raise ValueError("is empty; name at least one, or leave the setting out")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice")
    return names


def variable_name(value: object) -> str:
    """The name of an environment variable; never quoted if it is none, because people put the key itself here."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    raise ValueError("must be the name of an environment variable, such as LANGFUSE_SECRET_KEY, not the key itself")


def identifier(value: object) -> str:
    """The name of a Postgres schema."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", value):
        return value
    raise ValueError(f"{shown(value)} is not a schema name; use letters, digits and _, at most 63, no digit first")


def read_address(value: object) -> str:
    """`host:port`, checked; IPv6 in brackets."""
    text = read_text(value)
    host, _, port = text.rpartition(":")
    try:
        if not port.isascii() or not port.isdigit() or int(port) > 65_535:
            raise ValueError
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        elif not re.fullmatch(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?", host):
            raise ValueError
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an address to listen on; write host:port such as 127.0.0.1:9464, "
            "or 0.0.0.0:9464 for all networks"
        ) from None
    return text


def read_directory(value: object) -> Path:
    """A folder, which need not exist."""
    return value if isinstance(value, Path) else Path(read_text(value))


def near(value: object, names: Iterable[str]) -> str:
    """`, did you mean x?` if one of the names is near, else nothing."""
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.6) if isinstance(value, str) else []
    return f", did you mean {near[0]}?" if near else ""


def checked(check: Callable[[str], str]) -> BeforeValidator:
    """A check of text as a validator."""
    return BeforeValidator(lambda value: check(read_text(value)))
