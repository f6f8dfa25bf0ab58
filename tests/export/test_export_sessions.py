"""What an export writes, keeps, removes and refuses."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from export_data import NOW, PROJECT, edit, fill, read_tree, store, trace
from sqlalchemy import Engine, insert

from etl.errors import DatabaseRefusedError, ExportError
from etl.export import Options, Selection, export_sessions, verify_directory, write_stream
from etl.load.engine import open_engine, writing
from etl.load.tables import observations, projects, scores, traces
from etl.transform.fields import OBSERVATION, SCORE_LEGACY, TRACE_DOCUMENT
from etl.transform.jsontext import dumps, loads

S1 = Selection(sessions=("s1",))


def observation(observation_id: str, trace_id: str, **fields: Any) -> dict[str, Any]:
    item = {field.api: None for field in OBSERVATION.fields}
    start = "2026-11-10T10:00:00.000Z"
    return item | {"id": observation_id, "projectId": PROJECT, "traceId": trace_id, "startTime": start} | fields


def score(score_id: str, trace_id: str, **fields: Any) -> dict[str, Any]:
    item = {field.api: None for field in SCORE_LEGACY.fields}
    item |= {"id": score_id, "projectId": PROJECT, "traceId": trace_id, "dataType": "NUMERIC", "value": 1}
    return item | {"timestamp": "2026-11-10T10:00:00.000Z"} | fields


def at(minute: int) -> str:
    return f"2026-11-10T10:{minute:02}:00.000Z"


def manifest(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return content


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# --- Files and manifest ---


def test_a_session_is_one_file_per_trace_and_a_manifest(engine: Engine, tmp_path: Path) -> None:
    fill(
        engine,
        trace("b", metadata={"message_id": "17400353"}, timestamp=at(2)),
        trace("a", metadata={"message_id": 17400356.0}, timestamp=at(1), input="质量 <é>"),
        trace("other", sessionId="s2"),
    )
    store(engine, OBSERVATION, observation("o", "a"), observation("p", "other"))
    store(engine, SCORE_LEGACY, score("x", "b"), score("y", "b"))

    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    assert tmp_path / "out" / "s1" == result.directory
    assert names(result.directory) == ["17400353.json", "17400356.json", "manifest.json"]
    written = manifest(result.directory)
    files = written.pop("files")
    assert written == {
        "format": 1,
        "project_id": PROJECT,
        "session_id": "s1",
        "selection": {"traces": [], "from": None, "to": None, "where": []},
        "traces": 2,
        "observations": 1,
        "scores": 2,
        "complete": True,
    }
    assert [(one["name"], one["trace_id"]) for one in files] == [("17400356.json", "a"), ("17400353.json", "b")]
    assert (result.traces, result.written, result.unchanged, result.removed) == (2, 2, 0, 0)
    assert sum(one["bytes"] for one in files) == result.bytes
    text = (result.directory / "17400356.json").read_text(encoding="utf-8")
    assert '\n  "input": "质量 <é>",\n' in text
    assert text.endswith("}\n")
    assert [] == verify_directory(result.directory) == verify_directory(tmp_path / "out")


def test_a_second_export_writes_nothing(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"), trace("b"))
    (first,) = export_sessions(engine, S1, Options(tmp_path))
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.directory.iterdir()}

    (second,) = export_sessions(engine, S1, Options(tmp_path))

    assert before == {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in first.directory.iterdir()}
    assert (0, 2, 0, first.bytes) == (second.written, second.unchanged, second.removed, second.bytes)


def test_an_edited_trace_changes_its_file_and_the_manifest_only(engine: Engine, tmp_path: Path) -> None:
    fill(engine, *(trace(trace_id) for trace_id in "abc"))
    (first,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    before = read_tree(first.directory)
    fill(engine, trace("b", output="new", updatedAt="2026-11-11T00:00:00.000Z"))

    (second,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    after = read_tree(first.directory)
    assert {"b.json", "manifest.json"} == {name for name in after if after[name] != before[name]}
    assert (second.written, second.unchanged, second.removed) == (1, 2, 0)


def test_a_damaged_file_is_written_again(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (first,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    whole = (first.directory / "a.json").read_bytes()
    (first.directory / "a.json").write_bytes(b"x" * len(whole))

    (second,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    assert second.written == 1
    assert whole == (first.directory / "a.json").read_bytes()


def test_deleted_rows_are_left_out_and_their_files_removed(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"), trace("b"))
    store(engine, OBSERVATION, observation("o", "a"))
    store(engine, SCORE_LEGACY, score("x", "a"))
    (first,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    for table, row_id in ((traces, "b"), (observations, "o"), (scores, "x")):
        edit(engine, table, row_id, deleted_at=NOW)

    (second,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    assert names(first.directory) == ["a.json", "manifest.json"]
    assert (second.traces, second.written, second.unchanged, second.removed) == (1, 1, 0, 1)
    document = loads((first.directory / "a.json").read_text())
    assert [] == document["observations"] == document["scores"]


def test_a_session_that_was_deleted_whole_is_cleaned_up(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (first,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    edit(engine, traces, "a", deleted_at=NOW)

    (second,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    assert (second.traces, second.removed) == (0, 1)
    assert names(first.directory) == ["manifest.json"]


def test_no_file_is_removed_that_the_manifest_of_another_selection_lists(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a", metadata={"k": "1"}), trace("b"))
    (first,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    (first.directory / "mine.json").write_text("{}")
    edit(engine, traces, "b", deleted_at=NOW)

    narrow = Selection(sessions=("s1",), where=(("metadata.k", "1"),))
    (second,) = export_sessions(engine, narrow, Options(tmp_path / "out"))

    assert second.removed == 0
    assert names(first.directory) == ["a.json", "b.json", "manifest.json", "mine.json"]


def test_another_way_of_naming_removes_the_old_names(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a", name="Start"), trace("b", userId="u1"))
    export_sessions(engine, S1, Options(tmp_path))

    (result,) = export_sessions(engine, S1, Options(tmp_path, name_by="name"))
    assert names(result.directory) == ["Start.json", "chat.json", "manifest.json"]

    (result,) = export_sessions(engine, S1, Options(tmp_path, format="jsonl"))
    assert names(result.directory) == ["manifest.json", "traces.jsonl"]
    assert result.removed == 2


def test_a_manifest_cannot_make_us_remove_other_files(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))
    victim = tmp_path / "out" / "victim.json"
    victim.write_text("{}")
    tampered = manifest(result.directory)
    tampered["files"] += [tampered["files"][0] | {"name": name} for name in ("../victim.json", str(victim), "..", "")]
    (result.directory / "manifest.json").write_text(json.dumps(tampered))

    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    assert result.removed == 0
    assert victim.exists()


def test_left_over_temporary_files_are_cleared(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    left = tmp_path / "s1" / ".langfuse-etl-0123456789abcdef.tmp"
    left.parent.mkdir()
    left.write_text("half")
    kept = tmp_path / "s1" / ".langfuse-etl-mine.tmp"
    kept.write_text("not ours")

    export_sessions(engine, S1, Options(tmp_path))

    assert not left.exists()
    assert kept.exists()


# --- Shapes ---


def test_json_lines_are_one_file_in_the_order_of_time(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("b", timestamp=at(1)), trace("a", timestamp=at(2)), trace("B", timestamp=at(1)))

    (result,) = export_sessions(engine, S1, Options(tmp_path, format="jsonl"))

    lines = (result.directory / "traces.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["B", "b", "a"]
    (entry,) = manifest(result.directory)["files"]
    assert (entry["name"], entry["trace_id"]) == ("traces.jsonl", None)
    assert verify_directory(tmp_path) == []
    (again,) = export_sessions(engine, S1, Options(tmp_path, format="jsonl"))
    assert (again.written, again.unchanged) == (0, 1)


def test_the_stream_is_what_json_lines_hold(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"), trace("b", sessionId="s2"), trace("c", sessionId=None))
    out = io.BytesIO()

    assert write_stream(engine, Selection(all=True), Options(tmp_path / "unused"), out) == 3

    export_sessions(engine, Selection(all=True), Options(tmp_path / "out", format="jsonl"))
    files = [tmp_path / "out" / name / "traces.jsonl" for name in ("s1", "s2", "no-session")]
    assert b"".join(path.read_bytes() for path in files) == out.getvalue()
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("indent", [0, 1, 2, 4])
def test_indentation_is_only_layout(engine: Engine, tmp_path: Path, indent: int) -> None:
    fill(engine, trace("a", input={"text": 'a\n  b": {,\n}', "list": [1, [], {}]}))

    (result,) = export_sessions(engine, S1, Options(tmp_path, indent=indent))

    text = (result.directory / "a.json").read_text()
    assert json.dumps(json.loads(text), indent=indent or None, ensure_ascii=False) + "\n" == text


def test_details_choose_between_parts_and_their_ids(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a"))
    store(engine, OBSERVATION, observation("o2", "a"), observation("o1", "a", startTime=at(30)))
    store(engine, SCORE_LEGACY, score("x", "a"))

    for detail in ("full", "row"):
        (result,) = export_sessions(engine, S1, Options(tmp_path, detail=detail))  # type: ignore[arg-type]
        document = loads((result.directory / "a.json").read_text())
        parts = document["observations"] if detail == "row" else [part["id"] for part in document["observations"]]
        assert (["o1", "o2"] if detail == "row" else ["o2", "o1"]) == parts
        assert (manifest(result.directory)["observations"], manifest(result.directory)["scores"]) == (2, 1)


def test_a_row_lists_what_a_list_of_traces_says(engine: Engine, tmp_path: Path) -> None:
    """No corrections, no scores of sessions and dataset runs, nothing deleted, nothing of another project."""
    fill(engine, trace("a"), trace("b"))
    store(engine, OBSERVATION, observation("o-gone", "a"), observation('o"\\,[1]', "a"), observation("o\x00", "a"))
    store(engine, OBSERVATION, observation("o-other", "a"), project="another")
    store(
        engine,
        SCORE_LEGACY,
        score("s1", "a"),
        score("s-gone", "a"),
        score("\ud800", "a"),
        score("s2", "a", dataType=None),
    )
    store(engine, SCORE_LEGACY, score("c", "a", dataType="CORRECTION"), score("d", "a", datasetRunId="r"))
    store(engine, SCORE_LEGACY, score("e", "a", sessionId="s1"))
    edit(engine, observations, "o-gone", deleted_at=NOW)
    edit(engine, scores, "s-gone", deleted_at=NOW)

    (result,) = export_sessions(engine, S1, Options(tmp_path, detail="row"))

    lists = {name: json.loads((result.directory / f"{name}.json").read_bytes()) for name in ("a", "b")}
    assert lists["a"]["observations"] == ["o\x00", 'o"\\,[1]']
    assert lists["a"]["scores"] == ["s1", "s2", "\ud800"]
    assert (lists["b"]["observations"], lists["b"]["scores"]) == ([], [])
    assert (manifest(result.directory)["observations"], manifest(result.directory)["scores"]) == (2, 3)


def test_parts_that_were_not_synced_make_the_manifest_incomplete(engine: Engine, tmp_path: Path) -> None:
    store(engine, TRACE_DOCUMENT, trace("a", totalCost=0.5, latency=1.5))
    edit(engine, traces, "a", extra='{"observations":["o1"],"scores":[]}')

    (result,) = export_sessions(engine, S1, Options(tmp_path))
    assert not manifest(result.directory)["complete"]

    (result,) = export_sessions(engine, S1, Options(tmp_path, detail="row"))
    document = loads((result.directory / "a.json").read_text())
    assert manifest(result.directory)["complete"]
    assert (document["observations"], document["totalCost"], document["latency"]) == (["o1"], 0.5, 1.5)


AWKWARD = {
    "nul": "a\x00b",
    "surrogate": "\ud800 half",
    "big": 2**53 + 1,
    "huge": 123456789 * 10**30 + 1,
    "small": 1e-7,
    "large": 1e22,
    "larger": 1.5e300,
    "minus zero": -0.0,
    "long fraction": 0.1,
    "one": 1.0,
    "line": "\u2028\u2029",
    "empty": ["", {}, [], None, False, 0],
    "k\x00\udfff": {"emoji": "👩‍👩‍👧", "rtl": "\u202eabc", "": 1},
}


def deep(levels: int) -> Any:
    value: Any = "bottom"
    for level in range(levels):
        value = [value] if level % 2 else {"x": value}
    return value


@pytest.mark.parametrize("indent", [0, 2, 3])
def test_every_value_comes_out_as_it_came_in(both: list[Engine], tmp_path: Path, indent: int) -> None:
    trees = []
    for number, engine in enumerate(both):
        item = trace("a", input=AWKWARD, output=deep(400), metadata={"m": "x" * 2_000_000} | AWKWARD)
        item["new_field"] = AWKWARD
        fill(engine, item)
        store(
            engine, OBSERVATION, observation("o\x00", "a", input=AWKWARD, output=deep(100), newer={"b": 1, "a": 1e22})
        )
        store(engine, SCORE_LEGACY, score("x", "a", comment="\ud800", metadata=AWKWARD, value=2**60 + 1))

        (result,) = export_sessions(engine, S1, Options(tmp_path / str(number), indent=indent))

        found = loads((result.directory / "a.json").read_text())
        (part,), (one,) = found["observations"], found["scores"]
        assert same(AWKWARD, found["input"])
        assert same(AWKWARD, found["new_field"])
        assert same(item["metadata"], found["metadata"])
        assert same(item["output"], found["output"])
        assert (part["id"], part["newer"]) == ("o\x00", {"a": 10**22, "b": 1})
        assert same(AWKWARD, part["input"])
        assert (one["comment"], one["value"]) == ("\ud800", 2**60 + 1)
        trees.append(read_tree(result.directory))
    assert trees[0] == trees[1]


def same(expected: Any, found: Any) -> bool:
    """Equal as JSON: True is not 1, but 1.0 is."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return set(expected) == set(found) and all(same(expected[key], found[key]) for key in expected)
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(same, expected, found))
    return isinstance(expected, bool) == isinstance(found, bool) and bool(expected == found)


