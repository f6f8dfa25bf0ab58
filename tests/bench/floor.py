"""The practical floor: what one would write by hand in an afternoon to bring the same rows into the same tables.

One thread; a page is downloaded, parsed with orjson, and upserted with all its columns in one transaction. There is no
content hash, no comparison with what is stored, no ledger, no proof, no retry; whatever comes is believed. What a list
does not say is worked out once, at the end, by a statement: latency and cost of traces, and the sessions of v4.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from typing import Any, NamedTuple

import orjson
import psycopg
import requests
from psycopg import sql

from etl.demo import PUBLIC_KEY, SECRET_KEY
from etl.transform.fields import OBSERVATION, OBSERVATION_V2, SCORE_LEGACY, SESSION, TRACE, TRACE_V2, Field, Kind

Item = dict[str, Any]
Row = tuple[Any, ...]

_API_ROOT = "/api/public"
# The columns that tell what we know of a row may not be null; these stand in for them, the same in every row.
_BOOKKEEPING = {
    "content_hash": "",
    "read_from": "floor",
    "first_seen_at": "2026-01-01T00:00:00.000Z",
    "changed_at": "2026-01-01T00:00:00.000Z",
}
# What GET /v2/observations calls otherwise.
_RENAMED_V2 = {
    "providedModelName": "model", "inputUsage": "promptTokens", "outputUsage": "completionTokens",
    "totalUsage": "totalTokens", "inputCost": "calculatedInputCost", "outputCost": "calculatedOutputCost",
    "totalCost": "calculatedTotalCost",
}  # fmt: skip


def _observation_v2(item: Item) -> Item:
    return _with_contents({_RENAMED_V2.get(name, name): value for name, value in item.items()})


def _trace_v2(item: Item) -> Item:
    return _with_contents(item | {"id": item["traceId"], "timestamp": item["startTime"]})


def _with_contents(item: Item) -> Item:
    """Inputs and outputs come as text, which is JSON or not."""
    for name in ("input", "output"):
        if item[name]:
            with suppress(orjson.JSONDecodeError):
                item[name] = orjson.loads(item[name])
    return item


def _score_v3(item: Item) -> Item:
    subject, value = item.pop("subject"), item["value"]
    item[{"trace": "traceId", "observation": "observationId", "session": "sessionId"}[subject["kind"]]] = subject["id"]
    item.setdefault("traceId", subject.get("traceId"))
    if isinstance(value, bool):
        item |= {"value": int(value), "stringValue": str(value)}
    elif isinstance(value, str):
        item |= {"value": None, "stringValue": value}
    return item


class Target(NamedTuple):
    """Where the rows of an endpoint go: `key` with `project_id` is the primary key."""

    table: str
    fields: tuple[Field, ...]
    key: tuple[str, ...] = ("id",)
    reshape: Callable[[Item], Item] = lambda item: item

    def columns(self) -> list[str]:
        return [*(field.column for field in self.fields), *_BOOKKEEPING]

    def updates(self) -> list[str]:
        return [name for name in self.columns() if name not in ("project_id", *self.key)]

    def rows(self, items: Iterable[Item]) -> list[Row]:
        names = [(field.api, field.kind is Kind.JSON) for field in self.fields]
        filler = tuple(_BOOKKEEPING.values())
        return [
            (*(_text(item.get(name)) if is_json else item.get(name) for name, is_json in names), *filler)
            for item in map(self.reshape, items)
        ]


_TARGETS = {
    "/traces": Target("traces", TRACE.fields),
    "/observations": Target("observations", OBSERVATION.fields, ("trace_id", "id")),
    "/v3/scores": Target("scores", SCORE_LEGACY.fields, reshape=_score_v3),
    "/sessions": Target("sessions", SESSION.fields),
}
_V2_PATH = "/v2/observations"
_OBSERVATIONS_V2 = Target("observations", OBSERVATION_V2.fields, ("trace_id", "id"), _observation_v2)
_TRACES_V2 = Target("traces", TRACE_V2.fields, reshape=_trace_v2)

_METRICS = """
    UPDATE traces SET latency = of_trace.seconds, total_cost = of_trace.usd
    FROM (
        SELECT project_id, trace_id, sum(calculated_total_cost) AS usd, {seconds} AS seconds
        FROM observations GROUP BY project_id, trace_id
    ) AS of_trace
    WHERE of_trace.project_id = traces.project_id AND of_trace.trace_id = traces.id
