"""One client against a real server on this machine that misbehaves on demand."""

import base64
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from etl.demo import PUBLIC_KEY, SECRET_KEY, Dataset, Faults, MockLangfuse, Request
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
from etl.extract.budget import Budgets, bucket_of
from etl.extract.client import Client, Patience, retry_after_s
from etl.extract.probe import FIRST_CONTACT
from etl.logs import configure_logging
from etl.values import normalise_base_url

PARAMS = {"limit": "10", "fromTimestamp": "2026-11-01T00:00:00.000Z", "userId": "somebody@example.com"}
KEY_NAMES = "MY_PUBLIC and MY_SECRET"


def two_traces() -> Dataset:
    dataset = Dataset()
    for name in ("a", "b"):
        dataset.put_trace({"id": name, "timestamp": "2026-11-20T10:00:00.000Z", "userId": PARAMS["userId"]})
    return dataset


@pytest.fixture
def server() -> Iterator[MockLangfuse]:
    with MockLangfuse(two_traces()) as server:
        yield server


MakeClient = Callable[..., Client]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    made: list[Client] = []

    def make(server: MockLangfuse | str, **changes: Any) -> Client:
        settings: dict[str, Any] = {"timeout_s": 5.0, "patience": Patience(20.0), "key_names": KEY_NAMES}
        settings |= {"public_key": PUBLIC_KEY, "secret_key": SECRET_KEY} | changes
        url = server if isinstance(server, str) else server.base_url
        made.append(Client(normalise_base_url(url), **settings))
        return made[-1]

    yield make
    for client in made:
        client.close()


def ids(client: Client) -> list[str]:
    return sorted(item["id"] for item in client.get_list("/traces", PARAMS).items)


# Trouble that passes


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_is_asked_again(server: MockLangfuse, make_client: MakeClient, status: int) -> None:
    server.faults.add("status", status=status)
    assert ids(make_client(server)) == ["a", "b"]
    assert len(server.requests) == 2


@pytest.mark.parametrize("kind", ["cut", "reset", "html", "not_json", "wrong_shape"])
def test_half_an_answer_or_another_one_is_asked_again(server: MockLangfuse, make_client: MakeClient, kind: str) -> None:
    server.faults.add(kind)
    client = make_client(server)
    assert ids(client) == ["a", "b"]
    assert client.requests_sent == len(server.requests) == 2


def test_data_that_is_no_list_is_asked_again(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("wrong_shape", shape="object")
    assert ids(make_client(server)) == ["a", "b"]


def test_a_connection_that_was_closed_while_idle_is_replaced_at_once(make_client: MakeClient) -> None:
    with MockLangfuse(two_traces(), keep_alive_s=0.05) as server:
        client = make_client(server)
        assert ids(client) == ["a", "b"]
        time.sleep(0.2)
        started = time.monotonic()
        assert ids(client) == ["a", "b"]
    assert time.monotonic() - started < 0.4


def test_a_connection_that_is_closed_behind_each_answer_does_no_harm(
    server: MockLangfuse, make_client: MakeClient
) -> None:
    server.faults.add("close_idle", times=None)
    client = make_client(server)
    assert [ids(client) for _ in range(4)] == [["a", "b"]] * 4


def test_many_threads_share_one_client(server: MockLangfuse, make_client: MakeClient) -> None:
    client = make_client(server, connections=4)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: ids(client), range(40))) == [["a", "b"]] * 40
    assert client.requests_sent == 40


# Being told to wait


def times_of_requests(server: MockLangfuse) -> list[float]:
    times: list[float] = []

    def note(_: Request) -> None:
        times.append(time.monotonic())

    server.before_answer = note
    return times


def test_retry_after_is_obeyed_to_the_second_by_every_thread(server: MockLangfuse, make_client: MakeClient) -> None:
    times = times_of_requests(server)
    client = make_client(server)
    server.faults.add("status", status=429, retry_after_s=1)
    with pytest.raises(RetriableApiError):
        client.get("/traces", PARAMS, patience=Patience(0.5))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: ids(client), range(4))) == [["a", "b"]] * 4
    refused_at, *later = times
    assert len(later) == 4
    assert min(later) - refused_at >= 0.99
    assert max(later) - refused_at < 1.9


