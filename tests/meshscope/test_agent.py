"""The whole of it but the kernel: a recording through flow, stages and every sink."""

from __future__ import annotations

import dataclasses
import http.server
import json
import threading
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from meshscope import agent
from meshscope.agent import AgentError
from meshscope.agent.loop import Agent, Stop
from meshscope.agent.outputs import Outputs
from meshscope.capture import ProcessInfo, abi
from meshscope.capture.record import Recorder, Replay
from meshscope.config import Config, ConfigError, load
from meshscope.stats import Stats
from tests.meshscope.records import Tape

KEY = bytes(16)
WALL = 1_700_000_000_000_000_000
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJwbGFudGVkIn0.c2lnbmF0dXJlLXBsYW50ZWQ"
SECRETS = (
    "planted-bearer",
    "planted-cookie",
    "planted-set",
    "plantedtoken",
    "planteduser",
    "plantedpass",
    JWT,
    "planted@example.com",
)
PLANTED = (
    f"GET /users/planted@example.com/orders?token=plantedtoken&jwt={JWT}&page=2 HTTP/1.1\r\n"
    "Host: shop\r\nAuthorization: Bearer planted-bearer\r\nCookie: sid=planted-cookie\r\n"
    "Referer: http://planteduser:plantedpass@shop/\r\nUser-Agent: test\r\n\r\n"
).encode()
ANSWER = b"HTTP/1.1 200 OK\r\nSet-Cookie: sid=planted-set\r\nContent-Length: 2\r\n\r\nok"
FAILURE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


class Scripted:
    """A source that was live once: what a recorder tees."""

    def __init__(self, batches: Sequence[bytes], moved: Mapping[str, int]) -> None:
        self._batches = batches
        self._moved = dict(moved)
        self.wall_offset_ns = WALL
        self.processes = {100: ProcessInfo(100, 5, "/usr/sbin/shop", "shop"), 200: ProcessInfo(200, 6, "/usr/bin/till", "till")}

    def batches(self) -> Iterator[bytes]:
        yield from self._batches

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None: ...

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:
        raise AssertionError((tls, tgid, ssl, randoms))

    def counters(self) -> dict[str, int]:
        return self._moved

    def close(self) -> None: ...


def conversation() -> Tape:
    """Two requests between till (client, both ends seen) and shop, the second fails."""
    tape = Tape().pair(1, 2)
    tape.by(200).open_end(1)
    tape.by(100).open_end(2)
    for request, answer in ((PLANTED, ANSWER), (b"GET /stock/17 HTTP/1.1\r\nHost: shop\r\n\r\n", FAILURE)):
        tape.by(200).data(1, abi.TX, request)
        tape.by(100).data(2, abi.RX, request)
        tape.by(100).data(2, abi.TX, answer)
        tape.by(200).data(1, abi.RX, answer)
    tape.by(200).close(1)
    return tape.by(100).close(2)


def recording(folder: Path, lost: int = 0) -> str:
    path = str(folder / "raw")
    tape = conversation()
    counters = dict.fromkeys(abi.COUNTER_NAMES, 0)
    reserved = len(tape.records)
    counters |= {"bytes_moved": 1000, "bytes_copied": 1000 - lost, "records_attempted": reserved, "records_reserved": reserved}
    recorder = Recorder(Scripted(list(tape.batches([3, 7])), counters), path, KEY)
    for _ in recorder.batches():
        pass
    recorder.close()
    return path


class Receiver:
    """Takes OTLP over HTTP and keeps it."""

    def __init__(self) -> None:
        received: list[tuple[str, bytes]] = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self.received = received
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def config(**outputs: str) -> Config:
    return load(None, {}, {f"outputs.{name}": value for name, value in outputs.items()})


def documents(out: bytes) -> list[dict[str, object]]:
    return [json.loads(each) for each in out.splitlines()]


