"""What can be set: one frozen model for each section of the settings file, with units, ranges and defaults.

`etl.config.load_config` fills them; values are judged by the readers of `etl.values`. Keep in step with `config.yaml`
and `docs/configuration.md`, which tests compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from etl.filters import read_filters
from etl.values import (
    between,
    checked,
    each_once,
    from_to,
    identifier,
    normalise_base_url,
    normalise_database_url,
    one_of,
    read_address,
    read_count_or_null,
    read_directory,
    read_duration,
    read_integer,
    read_list,
    read_share,
    read_text,
    read_time,
    rising,
    variable_name,
)

DEFAULT_BASE_URL = "https://cloud.langfuse.com/api/public"
PUBLIC_KEY, SECRET_KEY = "LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"


class Section(BaseModel):
    """Base of all of them: frozen, and nothing unknown is let in."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Project(Section):
    """One Langfuse project to copy, with its keys."""

    name: Annotated[str, BeforeValidator(read_text)]
    """How commands and logs call it; unique."""
    base_url: Annotated[str, checked(normalise_base_url)] = DEFAULT_BASE_URL
    """The API root, `https://host[/base]/api/public`."""
    public_key_env: Annotated[str, BeforeValidator(variable_name)] = PUBLIC_KEY
    secret_key_env: Annotated[str, BeforeValidator(variable_name)] = SECRET_KEY
    """Names of the environment variables that hold the keys; with `_FILE` appended, of files that do."""
    api: Annotated[Literal["auto", "traces", "observations"], one_of("auto", "traces", "observations")] = "auto"
    start: Annotated[datetime | None, BeforeValidator(read_time)] = None
    """UTC, whole milliseconds; None: everything the server shows."""
    streams: Annotated[
        tuple[
            Annotated[
                Literal["traces", "observations", "scores", "sessions"],
                one_of("traces", "observations", "scores", "sessions"),
            ],
            ...,
        ],
        BeforeValidator(read_list),
        AfterValidator(each_once),
    ] = ("traces", "observations", "scores", "sessions")
    filters: Annotated[dict[str, Any], BeforeValidator(read_filters)] = Field(default_factory=dict)
    """Parameters of the traces API; `environment`, `tags` and `filter` are lists, the others text."""
    content: Annotated[Literal["full", "none"], one_of("full", "none")] = "full"
    public_key: str = Field(default="", repr=False)
    """Empty if the keys are not known, which only `load_config(require_projects=False)` allows."""
    secret_key: SecretStr = Field(default=SecretStr(""), repr=False)

    @property
    def has_keys(self) -> bool:
        """Both keys are known."""
        return bool(self.public_key and self.secret_key.get_secret_value())


STREAMS: tuple[str, ...] = Project.model_fields["streams"].default
"""All streams, in the order in which they are shown."""


class Database(Section):
    """Where rows are kept."""

    url: Annotated[str, checked(normalise_database_url)] = Field(default="sqlite:///langfuse.db", repr=False)
    """As SQLAlchemy takes it. May hold a password: show `safe_url` instead."""
    schema_: Annotated[str, BeforeValidator(identifier)] = Field(default="public", alias="schema")
    """Postgres only. In the file it is called `schema`."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    @property
    def safe_url(self) -> str:
        """The address without user name and password, and without parameters."""
        return re.sub(r"(?<=postgresql\+psycopg://).*@", "***@", self.url).partition("?")[0]

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        yield "url", self.safe_url
        yield "schema", self.schema_


class Sync(Section):
    """When and how far back to read."""

    every: Annotated[timedelta, BeforeValidator(read_duration), between("1s", "1d")] = timedelta(minutes=5)
    lag: Annotated[timedelta, BeforeValidator(read_duration), between("0s", "1d")] = timedelta(minutes=2)
    lookback: Annotated[
        tuple[Annotated[timedelta, BeforeValidator(read_duration), between("1m", "3650d")], ...],
        BeforeValidator(read_list),
        AfterValidator(rising),
    ] = (timedelta(minutes=45), timedelta(hours=6), timedelta(days=2), timedelta(days=14))
    """Spans of the tiers, rising."""
    deletes: Annotated[Literal["mark", "ignore"], one_of("mark", "ignore")] = "mark"


class Http(Section):
    """How to talk to Langfuse."""

    timeout: Annotated[timedelta, BeforeValidator(read_duration), between("1s", "10m")] = timedelta(seconds=60)
    """For one answer."""
    concurrency: Annotated[int, BeforeValidator(read_integer), from_to(1, 64)] = 4
    """Requests in flight."""
    share: Annotated[float, BeforeValidator(read_share)] = 0.5
    """Of the organisation's rate limit, above 0 and at most 1."""
    requests_per_minute: Annotated[int | None, BeforeValidator(read_count_or_null), from_to(1, 1_000_000)] = None
    """The limit itself; None: learned from Langfuse."""
    give_up_after: Annotated[timedelta, BeforeValidator(read_duration), between("1s", "1d")] = timedelta(minutes=15)
    """Longest time spent on one request with all its retries."""


class Export(Section):
    """Session files."""

    directory: Annotated[Path, BeforeValidator(read_directory)] = Path("result")
    """Absolute after `load_config`."""
    name_by: Annotated[str, BeforeValidator(read_text)] = "metadata.message_id"
    """Path in the trace whose value names its file."""


class Service(Section):
    """The background service."""

    listen: Annotated[str, BeforeValidator(read_address)] = "127.0.0.1:9464"
    """`host:port` for health and metrics; port 0: any free one."""
    ready_lag: Annotated[timedelta, BeforeValidator(read_duration), between("1s", "365d")] = timedelta(minutes=30)
    """Not ready when the live edge is further behind than this."""

    @property
    def address(self) -> tuple[str, int]:
        """Host (IPv6 without brackets) and port."""
        host, _, port = self.listen.rpartition(":")
        return host.strip("[]"), int(port)


class Config(Section):
    """Everything a command needs to know. Paths are absolute."""

    projects: tuple[Project, ...] = ()
    database: Database = Database()
    sync: Sync = Sync()
    http: Http = Http()
    export: Export = Export()
    service: Service = Service()