# --- Names ---


def test_every_trace_gets_its_own_file_inside_the_folder(engine: Engine, tmp_path: Path) -> None:
    values: list[Any] = [
        "../../x",
        "CON",
        "a/b\\c",
        "",
        "x" * 300,
        "x" * 301,
        "😀",
        "\u202egnp",
        "a\x00b",
        "Aa",
        "aA",
        7,
    ]
    values += [
        7.0,
        7.5,
        [1],
        {"a": 1},
        None,
        True,
        "manifest",
        "Manifest",
        "..",
        " ",
        "x.",
        "x ",
        ".json",
        "é",
        "e\u0301",
    ]
    fill(engine, *(trace(f"t{n}", metadata={"message_id": value}) for n, value in enumerate(values)), trace("none"))

    (result,) = export_sessions(engine, S1, Options(tmp_path / "out"))

    files = manifest(result.directory)["files"]
    assert len(values) + 1 == len({one["name"].casefold() for one in files})
    assert {f"t{n}" for n in range(len(values))} | {"none"} == {one["trace_id"] for one in files}
    assert sorted([one["name"] for one in files] + ["manifest.json"]) == names(result.directory)
    assert [tmp_path / "out" / "s1"] == list((tmp_path / "out").iterdir())
    by_id = {one["trace_id"]: one["name"] for one in files}
    assert {"CON_.json", "none.json", "t3.json", "7.5.json"} <= set(by_id.values())
    assert [by_id[f"t{n}"] for n in (9, 10, 11, 12)] == ["Aa~t9.json", "aA~t10.json", "7~t11.json", "7~t12.json"]
    assert [f"{t}.json" for t in ("t14", "t15", "t16", "t17")] == [by_id[t] for t in ("t14", "t15", "t16", "t17")]
    assert verify_directory(tmp_path / "out") == []


