from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from meshscope.model import CLIENT, SERVER, TraceContext, Workload
from meshscope.sinks.conventions import attributes
from meshscope.sinks.otlp_export import Exporter
from meshscope.sinks.otlp_resource import Resources
from meshscope.sinks.otlp_settings import resolve
from meshscope.sinks.otlp_spans import Known, OtlpSpans, request
from meshscope.stats import Stats
from tests.meshscope.exchanges import WALL_NS, exchange
from tests.receivers import Answer, Receiver, grpc_receiver, http_receiver, plain


def spans(*exchanges: object) -> list[Span]:
    made = request(exchanges, Resources(), {})  # type: ignore[arg-type]
    return [s for r in made.resource_spans for sc in r.scope_spans for s in sc.spans]


def test_a_server_span_says_what_the_exchange_was() -> None:
    x = exchange(SERVER, trace=TraceContext(b"\x01" * 16, b"\x02" * 8, b"\x03" * 8, sampled=True, tracestate="ot=th:8"))
    (span,) = spans(x)
    assert (span.trace_id, span.span_id, span.parent_span_id) == (b"\x01" * 16, b"\x02" * 8, b"\x03" * 8)
    assert (span.trace_state, span.flags) == ("ot=th:8", 0x301)
    assert (span.name, span.kind) == ("GET /items/{id}", Span.SPAN_KIND_SERVER)
    assert span.start_time_unix_nano == WALL_NS + 5_000_000_000
    assert span.end_time_unix_nano - span.start_time_unix_nano == 1_500_000
    assert plain(span.attributes) == attributes(x)
    assert not span.HasField("status")


def test_a_client_span_does_not_claim_to_know_where_its_parent_is() -> None:
    (span,) = spans(exchange(CLIENT))
    assert (span.kind, span.flags) == (Span.SPAN_KIND_CLIENT, 1)


def test_a_root_has_no_parent() -> None:
    (span,) = spans(exchange(trace=TraceContext(b"\x01" * 16, b"\x02" * 8, b"", sampled=True)))
    assert (span.parent_span_id, span.flags) == (b"", 1)


@pytest.mark.parametrize(
    ("role", "status", "outcome", "code"),
    [
        (SERVER, 200, "", 0),
        (SERVER, 404, "", 0),
        (SERVER, 500, "", 2),
        (CLIENT, 200, "", 0),
        (CLIENT, 404, "", 2),
        (CLIENT, 503, "", 2),
        (SERVER, None, "aborted", 2),
        (CLIENT, None, "unknown", 0),
        (SERVER, 500, "unknown", 0),
    ],
)
def test_the_status_follows_the_conventions(role: str, status: int | None, outcome: str, code: int) -> None:
    (span,) = spans(exchange(role, status=status, outcome=outcome))  # type: ignore[arg-type]
    assert span.status.code == code
    assert ("error.type" in plain(span.attributes)) == (code == 2)


def test_every_workload_has_its_resource() -> None:
    made = request([exchange(CLIENT), exchange(SERVER), exchange(CLIENT), exchange(server=None)], Resources(), {})
    found = {plain(r.resource.attributes)["service.name"]: len(r.scope_spans[0].spans) for r in made.resource_spans}
    assert found == {"curl": 2, "shop": 1, "unknown_service": 1}
    assert {scope.scope.name for r in made.resource_spans for scope in r.scope_spans} == {"meshscope"}


def test_an_exchange_without_a_trace_is_no_span() -> None:
    with pytest.raises(ValueError, match="no span"):
        request([exchange(sampled=None)], Resources(), {})


def test_what_came_from_the_wire_is_clean() -> None:
    dirt = "\x00\x1b\udcff"
    x = exchange(
        route=dirt, target=dirt, server=Workload(dirt, dirt), attributes={"user_agent.original": dirt}, flags=("late_join",),
        trace=TraceContext(b"\x01" * 16, b"\x02" * 8, b"", sampled=True, tracestate=dirt),
    )  # fmt: skip
    (resource,) = request([x], Resources(), {}).resource_spans
    (span,) = resource.scope_spans[0].spans
    values = [span.name, span.trace_state, *plain(resource.resource.attributes).values(), *plain(span.attributes).values()]
    assert "\ufffd\ufffd\ufffd" in values
    assert all(value.isprintable() for value in values if isinstance(value, str))


