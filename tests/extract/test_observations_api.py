"""The reader for servers without the traces API: against the mock, and against recordings of a real one."""

from __future__ import annotations

import gzip
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import vcr
from as_read import as_read
from vcr.request import Request

import etl.demo
from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, Faults, MockLangfuse, load_corpus
from etl.demo.answers import Answer
from etl.errors import ApiGoneError, TooMuchError
from etl.extract import client as client_module
from etl.extract import observations_api
from etl.extract.client import Client, Patience
from etl.extract.observations_api import FIELDS, ObservationsReader
from etl.extract.probe import choose_api, project_info, server_version
from etl.extract.readers import Page
from etl.intervals import Window, merge
from etl.transform.observations_v2 import unflatten, unflatten_copy
from etl.transform.pages import Kind, rows_of

CASSETTES = Path(__file__).parents[1] / "cassettes"
DATA = Path(etl.demo.__file__).parent / "data"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
WHOLE = Window(datetime(2026, 11, 1, tzinfo=UTC), NOW)
Item = dict[str, Any]


def client_for(url: str, **settings: Any) -> Client:
    settings = {"timeout_s": 10, "patience": Patience(20, attempts=2)} | settings
    return Client(f"{url}/api/public", PUBLIC_KEY, SECRET_KEY, key_names="KEYS", stop=threading.Event(), **settings)


@cache
def corpus() -> dict[tuple[str, str], Item]:
    with gzip.open(DATA / "observations_v2.jsonl.gz", "rb") as file:
        return {(item["traceId"], item["id"]): item for item in map(json.loads, file)}


@pytest.fixture(scope="module")
def recorded() -> Iterator[MockLangfuse]:
    """The recorded data as a v4 server has it."""
    with MockLangfuse(load_corpus(), api="v4") as server:
        yield server


def keys(pages: list[Page]) -> list[tuple[str, str]]:
    return [(item["traceId"], item["id"]) for page in pages for item in page.items]


def closed(pages: list[Page]) -> list[Window]:
    return merge(segment.window for page in pages for segment in page.closes)


def span(id_: str, second: float, trace_id: str = "t", **changes: Any) -> Item:
    moment = datetime(2026, 11, 10, tzinfo=UTC) + timedelta(seconds=second)
    start = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"id": id_, "traceId": trace_id, "startTime": start, "name": id_, **changes}


# Against the mock


def test_every_recorded_row_is_read_once(recorded: MockLangfuse) -> None:
    pages = list(ObservationsReader(client_for(recorded.base_url)).read("observations", WHOLE))
    read = keys(pages)
    assert len(read) == len(set(read)) == 4513
    assert {(i["traceId"], i["id"]): i for page in pages for i in page.items} == corpus()
    assert closed(pages) == [WHOLE]
    segments = [segment for page in pages for segment in page.closes]
    assert {segment.proof for segment in segments} == {"walked"}
    assert {segment.promised for segment in segments} == {None}
    assert sum(segment.read for segment in segments) == 4513
    assert sum(segment.requests for segment in segments) == 5


def test_requests_are_bounded_and_ask_for_everything(recorded: MockLangfuse) -> None:
    before = len(recorded.requests)
    list(ObservationsReader(client_for(recorded.base_url)).read("observations", WHOLE))
    for request in recorded.requests[before:]:
        assert request.path == "/api/public/v2/observations"
        assert request.query["fields"] == [FIELDS]
        assert request.query["limit"] == ["1000"]
        assert request.query["fromStartTime"] == ["2026-11-01T00:00:00.000Z"]
        assert request.query["toStartTime"] == ["2026-11-22T12:00:00.000Z"]


def test_scores_are_read_by_cursor(recorded: MockLangfuse) -> None:
    pages = list(ObservationsReader(client_for(recorded.base_url)).read("scores", WHOLE))
    assert {page.kind for page in pages} == {Kind.SCORE_V3}
    assert len({item["id"] for page in pages for item in page.items}) == 1257
    assert closed(pages) == [WHOLE]


def test_what_is_asked_for_and_what_is_read() -> None:
    reader = ObservationsReader(client_for("http://localhost"))
    assert reader.sources(("traces", "scores")) == ["observations", "scores"]
    assert reader.sources(("sessions",)) == ["observations"]
    assert reader.sources(("scores",)) == ["scores"]
    assert set(reader.covers("observations")) == {"observations", "traces", "sessions"}
    assert not reader.midnight_bound("observations")


