from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

from meshscope.model import CLIENT, SERVER
from meshscope.sinks.golden import DURATION_BOUNDS, Golden
from meshscope.sinks.otlp_metrics import OtlpMetrics, snapshot
from meshscope.sinks.otlp_resource import Resources
from meshscope.sinks.otlp_settings import resolve
from meshscope.stats import COUNTERS, Stats
from tests.meshscope.exchanges import SHOP, WALL_NS, exchange
from tests.receivers import Answer, Receiver, grpc_receiver, http_receiver, plain

NOW_NS = WALL_NS + 60 * 10**9
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


class Sink:
    def __init__(self, receiver: Receiver, protocol: str) -> None:
        self.receiver = receiver
        self.stats = Stats()
        self.golden = Golden(self.stats)
        settings = resolve("metrics", {}, endpoint=receiver.endpoint, protocol=protocol)
        assert settings is not None
        self.protocol = protocol
        self.sink = OtlpMetrics(self.golden, settings, Resources(), self.stats)

    def export(self, now_ns: int = NOW_NS) -> None:
        """Flush, and wait until the receiver has answered the rows' request as well as the agent's."""
        before = self.stats.n["metrics_exports"] + self.stats.n["metrics_exports_failed"]
        seen = len(self.receiver.requests)
        self.sink.flush(now_ns)
        self.receiver.wait(seen + 1)
        while self.stats.n["metrics_exports"] + self.stats.n["metrics_exports_failed"] == before:
            self.sink._worker._thread.join(0.001)


@pytest.fixture(params=["grpc", "http/protobuf"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    with (grpc_receiver if request.param == "grpc" else http_receiver)() as receiver:
        made = Sink(receiver, request.param)
        yield made
        made.sink.close()


def test_histograms_are_cumulative_and_carry_their_start(sink: Sink) -> None:
    sink.golden.emit([exchange(duration_ns=6_000_000), exchange(duration_ns=60 * 10**9)])
    sink.export()
    metric = sink.receiver.metrics()["shop", "http.server.request.duration"]
    assert (metric.unit, metric.histogram.aggregation_temporality) == ("s", CUMULATIVE)
    (point,) = metric.histogram.data_points
    assert (point.count, point.sum) == (2, pytest.approx(60.006))
    assert list(point.explicit_bounds) == list(DURATION_BOUNDS)
    assert list(point.bucket_counts) == [0, 1, *[0] * 12, 1]
    assert (point.start_time_unix_nano, point.time_unix_nano) == (WALL_NS + 5 * 10**9, NOW_NS)
    assert plain(point.attributes) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "http.route": "/items/{id}",
        "network.protocol.version": "1.1",
        "service.peer.name": "curl",
    }
    sizes = sink.receiver.metrics()["shop", "http.server.response.body.size"]
    assert (sizes.unit, sizes.histogram.data_points[0].sum) == ("By", 1024)


def test_each_export_tells_the_whole(sink: Sink) -> None:
    for n in (1, 2, 3):
        sink.golden.emit([exchange(CLIENT, status=404)])
        sink.export(NOW_NS + n)
        (point,) = sink.receiver.metrics()["curl", "http.client.request.duration"].histogram.data_points
        assert (point.count, point.time_unix_nano) == (n, NOW_NS + n)
        assert plain(point.attributes)["error.type"] == "404"
    assert sink.stats.n["metrics_exports"] == 3


def test_totals_outlive_a_receiver_that_is_away(sink: Sink) -> None:
    refuse = Answer("INVALID_ARGUMENT" if sink.protocol == "grpc" else 400)
    sink.golden.emit([exchange()])
    sink.receiver.answers = [refuse]
    sink.export()
    assert sink.stats.n["metrics_exports_failed"] == 1
    sink.golden.emit([exchange()])
    sink.export()
    (point,) = sink.receiver.metrics()["shop", "http.server.request.duration"].histogram.data_points
    assert point.count == 2


def test_what_the_agent_knows_of_itself_goes_along(sink: Sink) -> None:
    sink.golden.set_active({(SERVER, SHOP, "http"): 3})
    sink.golden.emit([exchange(outcome="unknown", request={"doubts": ("bytes_lost",)})])
    sink.stats.n["spans_dropped"] = 9
    sink.export()
    found = sink.receiver.metrics()
    active = found["shop", "http.server.active_requests"].sum
    assert (active.is_monotonic, active.data_points[0].as_int) == (False, 3)
    unknown = found["shop", "meshscope.unknown_exchanges"].sum
    assert unknown.is_monotonic
    assert (plain(unknown.data_points[0].attributes), unknown.data_points[0].as_int) == ({"reason": "bytes_lost"}, 1)
    assert found["meshscope", "meshscope.spans_dropped"].sum.data_points[0].as_int == 9
    assert {f"meshscope.{name}" for name in COUNTERS} == {name for service, name in found if service == "meshscope"}


def test_closing_waits_for_the_last_flush(sink: Sink) -> None:
    sink.golden.emit([exchange()])
    sink.sink.emit([])
    sink.sink.flush(NOW_NS)
    sink.sink.close()
    assert sink.receiver.metrics()["shop", "http.server.request.duration"].histogram.data_points[0].count == 1


def test_requests_are_bounded_and_together_complete(sink: Sink) -> None:
    sink.golden.emit([exchange((CLIENT, SERVER)[i % 2], route=f"/{i}/" + "x" * 100) for i in range(2500)])
    sink.sink.flush(NOW_NS)
    sink.sink.close()
    points = [
        (plain(r.resource.attributes)["service.name"], m.name, frozenset(plain(p.attributes).items()))
        for request in sink.receiver.requests
        for r in request.resource_metrics
        for s in r.scope_metrics
        for m in s.metrics
        for p in m.histogram.data_points
    ]
    assert len(set(points)) == len(points) == 7500
    assert max(request.ByteSize() for request in sink.receiver.requests) < 4_000_000


def test_a_metric_appears_once_in_its_resource() -> None:
    golden = Golden(Stats())
    golden.emit([exchange((CLIENT, SERVER)[i % 2], route=f"/{i}") for i in range(50)])
    data = snapshot(golden, Resources(), {}, 1, NOW_NS)
    found = [(r.resource, m) for r in data.resource_metrics for s in r.scope_metrics for m in s.metrics]
    names = [(resource.attributes["service.name"], metric.name) for resource, metric in found]
    assert len(set(names)) == len(names) == 6
    assert all(metric.description and metric.unit for _, metric in found)


def test_one_line_when_the_receiver_goes_and_comes(sink: Sink, caplog: pytest.LogCaptureFixture) -> None:
    refuse = Answer("INVALID_ARGUMENT" if sink.protocol == "grpc" else 400)
    for answers in ([refuse], [refuse], []):
        sink.receiver.answers = answers
        sink.export()
    away, back = (record.getMessage() for record in caplog.records if record.name.startswith("meshscope"))
    assert sink.sink._url in away
    assert "delivered again, 2 exports missed" in back
