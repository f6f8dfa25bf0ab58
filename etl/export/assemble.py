"""The documents of one session, read from the database a few at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from sqlalchemy import Connection

from etl.export.manifest import MANIFEST
from etl.export.names import Names, Wanted, agree_on_names
from etl.export.paths import find, matches, name_text
from etl.export.selection import Selection
from etl.load.queries import StoredSession, rows_of_session, rows_of_traces, trace_ids, traces_with_part_ids
from etl.load.tables import observations, scores, traces
from etl.transform.documents import DOCUMENT_COLUMNS, Document, full_document, row_document
from etl.transform.fields import TRACE_DOCUMENT, Shape
from etl.transform.rows import to_api

_Item = TypeVar("_Item")
_Detail = Literal["full", "row"]

# Traces of which a few columns are in memory together.
_GLANCED_TRACES = 256
# Traces of which documents are in memory together, with the rows that they are made of.
_BUILT_TRACES: dict[_Detail, int] = {"full": 16, "row": 64}


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
        for ids in _groups(_selected(self.conn, self.session, self.selection), _BUILT_TRACES[detail]):
            is_in_document = detail == "full" or not _needs_parts(self.name_by)
            whole = None if is_in_document else _whole_items(self.conn, self.session, ids)
            for trace_id, document in zip(ids, _BUILD[detail](self.conn, self.session, ids), strict=True):
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
    """What the file of each trace of a session is to be called, in no order."""
    if _needs_parts(name_by):
        ids = trace_ids(conn, session)
        items: Iterable[tuple[str, Mapping[str, Any]]] = _glances(conn, session, ids, [name_by])
    else:
        shape, columns = _glance([name_by])
        items = ((row["id"], to_api(row, shape)) for row in rows_of_session(conn, session, columns))
    for trace_id, item in items:
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
    """Traces of a session as objects that hold no more than these paths lead to, in the order of the ids."""
    for group in _groups(ids, _GLANCED_TRACES):
        if any(map(_needs_parts, paths)):
            yield from zip(group, _whole_items(conn, session, group), strict=True)
        else:
            shape, columns = _glance(paths)
            rows = rows_of_traces(conn, traces, session.project_id, group, columns)
            yield from ((trace_id, to_api(rows[trace_id][0], shape)) for trace_id in group)


def _glance(paths: list[str]) -> tuple[Shape, tuple[str, ...]]:
    """The fields of a trace that these paths lead into, and the columns to read them from; `id` is among these."""
    fields = tuple(field for field in TRACE_DOCUMENT.fields if any(_leads_into(path, field.api) for path in paths))
    shape = replace(TRACE_DOCUMENT, fields=fields)
    return shape, tuple(dict.fromkeys(("id", *shape.columns, "extra", "exact")))


def _whole_items(conn: Connection, session: StoredSession, ids: list[str]) -> Iterator[dict[str, Any]]:
    for group in _groups(ids, _BUILT_TRACES["full"]):
        yield from (document.item for document in _full_documents(conn, session, group))


def _full_documents(conn: Connection, session: StoredSession, ids: list[str]) -> Iterator[Document]:
    """The documents of these traces, in the order given."""
    found = [
        rows_of_traces(conn, table, session.project_id, ids, DOCUMENT_COLUMNS[table.name])
        for table in (traces, observations, scores)
    ]
    for trace_id in ids:
        (trace,), its_observations, its_scores = (rows.get(trace_id, []) for rows in found)
        yield full_document(trace, its_observations, its_scores)


def _row_documents(conn: Connection, session: StoredSession, ids: list[str]) -> Iterator[Document]:
    rows = traces_with_part_ids(conn, session.project_id, ids, DOCUMENT_COLUMNS["traces"])
    return (row_document(rows[trace_id]) for trace_id in ids)


_BUILD = {"full": _full_documents, "row": _row_documents}


def _needs_parts(path: str) -> bool:
    return any(_leads_into(path, part) for part in ("observations", "scores"))


def _leads_into(path: str, field: str) -> bool:
    return path == field or path.startswith(f"{field}.")


def _groups(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    remaining = iter(items)
    while group := list(itertools.islice(remaining, size)):
        yield group
