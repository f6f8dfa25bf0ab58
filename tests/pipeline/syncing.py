"""A sync of the mock server as the service does it, and ways to look at the tables afterwards."""

from __future__ import annotations

import base64
import functools
import gzip
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from json_values import exact
from pydantic import SecretStr
from sqlalchemy import Engine, select

from etl.config import Config, Project
from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, LoggedRequest, MockLangfuse, generate, load_corpus
from etl.intervals import Window, merge
from etl.load.engine import reading
from etl.load.tables import ROW_TABLES, metadata, projects, sync_state, sync_windows
from etl.pipeline.report import RunReport
from etl.service.lease import write_lease
from etl.service.sync import sync_projects
from etl.settings import Http, Sync
from etl.transform.fields import OBSERVATION, SCORE_LEGACY, SCORE_V3, SESSION, TRACE_DOCUMENT
from etl.transform.jsontext import loads, parse
from etl.transform.rows import to_api
from etl.transform.scores import unflatten

# After the last row of the recorded data.
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
EDGE = NOW - timedelta(minutes=2)
DATA_TABLES = (projects, *ROW_TABLES.values())
_JSON_COLUMNS = {"tags", "input", "output", "metadata", "model_parameters", "usage_details", "cost_details", "usage"}
_SHAPES = {"traces": TRACE_DOCUMENT, "observations": OBSERVATION, "sessions": SESSION}

Row = dict[str, Any]


class Recorded(NamedTuple):
    """The recorded data after its first sync; `later` is what a second one, hours later, reported and left behind."""

    engine: Engine
    report: RunReport
    requests: Sequence[LoggedRequest]
    tables: Mapping[str, list[Row]]
    ledger: list[Row]
    run: Row
    watermarks: Mapping[str, datetime | None]
    later: RunReport
    later_tables: Mapping[str, list[Row]]


def sync_recorded(engine: Engine) -> Recorded:
    with MockLangfuse(corpus()) as server:
        report = sync(engine, server)
        requests = list(server.requests)
        tables, windows, (run,) = whole_tables(engine), ledger(engine), rows(engine, "sync_runs")
        marks = watermarks(engine)
        later = sync(engine, server, now=NOW + timedelta(hours=7))
    return Recorded(engine, report, requests, tables, windows, run, marks, later, whole_tables(engine))


@functools.cache
def corpus() -> Dataset:
    """The recorded data; tests that change the data load their own."""
    return load_corpus()


@functools.cache
def small() -> Dataset:
    """300 made-up traces of three days, with ties; tests that change the data make their own."""
    return make_small()


def make_small() -> Dataset:
    return generate(traces=300, days=3, observations_per_trace=2, io_bytes=200)


@functools.cache
def recorded(name: str) -> list[Row]:
    """The recorded rows themselves, as a real server answered them."""
    path = resources.files("etl.demo") / "data" / f"{name}.jsonl.gz"
    return [parse(line).value for line in gzip.decompress(path.read_bytes()).splitlines()]


@functools.cache
def recorded_scores_v3() -> list[Row]:
    """The recorded answers of GET /v3/scores."""
    path = Path(__file__).parents[1] / "demo" / "data" / "scores_v3.jsonl.gz"
    return [parse(line).value for line in gzip.decompress(path.read_bytes()).splitlines()]


def project(server: MockLangfuse | str, name: str = "shop", *, secret: str = SECRET_KEY, **settings: Any) -> Project:
    url = server if isinstance(server, str) else server.base_url
    return Project(name=name, base_url=url, public_key=PUBLIC_KEY, secret_key=SecretStr(secret), **settings)


