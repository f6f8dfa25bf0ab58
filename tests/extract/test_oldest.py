"""Where history begins is found with few requests, and never too late."""

from bisect import bisect_left
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from etl.errors import TooMuchError
from etl.extract.oldest import EPOCH, oldest_by_bisection
from etl.intervals import Window

NOW = datetime(2026, 11, 22, tzinfo=UTC)
TIMES = st.lists(
    st.integers(0, 20 * 365 * 86_400_000).map(lambda ms: NOW - timedelta(milliseconds=ms + 1)), max_size=30
)


class Newest:
    """The time of the newest row in a window; counts how often it is asked."""

    def __init__(self, times: list[datetime], slow_above: int | None = None) -> None:
        self._times, self._slow_above, self.asked = sorted(times), slow_above, 0

    def __call__(self, window: Window) -> datetime | None:
        self.asked += 1
        assert EPOCH <= window.start < window.end <= NOW
        assert window.end.microsecond % 1000 == 0
        low, high = bisect_left(self._times, window.start), bisect_left(self._times, window.end)
        if self._slow_above is not None and high - low > self._slow_above:
            raise TooMuchError("too slow", path="/x", timed_out=True)
        return self._times[high - 1] if high > low else None


@given(TIMES)
@settings(deadline=None)
def test_it_is_at_most_a_day_before_the_oldest_row(times: list[datetime]) -> None:
    newest = Newest(times)
    oldest = oldest_by_bisection(newest, NOW)
    if not times:
        assert oldest is None
        assert newest.asked == 1
    else:
        assert oldest is not None
        assert timedelta(0) <= min(times) - oldest <= timedelta(days=1)
        assert newest.asked <= 45


@given(TIMES.filter(bool), st.integers(0, 5))
@settings(deadline=None)
def test_a_server_that_times_out_on_long_stretches_hides_no_row(times: list[datetime], slow_above: int) -> None:
    newest = Newest(times, slow_above)
    oldest = oldest_by_bisection(newest, NOW)
    assert oldest is not None
    assert oldest <= min(times)
    assert newest.asked <= 60


def test_a_row_of_just_now_is_found() -> None:
    oldest = oldest_by_bisection(Newest([NOW - timedelta(milliseconds=1)]), NOW)
    assert oldest is not None
    assert timedelta(0) < NOW - oldest <= timedelta(days=1, milliseconds=1)
