"""The reader for the traces API, stretch by stretch: which requests it sends, and what it says of each stretch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, Faults, MockLangfuse, generate
from etl.errors import ApiGoneError, TooMuchError, UnexpectedAnswerError
from etl.extract.client import Client, Patience
from etl.extract.readers import Page, Segment
from etl.extract.traces_api import TracesReader
from etl.intervals import Window, merge
from etl.transform.pages import Kind
from etl.values import normalise_base_url

DAY = Window(datetime(2026, 11, 18, tzinfo=UTC), datetime(2026, 11, 19, tzinfo=UTC))
TIED = "2026-11-18T10:00:00.123Z"

MakeReader = Callable[[MockLangfuse], TracesReader]


@pytest.fixture
def reader_of() -> Iterator[MakeReader]:
    made: list[Client] = []

    def make(server: MockLangfuse) -> TracesReader:
        url = normalise_base_url(server.base_url)
        made.append(
            Client(url, PUBLIC_KEY, SECRET_KEY, key_names="A and B", timeout_s=5, patience=Patience(5.0, attempts=4))
        )
        return TracesReader(made[-1])

    yield make
    for client in made:
        client.close()


def one_day(traces: int = 250) -> Dataset:
    return generate(traces=traces, days=1, end=DAY.end, observations_per_trace=1, io_bytes=100)


def ids(pages: list[Page]) -> set[str]:
    return {item["id"] for page in pages for item in page.items}


def closed(pages: list[Page]) -> list[Segment]:
    return [segment for page in pages for segment in page.closes]


def test_streams_are_read_in_the_order_of_what_belongs_to_what(reader_of: MakeReader) -> None:
    with MockLangfuse(Dataset()) as server:
        reader = reader_of(server)
        everything = ("sessions", "scores", "traces", "observations")
        assert list(reader.sources(everything)) == ["traces", "observations", "scores", "sessions"]
        assert list(reader.sources(("scores",))) == ["scores"]
        assert [name for name in everything if reader.midnight_bound(name)] == ["traces"]


@pytest.mark.parametrize(
    ("source", "proof", "kind"),
    [
        ("traces", "counted", Kind.TRACE),
        ("observations", "walked", Kind.OBSERVATION),
        ("scores", "walked", Kind.SCORE_V3),
        ("sessions", "counted", Kind.SESSION),
    ],
)
def test_every_list_comes_whole_and_its_segments_are_the_window(
    reader_of: MakeReader, source: str, proof: str, kind: Kind
) -> None:
    dataset = one_day()
    with MockLangfuse(dataset, shuffle_ties=True) as server:
        window = Window(DAY.start, DAY.end + timedelta(days=1))
        pages = list(reader_of(server).read(source, window))
        sent = len(server.requests)
    assert ids(pages) == {row["id"] for row in getattr(dataset, source)()}
    assert {page.kind for page in pages} == {kind}
    assert merge(segment.window for segment in closed(pages)) == [window]
    assert {segment.proof for segment in closed(pages)} == {proof}
    assert sum(segment.requests for segment in closed(pages)) == sent
    assert sum(segment.read for segment in closed(pages)) == len(ids(pages))


def test_a_light_reading_asks_for_no_contents(reader_of: MakeReader) -> None:
    dataset = one_day()
    with MockLangfuse(dataset) as server:
        pages = list(reader_of(server).read("traces", DAY, light=True))
        assert {request.query["fields"][0] for request in server.requests} == {"core"}
    assert ids(pages) == {row["id"] for row in dataset.traces()}
    assert all(page.light and page.kind is Kind.TRACE_CORE for page in pages)
    assert {segment.proof for segment in closed(pages)} == {"counted"}


def test_a_light_reading_of_a_full_millisecond_has_no_contents_either(reader_of: MakeReader) -> None:
    dataset = Dataset()
    for number in range(230):
        dataset.put_trace({"id": f"t{number}", "timestamp": TIED, "input": "secret"})
    with MockLangfuse(dataset) as server:
        pages = list(reader_of(server).read("traces", DAY, light=True))
    assert len(ids(pages)) == 230
    assert {page.kind for page in pages} == {Kind.TRACE_CORE}
    assert {item["input"] for page in pages for item in page.items} == {None}


def test_a_full_millisecond_of_traces_is_walked_by_id(reader_of: MakeReader) -> None:
    dataset = Dataset()
    for number in range(230):
        dataset.put_trace({"id": f"t{number}", "timestamp": TIED})
    with MockLangfuse(dataset, shuffle_ties=True) as server:
        pages = list(reader_of(server).read("traces", DAY))
        by_id = [r for r in server.requests if r.query["orderBy"] == ["id.asc"]]
    assert len(ids(pages)) == 230
    assert [request.query["page"][0] for request in by_id] == ["1", "2", "3"]
    assert {(segment.proof, segment.promised, segment.read) for segment in closed(pages)} == {("counted", 230, 230)}


def tied_observations(types: list[str], count: int = 230) -> Dataset:
    dataset = Dataset()
    for number in range(count):
        kind = types[number % len(types)]
        dataset.put_observation({"id": f"o{number}", "traceId": "t", "type": kind, "startTime": TIED})
    return dataset


def test_a_full_millisecond_without_order_is_emptied_by_leaving_out_what_came(reader_of: MakeReader) -> None:
    with MockLangfuse(tied_observations(["SPAN"]), shuffle_ties=True) as server:
        pages = list(reader_of(server).read("observations", DAY))
        sent = len(server.requests)
    assert len(ids(pages)) == 230
    assert {segment.proof for segment in closed(pages)} == {"walked"}
    assert sent <= 8


def test_a_millisecond_with_more_rows_than_a_filter_can_name_is_read_by_its_parts(reader_of: MakeReader) -> None:
    types = ["GENERATION", "SPAN", "EVENT", "TOOL", "AGENT"]
    with MockLangfuse(tied_observations(types, 1_500), shuffle_ties=True) as server:
        pages = list(reader_of(server).read("observations", DAY))
        longest = max(len(r.query.get("filter", [""])[0]) for r in server.requests)
    assert len(ids(pages)) == 1_500
    assert {segment.proof for segment in closed(pages)} == {"walked"}
    assert longest < 12_000


def test_what_cannot_be_taken_apart_is_doubtful(reader_of: MakeReader) -> None:
    with MockLangfuse(tied_observations(["SPAN"]), shuffle_ties=True, version="3.100.0") as server:
        pages = list(reader_of(server).read("observations", DAY))
    assert "doubtful" in {segment.proof for segment in closed(pages)}
    assert merge(segment.window for segment in closed(pages)) == [DAY]


def test_a_count_that_does_not_agree_is_read_again_before_it_is_doubted(reader_of: MakeReader) -> None:
    dataset = one_day()
    first, *_, last = [row["id"] for row in dataset.traces()]
    with MockLangfuse(dataset) as server:
        # Deleted when its page is read already: the count of the next one lacks it.
        server.before_answer = lambda request: dataset.delete_trace(first) if request.number == 2 else None
        pages = list(reader_of(server).read("traces", DAY))
    assert last in ids(pages)
    assert {segment.proof for segment in closed(pages)} == {"counted"}


def test_a_list_that_keeps_less_than_it_promises_is_an_error(reader_of: MakeReader) -> None:
    with MockLangfuse(one_day()) as server:
        server.faults.add("half_page", path="/traces", times=None)
        with pytest.raises(UnexpectedAnswerError, match="fewer rows"):
            list(reader_of(server).read("traces", DAY))


@pytest.mark.parametrize("source", ["traces", "observations", "scores", "sessions"])
def test_where_history_begins_is_found(reader_of: MakeReader, source: str) -> None:
    dataset = one_day(20)
    field = {"observations": "startTime", "sessions": "createdAt"}.get(source, "timestamp")
    with MockLangfuse(dataset) as server:
        oldest = reader_of(server).oldest(source, DAY.end + timedelta(days=3))
    first = min(datetime.fromisoformat(row[field]) for row in getattr(dataset, source)())
    assert oldest is not None
    assert timedelta(0) <= first - oldest <= timedelta(days=1)


@pytest.mark.parametrize("source", ["traces", "observations", "scores", "sessions"])
def test_a_cut_answer_about_the_beginning_hides_no_history(reader_of: MakeReader, source: str) -> None:
    with MockLangfuse(one_day(20)) as server:
        server.faults.add("half_page", times=1)
        oldest = reader_of(server).oldest(source, DAY.end + timedelta(days=3))
    assert oldest is not None
    assert oldest < DAY.start + timedelta(hours=4)


def test_a_project_without_rows_has_no_beginning(reader_of: MakeReader) -> None:
    with MockLangfuse(Dataset()) as server:
        reader = reader_of(server)
        assert [reader.oldest(s, DAY.end) for s in ("traces", "observations", "scores", "sessions")] == [None] * 4


def test_a_server_too_slow_for_all_of_history_is_asked_in_shorter_stretches(reader_of: MakeReader) -> None:
    dataset = one_day(40)
    with MockLangfuse(dataset, faults=Faults(timeout_above_rows=15)) as server:
        oldest = reader_of(server).oldest("traces", DAY.end + timedelta(days=1))
    assert oldest is not None
    assert oldest <= min(datetime.fromisoformat(row["timestamp"]) for row in dataset.traces())


@pytest.mark.parametrize(("version", "path"), [("3.178.0", "/v2/scores"), ("3.52.0", "/scores")])
def test_threads_that_find_out_together_settle_on_the_best_list_of_scores(
    reader_of: MakeReader, version: str, path: str
) -> None:
    dataset = one_day(60)
    hours = [Window(DAY.start + timedelta(hours=h), DAY.start + timedelta(hours=h + 1)) for h in range(25)]
    with MockLangfuse(dataset, version=version) as server:
        reader = reader_of(server)
        with ThreadPoolExecutor(8) as pool:
            pages = [
                page for found in pool.map(lambda hour: list(reader.read("scores", hour)), hours) for page in found
            ]
        answered = {r.path.removeprefix("/api/public") for r in server.requests if r.status == 200}
    assert answered == {path}
    expected = [row["id"] for row in dataset.scores() if path != "/scores" or row["traceId"]]
    assert ids(pages) == set(expected)


def test_a_list_of_scores_that_has_answered_is_not_given_up_in_the_middle(reader_of: MakeReader) -> None:
    dataset = one_day(250)
    with MockLangfuse(dataset) as server:
        reader = reader_of(server)
        server.faults.add("status", path="/v3/scores", status=404, after=1)
        with pytest.raises(ApiGoneError):
            list(reader.read("scores", DAY))
        pages = list(reader.read("scores", DAY))
        assert {r.path for r in server.requests} == {"/api/public/v3/scores"}
    assert {page.kind for page in pages} == {Kind.SCORE_V3}


def test_a_server_without_any_list_of_scores_says_so(reader_of: MakeReader) -> None:
    with MockLangfuse(Dataset(), api="v4", version="3.50.0") as server, pytest.raises(ApiGoneError):
        list(reader_of(server).read("scores", DAY))


def test_a_server_that_times_out_on_everything_is_given_up_after_some_questions(reader_of: MakeReader) -> None:
    with MockLangfuse(one_day(), faults=Faults(timeout_above_rows=0)) as server:
        with pytest.raises(TooMuchError):
            list(reader_of(server).read("traces", DAY))
        assert len(server.requests) <= 80


# One session


def of_session(dataset: Dataset, session: str) -> dict[str, set[Any]]:
    traces = {row["id"] for row in dataset.traces() if row["sessionId"] == session}
    return {
        "traces": traces,
        "observations": {row["id"] for row in dataset.observations() if row["traceId"] in traces},
        "scores": {row["id"] for row in dataset.scores() if row["traceId"] in traces},
    }


@pytest.mark.parametrize("version", ["3.225.4", "3.150.0"])
def test_a_session_comes_with_all_that_belongs_to_its_traces(reader_of: MakeReader, version: str) -> None:
    dataset = one_day(80)
    session = next(row["sessionId"] for row in dataset.traces() if row["sessionId"])
    with MockLangfuse(dataset, version=version, overcount=True) as server:
        pages = list(reader_of(server).session(session, DAY.end + timedelta(days=1)))
    expected = of_session(dataset, session)
    assert ids([page for page in pages if page.kind is Kind.TRACE]) == expected["traces"]
    assert ids([page for page in pages if page.kind is Kind.OBSERVATION]) == expected["observations"]
    scores = ids([page for page in pages if page.kind in (Kind.SCORE_V3, Kind.SCORE_LEGACY)])
    assert scores >= expected["scores"]
    assert closed(pages) == []


def test_a_session_that_does_not_exist_is_empty(reader_of: MakeReader) -> None:
    with MockLangfuse(one_day(20)) as server:
        assert ids(list(reader_of(server).session("nobody", DAY.end))) == set()


def test_time_outs_of_all_lists_count_together(reader_of: MakeReader) -> None:
    """After 30 in a run nothing is split any more, whatever was being read."""
    with MockLangfuse(one_day(5)) as server:
        reader = reader_of(server)
        server.faults.add("status", status=422, times=None)
        sent = []
        for source in ("observations", "scores", "traces"):
            with pytest.raises(TooMuchError):
                list(reader.read(source, DAY))
            sent.append(len(server.requests))
    assert 31 <= sent[0] <= 33
    assert sent[-1] <= sent[0] + 4
