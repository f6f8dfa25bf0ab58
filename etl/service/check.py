"""Is everything in place for a sync? Each finding says what to do about it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from etl.config import Config, Project
from etl.errors import AuthError, EtlError
from etl.extract.probe import choose_api, local_now, project_info, require_api, server_version
from etl.load.engine import open_engine
from etl.load.migrate import current_revision, head_revision
from etl.pipeline.plan import CLOCK_TOLERANCE
from etl.service.projects import open_client


class Check(NamedTuple):
    """One finding. `fix` says what to do if it is not `ok`; `exit_code` is that of the error behind it."""

    name: str
    ok: bool
    message: str
    fix: str | None = None
    exit_code: int = 0


def run_checks(load: Callable[[], Config]) -> list[Check]:
    """All findings, in the order in which one depends on the other; nothing is changed."""
    try:
        config = load()
    except EtlError as error:
        return [Check("configuration", False, str(error), "correct the settings named", error.exit_code)]
    checks = [Check("configuration", True, f"{len(config.projects)} project(s)"), _database(config)]
    for project in config.projects:
        checks.extend(_project(config, project))
    return checks


def _database(config: Config) -> Check:
    engine = open_engine(config.database.url, config.database.schema_)
    try:
        revision = current_revision(engine)
    except EtlError as error:
        return Check("database", False, str(error), "correct database.url or make it reachable", error.exit_code)
    finally:
        engine.dispose()
    if revision is None:
        return Check("database", True, "empty; the first sync creates the tables")
    if revision != head_revision():
        return Check("database", True, f"revision {revision}; the next sync upgrades it to {head_revision()}")
    return Check("database", True, f"revision {revision}")


def _project(config: Config, project: Project) -> Iterator[Check]:
    def name(what: str) -> str:
        return f"{project.name}: {what}"

    client = open_client(project, config, threading.Event())
    step = "server"
    try:
        version = server_version(client)
        server = Check(name("server"), True, f"{client.base_url}, version {version or 'unknown'}")
        try:
            info = project_info(client)
        except AuthError:
            yield server
            step = "keys"
            raise
        # Only a right key tells that this is the API: an unknown path may be answered without any version.
        yield server
        yield Check(name("keys"), True, f"project {info.name or info.id} ({info.id})")
        step = "api"
        api = choose_api(client, project.api, None, local_now(client))
        require_api(client, api, local_now(client))
        yield Check(name("api"), True, f"{api} API")
    except EtlError as error:
        fix = {
            "server": "set LANGFUSE_BASE_URL to the address of the Langfuse server, and see that it runs",
            "keys": "make a key pair in Langfuse under project Settings > API Keys, and set both keys",
            "api": "set `api` of the project, or see that the server's API answers",
        }[step]
        problem, _, advice = str(error).partition("; ")
        yield Check(name(step), False, problem, advice or fix, error.exit_code)
        return
    finally:
        client.close()
    ahead_s = client.server_clock_ahead_s
    if ahead_s is None:
        yield Check(name("clock"), True, "the server does not tell its time")
    else:
        close = abs(ahead_s) <= CLOCK_TOLERANCE.total_seconds()
        message = f"the server's clock is {ahead_s:+.0f} s from this one"
        if close:
            yield Check(name("clock"), True, message)
        else:
            yield Check(name("clock"), False, message, "set the clock of this machine (or of the server) right", 1)