def test_being_told_to_wait_is_no_failed_attempt(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("status", status=429, retry_after_s=0, times=12)
    assert ids(make_client(server, patience=Patience(20.0, attempts=2))) == ["a", "b"]


def test_waits_do_not_use_up_the_attempts_for_other_trouble(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("status", status=429, retry_after_s=0, times=3)
    server.faults.add("status", status=500, after=3)
    assert ids(make_client(server, patience=Patience(20.0, attempts=2))) == ["a", "b"]


def test_a_wait_that_is_longer_than_patience_is_given_up_at_once(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("status", status=429, retry_after_s=60)
    started = time.monotonic()
    with pytest.raises(RetriableApiError) as raised:
        ids(make_client(server, patience=Patience(1.0)))
    assert raised.value.status == 429
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3600", 3600.0), ("0.25", 0.25), ("-7", 0.0), ("Fri, 01 Jan 2021 00:00:00 GMT", 0.0),
        # Not believed:
        (None, 5.0), ("soon", 5.0), ("3601", 5.0), ("1764000000", 5.0), ("inf", 5.0), ("nan", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 5.0),
    ],
)  # fmt: skip
def test_a_wait_of_more_than_an_hour_is_not_believed(header: str | None, seconds: float) -> None:
    assert retry_after_s(header) == seconds


def test_a_wait_for_years_holds_nobody_for_years(
    server: MockLangfuse, make_client: MakeClient, caplog: pytest.LogCaptureFixture
) -> None:
    budgets = Budgets(0.5, None)
    client = make_client(server, budgets=budgets)
    server.faults.add("status", status=429, retry_after_s=1_764_000_000)
    with caplog.at_level(logging.WARNING), pytest.raises(RetriableApiError):
        client.get("/traces", PARAMS, patience=Patience(0.5))
    host = server.base_url.partition("://")[2]
    assert 4 < budgets.of(host, client.organization_id, bucket_of("/traces")).held_for_s() <= 5
    assert "asks to wait for 1.764e+09 s" in caplog.text


# Trouble that does not pass


def test_attempts_are_capped(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("status", status=503, times=None)
    with pytest.raises(RetriableApiError) as raised:
        ids(make_client(server, patience=Patience(20.0, attempts=3)))
    assert (raised.value.status, len(server.requests)) == (503, 3)


def test_the_time_of_all_attempts_is_capped(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("status", status=500, times=None)
    started = time.monotonic()
    with pytest.raises(RetriableApiError):
        ids(make_client(server, patience=Patience(1.0, attempts=1_000)))
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize("kind", ["html", "not_json", "wrong_shape"])
def test_what_is_never_langfuse_is_said_after_all_attempts(
    server: MockLangfuse, make_client: MakeClient, kind: str
) -> None:
    server.faults.add(kind, times=None)
    with pytest.raises(UnexpectedAnswerError):
        ids(make_client(server, patience=Patience(20.0, attempts=2)))
    assert len(server.requests) == 2


AT_ONCE: list[tuple[dict[str, Any], type[ApiError], dict[str, Any]]] = [
    ({"status": 401}, AuthError, {"exit_code": 4}),
    ({"status": 403}, AuthError, {"exit_code": 4}),
    ({"status": 400}, RequestRejectedError, {}),
    ({"status": 410}, ApiGoneError, {"left_behind": True}),
    ({"status": 413}, TooMuchError, {"timed_out": False}),
    ({"status": 422}, TooMuchError, {"timed_out": True}),
    ({"status": 422, "error": "too_large"}, TooMuchError, {"timed_out": False}),
    ({"status": 504}, TooMuchError, {"timed_out": True}),
    ({"status": 524}, TooMuchError, {"timed_out": True}),
]


@pytest.mark.parametrize(("fault", "error", "attributes"), AT_ONCE, ids=lambda value: str(value))
def test_an_answer_that_asking_again_will_not_change_is_raised_at_once(
    server: MockLangfuse, make_client: MakeClient, fault: dict[str, Any], error: type[ApiError], attributes: Any
) -> None:
    server.faults.add("status", times=None, **fault)
    with pytest.raises(error) as raised:
        ids(make_client(server))
    assert raised.value.status == fault["status"]
    assert {name: getattr(raised.value, name) for name in attributes} == attributes
    assert len(server.requests) == 1


def test_an_object_that_does_not_exist_is_another_thing_than_an_address(
    server: MockLangfuse, make_client: MakeClient
) -> None:
    client = make_client(server)
    with pytest.raises(NotFoundError):
        client.get("/traces/unknown")
    with pytest.raises(ApiGoneError) as raised:
        client.get("/no-such-endpoint")
    assert not raised.value.left_behind
    server.api = "v4"
    with pytest.raises(ApiGoneError) as raised:
        client.get_list("/traces", PARAMS)
    assert raised.value.left_behind


@pytest.mark.parametrize("kind", ["slow", "stall"])
def test_silence_is_a_reason_to_ask_for_less(server: MockLangfuse, make_client: MakeClient, kind: str) -> None:
    server.faults.add(kind, delay_s=3.0, seconds=3.0)
    started = time.monotonic()
    with pytest.raises(TooMuchError) as raised:
        ids(make_client(server, timeout_s=0.3))
    assert raised.value.timed_out
    assert time.monotonic() - started < 2
    assert len(server.requests) <= 1


def test_an_answer_of_more_than_16_mib_is_abandoned_unless_any_size_is_taken(make_client: MakeClient) -> None:
    dataset = Dataset()
    dataset.put_trace({"id": "big", "timestamp": "2026-11-20T10:00:00.000Z", "input": "x" * (16 * 2**20)})
    with MockLangfuse(dataset, gzip=True) as server:
        client = make_client(server)
        with pytest.raises(TooMuchError) as raised:
            client.get_list("/traces", {"limit": "10"})
        assert not raised.value.timed_out
        (item,) = client.get_list("/traces", {"limit": "1"}, any_size=True).items
    assert item["input"] == "x" * (16 * 2**20)


# Nobody there


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{port}", "refuses connections"),
        ("http://no-such-host.invalid", "is not known"),
        ("http://*", "is no address"),
        ("http://a..b", "is no address"),
        (f"http://{'a' * 64}.invalid", "is no address"),
    ],
)
def test_a_server_that_is_not_there_is_said_within_seconds(make_client: MakeClient, url: str, said: str) -> None:
    started = time.monotonic()
    with pytest.raises(RetriableApiError, match=said) as raised:
        make_client(url.format(port=closed_port())).get("/health", patience=FIRST_CONTACT)
    assert "LANGFUSE_BASE_URL" in str(raised.value)
    assert time.monotonic() - started < 8


def test_a_host_without_tls_is_said(server: MockLangfuse, make_client: MakeClient) -> None:
    with pytest.raises(RetriableApiError, match="TLS"):
        make_client(server.base_url.replace("http://", "https://")).get("/health", patience=FIRST_CONTACT)


# Stopping


@pytest.mark.parametrize("fault", [{"status": 429, "retry_after_s": 30}, {"status": 503}])
def test_a_stop_ends_every_wait_at_once(server: MockLangfuse, make_client: MakeClient, fault: dict[str, Any]) -> None:
    stop = threading.Event()
    client = make_client(server, stop=stop, patience=Patience(600.0, attempts=1_000))
    server.faults.add("status", times=None, **fault)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(ids, client) for _ in range(2)]
        time.sleep(0.4)
        stopped_at = time.monotonic()
        stop.set()
        for one in waiting:
            with pytest.raises(ShutdownRequested):
                one.result(timeout=5)
        assert time.monotonic() - stopped_at < 0.5
    with pytest.raises(ShutdownRequested):
        client.get("/health")


