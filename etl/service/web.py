"""The listener: /healthz, /readyz, /metrics, and a page for people at /.

The standard library's server will do: a handful of GETs a minute from a monitor and a person, on loopback or inside a
private network. It has no keys and no trace contents to give away, and nothing can be changed through it.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from prometheus_client import CONTENT_TYPE_LATEST

from etl.errors import ConfigError

log = logging.getLogger(__name__)

_SILENT_CLIENT_S = 10.0
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Response(NamedTuple):
    """What a path answers. `policy` is its Content-Security-Policy."""

    status: int
    content_type: str
    body: bytes
    policy: str = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


Routes = dict[str, Callable[[], Response]]


def text(status: int, document: Any) -> Response:
    """A JSON document, one line."""
    return Response(status, "application/json; charset=utf-8", json.dumps(document).encode() + b"\n")


def metrics(exposition: bytes) -> Response:
    """Prometheus' text format."""
    return Response(200, CONTENT_TYPE_LATEST, exposition)


@contextmanager
def listening(address: tuple[str, int], routes: Routes) -> Iterator[tuple[str, int]]:
    """Answers GETs in threads of their own for as long as the block runs; yields the address it listens on.

    Args:
        address: Host and port; port 0 takes any free one.
    Raises:
        ConfigError: The address cannot be listened on.
    """
    try:
        server = _Server(address, routes)
    except OSError as error:
        where = f"{address[0]}:{address[1]}"
        raise ConfigError(
            f"service.listen: {where}: {error.strerror or error}; choose another host and port, port 0 takes a free one"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), name="listener", daemon=True)
    thread.start()
    try:
        yield (address[0], int(server.server_address[1]))
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], routes: Routes) -> None:
        self.routes = routes
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news; the standard report would print a traceback."""
        log.debug("a client of the listener went away")


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _SILENT_CLIENT_S
    server_version = "langfuse-etl"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        route = self.server.routes.get(urlsplit(self.path).path)
        if route is None:
            known = sorted(self.server.routes)
            response = text(404, {"error": "not found", "paths": known})
        else:
            try:
                response = route()
            except Exception as error:
                log.error("%s could not be answered: unexpected %s", self.path, type(error).__name__)
                log.debug("unexpected failure", exc_info=True)
                response = text(500, {"error": f"unexpected {type(error).__name__}"})
        self.send_response(HTTPStatus(response.status))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", response.policy)
        self.send_header("Content-Type", response.content_type)
        self.send_header("Content-Length", str(len(response.body)))
        self.end_headers()
        if with_body:
            self.wfile.write(response.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Monitors ask every few seconds."""
        log.debug("listener: %s", format % args)
