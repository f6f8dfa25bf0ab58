"""One authenticated GET at a time: time-outs, retries, `Retry-After`, and answers checked before they are believed.

Which trouble is which: `langfuse-api.md` facts recorded in `tests/cassettes/errors_*.yaml`. Messages name the path
and the status, never the query, the headers or the body.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlencode

import requests
import tenacity
from requests.adapters import HTTPAdapter
from requests.auth import HTTPBasicAuth
from urllib3.exceptions import LocationParseError, ReadTimeoutError

from etl import __version__
from etl.errors import (
    ApiError,
    ApiGoneError,
    AuthError,
    NotFoundError,
    RequestRejectedError,
    RetriableApiError,
    ShutdownRequested,
    TooMuchError,
    UnexpectedAnswerError,
)
from etl.extract.budget import Bucket, Budget, Budgets, bucket_of
from etl.transform.items import Fields, Item, fields_of, listing_of, value_of
from etl.transform.jsontext import JsonTextError, parse

log = logging.getLogger(__name__)

Params = Mapping[str, str | int | Sequence[str]]

MAX_BODY_BYTES = 16 * 2**20
_CHUNK_BYTES = 2**18
_CONNECT_TIMEOUT_S = 10.0
_MAX_ATTEMPTS = 8
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_DEFAULT_RETRY_AFTER_S = 5.0
# Langfuse counts in windows of a minute. What asks for hours means something else (a moment in seconds since 1970, a
# date far away), and a service that believed it would stand still until it is started anew.
_LONGEST_RETRY_AFTER_S = 3600.0
# A server that says "at once" has just refused; asking it in a loop is no help.
_SHORTEST_HOLD_S = 0.5
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_DEPRECATIONS_SAID: set[str | None] = set()


class Answer(NamedTuple):
    """A JSON object.

    Langfuse Cloud adds a `deprecation` where endpoints will go (recorded in `cloud_mode_deprecation_and_429`).
    """

    value: dict[str, Any]
    deprecation: Any


class FieldsAnswer(NamedTuple):
    """A JSON object as the text of the value of each field; `body_bytes` in all."""

    fields: Fields
    deprecation: Any
    body_bytes: int


class ListAnswer(NamedTuple):
    """`{data: [objects], meta: {…}}`, from a text of `body_bytes`."""

    items: list[Item]
    meta: dict[str, Any]
    deprecation: Any
    body_bytes: int


T = TypeVar("T", Answer, FieldsAnswer, ListAnswer)
_NOTHING = Answer({}, None)


class _StaleConnectionError(RetriableApiError):
    """The server closed a connection it had kept open; the next try gets a new one."""


class _RateLimitedError(RetriableApiError):
    """429. The budget makes every request wait, this one too."""


class _HeldTooLongError(RetriableApiError):
    """The rate limit outlasts all patience: there is nothing to try before."""


@dataclass(frozen=True)
class Patience:
    """How long trouble is borne: `give_up_after_s` seconds in all and `attempts` tries, whichever ends first."""

    give_up_after_s: float
    attempts: int = _MAX_ATTEMPTS


class Traffic(Protocol):
    """Is told of every request; called from several threads."""

    def answered(self, status: int | None, seconds: float) -> None:
        """A request ended, with the status of a whole answer or None, `seconds` after it was sent."""

    def retried(self) -> None:
        """A request will be sent once more."""


class _Unwatched:
    def answered(self, status: int | None, seconds: float) -> None: ...

    def retried(self) -> None: ...


class Client:
    """GETs below one API root with one key pair; safe for threads.

    Args:
        base_url: The API root, as `config.normalise_base_url` gives it.
        public_key, secret_key: The key pair, for HTTP Basic.
        key_names: What the key pair is called in messages, which never show a key itself.
        timeout_s: Longest silence of the server, in seconds.
        patience: For requests that do not say otherwise.
        connections: How many requests may be under way at once.
        stop: When set, waits end and the next request raises `ShutdownRequested`.
        budgets: Shared by the clients of this process; None: whatever the server allows.
        traffic: Is told of every request.

    Attributes:
        organization_id: Whose rate limit is used; set it once the project is known.
        server_clock_ahead_s: The server's `Date` less our clock, in seconds; None before the first answer.
    """

    def __init__(
        self,
        base_url: str,
        public_key: str,
        secret_key: str,
        *,
        key_names: str,
        timeout_s: float,
        patience: Patience,
        connections: int = 4,
        stop: threading.Event | None = None,
        budgets: Budgets | None = None,
        traffic: Traffic | None = None,
    ) -> None:
        self.base_url = base_url
        self.stop = stop or threading.Event()
        self.server_clock_ahead_s: float | None = None
        self._patience = patience
        self._timeout = (_CONNECT_TIMEOUT_S, timeout_s)
        self._key_names = key_names
        # Not as text: requests would encode it as Latin-1.
        self._auth = HTTPBasicAuth(public_key.encode(), secret_key.encode())
        self._prepared: requests.PreparedRequest | None = None
        self._http = requests.Session()
        self._http.headers["User-Agent"] = f"langfuse-etl/{__version__}"
        self._http.headers["Accept"] = "application/json"
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=connections, max_retries=0)
        self._http.mount("https://", adapter)
        self._http.mount("http://", adapter)
        # Proxies and certificates of the environment, looked up once; requests would do so for every page.
        environment = self._http.merge_environment_settings(base_url, {}, None, None, None)
        self._http.proxies, self._http.verify = environment["proxies"], environment["verify"]
        self._http.trust_env = False
        self._budgets = budgets or Budgets(share=1.0, requests_per_minute=None)
        self.organization_id = ""
        self._lock = threading.Lock()
        self._requests = 0
        self._traffic = traffic or _Unwatched()

    @property
    def requests_sent(self) -> int:
        """How many requests went out so far, retries included."""
        return self._requests

    def limit_per_minute(self, bucket: Bucket) -> float | None:
        """How many requests of a bucket we allow ourselves a minute; None if there is no limit."""
        return self._budgets.of(self._host(), self.organization_id, bucket).allowed_per_minute()

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def get(self, path: str, params: Params | None = None, *, patience: Patience | None = None) -> Answer:
        """The JSON object that `path` answers.

        Args:
            path: Below the API root, with a leading slash, percent-encoded.
            params: Query parameters; a sequence is sent as repeated parameters.
            patience: In place of the client's own.
        Raises:
            AuthError, ApiGoneError, NotFoundError, RequestRejectedError, TooMuchError: At once.
            RetriableApiError, UnexpectedAnswerError: After all retries.
            ShutdownRequested: The stop event was set.
        """
        return self._get(path, params, _answer, patience or self._patience, any_size=False)

    def get_fields(self, path: str) -> FieldsAnswer:
        """As `get`, for an object of any size, not only up to 16 MiB."""
        return self._get(path, None, _fields_answer, self._patience, any_size=True)

    def get_list(self, path: str, params: Params, *, any_size: bool = False) -> ListAnswer:
        """As `get`, for endpoints that answer `{data: [objects], meta: {…}}`; the shape is checked.

        Args:
            any_size: As in `get_fields`.
        """
        return self._get(path, params, _list_answer, self._patience, any_size)

    def _get(
        self, path: str, params: Params | None, read: Callable[[bytearray], T], patience: Patience, any_size: bool
    ) -> T:
        """What `read` makes of the body; what it refuses with `JsonTextError` is asked for again."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            stop=tenacity.stop_any(
                tenacity.stop_before_delay(patience.give_up_after_s),
                _AttemptsUsedUp(patience.attempts),
                tenacity.stop_when_event_set(self.stop),
            ),
            wait=_wait_before_retry,
            sleep=tenacity.sleep_using_event(self.stop),
            before_sleep=self._log_retry,
            reraise=True,
        )
        try:
            answer: T = retrying(self._get_once, path, params, read, None if any_size else MAX_BODY_BYTES, patience)
        except (RetriableApiError, UnexpectedAnswerError):
            if self.stop.is_set():
                raise ShutdownRequested("stopped while waiting for Langfuse") from None
            raise
        return answer

    def _get_once(
        self,
        path: str,
        params: Params | None,
        read: Callable[[bytearray], T],
        max_bytes: int | None,
        patience: Patience,
    ) -> T:
        budget = self._budgets.of(self._host(), self.organization_id, bucket_of(path))
        if budget.held_for_s() > patience.give_up_after_s:
            raise _HeldTooLongError(
                f"GET {path}: the rate limit asks to wait longer than http.give_up_after", path=path, status=429
            )
        budget.wait(self.stop)
        if self.stop.is_set():
            raise ShutdownRequested("stopped before the next request")
        with self._lock:
            self._requests += 1
        started = time.monotonic()
        status: int | None = None
        try:
            with self._http.send(self._request(path, params), timeout=self._timeout, stream=True) as response:
                body = self._read(response, path, max_bytes, started)
            status = response.status_code
        except requests.Timeout as error:
            if isinstance(error, requests.ConnectTimeout):
                raise RetriableApiError(f"{self._host()} does not answer (connection timed out)", path=path) from None
            raise TooMuchError(f"GET {path}: no answer in {self._timeout[1]:g} s", path=path, timed_out=True) from None
        except requests.ConnectionError as error:
            raise self._connection_error(error, path) from None
        except (requests.exceptions.InvalidURL, LocationParseError):
            raise RetriableApiError(f"{self._host()} is no address; check LANGFUSE_BASE_URL", path=path) from None
        except requests.RequestException as error:
            raise RetriableApiError(f"GET {path}: {type(error).__name__}", path=path) from None
        finally:
            self._traffic.answered(status, time.monotonic() - started)
        self._note_clock(response.headers.get("Date"))
        if status == 429:
            raise self._refused(response, budget, path)
        if status != 200:
            raise self._error(status, body, path)
        try:
            answer = read(body)
        except JsonTextError:
            # A proxy, an error page or a half answer in the guise of success.
            raise UnexpectedAnswerError(
                f"GET {path}: {self._host()} answers, but not with Langfuse's JSON; check LANGFUSE_BASE_URL",
                path=path,
                status=status,
            ) from None
        _note_deprecation(answer, path)
        return answer

    def _request(self, path: str, params: Params | None) -> requests.PreparedRequest:
        """To prepare each anew costs as much as to send it; they differ in their address only."""
        if self._prepared is None:
            self._prepared = self._http.prepare_request(requests.Request("GET", self.base_url, auth=self._auth))
        request = self._prepared.copy()
        request.url = f"{request.url}{path}" + (f"?{urlencode(_pairs(params))}" if params else "")
        if len(self._http.cookies):  # of what stands in front of Langfuse
            request.prepare_cookies(self._http.cookies)
        return request

    def _read(self, response: requests.Response, path: str, max_bytes: int | None, started: float) -> bytearray:
        body = bytearray()  # pieces put together at the end would be held twice
        for chunk in response.iter_content(_CHUNK_BYTES):
            body += chunk
            if max_bytes is not None and len(body) > max_bytes:
                raise TooMuchError(f"GET {path}: more than {max_bytes} bytes", path=path, timed_out=False)
            if time.monotonic() - started > 2 * self._timeout[1]:
                raise TooMuchError(f"GET {path}: the answer does not end", path=path, timed_out=True)
            if self.stop.is_set():
                raise ShutdownRequested("stopped during a request")
        return body

    def _connection_error(self, error: requests.ConnectionError, path: str) -> ApiError:
        text = str(error)
        if any(isinstance(cause, ReadTimeoutError) for cause in error.args):  # the silence came after the headers
            return TooMuchError(f"GET {path}: no answer in {self._timeout[1]:g} s", path=path, timed_out=True)
        if "RemoteDisconnected" in text or "ConnectionResetError" in text or "BrokenPipe" in text:
            return _StaleConnectionError(f"GET {path}: the server closed the connection", path=path)
        if "NameResolutionError" in text or "getaddrinfo" in text:
            return RetriableApiError(f"{self._host()} is not known; check LANGFUSE_BASE_URL", path=path)
        if isinstance(error, requests.exceptions.SSLError):
            return RetriableApiError(f"{self._host()}: no trusted TLS connection; check its certificate", path=path)
        if "NewConnectionError" in text:
            return RetriableApiError(
                f"{self._host()} refuses connections; is Langfuse running there, is LANGFUSE_BASE_URL right?", path=path
            )
        return RetriableApiError(f"GET {path}: the connection broke off", path=path)

    def _refused(self, response: requests.Response, budget: Budget, path: str) -> RetriableApiError:
        wait_s = max(_SHORTEST_HOLD_S, retry_after_s(response.headers.get("Retry-After")))
        budget.hold(wait_s)
        limit = response.headers.get("X-RateLimit-Limit", "")
        if limit.isdecimal() and budget.limit_per_minute is not None:
            budget.learn(int(limit))
        return _RateLimitedError(f"GET {path}: rate limited for {wait_s:g} s", path=path, status=429)

    def _error(self, status: int, body: bytearray, path: str) -> ApiError:
        try:
            answer = _answer(body)
        except JsonTextError:
            answer = _NOTHING
        problem = answer.value
        _note_deprecation(answer, path)
        if status in (401, 403):
            return AuthError(self._auth_advice(status), path=path, status=status)
        if status in (404, 405) and "error" in problem:
            return NotFoundError(f"GET {path}: not found", path=path, status=status)
        if status in (404, 405, 410):
            # Only the events-only mode answers 404 with a message and no `error` (recorded in `v4_events_only_mode`).
            left_behind = "message" in problem or status == 410
            return ApiGoneError(_gone_advice(path, left_behind), path=path, status=status, left_behind=left_behind)
        if status == 400:
            return RequestRejectedError(f"GET {path}: refused by the server (400)", path=path, status=status)
        error_name = problem.get("error")
        if status == 413 or (status == 422 and error_name == "PayloadTooLargeError"):
            return TooMuchError(f"GET {path}: too large for the server", path=path, status=status, timed_out=False)
        if status in (408, 422, 504, 524) or (status == 500 and "timeout" in str(error_name).lower()):
            return TooMuchError(
                f"GET {path}: too slow for the server ({status})", path=path, status=status, timed_out=True
            )
        return RetriableApiError(f"GET {path}: status {status}", path=path, status=status)

    def _auth_advice(self, status: int) -> str:
        if status == 401:
            return (
                f"{self._host()} does not know the key pair in {self._key_names} (401); make one in Langfuse under"
                " project Settings > API Keys and set both, and set the base URL to the region the project is in"
            )
        return (
            f"the key pair in {self._key_names} may not read here (403); it must be a project key, made in Langfuse"
            " under project Settings > API Keys"
        )

    def _host(self) -> str:
        return self.base_url.partition("://")[2].partition("/")[0]

    def _note_clock(self, date: str | None) -> None:
        try:
            server = parsedate_to_datetime(date) if date else None
        except ValueError:
            return
        if server is not None and server.tzinfo is not None:
            self.server_clock_ahead_s = (server - datetime.now(UTC)).total_seconds()

    def _log_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.info("retry %d: %s", state.attempt_number, error)
        self._traffic.retried()


