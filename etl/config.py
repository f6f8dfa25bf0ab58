"""Settings: command line over environment over file over default, checked all at once.

`load_config` returns a frozen `Config` or raises one `ConfigError` with a line for every mistake. Secrets are read
here, handed to `etl.logs.register_secret`, and appear in no `repr`, message or dump.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from etl.errors import ConfigError
from etl.filters import validate_filter
from etl.logs import redact, register_secret
from etl.yamlfile import read_mapping

CONFIG_FILE = "config.yaml"
DEFAULT_BASE_URL = "https://cloud.langfuse.com/api/public"
STREAMS = ("traces", "observations", "scores", "sessions")

PREFIX = "LANGFUSE_ETL_"
BASE_URL, HOST = "LANGFUSE_BASE_URL", "LANGFUSE_HOST"
PUBLIC_KEY, SECRET_KEY = "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"  # noqa: S105 - names, not secrets
DATABASE_URL = "LANGFUSE_ETL_DATABASE_URL"

NO_PROJECT = (
    f"no Langfuse project is configured: set {BASE_URL}, {PUBLIC_KEY} and {SECRET_KEY} "
    f"(in Langfuse: Settings, API Keys), or list projects in {CONFIG_FILE}; "
    "`langfuse-etl demo` needs no account"
)

# --- Values: text to what it means. Each raises ValueError with a plain sentence that does not name the setting. ---

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(f"(?:([0-9]{{1,9}}){unit})?" for unit in _UNITS))


def parse_duration(text: str) -> timedelta:
    """`90s`, `45m`, `6h`, `2d` or a falling sequence of them such as `1h30m`, in whole seconds.

    Raises:
        ValueError: It is not a duration. Zero is one; ranges are up to the caller.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match or not any(match.groups()):
        if re.fullmatch(r"-?[0-9.]+", text.strip()):
            raise ValueError(f"{text.strip()} has no unit; write {text.strip()}s for seconds, or m, h or d")
        raise ValueError(f"{_shown(text)} is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d")
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
        raise ValueError(f"{_shown(text)} is not a time; write one such as 2025-01-01T00:00:00Z") from None
    if time.tzinfo is None:
        fix = time.isoformat(timespec="seconds")
        raise ValueError(f"{_shown(text)} has no time zone; write {fix}Z for UTC, or end it with +02:00 or the like")
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
        raise ValueError(f"{_shown(text)} holds a space, a backslash or a control character")
    scheme = text.partition("://")[0].lower() if "://" in text else ""
    if scheme not in ("http", "https"):
        hint = f"https://{text}" if text and not scheme else "https://cloud.langfuse.com"
        raise ValueError(f"{_shown(text)} does not begin with https:// or http://; write one such as {hint}")
    if "?" in text or "#" in text:
        raise ValueError(f"{_shown(text)} holds a query or a fragment; write the address up to the ? or #")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(f"{_shown(text)} is not an address; write one such as https://cloud.langfuse.com") from None
    if not host:
        raise ValueError(f"{_shown(text)} names no host; write one such as https://cloud.langfuse.com")
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
            urlsplit(text).port  # noqa: B018 - reading it is the check
        except ValueError:
            raise ValueError(
                "not a valid address; in user name and password write @ : / ? # % as %40 %3A %2F %3F %23 %25"
            ) from None
        return f"postgresql+psycopg://{rest}"
    raise ValueError(
        "not a database that is supported; write sqlite:///file.db, or postgresql://user:password@host:5432/name "
        "(also postgres:// and postgresql+psycopg://)"
    )


def _shown(value: object) -> str:
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


def _text(value: object) -> str:
    if isinstance(value, str) and value.strip() and value.isprintable():
        return value.strip()
    if isinstance(value, str):
        raise ValueError("must be text that can be read, and not empty")
    raise ValueError(f"must be text, not {_shown(value)}; put it in quotes if it is meant")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return parse_duration(str(value))
    raise ValueError(f"{_shown(value)} is not a duration; write a number and a unit such as 90s, 45m, 6h, 2d")