def test_a_recording_reaches_the_console(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert agent.replay(config(console="json"), recording(tmp_path)) == 0
    out, err = capfdbinary.readouterr()
    told = documents(out)
    assert sorted((str(one["role"]), str(one["outcome"])) for one in told) == [
        ("client", "ok"),
        ("client", "server_error"),
        ("server", "ok"),
        ("server", "server_error"),
    ]
    assert {one["process"]["pid"] for one in told} == {100, 200}
    assert {one["server"]["workload"] for one in told} == {"shop"}
    assert {one["client"]["workload"] for one in told} == {"till"}
    assert {one["attributes"]["http.route"] for one in told if one["role"] == "server"} == {"/users/{id}/orders", "/stock/{id}"}
    assert len({one["trace"]["trace_id"] for one in told}) == 2, "the two ends of each exchange are joined"
    assert err.decode() == "meshscope: 4 exchanges, 12 chunks, 0 bytes lost, 0 dropped on the way out\n"


def test_replay_says_the_same_every_time_however_it_is_split(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recording(tmp_path)
    said = []
    for resplit in (0, 0, 1, 2, 5, 1000):
        monkeypatch.setattr(agent, "Replay", lambda name, n=resplit: Replay(name, n))
        assert agent.replay(config(console="json"), path) == 0
        said.append(capfdbinary.readouterr().out)
    assert said[0].count(b"\n") == 4
    assert said.count(said[0]) == len(said)


def test_planted_secrets_are_in_no_output(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], receiver: Receiver) -> None:
    path = recording(tmp_path)
    everything = config(record=str(tmp_path / "redacted.jsonl"), prometheus="127.0.0.1:0", console="json")
    everything = dataclasses.replace(
        everything, otlp=dataclasses.replace(everything.otlp, endpoint=receiver.url, protocol="http/protobuf")
    )
    stats, stop = Stats(), Stop()
    outputs = Outputs(everything, stats, stop)
    source = Replay(path)
    whole = Agent(everything, source, source.key, outputs, stats, stop)
    whole.loop(None)
    port = next(sink.port for sink in outputs.sinks if hasattr(sink, "port"))
    page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read()
    whole.finish()
    source.close()
    json_lines, log = capfdbinary.readouterr()
    assert agent.replay(config(console="text"), path) == 0
    text, _ = capfdbinary.readouterr()
    found = {
        "json": json_lines,
        "text": text,
        "log": log,
        "metrics page": page,
        "record": (tmp_path / "redacted.jsonl").read_bytes(),
        "traces": b"".join(body for where, body in receiver.received if where == "/v1/traces"),
        "metrics": b"".join(body for where, body in receiver.received if where == "/v1/metrics"),
    }
    for where, content in found.items():
        assert content, f"{where} says nothing"
        for secret in SECRETS:
            assert secret.encode() not in content, f"{secret} in {where}"
    raw = Path(path).read_bytes()
    assert all(secret.encode() in raw for secret in SECRETS), "the recording has them: the test is worth something"
    assert stats.n["spans_exported"] == 4
    assert b"/stock/{id}" in page


def test_spans_and_metrics_reach_a_receiver(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], receiver: Receiver
) -> None:
    args = {"otlp.endpoint": receiver.url, "otlp.protocol": "http/protobuf", "outputs.console": "none"}
    assert agent.replay(load(None, {}, args), recording(tmp_path)) == 0
    assert capfdbinary.readouterr().out == b""
    spans = [
        span
        for where, body in receiver.received
        if where == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    assert len(spans) == 4
    clients = {span.span_id for span in spans if span.kind == 3}
    assert {span.parent_span_id for span in spans if span.kind == 2} == clients
    names = {
        metric.name
        for where, body in receiver.received
        if where == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert {"http.server.request.duration", "http.client.request.duration"} <= names


def test_what_does_not_add_up_is_told(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert agent.replay(config(console="none"), recording(tmp_path, lost=10)) == 0
    assert b"meshscope: does not add up: kernel_bytes_moved = 1000 but " in capfdbinary.readouterr().err


def test_a_recording_cut_short_plays_what_is_whole_and_fails(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = Path(recording(tmp_path))
    path.write_bytes(path.read_bytes()[:-200])
    assert agent.replay(config(console="json"), str(path)) == 1
    out, err = capfdbinary.readouterr()
    assert documents(out)
    summary, fault = err.decode().splitlines()
    assert summary.startswith("meshscope: 4 exchanges, ")
    assert fault.startswith(f"meshscope: {path}: cut short at byte ")


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="not a recording"):
        agent.replay(config(), __file__)
    with pytest.raises(AgentError, match=r"No such file or directory$"):
        agent.replay(config(record=str(tmp_path / "no" / "where")), recording(tmp_path))
    args = {"otlp.endpoint": "http://me:secret@h:1"}
    with pytest.raises(ConfigError, match="user, query and fragment have no place in it"):
        Outputs(load(None, {}, args), Stats(), Stop())


def test_giving_up_and_taking_back(tmp_path: Path, receiver: Receiver) -> None:
    settings = load(None, {}, {"otlp.traces_endpoint": receiver.url, "outputs.console": "none"})
    stats, stop = Stats(), Stop()
    outputs = Outputs(settings, stats, stop)
    source = Replay(recording(tmp_path))
    whole = Agent(settings, source, source.key, outputs, stats, stop)
    whole.shed(spans=True, headers=True)
    whole.loop(None)
    whole.finish()
    source.close()
    assert (stats.n["spans_offered"], stats.n["spans_shed"], stats.n["spans_exported"]) == (4, 4, 0)
    assert stats.n["equations_unbalanced"] == 0
    assert receiver.received == []


def test_a_reader_who_left_ends_a_replay(tmp_path: Path) -> None:
    settings = config(console="none")
    stats, stop = Stats(), Stop()
    outputs = Outputs(settings, stats, stop)
    source = Replay(recording(tmp_path), 1)
    stop()
    whole = Agent(settings, source, source.key, outputs, stats, stop)
    whole.loop(None)
    whole.finish()
    source.close()
    assert (stats.n["batches"], stats.n["equations_unbalanced"]) == (1, 0)
