"""What a real Langfuse answered, replayed through the real client: every exchange of every cassette.

The mock server is held to the same exchanges in `tests/demo/test_replay.py`.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import pytest
import vcr
import yaml

from etl.demo import PUBLIC_KEY, SECRET_KEY
from etl.errors import (
    ApiError,
    ApiGoneError,
    AuthError,
    NotFoundError,
    RequestRejectedError,
    RetriableApiError,
    TooMuchError,
)
from etl.extract.client import Client, Patience
from etl.extract.probe import ProjectInfo, choose_api, project_info, server_version
from etl.extract.traces_api import TracesReader
from etl.transform.jsontext import parse
from etl.values import normalise_base_url

CASSETTES = Path(__file__).parents[1] / "cassettes"
SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one in C is ten times faster
NOW = datetime(2026, 11, 22, tzinfo=UTC)
ERRORS: dict[int, tuple[type[ApiError], dict[str, Any]]] = {
    400: (RequestRejectedError, {}),
    401: (AuthError, {"exit_code": 4}),
    403: (AuthError, {"exit_code": 4}),
    404: (NotFoundError, {}),
    422: (TooMuchError, {"timed_out": True}),
    429: (RetriableApiError, {}),
    500: (RetriableApiError, {}),
}
GONE: tuple[type[ApiError], dict[str, Any]] = (ApiGoneError, {"left_behind": True})


class Exchange(NamedTuple):
    path: str
    params: dict[str, list[str]]
    status: int
    body: str


def cassettes() -> list[str]:
    return sorted(str(path.relative_to(CASSETTES).with_suffix("")) for path in CASSETTES.rglob("*.yaml"))


@functools.cache
def exchanges(cassette: str) -> list[Exchange]:
    with (CASSETTES / f"{cassette}.yaml").open(encoding="utf-8") as file:
        recorded = yaml.load(file, Loader=SAFE_LOADER)["interactions"]  # noqa: S506 - it is a safe one
    found = []
    for one in recorded:
        if one["request"]["method"] != "GET":
            continue  # the client reads only
        address = urlsplit(one["request"]["uri"])
        params: dict[str, list[str]] = {}
        for name, value in parse_qsl(address.query, keep_blank_values=True):
            params.setdefault(name, []).append(value)
        path = address.path.removeprefix("/api/public")
        found.append(Exchange(path, params, one["response"]["status"]["code"], one["response"]["body"]["string"]))
    return found


def address(cassette: str) -> str:
    with (CASSETTES / f"{cassette}.yaml").open(encoding="utf-8") as file:
        line = next(line for line in file if line.strip().startswith("uri: "))
    parts = urlsplit(line.strip().removeprefix("uri: "))
    return f"{parts.scheme}://{parts.netloc}"


@pytest.fixture
def new_client() -> Iterator[Callable[[str], Client]]:
    made: list[Client] = []

    def make(cassette: str) -> Client:
        client = Client(
            normalise_base_url(address(cassette)), PUBLIC_KEY, SECRET_KEY, key_names="A and B", timeout_s=5,
            patience=Patience(5.0, attempts=1),
        )  # fmt: skip
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


def replay(cassette: str, *match_on: str) -> Any:
    """Answers requests from the cassette, each recorded answer once, and any other request with an error."""
    recorder = vcr.VCR(record_mode="none", match_on=match_on or ("method", "path", "query"))
    return recorder.use_cassette(str(CASSETTES / f"{cassette}.yaml"))


@pytest.mark.parametrize("cassette", cassettes())
def test_every_recorded_answer_comes_out_as_its_value_or_as_the_error_it_is(
    cassette: str, new_client: Callable[[str], Client]
) -> None:
    with replay(cassette) as tape:
        for exchange in exchanges(cassette):
            client = new_client(cassette)  # a new one each time: being told to wait holds back what follows
            outcome = ERRORS.get(exchange.status)
            if cassette == "v4_events_only_mode" and exchange.status == 404:
                outcome = GONE
            if exchange.status == 429:
                client = impatient(client)
            if outcome is None:
                is_list = "data" in json.loads(exchange.body) and exchange.path != "/projects"
                if is_list:
                    listed = client.get_list(exchange.path, exchange.params)
                    value = {"data": [dict(item) for item in listed.items], "meta": listed.meta}
                else:
                    value = client.get(exchange.path, exchange.params).value
                expected = parse(exchange.body.encode()).value
                expected.pop("_deprecation", None)
                assert value == expected
                continue
            error, attributes = outcome
            with pytest.raises(error) as raised:
                client.get(exchange.path, exchange.params)
            assert type(raised.value) is error or error is RetriableApiError
            assert {name: getattr(raised.value, name) for name in attributes} == attributes
            assert exchange.status in (raised.value.status, 429)
        assert tape.play_count == len(exchanges(cassette))


def impatient(client: Client) -> Client:
    client._patience = Patience(0.1, attempts=1)
    return client


def test_the_error_classes_of_the_recordings_are_all_there() -> None:
    """So that a cassette that is lost or recorded anew is noticed."""
    statuses = {exchange.status for cassette in cassettes() for exchange in exchanges(cassette)}
    assert statuses == {200, 400, 401, 403, 404, 422, 429, 500}


@pytest.mark.parametrize(("cassette", "version"), [("health", "4.16.0"), ("v3.225.4/health_projects", "3.225.4")])
def test_the_version_is_what_the_recorded_server_says(
    cassette: str, version: str, new_client: Callable[[str], Client]
) -> None:
    with replay(cassette):
        assert server_version(new_client(cassette)) == version


@pytest.mark.parametrize("cassette", ["projects", "v3.225.4/health_projects", "v4_events_only_mode"])
def test_the_project_is_the_one_of_the_recorded_key(cassette: str, new_client: Callable[[str], Client]) -> None:
    with replay(cassette):
        info = project_info(new_client(cassette))
    assert isinstance(info, ProjectInfo)
    assert (info.id, info.name, info.retention_days) == ("proj-shop", "shop-assistant", None)


@pytest.mark.parametrize(
    ("cassette", "api"),
    [("v4_events_only_mode", "observations"), ("v3.225.4/traces_fields", "traces"), ("traces_fields", "traces")],
)
def test_the_generation_is_the_one_of_the_recorded_server(
    cassette: str, api: str, new_client: Callable[[str], Client]
) -> None:
    # The probe asks about the last minute, which no recording does: paths tell enough here.
    with replay(cassette, "method", "path"):
        assert choose_api(new_client(cassette), "auto", None, NOW) == api


def test_the_oldest_trace_is_read_from_the_first_row_of_a_recorded_list(new_client: Callable[[str], Client]) -> None:
    with replay("traces_ties_lost_orderby_timestamp", "method", "path"):
        oldest = TracesReader(new_client("traces_ties_lost_orderby_timestamp")).oldest("traces", NOW)
    first = json.loads(exchanges("traces_ties_lost_orderby_timestamp")[0].body)["data"][0]
    assert oldest == datetime.fromisoformat(first["timestamp"])
