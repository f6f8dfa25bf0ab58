"""Our share of a rate limit: how it is kept, learned and shared."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from etl.extract.budget import Budget, Budgets, bucket_of, is_cloud

CLOUD = "cloud.langfuse.com"


@pytest.mark.parametrize(
    ("path", "bucket"),
    [
        ("/traces", "public-api-legacy"), ("/traces/abc", "public-api-legacy"), ("/observations", "public-api-legacy"),
        ("/sessions", "public-api-legacy"), ("/v2/observations", "public-api"), ("/v3/scores", "public-api"),
        ("/v2/scores", "public-api"), ("/scores", "public-api"), ("/projects", "unlimited"), ("/health", "unlimited"),
    ],
)  # fmt: skip
def test_every_path_counts_against_the_limit_of_its_bucket(path: str, bucket: str) -> None:
    assert bucket == bucket_of(path)


@pytest.mark.parametrize(
    ("limit", "share", "allowed"),
    [(15, 0.5, 7.0), (30, 0.5, 14.5), (1_000, 1.0, 999.0), (100, 0.25, 24.75), (2, 0.5, 1.0), (1, 1.0, 1.0)],
)
def test_a_share_is_of_what_passes_which_is_one_less_than_the_limit(limit: int, share: float, allowed: float) -> None:
    assert allowed == Budget(share, limit).allowed_per_minute()


def test_without_a_limit_nothing_waits() -> None:
    budget = Budget(0.5, None)
    began = time.monotonic()
    for _ in range(1_000):
        budget.wait(threading.Event())
    assert budget.allowed_per_minute() is None
    assert time.monotonic() - began < 1


def test_workers_together_keep_to_the_share() -> None:
    """1,200 a minute are 20 a second: the 30th goes out 1.5 s after the first, however many ask."""
    budget = Budget(0.5, 2_401)
    budget._next_free = began = time.monotonic()  # no burst is left
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda _: budget.wait(threading.Event()), range(31)))
    assert 1.4 <= time.monotonic() - began < 4


def test_a_burst_is_a_tenth_of_a_minute_at_most() -> None:
    budget = Budget(1.0, 601)
    began = time.monotonic()
    for _ in range(60):
        budget.wait(threading.Event())
    assert time.monotonic() - began < 1
    slot = budget._reserve()
    assert slot > began


def test_a_hold_stops_everybody_until_it_ends_and_a_shorter_one_does_not_end_it() -> None:
    budget = Budget(1.0, 100_000)
    budget.hold(1.0)
    budget.hold(0.1)
    assert 0.9 < budget.held_for_s() <= 1.0
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: budget.wait(threading.Event()), range(4)))
    assert 0.9 <= time.monotonic() - began < 3
    assert budget.held_for_s() == 0


def test_a_stop_ends_the_waiting_at_once() -> None:
    budget, stop = Budget(1.0, 10), threading.Event()
    budget.hold(60)
    stop.set()
    began = time.monotonic()
    budget.wait(stop)
    assert time.monotonic() - began < 1


def test_a_learned_limit_is_used_from_then_on() -> None:
    budget = Budget(0.5, 15)
    budget.learn(1_000)
    assert budget.allowed_per_minute() == 499.5
    budget.learn(0)
    assert budget.allowed_per_minute() == 1.0


def test_one_budget_for_a_host_an_organisation_and_a_bucket() -> None:
    budgets = Budgets(0.5, None)
    one = budgets.of(CLOUD, "org", "public-api-legacy")
    assert one is budgets.of(CLOUD, "org", "public-api-legacy")
    others = [
        budgets.of(CLOUD, "org", "public-api"), budgets.of(CLOUD, "other", "public-api-legacy"),
        budgets.of("us.cloud.langfuse.com", "org", "public-api-legacy"),
    ]  # fmt: skip
    assert len({id(budget) for budget in [one, *others]}) == 4
    one.learn(100)
    assert [budget.limit_per_minute for budget in others] == [30, 15, 15]


@pytest.mark.parametrize(
    ("host", "stated", "limits"),
    [
        (CLOUD, None, [15, 30, None]),
        ("eu.cloud.langfuse.com", None, [15, 30, None]),
        ("langfuse.example.com", None, [None, None, None]),
        ("langfuse.example.com", 60, [60, 60, None]),
        (CLOUD, 60, [60, 60, None]),
    ],
)
def test_the_limit_is_the_stated_one_or_that_of_the_smallest_plan_on_cloud(
    host: str, stated: int | None, limits: list[int | None]
) -> None:
    budgets = Budgets(0.5, stated)
    buckets = ("public-api-legacy", "public-api", "unlimited")
    assert limits == [budgets.of(host, "org", bucket).limit_per_minute for bucket in buckets]


@pytest.mark.parametrize(
    ("host", "expected"),
    [(CLOUD, True), ("us.cloud.langfuse.com", True), ("mycloud.langfuse.com", False), ("langfuse.com", False)],
)
def test_only_langfuse_cloud_is_langfuse_cloud(host: str, expected: bool) -> None:
    assert is_cloud(host) is expected
