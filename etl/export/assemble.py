"""The documents of one session, read from the database a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from sqlalchemy import Connection

from etl.export.manifest import MANIFEST
from etl.export.names import Names, Wanted, agree_on_names
from etl.export.paths import find, matches, name_text
from etl.export.selection import Selection
from etl.load.queries import StoredSession, rows_of_traces, trace_ids
from etl.load.tables import observations, scores, traces
from etl.transform.documents import DOCUMENT_COLUMNS, Document, Row, full_document, row_document
from etl.transform.fields import TRACE_DOCUMENT
from etl.transform.rows import to_api

_Glance = Callable[[Connection, StoredSession, list[str]], Iterable[dict[str, Any]]]
_Item = TypeVar("_Item")
_Detail = Literal["full", "row"]

# Traces of which a few columns are in memory together.
_GLANCED_TRACES = 256


class _Reading(NamedTuple):
    """How documents of one detail are read and built; rows of so many traces are in memory together."""

    build: Callable[[Row, Iterable[Row], Iterable[Row]], Document]
    traces: int
    observation_columns: tuple[str, ...]
    score_columns: tuple[str, ...]


_READINGS = {
    "full": _Reading(full_document, 16, DOCUMENT_COLUMNS["observations"], DOCUMENT_COLUMNS["scores"]),
    "row": _Reading(row_document, 64, ("id", "exact"), ("id", "exact", "data_type", "session_id", "dataset_run_id")),
}


class NamedDocument(NamedTuple):
    """A document of a session and the name of its file."""

    trace_id: str
    name: str
    document: Document


@dataclass(frozen=True)
class SessionPlan:
    """The traces of a session that are selected, and how their files are called; `traces` counts them.

    Names are given to all traces of the session, so that one keeps its name whatever part of the session is exported.
    Neither ids nor names are kept: they are read again when they are needed.
    """

    conn: Connection
    session: StoredSession
    selection: Selection
    name_by: str
    names: Names
    traces: int

    def documents(self, detail: _Detail) -> Iterator[NamedDocument]:
        """What is selected, in the order (timestamp, id)."""
        for ids in _groups(_selected(self.conn, self.session, self.selection), _READINGS[detail].traces):
            is_in_document = detail == "full" or not _needs_children(self.name_by)
            whole = None if is_in_document else _whole_items(self.conn, self.session, ids)
            for trace_id, document in zip(ids, _documents(self.conn, self.session, ids, detail), strict=True):
                item = document.item if whole is None else next(whole)
                yield NamedDocument(trace_id, self.names.name(_wanted(trace_id, item, self.name_by)), document)

    def file_names(self) -> Iterator[str]:
        """The names of all files of the session, whatever is selected."""
        return map(self.names.name, _all_wanted(self.conn, self.session, self.name_by))


def plan_session(conn: Connection, session: StoredSession, selection: Selection, name_by: str) -> SessionPlan:
    """What is selected of a session; `conn` must show the same data until the plan is done with."""
    names = agree_on_names(lambda: _all_wanted(conn, session, name_by), suffix=".json", taken=[MANIFEST])
    count = sum(1 for _ in _selected(conn, session, selection))
    return SessionPlan(conn, session, selection, name_by, names, count)


def _all_wanted(conn: Connection, session: StoredSession, name_by: str) -> Iterator[Wanted]:
    """What the file of each trace of a session is to be called."""
    for trace_id, item in _glances(conn, session, trace_ids(conn, session), [name_by]):
        yield _wanted(trace_id, item, name_by)


def _wanted(trace_id: str, item: Mapping[str, Any], name_by: str) -> Wanted:
    return Wanted(name_text(find(item, name_by)) or trace_id, trace_id)


def _selected(conn: Connection, session: StoredSession, selection: Selection) -> Iterator[str]:
    """The ids of what is selected of a session, in the order (timestamp, id)."""
    found = trace_ids(conn, session, selection.start, selection.end)
    if selection.traces:
        found = filter(frozenset(selection.traces).__contains__, found)
    if selection.where:
        glances = _glances(conn, session, found, [path for path, _ in selection.where])
        found = (one for one, item in glances if all(matches(item, *condition) for condition in selection.where))
    return found


def _glances(
    conn: Connection, session: StoredSession, ids: Iterable[str], paths: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Traces of a session as objects that hold no more than these paths lead to."""
    glance = _glance(paths)
    for group in _groups(ids, _GLANCED_TRACES):
        yield from zip(group, glance(conn, session, group), strict=True)


def _glance(paths: list[str]) -> _Glance:
    """What reads of traces no more than these paths lead to, as objects in the order of the ids."""
    if any(map(_needs_children, paths)):
        return _whole_items
    fields = tuple(field for field in TRACE_DOCUMENT.fields if any(_leads_into(path, field.api) for path in paths))
    shape = replace(TRACE_DOCUMENT, fields=fields)
    columns = (*shape.columns, "extra", "exact")

    def items(conn: Connection, session: StoredSession, ids: list[str]) -> Iterator[dict[str, Any]]:
        rows = rows_of_traces(conn, traces, session.project_id, ids, columns)
        return (to_api(rows[trace_id][0], shape) for trace_id in ids)

    return items


def _whole_items(conn: Connection, session: StoredSession, ids: list[str]) -> Iterator[dict[str, Any]]:
    return (document.item for document in _documents(conn, session, ids, "full"))


def _documents(conn: Connection, session: StoredSession, ids: list[str], detail: _Detail) -> Iterator[Document]:
    """The documents of these traces of a session, in the order given."""
    reading = _READINGS[detail]
    for group in _groups(ids, reading.traces):
        trace_rows = rows_of_traces(conn, traces, session.project_id, group, DOCUMENT_COLUMNS["traces"])
        observation_rows = rows_of_traces(conn, observations, session.project_id, group, reading.observation_columns)
        score_rows = rows_of_traces(conn, scores, session.project_id, group, reading.score_columns)
        for trace_id in group:
            (row,) = trace_rows[trace_id]
            yield reading.build(row, observation_rows.get(trace_id, ()), score_rows.get(trace_id, ()))


def _needs_children(path: str) -> bool:
    return any(_leads_into(path, part) for part in ("observations", "scores"))


def _leads_into(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


def _groups(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while group := list(itertools.islice(remaining, size)):
        yield group
