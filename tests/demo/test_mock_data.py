"""The data set of the mock server: generated, put, derived, deleted."""

import gzip
import itertools
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from etl.demo import Dataset, generate, load_corpus, shapes
from etl.demo.times import iso, parse_ms

END = datetime(2026, 11, 19, tzinfo=UTC)


def small(seed: int = 7) -> Dataset:
    return generate(traces=400, seed=seed, days=3, end=END)


def test_the_same_arguments_generate_the_same_rows() -> None:
    first, second, other = small(), small(), small(seed=8)
    for name in ("traces", "observations", "scores", "sessions", "events"):
        assert getattr(first, name)() == getattr(second, name)()
        assert getattr(first, name)() != getattr(other, name)()


def test_generated_rows_are_as_many_and_as_varied_as_asked() -> None:
    dataset = generate(traces=400, days=3, observations_per_trace=5, scores_per_trace=2, end=END)
    traces, observations, scores = dataset.traces(), dataset.observations(), dataset.scores()
    assert (len(traces), len(observations)) == (400, 2000)
    assert len([score for score in scores if score["traceId"]]) == 800
    assert {row["type"] for row in observations} >= {"SPAN", "GENERATION", "EVENT", "TOOL", "AGENT", "EMBEDDING"}
    assert {score["dataType"] for score in scores} == {"NUMERIC", "BOOLEAN", "CATEGORICAL", "TEXT"}
    moments = [row["timestamp"] for row in traces]
    assert len(set(moments)) < len(moments), "some traces share a millisecond"
    assert min(moments) >= "2026-11-16T00:00:00.000Z"
    assert max(moments) < "2026-11-19T00:00:00.000Z"
    assert {row["sessionId"] is None for row in traces} == {True, False}
    assert any(row["totalCost"] > 0 for row in traces)
    assert any(not row["name"].isascii() for row in traces)
    sizes = [len(str(row["input"])) + len(str(row["output"])) for row in observations if row["input"]]
    assert 700 < sum(sizes) / len(sizes) < 2500


def test_sizes_of_nothing_are_possible() -> None:
    dataset = generate(traces=3, observations_per_trace=0, scores_per_trace=0, io_bytes=0)
    assert (len(dataset.traces()), dataset.observations(), dataset.scores()) == (3, [], [])


def test_a_trace_needs_only_an_id_and_a_timestamp() -> None:
    dataset = Dataset()
    dataset.put_trace({"id": "t1", "timestamp": "2026-11-10T10:00:00.000Z", "sessionId": "s1", "newField": [1]})
    (trace,) = dataset.traces()
    assert (trace["name"], trace["tags"], trace["environment"], trace["newField"]) == ("", [], "default", [1])
    assert trace["htmlPath"] == "/project/proj-shop/traces/t1"
    assert [row["id"] for row in dataset.sessions()] == ["s1"]


def test_a_session_begins_when_the_server_first_hears_of_it() -> None:
    dataset, start, later = Dataset(), "2026-11-10T10:00:00.000Z", "2026-11-19T10:00:00.000Z"
    dataset.put_trace({"id": "t1", "timestamp": start, "createdAt": start})
    dataset.put_trace({"id": "t1", "timestamp": start, "createdAt": start, "updatedAt": later, "sessionId": "s1"})
    dataset.put_trace({"id": "t2", "timestamp": start, "createdAt": start, "sessionId": "s2"})
    assert {row["id"]: row["createdAt"] for row in dataset.sessions()} == {"s1": later, "s2": start}


def test_an_id_on_two_days_makes_two_rows_and_a_deletion_takes_both() -> None:
    dataset = Dataset()
    for day in ("10", "11", "11"):
        dataset.put_trace({"id": "t1", "timestamp": f"2026-11-{day}T10:00:00.000Z"})
    dataset.put_observation({"id": "o1", "traceId": "t1", "startTime": "2026-11-10T10:00:00.000Z"})
    dataset.put_score({"id": "s1", "traceId": "t1", "timestamp": "2026-11-10T10:00:00.000Z"})
    assert [row["timestamp"][:10] for row in dataset.traces()] == ["2026-11-10", "2026-11-11"]
    dataset.delete_trace("t1")
    assert (dataset.traces(), dataset.observations(), dataset.scores(), dataset.events()) == ([], [], [], [])


def test_parts_are_replaced_and_deleted_and_the_trace_follows() -> None:
    dataset = Dataset()
    start = "2026-11-10T10:00:00.000Z"
    dataset.put_trace({"id": "t1", "timestamp": start})
    for end, cost in ((1500, 0.1), (2500, 0.2)):
        dataset.put_observation(
            {
                "id": "o1",
                "traceId": "t1",
                "startTime": start,
                "endTime": iso(parse_ms(start) + end),
                "costDetails": {"input": cost, "total": cost},
                "usageDetails": {"input": 3, "output": 4},
            }
        )
    dataset.put_score({"id": "s1", "traceId": "t1", "timestamp": start})
    (trace,), (observation,) = dataset.traces(), dataset.observations()
    assert (trace["latency"], trace["totalCost"], trace["observations"], trace["scores"]) == (2.5, 0.2, ["o1"], ["s1"])
    assert (observation["latency"], observation["totalTokens"], observation["calculatedInputCost"]) == (2.5, 7, 0.2)
    dataset.delete_observation("o1")
    dataset.delete_score("s1")
    (trace,) = dataset.traces()
    assert (trace["latency"], trace["totalCost"], trace["observations"], trace["scores"]) == (0, 0, [], [])
    assert [event["id"] for event in dataset.events()] == ["t-t1"]