def _time(value: object) -> datetime | None:
    if value is None or isinstance(value, str) and value.strip() in ("null", "~"):
        return None
    if isinstance(value, datetime) and value.tzinfo:
        return _utc_ms(value)
    if isinstance(value, (str, datetime)):
        return parse_time(str(value))
    raise ValueError(f"{_shown(value)} is not a time; write one such as 2025-01-01T00:00:00Z")


def _integer(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9]{1,18}", value.strip()):
        return int(value)
    raise ValueError(f"{_shown(value)} is not a whole number")


def _count_or_null(value: object) -> int | None:
    return None if value is None or value in ("null", "~") else _integer(value)


def _share(value: object) -> float:
    try:
        share = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        share = 0.0
    if not 0 < share <= 1:
        raise ValueError(f"{_shown(value)} is not a share; write a number above 0 and at most 1, such as 0.5")
    return share


def _list(value: object) -> list[object]:
    """A list, or text with commas (the form for the environment: `45m,6h` or `[45m, 6h]`)."""
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return [part.strip().strip("'\"") for part in value.strip().removeprefix("[").removesuffix("]").split(",")]
    raise ValueError(f"must be a list, not {_shown(value)}")


def _section(value: object) -> object:
    """A section; one that is left empty (`sync:` with nothing below) has its defaults."""
    if value is None:
        return {}
    if isinstance(value, (Mapping, BaseModel)):
        return value
    raise ValueError(f"must be a mapping of settings, not {_shown(value)}")