def test_a_trace_keeps_its_name_whatever_part_is_exported(engine: Engine, tmp_path: Path) -> None:
    fill(engine, *(trace(trace_id, metadata={"message_id": 5}) for trace_id in "ab"))

    (result,) = export_sessions(engine, Selection(traces=("a",)), Options(tmp_path))

    assert names(result.directory) == ["5~a.json", "manifest.json"]


@pytest.mark.parametrize("detail", ["full", "row"])
@pytest.mark.parametrize(
    ("name_by", "expected"),
    [
        ("id", "a.json"),
        ("name", "chat.json"),
        ("tags.1", "second.json"),
        ("metadata.deep.key", "dotted.json"),
        ("observations.0.id", "o.json"),
        ("scores.0.value", "0.5.json"),
        ("unknown.field", "new.json"),
        ("public", "a.json"),
    ],
)
def test_any_path_of_the_trace_names_the_file(
    engine: Engine, tmp_path: Path, name_by: str, expected: str, detail: Literal["full", "row"]
) -> None:
    metadata = {"deep.key": "dotted", "deep": {"key": "nested"}}
    fill(engine, trace("a", tags=["first", "second"], metadata=metadata, unknown={"field": "new"}))
    store(engine, OBSERVATION, observation("o", "a"))
    store(engine, SCORE_LEGACY, score("x", "a", value=0.5))

    (result,) = export_sessions(engine, S1, Options(tmp_path, name_by=name_by, detail=detail))

    assert sorted([expected, "manifest.json"]) == names(result.directory)


