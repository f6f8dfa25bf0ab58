"""What is synced, and how."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta


@dataclass(frozen=True)
class Scope:
    """One project of the configuration, as the server knows it.

    Attributes:
        start: Coverage is wanted from here; None for everything that the server shows.
        lag: Rows younger than this are left for later.
        every: Time until the next run, as planned.
        lookback: Spans of the lookback tiers, ascending.
        contents: False drops inputs and outputs.
        mark_deletions: Mark stored rows that the server has no more.
        filtered: Filters select traces; their observations and scores are kept, no others.
        environments: The only ones that are read; None for all.
        kept_from: Older rows may vanish by retention or plan, which is no deletion; None if the server keeps all.
        observations_copied: Latency and cost of a trace can be derived from its observations here.
        history_for: After this time a run leaves the history that is still missing to the next run, so that live data
            does not wait for it; None reads everything.
        backs_off: Leave windows that failed alone for a while, longer with each failure; a person's run tries at once.
        now: The run's one clock reading.
    """

    project_id: str
    project_name: str
    streams: Sequence[str]
    kept: Collection[str]
    filters_hash: str
    start: datetime | None
    lag: timedelta
    every: timedelta
    lookback: Sequence[timedelta]
    contents: bool
    mark_deletions: bool
    filtered: bool
    environments: Sequence[str] | None
    kept_from: datetime | None
    concurrency: int
    observations_copied: bool
    history_for: timedelta | None
    backs_off: bool
    now: datetime
