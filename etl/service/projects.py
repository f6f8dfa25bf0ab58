"""From a project of the configuration to something that can be synced: client, probe, reader, scope."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import Connection, Engine

from etl.config import Config, Project
from etl.errors import ConfigError
from etl.extract.budget import Budgets, is_cloud
from etl.extract.client import Client, Patience, Traffic
from etl.extract.observations_api import ObservationsReader
from etl.extract.probe import ProjectInfo, choose_api, local_now, project_info, server_version
from etl.extract.readers import Api, Reader
from etl.extract.traces_api import TracesReader
from etl.load import ledger
from etl.load.engine import reading
from etl.pipeline.scope import Scope
from etl.transform.jsontext import dumps

log = logging.getLogger(__name__)

_UNFILTERED = "all"
# What the smallest plan of Langfuse Cloud shows (langfuse-docs, pricing).
_CLOUD_ACCESS = timedelta(days=30)


@dataclass(frozen=True)
class Connected:
    """A project whose server was asked who it is."""

    settings: Project
    client: Client
    info: ProjectInfo
    server_version: str | None
    api: Api
    reader: Reader
    now: datetime

    def record(self) -> ledger.ProjectRecord:
        """The row of `projects`."""
        return ledger.ProjectRecord(
            id=self.info.id,
            name=self.info.name,
            base_url=self.client.base_url,
            organization_id=self.info.organization_id,
            server_version=self.server_version,
            api=self.api,
            retention_days=self.info.retention_days,
            entry=self.settings.name,
        )

    def _kept_from(self) -> datetime | None:
        """Older rows may vanish without anybody deleting them."""
        limits = [] if self.info.retention_days is None else [timedelta(days=self.info.retention_days)]
        if is_cloud(urlsplit(self.client.base_url).hostname or ""):
            limits.append(_CLOUD_ACCESS)
        return self.now - min(limits) if limits else None

    def scope(self, config: Config) -> Scope:
        """What a run of this project reads."""
        filters = self.settings.filters
        return Scope(
            project_id=self.info.id,
            project_name=self.settings.name,
            streams=self.settings.streams,
            kept={
                stream for source in self.reader.sources(self.settings.streams) for stream in self.reader.covers(source)
            },
            filters_hash=_hash_of(filters, self.settings.content),
            start=self.settings.start,
            lag=config.sync.lag,
            every=config.sync.every,
            lookback=config.sync.lookback,
            contents=self.settings.content == "full",
            # Of the filters only the environment of a trace never changes: absence under any other proves nothing.
            mark_deletions=config.sync.deletes == "mark" and {"environment"}.issuperset(filters),
            filtered=bool(filters),
            environments=filters.get("environment"),
            kept_from=self._kept_from(),
            concurrency=config.http.concurrency,
            observations_copied="observations" in self.settings.streams or self.api == "observations",
            history_for=None,
            backs_off=False,
            now=self.now,
        )


def open_client(
    project: Project,
    config: Config,
    stop: threading.Event,
    budgets: Budgets | None = None,
    traffic: Traffic | None = None,
) -> Client:
    """A client for the server of a project; nothing is sent yet.

    Args:
        budgets: Those of this process; None makes new ones, which know nothing of what was sent before.
        traffic: Is told of every request.
    """
    budgets = budgets or Budgets(config.http.share, config.http.requests_per_minute)
    return Client(
        project.base_url,
        project.public_key,
        project.secret_key.get_secret_value(),
        key_names=f"{project.public_key_env} and {project.secret_key_env}",
        timeout_s=config.http.timeout.total_seconds(),
        patience=Patience(config.http.give_up_after.total_seconds()),
        connections=config.http.concurrency,
        stop=stop,
        budgets=budgets,
        traffic=traffic,
    )


def connect(
    project: Project,
    config: Config,
    engine: Engine,
    stop: threading.Event,
    *,
    budgets: Budgets | None = None,
    traffic: Traffic | None = None,
    now: datetime | None = None,
    probe_again: bool = False,
) -> Connected:
    """Asks the server who it is, and chooses the reader for its generation of the API.

    Args:
        engine: A database of the current revision; it knows which generation was read last.
        budgets, traffic: See `open_client`.
        now: In place of the clocks of this machine and of the server.
        probe_again: Do not trust the generation that was read last: it was found gone.
    Raises:
        ApiError: The server does not answer as Langfuse, or the key is wrong.
        ConfigError: The project asks for something that this version cannot do.
    """
    client = open_client(project, config, stop, budgets, traffic)
    try:
        return _connected(project, client, engine, now, probe_again)
    except BaseException:
        client.close()
        raise


def _connected(project: Project, client: Client, engine: Engine, now: datetime | None, probe_again: bool) -> Connected:
    version = server_version(client)
    info = project_info(client)
    client.organization_id = info.organization_id or ""
    moment = now or local_now(client)
    with reading(engine) as conn:
        recorded = _recorded_api(conn, info.id)
    trusted = recorded if project.api == "auto" and not probe_again else None
    api = trusted or choose_api(client, project.api, recorded, moment)
    if recorded is not None and api != recorded:
        log.warning(
            "project %s: read through the %s API from now on, no longer through the %s API; what is stored stays, and"
            " is compared with it once more, after everything else, until two passes agree",
            project.name, api, recorded,
        )  # fmt: skip
    return Connected(project, client, info, version, api, _reader(api, client, project), moment)


def refuse_twins(connected: list[Connected]) -> None:
    """Two entries of the configuration for one project would take turns at undoing each other.

    Raises:
        ConfigError: Names both entries.
    """
    seen: dict[str, str] = {}
    for one in connected:
        if one.info.id in seen:
            raise ConfigError(
                f"projects {seen[one.info.id]} and {one.settings.name} have keys of the same Langfuse project"
                f" ({one.info.id}); remove one of them"
            )
        seen[one.info.id] = one.settings.name


def _recorded_api(conn: Connection, project_id: str) -> Api | None:
    for project in ledger.stored_projects(conn):
        if project.id == project_id:
            return "observations" if project.api == "observations" else "traces"
    return None


def _reader(api: Api, client: Client, project: Project) -> Reader:
    if api == "traces":
        return TracesReader(client, project.streams, project.filters)
    try:
        return ObservationsReader(client, project.filters)
    except ConfigError as error:
        raise ConfigError(f"project {project.name}: {error}") from None


def _hash_of(filters: Mapping[str, Any], content: str) -> str:
    """What coverage is kept under: another choice of traces is other coverage, and so is one without contents."""
    choice = {**filters, **({} if content == "full" else {"content": content})}
    if not choice:
        return _UNFILTERED
    return hashlib.blake2b(dumps(choice).encode(), digest_size=8).hexdigest()
