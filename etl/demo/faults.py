"""Faults on demand: what networks, proxies and overloaded servers do to a client."""

import random
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from etl.demo import answers, json_text
from etl.demo.answers import Answer
from etl.demo.limits import rate_limited

KINDS = frozenset(
    {
        "status",  # status=…; 429 takes retry_after_s, 422 takes error="timed_out" | "too_large"
        "reset",  # half of the answer, then a TCP reset
        "cut",  # Content-Length promises more than comes before the connection closes
        "half_page",  # 200, valid JSON, `data` cut to half, `meta` untouched
        "html",  # 200 with an HTML page
        "not_json",  # 200 with JSON that breaks off
        "not_utf8",  # 200 with JSON, but for one byte behind the first at=…, such as '"name":"'
        "wrong_shape",  # 200, JSON, `data` missing; with shape="object" an object instead of a list
        "slow",  # delay_s=… before the answer
        "stall",  # headers, then nothing for seconds=…
        "close_idle",  # closes the kept-alive connection after the answer without saying so
        "redirect",  # status=302, location=…
    }
)
_RANDOM_STATUSES = (429, 500, 502, 503, 524, 422)


@dataclass(slots=True)
class Fault:
    """One planned fault: skips `after` matching requests, then hits `times` (None: all that follow)."""

    kind: str
    path: str | None = None
    times: int | None = 1
    after: int = 0
    params: dict[str, Any] = field(default_factory=dict)


class Faults:
    """A plan of faults, and limits that a weak server has.

    Attributes:
        timeout_above_rows: A list whose window matches more rows answers 422 "Request timed out".
        poison: A page with contents (not `fields=core`) that would hold one of these ids answers the same.
        oversize: An answer of more bytes becomes 422 "PayloadTooLargeError".
        fired: (kind, path) of each planned fault that hit, in order.
    """

    def __init__(
        self, *, timeout_above_rows: int | None = None, poison: Iterable[str] = (), oversize: int | None = None
    ) -> None:
        self.timeout_above_rows = timeout_above_rows
        self.poison = set(poison)
        self.oversize = oversize
        self.fired: list[tuple[str, str]] = []
        self._plan: list[Fault] = []
        self._random: Callable[[str], Fault | None] | None = None
        self._lock = threading.Lock()

    def add(self, kind: str, path: str | None = None, times: int | None = 1, after: int = 0, **params: Any) -> None:
        """Plan a fault.

        Args:
            kind: One of `KINDS`.
            path: Below /api/public, such as `/traces` or `/traces/*`; None hits every path.
            times: How many matching requests it hits; None for all.
            after: How many matching requests pass before.
            params: What the kind takes, see `KINDS`.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown fault {kind!r}, known: {', '.join(sorted(KINDS))}")
        with self._lock:
            self._plan.append(Fault(kind, path, times, after, params))

    def random(self, seed: int, rate: float, kinds: Sequence[str | tuple[str, dict[str, Any]]], most: int = 50) -> None:
        """Hit a share `rate` of the requests, `most` in all; the same seed hits the same request numbers."""
        rng = random.Random(seed)
        left = most

        def draw(path: str) -> Fault | None:
            nonlocal left
            if left <= 0 or rng.random() >= rate:
                return None
            left -= 1
            chosen = rng.choice(list(kinds))
            kind, params = (chosen, {}) if isinstance(chosen, str) else chosen
            if kind == "status" and "status" not in params:
                params = {"status": rng.choice(_RANDOM_STATUSES)}
            return Fault(kind, path, params=params)

        with self._lock:
            self._random = draw

    def clear(self) -> None:
        """Drop the plan; limits stay."""
        with self._lock:
            self._plan.clear()
            self._random = None

    def take(self, path: str) -> Fault | None:
        """The fault that hits this request; counts it."""
        with self._lock:
            hit: Fault | None = None
            for fault in self._plan:
                if fault.times == 0 or (fault.path is not None and not fnmatchcase(path, fault.path)):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                elif hit is None:
                    hit = fault
                    if fault.times is not None:
                        fault.times -= 1
            if hit is None and self._random is not None:
                hit = self._random(path)
            if hit is not None:
                self.fired.append((hit.kind, path))
            return hit

    def guard(self, matching: int, ids: Collection[str], *, heavy: bool, legacy: bool) -> None:
        """Raise the 422 of a timed-out query if this read is too much for the server."""
        if self.timeout_above_rows is not None and matching > self.timeout_above_rows:
            raise answers.timed_out(legacy=legacy)
        if heavy and self.poison and not self.poison.isdisjoint(ids):
            raise answers.timed_out(legacy=legacy)


def instead(fault: Fault, now_ms: int, *, legacy: bool) -> Answer | None:
    """The answer that a fault gives in place of the real one; None if it leaves it or only changes it."""
    if fault.kind == "status":
        return _status(fault, now_ms, legacy=legacy)
    if fault.kind == "html":
        return Answer(200, answers.HTML_BAD_GATEWAY, answers.HTML_TYPE)
    if fault.kind == "redirect":
        location = fault.params.get("location", "https://example.com/login")
        return Answer(fault.params.get("status", 302), b"", answers.HTML_TYPE, {"Location": location})
    return None


def changed(fault: Fault, answer: Answer) -> Answer:
    """The answer as a fault spoils it."""
    if answer.status != 200:
        return answer
    if fault.kind == "not_json":
        return Answer(200, answer.body[: max(1, len(answer.body) // 2)])
    if fault.kind == "not_utf8":
        before = str(fault.params.get("at", '"environment":"')).encode()
        return Answer(200, answer.body.replace(before, before + b"\xff", 1))
    if fault.kind == "half_page":
        body = json_text.loads(answer.body)
        if isinstance(body.get("data"), list):
            body["data"] = body["data"][: len(body["data"]) // 2]
        return Answer(200, json_text.dumps(body))
    if fault.kind == "wrong_shape":
        body = json_text.loads(answer.body)
        body.pop("data", None)
        if fault.params.get("shape") == "object":
            body["data"] = {}
        return Answer(200, json_text.dumps(body))
    return answer


def _status(fault: Fault, now_ms: int, *, legacy: bool) -> Answer:
    status: int = fault.params["status"]
    if status == 429:
        reset_ms = now_ms + round(fault.params.get("retry_after_s", 1) * 1000)
        return rate_limited("Rate limit exceeded.", 15, 0, reset_ms, now_ms).answer()
    if status == 422:
        too_large = fault.params.get("error") == "too_large"
        return (answers.too_large() if too_large else answers.timed_out(legacy=legacy)).answer()
    if status in _PROXY_PAGES:
        return Answer(status, _PROXY_PAGES[status], answers.HTML_TYPE)
    refused = _REFUSALS.get(status) or answers.error(status, f"Answered with {status} on demand")
    return refused.answer()


_REFUSALS = {
    401: answers.error(401, "Invalid credentials. Confirm that you've configured the correct host."),
    403: answers.error(403, "Access denied - insufficient permissions for this endpoint"),
    500: answers.internal_error("connect ECONNREFUSED 127.0.0.1:8123"),
    503: answers.error(503, "Service Unavailable"),
}
# What stands in front of Langfuse answers these, as pages.
_PROXY_PAGES = {
    502: answers.HTML_BAD_GATEWAY,
    524: b"<!DOCTYPE html><html><head><title>524: A timeout occurred</title></head><body>cloudflare</body></html>",
}