@pytest.mark.parametrize("source", ["observations", "scores"])
def test_one_cut_answer_about_the_beginning_hides_no_history(recorded: MockLangfuse, source: str) -> None:
    one_row = Dataset()  # nothing is to follow it, so the cut answer looks like that of an empty project
    one_row.put_event(span("o", 0))
    one_row.put_score({"id": "s", "traceId": "t", "name": "n", "value": 1, "timestamp": "2026-11-10T00:00:00.000Z"})
    for dataset in (one_row, recorded.dataset):
        with MockLangfuse(dataset, api="v4") as server:
            server.faults.add("half_page", times=1)
            oldest = ObservationsReader(client_for(server.base_url)).oldest(source, NOW)
            assert server.faults.fired
        assert oldest is not None
        assert oldest < NOW


@pytest.mark.parametrize("source", ["observations", "scores"])
def test_the_oldest_row_is_found_by_bisection(recorded: MockLangfuse, source: str) -> None:
    field = "startTime" if source == "observations" else "timestamp"
    rows = recorded.dataset.events() if source == "observations" else recorded.dataset.scores()
    before = len(recorded.requests)
    oldest = ObservationsReader(client_for(recorded.base_url)).oldest(source, NOW)
    assert oldest is not None
    gap = min(datetime.fromisoformat(row[field]) for row in rows) - oldest
    assert timedelta(0) <= gap <= timedelta(days=1)
    sent = recorded.requests[before:]
    assert len(sent) < 20
    assert all(request.query["limit"] == ["1"] for request in sent)


def test_an_empty_server_has_no_oldest_row() -> None:
    with MockLangfuse(Dataset(), api="v4") as server:
        assert ObservationsReader(client_for(server.base_url)).oldest("observations", NOW) is None


def test_a_row_that_was_written_twice_comes_twice_and_is_one() -> None:
    dataset = Dataset()
    dataset.put_event(span("a", 1, updatedAt="2026-11-10T00:00:05.000Z", name="old"))
    dataset.put_event(span("a", 1, updatedAt="2026-11-10T00:00:09.000Z", name="new"), again=True)
    with MockLangfuse(dataset, api="v4") as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
    assert len(keys(pages)) == 2
    assert sum(segment.read for page in pages for segment in page.closes) == 1


def many(count: int) -> Dataset:
    dataset = Dataset()
    for number in range(count):
        dataset.put_event(span(f"o{number:03}", number * 60, f"t{number // 7}", input="x" * 1_000))
    return dataset


def assert_all_read(pages: list[Page], count: int) -> None:
    assert len(set(keys(pages))) == count
    assert closed(pages) == [WHOLE]


def test_a_window_that_times_out_is_read_in_parts() -> None:
    with MockLangfuse(many(400), api="v4", faults=Faults(timeout_above_rows=60)) as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
        assert len([request for request in server.requests if request.status == 422]) < 30
    assert_all_read(pages, 400)
    assert len(server.requests) < 60


def test_scores_that_time_out_are_read_in_parts() -> None:
    dataset = load_corpus()
    with MockLangfuse(dataset, api="v4", faults=Faults(timeout_above_rows=300)) as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("scores", WHOLE))
    assert len({item["id"] for page in pages for item in page.items}) == 1257
    assert closed(pages) == [WHOLE]


def test_pages_that_are_too_large_are_halved() -> None:
    with MockLangfuse(many(100), api="v4", faults=Faults(oversize=40_000)) as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
    assert_all_read(pages, 100)


def test_a_row_that_cannot_be_sent_comes_without_contents(caplog: pytest.LogCaptureFixture) -> None:
    with MockLangfuse(many(50), api="v4", faults=Faults(poison=["o030"])) as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
    assert_all_read(pages, 50)
    light = [item for page in pages if page.kind is Kind.OBSERVATION_V2_CORE for item in page.items]
    assert [item["id"] for item in light] == ["o030"]
    assert not any(page.light for page in pages)  # it is to be stored as it is
    assert "partial" in {segment.proof for page in pages for segment in page.closes}
    assert "observation o030 of trace t4 cannot be sent" in caplog.text


