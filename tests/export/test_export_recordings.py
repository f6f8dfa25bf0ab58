"""Exported files against what a real server answered."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from export_data import answers, corpus, derive, fill_with_corpus, read_tree, store
from sqlalchemy import Engine

from etl.export import Options, Selection, export_sessions, verify_directory
from etl.transform.documents import canonical
from etl.transform.fields import OBSERVATION, OBSERVATION_V2_ONLY, SCORE_LEGACY, TRACE
from etl.transform.jsontext import dumps, loads

ALPHA = "test_cases_alpha_20250806185514"
BETA = "test_cases_beta_20250807101500"


def exported(directory: Path) -> dict[str, dict[str, Any]]:
    """The documents of a folder by trace id."""
    documents = [loads(path.read_text()) for path in directory.rglob("*.json") if path.name != "manifest.json"]
    return {document["id"]: document for document in documents}


def in_order(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer of GET /traces/{id} with its parts in the order of the files; the server has none."""
    answer = copy.deepcopy(answer)
    return answer | {
        "observations": sorted(answer["observations"], key=lambda part: (part["startTime"], part["id"])),
        "scores": sorted(answer["scores"], key=lambda part: (part["timestamp"], part["id"])),
    }


def with_sorted_ids(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"observations": sorted(answer["observations"]), "scores": sorted(answer["scores"])}


def assert_equal(expected: dict[str, Any], found: dict[str, Any]) -> None:
    """As JSON is compared: key order and number spelling do not count."""
    assert expected == found
    assert dumps(canonical(expected)) == dumps(canonical(found))


@pytest.mark.parametrize(
    ("session", "traces", "cassettes"),
    [
        (ALPHA, 137, ["session_alpha_pages_limit_100", "v3.225.4/session_alpha_pages_limit_100"]),
        (BETA, 50, ["session_beta_metadata_shapes", "v3.225.4/session_beta_metadata_shapes"]),
    ],
)
def test_rows_equal_the_recorded_list(
    engine: Engine, tmp_path: Path, session: str, traces: int, cassettes: list[str]
) -> None:
    for cassette in cassettes:
        rows = {row["id"]: row for page in answers(cassette) for row in page["data"]}
        database_rows = {row["id"]: row for row in corpus("traces")}
        assert traces == len(rows)
        fill_with_corpus(engine, only=set(rows))
        # What the two servers answer differs in when they received it; the parts are the same.
        store(engine, TRACE, *rows.values())

        (result,) = export_sessions(engine, Selection(sessions=(session,)), Options(tmp_path / "out", detail="row"))

        found = exported(result.directory)
        assert set(rows) == set(found)
        for trace_id, row in rows.items():
            older = row["updatedAt"] < database_rows[trace_id]["updatedAt"]
            assert_equal(with_sorted_ids(database_rows[trace_id] if older else row), found[trace_id])


def test_every_row_of_the_data_set_equals_the_recorded_list(engine: Engine, tmp_path: Path) -> None:
    fill_with_corpus(engine)

    results = export_sessions(engine, Selection(all=True), Options(tmp_path / "out", detail="row"))

    found = exported(tmp_path / "out")
    assert {row["id"] for row in corpus("traces")} == set(found)
    for row in corpus("traces"):
        assert_equal(with_sorted_ids(row), found[row["id"]])
    assert verify_directory(tmp_path / "out") == []
    assert len(results) == 44


@pytest.mark.parametrize(
    "cassette",
    [
        "trace_by_id",
        "trace_by_id_odd_ids",
        "trace_by_id_revised",
        "trace_by_id_special_values",
        "v3.225.4/trace_by_id",
    ],
)
def test_documents_equal_the_recorded_trace_by_id(engine: Engine, tmp_path: Path, cassette: str) -> None:
    whole = {answer["id"]: in_order(answer) for answer in answers(cassette) if _is_whole(answer)}
    assert whole
    for answer in whole.values():
        store(engine, TRACE, answer)
        store(engine, OBSERVATION, *answer["observations"])
        # GET /v2/scores, which we read, also says what a trace's own scores never have.
        store(engine, SCORE_LEGACY, *({**score, "sessionId": None, "datasetRunId": None} for score in answer["scores"]))
    derive(engine)

    export_sessions(engine, Selection(all=True), Options(tmp_path / "out"))

    found = exported(tmp_path / "out")
    assert set(whole) == set(found)
    for trace_id, answer in whole.items():
        assert_equal(answer, found[trace_id])


@pytest.mark.parametrize("scores_of", ["v2", "v3"])
@pytest.mark.parametrize("observations_of", ["v1", "v2"])
def test_documents_of_the_data_set_equal_the_recorded_trace_by_id(
    engine: Engine, tmp_path: Path, observations_of: str, scores_of: str
) -> None:
    whole = {answer["id"]: in_order(answer) for answer in answers("trace_by_id") if _is_whole(answer)}
    fill_with_corpus(engine, scores_of=scores_of, observations_of=observations_of, only=set(whole))

    export_sessions(engine, Selection(traces=tuple(whole)), Options(tmp_path / "out"))

    found = exported(tmp_path / "out")
    assert set(whole) == set(found)
    for trace_id, answer in whole.items():
        document = found[trace_id]
        if observations_of == "v2":
            _as_older(document["observations"], answer["observations"])
        for part in answer["observations"] if observations_of == "v1" else ():
            # GET /observations says null for every tier.
            if part["modelId"] is not None:
                del part["usagePricingTierId"], part["usagePricingTierName"]
        if scores_of == "v3":
            for score in answer["scores"]:
                del score["executionTraceId"]
                if score["dataType"] == "CATEGORICAL":
                    del score["value"]
        assert_equal(answer, document)


@pytest.mark.long
def test_both_databases_give_the_same_bytes(both: list[Engine], tmp_path: Path) -> None:
    trees = []
    for number, engine in enumerate(both):
        fill_with_corpus(engine)
        export_sessions(engine, Selection(all=True), Options(tmp_path / f"{number}" / "full"))
        for options in (
            Options(tmp_path / f"{number}" / "row", detail="row", indent=0),
            Options(tmp_path / f"{number}" / "lines", format="jsonl"),
        ):
            export_sessions(engine, Selection(sessions=(ALPHA, BETA)), options)
        trees.append(read_tree(tmp_path / f"{number}"))

    assert trees[0] == trees[1]
    assert len(trees[0]) == (1200 + 44) + (137 + 50 + 2) + 2 * 2


def _as_older(found: list[dict[str, Any]], answered: list[dict[str, Any]]) -> None:
    """Takes away what GET /v2/observations alone says, and its copies of what the trace says."""
    for part, answer in zip(found, answered, strict=True):
        for field in OBSERVATION_V2_ONLY:
            del part[field.api]
        assert answer["metadata"].items() <= part["metadata"].items()
        assert answer["version"] in (None, part["version"])
        part |= {name: answer[name] for name in ("metadata", "version")}


def _is_whole(answer: dict[str, Any]) -> bool:
    return "data" not in answer and answer["latency"] != -1
