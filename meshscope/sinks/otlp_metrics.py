"""The metric table as OTLP metrics: cumulative, with the start time of each row, once per interval, in the worker's thread.

Built as protobuf directly, which the transport takes as it is; rows keep their totals whatever becomes of an export.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, HistogramDataPoint, Metric, ScopeMetrics

from meshscope.model import Exchange, Workload
from meshscope.sinks.conventions import SCHEMA_URL
from meshscope.sinks.families import histograms, numbers
from meshscope.sinks.golden import Golden, Row
from meshscope.sinks.otlp_export import Exporter
from meshscope.sinks.otlp_resource import AGENT, Resources, put
from meshscope.sinks.worker import Fates, Worker
from meshscope.stats import COUNTERS, Stats

_CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
_ROWS: Final = 1000  # a request; with three histograms a row it stays under the 4 MB that gRPC servers take by default
_CLOSE_S: Final = 3.0


class OtlpMetrics:
    """The sink. It reads the table and the counters when an export begins; while one is under way the next is left out."""

    def __init__(self, golden: Golden, exporter: Exporter, resources: Resources, stats: Stats) -> None:
        self._golden = golden
        self._exporter = exporter
        self._resources = resources
        self._stats = stats
        self._start_ns = time.time_ns()
        self._now_ns = self._start_ns
        self._worker = Worker[None](
            "meshscope-metrics",
            self._export,
            stats,
            Fates("metrics_exports", "metrics_exports_failed", "metrics_exports_skipped"),
            abort=exporter.abort,
            capacity=1,
        )

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        """The table has counted them."""

    def flush(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._worker.put((None,))

    def close(self) -> None:
        """Deliver the export that the last flush began, for at most three seconds."""
        self._exporter.hurry()
        self._worker.close(_CLOSE_S)
        self._exporter.close()

    def _export(self, asked: list[None]) -> int:
        for request, points in requests(self._golden, self._resources, self._stats.snapshot(), self._start_ns, self._now_ns):
            if self._exporter.send(request, points) == 0:
                return 0
        return len(asked)


def requests(
    golden: Golden, resources: Resources, counters: Mapping[str, int], start_ns: int, now_ns: int
) -> Iterator[tuple[ExportMetricsServiceRequest, int]]:
    """Everything there is to say at ``now_ns``, in requests of bounded size, each with its number of points."""
    request = _Request(resources, now_ns)
    for number in numbers(golden):
        metric = request.metric(number.workload, number.name, number.unit, number.description)
        request.add_number(metric, number.value, start_ns, monotonic=number.monotonic, attributes=number.attributes)
    for name, n in counters.items():
        metric = request.metric(AGENT, f"meshscope.{name}", "1", COUNTERS.get(name, ""))
        request.add_number(metric, n, start_ns, monotonic=True, attributes={})
    yield request.message, request.points
    rows = iter(list(golden.rows.values()))
    while part := list(islice(rows, _ROWS)):
        request = _Request(resources, now_ns)
        for row in part:
            request.add_row(row)
        yield request.message, request.points


class _Request:
    """One request being filled: a resource per workload, a metric per name in it."""

    def __init__(self, resources: Resources, now_ns: int) -> None:
        self.message = ExportMetricsServiceRequest()
        self.points = 0
        self._resources = resources
        self._now_ns = now_ns
        self._scopes: dict[Workload, ScopeMetrics] = {}
        self._metrics: dict[tuple[Workload, str], Metric] = {}

    def metric(self, workload: Workload, name: str, unit: str, description: str) -> Metric:
        found = self._metrics.get((workload, name))
        if found is None:
            scope = self._scopes.get(workload)
            if scope is None:
                resource = self.message.resource_metrics.add(resource=self._resources.of(workload), schema_url=SCHEMA_URL)
                scope = self._scopes[workload] = resource.scope_metrics.add(scope=self._resources.scope, schema_url=SCHEMA_URL)
            found = self._metrics[workload, name] = scope.metrics.add(name=name, unit=unit, description=description)
        return found

    def add_number(self, metric: Metric, value: int, start_ns: int, *, monotonic: bool, attributes: Mapping[str, str]) -> None:
        metric.sum.aggregation_temporality = _CUMULATIVE
        metric.sum.is_monotonic = monotonic
        point = metric.sum.data_points.add(start_time_unix_nano=start_ns, time_unix_nano=self._now_ns, as_int=value)
        put(point.attributes, attributes)
        self.points += 1

    def add_row(self, row: Row) -> None:
        labels = HistogramDataPoint()
        put(labels.attributes, row.series.attributes())
        data = labels.SerializeToString()  # once for all points of the row: parsing it again is cheaper than making it again
        for histogram in histograms(row):
            metric = self.metric(row.series.workload, histogram.name, histogram.unit, histogram.description)
            metric.histogram.aggregation_temporality = _CUMULATIVE
            point = metric.histogram.data_points.add(
                start_time_unix_nano=row.start_ns,
                time_unix_nano=max(self._now_ns, row.start_ns),
                count=sum(histogram.counts),
                sum=histogram.total,
                explicit_bounds=histogram.bounds,
                bucket_counts=histogram.counts,
            )
            point.MergeFromString(data)
            self.points += 1
