"""The arithmetic of `docs/rate-limits.md` is the planner's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from etl.intervals import DAY, Window
from etl.pipeline.plan import cut_by_rows
from etl.pipeline.sources import _ROWS_PER_SLICE
from etl.settings import Sync
from etl.values import format_duration
from tests.docs.rate_limits import PAGE, SIMULATED_DAYS, _Slices, planned, with_tables

T0 = datetime(2026, 6, 1, 7, 0, 0, 1000, tzinfo=UTC)


@pytest.mark.long
def test_the_tables_are_what_the_planner_says() -> None:
    page = PAGE.read_text(encoding="utf-8")

    assert with_tables(page) == page, "run `make docs`"


@pytest.mark.parametrize("midnight_bound", [True, False])
@pytest.mark.parametrize("rows", [1, 5_000, 12_345, 1_000_000])
def test_slices_are_cut_where_the_planner_cuts_them(rows: int, midnight_bound: bool) -> None:
    window = Window(T0, T0 + 15 * DAY + timedelta(milliseconds=7))

    slices = _Slices(window, -(-rows // _ROWS_PER_SLICE), midnight_bound)

    expected = cut_by_rows(window, rows, _ROWS_PER_SLICE, midnight_bound)
    assert list(reversed(slices)) == expected[::-1]
    assert len(slices) == len(expected)


def test_every_row_is_read_again_about_twice_for_each_tier() -> None:
    runs = planned(100_000.0, midnight_bound=False)

    assert runs.behind == set()
    for span in Sync().lookback:
        rows = sum(rows * times for rows, times in runs.windows[format_duration(span)].items())
        assert 1.4 < rows / (100_000 * SIMULATED_DAYS) < 2.4, span
