"""A threaded or a preforking HTTP/1.1 server on blocking sockets that writes down what it answered.

python blocking.py threaded|prefork PORT LOG FILE [CERT KEY]

FILE is what /file/ serves. One JSON line per request goes to LOG, in one write, after the answer: id, method, target, status,
body (bytes of the answer's body), ns (from the request line to the end of the answer), head (the answer's head was written),
complete (all of it was), waited (ns for which it was ready to run and had no processor, since its line before).
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path
from typing import IO, ClassVar
from urllib.parse import parse_qs, urlsplit

SCHEDSTAT = Path("/proc/thread-self/schedstat")
WORKERS = 12
PIECES = (b"one,", b"two and ", b"three" * 400)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by the first segment of the path; the second is the request's id."""

    protocol_version = "HTTP/1.1"
    server_version = "blocking"
    log: ClassVar[int] = -1
    file: ClassVar[Path]

    queued = 0

    def setup(self) -> None:
        super().setup()
        self.queued = int(SCHEDSTAT.read_text(encoding="ascii").split()[1])

    def parse_request(self) -> bool:
        self.began = time.monotonic_ns()
        self.status = self.sent = 0
        self.complete = False
        return super().parse_request()

    def answer(self, status: int, body: bytes = b"", length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if status not in {204, 304}:
            self.send_header("content-length", str(len(body) if length is None else length))
        self.end_headers()
        self.status = status
        if self.command != "HEAD" and body:
            self.wfile.write(body)
            self.sent += len(body)

    def uploaded(self) -> int:
        """Read the request's body, return its size."""
        if "chunked" not in self.headers.get("transfer-encoding", ""):
            return len(self.rfile.read(int(self.headers.get("content-length", 0))))
        total = 0
        while size := int(self.rfile.readline().split(b";")[0], 16):
            total += len(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return total

    def route(self, kind: str, query: dict[str, list[str]]) -> None:
        match kind:
            case "ok" | "echo":
                more = {"set_cookie": self.headers["x-plant"]} if "x-plant" in self.headers else {}
                self.answer(200, f"{self.uploaded()} bytes for {self.path}\n".encode(), **more)
            case "none" | "same":
                self.answer(204 if kind == "none" else 304)
            case "gone" | "fail":
                self.answer(404 if kind == "gone" else 500, b"no\n")
            case "move":
                self.answer(302, location="/ok/")
            case "slow":
                time.sleep(int(query["ms"][0]) / 1000)
                self.answer(200, b"at last\n")
            case "chunked":
                self.chunked()
            case "close":
                self.until_close()
            case "file":
                self.download()
            case "drop":
                self.close_connection = True
            case _:
                self.answer(404, b"what?\n")

    def chunked(self) -> None:
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-sum")
        self.end_headers()
        self.status = 200
        if self.command == "HEAD":
            return
        for piece in PIECES:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.sent += len(piece)
        self.wfile.write(b"0\r\nx-sum: 17\r\n\r\n")

    def until_close(self) -> None:
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.status = 200
        self.close_connection = True
        for piece in PIECES:
            self.wfile.write(piece)
            self.sent += len(piece)

    def download(self) -> None:
        size = self.file.stat().st_size
        self.answer(200, length=size)
        if self.command == "HEAD":
            return
        with self.file.open("rb") as source:
            self.sent += self.send_all(source)

    def send_all(self, source: IO[bytes]) -> int:
        if not isinstance(self.connection, ssl.SSLSocket):
            return self.connection.sendfile(source)
        sent = 0
        while piece := source.read(65536):
            self.connection.sendall(piece)
            sent += len(piece)
        return sent

    def any_method(self) -> None:
        parts = urlsplit(self.path)
        segments = parts.path.split("/")
        try:
            self.route(segments[1], parse_qs(parts.query))
            self.wfile.flush()
            self.complete = self.status > 0
        except (OSError, ssl.SSLError):
            self.close_connection = True
        ns = time.monotonic_ns() - self.began
        queued = int(SCHEDSTAT.read_text(encoding="ascii").split()[1])
        line = {
            "id": segments[2],
            "method": self.command,
            "target": self.path,
            "status": self.status,
            "body": self.sent,
            "ns": ns,
            "waited": queued - self.queued,
            "head": self.status > 0,
            "complete": self.complete,
        }
        self.queued = queued
        os.write(self.log, (json.dumps(line) + "\n").encode())

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = any_method

    def log_message(self, *_: object) -> None:
        """Keep quiet: our own log says it."""


def serve_one(connection: socket.socket, context: ssl.SSLContext | None) -> None:
    """One connection from handshake to end, whatever the client does."""
    try:
        if context:
            connection = context.wrap_socket(connection, server_side=True)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        Handler(connection, connection.getpeername(), None)  # type: ignore[arg-type]
        connection.shutdown(socket.SHUT_WR)
    except (OSError, ssl.SSLError):
        pass
    finally:
        connection.close()


def prefork(listener: socket.socket, context: ssl.SSLContext | None) -> None:
    children = []
    for _ in range(WORKERS):
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            while True:
                serve_one(listener.accept()[0], context)
        children.append(pid)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        signal.pause()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGTERM)


class Threaded(http.server.ThreadingHTTPServer):
    """One thread per connection; the TLS handshake is made there, too."""

    context: ssl.SSLContext | None = None

    def finish_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        del client_address
        serve_one(request, self.context)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Nothing left to do: serve_one closed it."""


def main() -> None:
    kind, port, log, file, *tls = sys.argv[1:]
    Handler.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    Handler.file = Path(file)
    context = None
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
    if kind == "prefork":
        listener = socket.create_server(("127.0.0.1", int(port)), backlog=256)
        prefork(listener, context)
    else:
        Threaded.context = context
        Threaded.request_queue_size = 256
        Threaded(("127.0.0.1", int(port)), Handler).serve_forever()


if __name__ == "__main__":
    main()