def sync_all(
    engine: Engine,
    configured: Sequence[Project],
    *,
    now: datetime | None = NOW,
    stop: threading.Event | None = None,
    streams: Sequence[str] = (),
    on_progress: Any = None,
    http: Http | None = None,
) -> list[RunReport]:
    config = Config(projects=tuple(configured), sync=Sync(), http=http or Http(timeout="5s", give_up_after="20s"))
    with write_lease(engine) as owner:
        return sync_projects(
            config, engine, owner, projects=configured, streams=streams, trigger="test",
            stop=stop or threading.Event(), now=None if now is None else lambda: now, on_progress=on_progress,
        )  # fmt: skip


def sync(engine: Engine, server: MockLangfuse, *, now: datetime | None = NOW, **settings: Any) -> RunReport:
    """One run of the mock's project."""
    (report,) = sync_all(engine, [project(server, **settings)], now=now)
    return report


def rows(engine: Engine, table: str) -> list[Row]:
    """Every row and column, by key."""
    with reading(engine) as conn:
        chosen = metadata.tables[table]
        return [dict(row) for row in conn.execute(select(chosen).order_by(*chosen.primary_key)).mappings()]


def whole_tables(engine: Engine) -> dict[str, list[Row]]:
    """Every row and column of the data; the times of writing, too."""
    return {table.name: rows(engine, table.name) for table in DATA_TABLES}


def same_tables(engine: Engine) -> dict[str, list[Row]]:
    """What has to agree for two databases to be the same."""
    return {name: [_comparable(row) for row in found] for name, found in whole_tables(engine).items()}


def _comparable(row: Row) -> Row:
    kept = {n: v for n, v in row.items() if n not in ("base_url", "first_seen_at", "changed_at")}
    kept["deleted_at"] = row.get("deleted_at") is not None
    for name in {*_JSON_COLUMNS, "extra"} & kept.keys():
        kept[name] = None if row[name] is None else exact(loads(row[name]))
    if row.get("exact"):
        notes = loads(row["exact"])
        restored = {k: exact(loads(base64.b64decode(v).decode())) for k, v in notes.get("values", {}).items()}
        kept["exact"] = (restored, notes.get("absent"))
    return kept


def objects(engine: Engine, table: str) -> dict[Any, Row]:
    """The rows as the API gave them: by id, observations by trace id and id."""
    found: dict[Any, Row] = {}
    for row in rows(engine, table):
        if table == "scores":
            v3 = row["read_from"] == "observations"
            item = unflatten(to_api(row, SCORE_V3)) if v3 else to_api(row, SCORE_LEGACY)
        else:
            item = to_api(row, _SHAPES[table])
        found[(item["traceId"], item["id"]) if table == "observations" else item["id"]] = item
    return found


def by_key(items: Iterable[Mapping[str, Any]], *left_out: str) -> dict[Any, Row]:
    """API objects by key, without the fields that are stored elsewhere."""
    found: dict[Any, Row] = {}
    for item in items:
        key = (item["traceId"], item["id"]) if "startTime" in item else item["id"]
        found[key] = {name: value for name, value in item.items() if name not in left_out}
    return found


def exactly(items: Mapping[Any, Row]) -> dict[Any, Any]:
    """In a form where `==` is equality of JSON values: a number may be spelled in several ways."""
    return {key: exact(item) for key, item in items.items()}


def listed_traces(dataset: Dataset) -> dict[Any, Row]:
    """What `traces` has to hold; the lists of ids are in the child tables."""
    return by_key(dataset.traces(), "observations", "scores")


def ledger(engine: Engine) -> list[Row]:
    return rows(engine, "sync_windows")


def coverage(engine: Engine, stream: str) -> list[Window]:
    """The intervals read whole."""
    with reading(engine) as conn:
        query = select(sync_windows.c.window_start, sync_windows.c.window_end).where(
            sync_windows.c.stream == stream, sync_windows.c.proof.in_(("counted", "walked", "partial"))
        )
        return merge(Window(*row) for row in conn.execute(query))


def watermarks(engine: Engine) -> dict[str, datetime | None]:
    with reading(engine) as conn:
        return {row.stream: row.watermark for row in conn.execute(select(sync_state))}
