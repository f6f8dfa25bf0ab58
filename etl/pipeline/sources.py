"""Where each stream stands when a run begins, what of it is due, and how that moves as windows are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine

from etl.errors import ApiError, ApiGoneError, AuthError
from etl.extract.readers import Reader
from etl.intervals import Window, intersect, merge, subtract
from etl.load import ledger
from etl.load.deletions import absences_to_confirm
from etl.load.engine import reading
from etl.pipeline import tiers
from etl.pipeline.plan import (
    ABSENCE,
    Due,
    cut_by_rows,
    due_windows,
    held_back,
    newest_readable,
    require_sane_clock,
    watermark,
)
from etl.pipeline.scope import Scope
from etl.values import format_duration

# What one run reads again at most of one stream, beyond one slice for each tier: live data must not wait for it.
_REREAD_ROWS_PER_RUN = 20_000
_ROWS_PER_SLICE = 5_000


@dataclass
class Source:
    """A stream that is really read, and those that follow from it (`covers`, itself among them)."""

    name: str
    covers: Sequence[str]
    api: str
    filters_hash: str
    origin: datetime
    coverage: list[Window]
    covered_before: list[Window]
    tiers: tiers.Tiers

    def note_read(self, window: Window) -> None:
        """`window` was read whole."""
        self.coverage = merge([*self.coverage, window])
        self.tiers = tiers.after_read(self.tiers, window)

    def note_failure(self, window: Window) -> None:
        """`window` could not be read, or not with proof."""
        self.tiers = tiers.after_failure(self.tiers, window)

    def state(self) -> ledger.StreamState:
        """What `sync_state` keeps of it."""
        mark = watermark(self.origin, self.coverage)
        return ledger.StreamState(self.api, self.origin, mark, self.filters_hash, tiers.state_as_json(self.tiers))


def plan(
    engine: Engine,
    reader: Reader,
    scope: Scope,
    *,
    explicit: Mapping[str, Sequence[Due]] | None,
    on_failure: Callable[[str, ApiError], None],
) -> list[tuple[Source, list[Due]]]:
    """Every source of the scope, with the windows that are due in it, in the order to read them.

    Args:
        explicit: Read these windows of each source, and nothing else.
        on_failure: Told of a source that the server does not say the beginning of; the others are planned.

    Raises:
        ClockError, ConfigError: See `etl.pipeline.plan`.
        AuthError, ApiGoneError, ShutdownRequested: Nothing can be asked of this server.
    """
    edge = newest_readable(scope.now, scope.lag)
    planned: list[tuple[Source, list[Due]]] = []
    for name in reader.sources(scope.streams):
        try:
            source = _load_source(engine, reader, scope, name, edge)
        except ApiError as error:
            if isinstance(error, AuthError) or (isinstance(error, ApiGoneError) and error.left_behind):
                raise
            on_failure(name, error)
            continue
        if explicit is not None:
            planned.append((source, list(explicit.get(name, ()))))
            continue
        with reading(engine) as conn:
            planned.append((source, _due(conn, source, scope, edge, reader.midnight_bound(name))))
    return planned


def _load_source(engine: Engine, reader: Reader, scope: Scope, name: str, edge: datetime) -> Source:
    covers = reader.covers(name)
    with reading(engine) as conn:
        states = ledger.stream_states(conn, scope.project_id)
        coverage = common_coverage(conn, scope, name, covers)
    require_sane_clock(scope.now, coverage)
    known = [states[stream] for stream in covers if stream in states]
    same_filters = all(state.filters_hash == scope.filters_hash for state in known)
    origin = scope.start
    if origin is None:
        origin = min(state.origin for state in known) if known and same_filters else _begin(reader, scope, name, edge)
    stored = states[name].plan if name in states and same_filters else None
    state = tiers.start_due_passes(
        tiers.state_from_json(stored, scope.lookback), now=scope.now, every=scope.every, coverage=coverage
    )
    return Source(name, covers, reader.api, scope.filters_hash, origin, coverage, coverage, state)


def _due(conn: Connection, source: Source, scope: Scope, edge: datetime, midnight_bound: bool) -> list[Due]:
    failed = ledger.failed_windows(conn, scope.project_id, source.name, scope.filters_hash) if scope.backs_off else []
    return due_in(
        source,
        edge=edge,
        held=held_back(failed, every=scope.every, now=scope.now),
        absent=absences_to_confirm(conn, scope.project_id, source.name, scope.now) if scope.mark_deletions else (),
        midnight_bound=midnight_bound,
        rows_stored=lambda window: ledger.rows_stored(conn, scope.project_id, source.name, window),
    )


def due_in(
    source: Source,
    *,
    edge: datetime,
    held: Sequence[Window],
    absent: Sequence[Window],
    midnight_bound: bool,
    rows_stored: Callable[[Window], int],
) -> list[Due]:
    """What is due in one source: new, again, and missing windows, in the order to read them; pure.

    Args: as `plan.due_windows`, and `absent`: where rows were missing once, and are looked for a second time.
    """
    slices = tiers.next_slices(
        source.tiers,
        cut=lambda window: cut_by_rows(window, rows_stored(window), _ROWS_PER_SLICE, midnight_bound),
        cost=rows_stored,
        budget=_REREAD_ROWS_PER_RUN,
    )
    again = [Due(one.window, format_duration(one.span), light=True) for one in slices]
    planned = [one.window for one in slices]
    again += [Due(left, ABSENCE, light=True) for one in absent for left in subtract(one, planned)]
    return due_windows(
        origin=source.origin,
        edge=edge,
        coverage=source.coverage,
        again=again,
        held=held,
        midnight_bound=midnight_bound,
        rows_stored=rows_stored,
    )


def common_coverage(conn: Connection, scope: Scope, name: str, covers: Sequence[str]) -> list[Window]:
    """What was read whole of everything that this source gives, by any generation of the API."""
    # Derived sessions have no time of their own: they come with their traces.
    timed = [stream for stream in covers if stream == name or stream != "sessions"]
    whole, *others = (ledger.coverage(conn, scope.project_id, stream, scope.filters_hash) for stream in timed)
    for other in others:
        whole = [part for window in whole for part in intersect(other, window)]
    return whole


def _begin(reader: Reader, scope: Scope, name: str, edge: datetime) -> datetime:
    """The oldest row, or further back: rows that a tier has to find may be that late when nothing else is there yet.

    At most the newest day, which is always wanted, so that an empty project has coverage, too.
    """
    oldest = reader.oldest(name, edge)
    latest = edge - max(timedelta(days=1), max(scope.lookback, default=timedelta()) / 2)
    return latest if oldest is None else min(oldest, latest)
