"""Where each stream stands when a run begins, what of it is due, and how that moves as windows are read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine

from etl.errors import ApiError, ApiGoneError, AuthError
from etl.extract.readers import Reader
from etl.intervals import Window, intersect, merge, subtract
from etl.load import ledger
from etl.load.deletions import absences_to_confirm
from etl.load.engine import reading
from etl.pipeline import switch, tiers
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

log = logging.getLogger(__name__)

# What one run reads again at most of one stream, beyond one slice for each tier: live data must not wait for it.
_REREAD_ROWS_PER_RUN = 20_000
_ROWS_PER_SLICE = 5_000


@dataclass
class Source:
    """A stream that is really read, and those that follow from it (`covers`, itself among them).

    `origin_probed` says that `origin` is where the server's history begins, and not only what the settings wanted.
    `switch` is None where no other generation of the API was ever read.
    """

    name: str
    covers: Sequence[str]
    api: str
    filters_hash: str
    origin: datetime
    coverage: list[Window]
    tiers: tiers.Tiers
    switch: switch.Switch | None = None
    origin_probed: bool = False

    @property
    def timed(self) -> Sequence[str]:
        """Those of `covers` that have windows of their own; derived sessions come with their traces."""
        return _timed(self.name, self.covers)

    def note_read(self, window: Window, rows_in: Callable[[Window], int]) -> None:
        """`window` was read whole; `rows_in` tells how many rows that brought in a part of it."""
        self.coverage = merge([*self.coverage, window])
        self.tiers = tiers.after_read(self.tiers, window)
        if self.switch is not None:
            self.switch = switch.after_read(self.switch, window, rows_in)

    def note_failure(self, window: Window) -> None:
        """`window` could not be read, or not with proof."""
        self.tiers = tiers.after_failure(self.tiers, window)
        if self.switch is not None:
            self.switch = switch.after_failure(self.switch, window)

    @property
    def known_since(self) -> datetime | None:
        """Since when this generation vouches for rows that another one gave; None if it does not."""
        return self.switch.settled_at if self.switch else None

    def absence_counts(self, window: Window) -> bool:
        """Whether a stored row that a complete read of `window` lacks may be a deleted one."""
        return self.switch is None or self.switch.absence_counts(window)

    def state(self) -> ledger.StreamState:
        """What `sync_state` keeps of it."""
        mark = watermark(self.origin, self.coverage)
        plan = {
            "tiers": tiers.state_as_json(self.tiers),
            "switch": self.switch and switch.as_json(self.switch),
            "origin_probed": self.origin_probed,
        }
        return ledger.StreamState(self.api, self.origin, mark, self.filters_hash, json.dumps(plan))


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
    origin, probed = _origin(reader, scope, name, edge, known if same_filters else [])
    stored = _plan_of(states.get(name))
    state = tiers.start_due_passes(
        tiers.state_from_json(stored["tiers"] if same_filters else None, scope.lookback),
        now=scope.now,
        every=scope.every,
        coverage=coverage,
    )
    switched = any(state.api != reader.api for state in known)
    return Source(
        name, covers, reader.api, scope.filters_hash, origin, coverage, state,
        _switch(
            engine, stored["switch"], scope, name, covers, [*coverage, Window(origin, edge)], switched, same_filters
        ),
        origin_probed=probed,
    )  # fmt: skip


def _origin(
    reader: Reader, scope: Scope, name: str, edge: datetime, known: Sequence[ledger.StreamState]
) -> tuple[datetime, bool]:
    """Since when coverage is wanted, and whether the server was asked where its history begins.

    Args:
        known: The states that were left behind under the same filters.
    """
    if scope.start is not None:
        return scope.start, False
    origins = [state.origin for state in known]
    # A `start` that was taken out of the settings left an origin that says nothing of what is older, and another
    # generation of the API may have rows that are older than all that this one showed.
    if not known or not all(state.api == reader.api and _plan_of(state).get("origin_probed") for state in known):
        origins.append(_begin(reader, scope, name, edge))
    return min(origins), True


def switch_of(state: ledger.StreamState | None) -> switch.Switch | None:
    """Where a stream stands since another generation of the API was read; None if none ever was."""
    stored = _plan_of(state)["switch"]
    return None if stored is None else switch.from_json(stored)


def _plan_of(state: ledger.StreamState | None) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(state.plan) if state and state.plan else {"tiers": [], "switch": None}
    return plan


def _switch(
    engine: Engine,
    stored: dict[str, Any] | None,
    scope: Scope,
    name: str,
    covers: Sequence[str],
    wanted: Sequence[Window],
    switched: bool,
    same_filters: bool,
) -> switch.Switch | None:
    before = None if stored is None else switch.from_json(stored)
    # Under other filters nothing is covered, so what was read of an unfinished pass says nothing any more.
    if switched or (before is not None and before.settled_at is None and not same_filters):
        until = max(window.end for window in wanted)
        return switch.begun(now=scope.now, until=until, wanted=wanted, kept_from=scope.kept_from)
    if before is None:
        return None
    with reading(engine) as conn:
        after = switch.resumed(
            before,
            now=scope.now,
            wanted=wanted,
            # A trace comes as a row of its own, or as one observation at least.
            rows_stored=lambda window: max(
                ledger.rows_stored(conn, scope.project_id, stream, window) for stream in _timed(name, covers)
            ),
            ever_stored=ledger.ever_stored(conn, scope.project_id, covers),
        )
    if after.settled_at != before.settled_at:
        log.info(
            "%s of project %s: two passes after the change of the API agree on %d rows",
            name, scope.project_name, after.rows,
        )  # fmt: skip
    return after


def _due(conn: Connection, source: Source, scope: Scope, edge: datetime, midnight_bound: bool) -> list[Due]:
    absent: list[Window] = []
    if scope.mark_deletions:
        absent = merge(
            window
            for stream in source.timed
            for window in absences_to_confirm(
                conn, scope.project_id, stream, scope.now, noticed_from=source.known_since
            )
        )
    failed = []
    if scope.backs_off:
        place = scope.project_id, source.name, scope.filters_hash
        again = merge([*absent, *(window for tier in source.tiers for window in tier.failed)])
        failed = ledger.failed_windows(conn, *place) + ledger.failed_again(conn, *place, again)
    return due_in(
        source,
        edge=edge,
        held=held_back(failed, every=scope.every, now=scope.now),
        absent=[window for window in absent if source.absence_counts(window)],
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

    def cut(window: Window) -> list[Window]:
        return cut_by_rows(window, rows_stored(window), _ROWS_PER_SLICE, midnight_bound)

    slices = tiers.next_slices(
        source.tiers,
        cut=cut,
        cost=rows_stored,
        budget=_REREAD_ROWS_PER_RUN,
        held=held,
    )
    again = [Due(one.window, format_duration(one.span), light=True) for one in slices]
    planned = [one.window for one in slices]
    again += [Due(left, ABSENCE, light=True) for one in absent for left in subtract(one, [*planned, *held])]
    due = due_windows(
        origin=source.origin,
        edge=edge,
        coverage=source.coverage,
        again=again,
        held=held,
        midnight_bound=midnight_bound,
        rows_stored=rows_stored,
    )
    if source.switch is None:
        return due
    last = switch.next_slices(
        source.switch,
        covered=source.coverage,
        planned=[one.window for one in again],
        cut=cut,
        cost=rows_stored,
        budget=_REREAD_ROWS_PER_RUN - sum(map(rows_stored, planned)),
    )
    return due + [Due(window, switch.TIER, light=True) for window in last]


def common_coverage(conn: Connection, scope: Scope, name: str, covers: Sequence[str]) -> list[Window]:
    """What was read whole of everything that this source gives, by any generation of the API."""
    whole, *others = (
        ledger.coverage(conn, scope.project_id, stream, scope.filters_hash) for stream in _timed(name, covers)
    )
    for other in others:
        whole = [part for window in whole for part in intersect(other, window)]
    return whole


def _timed(name: str, covers: Sequence[str]) -> list[str]:
    return [stream for stream in covers if stream == name or stream != "sessions"]


def _begin(reader: Reader, scope: Scope, name: str, edge: datetime) -> datetime:
    """The oldest row, or further back: rows that a tier has to find may be that late when nothing else is there yet.

    At most the newest day, which is always wanted, so that an empty project has coverage, too.
    """
    oldest = reader.oldest(name, edge)
    latest = edge - max(timedelta(days=1), max(scope.lookback, default=timedelta()) / 2)
    return latest if oldest is None else min(oldest, latest)