def test_remembered_attributes_are_the_same_as_new_ones_and_not_for_ever() -> None:
    known: Known = {}
    resources = Resources()
    for i in range(6000):
        x = exchange((CLIENT, SERVER)[i % 2], attributes={"a": i, "url.path": f"/{i}"}, tid=i)
        (resource,) = request([x], resources, known).resource_spans
        assert plain(resource.scope_spans[0].spans[0].attributes) == attributes(x)
    assert len(known) < 4096 + 20
    assert ("url.path", "/5999") not in known


class Sink:
    def __init__(self, receiver: Receiver, protocol: str, **options: int) -> None:
        self.receiver = receiver
        self.stats = Stats()
        settings = resolve("traces", {}, endpoint=receiver.endpoint, protocol=protocol)
        assert settings is not None
        self.sink = OtlpSpans(Exporter(settings, self.stats, retry_s=0.1), Resources(), self.stats, **options)

    def balance(self) -> tuple[int, ...]:
        n = self.stats.n
        assert n["spans_offered"] == n["spans_exported"] + n["spans_sampled_out"] + n["spans_dropped"] + n["spans_failed"]
        return tuple(n[f"spans_{name}"] for name in ("offered", "exported", "sampled_out", "dropped", "failed"))


@pytest.fixture(params=["grpc", "http/protobuf"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    with (grpc_receiver if request.param == "grpc" else http_receiver)() as receiver:
        made = Sink(receiver, request.param)
        yield made
        made.sink.close()


def test_sampled_exchanges_arrive_and_all_are_accounted_for(sink: Sink) -> None:
    sink.sink.emit([exchange(CLIENT), exchange(SERVER), exchange(sampled=False), exchange(sampled=None)])
    sink.sink.emit([])
    sink.sink.flush(0)
    sink.sink.close()
    found = [(resource["service.name"], span.kind) for resource, span in sink.receiver.spans()]
    assert sorted(found) == [("curl", Span.SPAN_KIND_CLIENT), ("shop", Span.SPAN_KIND_SERVER)]
    assert sink.balance() == (4, 2, 2, 0, 0)


def test_shedding_withholds_spans_and_counts_them(sink: Sink) -> None:
    sink.sink.shedding = True
    sink.sink.emit([exchange(), exchange(sampled=False)])
    sink.sink.shedding = False
    sink.sink.emit([exchange()])
    sink.sink.close()
    assert sink.balance() == (3, 1, 2, 0, 0)
    assert sink.stats.n["spans_shed"] == 1


def test_many_go_in_batches(sink: Sink) -> None:
    for _ in range(20):
        sink.sink.emit([exchange() for _ in range(100)])
    sink.sink.close()
    assert len(sink.receiver.spans()) == 2000
    assert len(sink.receiver.requests) <= 2000 / 512 + 20
    assert sink.balance() == (2000, 2000, 0, 0, 0)


def test_a_receiver_that_refuses_loses_spans_with_a_count(sink: Sink) -> None:
    sink.receiver.answers = [Answer("INVALID_ARGUMENT" if "grpc" in sink.sink._exporter._settings.protocol else 400)]
    sink.sink.emit([exchange() for _ in range(7)])
    sink.sink.close()
    assert sink.balance() == (7, 0, 0, 0, 7)


def test_a_receiver_that_hangs_delays_nobody_and_closing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshscope.sinks.otlp_spans._CLOSE_S", 0.05)
    hold = threading.Event()
    with http_receiver() as receiver:
        receiver.answers = [Answer(hold=hold)] * 10
        made = Sink(receiver, "http/protobuf", queue=600)
        made.sink.emit([exchange() for _ in range(600)])
        receiver.wait(1)
        made.sink.emit([exchange() for _ in range(1000)])
        made.sink.close()
        hold.set()
        assert made.balance() == (1600, 0, 0, 1088, 512)


def test_a_receiver_that_is_not_there_costs_spans_only() -> None:
    nowhere = Receiver()
    nowhere.endpoint = "http://127.0.0.1:9"
    made = Sink(nowhere, "http/protobuf")
    made.sink.emit([exchange() for _ in range(10)])
    made.sink.close()
    assert made.balance() == (10, 0, 0, 0, 10)
