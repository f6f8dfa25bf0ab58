"""Keeping the ledger small: what later reads made superfluous is dropped, and days are put together.

Nothing that anybody asks the ledger may change by it: coverage, what of the windows without proof is not made good yet,
and how `sync_coverage` looks. Row ids say which read came later.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import Connection, delete, func, select, update

from etl.intervals import Window, intersect, merge, subtract
from etl.load.tables import sync_runs, sync_windows

_PROVEN = ("counted", "walked")
_IDS_PER_STATEMENT = 10_000
# Of a window that fails again and again; more say nothing to the back-off (`etl.pipeline.plan.back_off`).
_REPEATS_KEPT = 20


@dataclass(frozen=True)
class Read:
    """A row of `sync_windows`, as far as this matters."""

    id: int
    window: Window
    proof: str
    api: str
    finished_at: datetime
    promised: int | None
    read: int
    stored: int
    changed: int
    deleted: int
    requests: int
    run_id: int


class Upkeep(NamedTuple):
    """How many rows were removed."""

    windows: int
    runs: int


def settle(reads: Sequence[Read], before: datetime) -> tuple[list[int], list[Read]]:
    """What to drop of the reads of one stream, by id, and what to write over the ones that stay.

    Dropped is a read that ended before `before` and all of whose window was read with proof later, and of a window
    that failed in the same way more than 20 times all but the last of these reads. Of the rest, proven
    reads of that age that touch each other within one UTC day become one, unless a window without proof is near: its
    fate depends on which reads came later. The sums of a merged read are those of its parts; where these overlap the
    server's total is not known.
    """
    dropped: list[int] = []
    kept: list[Read] = []
    later: list[Window] = []
    repeats: Counter[tuple[Window, str]] = Counter()
    newest = max((read.finished_at for read in reads), default=before)
    for read in sorted(reads, key=lambda read: read.id, reverse=True):
        repeats[read.window, read.proof] += read.proof not in _PROVEN
        superfluous = repeats[read.window, read.proof] > _REPEATS_KEPT or not subtract(read.window, later)
        if superfluous and read.finished_at < min(before, newest):
            dropped.append(read.id)
            continue
        kept.append(read)
        if read.proof in _PROVEN:
            later = merge([*later, read.window])
    unproven = [read.window for read in kept if read.proof not in _PROVEN]
    mergeable = [
        read
        for read in kept
        if read.proof in _PROVEN and read.finished_at < before and not intersect(unproven, read.window)
    ]
    merged: list[Read] = []
    for group in _groups(sorted(mergeable, key=lambda read: read.window)):
        if len(group) > 1:
            merged.append(_merged(group))
            dropped += [read.id for read in group if read.id != merged[-1].id]
    return dropped, merged


def merge_windows(conn: Connection, project_id: str, before: datetime) -> int:
    """Applies `settle` to every stream of a project; returns how many rows are gone."""
    columns, gone = sync_windows.c, 0
    scopes = select(columns.stream, columns.filters_hash).where(columns.project_id == project_id).distinct()
    for stream, filters_hash in conn.execute(scopes).all():
        query = select(
            columns.id, columns.window_start, columns.window_end, columns.proof, columns.api, columns.finished_at,
            columns.promised, columns.read, columns.stored, columns.changed, columns.deleted, columns.requests,
            columns.run_id,
        ).where(
            columns.project_id == project_id, columns.stream == stream, columns.filters_hash == filters_hash
        )  # fmt: skip
        reads = [Read(key, Window(start, end), *rest) for key, start, end, *rest in conn.execute(query)]
        dropped, merged = settle(reads, before)
        for first in range(0, len(dropped), _IDS_PER_STATEMENT):
            conn.execute(delete(sync_windows).where(columns.id.in_(dropped[first : first + _IDS_PER_STATEMENT])))
        for read in merged:
            conn.execute(
                update(sync_windows)
                .where(columns.id == read.id)
                .values(
                    window_start=read.window.start, window_end=read.window.end, tier="merged", proof=read.proof,
                    promised=read.promised, read=read.read, stored=read.stored, changed=read.changed,
                    deleted=read.deleted, requests=read.requests, run_id=read.run_id, finished_at=read.finished_at,
                )
            )  # fmt: skip
        gone += len(dropped)
    return gone


def forget_runs(conn: Connection, project_id: str, before: datetime) -> int:
    """Drops ended runs that began before `before`, that no window names, and that are not the last of their kind."""
    runs = sync_runs.c
    latest = select(func.max(runs.id)).group_by(runs.project_id, runs.trigger, runs.status)
    result = conn.execute(
        delete(sync_runs).where(
            runs.project_id == project_id,
            runs.started_at < before,
            runs.status != "running",
            runs.id.not_in(latest),
            runs.id.not_in(select(sync_windows.c.run_id)),
        )
    )
    return result.rowcount


def is_first_run_since(conn: Connection, project_id: str, moment: datetime) -> bool:
    """Whether at most one run of a project has begun since `moment`."""
    runs = sync_runs.c
    query = select(func.count()).where(runs.project_id == project_id, runs.started_at >= moment)
    return bool(conn.execute(query).scalar_one() <= 1)


def _groups(reads: Sequence[Read]) -> Iterable[list[Read]]:
    """Reads that touch or overlap, by day and generation of the API; `reads` ascend by window."""

    def day(read: Read) -> tuple[str, object]:
        return read.api, read.window.start.date()

    for _, of_day in itertools.groupby(sorted(reads, key=lambda read: (day(read), read.window)), key=day):
        group: list[Read] = []
        for read in of_day:
            if group and read.window.start > max(other.window.end for other in group):
                yield group
                group = []
            group.append(read)
        yield group


def _merged(reads: Sequence[Read]) -> Read:
    """One read in place of these; the oldest id, so that it makes nothing good that it did not make good before."""
    window = Window(reads[0].window.start, max(read.window.end for read in reads))
    apart = all(one.window.end == other.window.start for one, other in itertools.pairwise(reads))
    known = [read.promised for read in reads if read.promised is not None]
    return replace(
        reads[0],
        id=min(read.id for read in reads),
        window=window,
        proof="counted" if all(read.proof == "counted" for read in reads) else "walked",
        finished_at=max(read.finished_at for read in reads),
        promised=sum(known) if apart and len(known) == len(reads) else None,
        run_id=min(read.run_id for read in reads),
        **{
            name: sum(getattr(read, name) for read in reads)
            for name in ("read", "stored", "changed", "deleted", "requests")
        },
    )
