"""A sync end to end: the mock server on one side, real databases on the other."""

from collections.abc import Callable
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
    ledger,
    listed_traces,
    objects,
    project,
    recorded,
    recorded_scores_v3,
    rows,
    same_tables,
    sync,
    sync_all,
    watermarks,
    whole_tables,
)

from etl.demo import ALL_FEATURES, Dataset, Faults, MockLangfuse, Project, generate, load_corpus
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
    assert objects(engine, "traces") == by_key(recorded("traces"), "observations", "scores")
    assert objects(engine, "observations") == by_key(recorded("observations_v1"))
    assert objects(engine, "sessions") == by_key(recorded("sessions"))
    assert objects(engine, "scores") == by_key(recorded_scores_v3())


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


def test_five_hundred_traces_of_one_millisecond_are_all_there_and_counted(database: Engine) -> None:
    dataset = Dataset()
    for number in range(500):
        dataset.put_trace({"id": f"tied-{number:03d}", "timestamp": "2026-11-20T10:00:00.123Z"})
    for number in range(120):
        dataset.put_trace({"id": f"other-{number:03d}", "timestamp": f"2026-11-20T10:00:00.{number + 60:03d}Z"})
    with MockLangfuse(dataset, shuffle_ties=True) as server:
        report = sync(database, server)
    assert report.status == "ok"
    assert objects(database, "traces") == listed_traces(dataset)
    windows = [row for row in ledger(database) if row["stream"] == "traces"]
    assert {row["proof"] for row in windows} == {"counted"}
    assert sum(row["read"] for row in windows) == 620