def _answer(body: bytearray) -> Answer:
    value = parse(body).value
    if not isinstance(value, dict):
        raise JsonTextError("not an object")
    return Answer(value, value.pop("_deprecation", None))


def _fields_answer(body: bytearray) -> FieldsAnswer:
    fields = fields_of(body)
    return FieldsAnswer(fields, value_of(fields.pop("_deprecation", b"null")), len(body))


def _list_answer(body: bytearray) -> ListAnswer:
    items, meta_text, deprecation = listing_of(body)
    meta = value_of(meta_text)
    if not isinstance(meta, dict):
        raise JsonTextError("`meta` is no object")
    return ListAnswer(items, meta, value_of(deprecation), len(body))


def _pairs(params: Params | None) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for name, value in (params or {}).items():
        values = [value] if isinstance(value, str | int) else value
        pairs.extend((name, str(one)) for one in values)
    return pairs


def _note_deprecation(answer: Answer | FieldsAnswer | ListAnswer, path: str) -> None:
    """One line for each date in the life of a process, whatever endpoint tells it first."""
    deprecation = answer.deprecation
    if deprecation is None:
        return
    sunset = deprecation.get("sunsetAt") if isinstance(deprecation, dict) else None
    day = sunset[:10] if isinstance(sunset, str) and _DATE.match(sunset) else None
    if day in _DEPRECATIONS_SAID:
        return
    _DEPRECATIONS_SAID.add(day)
    log.warning(
        "GET %s: this server will remove the traces API of Langfuse v3%s; with `api: auto` reading goes over to the"
        " observations API by itself then", path, f" on {day}" if day else "",
    )  # fmt: skip


