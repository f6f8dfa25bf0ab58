"""The share of a rate limit that we allow ourselves, and the waiting when it is used up.

Langfuse Cloud counts requests per organisation and kind of endpoint in fixed windows of a minute, and refuses the one
that would leave nothing (langfuse web/src/features/public-api/server/RateLimitService.ts; the 15th of 15 was refused
in the recording `cloud_mode_deprecation_and_429`). Its headers come only with a refusal, so the limit is learned there.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Literal

Bucket = Literal["public-api-legacy", "public-api", "unlimited"]

_MINUTE_S = 60.0
# The smallest plan's limits per minute; a refusal of a larger plan tells the real one.
CLOUD_LIMITS: dict[Bucket, int] = {"public-api-legacy": 15, "public-api": 30}
_LEGACY = ("/traces", "/observations", "/sessions")
_UNLIMITED = ("/health", "/ready", "/projects")


def bucket_of(path: str) -> Bucket:
    """Which limit a request below the API root counts against."""
    if path.startswith(_UNLIMITED):
        return "unlimited"
    return "public-api-legacy" if path.startswith(_LEGACY) else "public-api"


@dataclass
class Budget:
    """One limit, shared by all clients of an organisation; safe for threads.

    Requests are spread evenly: with 14 allowed a minute, one every 4.3 s, after a burst of at most a tenth of them.

    Args:
        share: Part of the limit that may be used, above 0 and at most 1.
        limit_per_minute: The server's limit; None if it has none.
    """

    share: float
    limit_per_minute: int | None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _closed_until: float = 0.0
    _next_free: float = 0.0

    def hold(self, seconds: float) -> None:
        """Lets no request out for `seconds` from now, 0 or more; a longer hold stays."""
        with self._lock:
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)

    def learn(self, limit_per_minute: int) -> None:
        """Takes over the limit that a refusal told, 1 or more."""
        with self._lock:
            self.limit_per_minute = max(1, limit_per_minute)

    def held_for_s(self) -> float:
        """How long the server's word still holds requests back, 0 if it does not."""
        return max(0.0, self._closed_until - time.monotonic())

    def allowed_per_minute(self) -> float | None:
        """Our share of the limit, at least one request a minute; None without a limit. One less than it passes."""
        return None if self.limit_per_minute is None else max(1.0, (self.limit_per_minute - 1) * self.share)

    def wait(self, stop: threading.Event) -> None:
        """Returns when a request may go out, or at once when a stop is asked for."""
        go_at = self._reserve()
        while not stop.is_set():
            left = max(go_at, self._closed_until) - time.monotonic()
            if left <= 0:
                return
            stop.wait(left)

    def _reserve(self) -> float:
        with self._lock:
            now = time.monotonic()
            allowed = self.allowed_per_minute()
            if allowed is None:
                return now
            interval_s = _MINUTE_S / allowed
            burst_s = max(0.0, allowed / 10 - 1) * interval_s
            slot = max(self._next_free, now - burst_s)
            self._next_free = slot + interval_s
            return slot


class Budgets:
    """All budgets of this process, by host, organisation and bucket.

    Args:
        share: See `Budget`.
        requests_per_minute: The limit of every bucket where the configuration says it; None: Cloud's, learned.
    """

    def __init__(self, share: float, requests_per_minute: int | None) -> None:
        self._share, self._stated = share, requests_per_minute
        self._lock = threading.Lock()
        self._budgets: dict[tuple[str, str, Bucket], Budget] = {}

    def of(self, host: str, organization: str, bucket: Bucket) -> Budget:
        """The one budget for these three."""
        with self._lock:
            key = (host, organization, bucket)
            if key not in self._budgets:
                self._budgets[key] = Budget(self._share, self._limit(host, bucket))
            return self._budgets[key]

    def _limit(self, host: str, bucket: Bucket) -> int | None:
        if bucket == "unlimited":
            return None
        return self._stated or (CLOUD_LIMITS[bucket] if is_cloud(host) else None)


def is_cloud(host: str) -> bool:
    """Whether `host` is a region of Langfuse Cloud."""
    return host == "cloud.langfuse.com" or host.endswith(".cloud.langfuse.com")