def test_an_event_follows_its_trace_and_observation() -> None:
    dataset = Dataset()
    start = "2026-11-10T10:00:00.000Z"
    dataset.put_observation({"id": "o1", "traceId": "t1", "startTime": start, "input": {"a": 1}})
    (event,) = dataset.events()
    assert (event["sessionId"], event["parentObservationId"], event["input"]) == ("", "t-t1", '{"a":1}')
    dataset.put_trace({"id": "t1", "timestamp": start, "sessionId": "s1", "name": "n", "metadata": {"k": "v"}})
    events = {event["id"]: event for event in dataset.events()}
    assert (events["o1"]["sessionId"], events["o1"]["traceName"], events["o1"]["metadata"]) == ("s1", "n", {"k": "v"})
    assert events["t-t1"]["isRootObservation"]


def test_an_observation_that_moves_leaves_no_event_behind() -> None:
    dataset = Dataset()
    for second in range(3):
        dataset.put_observation({"id": "o1", "traceId": "t1", "startTime": f"2026-11-10T10:00:0{second}.000Z"})
        dataset.put_trace({"id": "t1", "timestamp": f"2026-11-10T10:00:0{second}.000Z"})
    assert {(row["id"], row["startTime"][17:19]) for row in dataset.events()} == {("o1", "02"), ("t-t1", "02")}


def test_a_trace_sent_over_otel_has_no_pseudo_span() -> None:
    dataset = Dataset()
    dataset.put_trace({"id": "t1", "timestamp": "2026-11-10T10:00:00.000Z"}, pseudo_span=False)
    assert dataset.events() == []


def test_events_derived_from_legacy_rows_are_the_recorded_ones() -> None:
    """All fields of all 4,475 rows, but what the derivation cannot know.

    That is: `updatedAt` of bookmarked traces (the mark was written into the older table only), inputs whose stored
    text was JSON in an unusual spelling, and one observation whose trace is not in the corpus.
    """
    dataset = load_corpus()
    traces = {row["id"]: row for row in dataset.traces()}
    recorded = {(row["traceId"], row["id"]): row for row in dataset.events()}
    derived = [shapes.event_of_trace(row) for row in traces.values()]
    derived += [
        shapes.event_of_observation(row, traces[row["traceId"]])
        for row in dataset.observations()
        if row["traceId"] in traces
    ]
    differing: dict[str, int] = {}
    compared = 0
    for row in derived:
        known = recorded.get((row["traceId"], row["id"]))
        if known is not None:
            compared += 1
            for name in known:
                if row[name] != known[name]:
                    differing[name] = differing.get(name, 0) + 1
    assert compared == 4474
    assert differing == {"updatedAt": 12, "input": 3}


def test_scores_in_the_v3_shape_are_the_recorded_ones() -> None:
    lines = gzip.decompress((Path(__file__).parent / "data" / "scores_v3.jsonl.gz").read_bytes()).splitlines()
    recorded = {row["id"]: row for row in map(json.loads, lines)}
    groups = frozenset({"details", "subject", "annotation"})
    assert {row["id"]: shapes.score_v3(row, groups) for row in load_corpus().scores()} == recorded


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-11-08T00:26:26.229Z", "2026-11-08T00:26:26.229Z"),
        ("2026-11-08T00:26:26.2299999Z", "2026-11-08T00:26:26.229Z"),
        ("2026-11-08T01:26:26.2+01:00", "2026-11-08T00:26:26.200Z"),
        ("2026-11-08T00:26Z", "2026-11-08T00:26:00.000Z"),
        ("2026-11-08T00:26:26Z", "2026-11-08T00:26:26.000Z"),
    ],
)
def test_instants_are_cut_to_milliseconds(text: str, expected: str) -> None:
    assert iso(parse_ms(text)) == expected


def test_a_table_stays_in_order_whatever_the_order_of_putting() -> None:
    rows = [{"id": f"t{n}", "timestamp": f"2026-11-10T10:00:0{n % 7}.000Z"} for n in range(300)]
    orders: list[list[Any]] = []
    for step in (1, 7, 11):
        dataset = Dataset()
        for number in itertools.islice(itertools.cycle(range(300)), 0, 300 * step, step):
            dataset.put_trace(rows[number])
            if number % 50 == 0:
                dataset.traces()
        orders.append([row["id"] for row in dataset.traces()])
    assert orders[0] == orders[1] == orders[2]
    assert len(orders[0]) == 300


def test_after_an_upgrade_the_v4_history_fills_up_oldest_first_without_what_was_deleted() -> None:
    dataset = generate(traces=20, days=1, observations_per_trace=1, io_bytes=20)
    whole = dataset.events()
    edited, gone, *_ = dataset.traces()
    given = {"id": "given", "traceId": "native", "startTime": whole[-1]["startTime"]}
    dataset.put_event(given)
    dataset.empty_v4()
    assert [row["id"] for row in dataset.events()] == ["given"]
    dataset.put_trace(edited | {"name": "edited"})
    dataset.delete_trace(gone["id"])
    shown = {row["id"]: row for row in dataset.events()}
    assert shown.keys() == {"given", f"t-{edited['id']}"}
    left = dataset.fill_v4(5)
    assert len(dataset.events()) == 7
    assert dataset.fill_v4() == 0
    kept = {row["id"]: row for row in whole if row["traceId"] != gone["id"]}
    filled = {row["id"]: row for row in dataset.events()}
    assert filled.keys() == kept.keys() | {"given"}
    assert left == len(kept) - 6
    assert filled[f"t-{edited['id']}"]["name"] == "edited"
    assert all(filled[id_] == row for id_, row in kept.items() if row["traceId"] != edited["id"])
