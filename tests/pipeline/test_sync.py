"""A sync end to end: the mock server on one side, real databases on the other."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine
from syncing import (
    EDGE,
    NOW,
    Recorded,
    by_key,
    corpus,
    coverage,
    exactly,
    ledger,
    listed_traces,
    make_small,
    objects,
    project,
    recorded,
    recorded_scores_v3,
    rows,
    same_tables,
    small,
    sync,
    sync_all,
    watermarks,
    whole_tables,
)

from etl.demo import Dataset, Faults, MockLangfuse, Project, generate
from etl.demo.endpoints.context import Request
from etl.errors import ClockError, ConfigError
from etl.intervals import Window, merge

STREAMS = ("traces", "observations", "scores", "sessions")


def assert_whole(engine: Engine, dataset: Dataset) -> None:
    """Every object of the data is in the tables, once, and no other."""
    assert objects(engine, "traces") == listed_traces(dataset)
    assert objects(engine, "observations") == by_key(dataset.observations())
    assert objects(engine, "sessions") == by_key(dataset.sessions())
    assert set(objects(engine, "scores")) == {row["id"] for row in dataset.scores()}


def assert_counted_windows_agree(windows: list[dict[str, Any]]) -> None:
    counted = [(row["promised"], row["read"], row["stored"]) for row in windows if row["proof"] == "counted"]
    assert [row for row in counted if len(set(row)) > 1] == []


# The recorded data


def test_every_recorded_object_comes_back_as_the_server_answered_it(recorded_sync: Recorded) -> None:
    report, engine = recorded_sync.report, recorded_sync.engine
    assert (report.status, report.error, report.exit_code) == ("ok", None, 0)
    assert exactly(objects(engine, "traces")) == exactly(by_key(recorded("traces"), "observations", "scores"))
    assert exactly(objects(engine, "observations")) == exactly(by_key(recorded("observations_v1")))
    assert exactly(objects(engine, "sessions")) == exactly(by_key(recorded("sessions")))
    assert exactly(objects(engine, "scores")) == exactly(by_key(recorded_scores_v3()))


def test_a_second_sync_changes_no_row(recorded_sync: Recorded) -> None:
    assert (recorded_sync.later.status, recorded_sync.later.total("rows_written")) == ("ok", 0)
    assert recorded_sync.later_tables == recorded_sync.tables


def test_sqlite_and_postgres_hold_the_same(recorded_syncs: Callable[[str], Recorded]) -> None:
    assert same_tables(recorded_syncs("sqlite").engine) == same_tables(recorded_syncs("postgres").engine)


def test_the_ledger_proves_every_window_and_the_watermark_is_the_edge(recorded_sync: Recorded) -> None:
    windows = recorded_sync.ledger
    assert_counted_windows_agree(windows)
    assert {(row["stream"], row["proof"]) for row in windows} == {
        ("traces", "counted"), ("observations", "walked"), ("scores", "walked"), ("sessions", "counted"),
    }  # fmt: skip
    for stream in STREAMS:
        found = [row for row in windows if row["stream"] == stream]
        (covered,) = merge(Window(row["window_start"], row["window_end"]) for row in found)
        assert covered.end == EDGE
        length = sum((row["window_end"] - row["window_start"] for row in found), timedelta())
        assert length == covered.end - covered.start, "windows overlap"
        stored = len(recorded_sync.tables[stream])
        assert [sum(row[count] for row in found) for count in ("read", "stored", "changed")] == [stored] * 3
    assert recorded_sync.watermarks == dict.fromkeys(STREAMS, EDGE)
    reported = {name: one.watermark for name, one in recorded_sync.report.streams.items()}
    assert reported == recorded_sync.watermarks


def test_a_run_counts_its_requests_and_rows(recorded_sync: Recorded) -> None:
    report, run = recorded_sync.report, recorded_sync.run
    probes = [request for request in recorded_sync.requests if request.path.endswith(("/health", "/projects"))]
    assert len(probes) == 2
    assert run["requests"] == report.requests <= len(recorded_sync.requests) - len(probes)
    assert (run["status"], run["trigger"], run["error"]) == ("ok", "test", None)
    assert run["rows_written"] == report.total("rows_written") == sum(len(recorded_sync.tables[s]) for s in STREAMS)
    assert run["rows_read"] == report.total("rows_read")


def test_every_list_request_names_both_bounds_page_one_and_at_most_a_hundred_rows(recorded_sync: Recorded) -> None:
    lists = [r for r in recorded_sync.requests if r.path.endswith(("/traces", "/observations", "/sessions", "/scores"))]
    assert {len([n for n in r.query if n.startswith(("from", "to"))]) for r in lists} == {2}
    assert max(int(r.query["limit"][0]) for r in lists) == 100
    assert {r.query["page"][0] for r in lists if "page" in r.query} == {"1"}
    assert {r.query["fields"][0] for r in lists if r.path.endswith("/traces")} <= {"core,io", "core"}


# What servers do


def test_ties_that_change_places_from_request_to_request_lose_nothing(database: Engine) -> None:
    with MockLangfuse(corpus(), shuffle_ties=True) as server:
        report = sync(database, server)
    assert report.status == "ok"
    assert_whole(database, corpus())
    assert_counted_windows_agree(ledger(database))


def test_five_hundred_traces_of_one_millisecond_are_all_there_and_counted(engine: Engine) -> None:
    dataset = Dataset()
    for number in range(500):
        dataset.put_trace({"id": f"tied-{number:03d}", "timestamp": "2026-11-20T10:00:00.123Z"})
    for number in range(120):
        dataset.put_trace({"id": f"other-{number:03d}", "timestamp": f"2026-11-20T10:00:00.{number + 60:03d}Z"})
    with MockLangfuse(dataset, shuffle_ties=True) as server:
        report = sync(engine, server)
    assert report.status == "ok"
    assert objects(engine, "traces") == listed_traces(dataset)
    windows = [row for row in ledger(engine) if row["stream"] == "traces"]
    assert {row["proof"] for row in windows} == {"counted"}
    assert sum(row["read"] for row in windows) == 620


def tied_children(types: Sequence[str], sources: Sequence[str]) -> Dataset:
    """250 observations and 250 scores of one millisecond."""
    dataset = Dataset()
    tied = "2026-11-20T10:00:00.123Z"
    for number in range(250):
        kind, source = types[number % len(types)], sources[number % len(sources)]
        dataset.put_observation({"id": f"o-{number:03d}", "traceId": "t", "type": kind, "startTime": tied})
        dataset.put_score(
            {"id": f"s-{number:03d}", "traceId": "t", "name": "n", "value": 1, "timestamp": tied, "source": source}
        )
    return dataset


def test_a_full_millisecond_of_a_list_without_order_is_read_to_its_end(database: Engine) -> None:
    with MockLangfuse(tied_children(["SPAN"], ["API"]), shuffle_ties=True, version="3.178.0") as server:
        report = sync(database, server)
    assert (report.status, report.error) == ("ok", None)
    assert (len(rows(database, "observations")), len(rows(database, "scores"))) == (250, 250)


def test_a_full_millisecond_of_an_old_server_is_read_by_its_parts(database: Engine) -> None:
    dataset = tied_children(["GENERATION", "SPAN", "EVENT"], ["API", "EVAL", "ANNOTATION"])
    with MockLangfuse(dataset, shuffle_ties=True, version="3.100.0") as server:
        report = sync(database, server)
    assert (report.status, report.error) == ("ok", None)
    assert (len(rows(database, "observations")), len(rows(database, "scores"))) == (250, 250)


def test_a_millisecond_that_an_old_server_cannot_take_apart_is_doubtful_and_the_run_says_so(database: Engine) -> None:
    with MockLangfuse(tied_children(["SPAN"], ["API"]), shuffle_ties=True, version="3.100.0") as server:
        report = sync(database, server)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "doubtful" in (report.error or "")
    for stream in ("observations", "scores"):
        proofs = {row["proof"] for row in ledger(database) if row["stream"] == stream}
        assert "doubtful" in proofs
        assert watermarks(database).get(stream) is None


def test_5000_generated_traces_are_read_whole_with_few_requests(database: Engine) -> None:
    dataset = generate(traces=5_000, days=4, observations_per_trace=0, scores_per_trace=0, io_bytes=0)
    with MockLangfuse(dataset, shuffle_ties=True, gzip=True) as server:
        report = sync(database, server)
        asked = sum(request.path.endswith("/public/traces") for request in server.requests)
    assert report.status == "ok"
    assert objects(database, "traces") == listed_traces(dataset)
    assert_counted_windows_agree(ledger(database))
    assert asked <= 1.05 * 50 + 5 * 5  # each of the days begins with a request of its own


def test_totals_that_count_too_much_keep_nothing_back(database: Engine) -> None:
    dataset = make_small()
    for row in dataset.traces()[::7]:
        dataset.put_trace(row)
    for row in dataset.observations()[::5]:
        dataset.put_observation(row)
    for row in dataset.scores()[::5]:
        dataset.put_score(row)
    with MockLangfuse(dataset, overcount=True, version="3.178.0") as server:
        report = sync(database, server)
    assert (report.status, report.error) == ("ok", None)
    assert_whole(database, dataset)


@pytest.mark.parametrize(
    ("version", "api_of_scores"),
    [("3.225.4", "/v3/scores"), ("3.178.0", "/v2/scores"), ("3.72.0", "/v2/scores"), ("3.52.0", "/scores")],
)
def test_older_servers_are_read_with_what_they_have(database: Engine, version: str, api_of_scores: str) -> None:
    with MockLangfuse(small(), version=version) as server:
        report = sync(database, server)
        answered = {r.path.removeprefix("/api/public") for r in server.requests if r.status == 200}
    assert (report.status, report.error) == ("ok", None)
    assert {path for path in answered if path.endswith("scores")} == {api_of_scores}
    assert objects(database, "traces") == listed_traces(small())
    assert objects(database, "observations") == by_key(small().observations())
    # GET /scores knows only scores of traces.
    expected = [row for row in small().scores() if api_of_scores != "/scores" or row["traceId"]]
    assert set(objects(database, "scores")) == {row["id"] for row in expected}
    assert rows(database, "projects")[0]["server_version"] == version


def test_a_server_from_before_environments_gives_rows_without_one(database: Engine) -> None:
    with MockLangfuse(small(), version="3.30.0") as server:
        report = sync(database, server)
    assert (report.status, report.error) == ("ok", None)
    expected = by_key(small().traces(), "observations", "scores", "environment")
    assert objects(database, "traces") == expected
    assert {row["environment"] for row in rows(database, "traces")} == {None}


def test_a_trace_that_the_server_cannot_send_is_stored_without_contents_and_the_run_says_so(database: Engine) -> None:
    poison = small().traces()[150]["id"]
    with MockLangfuse(small(), faults=Faults(poison=[poison])) as server:
        report = sync(database, server)
        refused = sum(request.status == 422 for request in server.requests)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "partial" in (report.error or "")
    stored, expected = objects(database, "traces"), listed_traces(small())
    without_contents, whole = stored.pop(poison), expected.pop(poison)
    assert stored == expected
    for name in ("input", "output", "metadata"):
        without_contents.pop(name, None)
        whole.pop(name)
    assert without_contents == whole
    proofs = [row["proof"] for row in ledger(database) if row["stream"] == "traces"]
    assert (proofs.count("partial"), set(proofs)) == (1, {"partial", "counted"})
    assert watermarks(database)["traces"] == EDGE
    assert refused <= 12


def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(database: Engine) -> None:
    with MockLangfuse(small(), faults=Faults(oversize=30_000)) as server:
        report = sync(database, server, streams=["traces"])
        requests = len(server.requests)
    assert (report.status, report.error) == ("ok", None)
    assert objects(database, "traces").keys() == listed_traces(small()).keys()
    assert requests < 80


def test_a_server_that_times_out_on_many_rows_is_asked_for_less_until_all_is_there(database: Engine) -> None:
    with MockLangfuse(small(), faults=Faults(timeout_above_rows=70)) as server:
        for _ in range(3):
            report = sync(database, server, streams=["traces"])
            if report.status == "ok":
                break
    assert (report.status, report.error) == ("ok", None)
    assert objects(database, "traces").keys() == listed_traces(small()).keys()
    assert_counted_windows_agree(ledger(database))


def test_rows_that_come_and_go_during_the_run_leave_the_others_whole(database: Engine) -> None:
    dataset = make_small()
    ids = [row["id"] for row in dataset.traces()]
    steady, fleeting = set(ids[::2]), [row for row in dataset.traces() if row["id"] in set(ids[1::2])]

    def change(request: Request) -> None:
        chosen = fleeting[request.number * 7 % len(fleeting)]
        if request.number % 2:
            dataset.delete_trace(chosen["id"])
        else:
            dataset.put_trace(chosen)

    with MockLangfuse(dataset) as server:
        server.before_answer = change
        sync(database, server)
        server.before_answer = None
        sync(database, server, now=NOW + timedelta(minutes=5))
    assert steady <= set(objects(database, "traces"))


# Settings


def test_without_content_no_input_or_output_is_stored(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        report = sync(database, server, content="none")
    assert report.status == "ok"
    for table in ("traces", "observations"):
        found = rows(database, table)
        assert {(row["input"], row["output"]) for row in found} == {(None, None)}
    expected = by_key(small().traces(), "observations", "scores", "input", "output")
    assert by_key(objects(database, "traces").values(), "input", "output") == expected


def test_contents_that_are_wanted_later_are_read_then(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        sync(database, server, content="none")
        report = sync(database, server, now=NOW + timedelta(minutes=5))
    assert report.status == "ok"
    assert exactly(objects(database, "traces")) == exactly(listed_traces(small()))


def test_only_the_streams_that_are_set_are_read(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        report = sync(database, server, streams=["scores", "sessions"])
        asked = {request.path.rpartition("/")[2] for request in server.requests}
    assert set(report.streams) == {"scores", "sessions"}
    assert set(objects(database, "scores")) == {row["id"] for row in small().scores()}
    assert objects(database, "sessions") == by_key(small().sessions())
    assert (rows(database, "traces"), rows(database, "observations")) == ([], [])
    assert "observations" not in asked


def test_a_stream_named_for_one_run_leaves_the_others_alone(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        (report,) = sync_all(database, [project(server)], streams=["sessions"])
        assert set(report.streams) == {"sessions"}
        sync(database, server)
    assert_whole(database, small())


def test_a_start_leaves_out_what_is_older(database: Engine) -> None:
    start = datetime(2026, 11, 17, 12, tzinfo=UTC)
    with MockLangfuse(small()) as server:
        report = sync(database, server, start=start)
    assert report.status == "ok"
    newer = {row["id"] for row in small().traces() if row["timestamp"] >= "2026-11-17T12"}
    assert 0 < len(newer) < 300
    assert set(objects(database, "traces")) == newer
    assert coverage(database, "traces") == [Window(start, EDGE)]
    assert watermarks(database)["traces"] == EDGE


def test_an_earlier_start_reads_what_is_missing_and_nothing_twice(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        sync(database, server, start=datetime(2026, 11, 17, 12, tzinfo=UTC), streams=["traces"])
        before = {row["id"]: row["changed_at"] for row in rows(database, "traces")}
        later = NOW + timedelta(minutes=5)
        report = sync(database, server, now=later, start=datetime(2026, 11, 10, tzinfo=UTC), streams=["traces"])
    assert report.status == "ok"
    assert len(rows(database, "traces")) == 300
    assert {row["id"]: row["changed_at"] for row in rows(database, "traces") if row["id"] in before} == before
    assert report.total("rows_written") == 300 - len(before)


def test_without_its_start_a_project_is_read_from_the_beginning(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        sync(database, server, start=datetime(2026, 11, 17, 12, tzinfo=UTC), streams=["traces"])
        assert len(rows(database, "traces")) < 300
        for minutes in (5, 10):
            server.requests.clear()
            assert sync(database, server, now=NOW + timedelta(minutes=minutes), streams=["traces"]).status == "ok"
            assert len(rows(database, "traces")) == 300
    lists = [request.path for request in server.requests if request.path.endswith("/traces")]
    assert len(lists) == 1, "where history begins is asked for once"


def test_a_start_in_the_future_is_a_setting_to_correct(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        report = sync(database, server, start=NOW + timedelta(days=1))
    assert (report.status, report.exit_code) == ("failed", 3)
    assert "start" in (report.error or "")
    assert ledger(database) == []


def test_an_empty_project_is_covered_and_ok(database: Engine) -> None:
    with MockLangfuse(Dataset()) as server:
        report = sync(database, server)
    assert (report.status, report.total("rows_read")) == ("ok", 0)
    assert watermarks(database) == dict.fromkeys(STREAMS, EDGE)


# Several projects


def other_project(name: str = "other") -> MockLangfuse:
    return MockLangfuse(small(), project=Project(id=name, name=name, organization_id="org-other"))


def test_a_wrong_key_of_one_project_does_not_keep_the_other_from_being_synced(database: Engine) -> None:
    with MockLangfuse(small()) as server, other_project() as other:
        wrong, right = sync_all(
            database,
            [
                project(server, "wrong", secret="sk-lf-wrong", public_key_env="A_PUBLIC", secret_key_env="A_SECRET"),
                project(other, "right"),
            ],
        )
    assert (wrong.status, wrong.exit_code) == ("failed", 4)
    assert "A_PUBLIC and A_SECRET" in (wrong.error or "")
    assert (right.status, right.exit_code) == ("ok", 0)
    assert {row["project_id"] for row in rows(database, "traces")} == {"other"}
    assert len(rows(database, "traces")) == 300


def test_two_projects_are_kept_apart(database: Engine) -> None:
    with MockLangfuse(small()) as server, other_project() as other:
        reports = sync_all(database, [project(server, "one"), project(other, "two")])
    assert [report.status for report in reports] == ["ok", "ok"]
    per_project = [
        {row["id"] for row in rows(database, "traces") if row["project_id"] == name} for name in ("proj-shop", "other")
    ]
    assert per_project[0] == per_project[1]
    assert len(per_project[0]) == 300


def test_two_entries_for_one_project_are_refused_before_anything_is_read(database: Engine) -> None:
    with MockLangfuse(small()) as server, pytest.raises(ConfigError, match="one and two"):
        sync_all(database, [project(server, "one"), project(server, "two")])
    assert (rows(database, "traces"), ledger(database), rows(database, "sync_runs")) == ([], [], [])


# The clock


def test_a_server_clock_that_is_behind_is_the_one_that_counts(database: Engine) -> None:
    behind = datetime(2025, 11, 16, 12, tzinfo=UTC)
    dataset = Dataset()
    dataset.put_trace({"id": "t", "timestamp": "2025-11-10T00:00:00.000Z"})
    with MockLangfuse(dataset, clock=lambda: behind) as server:
        report = sync(database, server, now=None, streams=["traces"])
    (covered,) = coverage(database, "traces")
    assert report.status == "ok"
    assert abs(covered.end - (behind - timedelta(minutes=2))) < timedelta(seconds=30)


def test_a_server_clock_that_is_ahead_moves_nothing(database: Engine) -> None:
    started = datetime.now(UTC)
    with MockLangfuse(small(), clock=lambda: started + timedelta(days=40)) as server:
        sync(database, server, now=None, streams=["sessions"])
    (covered,) = coverage(database, "sessions")
    assert covered.end < datetime.now(UTC)


def test_coverage_in_the_future_is_an_error_and_nothing_is_read(database: Engine) -> None:
    with MockLangfuse(small()) as server:
        sync(database, server)
        before = whole_tables(database), ledger(database)
        report = sync(database, server, now=NOW - timedelta(days=1))
    assert (report.status, report.exit_code) == ("failed", ClockError.exit_code)
    assert "clock" in (report.error or "")
    assert (whole_tables(database), ledger(database)) == before
    assert rows(database, "sync_runs")[-1]["status"] == "failed"


# Servers that cannot be read


def test_a_page_that_is_not_langfuse_is_said_and_nothing_is_stored(database: Engine) -> None:
    faults = Faults()
    faults.add("html", times=None)
    with MockLangfuse(small(), faults=faults) as server:
        report = sync(database, server)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "LANGFUSE_BASE_URL" in (report.error or "")
    assert rows(database, "projects") == []
