"""The documents of one session, read from the database a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection

from etl.export.manifest import MANIFEST
from etl.export.names import Wanted, unique_names
from etl.export.paths import find, matches, name_text
from etl.export.selection import Selection
from etl.load.queries import StoredSession, rows_of_traces, session_traces
from etl.load.tables import observations, scores, traces
from etl.load.types import instant_text
from etl.transform.documents import Document, Row, full_document, row_document
from etl.transform.fields import TRACE_DOCUMENT
from etl.transform.rows import to_api

# Columns without which no row can be turned into an object, or put in order.
_ALWAYS = ("id", "timestamp", "extra", "exact")
_CHILDREN = ("observations", "scores")


class _Reading(NamedTuple):
    """How documents of one detail are read and built; rows of so many traces are in memory together."""

    build: Callable[[Row, Iterable[Row], Iterable[Row]], Document]
    traces: int
    observation_columns: tuple[str, ...] | None
    score_columns: tuple[str, ...] | None


_READINGS = {
    "full": _Reading(full_document, 16, None, None),
    "row": _Reading(row_document, 64, ("id", "exact"), ("id", "exact", "data_type", "session_id", "dataset_run_id")),
}


def plan_session(conn: Connection, session: StoredSession, selection: Selection, name_by: str) -> dict[str, str]:
    """The traces of a session that are selected, in the order (timestamp, id), and the name of each one's file.

    Names are given to all traces of the session, so that one keeps its name whatever part of the session is exported.
    """
    start = None if selection.start is None else instant_text(selection.start)
    end = None if selection.end is None else instant_text(selection.end)
    ids = frozenset(selection.traces)
    wanted: dict[str, Wanted] = {}
    chosen: list[tuple[str, str]] = []
    for trace_id, timestamp, item in _items(conn, session, [name_by, *(path for path, _ in selection.where)]):
        wanted[trace_id] = Wanted(name_text(find(item, name_by)) or trace_id, trace_id)
        if (
            (not ids or trace_id in ids)
            and (start is None or timestamp >= start)
            and (end is None or "" < timestamp < end)
            and all(matches(item, path, text) for path, text in selection.where)
        ):
            chosen.append((timestamp, trace_id))
    names = unique_names(wanted, suffix=".json", taken=[MANIFEST])
    # Sorted here: Postgres sorts text by the language of the database, SQLite by its bytes, and null by other rules.
    return {trace_id: names[trace_id] for _, trace_id in sorted(chosen)}


def documents(
    conn: Connection, session: StoredSession, trace_ids: Iterable[str], detail: Literal["full", "row"]
) -> Iterator[tuple[str, Document]]:
    """Id and document of these traces of a session, in the order given."""
    reading = _READINGS[detail]
    remaining = iter(trace_ids)
    while ids := list(itertools.islice(remaining, reading.traces)):
        trace_rows = rows_of_traces(conn, traces, session.project_id, ids)
        observation_rows = rows_of_traces(conn, observations, session.project_id, ids, reading.observation_columns)
        score_rows = rows_of_traces(conn, scores, session.project_id, ids, reading.score_columns)
        for trace_id in ids:
            (row,) = trace_rows[trace_id]
            yield trace_id, reading.build(row, observation_rows.get(trace_id, ()), score_rows.get(trace_id, ()))


def _items(conn: Connection, session: StoredSession, paths: Sequence[str]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Id, timestamp ("" for none) and object of each trace; the object holds at least what the paths lead to."""
    if any(_leads_into(path, part) for path in paths for part in _CHILDREN):
        times = {row["id"]: row["timestamp"] or "" for row in session_traces(conn, session, ("id", "timestamp"))}
        for trace_id, document in documents(conn, session, times, "full"):
            yield trace_id, times[trace_id], document.item
        return
    fields = tuple(field for field in TRACE_DOCUMENT.fields if any(_leads_into(path, field.api) for path in paths))
    shape = replace(TRACE_DOCUMENT, fields=fields)
    columns = list(dict.fromkeys((*_ALWAYS, *(field.column for field in fields))))
    for row in session_traces(conn, session, columns):
        yield row["id"], row["timestamp"] or "", to_api(row, shape)


def _leads_into(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")