def test_sessions_that_clean_to_one_name_do_not_share_a_folder(engine: Engine, tmp_path: Path) -> None:
    sessions = ("a/b", "a\\b", "a_b", "A_B", "..", "CON", "x" * 300, "no-session")
    fill(engine, *(trace(f"t{n}", sessionId=session) for n, session in enumerate(sessions)), trace("t", sessionId=None))

    together = export_sessions(engine, Selection(all=True), Options(tmp_path / "all"))
    for session in sessions:
        export_sessions(engine, Selection(sessions=(session,)), Options(tmp_path / "each"))
    export_sessions(engine, Selection(traces=("t",)), Options(tmp_path / "each"))

    assert len(sessions) + 1 == len({result.directory.name.casefold() for result in together})
    for root in (tmp_path / "all", tmp_path / "each"):
        assert len(sessions) + 1 == len(list(root.iterdir()))
        assert verify_directory(root) == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["all", "each"]


def test_one_session_id_in_two_projects_is_two_folders(engine: Engine, tmp_path: Path) -> None:
    _two_projects(engine)

    results = export_sessions(engine, Selection(all=True), Options(tmp_path / "all"))

    found = [(result.project_id, result.session_id) for result in results]
    assert found == [("other", "s1"), ("other", "s3"), (PROJECT, "s1"), (PROJECT, "s2")]
    assert len({result.directory for result in results}) == 4
    (alone,) = export_sessions(engine, Selection(sessions=("s1",), project="other"), Options(tmp_path / "alone"))
    (next_to_it,) = export_sessions(engine, Selection(sessions=("s1",), project=PROJECT), Options(tmp_path / "alone"))
    assert "s1" == alone.directory.name != next_to_it.directory.name
    assert verify_directory(tmp_path / "alone") == []


