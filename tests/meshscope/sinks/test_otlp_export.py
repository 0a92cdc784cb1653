from __future__ import annotations

import logging
import random
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from meshscope.sinks import otlp_export
from meshscope.sinks.otlp_export import Exporter, HttpTransport, SendError, open_transport
from meshscope.sinks.otlp_settings import OtlpSettings, resolve
from meshscope.stats import Stats
from tests.receivers import BOUND_S, Answer, Receiver, grpc_receiver, http_receiver

REQUEST = ExportTraceServiceRequest()
REQUEST.resource_spans.add().scope_spans.add().spans.add(name="x")

# protocol -> (its receiver, an answer that may pass, one that will not)
WAYS = {"http/protobuf": (http_receiver, 503, 400), "grpc": (grpc_receiver, "UNAVAILABLE", "INVALID_ARGUMENT")}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_export, "_FIRST_DELAY_S", 0.001)


class Way:
    def __init__(self, protocol: str, receiver: Receiver, passing: int | str, lasting: int | str) -> None:
        self.receiver = receiver
        self.passing = Answer(passing)
        self.lasting = Answer(lasting)
        self.settings = settings(receiver.endpoint, protocol)
        self.stats = Stats()

    def exporter(self, retry_s: float = BOUND_S) -> Exporter:
        return Exporter(self.settings, self.stats, retry_s=retry_s)


def settings(endpoint: str, protocol: str = "http/protobuf", **environ: str) -> OtlpSettings:
    found = resolve("traces", {f"OTEL_EXPORTER_OTLP_{k}": v for k, v in environ.items()}, endpoint=endpoint, protocol=protocol)
    assert found is not None
    return found


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    receiver: Callable[[], AbstractContextManager[Receiver]]
    receiver, passing, lasting = WAYS[request.param]
    with receiver() as running:
        yield Way(request.param, running, passing, lasting)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_request_arrives_as_it_was_made(way: Way) -> None:
    way.settings = replace(way.settings, headers=(("x-tenant", "a"),))
    exporter = way.exporter()
    assert [exporter.send(REQUEST, 1), exporter.send(REQUEST, 1)] == [1, 1]
    assert way.receiver.requests == [REQUEST, REQUEST]
    assert way.receiver.headers[1]["x-tenant"] == "a"
    assert "TraceService" in way.receiver.paths[0] or way.receiver.paths[0] == "/v1/traces"
    assert (way.stats.n["otlp_requests"], way.stats.n["otlp_retries"]) == (2, 0)
    exporter.close()


def test_requests_can_be_compressed(way: Way) -> None:
    way.settings = replace(way.settings, gzip=True)
    exporter = way.exporter()
    assert exporter.send(REQUEST, 1) == 1
    assert way.receiver.requests == [REQUEST]
    exporter.close()