def _one_of(*allowed: str) -> BeforeValidator:
    def check(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise ValueError(f"{_shown(value)} is not known{_near(value, allowed)}; allowed: {', '.join(allowed)}")

    return BeforeValidator(check)


def _between(low: str, high: str) -> AfterValidator:
    def check(value: timedelta) -> timedelta:
        if parse_duration(low) <= value <= parse_duration(high):
            return value
        shown = format_duration(value) if value >= timedelta(0) else "a negative duration"
        raise ValueError(f"{shown} is out of range; allowed: {low} to {high}")

    return AfterValidator(check)


def _from_to(low: int, high: int) -> AfterValidator:
    def check(value: int | None) -> int | None:
        if value is None or low <= value <= high:
            return value
        raise ValueError(f"{value} is out of range; allowed: {low} to {high}")

    return AfterValidator(check)


def _rising(tiers: tuple[timedelta, ...]) -> tuple[timedelta, ...]:
    if not tiers:
        raise ValueError("is empty; write at least one duration, such as [45m, 6h, 2d, 14d]")
    for one, following in zip(tiers, tiers[1:], strict=False):
        if one >= following:
            raise ValueError(f"must rise: {format_duration(one)} stands before {format_duration(following)}")
    return tiers


def _streams(streams: tuple[str, ...]) -> tuple[str, ...]:
    if not streams:
        raise ValueError(f"is empty; name at least one of: {', '.join(STREAMS)}")
    twice = sorted({one for one in streams if streams.count(one) > 1})
    if twice:
        raise ValueError(f"names {', '.join(twice)} twice")
    return streams


def _environment_name(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        return value
    raise ValueError(  # not quoted: people put the key itself here
        f"must be the name of an environment variable, such as {SECRET_KEY}, not the key itself"
    )


def _identifier(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", value):
        return value
    raise ValueError(f"{_shown(value)} is not a schema name; use letters, digits and _, at most 63, no digit first")


def _address(value: object) -> str:
    """`host:port`, checked; IPv6 in brackets."""
    text = _text(value)
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
            f"{_shown(text)} is not an address to listen on; write host:port such as 127.0.0.1:9464, "
            "or 0.0.0.0:9464 for all networks"
        ) from None
    return text


def _directory(value: object) -> Path:
    return value if isinstance(value, Path) else Path(_text(value))


_TEXT_FILTERS = ("name", "userId", "sessionId", "version", "release")
_LIST_FILTERS = ("environment", "tags")
FILTERS = ("environment", "name", "userId", "sessionId", "tags", "version", "release", "filter")
_ENGINE_SET = ("fields", "fromTimestamp", "toTimestamp", "limit", "orderBy", "page")


class _Several(ValueError):
    """Several mistakes below one setting; each line begins with the rest of the setting's path."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("; ".join(lines))


def _filters(value: object) -> dict[str, Any]:
    """Filters of the traces API; `environment` and `tags` always as lists."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"must be a mapping such as {{environment: [production]}}, not {_shown(value)}")
    lines: list[str] = []
    found: dict[str, Any] = {}
    for name, given in value.items():
        if name in _ENGINE_SET:
            lines.append(f".{name}: is set by the engine itself; allowed: {', '.join(FILTERS)}")
        elif name not in FILTERS:
            lines.append(f".{name}: unknown filter{_near(name, FILTERS)}; allowed: {', '.join(FILTERS)}")
        elif name == "filter":
            lines += [f".filter{line}" for line in validate_filter(given)]
            found[name] = given
        elif name in _LIST_FILTERS:
            found[name] = [given] if isinstance(given, str) else given
            if not isinstance(found[name], list) or not found[name]:
                lines.append(f".{name}: must be a list of texts such as [production], not {_shown(given)}")
            elif not all(isinstance(one, str) and one for one in found[name]):
                lines.append(f".{name}: must hold texts only, and none of them empty (put numbers in quotes)")
        else:
            found[name] = given
            if not isinstance(given, str):
                lines.append(f".{name}: must be text, not {_shown(given)}; put it in quotes if it is meant")
    if not lines:
        # Langfuse drops a simple parameter if a condition names its column.
        lines = [
            f".{column}: is ignored by Langfuse because .filter[{index}] is about the same column; keep one of them"
            for index, condition in enumerate(found.get("filter", ()))
            if (column := condition["column"]) in found
        ]
    if lines:
        raise _Several(lines)
    return found


def _near(value: object, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(value, list(names), n=1, cutoff=0.6) if isinstance(value, str) else []
    return f", did you mean {near[0]}?" if near else ""


def _valid(check: Callable[[str], str]) -> BeforeValidator:
    """A check of text as a validator."""
    return BeforeValidator(lambda value: check(_text(value)))


# --- The settings ---


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Project(_Model):
    """One Langfuse project to copy, with its keys."""

    name: Annotated[str, BeforeValidator(_text)]
    """How commands and logs call it; unique."""
    base_url: Annotated[str, _valid(normalise_base_url)] = DEFAULT_BASE_URL
    """The API root, `https://host[/base]/api/public`."""
    public_key_env: Annotated[str, BeforeValidator(_environment_name)] = PUBLIC_KEY
    secret_key_env: Annotated[str, BeforeValidator(_environment_name)] = SECRET_KEY
    api: Annotated[Literal["auto", "traces", "observations"], _one_of("auto", "traces", "observations")] = "auto"
    start: Annotated[datetime | None, BeforeValidator(_time)] = None
    """UTC, whole milliseconds; None: everything the server shows."""
    streams: Annotated[
        tuple[Annotated[Literal["traces", "observations", "scores", "sessions"], _one_of(*STREAMS)], ...],
        BeforeValidator(_list),
        AfterValidator(_streams),
    ] = ("traces", "observations", "scores", "sessions")
    filters: Annotated[dict[str, Any], BeforeValidator(_filters)] = Field(default_factory=dict)
    """Parameters of the traces API; `environment`, `tags` and `filter` are lists, the others text."""
    content: Annotated[Literal["full", "none"], _one_of("full", "none")] = "full"
    public_key: str = Field(default="", repr=False)
    """Empty if the keys are not known, which only `load_config(require_projects=False)` allows."""
    secret_key: SecretStr = Field(default=SecretStr(""), repr=False)

    @property
    def has_keys(self) -> bool:
        """Both keys are known."""
        return bool(self.public_key and self.secret_key.get_secret_value())


class Database(_Model):
    """Where rows are kept."""

    url: Annotated[str, _valid(normalise_database_url)] = Field(default="sqlite:///langfuse.db", repr=False)
    """As SQLAlchemy takes it. May hold a password: show `safe_url` instead."""
    schema_: Annotated[str, BeforeValidator(_identifier)] = Field(default="public", alias="schema")
    """Postgres only. In the file it is called `schema`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @property
    def safe_url(self) -> str:
        """The address without user name and password, and without parameters."""
        return re.sub(r"://[^/]*@", "://***@", self.url.partition("?")[0])

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "url", self.safe_url
        yield "schema", self.schema_


class Sync(_Model):
    """When and how far back to read."""

    every: Annotated[timedelta, BeforeValidator(_duration), _between("1s", "1d")] = timedelta(minutes=5)
    lag: Annotated[timedelta, BeforeValidator(_duration), _between("0s", "1d")] = timedelta(minutes=2)
    lookback: Annotated[
        tuple[Annotated[timedelta, BeforeValidator(_duration), _between("1m", "3650d")], ...],
        BeforeValidator(_list),
        AfterValidator(_rising),
    ] = (timedelta(minutes=45), timedelta(hours=6), timedelta(days=2), timedelta(days=14))
    """Spans of the tiers, rising."""
    deletes: Annotated[Literal["mark", "ignore"], _one_of("mark", "ignore")] = "mark"


class Http(_Model):
    """How to talk to Langfuse."""

    timeout: Annotated[timedelta, BeforeValidator(_duration), _between("1s", "10m")] = timedelta(seconds=60)
    """For one answer."""
    concurrency: Annotated[int, BeforeValidator(_integer), _from_to(1, 64)] = 4
    """Requests in flight."""
    share: Annotated[float, BeforeValidator(_share)] = 0.5
    """Of the organisation's rate limit, above 0 and at most 1."""
    requests_per_minute: Annotated[int | None, BeforeValidator(_count_or_null), _from_to(1, 1_000_000)] = None
    """The limit itself; None: learned from Langfuse."""
    give_up_after: Annotated[timedelta, BeforeValidator(_duration), _between("1s", "1d")] = timedelta(minutes=15)
    """Longest time spent on one request with all its retries."""


class Export(_Model):
    """Session files."""

    directory: Annotated[Path, BeforeValidator(_directory)] = Path("result")
    """Absolute after `load_config`."""
    name_by: Annotated[str, BeforeValidator(_text)] = "metadata.message_id"
    """Path in the trace whose value names its file."""


class Service(_Model):
    """The background service."""

    listen: Annotated[str, BeforeValidator(_address)] = "127.0.0.1:9464"
    """`host:port` for health and metrics; port 0: any free one."""
    ready_lag: Annotated[timedelta, BeforeValidator(_duration), _between("1s", "365d")] = timedelta(minutes=30)
    """Not ready when the live edge is further behind than this."""

    @property
    def address(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Config(_Model):
    """Everything a command needs to know. Paths are absolute."""

    projects: tuple[Project, ...] = ()
    database: Database = Database()
    sync: Sync = Sync()
    http: Http = Http()
    export: Export = Export()
    service: Service = Service()


# --- Loading ---

_Loc = tuple[str | int, ...]

_SECTIONS: dict[str, type[_Model]] = {
    "database": Database,
    "sync": Sync,
    "http": Http,
    "export": Export,
    "service": Service,
}


def _names(model: type[_Model]) -> list[str]:
    """The names of a section's settings, as users write them."""
    return [field.alias or name for name, field in model.model_fields.items()]


_PROJECT_SETTINGS = [name for name in _names(Project) if name not in ("public_key", "secret_key")]
_SETTINGS = [f"{section}.{name}" for section, model in _SECTIONS.items() for name in _names(model)]


def _variable(setting: str) -> str:
    """`sync.every` -> `LANGFUSE_ETL_SYNC__EVERY`."""
    return PREFIX + setting.upper().replace(".", "__")


# Keep in step with docs/configuration.md, which a test compares.
VARIABLES = (DATABASE_URL, f"{DATABASE_URL}_FILE", *(_variable(setting) for setting in _SETTINGS))


class _Settings(BaseSettings):
    """The sections as the sources give them; `projects` is judged entry by entry, later."""

    projects: Any = None
    database: Annotated[Database, BeforeValidator(_section)] = Database()
    sync: Annotated[Sync, BeforeValidator(_section)] = Sync()
    http: Annotated[Http, BeforeValidator(_section)] = Http()
    export: Annotated[Export, BeforeValidator(_section)] = Export()
    service: Annotated[Service, BeforeValidator(_section)] = Service()

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        enable_decoding=False,  # values of the environment are read by the same rules as those of the file
    )


class _File(YamlConfigSettingsSource):
    """The settings file, read strictly. Without a file: no values."""

    problems: list[str]

    def __init__(self, path: Path | None) -> None:
        self.problems = []
        super().__init__(_Settings, yaml_file=path)

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        values, self.problems = read_mapping(Path(file_path))
        return values


def load_config(
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    *,
    overrides: Mapping[str, Any] | None = None,
    require_projects: bool = True,
) -> Config:
    """Read, check and merge all settings.

    Args:
        path: The settings file; None: `config.yaml` in the current folder if there is one. Relative paths in the
            file, and the defaults of paths it leaves out, are relative to its folder; those of the environment and
            of the command line to the current folder.
        environ: The environment; blank values count as not set.
        overrides: Values from the command line, by dotted name (`export.directory`); None values are skipped.
        require_projects: False for commands that need the database only: then keys may be missing and nothing
            about keys is a mistake; `projects` may be empty, and `Project.has_keys` false.
    Raises:
        ConfigError: `problems` holds a line for every mistake found.
    """
    environ = {name: value for name, value in environ.items() if value.strip()}
    overrides = {name: value for name, value in (overrides or {}).items() if value is not None}
    if path is not None and not path.is_file():
        raise ConfigError(f"{path}: no such settings file")
    if path is None and Path(CONFIG_FILE).is_file():
        path = Path(CONFIG_FILE)

    file = _File(path)
    entries, entry_problems = _entries(file.yaml_data.get("projects"))
    environment, environment_problems = _read_environment(environ, entries)
    settings, setting_problems = _read_settings(file, environment, overrides)
    projects, project_problems = _read_projects(entries, environ, require_keys=require_projects)
    problems = file.problems + entry_problems + environment_problems + setting_problems + project_problems
    if require_projects and not entries and not projects and not entry_problems and not project_problems:
        problems.append(NO_PROJECT)
    if problems or settings is None:
        raise ConfigError([redact(problem) for problem in problems])

    def folder_of(setting: str) -> Path:
        here = setting in environment or setting in overrides or path is None
        return Path.cwd() if here else path.absolute().parent

    url = _anchored_url(settings.database.url, folder_of("database.url"))
    _register_password(url)
    return Config(
        projects=projects,
        database=settings.database.model_copy(update={"url": url}),
        sync=settings.sync,
        http=settings.http,
        export=settings.export.model_copy(
            update={"directory": folder_of("export.directory") / settings.export.directory}
        ),
        service=settings.service,
    )


def describe(config: Config) -> dict[str, Any]:
    """The settings as plain JSON values, named and spelled as in the file, without a secret."""
    dump: dict[str, Any] = {
        "projects": [
            {
                **{name: _plain(getattr(project, name)) for name in _PROJECT_SETTINGS},
                "keys": "set" if project.has_keys else "missing",
            }
            for project in config.projects
        ]
    }
    for section, model in _SECTIONS.items():
        values = getattr(config, section)
        dump[section] = {
            field.alias or name: _plain(getattr(values, name)) for name, field in model.model_fields.items()
        }
    dump["database"]["url"] = config.database.safe_url
    return dump


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _entries(value: object) -> tuple[list[dict[str, Any]], list[str]]:
    """The entries of `projects:` that are mappings, and what is wrong with the others."""
    if value is None:
        return [], []
    if not isinstance(value, list):
        return [], [f"projects: must be a list, each entry beginning with '- name: …', not {_shown(value)}"]
    problems = [
        f"projects[{index}]: must be a mapping beginning with 'name: …', not {_shown(entry)}"
        for index, entry in enumerate(value)
        if not isinstance(entry, dict)
    ]
    return [entry for entry in value if isinstance(entry, dict)], problems


def _read_environment(environ: Mapping[str, str], entries: list[dict[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """Settings given by `LANGFUSE_ETL_*`, by dotted name; and a line for each variable nobody knows."""
    found = {setting: environ[_variable(setting)] for setting in _SETTINGS if _variable(setting) in environ}
    url, problems = _secret(environ, DATABASE_URL)
    if url:
        if "database.url" in found:
            problems.append(f"{DATABASE_URL} and {_variable('database.url')} are both set; keep one")
        found["database.url"] = url
    named = {entry.get(key) for entry in entries for key in ("public_key_env", "secret_key_env")}
    problems += [
        f"{name}: unknown setting{_near(name, VARIABLES)}; known variables: {', '.join(VARIABLES)}"
        for name in environ
        if name.startswith(PREFIX)
        and name not in VARIABLES
        and name not in named
        and name.removesuffix("_FILE") not in named
    ]
    return found, problems


def _read_settings(
    file: _File, environment: Mapping[str, str], overrides: Mapping[str, Any]
) -> tuple[_Settings | None, list[str]]:
    """Every section, merged from all sources; None beside at least one problem."""
    variables = EnvSettingsSource(_Settings)
    variables.env_vars = {_variable(setting).lower(): value for setting, value in environment.items()}

    class Layered(_Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, **_others: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, variables, file

    command_line: dict[str, Any] = {}
    for setting, value in overrides.items():
        section, _, name = setting.partition(".")
        command_line.setdefault(section, {})[name] = value

    def place(loc: _Loc) -> str:
        setting = ".".join(str(part) for part in loc[:2])
        if setting in overrides:
            label = f"{setting} (command line)"
        elif setting == "database.url" and setting in environment:
            label = DATABASE_URL
        else:
            label = _variable(setting) if setting in environment else setting
        return label + "".join(f"[{part}]" for part in loc[2:])

    def siblings(loc: _Loc) -> dict[str, str]:
        if len(loc) == 1:
            return {name: name for name in ("projects", *_SECTIONS)}
        return {name: f"{loc[0]}.{name}" for name in _names(_SECTIONS[str(loc[0])])}

    try:
        return Layered(**command_line), []
    except ValidationError as error:
        return None, _lines(error, place, siblings)


def _lines(
    error: ValidationError, place: Callable[[_Loc], str], siblings: Callable[[_Loc], Mapping[str, str]]
) -> list[str]:
    """One sentence for each mistake that pydantic found, in our words.

    Args:
        place: A location as users know it.
        siblings: For an unknown setting, the names allowed in its place, each with its full path.
    """
    lines: list[str] = []
    for one in error.errors(include_url=False, include_input=False):
        loc, cause = one["loc"], one.get("ctx", {}).get("error")
        if isinstance(cause, _Several):
            lines += [place(loc) + line for line in cause.lines]
        elif one["type"] == "extra_forbidden":
            lines.append(f"{place(loc)}: {_unknown(str(loc[-1]), siblings(loc))}")
        elif one["type"] == "missing":
            lines.append(f"{place(loc)}: is missing")
        else:
            lines.append(f"{place(loc)}: {cause or 'is not valid'}")
    return lines


def _unknown(name: str, siblings: Mapping[str, str]) -> str:
    """`unknown setting; did you mean http.timeout? Allowed: …`"""
    elsewhere = {setting.partition(".")[2]: setting for setting in _SETTINGS}
    near = difflib.get_close_matches(name, siblings, n=1) or difflib.get_close_matches(name, elsewhere, n=1)
    hint = f" did you mean {siblings.get(near[0]) or elsewhere[near[0]]}?" if near else ""
    return f"unknown setting;{hint} allowed: {', '.join(siblings)}"


def _read_projects(
    entries: list[dict[str, Any]], environ: Mapping[str, str], *, require_keys: bool
) -> tuple[tuple[Project, ...], list[str]]:
    """The projects with their keys. Without entries the plain variables, if one is set, are the one project."""
    plain = [name for name in (BASE_URL, HOST, *_with_file(PUBLIC_KEY), *_with_file(SECRET_KEY)) if name in environ]
    base_url, problems = _base_url(environ)
    if not entries and plain:
        entries = [{"name": "default"}]
    key_problems: list[str] = []
    if len(entries) > 1:
        problems += _stray_base_url(entries, environ)
        key_problems += _stray_keys(entries, environ)
    projects: list[Project] = []
    names: dict[object, int] = {}
    for index, entry in enumerate(entries):
        place = f"projects[{index}]"
        values = {name: value for name, value in entry.items() if name not in ("public_key", "secret_key")}
        problems += [
            f"{place}.{name}: a key must not stand in the file; put it into an environment variable and write "
            f"{name}_env: THE_VARIABLE (or nothing, for {variable})"
            for name, variable in (("public_key", PUBLIC_KEY), ("secret_key", SECRET_KEY))
            if name in entry
        ]
        if entry.get("base_url") is None or (len(entries) == 1 and base_url and _uses_plain_keys(entry)):
            values["base_url"] = base_url or DEFAULT_BASE_URL
        public_key, secret_key, wrong = _keys(entry, environ, several=len(entries) > 1)
        key_problems += wrong
        try:
            project = Project.model_validate({**values, "public_key": public_key, "secret_key": SecretStr(secret_key)})
        except ValidationError as error:
            problems += _lines(
                error,
                lambda loc, place=place: place + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in loc),
                lambda _loc, place=place: {name: f"{place}.{name}" for name in _PROJECT_SETTINGS},
            )
            continue
        if project.name in names:
            problems.append(f"{place}.name: '{project.name}' is the name of projects[{names[project.name]}] already")
        names.setdefault(project.name, index)
        projects.append(project)
    return tuple(projects), problems + (key_problems if require_keys else [])


def _with_file(variable: str) -> tuple[str, str]:
    return variable, f"{variable}_FILE"


def _uses_plain_keys(entry: Mapping[str, Any]) -> bool:
    return (
        entry.get("public_key_env", PUBLIC_KEY) == PUBLIC_KEY and entry.get("secret_key_env", SECRET_KEY) == SECRET_KEY
    )


def _base_url(environ: Mapping[str, str]) -> tuple[str | None, list[str]]:
    """The API root that the environment names, if it does."""
    found: dict[str, str] = {}
    problems: list[str] = []
    for name in (BASE_URL, HOST):
        if name in environ:
            try:
                found[name] = normalise_base_url(environ[name])
            except ValueError as error:
                problems.append(f"{name}: {error}")
    if len(set(found.values())) > 1:
        problems.append(f"{BASE_URL} and {HOST} are both set and differ; keep one")
    return next(iter(found.values()), None), problems


def _stray_base_url(entries: list[dict[str, Any]], environ: Mapping[str, str]) -> list[str]:
    """With several projects, an address in the environment that no entry takes."""
    return [
        f"{name} is set, but there are several projects and each has its own base_url; unset it"
        for name in (BASE_URL, HOST)
        if name in environ and all(entry.get("base_url") is not None for entry in entries)
    ]


def _stray_keys(entries: list[dict[str, Any]], environ: Mapping[str, str]) -> list[str]:
    """With several projects, keys in the environment that no entry names, and entries that name no keys."""
    problems: list[str] = []
    for setting, variable in (("public_key_env", PUBLIC_KEY), ("secret_key_env", SECRET_KEY)):
        problems += [
            f"projects[{index}].{setting}: is missing; with several projects each names its own variable, "
            f"such as {variable}_{index + 1}"
            for index, entry in enumerate(entries)
            if setting not in entry
        ]
        problems += [
            f"{name} is set, but there are several projects and none names it; write {setting}: {variable} "
            "in the entry it belongs to, or unset it"
            for name in _with_file(variable)
            if name in environ and not any(entry.get(setting) == variable for entry in entries)
        ]
    return problems


def _keys(entry: Mapping[str, Any], environ: Mapping[str, str], *, several: bool) -> tuple[str, str, list[str]]:
    """Public and secret key of an entry, empty where they are not known, and what is wrong with them."""
    names = [
        entry.get("public_key_env", None if several else PUBLIC_KEY),
        entry.get("secret_key_env", None if several else SECRET_KEY),
    ]
    try:
        variables = [_environment_name(name) for name in names]
    except ValueError:
        return "", "", []  # said where the entry is checked
    problems: list[str] = []
    keys: list[str] = []
    for variable in variables:
        key, wrong = _secret(environ, variable)
        problems += wrong
        keys.append(key)
    public_key, secret_key = keys
    missing = [variable for variable, key in zip(variables, keys, strict=True) if not key]
    if problems or not missing:
        swapped = _swapped(variables, public_key, secret_key)
        return public_key, secret_key, problems + swapped
    if len(missing) == 1:
        other = next(variable for variable in variables if variable not in missing)
        return public_key, secret_key, [f"{missing[0]} is not set, but {other} is; both keys of a project are needed"]
    if _uses_plain_keys(entry) and not any(name in environ for name in (BASE_URL, HOST)):
        return "", "", [NO_PROJECT]
    text = f"project '{entry.get('name')}': {' and '.join(missing)} are not set; set both to the project's keys"
    return "", "", [f"{text} (`langfuse-etl demo` needs no account)"]


def _swapped(variables: list[str], public_key: str, secret_key: str) -> list[str]:
    public_is_secret, secret_is_public = public_key.startswith("sk-lf-"), secret_key.startswith("pk-lf-")
    if public_is_secret and secret_is_public:
        return [f"{variables[0]} holds a secret key and {variables[1]} a public one: the two are swapped"]
    if public_is_secret:
        return [f"{variables[0]} holds a secret key; put the public one there, it begins with pk-lf-"]
    if secret_is_public:
        return [f"{variables[1]} holds a public key; put the secret one there, it begins with sk-lf-"]
    return []


def _secret(environ: Mapping[str, str], variable: str) -> tuple[str, list[str]]:
    """A secret from `VARIABLE`, or from the file that `VARIABLE_FILE` names; empty if neither is set.

    Whatever is found is registered with the log first, so that no message can hold it.
    """
    file_variable = f"{variable}_FILE"
    if variable in environ and file_variable in environ:
        return "", [f"{variable} and {file_variable} are both set; keep one"]
    if file_variable in environ:
        path = Path(environ[file_variable].strip())
        try:
            value, source = path.read_text("utf-8-sig").strip(), f"{file_variable}: {path}"
        except OSError as error:
            return "", [f"{file_variable}: {path} cannot be read: {error.strerror or type(error).__name__}"]
        except ValueError:
            return "", [f"{file_variable}: {path} is not text in UTF-8"]
        if not value:
            return "", [f"{file_variable}: {path} is empty"]
    else:
        value, source = environ.get(variable, "").strip(), variable
    if not value:
        return "", []
    if variable != DATABASE_URL:
        register_secret(value)
    if value[0] in "'\"" and value[-1] == value[0]:
        return "", [f"{source}: the quotes are part of the value; write it without them"]
    if not value.isascii() or any(char.isspace() or not char.isprintable() for char in value):
        return "", [f"{source}: holds spaces, line breaks or characters that a key never has; copy it again"]
    return value, []


def _anchored_url(url: str, folder: Path) -> str:
    """The database address with a relative SQLite path made absolute."""
    prefix, path = url[: len("sqlite:///")], url[len("sqlite:///") :]
    if prefix != "sqlite:///" or path.startswith("/") or re.match(r"[A-Za-z]:[/\\]", path):
        return url
    return f"sqlite:///{quote(folder.as_posix(), safe='/:')}/{path}"  # SQLAlchemy decodes the path


def _register_password(url: str) -> None:
    """Hide the password of a database address, unless it is as public as the user or database name."""
    parts = urlsplit(url)
    in_query = parse_qs(parts.query).get("password", [])
    for password in filter(None, [parts.password, *in_query]):
        if unquote(password) not in (parts.username, parts.path.strip("/"), parts.hostname):
            register_secret(password)
            register_secret(unquote(password))