def _gone_advice(path: str, left_behind: bool) -> str:
    if left_behind:
        return f"GET {path}: this server's Langfuse version does not have this endpoint any more"
    return f"GET {path}: not an address of Langfuse's API (404); check LANGFUSE_BASE_URL"


def retry_after_s(header: str | None) -> float:
    """Seconds of a `Retry-After`, 0 to 3600: a number (fractional in Langfuse v3.0) or a date; 5 if it is neither."""
    asked_s = None if header is None else _asked_s(header)
    if asked_s is None:
        return _DEFAULT_RETRY_AFTER_S
    if asked_s > _LONGEST_RETRY_AFTER_S:
        log.warning(
            "the rate limit asks to wait for %g s, which cannot be meant; waiting for %g s",
            asked_s, _DEFAULT_RETRY_AFTER_S,
        )  # fmt: skip
        return _DEFAULT_RETRY_AFTER_S
    return max(0.0, asked_s)


def _asked_s(header: str) -> float | None:
    try:
        return float(header)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None


class _AttemptsUsedUp(tenacity.stop.stop_base):
    """Being told to wait is no failed attempt: only other trouble counts."""

    def __init__(self, attempts: int) -> None:
        self._left = attempts

    def __call__(self, retry_state: tenacity.RetryCallState) -> bool:
        error = retry_state.outcome.exception() if retry_state.outcome else None
        self._left -= not isinstance(error, _RateLimitedError)
        return self._left <= 0


def _may_pass(error: BaseException) -> bool:
    return isinstance(error, RetriableApiError | UnexpectedAnswerError) and not isinstance(error, _HeldTooLongError)


def _wait_before_retry(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _RateLimitedError) or (isinstance(error, _StaleConnectionError) and state.attempt_number == 1):
        return 0.0
    return float(_BACKOFF(state))


_BACKOFF = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
