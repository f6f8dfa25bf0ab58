"""Values of settings: what text means, there and back."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.values import format_duration, normalise_base_url, normalise_database_url, parse_duration, parse_time


@given(st.integers(0, 999_999 * 86_400))
def test_a_duration_survives_being_written_and_read(seconds: int) -> None:
    duration = timedelta(seconds=seconds)
    assert parse_duration(format_duration(duration)) == duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("45m", 2700), ("6h", 21600), ("2d", 172800), ("1h30m", 5400), (" 1d1s ", 86401)]
)
def test_durations(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@given(st.text(alphabet="0123456789smhd .-", max_size=8) | st.text(max_size=4))
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= timedelta(0)


@given(
    st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29)),  # noqa: DTZ001 - zone added below
    st.integers(-23 * 60, 23 * 60),
)
def test_a_time_is_read_as_utc_in_whole_milliseconds(local: datetime, offset: int) -> None:
    time = local.replace(tzinfo=timezone(timedelta(minutes=offset)))
    read = parse_time(time.isoformat())
    assert read.tzinfo is UTC
    assert timedelta(0) <= time - read < timedelta(milliseconds=1)
    assert read.microsecond % 1000 == 0


@given(st.text(max_size=12))
def test_any_text_is_a_time_an_address_or_refused(text: str) -> None:
    for read in (parse_time, normalise_base_url, normalise_database_url):
        for form in (text, f"https://{text}", f"postgresql://{text}"):
            with contextlib.suppress(ValueError):
                read(form)


@given(st.sampled_from(["https://h.example", "http://[::1]:80"]), st.lists(st.sampled_from(["/", "a", "/api/public"])))
def test_normalising_a_base_url_again_changes_nothing(host: str, parts: list[str]) -> None:
    path = "".join(parts)
    once = normalise_base_url(host + ("/" + path if path else ""))
    assert normalise_base_url(once) == once
    assert once.endswith("/api/public")