def test_a_server_that_always_times_out_is_left_alone() -> None:
    with (
        MockLangfuse(many(50), api="v4", faults=Faults(timeout_above_rows=0)) as server,
        pytest.raises(TooMuchError),
    ):
        list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
    assert len(server.requests) <= 40


def test_a_cut_page_is_asked_for_again() -> None:
    faults = Faults()
    faults.add("half_page", "/v2/observations", after=1)
    with MockLangfuse(many(2_500), api="v4", faults=faults) as server:
        pages = list(ObservationsReader(client_for(server.base_url)).read("observations", WHOLE))
    assert_all_read(pages, 2_500)


def test_a_light_read_leaves_contents_out(recorded: MockLangfuse) -> None:
    pages = list(ObservationsReader(client_for(recorded.base_url)).read("observations", WHOLE, light=True))
    assert len(keys(pages)) == 4513
    assert all(page.light and page.kind is Kind.OBSERVATION_V2_CORE for page in pages)
    assert not any("input" in item or "metadata" in item for page in pages for item in page.items)
    full = rows_of(Kind.OBSERVATION_V2, as_read(corpus().values()), project_id="p", contents=True)
    stored = {(row["trace_id"], row["id"]): row for row in full["observations"]}
    for page in pages:
        rows = rows_of(page.kind, page.items, project_id="p", contents=True, light=True)
        for row in rows["observations"]:
            seen = {name: value for name, value in row.items() if name != "content_hash"}
            assert seen == {name: stored[row["trace_id"], row["id"]][name] for name in seen}


def test_a_session_comes_with_all_rows_of_its_traces() -> None:
    dataset = Dataset()
    dataset.put_event(span("root", 1, "t1", sessionId="s"))
    dataset.put_event(span("lacks-it", 2, "t1", parentObservationId="root"))
    dataset.put_event(span("other", 3, "t2", sessionId="s2"))
    for id_, subject in (
        ("on-trace", {"traceId": "t1"}),
        ("on-session", {"sessionId": "s"}),
        ("no", {"traceId": "t2"}),
    ):
        dataset.put_score({"id": id_, "timestamp": "2026-11-10T00:00:00.000Z", "name": id_, "value": 1, **subject})
    with MockLangfuse(dataset, api="v4") as server:
        pages = list(ObservationsReader(client_for(server.base_url)).session("s", NOW))
    assert sorted(item["id"] for page in pages for item in page.items) == ["lacks-it", "on-session", "on-trace", "root"]
    assert all(page.closes == () and not page.light for page in pages)


# Which API a server has


@pytest.mark.parametrize(
    ("api", "recorded_api", "chosen"),
    [
        ("v3", None, "traces"),
        ("v4", None, "observations"),
        ("dual", None, "traces"),
        ("v3", "traces", "traces"),
        ("v4", "traces", "observations"),
        ("dual", "traces", "traces"),
        ("dual", "observations", "observations"),
        ("v4", "observations", "observations"),
    ],
)
def test_the_api_is_the_recorded_one_while_it_answers(api: Any, recorded_api: Any, chosen: str) -> None:
    with MockLangfuse(Dataset(), api=api) as server:
        assert choose_api(client_for(server.base_url), "auto", recorded_api, NOW) == chosen


@pytest.mark.parametrize("setting", ["traces", "observations"])
def test_a_set_api_is_not_questioned(setting: Any) -> None:
    assert choose_api(client_for("http://127.0.0.1:1"), setting, None, NOW) == setting


@pytest.mark.parametrize(
    ("status", "body", "chosen"),
    [
        (404, b"<!DOCTYPE html><html>not found</html>", None),
        (404, b'{"message":"no Route matched","error":"NotFound"}', None),
        (410, b"gone", "observations"),
        (410, b'{"message":"gone","_deprecation":{"sunsetAt":"2026-11-16"}}', "observations"),
        (404, b'{"message":"not available in events_only mode"}', "observations"),
    ],
)
@pytest.mark.parametrize("recorded_api", [None, "traces"])
def test_a_server_leaves_the_traces_api_only_by_its_own_word(
    monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, chosen: str | None, recorded_api: Any
) -> None:
    with MockLangfuse(Dataset(), api="dual") as server:
        answer = server.service.answer
        monkeypatch.setattr(
            server.service,
            "answer",
            lambda request: (Answer(status, body), None) if request.path.endswith("/traces") else answer(request),
        )
        client = client_for(server.base_url)
        if chosen is None:
            with pytest.raises(ApiGoneError):
                choose_api(client, "auto", recorded_api, NOW)
        else:
            assert choose_api(client, "auto", recorded_api, NOW) == chosen