"""
_SQLITE_SECONDS = "(julianday(max(coalesce(end_time, start_time))) - julianday(min(start_time))) * 86400"
_POSTGRES_SECONDS = "extract(epoch FROM max(coalesce(end_time, start_time)) - min(start_time))"
_SESSIONS_V2 = f"""
    INSERT INTO sessions (project_id, id, environment, {", ".join(_BOOKKEEPING)})
    SELECT project_id, session_id, min(environment), {", ".join(f"'{value}'" for value in _BOOKKEEPING.values())}
    FROM traces WHERE session_id <> '' GROUP BY project_id, session_id
"""


def download(urls: Iterable[str]) -> None:
    """Reads the bodies and throws them away."""
    with _connect() as http:
        for url in urls:
            _body(http, url)


def download_and_parse(urls: Iterable[str]) -> None:
    """Reads the bodies, parses them, and throws the values away."""
    with _connect() as http:
        for url in urls:
            orjson.loads(_body(http, url))


def load_sqlite(urls: Sequence[str], path: str) -> None:
    """All rows into the tables of a SQLite file."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA synchronous=NORMAL")  # the file has its write-ahead log already

        def write(target: Target, rows: list[Row]) -> None:
            with conn:
                conn.executemany(_sqlite_upsert(target), rows)

        _load(urls, write)
        with conn:
            conn.execute(_METRICS.format(seconds=_SQLITE_SECONDS))
            if _lacks_sessions(urls):
                conn.execute(_SESSIONS_V2)


def load_postgres(urls: Sequence[str], dsn: str, schema: str) -> None:
    """All rows into the tables of a Postgres schema: `COPY` into a temporary table, and from there an upsert."""
    with psycopg.connect(dsn) as conn:
        for target in _TARGETS.values():
            page, table = sql.Identifier(f"page_{target.table}"), sql.Identifier(schema, target.table)
            statement = sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS")
            conn.execute(statement.format(page, table))
        conn.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(schema)))
        conn.commit()

        def write(target: Target, rows: list[Row]) -> None:
            copy_in, upsert = _postgres_statements(target, schema)
            with conn.transaction(), conn.cursor() as cursor:
                with cursor.copy(copy_in) as copy:
                    for row in rows:
                        copy.write_row(row)
                cursor.execute(upsert)

        _load(urls, write)
        conn.execute(_METRICS.format(seconds=_POSTGRES_SECONDS).encode())
        if _lacks_sessions(urls):
            conn.execute(_SESSIONS_V2.encode())


def _lacks_sessions(urls: Iterable[str]) -> bool:
    return any(f"{_V2_PATH}?" in url for url in urls)


def _load(urls: Iterable[str], write: Callable[[Target, list[Row]], None]) -> None:
    with _connect() as http:
        for url in urls:
            path = url.partition("?")[0].partition(_API_ROOT)[2]
            items = orjson.loads(_body(http, url))["data"]
            if path == _V2_PATH:
                traces = [item for item in items if item["id"] == f"t-{item['traceId']}"]
                write(_TRACES_V2, _TRACES_V2.rows(traces))
                others = [item for item in items if item["id"] != f"t-{item['traceId']}"]
                write(_OBSERVATIONS_V2, _OBSERVATIONS_V2.rows(others))
            else:
                write(_TARGETS[path], _TARGETS[path].rows(items))


def _connect() -> requests.Session:
    http = requests.Session()
    http.auth = (PUBLIC_KEY, SECRET_KEY)
    return http


def _body(http: requests.Session, url: str) -> bytes:
    response = http.get(url)
    response.raise_for_status()
    return response.content


def _text(value: Any) -> str | None:
    return None if value is None else orjson.dumps(value).decode()


def _sqlite_upsert(target: Target) -> str:
    columns, updates = target.columns(), target.updates()
    return (
        f"INSERT INTO {target.table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        f" ON CONFLICT (project_id, {', '.join(target.key)})"
        f" DO UPDATE SET {', '.join(f'{name} = excluded.{name}' for name in updates)}"
    )


def _postgres_statements(target: Target, schema: str) -> tuple[sql.Composed, sql.Composed]:
    page, columns = sql.Identifier(f"page_{target.table}"), _list(target.columns())
    updates = [sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in target.updates()]
    upsert = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ON CONFLICT ({}) DO UPDATE SET {}").format(
        sql.Identifier(schema, target.table), columns, columns, page, _list(["project_id", *target.key]),
        sql.SQL(", ").join(updates),
    )  # fmt: skip
    return sql.SQL("COPY {} ({}) FROM STDIN").format(page, columns), upsert


def _list(names: Iterable[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
