"""Sending ready-made span requests: retries, partial success, and one log line when the receiver comes or goes.

The official exporters take the SDK's span objects only, which cost five times as much to make and encode; what goes over the
wire is the same. The rules of "OTLP Specification 1.7" are followed here: which failures may pass, Retry-After and RetryInfo,
exponential back-off with jitter. One thread uses it.
"""

from __future__ import annotations

import http.client
import logging
import random
import ssl
import threading
import time
import zlib
from typing import Final, Protocol

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from meshscope.sinks.conventions import clean
from meshscope.sinks.otlp_settings import OtlpSettings
from meshscope.stats import Stats

logger = logging.getLogger(__name__)

_RETRYABLE_STATUS: Final = frozenset({429, 502, 503, 504})
_RESPONSE_MAX: Final = 65536  # bytes of an answer that are read; a partial success is a number and a sentence
_FIRST_DELAY_S: Final = 0.5
_LAST_DELAY_S: Final = 10.0


class SendError(Exception):
    """A request did not arrive. passing: it may be sent again, not before ``after_s`` if that is given."""

    def __init__(self, reason: str, *, passing: bool, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.passing = passing
        self.after_s = after_s


class Transport(Protocol):
    """One request at a time, from one thread; ``abort`` may come from another and makes ``send`` fail soon, for good."""

    def send(self, body: bytes, timeout_s: float) -> bytes:
        """Deliver a serialised request and return the serialised answer; raises SendError and nothing else."""

    def abort(self) -> None: ...

    def close(self) -> None: ...


class HttpTransport:
    """HTTP/1.1 POST of protobuf over a connection that is kept open. Raises OSError if a certificate file is unusable."""

    def __init__(self, settings: OtlpSettings) -> None:
        self._settings = settings
        self._aborted = False
        self._connection = self._new()
        self._headers = {"content-type": "application/x-protobuf", "user-agent": "meshscope", **dict(settings.headers)}
        if settings.gzip:
            self._headers["content-encoding"] = "gzip"

    def send(self, body: bytes, timeout_s: float) -> bytes:
        if self._settings.gzip:
            body = zlib.compress(body, 1, wbits=31)
        kept = self._connection.sock is not None
        try:
            try:
                return self._exchange(body, timeout_s)
            except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
                if not kept or self._aborted:
                    raise
                self._connection.close()  # the receiver had closed it while idle, as it may: that is no failure
                return self._exchange(body, timeout_s)
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            passing = not isinstance(error, ValueError)  # a certificate that is not trusted, a header that is none
            raise SendError(_reason(error), passing=passing) from error

    def abort(self) -> None:
        self._aborted = True
        sock = self._connection.sock
        if sock is not None:
            try:
                sock.shutdown(2)
            except OSError:  # it is not connected any more
                return

    def close(self) -> None:
        self._connection.close()

    def _new(self) -> http.client.HTTPConnection:
        s = self._settings
        if not s.secure:
            return http.client.HTTPConnection(s.host, s.port, timeout=s.timeout_s)
        context = ssl.create_default_context(cafile=s.certificate or None)
        if s.client_certificate:
            context.load_cert_chain(s.client_certificate, s.client_key or None)
        return http.client.HTTPSConnection(s.host, s.port, timeout=s.timeout_s, context=context)

    def _exchange(self, body: bytes, timeout_s: float) -> bytes:
        connection = self._connection
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        connection.request("POST", self._settings.path, body, self._headers)
        response = connection.getresponse()
        answer = b""
        while len(answer) < _RESPONSE_MAX and (part := response.read1(_RESPONSE_MAX - len(answer))):
            answer += part
            if time.monotonic() > deadline:
                raise TimeoutError("timed out")
        if not response.isclosed():  # cut off, or more than anybody wants to read; the status is what counts
            connection.close()
        if response.status in range(200, 300):
            return answer
        after = response.headers.get("retry-after", "").strip()
        raise SendError(
            f"answered {response.status} {clean(response.reason)}".rstrip(),
            passing=response.status in _RETRYABLE_STATUS,
            after_s=float(after) if after.isdecimal() else None,
        )


class Exporter:
    """Delivers span requests. retry_s: how long one request is tried."""

    def __init__(self, settings: OtlpSettings, stats: Stats, transport: Transport | None = None, retry_s: float = 30.0) -> None:
        self._settings = settings
        self._stats = stats
        self._retry_s = retry_s
        self._transport = transport or open_transport(settings)
        self._stop = threading.Event()
        self._failing = False
        self._lost = 0  # items since the receiver went away

    def send(self, request: Message, items: int) -> int:
        """How many of ``items`` the receiver took; does not return before they are delivered or given up."""
        body = request.SerializeToString()
        deadline = time.monotonic() + self._retry_s
        delay = _FIRST_DELAY_S
        while True:
            self._stats.n["otlp_requests"] += 1
            try:
                answer = self._transport.send(body, self._settings.timeout_s)
            except SendError as error:
                self._note_failure(str(error))
                pause = random.uniform(0.8, 1.2) * delay if error.after_s is None else error.after_s  # noqa: S311 - jitter
                if not error.passing or time.monotonic() + pause > deadline or self._stop.wait(pause):
                    self._lost += items
                    return 0
                self._stats.n["otlp_retries"] += 1
                delay = min(delay * 2, _LAST_DELAY_S)
            else:
                self._note_success()
                return items - self._rejected(answer, items)

    def hurry(self) -> None:
        """The agent is about to stop: a receiver that was away gets one more chance for each request, and no wait between."""
        if self._failing:
            self._stop.set()

    def abort(self) -> None:
        """Give up what is under way; ``send`` returns soon, from now on at once."""
        self._stop.set()
        self._transport.abort()

    def close(self) -> None:
        """Let go of the connection; nothing may be under way but what was aborted."""
        self._transport.close()

    def _note_failure(self, reason: str) -> None:
        if not self._failing:
            self._failing = True
            logger.warning("OTLP traces to %s: %s", self._settings.url, reason)

    def _note_success(self) -> None:
        if self._failing:
            self._failing = False
            logger.warning("OTLP traces to %s: delivered again, %d spans lost", self._settings.url, self._lost)
        self._lost = 0

    def _rejected(self, answer: bytes, items: int) -> int:
        """What the receiver says it did not take of a request it accepted."""
        try:
            rejected, message = partial_success(answer)
        except DecodeError:  # accepted all the same; some receivers answer JSON or text
            return 0
        rejected = min(max(rejected, 0), items)
        if rejected:
            self._stats.n["otlp_rejected"] += rejected
            logger.debug("OTLP traces: %d rejected: %s", rejected, clean(message))
        return rejected


def partial_success(answer: bytes) -> tuple[int, str]:
    """How many spans were rejected, and why. Raises DecodeError."""
    traces = ExportTraceServiceResponse.FromString(answer).partial_success
    return traces.rejected_spans, traces.error_message


def open_transport(settings: OtlpSettings) -> Transport:
    """The transport of a protocol; gRPC's library (20 MB) is loaded only here. Raises OSError for unusable certificate files."""
    if settings.protocol == "grpc":
        from meshscope.sinks.otlp_grpc import GrpcTransport  # noqa: PLC0415 - see above

        return GrpcTransport(settings)
    return HttpTransport(settings)


def _reason(error: Exception) -> str:
    """What went wrong, short, and in no case what was sent."""
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {getattr(error, 'verify_message', '') or error.reason or 'handshake'}"
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http.client.HTTPException):
        return "no HTTP answer"
    return type(error).__name__
