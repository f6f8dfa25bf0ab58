"""A history that crosses from one generation of the API to the other, on a server that is used all the while."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from json_values import exact
from sqlalchemy import Engine
from syncing import Row, project, rows, sync, sync_all, whole_tables
from verifying import counts, verify

from etl.config import Config
from etl.demo import Dataset, Faults, MockLangfuse, generate
from etl.export import Options, Selection, export_sessions
from etl.load.engine import reading
from etl.load.ledger import stream_states
from etl.pipeline.sources import switch_of
from etl.pipeline.switch import TIER, Switch
from etl.service.status import status_report
from etl.settings import Database as DatabaseSettings
from etl.settings import Http
from etl.transform.jsontext import loads

NOW = datetime(2026, 11, 17, 12, tzinfo=UTC)  # `verify` goes by the machine's clock, which must be later
DAYS = 3
M, H = timedelta(minutes=1), timedelta(hours=1)


def dataset() -> Dataset:
    return generate(
        traces=90,
        days=DAYS,
        observations_per_trace=2,
        io_bytes=200,
        end=NOW - timedelta(minutes=3),
        traces_per_session=9,
    )


def text(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event(trace_id: str, id_: str, at: datetime, **changes: Any) -> Row:
    return {"id": id_, "traceId": trace_id, "startTime": text(at), "updatedAt": text(at), "type": "SPAN", **changes}


def keyed(engine: Engine, table: str) -> dict[tuple[Any, ...], Row]:
    return {(row.get("trace_id") if table == "observations" else None, row["id"]): row for row in rows(engine, table)}


def switch(engine: Engine, stream: str = "observations") -> Switch:
    with reading(engine) as conn:
        found = switch_of(stream_states(conn, "proj-shop")[stream])
    assert found is not None
    return found


def deleted(engine: Engine) -> set[tuple[str, str]]:
    tables = ("traces", "observations", "scores", "sessions")
    return {(table, row["id"]) for table in tables for row in rows(engine, table) if row["deleted_at"] is not None}


def exported(engine: Engine, folder: Path) -> dict[str, Row]:
    """Each trace's document, by the trace's id."""
    selection, options = Selection(all=True), Options(directory=folder, name_by="id")
    export_sessions(engine, selection, options)
    files = [path for path in folder.glob("*/*.json") if path.name != "manifest.json"]
    found = {item["id"]: item for item in (loads(path.read_text("utf-8")) for path in files)}
    assert len(found) == len(files)
    return found


def differences(engine: Engine, server: MockLangfuse, now: datetime) -> tuple[int, int, int, int]:
    found = verify(engine, server, NOW - timedelta(days=DAYS + 1), now, full=True)
    assert found.windows > 0
    return counts(found)


@pytest.fixture
def data() -> Dataset:
    return dataset()


def test_a_history_is_carried_over_while_the_server_still_copies_it(
    engine: Engine, data: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    traces = data.traces()
    edited, removed = traces[-4], traces[-9]
    with MockLangfuse(data, api="v3") as server:
        assert sync(engine, server, now=NOW).status == "ok"
        before = {table: keyed(engine, table) for table in ("traces", "observations", "scores", "sessions")}
        files_before = exported(engine, tmp_path / "before")
        server.api = "v4"
        data.empty_v4()
        data.put_event(event("native", "root", NOW + 10 * M, sessionId="new", input='{"a": 1}'))
        data.put_event(event("native", "child", NOW + 11 * M, parentObservationId="root"))
        data.put_trace(edited | {"name": "edited", "updatedAt": text(NOW + 12 * M)})
        with caplog.at_level(logging.INFO, logger="etl"):
            now, hidden = NOW + 20 * M, -1
            while switched_off(engine) and now < NOW + timedelta(days=4):
                assert sync(engine, server, now=now).status == "ok"
                assert deleted(engine) == set(), "absence counts for nothing"
                hidden = data.fill_v4(40) if now > NOW + H else hidden
                now += 55 * M if hidden else 5 * H
        assert hidden == 0
        said = [record.getMessage() for record in caplog.records]
        assert sum("observations API from now on" in one for one in said) == 1
        assert sum("two passes after the change of the API agree" in one for one in said) == 2
        assert {table: keyed(engine, table).keys() - before[table].keys() for table in before} == {
            "traces": {(None, "native")},
            "observations": {("native", "root"), ("native", "child")},
            "scores": set(),
            "sessions": {(None, "new")},
        }
        assert changed_since(engine, before) == {("traces", edited["id"])}
        found = keyed(engine, "traces")[None, edited["id"]]
        assert (found["name"], found["read_from"], found["html_path"]) == ("edited", "trace_copy", edited["htmlPath"])
        assert keyed(engine, "traces")[None, "native"]["read_from"] == "observations"
        assert differences(engine, server, now) == (0, 0, 0, 0)
        files = exported(engine, tmp_path / "after")
        assert files.keys() - files_before.keys() == {"native"}
        assert {name for name in files_before if files[name] != files_before[name]} == {edited["id"]}
        assert files["native"]["observations"][0]["id"] == "root"

        # What v4 has shown once is missed by it, whoever stored it.
        data.delete_trace(removed["id"])
        for hours in (7 * 24, 7 * 24 + 2, 7 * 24 + 4):  # a pass of the largest tier, and the look an hour later
            assert sync(engine, server, now=now + hours * H).status == "ok"
        gone = {("traces", removed["id"])}
        gone |= {("observations", row["id"]) for key, row in before["observations"].items() if key[0] == removed["id"]}
        gone |= {("scores", r["id"]) for r in before["scores"].values() if r["trace_id"] == removed["id"]}
        assert {one for one in deleted(engine) if one[0] != "sessions"} == gone
        assert len(gone) > 2
        assert removed["id"] not in exported(engine, tmp_path / "after")


def switched_off(engine: Engine) -> bool:
    """Whether passes are under way in any stream, or the change was not seen yet."""
    with reading(engine) as conn:
        found = [switch_of(state) for state in stream_states(conn, "proj-shop").values()]
    return any(one is None or one.settled_at is None for one in found if one is not None) or not any(found)


def changed_since(engine: Engine, before: dict[str, dict[tuple[Any, ...], Row]]) -> set[tuple[str, str]]:
    return {
        (table, row["id"])
        for table, found in before.items()
        for key, row in keyed(engine, table).items()
        if key in found and row != found[key]
    }


def runs(engine: Engine, server: MockLangfuse, *, start: datetime, every: timedelta, count: int) -> datetime:
    """Several runs; the time after the last."""
    for number in range(count):
        assert sync(engine, server, now=start + number * every).status == "ok"
    return start + count * every


def test_what_the_newer_api_never_shows_is_kept(engine: Engine, data: Dataset) -> None:
    """A server may be set not to copy its history at all."""
    with MockLangfuse(data, api="v3") as server:
        assert sync(engine, server, now=NOW).status == "ok"
        before = {table: keyed(engine, table) for table in ("traces", "observations", "scores", "sessions")}
        server.api = "v4"
        data.empty_v4()
        now = runs(engine, server, start=NOW + 5 * M, every=8 * H, count=4)
        assert switched_off(engine), "what is not there may still be copied"
        now = runs(engine, server, start=NOW + 30 * 24 * H, every=8 * H, count=4)
        assert not switched_off(engine)
        assert deleted(engine) == set()
        assert changed_since(engine, before) == set()
        assert differences(engine, server, now) == (0, 0, 0, 0)


def test_contents_that_the_older_api_could_not_send_come_from_the_newer_one(database: Engine, data: Dataset) -> None:
    """Although its reading has no newer `updatedAt`."""
    given = data.traces()[-20]
    with MockLangfuse(data, api="v3", faults=Faults(poison=[given["id"]])) as server:
        assert sync(database, server, now=NOW).status == "failed", "a window is partial"
        assert keyed(database, "traces")[None, given["id"]]["input"] is None
        server.faults.poison = set()
        server.api = "v4"
        assert sync(database, server, now=NOW + 5 * M).status == "ok"
        found = keyed(database, "traces")[None, given["id"]]
        assert (found["read_from"], found["updated_at"]) == ("trace_copy", given["updatedAt"])
        for name in ("input", "output", "metadata"):
            assert exact(loads(found[name])) == exact(given[name])
        others = {row["read_from"] for row in rows(database, "traces") if row["id"] != given["id"]}
        assert others == {"traces"}, "what was read whole is not replaced"
        before = whole_tables(database)
        assert sync(database, server, now=NOW + 10 * M).status == "ok"
        assert whole_tables(database) == before


def test_passes_come_last_and_in_slices(database: Engine, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("etl.pipeline.sources._REREAD_ROWS_PER_RUN", 30)
    monkeypatch.setattr("etl.pipeline.sources._ROWS_PER_SLICE", 15)
    with MockLangfuse(data, api="v3") as server:
        assert sync(database, server, now=NOW).status == "ok"
        server.api = "v4"
        done = len(rows(database, "sync_windows"))
        # Side by side, a window that began later may be done earlier.
        one_by_one = Http(timeout="5s", give_up_after="20s", concurrency=1)
        passed = [
            report
            for n in range(1, 4)
            for report in sync_all(database, [project(server)], now=NOW + n * 5 * M, http=one_by_one)
        ]
    assert {report.status for report in passed} == {"ok"}
    windows = [
        row for row in rows(database, "sync_windows")[done:]
        if row["stream"] == "observations" and row["api"] == "observations"
    ]  # fmt: skip
    for run in {row["run_id"] for row in windows}:
        of_run = [row for row in windows if row["run_id"] == run]
        tiers = [row["tier"] for row in of_run]
        first = tiers.index(TIER)
        assert set(tiers[first:]) == {TIER}
        assert "live" in tiers[:first]
        assert sum(row["read"] for row in of_run[first:]) < 130, "a budget and a slice beyond it"
    state = switch(database)
    assert (state.passes, state.settled_at) == (1, None)
    assert state.left


def test_what_only_the_newer_api_has_is_read_although_it_is_older_than_all_that_was_read(database: Engine) -> None:
    """The history begins where either generation says it does."""
    data = Dataset()
    data.put_trace({"id": "copied", "timestamp": text(NOW - H)})
    data.put_event(event("old", "root", NOW - timedelta(days=40)))
    with MockLangfuse(data, api="v3") as server:
        assert sync(database, server, now=NOW).status == "ok"
        assert keyed(database, "observations") == {}
        server.api = "v4"
        runs(database, server, start=NOW + 5 * M, every=H, count=2)
        asked = len(server.requests)
        runs(database, server, start=NOW + 3 * H, every=H, count=1)
        assert len(server.requests) - asked < 8, "the beginning is looked for once"
    assert keyed(database, "observations").keys() == {("old", "root")}
    assert keyed(database, "traces").keys() == {(None, "copied"), (None, "old")}


def test_traces_without_a_copy_go_with_their_observations(engine: Engine) -> None:
    """Of traces sent over OpenTelemetry v4 knows nothing but their observations; of others, the copy may be all."""
    data = Dataset()
    at = NOW - H
    for name, copied in (("otel", False), ("empty", True), ("stays", True), ("plain", False)):
        data.put_trace({"id": name, "timestamp": text(at), "sessionId": "s"}, pseudo_span=copied)
    for name in ("otel", "stays", "plain"):
        data.put_observation({"id": f"{name}-o", "traceId": name, "startTime": text(at + M), "type": "SPAN"})
    with MockLangfuse(data, api="v3") as server:
        assert sync(engine, server, now=NOW).status == "ok"
        server.api = "v4"
        now = runs(engine, server, start=NOW + 5 * M, every=H, count=4)
        assert not switched_off(engine)
        for name in ("otel", "empty"):
            data.delete_trace(name)
        data.delete_observation("stays-o")  # its copy is still there
        runs(engine, server, start=now, every=4 * H, count=9)
    assert deleted(engine) == {
        ("traces", "otel"), ("traces", "empty"), ("observations", "otel-o"), ("observations", "stays-o"),
    }  # fmt: skip


def test_a_change_back_to_the_traces_api_is_a_change_like_any_other(database: Engine, data: Dataset) -> None:
    removed = data.traces()[-5]["id"]
    with MockLangfuse(data, api="dual") as server:
        assert sync(database, server, now=NOW, api="observations").status == "ok"
        for hours in (1, 3, 5):
            assert sync(database, server, now=NOW + hours * H, api="traces").status == "ok"
        assert not switched_off(database)
        assert {row["read_from"] for row in rows(database, "traces")} <= {"traces", "trace_copy"}
        data.delete_trace(removed)
        for hours in range(6, 44, 6):
            assert sync(database, server, now=NOW + hours * H, api="traces").status == "ok"
    assert ("traces", removed) in deleted(database)
    assert {row["trace_id"] for row in rows(database, "observations") if row["deleted_at"]} == {removed}


def test_the_status_tells_of_the_passes(database: Engine, data: Dataset) -> None:
    with MockLangfuse(data, api="v3") as server:
        config = Config(projects=(project(server),), database=DatabaseSettings(url=str(database.url)))
        assert sync(database, server, now=NOW).status == "ok"
        assert after_switch(config) == {"traces": None, "observations": None, "scores": None, "sessions": None}
        server.api = "v4"
        sync(database, server, now=NOW + 5 * M)
        told = after_switch(config)
        rows_read = len(rows(database, "observations")) + len(rows(database, "traces"))
        assert told["traces"] == told["observations"] == told["sessions"]
        assert told["observations"] == {
            "pass": 1, "started_at": text(NOW + 5 * M), "rows": rows_read, "rows_before": None, "days_left": 0.0,
        }  # fmt: skip
        assert told["scores"]["rows"] == len(rows(database, "scores"))
        runs(database, server, start=NOW + 2 * H, every=H, count=2)
        assert set(after_switch(config).values()) == {None}


def after_switch(config: Config) -> dict[str, Any]:
    (shown,) = status_report(config)["projects"]
    return {stream["stream"]: stream["after_switch"] for stream in shown["streams"]}
