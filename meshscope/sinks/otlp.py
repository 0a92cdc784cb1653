"""OTLP, put together: spans and metrics to the endpoints the settings name."""

from __future__ import annotations

from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_export import Exporter
from meshscope.sinks.otlp_metrics import OtlpMetrics
from meshscope.sinks.otlp_resource import Resources
from meshscope.sinks.otlp_settings import OtlpSettings
from meshscope.sinks.otlp_spans import OtlpSpans
from meshscope.stats import Stats

__all__ = ("OtlpMetrics", "OtlpSpans", "open_metrics", "open_spans")


def open_spans(settings: OtlpSettings, stats: Stats, queue: int) -> OtlpSpans:
    """The span sink. Raises OSError if a certificate file cannot be used; an endpoint that is down is no error."""
    return OtlpSpans(Exporter(settings, stats), Resources(), stats, queue=queue)


def open_metrics(settings: OtlpSettings, golden: Golden, stats: Stats) -> OtlpMetrics:
    """The metrics sink; raises as ``open_spans`` does."""
    return OtlpMetrics(golden, settings, Resources(), stats)
