"""The database against the server, once more; writes nothing by itself."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from sqlalchemy import Engine

from etl.errors import ApiError, AuthError
from etl.extract.readers import Page, Reader
from etl.intervals import Window, intersect
from etl.load import ledger
from etl.load.compare import differences, keys_and_times
from etl.load.deletions import stored_keys
from etl.load.engine import reading
from etl.load.keys import Key
from etl.load.selection import of_stored_traces
from etl.load.types import instant_text
from etl.pipeline.plan import Due, cut_by_rows
from etl.pipeline.scope import Scope
from etl.pipeline.sources import common_coverage, switch_of
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


def compare_with_server(engine: Engine, reader: Reader, scope: Scope, span: Window, *, full: bool) -> Comparison:
    """Reads what is covered of `span` again, and looks every row up by its key.

    Args:
        full: Compare contents, too; else only what is cheap to read, where the API makes a difference.
    Raises:
        AuthError: The key does not work any more.
    """
    result = Comparison()
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
            try:
                _compare_window(engine, reader, scope, name, window, full, result)
            except AuthError:
                raise
            except ApiError as error:
                log.warning("verify %s %s: %s", name, window, error)
                result.doubtful += 1
                result.differing.setdefault(name, []).append(Due(window, "verify", light=False))
    return result


def _compare_window(
    engine: Engine, reader: Reader, scope: Scope, name: str, window: Window, full: bool, result: Comparison
) -> None:
    with reading(engine) as conn:
        switch = switch_of(ledger.stream_states(conn, scope.project_id).get(name))
    looked_at = _LookedAt()
    for page in reader.read(name, window, light=not full):
        _compare_page(engine, scope, page, looked_at)
        for segment in page.closes:
            result.windows += 1
            proven = segment.proof in ("counted", "walked")
            gone = _count_gone(engine, scope, switch, page.kind, segment.window, looked_at) if proven else 0
            result.deleted += gone
            result.doubtful += not proven
            if gone or not proven or looked_at.differs_in(segment.window):
                result.differing.setdefault(name, []).append(Due(segment.window, "verify", light=False))
    result.missing += len(looked_at.missing)
    result.changed += len(looked_at.changed)


@dataclass
class _LookedAt:
    """The rows of one window, by table and key, with their times as text; a row may come twice at a page border."""

    seen: dict[tuple[str, Key], str] = field(default_factory=dict)
    missing: dict[tuple[str, Key], str] = field(default_factory=dict)
    changed: dict[tuple[str, Key], str] = field(default_factory=dict)

    def differs_in(self, window: Window) -> bool:
        start, end = instant_text(window.start), instant_text(window.end)
        return any(start <= time < end for times in (self.missing, self.changed) for time in times.values())


def _compare_page(engine: Engine, scope: Scope, page: Page, looked_at: _LookedAt) -> None:
    tables = rows_of(
        page.kind, page.items, project_id=scope.project_id, plain=page.plain, contents=scope.contents, light=page.light
    )
    with reading(engine) as conn:
        # On v4 the filters select the rows themselves.
        chosen_by_traces = scope.filtered and page.kind not in OBSERVATIONS_V2
        compared = of_stored_traces(conn, scope.project_id, tables) if chosen_by_traces else tables
        for table, rows in compared.items():
            times = keys_and_times(table, rows)
            missing, changed = differences(conn, table, rows)
            looked_at.seen.update({(table, key): time for key, time in times.items()})
            looked_at.missing.update({(table, key): times[key] for key in missing if key in times})
            looked_at.changed.update({(table, key): times[key] for key in changed if key in times})


def _count_gone(
    engine: Engine, scope: Scope, switch: Switch | None, kind: Kind, window: Window, looked_at: _LookedAt
) -> int:
    tells = (scope.mark_deletions or not scope.filtered) and (switch is None or switch.absence_counts(window))
    if not tells or (scope.kept_from is not None and window.start < scope.kept_from):
        return 0
    gone = 0
    with reading(engine) as conn:
        for table, read_from in BRINGS[kind].items():
            stored = stored_keys(
                conn, scope.project_id, table, window, read_from=read_from,
                known_since=switch.settled_at if switch else None,
                environments=scope.environments if selected_by_environment(kind, table) else None,
            )  # fmt: skip
            gone += sum((table, key) not in looked_at.seen for key in stored)
    return gone