def test_what_may_pass_is_tried_again_and_what_will_not_is_given_up(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    exporter = way.exporter()
    way.receiver.answers = [way.passing, way.passing, Answer(), way.lasting]
    with caplog.at_level(logging.WARNING):
        assert [exporter.send(REQUEST, 5) for _ in range(3)] == [5, 0, 5]
    assert len(way.receiver.requests) == 5
    assert (way.stats.n["otlp_requests"], way.stats.n["otlp_retries"]) == (5, 2)
    told = [r.getMessage() for r in caplog.records]
    assert len(told) == 4  # it went, came, went, came
    assert all(way.settings.url in text for text in told)
    assert told[1].endswith("delivered again, 0 spans lost")
    assert told[3].endswith("delivered again, 5 spans lost")
    exporter.close()


def test_a_failure_that_stays_is_told_once_and_ends_in_bounded_time(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    way.receiver.answers = [way.passing] * 1000
    exporter = way.exporter(retry_s=0.05)
    with caplog.at_level(logging.WARNING):
        assert [exporter.send(REQUEST, 1) for _ in range(3)] == [0, 0, 0]
    assert len(caplog.records) == 1
    assert way.stats.n["otlp_retries"] > 0
    exporter.close()


def test_nobody_listens(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    way.settings = settings(f"http://127.0.0.1:{closed_port()}", way.settings.protocol)
    exporter = way.exporter(retry_s=0.01)
    with caplog.at_level(logging.WARNING):
        assert exporter.send(REQUEST, 1) == 0
    assert "refused" in caplog.text.lower()
    exporter.close()


def test_a_name_that_does_not_exist(way: Way) -> None:
    way.settings = settings("http://no.such.host.invalid:4317", way.settings.protocol)
    exporter = way.exporter(retry_s=0.01)
    assert exporter.send(REQUEST, 1) == 0
    exporter.close()


def test_a_receiver_that_does_not_answer_times_out(way: Way, caplog: pytest.LogCaptureFixture) -> None:
    hold = threading.Event()
    way.receiver.answers = [Answer(hold=hold)]
    way.settings = replace(way.settings, timeout_s=0.05)
    exporter = way.exporter(retry_s=0.0)
    with caplog.at_level(logging.WARNING):
        assert exporter.send(REQUEST, 1) == 0
    hold.set()
    assert "timed out" in caplog.text or "DEADLINE_EXCEEDED" in caplog.text
    exporter.close()


def test_giving_up_ends_a_request_under_way_and_every_later_one(way: Way) -> None:
    hold = threading.Event()
    way.receiver.answers = [Answer(hold=hold)]
    exporter = way.exporter()
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(exporter.send(REQUEST, 1)))
    thread.start()
    way.receiver.wait(1)
    exporter.abort()
    thread.join(BOUND_S / 2)
    assert results == [0]
    assert exporter.send(REQUEST, 1) in {0, 1}  # one more try may get through, none is repeated
    hold.set()
    exporter.close()


def test_giving_up_ends_a_wait_between_tries(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_export, "_FIRST_DELAY_S", BOUND_S * 10)
    way.receiver.answers = [way.passing]
    exporter = way.exporter(retry_s=BOUND_S * 100)
    results: list[int] = []
    thread = threading.Thread(target=lambda: results.append(exporter.send(REQUEST, 1)))
    thread.start()
    way.receiver.wait(1)
    exporter.abort()
    thread.join(BOUND_S)
    assert results == [0]
    exporter.close()


def test_in_a_hurry_a_receiver_that_was_away_gets_one_more_chance(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    exporter = way.exporter(retry_s=0.0)
    exporter.hurry()  # nothing is wrong yet: changes nothing
    way.receiver.answers = [way.passing, way.passing]
    assert exporter.send(REQUEST, 1) == 0
    monkeypatch.setattr(exporter, "_retry_s", BOUND_S * 100)
    monkeypatch.setattr(otlp_export, "_FIRST_DELAY_S", BOUND_S * 10)
    exporter.hurry()
    assert [exporter.send(REQUEST, 1), exporter.send(REQUEST, 1)] == [0, 1]
    exporter.close()


def test_rejected_spans_are_counted(way: Way) -> None:
    body = ExportTraceServiceResponse()
    body.partial_success.rejected_spans = 3
    body.partial_success.error_message = "too\nold"
    way.receiver.answers = [Answer(200 if way.settings.protocol != "grpc" else 0, body.SerializeToString())]
    exporter = way.exporter()
    assert exporter.send(REQUEST, 10) == 7
    assert way.stats.n["otlp_rejected"] == 3
    exporter.close()


@pytest.mark.parametrize("rejected", [-5, 0, 10**9])
def test_a_receiver_cannot_reject_less_than_nothing_or_more_than_all(rejected: int) -> None:
    body = ExportTraceServiceResponse()
    body.partial_success.rejected_spans = rejected

    class Transport:
        def send(self, body_: bytes, timeout_s: float) -> bytes:
            del body_, timeout_s
            return body.SerializeToString()

        def abort(self) -> None: ...

        def close(self) -> None: ...

    assert Exporter(settings("http://x"), Stats(), Transport()).send(REQUEST, 4) in {0, 4}


def test_the_back_off_grows_is_jittered_and_obeys_the_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(otlp_export, "_FIRST_DELAY_S", 1.0)
    monkeypatch.setattr(random, "uniform", lambda _low, high: high)
    failures = [SendError("x", passing=True)] * 5 + [SendError("x", passing=True, after_s=7.0)]
    waited: list[float] = []

    class Transport:
        def send(self, body: bytes, timeout_s: float) -> bytes:
            del body, timeout_s
            if failures:
                raise failures.pop(0)
            return b""

        def abort(self) -> None: ...

        def close(self) -> None: ...

    exporter = Exporter(settings("http://x"), Stats(), Transport(), retry_s=1000)
    monkeypatch.setattr(exporter._stop, "wait", waited.append)
    assert exporter.send(REQUEST, 1) == 1
    assert waited == [1.2, 2.4, 4.8, 9.6, 12.0, 7.0]


def test_retry_after_is_obeyed_and_too_long_a_wait_is_none() -> None:
    with http_receiver() as receiver:
        transport = HttpTransport(settings(receiver.endpoint))
        for text, seconds in (("3", 3.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None), ("", None)):
            receiver.answers = [Answer(429, headers=(("retry-after", text),))]
            with pytest.raises(SendError) as error:
                transport.send(b"", 5)
            assert (error.value.passing, error.value.after_s) == (True, seconds)
        receiver.answers = [Answer(503, headers=(("retry-after", "86400"),))]
        exporter = Exporter(settings(receiver.endpoint), Stats())
        assert exporter.send(REQUEST, 1) == 0
        assert len(receiver.requests) == 4
        exporter.close()
        transport.close()


@pytest.mark.parametrize("status", [301, 307, 400, 401, 404, 500])
def test_other_answers_are_final(status: int) -> None:
    with http_receiver() as receiver:
        receiver.answers = [Answer(status, b"<html>" * 20000)]
        exporter = Exporter(settings(receiver.endpoint), Stats())
        assert [exporter.send(REQUEST, 1), exporter.send(REQUEST, 1)] == [0, 1]
        assert len(receiver.requests) == 2
        exporter.close()


def test_a_kept_connection_that_the_receiver_closed_is_no_failure() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    listener = socket.create_server(("127.0.0.1", 0))
    stats = Stats()

    def serve() -> None:
        for _ in range(3):
            connection, _ = listener.accept()
            with connection:
                while b"\r\n\r\n" not in connection.recv(65536, socket.MSG_PEEK):
                    pass
                connection.recv(65536)
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    exporter = Exporter(settings(f"http://127.0.0.1:{listener.getsockname()[1]}"), stats)
    assert [exporter.send(REQUEST, 1) for _ in range(3)] == [1, 1, 1]
    assert stats.n["otlp_retries"] == 0
    thread.join(BOUND_S)
    listener.close()
    exporter.close()


@pytest.mark.parametrize("answer", [b"", b"rubbish\r\n\r\n", b"HTTP/1.1 999999 X\r\n\r\n"])
def test_what_is_no_http_answer_is_a_failure(answer: bytes) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    transport = HttpTransport(settings(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    with pytest.raises(SendError):
        transport.send(REQUEST.SerializeToString(), 5)
    thread.join(BOUND_S)
    listener.close()


@pytest.mark.parametrize("body", [b"{}", b"<html>", b"\xff" * 20, b"x" * 100_000])
def test_an_answer_that_is_no_protobuf_to_an_accepted_request_is_fine(body: bytes) -> None:
    with http_receiver() as receiver:
        receiver.answers = [Answer(200, body)]
        exporter = Exporter(settings(receiver.endpoint), Stats())
        assert exporter.send(REQUEST, 1) == 1
        exporter.close()


@pytest.mark.parametrize("protocol", WAYS)
def test_a_certificate_file_that_is_not_there_is_told_at_the_start(protocol: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        open_transport(settings("https://127.0.0.1:1", protocol, CERTIFICATE=str(tmp_path / "none.pem")))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    key, pem = str(folder / "key.pem"), str(folder / "cert.pem")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", pem],
        check=True, capture_output=True,
    )  # fmt: skip
    return key, pem


def serve_tls(certificate: tuple[str, str]) -> tuple[int, threading.Thread]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate[1], certificate[0])
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener:
            connection, _ = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secure:
                    secure.recv(65536)
                    secure.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            except OSError:  # it does not trust us
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return int(listener.getsockname()[1]), thread


def test_https_to_who_is_trusted_and_only_to_them(certificate: tuple[str, str]) -> None:
    port, thread = serve_tls(certificate)
    HttpTransport(settings(f"https://127.0.0.1:{port}", CERTIFICATE=certificate[1])).send(b"", 5)
    thread.join(BOUND_S)
    port, thread = serve_tls(certificate)
    with pytest.raises(SendError, match="TLS failed: self-signed certificate") as error:
        HttpTransport(settings(f"https://127.0.0.1:{port}")).send(b"", 5)
    assert not error.value.passing
    thread.join(BOUND_S)


def test_grpc_is_loaded_only_for_grpc() -> None:
    program = (
        "import sys; from meshscope.sinks import otlp; from meshscope.sinks.otlp_settings import resolve;"
        "from meshscope.stats import Stats;"
        "s = otlp.open_spans(resolve('traces', {}, endpoint='http://127.0.0.1:9'), Stats(), 10); s.close();"
        "sys.exit('grpc' in sys.modules or 'requests' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=BOUND_S)
