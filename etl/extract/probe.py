"""Who answers: the project of the key, the server's version, and which generation of the API it has."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from etl.errors import ApiGoneError, AuthError, NotFoundError, UnexpectedAnswerError
from etl.extract.answers import instant
from etl.extract.budget import is_cloud
from etl.extract.client import Client, Params, Patience
from etl.extract.readers import Api

# A person waits for this one: an address that does not answer is said quickly.
FIRST_CONTACT = Patience(give_up_after_s=20.0, attempts=3)


class ProjectInfo(NamedTuple):
    """The project that the key belongs to. `retention_days` is None if the server keeps everything."""

    id: str
    name: str | None
    organization_id: str | None
    retention_days: int | None


def server_version(client: Client) -> str | None:
    """What `/health` says, such as `4.16.0`; None if it says nothing. Needs no key.

    Raises:
        ApiError: The host does not answer, or is no Langfuse.
    """
    try:
        answer = client.get("/health", patience=FIRST_CONTACT)
    except (ApiGoneError, NotFoundError, AuthError):
        return None
    version = answer.value.get("version")
    return version if isinstance(version, str) else None


def project_info(client: Client) -> ProjectInfo:
    """The one project of the key pair, from `GET /projects`. A wrong public key with a right secret is not refused
    by the server, so this, and not the key, tells which project is read.

    Raises:
        AuthError: The key pair is wrong, or is no project key.
        ApiError: The host does not answer, or is no Langfuse.
    """
    answer = client.get("/projects", patience=FIRST_CONTACT)
    projects: list[dict[str, Any]] = answer.value.get("data") or []
    if not projects or not isinstance(projects[0].get("id"), str):
        raise UnexpectedAnswerError("GET /projects: no project belongs to this key", path="/projects", status=200)
    project = projects[0]
    organization = project.get("organization") or {}
    retention = project.get("retentionDays")
    return ProjectInfo(
        project["id"], project.get("name"), organization.get("id"), retention if isinstance(retention, int) else None
    )


def choose_api(
    client: Client, setting: Literal["auto", "traces", "observations"], recorded: Api | None, now: datetime
) -> Api:
    """The generation to read with: the one set, else the recorded one while it answers, else the one that answers.

    A server leaves the traces API only with its own word for it (the events-only 404, or a 410) *and* a 200 from the
    observations API; anything else is trouble and not a change of generation.

    Raises:
        ApiError: Neither generation answers as it should.
    """
    if setting != "auto":
        return setting
    if recorded == "observations":
        return recorded
    if (
        recorded is None
        and is_cloud(urlsplit(client.base_url).hostname or "")
        and _answers(client, "observations", now) is None
    ):
        return "observations"
    gone = _answers(client, "traces", now)
    if gone is None:
        return "traces"
    if gone.left_behind and _answers(client, "observations", now) is None:
        return "observations"
    raise gone


def require_api(client: Client, api: Api, now: datetime) -> None:
    """Asks whether the server has this generation.

    Raises:
        ApiError: It has not, or does not answer as it should.
    """
    gone = _answers(client, api, now)
    if gone is not None:
        raise gone


def _answers(client: Client, api: Api, now: datetime) -> ApiGoneError | None:
    """None if the API answers, else the server's word that it is not there."""
    path, since, until = {
        "traces": ("/traces", "fromTimestamp", "toTimestamp"),
        "observations": ("/v2/observations", "fromStartTime", "toStartTime"),
    }[api]
    params: Params = {
        "limit": "1",
        "fields": "core",
        since: instant(now - timedelta(minutes=1)),
        until: instant(now),
    }
    try:
        client.get_list(path, params)
    except ApiGoneError as error:
        return error
    except NotFoundError as error:
        return ApiGoneError(str(error), path=path, status=error.status)
    return None


def local_now(client: Client) -> datetime:
    """The smaller of the local clock and the server's, as far as it has spoken yet."""
    now = datetime.now(UTC)
    ahead = client.server_clock_ahead_s
    return now + timedelta(seconds=min(0.0, ahead)) if ahead is not None else now
