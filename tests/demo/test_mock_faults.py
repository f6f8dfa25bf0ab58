"""Faults on demand, as a client sees them."""

import http.client
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from etl.demo import PUBLIC_KEY, SECRET_KEY, Faults, MockLangfuse, generate


@pytest.fixture
def server() -> Iterator[MockLangfuse]:
    with MockLangfuse(generate(traces=60, days=1), api="dual") as running:
        yield running


def get(server: MockLangfuse, path: str = "/traces", session: Any = requests, **query: Any) -> requests.Response:
    response: requests.Response = session.get(
        f"{server.base_url}/api/public{path}",
        params=query,
        auth=(PUBLIC_KEY, SECRET_KEY),
        timeout=2,
        allow_redirects=False,
    )
    return response


@pytest.mark.parametrize("status", [401, 403, 422, 429, 500, 502, 503, 524])
def test_a_status_comes_once(server: MockLangfuse, status: int) -> None:
    server.faults.add("status", status=status)
    assert [get(server).status_code for _ in range(2)] == [status, 200]
    assert server.faults.fired == [("status", "/traces")]


def test_a_429_says_when_to_come_back(server: MockLangfuse) -> None:
    server.faults.add("status", status=429, retry_after_s=7)
    answer = get(server)
    assert answer.headers["Retry-After"] == "7"
    assert answer.json()["details"]["retryAfterSeconds"] == 7


def test_the_two_meanings_of_422(server: MockLangfuse) -> None:
    server.faults.add("status", status=422)
    server.faults.add("status", status=422, error="too_large")
    assert [get(server).json()["error"] for _ in range(2)] == ["Request timed out", "PayloadTooLargeError"]


def test_faults_wait_and_choose_their_path(server: MockLangfuse) -> None:
    server.faults.add("status", path="/traces/*", times=2, after=1, status=500)
    trace_id = server.dataset.traces()[0]["id"]
    assert [get(server, f"/traces/{trace_id}").status_code for _ in range(4)] == [200, 500, 500, 200]
    server.faults.add("status", path="/observations", times=None, status=503)
    assert [get(server, "/observations").status_code for _ in range(3)] == [503] * 3
    assert get(server, "/traces").status_code == 200
    server.faults.clear()
    assert get(server, "/observations").status_code == 200


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown fault 'nope'"):
        Faults().add("nope")


@pytest.mark.parametrize("kind", ["reset", "cut"])
def test_a_connection_breaks_in_the_middle(server: MockLangfuse, kind: str) -> None:
    server.faults.add(kind)
    with pytest.raises((requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        get(server, limit=50)
    assert server.requests[-1].status == 0
    assert get(server, limit=50).status_code == 200


def test_a_reset_is_a_reset(server: MockLangfuse) -> None:
    server.faults.add("reset")
    with socket.create_connection(("127.0.0.1", server.port), timeout=2) as connection:
        connection.sendall(b"GET /api/public/health HTTP/1.1\r\nHost: mock\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            b"".join(iter(lambda: connection.recv(65536), b""))


def test_half_a_page_looks_healthy(server: MockLangfuse) -> None:
    server.faults.add("half_page")
    body = get(server, limit=50).json()
    assert (len(body["data"]), body["meta"]["totalItems"]) == (25, 60)


def test_answers_that_are_no_answers(server: MockLangfuse) -> None:
    server.faults.add("html")
    page = get(server)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    server.faults.add("not_json")
    with pytest.raises(requests.JSONDecodeError):
        get(server).json()
    server.faults.add("not_utf8", at='"name":"')
    assert b'"name":"\xff' in get(server).content
    server.faults.add("wrong_shape")
    assert "data" not in get(server).json()
    server.faults.add("wrong_shape", shape="object")
    assert get(server).json()["data"] == {}


def test_a_redirect(server: MockLangfuse) -> None:
    server.faults.add("redirect", location="https://example.com/login")
    answer = get(server)
    assert (answer.status_code, answer.headers["Location"]) == (302, "https://example.com/login")


def test_a_slow_answer_comes_late_and_a_stalled_one_never(server: MockLangfuse) -> None:
    server.faults.add("slow", delay_s=0.15)
    begun = time.monotonic()
    assert get(server).status_code == 200
    assert time.monotonic() - begun >= 0.15
    server.faults.add("stall", seconds=30)
    with pytest.raises((requests.ConnectionError, requests.Timeout)):
        requests.get(f"{server.base_url}/api/public/health", timeout=0.2)


def test_a_kept_connection_closes_without_a_word(server: MockLangfuse) -> None:
    server.faults.add("close_idle")
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=2)
    connection.request("GET", "/api/public/health")
    answer = connection.getresponse()
    assert answer.headers["Connection"] == "keep-alive"
    assert answer.read()
    assert connection.sock is not None
    assert connection.sock.recv(1) == b""
    connection.close()


def test_a_window_with_too_many_rows_times_out(server: MockLangfuse) -> None:
    server.faults.timeout_above_rows = 40
    rows = server.dataset.traces()
    assert get(server, limit=1).status_code == 422
    later = rows[30]["timestamp"]
    assert get(server, fromTimestamp=later).status_code == 200
    assert get(server, f"/traces/{rows[0]['id']}").status_code == 200
    assert get(server, "/v2/observations", limit=1).json()["error"] == "Request timed out"


def test_a_poisoned_row_spoils_every_page_that_holds_its_contents(server: MockLangfuse) -> None:
    trace = server.dataset.traces()[-1]
    server.faults.poison = {trace["id"]}
    assert get(server, limit=1).status_code == 422
    assert get(server, limit=1, page=2).status_code == 200
    assert get(server, limit=1, fields="core").status_code == 200
    assert get(server, f"/traces/{trace['id']}").status_code == 422
    assert get(server, f"/traces/{trace['id']}", fields="core").status_code == 200
    events = {"traceId": trace["id"], "isRootObservation": "true"}
    assert get(server, "/v2/observations", fields="core,io", **events).status_code == 422
    assert get(server, "/v2/observations", **events).status_code == 200


def test_an_answer_that_is_too_big_is_refused(server: MockLangfuse) -> None:
    server.faults.oversize = 20_000
    assert get(server, limit=50).json()["error"] == "PayloadTooLargeError"
    assert get(server, limit=1).status_code == 200


def test_random_faults_are_repeatable_and_bounded() -> None:
    runs = []
    for _ in range(2):
        faults = Faults()
        faults.random(seed=3, rate=0.5, kinds=["status", "html", ("status", {"status": 503})], most=10)
        with MockLangfuse(generate(traces=5), faults=faults) as server:
            runs.append([get(server).status_code for _ in range(60)])
        assert len(faults.fired) == 10
    assert runs[0] == runs[1]
    assert set(runs[0][-20:]) == {200}


def test_the_mock_runs_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "etl.demo", "--traces", "20", "--api", "dual"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url, public_key, secret_key = process.stdout.readline().split()
            answer = requests.get(f"{base_url}/api/public/traces", auth=(public_key, secret_key), timeout=10)
            assert answer.json()["meta"]["totalItems"] == 20
        finally:
            process.terminate()