# --- Selection ---


def _two_projects(engine: Engine) -> None:
    fill(engine, trace("a"), trace("b", sessionId="s2"))
    fill_other = [trace("a", projectId="other"), trace("c", projectId="other", sessionId="s3")]
    store(engine, TRACE_DOCUMENT, *fill_other, project="other")
    with writing(engine) as conn:
        conn.execute(insert(projects), [{"id": "other", "name": "Other one", "base_url": "x"}])


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(all=True), "abcdef"),
        (Selection(sessions=("s2", "s1")), "abcd"),
        (Selection(sessions=("s1", "s1")), "abc"),
        (Selection(traces=("d", "f")), "df"),
        (Selection(sessions=("s1",), traces=("b",)), "b"),
        (Selection(start=datetime(2026, 11, 10, 10, 2, tzinfo=UTC)), "bcdef"),
        (Selection(end=datetime(2026, 11, 10, 10, 2, tzinfo=UTC)), "a"),
        (
            Selection(start=datetime(2026, 11, 10, 10, 2, tzinfo=UTC), end=datetime(2026, 11, 10, 10, 4, tzinfo=UTC)),
            "bc",
        ),
        (Selection(where=(("metadata.n", "1"),)), "ac"),
        (Selection(where=(("metadata.n", "1"), ("userId", "u"))), "c"),
        (Selection(sessions=("s1",), where=(("userId", "null"),)), "ab"),
        (Selection(where=(("observations.0.id", "o"),)), "e"),
        (Selection(all=True, project=PROJECT), "abcdef"),
    ],
)
def test_a_selection_chooses(engine: Engine, tmp_path: Path, selection: Selection, expected: str) -> None:
    fill(
        engine,
        trace("a", timestamp=at(1), metadata={"n": 1}),
        trace("b", timestamp=at(2), metadata={"n": 2}),
        trace("c", timestamp=at(3), metadata={"n": "1"}, userId="u"),
        trace("d", timestamp=at(4), sessionId="s2"),
        trace("e", timestamp=at(5), sessionId=None),
        trace("f", timestamp=at(6), sessionId=None),
    )
    store(engine, OBSERVATION, observation("o", "e"))
    out = io.BytesIO()

    results = export_sessions(engine, selection, Options(tmp_path / "out"))
    count = write_stream(engine, selection, Options(tmp_path / "out"), out)

    files = [json.loads(path.read_text())["id"] for path in (tmp_path / "out").glob("*/?.json")]
    assert list(expected) == sorted(files) == sorted(json.loads(line)["id"] for line in out.getvalue().splitlines())
    assert len(expected) == count == sum(result.traces for result in results)
    assert all(result.traces for result in results)


