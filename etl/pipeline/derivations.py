"""Derived rows and values against what follows from the stored rows that they are made of.

A derived row comes by with each row that it is made of, in several pages and windows, and each of these may differ from
the server, too; so it is judged when all has been read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from etl.extract.readers import Page
from etl.intervals import Window
from etl.load.compare import Differences
from etl.load.derived import differing_sessions, differing_traces
from etl.load.keys import Key
from etl.load.metrics import differing_metrics
from etl.load.selection import session_ids_of
from etl.load.tables import TIME_COLUMNS
from etl.pipeline.scope import Scope
from etl.transform.pages import BRINGS, OBSERVATIONS_V2
from etl.transform.rows import Row

# A row by its table and its key without the project.
Place = tuple[str, Key]


class Sighted(NamedTuple):
    """A derived row that is `missing` or differs, and the time of a row by which it was seen."""

    missing: bool
    time: str


class Mending(NamedTuple):
    """A derived row that is `missing` or differs, and the window of a source that mends it."""

    missing: bool
    source: str
    window: Window


@dataclass
class Derivations:
    """What differs of what is derived: `latency` and `total_cost` of traces; on v4 traces and sessions themselves."""

    _found: dict[Place, Mending] = field(default_factory=dict)
    # Those that were found by what the server answered.
    _counted: set[Place] = field(default_factory=set)
    # Those made of rows that differ from the server: they are derived anew when these are mended.
    _uncertain: set[Place] = field(default_factory=set)

    def compare(
        self,
        conn: Connection,
        scope: Scope,
        page: Page,
        tables: Mapping[str, Sequence[Row]],
        differing: Mapping[str, set[Key]],
    ) -> dict[Place, Sighted]:
        """What differs of all that is made of the rows of one page.

        Args:
            tables: The rows of the page.
            differing: Which of them differ from what is stored, or are not stored, by table.
        """
        self._counted |= {("traces", key) for key in differing.get("traces", ())}
        self._uncertain |= {("traces", key[:1]) for key in differing.get("observations", ())}
        if "traces" not in BRINGS[page.kind]:
            return {}
        project_id = scope.project_id
        parts = _parts(tables, differing)
        traces = {part.trace_id: part.time for part in parts if part.trace_id}
        sighted: dict[Place, Sighted] = {}
        if scope.observations_copied:
            changed = differing_metrics(conn, project_id, traces)
            sighted |= _sighted("traces", Differences(set(), changed), traces)
        if page.kind in OBSERVATIONS_V2:
            # A session that only a missing row names comes with that row.
            sessions = {part.session_id: part.time for part in parts if part.session_id and not part.differs}
            found = differing_traces(conn, project_id, traces, light=page.light)
            sighted |= _sighted("traces", found, traces)
            sighted |= _sighted("sessions", differing_sessions(conn, project_id, sessions), sessions)
            wrong = {key[0] for key in (*differing["traces"], *found.missing, *found.changed)}
            of_wrong = session_ids_of(conn, project_id, wrong, with_deleted=True)
            of_wrong |= {part.session_id for part in parts if part.session_id and part.trace_id in wrong}
            self._uncertain |= {("sessions", (session_id,)) for session_id in of_wrong}
        return sighted

    def note(self, place: Place, missing: bool, source: str, window: Window) -> None:
        """`window` has one of the rows by which a derived row that differs was seen."""
        self._found.setdefault(place, Mending(missing, source, window))

    def judged(self) -> Iterator[Mending]:
        """What really differs, once each."""
        for place, found in self._found.items():
            if place not in self._counted and (found.missing or place not in self._uncertain):
                yield found


class _Part(NamedTuple):
    """A row that others are made of."""

    trace_id: str
    session_id: str | None
    time: str
    differs: bool


def _parts(tables: Mapping[str, Sequence[Row]], differing: Mapping[str, set[Key]]) -> list[_Part]:
    """The rows that have a time."""
    found: list[_Part] = []
    for name, rows in tables.items():
        time = TIME_COLUMNS[name].name
        for row in rows:
            key = (row["id"],) if name == "traces" else (row["trace_id"], row["id"])
            if row[time] is not None:
                found.append(_Part(key[0], row.get("session_id"), row[time], key in differing[name]))
    return found


def _sighted(table: str, found: Differences, times: Mapping[str, str]) -> dict[Place, Sighted]:
    return {
        (table, key): Sighted(missing, times[key[0]])
        for keys, missing in ((found.changed, False), (found.missing, True))
        for key in keys
    }
