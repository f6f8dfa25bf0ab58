"""The practical floor: what one would write by hand in an afternoon to bring the same rows into the same tables.

One thread; a page is downloaded, parsed with orjson, and upserted with all its columns in one transaction. There is no
content hash, no comparison with what is stored, no ledger, no proof, no retry; whatever comes is believed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, NamedTuple

import orjson
import psycopg
import requests
from psycopg import sql

from etl.demo import PUBLIC_KEY, SECRET_KEY
from etl.transform.fields import OBSERVATION, OBSERVATION_V2, SCORE_LEGACY, SESSION, TRACE, Field, Kind

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
    return {_RENAMED_V2.get(name, name): value for name, value in item.items()}


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
    "/v2/observations": Target("observations", OBSERVATION_V2.fields, ("trace_id", "id"), _observation_v2),
    "/v3/scores": Target("scores", SCORE_LEGACY.fields, reshape=_score_v3),
    "/sessions": Target("sessions", SESSION.fields),
}


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


def load_sqlite(urls: Iterable[str], path: str) -> None:
    """All rows into the tables of a SQLite file."""
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA synchronous=NORMAL")  # the file has its write-ahead log already

        def write(target: Target, rows: list[Row]) -> None:
            with conn:
                conn.executemany(_sqlite_upsert(target), rows)

        _load(urls, write)


def load_postgres(urls: Iterable[str], dsn: str, schema: str) -> None:
    """All rows into the tables of a Postgres schema: `COPY` into a temporary table, and from there an upsert."""
    with psycopg.connect(dsn) as conn:
        for target in _TARGETS.values():
            page, table = sql.Identifier(f"page_{target.table}"), sql.Identifier(schema, target.table)
            statement = sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS")
            conn.execute(statement.format(page, table))
        conn.commit()

        def write(target: Target, rows: list[Row]) -> None:
            copy_in, upsert = _postgres_statements(target, schema)
            with conn.transaction(), conn.cursor() as cursor:
                with cursor.copy(copy_in) as copy:
                    for row in rows:
                        copy.write_row(row)
                cursor.execute(upsert)

        _load(urls, write)


def _load(urls: Iterable[str], write: Callable[[Target, list[Row]], None]) -> None:
    with _connect() as http:
        for url in urls:
            target = _TARGETS[url.partition("?")[0].partition(_API_ROOT)[2]]
            write(target, target.rows(orjson.loads(_body(http, url))["data"]))


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