def test_named_sessions_keep_the_order_they_were_named_in(engine: Engine, tmp_path: Path) -> None:
    fill(engine, *(trace(session, sessionId=session) for session in ("s1", "s2", "s3")))

    results = export_sessions(engine, Selection(sessions=("s3", "s1", "s2")), Options(tmp_path))

    assert [result.session_id for result in results] == ["s3", "s1", "s2"]


@pytest.mark.parametrize("project", ["other", "Other one"])
def test_a_project_is_chosen_by_id_or_name(engine: Engine, tmp_path: Path, project: str) -> None:
    _two_projects(engine)

    (result,) = export_sessions(engine, Selection(sessions=("s1",), project=project), Options(tmp_path))

    assert (result.project_id, result.traces) == ("other", 1)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(), "nothing is selected"),
        (
            Selection(sessions=("S11",)),
            "no session 'S11' is stored (did you mean 's1'?)",
        ),
        (Selection(sessions=("zzzzzz",)), "no session 'zzzzzz' is stored"),
        (
            Selection(sessions=("s1",)),
            "session 's1' is in the projects 'other' and 'proj-shop'; choose one with --project",
        ),
        (Selection(sessions=("s3",), project=PROJECT), "no session 's3' is stored"),
        (Selection(traces=("a",)), "trace 'a' is in the projects 'other' and 'proj-shop'"),
        (Selection(traces=("nope",)), "no trace 'nope' is stored"),
        (Selection(traces=("b",), sessions=("s3",)), "trace 'b' is not in the sessions that are named"),
        (Selection(all=True, project="Other"), "no project 'Other' is stored (did you mean 'other' or 'Other one'?)"),
        (Selection(all=True, where=(("metadata.x", "y"),)), "no stored trace matches the selection"),
        (Selection(start=datetime(2030, 1, 1, tzinfo=UTC)), "no stored trace matches the selection"),
    ],
)
def test_a_selection_that_means_nothing_is_one_clear_line(
    engine: Engine, tmp_path: Path, selection: Selection, message: str
) -> None:
    _two_projects(engine)

    for run in (
        lambda: export_sessions(engine, selection, Options(tmp_path / "out")),
        lambda: write_stream(engine, selection, Options(tmp_path / "out"), io.BytesIO()),
    ):
        with pytest.raises(ExportError) as caught:
            run()
        assert str(caught.value).startswith(message) or message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_database_without_our_tables_is_refused(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'none.db'}", "public")

    with pytest.raises(DatabaseRefusedError, match="run `langfuse-etl sync` first"):
        export_sessions(engine, S1, Options(tmp_path))

    engine.dispose()