def test_a_full_millisecond_of_every_other_list_is_read_by_its_parts(database: Engine) -> None:
    dataset = Dataset()
    types = ("GENERATION", "SPAN", "EVENT", "TOOL")
    for number in range(250):
        dataset.put_observation({
            "id": f"o-{number:03d}", "traceId": "t", "type": types[number % 4], "startTime": "2026-11-20T10:00:00.123Z",
        })  # fmt: skip
        dataset.put_score({
            "id": f"s-{number:03d}", "traceId": "t", "name": "n", "value": 1, "timestamp": "2026-11-20T10:00:00.123Z",
            "dataType": ("NUMERIC", "BOOLEAN")[number % 2], "source": ("API", "EVAL")[number // 2 % 2],
        })  # fmt: skip
    old = ALL_FEATURES - {"scores_v3"}
    with MockLangfuse(dataset, shuffle_ties=True, features=old, version="3.150.0") as server:
        report = sync(database, server)
    assert report.status == "ok"
    assert (len(rows(database, "observations")), len(rows(database, "scores"))) == (250, 250)
    assert {row["proof"] for row in ledger(database)} == {"counted", "walked"}


def test_a_millisecond_that_no_part_can_empty_is_doubtful_and_the_run_does_not_say_success(database: Engine) -> None:
    dataset = Dataset()
    for number in range(250):
        dataset.put_observation({"id": f"o-{number:03d}", "traceId": "t", "startTime": "2026-11-20T10:00:00.123Z"})
    with MockLangfuse(dataset) as server:
        report = sync(database, server)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "doubtful" in (report.error or "")
    assert "doubtful" in {row["proof"] for row in ledger(database) if row["stream"] == "observations"}
    assert watermarks(database)["observations"] is None


def test_generated_data_of_5000_traces_is_read_whole_with_few_requests(database: Engine) -> None:
    dataset = generate(traces=5_000, days=4, observations_per_trace=1, io_bytes=200)
    with MockLangfuse(dataset, shuffle_ties=True, gzip=True) as server:
        report = sync(database, server)
        asked = sum(request.path.endswith("/public/traces") for request in server.requests)
    assert report.status == "ok"
    assert_whole(database, dataset)
    assert_counted_windows_agree(ledger(database))
    assert asked <= 1.05 * 50 + 4 * 6  # each of the four days begins with a request of its own


def test_totals_that_count_too_much_keep_nothing_back(database: Engine) -> None:
    dataset = load_corpus()
    for row in dataset.traces()[::7]:
        dataset.put_trace(row)
    for row in dataset.observations()[::5]:
        dataset.put_observation(row)
    for row in dataset.scores()[::5]:
        dataset.put_score(row)
    with MockLangfuse(dataset, overcount=True, features=ALL_FEATURES - {"scores_v3"}) as server:
        report = sync(database, server)
    assert (report.status, report.error) == ("ok", None)
    assert_whole(database, dataset)


@pytest.mark.parametrize(
    ("version", "api_of_scores"),
    [("3.225.4", "/v3/scores"), ("3.178.0", "/v2/scores"), ("3.72.0", "/v2/scores"), ("3.52.0", "/scores")],
)
def test_older_servers_are_read_with_what_they_have(database: Engine, version: str, api_of_scores: str) -> None:
    with MockLangfuse(corpus(), version=version) as server:
        report = sync(database, server)
        answered = {r.path.removeprefix("/api/public") for r in server.requests if r.status == 200}
    assert (report.status, report.error) == ("ok", None)
    assert {path for path in answered if path.endswith("scores")} == {api_of_scores}
    assert_oldest_fields(database, with_sessions=api_of_scores != "/scores")
    assert rows(database, "projects")[0]["server_version"] == version


def assert_oldest_fields(engine: Engine, *, with_sessions: bool) -> None:
    assert objects(engine, "traces") == by_key(recorded("traces"), "observations", "scores")
    assert objects(engine, "observations") == by_key(recorded("observations_v1"))
    scores = [row for row in recorded("scores_v2") if with_sessions or row["traceId"]]
    if not with_sessions:  # GET /scores does not know corrections and the scores of sessions
        scores = [row for row in scores if row["dataType"] != "CORRECTION"]
    assert set(objects(engine, "scores")) == {row["id"] for row in scores}


def test_a_server_from_before_environments_gives_rows_without_one(database: Engine) -> None:
    with MockLangfuse(corpus(), version="3.30.0") as server:
        report = sync(database, server)
    assert report.status == "ok"
    expected = by_key(recorded("traces"), "observations", "scores", "environment")
    assert objects(database, "traces") == expected
    assert {row["environment"] for row in rows(database, "traces")} == {None}


def test_a_trace_that_the_server_cannot_send_is_stored_without_contents_and_the_run_says_so(database: Engine) -> None:
    poison = recorded("traces")[600]["id"]
    with MockLangfuse(corpus(), faults=Faults(poison=[poison])) as server:
        report = sync(database, server)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "partial" in (report.error or "")
    expected = by_key(recorded("traces"), "observations", "scores")
    stored = objects(database, "traces")
    core = {n: v for n, v in expected.pop(poison).items() if n not in ("input", "output", "metadata")}
    without_contents = stored.pop(poison)
    assert {name: without_contents[name] for name in core} == core
    assert without_contents["input"] is without_contents["output"] is None
    assert stored == expected
    proofs = [row["proof"] for row in ledger(database) if row["stream"] == "traces"]
    assert proofs.count("partial") == 1
    assert set(proofs) == {"partial", "counted"}
    assert watermarks(database)["traces"] == EDGE


def test_pages_that_are_too_large_are_asked_for_in_smaller_ones(database: Engine) -> None:
    with MockLangfuse(corpus(), faults=Faults(oversize=60_000)) as server:
        report = sync(database, server, streams=["traces", "sessions"])
        requests = len(server.requests)
    assert report.status == "ok"
    assert objects(database, "traces").keys() == listed_traces(corpus()).keys()
    assert requests < 400


def test_a_server_that_times_out_on_many_rows_is_asked_for_less_until_all_is_there(database: Engine) -> None:
    with MockLangfuse(corpus(), faults=Faults(timeout_above_rows=150)) as server:
        for _ in range(4):
            report = sync(database, server, streams=["traces", "sessions"])
            if report.status == "ok":
                break
    assert report.status == "ok"
    assert objects(database, "traces").keys() == listed_traces(corpus()).keys()
    assert_counted_windows_agree(ledger(database))


def test_rows_that_come_and_go_during_the_run_leave_the_others_whole(database: Engine) -> None:
    dataset = load_corpus()
    steady = [row["id"] for row in dataset.traces()][::2]
    fleeting = [row for row in dataset.traces() if row["id"] not in set(steady)]

    def change(request: Request) -> None:
        if request.number % 2:
            dataset.delete_trace(fleeting[request.number % len(fleeting)]["id"])
        else:
            dataset.put_trace(fleeting[-request.number % len(fleeting)])

    with MockLangfuse(dataset) as server:
        server.before_answer = change
        sync(database, server)
        server.before_answer = None
    assert set(steady) <= set(objects(database, "traces"))


# Settings


def test_without_content_no_input_or_output_is_stored(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
        report = sync(database, server, content="none")
    assert report.status == "ok"
    for table in ("traces", "observations"):
        found = rows(database, table)
        assert {(row["input"], row["output"]) for row in found} == {(None, None)}
    expected = by_key(recorded("traces"), "observations", "scores", "input", "output")
    assert by_key(objects(database, "traces").values(), "input", "output") == expected


def test_only_the_streams_that_are_set_are_read(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
        report = sync(database, server, streams=["scores", "sessions"])
        asked = {request.path.rpartition("/")[2] for request in server.requests}
    assert set(report.streams) == {"scores", "sessions"}
    assert (len(rows(database, "scores")), len(rows(database, "sessions"))) == (1_257, 59)
    assert (rows(database, "traces"), rows(database, "observations")) == ([], [])
    assert "observations" not in asked


def test_a_stream_named_for_one_run_leaves_the_others_alone(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
        (report,) = sync_all(database, [project(server)], streams=["sessions"])
        assert set(report.streams) == {"sessions"}
        sync(database, server)
    assert_whole(database, corpus())


def test_a_start_leaves_out_what_is_older(database: Engine) -> None:
    start = datetime(2026, 11, 15, tzinfo=UTC)
    with MockLangfuse(corpus()) as server:
        report = sync(database, server, start=start)
    assert report.status == "ok"
    newer = {row["id"] for row in recorded("traces") if row["timestamp"] >= "2026-11-15"}
    assert 0 < len(newer) < 1_200
    assert set(objects(database, "traces")) == newer
    assert coverage(database, "traces") == [Window(start, EDGE)]
    assert watermarks(database)["traces"] == EDGE


def test_an_earlier_start_reads_what_is_missing_and_nothing_twice(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
        sync(database, server, start=datetime(2026, 11, 15, tzinfo=UTC), streams=["traces"])
        before = {row["id"]: row["changed_at"] for row in rows(database, "traces")}
        later = NOW + timedelta(minutes=5)
        report = sync(database, server, now=later, start=datetime(2026, 11, 8, tzinfo=UTC), streams=["traces"])
    assert report.status == "ok"
    assert len(rows(database, "traces")) == 1_200
    assert {row["id"]: row["changed_at"] for row in rows(database, "traces") if row["id"] in before} == before
    assert report.total("rows_written") == 1_200 - len(before)


def test_a_start_in_the_future_is_a_setting_to_correct(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
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
    return MockLangfuse(corpus(), project=Project(id=name, name=name, organization_id="org-other"))


def test_a_wrong_key_of_one_project_does_not_keep_the_other_from_being_synced(database: Engine) -> None:
    with MockLangfuse(corpus()) as server, other_project() as other:
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
    assert len(rows(database, "traces")) == 1_200


def test_two_projects_are_kept_apart(database: Engine) -> None:
    with MockLangfuse(corpus()) as server, other_project() as other:
        reports = sync_all(database, [project(server, "one"), project(other, "two")])
    assert [report.status for report in reports] == ["ok", "ok"]
    per_project = [
        {row["id"] for row in rows(database, "traces") if row["project_id"] == name} for name in ("proj-shop", "other")
    ]
    assert per_project[0] == per_project[1]
    assert len(per_project[0]) == 1_200


def test_two_entries_for_one_project_are_refused_before_anything_is_read(database: Engine) -> None:
    with MockLangfuse(corpus()) as server, pytest.raises(ConfigError, match="one and two"):
        sync_all(database, [project(server, "one"), project(server, "two")])
    assert (rows(database, "traces"), ledger(database), rows(database, "sync_runs")) == ([], [], [])


# The clock


def test_a_server_clock_that_is_behind_is_the_one_that_counts(database: Engine) -> None:
    behind = datetime(2026, 11, 16, 12, tzinfo=UTC)
    with MockLangfuse(corpus(), clock=lambda: behind) as server:
        report = sync(database, server, now=None, streams=["traces"])
    if datetime.now(UTC) > behind:
        (covered,) = coverage(database, "traces")
        assert report.status == "ok"
        assert abs(covered.end - (behind - timedelta(minutes=2))) < timedelta(seconds=30)


def test_a_server_clock_that_is_ahead_moves_nothing(database: Engine) -> None:
    started = datetime.now(UTC)
    with MockLangfuse(corpus(), clock=lambda: started + timedelta(days=40)) as server:
        sync(database, server, now=None, streams=["sessions"])
    (covered,) = coverage(database, "sessions")
    assert covered.end < datetime.now(UTC)


def test_coverage_in_the_future_is_an_error_and_nothing_is_read(database: Engine) -> None:
    with MockLangfuse(corpus()) as server:
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
    with MockLangfuse(corpus(), faults=faults) as server:
        report = sync(database, server)
    assert (report.status, report.exit_code) == ("failed", 1)
    assert "LANGFUSE_BASE_URL" in (report.error or "")
    assert rows(database, "projects") == []
