"""The metric table as OTLP metrics: cumulative, with the start time of each row, once per interval, in the worker's thread.

The SDK's data types through the official exporters: once per interval their cost does not matter, and encoding, retries and
transports are theirs. Nothing of the SDK runs per exchange. Rows keep their totals whatever becomes of an export.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, cast

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from meshscope.model import Exchange, Workload
from meshscope.sinks.conventions import SCHEMA_URL, clean
from meshscope.sinks.families import histograms, numbers
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_resource import AGENT, Resources
from meshscope.sinks.otlp_settings import OtlpSettings
from meshscope.sinks.worker import Fates, Worker
from meshscope.stats import COUNTERS, Stats

logger = logging.getLogger(__name__)

_CUMULATIVE: Final = AggregationTemporality.CUMULATIVE
_POINTS: Final = 3000  # a request; it stays under the 4 MB that gRPC servers take by default
_CLOSE_S: Final = 3.0


class _LastWords(logging.Handler):
    """The official exporters tell their log, not their caller, why an export failed."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = clean(record.getMessage())


class OtlpMetrics:
    """The sink. It reads the table and the counters when an export begins; while one is under way the next is left out."""

    def __init__(self, golden: Golden, settings: OtlpSettings, resources: Resources, stats: Stats) -> None:
        self._golden = golden
        self._url = settings.url
        self._exporter = open_exporter(settings)
        self._resources = resources
        self._stats = stats
        self._words = _LastWords()
        self._failed = 0  # exports since the receiver went away
        theirs = logging.getLogger("opentelemetry.exporter.otlp")
        theirs.propagate = False
        theirs.addHandler(self._words)
        self._start_ns = time.time_ns()
        self._now_ns = self._start_ns
        self._worker = Worker[None](
            "meshscope-metrics",
            self._export,
            stats,
            Fates("metrics_exports", "metrics_exports_failed", "metrics_exports_skipped"),
            abort=self._exporter.shutdown,
            capacity=1,
        )

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        """The table has counted them."""

    def flush(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._worker.put((None,))

    def close(self) -> None:
        """Deliver the export that the last flush began, for at most three seconds."""
        self._worker.close(_CLOSE_S)
        self._exporter.shutdown()
        logging.getLogger("opentelemetry.exporter.otlp").removeHandler(self._words)

    def _export(self, asked: list[None]) -> int:
        data = snapshot(self._golden, self._resources, self._stats.snapshot(), self._start_ns, self._now_ns)
        taken = self._exporter.export(data) is MetricExportResult.SUCCESS
        if taken and self._failed:
            logger.warning("OTLP metrics to %s: delivered again, %d exports missed", self._url, self._failed)
        elif not taken and not self._failed:
            logger.warning("OTLP metrics to %s: %s", self._url, self._words.text or "not delivered")
        self._failed = 0 if taken else self._failed + 1
        return len(asked) if taken else 0


def open_exporter(settings: OtlpSettings) -> MetricExporter:
    """The official exporter of a protocol; gRPC's library (20 MB) is loaded only here. Raises OSError for unusable files."""
    headers = dict(settings.headers)
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcExporter  # noqa: PLC0415

        from meshscope.sinks.otlp_grpc import compression, credentials  # noqa: PLC0415

        return GrpcExporter(
            endpoint=settings.url,
            insecure=not settings.secure,
            credentials=credentials(settings) if settings.secure else None,
            headers=headers,
            timeout=settings.timeout_s,
            compression=compression(settings),
            max_export_batch_size=_POINTS,
        )
    from opentelemetry.exporter.otlp.proto.http import Compression  # noqa: PLC0415
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpExporter  # noqa: PLC0415

    return HttpExporter(
        endpoint=settings.url,
        certificate_file=settings.certificate or None,
        client_key_file=settings.client_key or None,
        client_certificate_file=settings.client_certificate or None,
        headers=headers,
        timeout=settings.timeout_s,
        compression=Compression.Gzip if settings.gzip else Compression.NoCompression,
        max_export_batch_size=_POINTS,
    )


def snapshot(golden: Golden, resources: Resources, counters: Mapping[str, int], start_ns: int, now_ns: int) -> MetricsData:
    """Everything there is to say at ``now_ns``: a resource per workload, a metric per name in it, a point per row."""
    found: dict[Workload, dict[str, Metric]] = {}
    for workload, metric, point in _points(golden, counters, start_ns, now_ns):
        points = found.setdefault(workload, {}).setdefault(metric.name, metric).data.data_points
        cast("list[HistogramDataPoint | NumberDataPoint]", points).append(point)
    return MetricsData(
        [
            ResourceMetrics(
                resources.resource(workload),
                [ScopeMetrics(resources.instrumentation, list(metrics.values()), SCHEMA_URL)],
                SCHEMA_URL,
            )
            for workload, metrics in found.items()
        ]
    )


def _points(
    golden: Golden, counters: Mapping[str, int], start_ns: int, now_ns: int
) -> Iterator[tuple[Workload, Metric, HistogramDataPoint | NumberDataPoint]]:
    for number in numbers(golden):
        whole = Sum([], _CUMULATIVE, number.monotonic)
        point = NumberDataPoint(dict(number.attributes), start_ns, now_ns, number.value)
        yield number.workload, Metric(number.name, number.description, number.unit, whole), point
    for name, n in counters.items():
        metric = Metric(f"meshscope.{name}", COUNTERS.get(name, ""), "1", Sum([], _CUMULATIVE, is_monotonic=True))
        yield AGENT, metric, NumberDataPoint({}, start_ns, now_ns, n)
    for row in list(golden.rows.values()):
        attributes = row.series.attributes()
        for each in histograms(row):
            metric = Metric(each.name, each.description, each.unit, Histogram([], _CUMULATIVE))
            yield (
                row.series.workload,
                metric,
                HistogramDataPoint(
                    attributes=attributes,
                    start_time_unix_nano=row.start_ns,
                    time_unix_nano=max(now_ns, row.start_ns),
                    count=sum(each.counts),
                    sum=each.total,
                    bucket_counts=each.counts,
                    explicit_bounds=each.bounds,
                    min=None,  # type: ignore[arg-type] # the table does not keep them; the encoder leaves them out
                    max=None,  # type: ignore[arg-type]
                ),
            )
