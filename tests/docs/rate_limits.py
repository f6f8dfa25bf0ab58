"""The tables of `docs/rate-limits.md`: what the default settings ask for in a day, worked out with the planner itself.

Rows come evenly over the day. Seven days, in which the largest tier passes once, are planned run by run; each window is
asked for by as many requests as its rows fill pages, and at least by one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import NamedTuple, overload

from etl.extract.budget import Bucket, Budget, bucket_of
from etl.extract.client import Client, Patience
from etl.extract.observations_api import ObservationsReader
from etl.extract.readers import Reader
from etl.extract.traces_api import TracesReader
from etl.intervals import DAY, Window, merge
from etl.pipeline import tiers
from etl.pipeline.plan import HISTORY, LIVE, Due, cut_for_reader, due_windows, newest_readable, whole_ms_up
from etl.pipeline.sources import _REREAD_ROWS_PER_RUN, _ROWS_PER_SLICE
from etl.settings import Http, Sync
from etl.values import format_duration

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rate-limits.md"
TRACES_A_DAY = {"1k": 1_000, "100k": 100_000, "5M": 5_000_000}
ROWS_PER_TRACE = {"traces": 1.0, "observations": 5.0, "scores": 1.0, "sessions": 0.1}
# Langfuse Cloud, requests a minute (web/src/features/public-api/server/RateLimitService.ts; langfuse.com/docs says 100
# for Core where the code says 1000 for the time being).
PLANS: dict[str, dict[Bucket, int]] = {
    "Hobby": {"public-api": 30, "public-api-legacy": 15},
    "Core, as documented": {"public-api": 100, "public-api-legacy": 30},
    "Core, as programmed": {"public-api": 1000, "public-api-legacy": 30},
    "Pro, Team, Enterprise": {"public-api": 1000, "public-api-legacy": 100},
}
HISTORY_DAYS, SIMULATED_DAYS = 30, 7

_SYNC, _HTTP = Sync(), Http()
_T0 = datetime(2026, 6, 1, tzinfo=UTC)
_ORIGIN = _T0 - HISTORY_DAYS * DAY
_BLOCK = re.compile(r"(?<=<!-- made by `make docs` from here -->\n).*(?=<!-- to here -->)", re.DOTALL)
_PATHS = {"traces": "/traces", "sessions": "/sessions", "scores": "/v3/scores"}


@dataclass
class Planned:
    """What the runs of some days would read of one source: rows of each window by tier, and tiers that fell behind."""

    windows: dict[str, Counter[int]] = field(default_factory=dict)
    behind: set[str] = field(default_factory=set)

    def note(self, due: Due, rows: int) -> None:
        self.windows.setdefault(due.tier, Counter())[rows] += 1

    def requests(self, page_limit: int) -> dict[str, int]:
        """By tier."""
        return {
            tier: sum(times * max(1, -(-rows // page_limit)) for rows, times in windows.items())
            for tier, windows in self.windows.items()
        }


class _Slices(Sequence[Window]):
    """What `plan.cut_by_rows` cuts, one by one: a pass over millions of rows has more of them than a run looks at."""

    def __init__(self, window: Window, pieces: int, midnight_bound: bool) -> None:
        length = whole_ms_up((window.end - window.start) / pieces)
        self._parts = [
            (part, max(1, -(-(part.end - part.start) // length))) for part in cut_for_reader(window, midnight_bound)
        ]
        self._length = length

    def __len__(self) -> int:
        return sum(count for _, count in self._parts)

    def __reversed__(self) -> Iterator[Window]:
        for part, count in reversed(self._parts):
            for i in range(count):
                end = part.end - i * self._length
                yield Window(max(part.start, end - self._length), end)

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Window]: ...
    def __getitem__(self, index: int | slice) -> Window | Sequence[Window]:
        return list(reversed(self))[::-1][index]


@cache
def planned(rows_a_day: float, midnight_bound: bool) -> Planned:
    """The runs of `SIMULATED_DAYS` over a database that has `HISTORY_DAYS` already."""

    def rows_in(window: Window) -> int:
        return round((window.end - window.start) / DAY * rows_a_day)

    def cut(window: Window) -> Sequence[Window]:
        return _Slices(window, max(1, -(-rows_in(window) // _ROWS_PER_SLICE)), midnight_bound)

    result = Planned()
    coverage = [Window(_ORIGIN, newest_readable(_T0, _SYNC.lag))]
    # A pass of the largest tier begins with the first run.
    started = {span: _T0 if span < max(_SYNC.lookback) else _T0 - span / 2 for span in _SYNC.lookback}
    state: tiers.Tiers = tuple(tiers.TierState(span, started[span]) for span in _SYNC.lookback)
    for run in range(1, SIMULATED_DAYS * DAY // _SYNC.every + 1):
        now = _T0 + run * _SYNC.every
        state = tiers.start_due_passes(state, now=now, every=_SYNC.every, coverage=coverage)
        slices = tiers.next_slices(state, cut=cut, cost=rows_in, budget=_REREAD_ROWS_PER_RUN)
        due = due_windows(
            origin=_ORIGIN,
            edge=newest_readable(now, _SYNC.lag),
            coverage=coverage,
            again=[Due(one.window, format_duration(one.span), light=True) for one in slices],
            held=[],
            midnight_bound=midnight_bound,
            rows_stored=rows_in,
        )
        for one in due:
            result.note(one, rows_in(one.window))
        read = merge(one.window for one in due)
        coverage = merge([*coverage, *read])
        for window in read if slices else ():  # no tier waits for what is new
            state = tiers.after_read(state, window)
        # A pass is due half a span after the last one, and has the other half to end.
        late = [tier.span for tier in state if tier.last_started_at and now - tier.last_started_at >= tier.span]
        result.behind.update(map(format_duration, late))
    return result


@cache
def first_load(rows_a_day: float, midnight_bound: bool) -> Planned:
    """The first run over `HISTORY_DAYS` of data."""

    def rows_in(window: Window) -> int:
        return round((window.end - window.start) / DAY * rows_a_day)

    result = Planned()
    for due in due_windows(
        origin=_ORIGIN, edge=_T0, coverage=[], again=[], held=[], midnight_bound=midnight_bound, rows_stored=rows_in
    ):
        assert due.tier in (LIVE, HISTORY)
        result.note(due, rows_in(due.window))
    return result


class Need(NamedTuple):
    """Requests that count against one limit: a day's by tier, the first load's, and the tiers that fall behind."""

    by_tier: dict[str, float]
    first_load: int
    behind: set[str]


def need(reader: Reader, bucket: Bucket, traces_a_day: int) -> Need:
    by_tier: Counter[str] = Counter()
    load, behind = 0, set[str]()
    for source in reader.sources(list(ROWS_PER_TRACE)):
        if _bucket(reader, source) != bucket:
            continue
        rows_a_day, bound, limit = (
            ROWS_PER_TRACE[source] * traces_a_day,
            reader.midnight_bound(source),
            reader.page_limit(source),
        )
        runs = planned(rows_a_day, bound)
        by_tier.update(runs.requests(limit))
        load += sum(first_load(rows_a_day, bound).requests(limit).values())
        behind |= runs.behind
    return Need({tier: count / SIMULATED_DAYS for tier, count in by_tier.items()}, load, behind)


def with_tables(page: str) -> str:
    """The page with its tables made anew."""
    client = Client("http://127.0.0.1/api/public", "pk", "sk", key_names="", timeout_s=1.0, patience=Patience(1.0))
    parts = [
        "## Observations API (Langfuse Cloud, v4)",
        *_tables(ObservationsReader(client), "public-api", "All requests count against `public-api`."),
        "## Traces API (older projects of Langfuse Cloud)",
        *_tables(TracesReader(client), "public-api-legacy", "Traces, observations and sessions: `public-api-legacy`."),
        *_tables(TracesReader(client), "public-api", "Scores: `public-api`."),
    ]
    return _BLOCK.sub(lambda _: "\n" + "\n\n".join(parts) + "\n\n", page)


def _tables(reader: Reader, bucket: Bucket, title: str) -> list[str]:
    needs = {name: need(reader, bucket, count) for name, count in TRACES_A_DAY.items()}
    names = [LIVE, *(format_duration(span) for span in _SYNC.lookback)]
    head = "| requests a day |" + "".join(f" {name} traces a day |" for name in needs)
    lines = [head, "|---" * (len(needs) + 1) + "|"]
    for name in names:
        what = f"live, every {format_duration(_SYNC.every)}" if name == LIVE else f"lookback {name}"
        cells = (f" {one.by_tier.get(name, 0):,.0f}{' *' * (name in one.behind)} |" for one in needs.values())
        lines.append(f"| {what} |" + "".join(cells))
    lines.append("| **sum** |" + "".join(f" **{sum(one.by_tier.values()):,.0f}** |" for one in needs.values()))
    lines.append(
        f"| first load of {HISTORY_DAYS} days, once |" + "".join(f" {one.first_load:,} |" for one in needs.values())
    )
    plans = [
        f"| part of the limit | |{''.join(f' {name} |' for name in needs)} first loads take |",
        "|---" * (len(needs) + 3) + "|",
    ]
    for plan, limits in PLANS.items():
        limit = limits[bucket]
        ours = Budget(_HTTP.share, limit).allowed_per_minute() or 0
        cells = [_cell(sum(one.by_tier.values()), limit) for one in needs.values()]
        loads = ", ".join(_time(timedelta(minutes=one.first_load / ours)) for one in needs.values())
        plans.append(f"| {plan} | {limit}/min | " + " | ".join(cells) + f" | {loads} |")
    return [title, "\n".join(lines), "\n".join(plans)]


def _cell(requests_a_day: float, limit: int) -> str:
    """The part of the limit that a day takes, and the share that is enough."""
    needed = next((share for share in (_HTTP.share, 0.6, 0.7, 0.8, 0.9, 1.0) if _fits(requests_a_day, limit, share)), 0)
    fits = "fits" if needed == _HTTP.share else f"needs `share: {needed}`" if needed else "too much"
    return f"{requests_a_day / (24 * 60 * limit):.1%}, {fits}"


def _fits(requests_a_day: float, limit: int, share: float) -> bool:
    return requests_a_day <= 24 * 60 * (Budget(share, limit).allowed_per_minute() or 0)


def _time(length: timedelta) -> str:
    minutes = -(-length // timedelta(minutes=1))
    return (
        f"{minutes} min" if minutes < 120 else f"{minutes / 60:.0f} h" if minutes < 2880 else f"{minutes / 1440:.0f} d"
    )


def _bucket(reader: Reader, source: str) -> Bucket:
    observations = "/v2/observations" if reader.api == "observations" else "/observations"
    return bucket_of({**_PATHS, "observations": observations}[source])
