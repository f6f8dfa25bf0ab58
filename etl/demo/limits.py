"""Rate limits as on Langfuse Cloud: a fixed minute that starts with its first request, per resource."""

import math
import threading
from collections.abc import Mapping

from etl.demo.answers import ApiError
from etl.demo.times import from_ms, iso

_WINDOW_MS = 60_000
OBSERVATIONS_HINT = "Use GET /api/public/v2/observations?fromStartTime=<from>&toStartTime=<to> for high-volume reads."


class RateLimits:
    """Counts requests by resource; `points` names how many a minute has, resources without points are free."""

    def __init__(self, points: Mapping[str, int]) -> None:
        self._points = dict(points)
        self._windows: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def spend(self, resource: str, now_ms: int, path: str) -> None:
        """Take a point; the Nth of N is refused already, as on a real server.

        Raises:
            ApiError: 429 with the headers and the body of a real server.
        """
        points = self._points.get(resource)
        if points is None:
            return
        with self._lock:
            start, used = self._windows.get(resource, (now_ms, 0))
            if now_ms >= start + _WINDOW_MS:
                start, used = now_ms, 0
            used += 1
            self._windows[resource] = (start, used)
        if points - used >= 1:
            return
        hint = f" {OBSERVATIONS_HINT}" if resource == "public-api-legacy" else ""
        message = f"Rate limit exceeded for GET {path}.{hint}"
        raise rate_limited(message, points, max(points - used, 0), start + _WINDOW_MS, now_ms)


def rate_limited(message: str, limit: int, remaining: int, reset_ms: int, now_ms: int) -> ApiError:
    """The 429 of Langfuse since 3.170; the reset header is JavaScript's date text."""
    retry_after_s = math.ceil((reset_ms - now_ms) / 1000)
    details = {
        "retryAfterSeconds": retry_after_s,
        "limit": limit,
        "remaining": remaining,
        "resetAt": iso(reset_ms),
    }
    headers = {
        "Retry-After": str(retry_after_s),
        "X-RateLimit-Limit": str(limit),
        "X-RateLimit-Remaining": str(remaining),
        "X-RateLimit-Reset": f"{from_ms(reset_ms):%a %b %d %Y %H:%M:%S} GMT+0000 (Coordinated Universal Time)",
    }
    return ApiError(429, {"message": message, "code": "rate_limited", "details": details}, headers)
