"""The agent's own counters: one flat dict of name -> number, every name declared here with a sentence.

Kernel counters arrive under their names of kprobes/meshscope.h in lower case (``bytes_moved``) with prefix
``kernel_``. Adding to an undeclared counter raises KeyError, so a typo cannot lose a loss.
"""

from __future__ import annotations

from typing import Final

COUNTERS: Final[dict[str, str]] = {}  # name -> what it counts; extended below by area

# sinks: what becomes of exchanges. exchanges given to spans = exported + sampled out + dropped + failed
COUNTERS.update(
    {
        "golden_exchanges": "Exchanges handed to the metric table, each end once.",
        "golden_unknown": "Exchanges kept out of every request, duration and error metric because their outcome is not known.",
        "series_overflowed": "Exchanges counted in an overflow row because the metric table was full.",
        "series_expired": "Rows of the metric table forgotten because nothing was counted in them for long.",
        "spans_offered": "Exchanges handed to the span exporter.",
        "spans_sampled_out": "Exchanges that are not exported as spans because their trace is not sampled, or the budget forbids it.",
        "spans_shed": "Of those sampled out, the ones whose trace was sampled: withheld to keep the budget.",
        "spans_dropped": "Sampled exchanges dropped because the queue of the span exporter was full or the agent stopped.",
        "spans_exported": "Spans that the receiver accepted.",
        "spans_failed": "Spans that could not be delivered, or that the receiver rejected.",
        "otlp_rejected": "Spans and metric points that a receiver rejected although it took the rest of the request.",
        "otlp_requests": "Export requests sent, retries included.",
        "otlp_retries": "Export requests sent again after a failure that may pass.",
        "metrics_exports": "Times the metric table was delivered to the OTLP receiver.",
        "metrics_exports_failed": "Times the metric table could not be delivered; its totals are kept.",
        "metrics_exports_skipped": "Times the metric table was not sent because the export before was still under way.",
        "scrapes": "Times the metrics were fetched as Prometheus text.",
        "scrapes_refused": "Connections to the metrics address turned away because too many were open.",
        "console_failed": "Exchanges not printed because standard output is gone.",
        "record_failed": "Exchanges not written to the record file because writing failed.",
    },
)


class Stats:
    """Counters of one agent. Increment with ``stats.n[name] += 1``; read with ``snapshot``."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n: dict[str, int] = dict.fromkeys(COUNTERS, 0)

    def snapshot(self) -> dict[str, int]:
        """A copy, safe to hand to another thread."""
        return dict(self.n)
