"""OTLP receivers for tests, gRPC and HTTP: they decode with OpenTelemetry's own messages and can be told to misbehave."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

BOUND_S = 20.0  # far beyond what a loopback export takes

Request = ExportTraceServiceRequest | ExportMetricsServiceRequest


class Answer:
    """What to say to one request: an HTTP status or a gRPC code name, headers or trailers, a body, and how long to hold it."""

    def __init__(
        self,
        status: int | str = 200,
        body: bytes = b"",
        headers: tuple[tuple[str, Any], ...] = (),
        hold: threading.Event | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = headers
        self.hold = hold


class Receiver:
    """What came in, in order. ``answers`` is used up first; when it is empty everything is accepted."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.requests: list[Request] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.answers: list[Answer] = []
        self._changed = threading.Condition()

    def take(self, path: str, headers: dict[str, str], body: bytes) -> Answer:
        kind = ExportTraceServiceRequest if "trace" in path.lower() else ExportMetricsServiceRequest
        with self._changed:
            self.requests.append(kind.FromString(body))
            self.headers.append(headers)
            self.paths.append(path)
            self._changed.notify_all()
            return self.answers.pop(0) if self.answers else Answer()

    def wait(self, n: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= n, BOUND_S), f"{len(self.requests)} of {n} requests came"

    def spans(self) -> list[tuple[dict[str, Any], Any]]:
        """(resource attributes, span) of every span received."""
        return [
            (plain(resource.resource.attributes), span)
            for request in self.requests
            if isinstance(request, ExportTraceServiceRequest)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def metrics(self) -> dict[tuple[str, str], Any]:
        """(service name, metric name) -> the last metric received under it."""
        return {
            (plain(resource.resource.attributes)["service.name"], metric.name): metric
            for request in self.requests
            if isinstance(request, ExportMetricsServiceRequest)
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


def plain(attributes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    pair: KeyValue
    for pair in attributes:
        assert pair.key not in found, f"{pair.key} twice"
        found[pair.key] = getattr(pair.value, pair.value.WhichOneof("value"))
    return found


@contextmanager
def http_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers["content-encoding"] == "gzip":
                body = gzip.decompress(body)
            answer = receiver.take(self.path, {k.lower(): v for k, v in self.headers.items()}, body)
            if answer.hold is not None:
                answer.hold.wait(BOUND_S)
            self.send_response(int(answer.status))
            for name, value in answer.headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def handle(self) -> None:
            try:
                super().handle()
            except ConnectionError:  # the exporter was told to give up
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    receiver.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join(BOUND_S)


@contextmanager
def grpc_receiver() -> Iterator[Receiver]:
    receiver = Receiver()

    def export(method: str) -> Callable[[bytes, Any], bytes]:
        def handle(body: bytes, context: Any) -> bytes:
            answer = receiver.take(method, dict(context.invocation_metadata()), body)
            if answer.hold is not None:
                answer.hold.wait(BOUND_S)
            if isinstance(answer.status, str):
                context.set_trailing_metadata(answer.headers)
                context.abort(grpc.StatusCode[answer.status], "as told")
            return answer.body

        return handle

    class Services(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, call: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(export(call.method))

    server = grpc.server(ThreadPoolExecutor(4), handlers=(Services(),))
    receiver.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(0).wait(BOUND_S)