# What is said


def test_a_wrong_key_is_said_with_its_name_and_where_to_make_one(server: MockLangfuse, make_client: MakeClient) -> None:
    with pytest.raises(AuthError) as raised:
        ids(make_client(server, secret_key="sk-lf-wrong"))
    assert KEY_NAMES in str(raised.value)
    assert "Settings > API Keys" in str(raised.value)


@pytest.fixture
def logs() -> Iterator[list[str]]:
    """Every line of every logger that the program's own set-up lets through at DEBUG."""
    lines: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.name} {record.getMessage()} {record.exc_text or ''}")

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    configure_logging("DEBUG")
    collector = Collect()
    root.addHandler(collector)
    yield lines
    root.handlers[:] = handlers
    root.setLevel(level)


SAID_BY: list[dict[str, Any]] = [
    *({"kind": "status", "status": status} for status in (400, 401, 403, 410, 413, 422, 429, 500, 502, 503, 524)),
    *({"kind": kind} for kind in ("cut", "reset", "html", "not_json", "wrong_shape")),
    {"kind": "stall", "seconds": 2},
    {"kind": "slow", "delay_s": 2},
]


def test_no_message_and_no_log_line_holds_a_secret_or_a_query(
    server: MockLangfuse, make_client: MakeClient, logs: list[str]
) -> None:
    client = make_client(server, timeout_s=0.2, patience=Patience(1.0, attempts=2))
    said: list[str] = []
    for fault in SAID_BY:
        server.faults.add(times=2, **fault)
        try:
            ids(client)
        except ApiError as error:
            said.append(f"{error} {error!r} {error.__cause__!r}")
        server.faults.clear()
    for url in (f"http://127.0.0.1:{closed_port()}", "http://no-such-host.invalid"):
        with pytest.raises(RetriableApiError) as raised:
            make_client(url, patience=Patience(1.0, attempts=2)).get("/traces", PARAMS)
        said.append(str(raised.value))
    text = "\n".join([*said, *logs])
    assert len(said) > 12
    assert any("retry" in line for line in logs)
    credentials = base64.b64encode(f"{PUBLIC_KEY}:{SECRET_KEY}".encode()).decode()
    for secret in (SECRET_KEY, PUBLIC_KEY, credentials, "somebody", "userId", "2026-11-01", "fromTimestamp"):
        assert secret not in text


