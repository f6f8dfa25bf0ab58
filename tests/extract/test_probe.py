"""Who answers, and with which generation of the API: against servers of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, MockLangfuse, Project
from etl.errors import ApiError, ApiGoneError, AuthError, UnexpectedAnswerError
from etl.extract.client import Client, Patience
from etl.extract.probe import choose_api, local_now, project_info, server_version
from etl.values import normalise_base_url

MakeClient = Callable[..., Client]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(server: MockLangfuse, secret: str = SECRET_KEY) -> Client:
        url = normalise_base_url(server.base_url)
        made.append(Client(url, PUBLIC_KEY, secret, key_names="A and B", timeout_s=5, patience=Patience(5.0, 2)))
        return made[-1]

    yield make
    for client in made:
        client.close()


def now() -> datetime:
    return datetime.now(UTC)


def test_the_version_is_read_without_a_key(make_client: MakeClient) -> None:
    with MockLangfuse(Dataset(), version="3.100.0") as server:
        assert server_version(make_client(server, "wrong")) == "3.100.0"


@pytest.mark.parametrize("status", [401, 403, 410])
def test_a_server_that_hides_its_version_is_no_trouble(make_client: MakeClient, status: int) -> None:
    with MockLangfuse(Dataset()) as server:
        server.faults.add("status", path="/health", status=status)
        assert server_version(make_client(server)) is None


def test_the_project_is_the_one_of_the_key(make_client: MakeClient) -> None:
    project = Project(id="p", name="Ein Projekt", organization_id="o", retention_days=30)
    with MockLangfuse(Dataset(), project=project) as server:
        assert project_info(make_client(server)) == ("p", "Ein Projekt", "o", 30)
        with pytest.raises(AuthError):
            project_info(make_client(server, "wrong"))


def test_a_list_of_projects_without_one_is_refused(make_client: MakeClient) -> None:
    with MockLangfuse(Dataset()) as server:
        server.faults.add("wrong_shape", path="/projects", times=None)
        with pytest.raises(UnexpectedAnswerError):
            project_info(make_client(server))


@pytest.mark.parametrize(
    ("api", "recorded", "chosen"),
    [
        ("v3", None, "traces"),
        ("v3", "traces", "traces"),
        ("dual", None, "traces"),
        ("dual", "traces", "traces"),
        ("dual", "observations", "observations"),
        ("v4", None, "observations"),
        ("v4", "traces", "observations"),
        ("v4", "observations", "observations"),
    ],
)
def test_auto_stays_with_what_answers(make_client: MakeClient, api: str, recorded: str, chosen: str) -> None:
    with MockLangfuse(Dataset(), api=api) as server:  # type: ignore[arg-type]
        assert choose_api(make_client(server), "auto", recorded, now()) == chosen  # type: ignore[arg-type]


@pytest.mark.parametrize("chosen", ["traces", "observations"])
def test_what_is_set_is_not_asked(make_client: MakeClient, chosen: str) -> None:
    with MockLangfuse(Dataset()) as server:
        assert choose_api(make_client(server), chosen, None, now()) == chosen  # type: ignore[arg-type]
        assert server.requests == []


def test_a_410_and_an_answer_of_the_other_api_are_a_change_of_generation(make_client: MakeClient) -> None:
    with MockLangfuse(Dataset(), api="dual") as server:
        server.faults.add("status", path="/traces", status=410)
        assert choose_api(make_client(server), "auto", "traces", now()) == "observations"


def test_a_410_without_another_api_is_trouble(make_client: MakeClient) -> None:
    with MockLangfuse(Dataset(), api="v3") as server:
        server.faults.add("status", path="/traces", status=410, times=None)
        with pytest.raises(ApiGoneError):
            choose_api(make_client(server), "auto", "traces", now())


@pytest.mark.parametrize(
    "fault", [("redirect", {"location": "/login"}), ("html", {}), ("status", {"status": 500}), ("wrong_shape", {})]
)
def test_trouble_is_no_change_of_generation(make_client: MakeClient, fault: tuple[str, dict[str, object]]) -> None:
    kind, params = fault
    with MockLangfuse(Dataset(), api="dual") as server:
        server.faults.add(kind, path="/traces", times=None, **params)
        with pytest.raises(ApiError):
            choose_api(make_client(server), "auto", "traces", now())
        assert not any(request.path.endswith("/v2/observations") for request in server.requests)


@pytest.mark.parametrize(("ahead_s", "moved_s"), [(-3600, -3600), (0, 0), (3600, 0)])
def test_now_is_the_smaller_of_both_clocks(make_client: MakeClient, ahead_s: int, moved_s: int) -> None:
    with MockLangfuse(Dataset(), clock=lambda: now() + timedelta(seconds=ahead_s)) as server:
        client = make_client(server)
        server_version(client)
        assert abs((local_now(client) - now()).total_seconds() - moved_s) < 5
