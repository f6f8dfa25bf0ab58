"""The database against the server, once more; writes nothing by itself.

Rows are compared with what the server answers, what is derived with what follows from the stored rows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sqlalchemy import Engine

from etl.errors import ApiError, AuthError, RowError
from etl.extract.readers import Page, Reader, Segment
from etl.intervals import Window, intersect, subtract
from etl.load import ledger
from etl.load.compare import differences, keys_and_times
from etl.load.deletions import derived_without_observations, stored_keys
from etl.load.engine import reading
from etl.load.keys import Key
from etl.load.types import instant_text
from etl.pipeline.derivations import Derivations, Place, Sighted
from etl.pipeline.plan import Due, cut_by_rows
from etl.pipeline.scope import Scope
from etl.pipeline.sources import common_coverage, switch_of
from etl.pipeline.store import of_selected_traces
from etl.pipeline.switch import Switch
from etl.transform.pages import BRINGS, OBSERVATIONS_V2, Kind, rows_of, selected_by_environment

log = logging.getLogger(__name__)

_ROWS_PER_WINDOW = 5_000


@dataclass
class Comparison:
    """What the server has and the database has not (`missing`), has otherwise (`changed`), or has no more (`deleted`).

    `doubtful` counts windows that could not be read with proof. `differing` are the windows to read again.
    """

    windows: int = 0
    missing: int = 0
    changed: int = 0
    deleted: int = 0
    doubtful: int = 0
    differing: dict[str, list[Due]] = field(default_factory=dict)

    @property
    def agrees(self) -> bool:
        """Whether nothing differs, and every window was read with proof."""
        return not (self.missing or self.changed or self.deleted or self.doubtful)

    def note(self, source: str, window: Window) -> None:
        """`window` of this source is to be read again."""
        due = Due(window, "verify", light=False)
        if due not in self.differing.setdefault(source, []):
            self.differing[source].append(due)


def compare_with_server(engine: Engine, reader: Reader, scope: Scope, span: Window, *, full: bool) -> Comparison:
    """Reads what is covered of `span` again, and looks every row up by its key.

    Args:
        full: Compare contents, too; else only what is cheap to read, where the API makes a difference.
    Raises:
        AuthError: The key does not work any more.
    """
    comparing = _Comparing(engine, reader, scope, full)
    for name in reader.sources(scope.streams):
        with reading(engine) as conn:
            covered = intersect(common_coverage(conn, scope, name, reader.covers(name)), span)
            windows = [
                piece
                for window in covered
                for piece in cut_by_rows(
                    window,
                    ledger.rows_stored(conn, scope.project_id, name, window),
                    _ROWS_PER_WINDOW,
                    reader.midnight_bound(name),
                )
            ]
        for window in windows:
            comparing.read(name, window)
    return comparing.ended()


@dataclass
class _LookedAt:
    """The rows of one window, with their times as text; a row may come twice at a page border."""

    seen: dict[Place, str] = field(default_factory=dict)
    missing: dict[Place, str] = field(default_factory=dict)
    changed: dict[Place, str] = field(default_factory=dict)
    derived: dict[Place, Sighted] = field(default_factory=dict)

    def differs_in(self, window: Window) -> bool:
        return any(_is_in(window, time) for times in (self.missing, self.changed) for time in times.values())


class _Comparing:
    def __init__(self, engine: Engine, reader: Reader, scope: Scope, full: bool) -> None:
        self._engine, self._reader, self._scope, self._full = engine, reader, scope, full
        self._result, self._derivations = Comparison(), Derivations()

    def read(self, name: str, window: Window) -> None:
        """Compares one window of a source."""
        with reading(self._engine) as conn:
            switch = switch_of(ledger.stream_states(conn, self._scope.project_id).get(name))
        looked_at = _LookedAt()
        closed: list[Window] = []
        try:
            for page in self._reader.read(name, window, light=not self._full):
                self._compare(page, looked_at)
                for segment in page.closes:
                    self._close(name, segment, page.kind, switch, looked_at)
                    closed.append(segment.window)
        except AuthError:
            raise
        except (ApiError, RowError) as error:
            log.warning("verify %s %s: %s", name, window, error)
            self._result.doubtful += 1
            for left in subtract(window, closed):
                self._result.note(name, left)
        self._result.missing += len(looked_at.missing)
        self._result.changed += len(looked_at.changed)

    def ended(self) -> Comparison:
        """What was found, once all was read."""
        for mending in self._derivations.judged():
            self._result.missing += mending.missing
            self._result.changed += not mending.missing
            self._result.note(mending.source, mending.window)
        return self._result

    def _compare(self, page: Page, looked_at: _LookedAt) -> None:
        scope = self._scope
        tables = rows_of(
            page.kind, page.items, project_id=scope.project_id, contents=scope.contents, light=page.light
        )  # fmt: skip
        with reading(self._engine) as conn:
            compared = of_selected_traces(conn, scope, page.kind, tables)
            differing: dict[str, set[Key]] = {}
            for table, rows in compared.items():
                times = keys_and_times(table, rows)
                missing, changed = differences(conn, table, rows)
                differing[table] = missing | changed
                looked_at.seen.update({(table, key): time for key, time in times.items()})
                looked_at.missing.update({(table, key): times[key] for key in missing if key in times})
                looked_at.changed.update({(table, key): times[key] for key in changed if key in times})
            looked_at.derived |= self._derivations.compare(conn, scope, page, compared, differing)

    def _close(self, name: str, segment: Segment, kind: Kind, switch: Switch | None, looked_at: _LookedAt) -> None:
        window, proven = segment.window, segment.proof in ("counted", "walked")
        gone = self._count_gone(switch, kind, window, looked_at) if proven else 0
        self._result.windows += 1
        self._result.deleted += gone
        self._result.doubtful += not proven
        if gone or not proven or looked_at.differs_in(window):
            self._result.note(name, window)
        for place, sighted in looked_at.derived.items():
            if _is_in(window, sighted.time):
                self._derivations.note(place, sighted.missing, name, window)

    def _count_gone(self, switch: Switch | None, kind: Kind, window: Window, looked_at: _LookedAt) -> int:
        scope = self._scope
        tells = (scope.mark_deletions or not scope.filtered) and (switch is None or switch.absence_counts(window))
        if not tells or (scope.kept_from is not None and window.start < scope.kept_from):
            return 0
        gone = 0
        with reading(self._engine) as conn:
            for table, read_from in BRINGS[kind].items():
                stored = stored_keys(
                    conn, scope.project_id, table, window, read_from=read_from,
                    known_since=switch.settled_at if switch else None,
                    environments=scope.environments if selected_by_environment(kind, table) else None,
                )  # fmt: skip
                gone += sum((table, key) not in looked_at.seen for key in stored)
            if kind in OBSERVATIONS_V2:
                of_none = derived_without_observations(conn, scope.project_id, window)
                gone += len(of_none.difference(key[0] for table, key in looked_at.seen if table == "observations"))
        return gone


def _is_in(window: Window, time: str) -> bool:
    return instant_text(window.start) <= time < instant_text(window.end)
