"""Serves the metric table over HTTP: GET /metrics and GET /healthz, nothing else.

Requests are answered in threads of their own, one page rendered at a time, one request a connection. A page of 10,000 lines takes
some milliseconds of the interpreter, in slices of 5 ms at most between which the loop runs.
"""

from __future__ import annotations

import errno
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Final

from meshscope.model import Exchange
from meshscope.sinks.exposition import CONTENT_TYPE, Exposition
from meshscope.sinks.golden import Golden
from meshscope.stats import Stats

_CONNECTIONS: Final = 16  # open at once; a scraper needs one
_PATIENCE_S: Final = 5.0  # for a client that sends or reads nothing
_OVERDUE_S: Final = 10.0  # a connection this old gives way to a new one


class Prometheus:
    """The sink. Raises OSError, with a message that says what to do, if the address cannot be used. port 0: any; see ``port``."""

    def __init__(self, golden: Golden, stats: Stats, address: str, port: int) -> None:
        try:
            self._server = _Server(golden, stats, address, port)
        except OSError as error:
            why = "it is in use; choose another port" if error.errno == errno.EADDRINUSE else error.strerror
            raise OSError(error.errno, f"cannot serve metrics on {address}:{port}: {why}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.2}, name="meshscope-prometheus", daemon=True
        )
        self._thread.start()

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        """The table has counted them."""

    def flush(self, now_ns: int) -> None:
        """Pages are rendered when they are asked for."""

    def close(self) -> None:
        """Stop listening; answers under way have half a second. Idempotent."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(0.5)


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = _CONNECTIONS

    def __init__(self, golden: Golden, stats: Stats, address: str, port: int) -> None:
        self.stats = stats
        self._exposition = Exposition(golden)
        self._rendering = threading.Lock()
        self._open: dict[socket.socket, float] = {}  # connection -> since when, oldest first
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        super().__init__((address, port), _Handler)

    def page(self, *, compressed: bool) -> bytes:
        """The metrics page, gzipped or not."""
        with self._rendering:
            self.stats.n["scrapes"] += 1
            pieces = self._exposition.render(self.stats.snapshot())
            if not compressed:
                return "".join(pieces).encode()
            squeeze = zlib.compressobj(1, wbits=31)
            return b"".join([*(squeeze.compress(piece.encode()) for piece in pieces), squeeze.flush()])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - as typeshed has it
        now = time.monotonic()
        with self._lock:
            full = len(self._open) >= _CONNECTIONS
            if full:
                oldest = next(iter(self._open))
                if now - self._open[oldest] > _OVERDUE_S:
                    _shut(oldest)
                    del self._open[oldest]
                    full = False
            if not full:
                self._open[request] = now
        if full:
            self.stats.n["scrapes_refused"] += 1
            super().shutdown_request(request)
        else:
            super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client that went away is no trouble of ours."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    server: _Server

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            compressed = "gzip" in self.headers.get("accept-encoding", "")
            self._answer(HTTPStatus.OK, self.server.page(compressed=compressed), CONTENT_TYPE, compressed=compressed)
        elif path == "/healthz":
            self._answer(HTTPStatus.OK, b"ok\n")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"there is /metrics and /healthz\n")

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class says of requests it does not understand; nothing of the request is repeated."""
        del message, explain
        if code == HTTPStatus.NOT_IMPLEMENTED:
            code = HTTPStatus.METHOD_NOT_ALLOWED
        self._answer(code, f"{HTTPStatus(code).phrase}\n".encode())

    def _answer(self, code: int, body: bytes, kind: str = "text/plain; charset=utf-8", *, compressed: bool = False) -> None:
        self.close_connection = True
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        if code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET")
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "meshscope"

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Scrapes are counted, not logged."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Nor is what strangers send."""


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # the other side was faster
        return
