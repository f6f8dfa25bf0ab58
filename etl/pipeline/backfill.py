"""An explicit range, read whatever the ledger says of it; and what that would cost."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection

from etl.extract.readers import Reader
from etl.intervals import Window, subtract
from etl.load import ledger
from etl.pipeline.plan import Due, cut_for_reader
from etl.pipeline.scope import Scope

TIER = "backfill"
_ROWS_PER_WINDOW = 1_000
# Measured against a server on the same machine; a rate limit is counted on top.
_SECONDS_PER_REQUEST = 0.3


class Estimate(NamedTuple):
    """What a backfill would do. `rows` is None where the API gives no totals (v4, and scores by cursor).

    Under filters of a v4 server: how many traces are selected, and how many requests complete them if none of them is
    stored yet; `requests` and `seconds` count these, too.
    """

    windows: int
    rows: int | None
    requests: int | None
    seconds: float | None
    selected_traces: int = 0
    completing_requests: int = 0

    def as_json(self) -> dict[str, Any]:
        return dict(self._asdict())


def trigger_of(start: datetime, end: datetime | None) -> str:
    """How `sync_runs` calls a run of this range, by what was asked for; an unfinished one is found again by it."""
    return f"backfill {start.isoformat()} {end.isoformat() if end else 'to the edge'}"


def backfill_windows(
    conn: Connection, reader: Reader, scope: Scope, span: Window, trigger: str
) -> dict[str, list[Due]]:
    """What is left of the range: windows that an earlier, unfinished run of the same range proved are not read again.

    Newest first, as in every run.
    """
    done = ledger.windows_of_unfinished_runs(conn, scope.project_id, trigger)
    return {
        source: [
            Due(piece, TIER, light=False)
            for left in reversed(subtract(span, done.get(source, [])))
            for piece in reversed(cut_for_reader(left, reader.midnight_bound(source)))
        ]
        for source in reader.sources(scope.streams)
    }


def estimate(
    reader: Reader, windows: dict[str, list[Due]], span: Window, requests_per_second: Callable[[str], float | None]
) -> Estimate:
    """Counts with one request for each source, or by the keys of what filters of rows select; reads no contents.

    Args:
        requests_per_second: What the rate limit allows for a source; None if there is no limit.
    """
    total_rows, total_windows, total_requests, seconds, selected, completing = 0, 0, 0, 0.0, 0, 0
    countable = True
    for source, due in windows.items():
        if not due:
            continue
        expected = reader.expect(source, span)
        countable = countable and expected.rows is not None
        rows = expected.rows or 0
        selected += expected.selected
        completing += expected.completing
        requests = max(len(due), -(-rows // reader.page_limit(source))) + expected.completing
        rate = requests_per_second(source)
        total_rows += rows
        total_windows += max(len(due), -(-rows // _ROWS_PER_WINDOW))
        total_requests += requests
        seconds += requests * max(_SECONDS_PER_REQUEST, 1 / rate if rate else 0.0)
    if not countable:
        return Estimate(total_windows, None, None, None, selected, completing)
    return Estimate(total_windows, total_rows, total_requests, round(seconds, 1), selected, completing)