def test_the_difference_of_the_clocks_is_known_after_the_first_answer(make_client: MakeClient) -> None:
    with MockLangfuse(Dataset(), clock=lambda: datetime.now(UTC) - timedelta(hours=3)) as server:
        client = make_client(server)
        assert client.server_clock_ahead_s is None
        client.get("/health")
        assert client.server_clock_ahead_s == pytest.approx(-3 * 3600, abs=5)


# Addresses


@pytest.mark.parametrize("form", ["", "/", "/api/public", "/api/public/", "//api/public//"])
def test_every_form_of_the_address_is_taken(server: MockLangfuse, make_client: MakeClient, form: str) -> None:
    assert ids(make_client(server.base_url + form)) == ["a", "b"]


def test_a_redirect_on_the_same_server_is_followed(server: MockLangfuse, make_client: MakeClient) -> None:
    server.faults.add("redirect", status=308, location=f"{server.base_url}/api/public/traces?limit=5")
    assert ids(make_client(server)) == ["a", "b"]


def test_cookies_that_a_proxy_sets_come_back_to_it(make_client: MakeClient) -> None:
    seen: list[str | None] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Cookie"])
            self.send_response(200)
            self.send_header("Set-Cookie", f"route={len(seen)}; Path=/")
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        client = make_client(f"http://127.0.0.1:{proxy.server_port}")
        for _ in range(3):
            client.get("/health")
        client.close()
        proxy.shutdown()
    assert seen == [None, "route=1", "route=2"]


def test_keys_are_not_sent_to_where_a_redirect_leads(server: MockLangfuse, make_client: MakeClient) -> None:
    seen: list[Request] = []
    with MockLangfuse(two_traces()) as elsewhere:
        elsewhere.before_answer = seen.append
        server.faults.add("redirect", location=f"{elsewhere.base_url}/api/public/traces")
        with pytest.raises(AuthError):
            ids(make_client(server))
    assert len(seen) == 1
    assert "authorization" not in seen[0].headers


def test_a_page_of_somebody_else_is_no_answer(make_client: MakeClient) -> None:
    faults = Faults()
    faults.add("html", times=None)
    with MockLangfuse(Dataset(), faults=faults) as server:
        client = make_client(server)
        with pytest.raises(UnexpectedAnswerError, match="LANGFUSE_BASE_URL"):
            client.get("/health", patience=FIRST_CONTACT)
