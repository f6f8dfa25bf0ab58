"""The mock server as a process sees it: sockets, headers, and the faults that happen on the wire."""

import contextlib
import gzip as gzip_codec
import itertools
import socket
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs

from etl.demo.answers import Answer
from etl.demo.auth import PUBLIC_KEY, SECRET_KEY
from etl.demo.corpus import load_corpus
from etl.demo.dataset import Dataset
from etl.demo.endpoints.context import Project, Request
from etl.demo.faults import Fault, Faults
from etl.demo.service import Api, Service, Settings, real_time

_GZIP_ABOVE_BYTES = 1024
_SEND_TIMEOUT_S = 60.0


class LoggedRequest(NamedTuple):
    """A request that was answered; `status` 0 means that the connection broke before."""

    method: str
    path: str
    query: dict[str, list[str]]
    status: int


class MockLangfuse:
    """A Langfuse server on this machine, over HTTP.

    Use as a context manager (answers in threads of its own) or call `serve_forever`.

    Args:
        dataset: What it holds; None for the recorded corpus.
        api: `v3` (3.x), `v4` (4.x, events-only), `dual` (4.x with both); `server.api = …` switches at run time.
        version: What /health says; None for 3.225.4 or 4.16.0.
        clock: For the Date header and the rate limits; returns an aware datetime.
        keys: (public, secret).
        rate_limits: Requests a minute by resource (`public-api-legacy`, `public-api`); the last one is refused.
        gzip: Compress answers above 1 KB for clients that accept it.
        shuffle_ties: Rows with equal sort keys come in another order at each request.
        overcount: Totals count rows that were put twice, in the queries where the real server's do.
        features: What the server can do (see `ALL_FEATURES`); None for what `version` could.
        cloud: Add `_deprecation` to the answers of legacy endpoints.
        port: 0 takes a free one.
        keep_alive_s: Idle connections are closed after this time, as Langfuse does after 5 s.

    Attributes:
        requests: What was answered, in order.
        before_answer: Called with each request before its answer is computed, to change data between pages.
    """

    def __init__(
        self,
        dataset: Dataset | None = None,
        *,
        api: Api = "v3",
        version: str | None = None,
        faults: Faults | None = None,
        clock: Callable[[], datetime] | None = None,
        keys: tuple[str, str] = (PUBLIC_KEY, SECRET_KEY),
        project: Project | None = None,
        rate_limits: Mapping[str, int] | None = None,
        gzip: bool = False,
        shuffle_ties: bool = False,
        overcount: bool = False,
        features: frozenset[str] | None = None,
        cloud: bool = False,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_alive_s: float = 5.0,
    ) -> None:
        self.settings = Settings(
            api,
            version,
            clock or real_time,
            keys,
            project or Project(),
            rate_limits or {},
            shuffle_ties,
            overcount,
            features,
            cloud,
        )
        self.faults = faults if faults is not None else Faults()
        self.dataset = dataset if dataset is not None else load_corpus()
        self.requests: list[LoggedRequest] = []
        self.before_answer: Callable[[Request], None] | None = None
        self.gzip = gzip
        self.keep_alive_s = keep_alive_s
        self.service = Service(self.dataset, self.settings, self.faults)
        self.stopping = threading.Event()
        self.numbers = itertools.count(1)
        self._server = _Server((host, port), self)
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def api(self) -> Api:
        return self.settings.api

    @api.setter
    def api(self, api: Api) -> None:
        self.settings.api = api

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def serve_forever(self) -> None:
        """Answer in the foreground until interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            self._server.serve_forever()
        self._server.server_close()

    def close(self) -> None:
        """Stop answering, and drop every connection."""
        self.stopping.set()
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.drop_connections()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], mock: MockLangfuse) -> None:
        self.mock = mock
        self._open: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def reset(self, connection: socket.socket) -> None:
        """Close without the orderly end that `shutdown_request` would send first."""
        self._open.discard(connection)
        connection.close()

    def drop_connections(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; everything else is the mock's own mistake and is printed."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.mock.keep_alive_s)

    def do_GET(self) -> None:
        mock = self.server.mock
        length = int(self.headers.get("Content-Length") or 0)
        if length:
            self.rfile.read(length)
        path, _, text = self.path.partition("?")
        query = parse_qs(text, keep_blank_values=True)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, query, headers, next(mock.numbers))
        if mock.before_answer is not None:
            mock.before_answer(request)
        answer, fault = mock.service.answer(request)
        broken = fault is not None and fault.kind in ("reset", "stall", "cut")
        mock.requests.append(LoggedRequest(self.command, path, query, 0 if broken else answer.status))
        self.connection.settimeout(_SEND_TIMEOUT_S)
        if fault is None:
            self._send(answer)
        else:
            self._send_with(fault, answer)
        self.connection.settimeout(mock.keep_alive_s)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _send(self, answer: Answer) -> None:
        self.connection.sendall(self._message(answer))

    def _send_with(self, fault: Fault, answer: Answer) -> None:
        """Send as the fault has it; most end the connection."""
        if fault.kind == "slow":
            self.server.mock.stopping.wait(fault.params.get("delay_s", 1.0))
            self._send(answer)
        elif fault.kind == "close_idle":
            self._send(answer)
            self.close_connection = True
        elif fault.kind == "stall":
            message = self._message(answer)
            self.connection.sendall(message[: message.index(b"\r\n\r\n") + 4])
            self.server.mock.stopping.wait(fault.params.get("seconds", 30.0))
            self.close_connection = True
        elif fault.kind in ("cut", "reset"):
            message = self._message(answer)
            start = message.index(b"\r\n\r\n") + 4
            self.connection.sendall(message[: start + (len(message) - start) // 2])
            if fault.kind == "reset":
                # Lingering for zero seconds makes close() send RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.server.reset(self.connection)
            self.close_connection = True
        else:
            self._send(answer)

    def _message(self, answer: Answer) -> bytes:
        """Head and body in one piece, so that one packet can carry them."""
        mock = self.server.mock
        body, coding = answer.body, ""
        if mock.gzip and len(body) > _GZIP_ABOVE_BYTES and "gzip" in (self.headers.get("Accept-Encoding") or ""):
            body, coding = gzip_codec.compress(body, 1), "Content-Encoding: gzip\r\n"
        more = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        phrase = HTTPStatus(answer.status).phrase if answer.status in _KNOWN else "Unknown"
        head = (
            f"HTTP/1.1 {answer.status} {phrase}\r\n"
            f"Vary: Origin, Accept-Encoding\r\n"
            f"Content-Type: {answer.content_type}\r\n"
            f"{coding}{more}"
            f"Content-Length: {len(body)}\r\n"
            f"Date: {format_datetime(mock.settings.clock().astimezone(UTC), usegmt=True)}\r\n"
            f"Connection: keep-alive\r\n"
            f"Keep-Alive: timeout={mock.keep_alive_s:g}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    def log_message(self, format: str, *args: Any) -> None:
        """Silence: requests are in `MockLangfuse.requests`."""


_KNOWN = frozenset(int(status) for status in HTTPStatus)
