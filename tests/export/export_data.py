"""Data for export tests: rows made by hand, the recorded data set, and what the real server answered."""

from __future__ import annotations

import gzip
import json
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Engine, Table, select, update

from etl.demo.shapes import score_v3
from etl.load.engine import writing
from etl.load.metrics import refresh_trace_metrics
from etl.load.tables import traces
from etl.load.upsert import upsert
from etl.transform import scores
from etl.transform.fields import OBSERVATION, OBSERVATION_V2, SCORE_LEGACY, SCORE_V3, TRACE, Shape
from etl.transform.jsontext import parse
from etl.transform.observations_v2 import flatten, is_trace_copy
from etl.transform.rows import from_api

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "etl" / "demo" / "data"
CASSETTES = ROOT / "tests" / "cassettes"
PROJECT = "proj-shop"
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def store(engine: Engine, shape: Shape, *items: Mapping[str, Any], project: str = PROJECT) -> None:
    """Stores objects as the API gives them, through JSON text as on the wire."""
    rows = []
    for item in items:
        value, plain = parse(json.dumps(item).encode())
        read_from, verbatim = "traces", {}
        if shape is SCORE_V3:
            value, read_from = scores.flatten(value), "observations"
        elif shape is OBSERVATION_V2:
            (value, plain, verbatim), read_from = flatten(value, plain), "observations"
        rows.append(from_api(value, shape, project_id=project, read_from=read_from, plain=plain, verbatim=verbatim))
    with writing(engine) as conn:
        upsert(conn, shape.table, rows, NOW)


def derive(engine: Engine, project: str = PROJECT) -> None:
    """Latency and cost of every trace."""
    with writing(engine) as conn:
        ids = conn.execute(select(traces.c.id).where(traces.c.project_id == project)).scalars().all()
        refresh_trace_metrics(conn, project, ids, NOW)


def trace(trace_id: str, **fields: Any) -> dict[str, Any]:
    """A trace as GET /traces answers it."""
    return {
        "id": trace_id,
        "projectId": PROJECT,
        "name": "chat",
        "timestamp": "2026-11-10T10:00:00.000Z",
        "environment": "default",
        "tags": [],
        "bookmarked": False,
        "release": None,
        "version": None,
        "userId": None,
        "sessionId": "s1",
        "public": False,
        "input": None,
        "output": None,
        "metadata": {},
        "createdAt": "2026-11-10T10:00:01.000Z",
        "updatedAt": "2026-11-10T10:00:01.000Z",
        "totalCost": 0,
        "latency": 0,
        "htmlPath": f"/project/{PROJECT}/traces/{trace_id}",
        "externalId": None,
        "observations": [],
        "scores": [],
    } | fields


def fill(engine: Engine, *traces_given: Mapping[str, Any]) -> None:
    """Stores traces and derives their metrics."""
    store(engine, TRACE, *traces_given)
    derive(engine)


@cache
def corpus(name: str) -> list[dict[str, Any]]:
    with gzip.open(CORPUS / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def fill_with_corpus(
    engine: Engine, *, scores_of: str = "v2", observations_of: str = "v1", only: Collection[str] | None = None
) -> None:
    """The recorded data set, or these traces of it; scores and observations as one of the generations answered them."""

    def rows(name: str, key: str = "traceId") -> list[dict[str, Any]]:
        return [row for row in corpus(name) if only is None or row[key] in only]

    store(engine, TRACE, *rows("traces", "id"))
    if observations_of == "v1":
        store(engine, OBSERVATION, *rows("observations_v1"))
    else:
        store(engine, OBSERVATION_V2, *(row for row in rows("observations_v2") if not is_trace_copy(row)))
    if scores_of == "v2":
        store(engine, SCORE_LEGACY, *rows("scores_v2"))
    else:
        groups = frozenset({"details", "subject", "annotation"})
        store(engine, SCORE_V3, *(score_v3(row, groups) for row in rows("scores_v2")))
    derive(engine)


@cache
def answers(cassette: str) -> list[Any]:
    """The JSON bodies of the successful answers in a cassette."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    content = yaml.load((CASSETTES / f"{cassette}.yaml").read_bytes(), loader)  # noqa: S506 - a safe loader
    return [
        json.loads(one["response"]["body"]["string"])
        for one in content["interactions"]
        if one["response"]["status"]["code"] == 200
    ]


def read_tree(directory: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def edit(engine: Engine, table: Table, row_id: str, **columns: Any) -> None:
    """Changes columns of a row behind the back of `upsert`."""
    with writing(engine) as conn:
        conn.execute(update(table).where(table.c.id == row_id).values(columns))
