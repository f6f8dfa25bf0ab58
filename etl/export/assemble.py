"""The documents of one session, read from the database one at a time."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection

from etl.export.manifest import MANIFEST
from etl.export.names import Wanted, unique_names
from etl.export.paths import find, matches, name_text
from etl.export.selection import Selection
from etl.load.queries import StoredSession, session_children, session_traces
from etl.load.tables import observations, scores
from etl.load.types import instant_text
from etl.transform.documents import Document, full_document, row_document
from etl.transform.fields import TRACE_DOCUMENT
from etl.transform.rows import to_api

_Row = dict[str, Any]

# Enough for a row's lists of ids.
_OBSERVATION_IDS = ("id", "trace_id", "exact")
_SCORE_IDS = ("id", "trace_id", "exact", "data_type", "session_id", "dataset_run_id")
# Columns without which no row can be turned into an object, or put in order.
_ALWAYS = ("id", "timestamp", "extra", "exact")
_CHILDREN = ("observations", "scores")
# More than that, and reading the whole session is cheaper than naming its traces.
_MOST_IDS = 1_000


def plan_session(conn: Connection, session: StoredSession, selection: Selection, name_by: str) -> dict[str, str]:
    """The traces of a session that are selected, in the order (timestamp, id), and the name of each one's file.

    Names are given to all traces of the session, so that one keeps its name whatever part of the session is exported.
    """
    start = None if selection.start is None else instant_text(selection.start)
    end = None if selection.end is None else instant_text(selection.end)
    traces = frozenset(selection.traces)
    wanted: dict[str, Wanted] = {}
    chosen: list[str] = []
    for row, item in _items(conn, session, [name_by, *(path for path, _ in selection.where)]):
        trace_id, timestamp = row["id"], row["timestamp"] or ""
        wanted[trace_id] = Wanted(name_text(find(item, name_by)) or trace_id, trace_id)
        if (
            (not traces or trace_id in traces)
            and (start is None or timestamp >= start)
            and (end is None or "" < timestamp < end)
            and all(matches(item, path, text) for path, text in selection.where)
        ):
            chosen.append(trace_id)
    names = unique_names(wanted, suffix=".json", taken=[MANIFEST])
    return {trace_id: names[trace_id] for trace_id in chosen}


def documents(
    conn: Connection, session: StoredSession, trace_ids: Collection[str], detail: Literal["full", "row"]
) -> Iterator[tuple[str, Document]]:
    """Id and document of these traces of a session, in the order (timestamp, id)."""
    chosen = frozenset(trace_ids)
    ids = chosen if len(chosen) <= min(_MOST_IDS, session.traces - 1) else None
    row_only = detail == "row"
    observation_rows = _InStep(
        session_children(conn, observations, session, columns=_OBSERVATION_IDS if row_only else None, ids=ids)
    )
    score_rows = _InStep(session_children(conn, scores, session, columns=_SCORE_IDS if row_only else None, ids=ids))
    build = row_document if row_only else full_document
    for row in session_traces(conn, session, ids=ids):
        parts = observation_rows.of(row["id"]), score_rows.of(row["id"])
        if row["id"] in chosen:
            yield row["id"], build(row, *parts)


class _InStep:
    """Rows that follow their traces in the same order, taken trace by trace."""

    def __init__(self, rows: Iterator[_Row]) -> None:
        self._groups = itertools.groupby(rows, key=lambda row: row["trace_id"])
        self._next = next(self._groups, None)

    def of(self, trace_id: str) -> list[_Row]:
        if self._next is None or self._next[0] != trace_id:
            return []
        rows = list(self._next[1])
        self._next = next(self._groups, None)
        return rows


def _items(conn: Connection, session: StoredSession, paths: Sequence[str]) -> Iterator[tuple[_Row, dict[str, Any]]]:
    """Row and object of each trace; the object holds at least what the paths lead to."""
    if any(_leads_into(path, part) for path in paths for part in _CHILDREN):
        whole = _InStep(session_children(conn, observations, session)), _InStep(session_children(conn, scores, session))
        for row in session_traces(conn, session):
            yield row, full_document(row, *(rows.of(row["id"]) for rows in whole)).item
        return
    fields = tuple(field for field in TRACE_DOCUMENT.fields if any(_leads_into(path, field.api) for path in paths))
    shape = replace(TRACE_DOCUMENT, fields=fields)
    columns = list(dict.fromkeys((*_ALWAYS, *(field.column for field in fields))))
    for row in session_traces(conn, session, columns=columns):
        yield row, to_api(row, shape)


def _leads_into(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")