def test_a_server_without_either_api_is_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    with MockLangfuse(Dataset(), api="v4") as server:
        answer = server.service.answer
        gone = Answer(404, b'{"message":"not here","error":"LangfuseNotFoundError"}')
        monkeypatch.setattr(
            server.service,
            "answer",
            lambda request: (gone, None) if request.path.endswith("/v2/observations") else answer(request),
        )
        with pytest.raises(ApiGoneError):
            choose_api(client_for(server.base_url), "auto", None, NOW)


def test_deprecation_is_said_once_with_its_date(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_DEPRECATIONS_SAID", set())
    with MockLangfuse(load_corpus(), api="dual", cloud=True) as server, caplog.at_level(logging.INFO):
        for _ in range(2):
            client = client_for(server.base_url)
            for path in ("/traces", "/sessions", "/scores"):
                assert "_deprecation" not in client.get(path, {"limit": "1"}).value
    assert [record.getMessage().count("2026-11-16") for record in caplog.records if "remove" in record.message] == [1]


# Against recordings of Langfuse 4.16.0


@contextmanager
def replayed(cassette: str, *match: str) -> Iterator[None]:
    """Answers from a recording, for requests to the same path with the same of some parameters."""

    def same(one: Request, other: Request) -> None:
        assert one.path == other.path
        asked = [{name: dict(request.query).get(name) for name in match} for request in (one, other)]
        assert asked[0] == asked[1]

    player = vcr.VCR(record_mode="none")
    player.register_matcher("like", same)
    with player.use_cassette(str(CASSETTES / f"{cassette}.yaml"), match_on=["like"], allow_playback_repeats=True):
        yield


def test_the_recorded_events_only_server() -> None:
    client = client_for("http://localhost:3001")
    with replayed("v4_events_only_mode"):
        assert server_version(client) == "4.16.0"
        assert project_info(client).id == "proj-shop"
        assert choose_api(client, "auto", "traces", NOW) == "observations"
        reader = ObservationsReader(client)
        (page,) = islice(reader.read("observations", WHOLE), 1)
        (scores,) = islice(reader.read("scores", WHOLE), 1)
    (row,) = rows_of(page.kind, page.items, project_id="proj-shop", contents=True)["observations"]
    assert (row["trace_id"], row["id"]) == ("306769480bbbe70e21540f6489cadb58", "abf054aa045a55cf")
    assert (row["name"], row["environment"], row["user_id"]) == ("long-metadata", "sdk-env", None)
    assert row["start_time"] == "2026-11-21T19:30:48.490Z"
    # As the server says 0 where it is asked for metrics; here it was not.
    item = dict(page.items[0]) | {"latency": None}
    assert {name: unflatten(row)[name] for name in item} == item
    (score,) = rows_of(scores.kind, scores.items, project_id="proj-shop", contents=True)["scores"]
    assert (score["id"], score["value"], score["string_value"]) == ("seq-3-trace-s", 1.0, "True")


def test_recorded_pages_in_the_order_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations_api, "MAX_LIMIT", 20)
    with replayed("observations_v2_cursor", "limit", "cursor"):
        pages = list(islice(ObservationsReader(client_for("http://localhost:3000")).read("observations", WHOLE), 2))
    read = keys(pages)
    assert len(set(read)) == 40
    for page in pages:
        for item in page.items:
            known = corpus()[item["traceId"], item["id"]]
            assert item == {name: known[name] for name in item}  # all groups but `trace_context` were asked for
            rows = rows_of(page.kind, [item], project_id="proj-shop", contents=True)
            back = unflatten_copy(rows["traces"][0]) if rows["traces"] else unflatten(rows["observations"][0])
            assert back["startTime"] == item["startTime"]
            assert back["metadata"] == item["metadata"]


def test_recorded_scores() -> None:
    with replayed("scores_v3_cursor", "cursor"):
        (page,) = islice(ObservationsReader(client_for("http://localhost:3000")).read("scores", WHOLE), 1)
    assert len(page.items) == 10
    rows = rows_of(page.kind, page.items, project_id="proj-shop", contents=True)["scores"]
    assert {row["read_from"] for row in rows} == {"observations"}