def test_progress_counts_up_to_all(engine: Engine, tmp_path: Path) -> None:
    fill(engine, *(trace(f"t{n}", sessionId=f"s{n % 2}") for n in range(6)))
    seen: list[tuple[int, int]] = []

    export_sessions(engine, Selection(all=True), Options(tmp_path), lambda done, total: seen.append((done, total)))

    assert [(done, 6) for done in range(1, 7)] == seen


def test_the_manifest_is_laid_out_as_the_files_are(engine: Engine, tmp_path: Path) -> None:
    fill(engine, trace("a", metadata={"message_id": "质量"}), trace("b"))

    (result,) = export_sessions(engine, S1, Options(tmp_path))

    text = (result.directory / "manifest.json").read_text(encoding="utf-8")
    assert json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n" == text


def test_an_indent_out_of_range_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--indent must be between 0 and 16"):
        export_sessions(engine, S1, Options(tmp_path, indent=-1))


def test_a_big_session_is_read_and_written_in_groups(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More traces than a fetch, a statement's list of ids, a batch of files or a flush takes at once."""
    for name in ("load.queries._IDS_PER_FETCH", "load.queries._ROWS_PER_FETCH", "load.queries._IDS_PER_SELECT"):
        monkeypatch.setattr(f"etl.{name}", 100)
    monkeypatch.setattr("etl.export.files._BATCH_FILES", 30)
    monkeypatch.setattr("etl.export.files._GROUP_FILES", 80)
    fill(engine, *(trace(f"t{n:05}", timestamp=at(n % 60)) for n in range(500)))
    store(engine, OBSERVATION, *(observation(f"o{n}", f"t{n % 500:05}") for n in range(750)))

    (result,) = export_sessions(engine, S1, Options(tmp_path / "all"))
    half = tuple(f"t{n:05}" for n in range(0, 500, 2))
    (part,) = export_sessions(engine, Selection(traces=half), Options(tmp_path / "half"))

    assert (result.traces, manifest(result.directory)["observations"]) == (500, 750)
    assert part.traces == 250
    assert read_tree(part.directory).items() - read_tree(result.directory).items() <= {
        ("manifest.json", (part.directory / "manifest.json").read_bytes())
    }
    assert dumps(manifest(result.directory)["selection"]) != dumps(manifest(part.directory)["selection"])
