"""The metric table as Prometheus text (exposition format 0.0.4), rendered by hand: a client library takes fifty times as long.

Names and labels are those of OpenTelemetry's metrics, translated by its "Prometheus and OpenMetrics Compatibility" rules; the
workload, which OTLP puts into the resource, becomes ``service_name``, ``service_namespace`` and ``container_id``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

from meshscope.model import Workload
from meshscope.sinks.conventions import Value, clean, resource_attributes
from meshscope.sinks.families import Histogram, histograms, numbers
from meshscope.sinks.golden import Golden, Row, Series
from meshscope.stats import COUNTERS

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UNITS: Final = {"s": "_seconds", "By": "_bytes"}
_NOT_A_NAME: Final = re.compile(r"[^a-zA-Z0-9_]")


class Exposition:
    """Renders; remembers each row's labels. For one thread at a time."""

    def __init__(self, golden: Golden) -> None:
        self._golden = golden
        self._labels: dict[Series, str] = {}

    def render(self, counters: Mapping[str, int]) -> Iterator[str]:
        """The whole page in pieces, each of whole lines."""
        rows = list(self._golden.rows.values())
        if len(self._labels) > 2 * len(rows) + 100:
            self._labels.clear()
        families: dict[str, list[tuple[Row, Histogram]]] = {}
        for row in rows:
            for histogram in histograms(row):
                families.setdefault(histogram.name, []).append((row, histogram))
        for points in families.values():
            first = points[0][1]
            name = metric_name(first.name, first.unit)
            yield _head(name, "histogram", first.description)
            bounds = [*(f'"{int(b) if b == int(b) else b}"' for b in first.bounds), '"+Inf"']
            for row, histogram in points:
                yield _histogram(name, self._row_labels(row), bounds, histogram)
        yield from self._numbers()
        for name, n in counters.items():
            full = f"meshscope_{name}_total"
            yield f"{_head(full, 'counter', COUNTERS.get(name, ''))}{full} {n}\n"

    def _numbers(self) -> Iterator[str]:
        seen = ""
        for number in sorted(numbers(self._golden), key=lambda n: n.name):
            name = metric_name(number.name, number.unit) + ("_total" if number.monotonic else "")
            head = "" if name == seen else _head(name, "counter" if number.monotonic else "gauge", number.description)
            seen = name
            yield f"{head}{name}{{{labels(number.workload, number.attributes)}}} {number.value}\n"

    def _row_labels(self, row: Row) -> str:
        found = self._labels.get(row.series)
        if found is None:
            found = self._labels[row.series] = labels(row.series.workload, row.series.attributes())
        return found


def metric_name(name: str, unit: str) -> str:
    """``http.server.request.duration`` in ``s`` is ``http_server_request_duration_seconds``."""
    return _NOT_A_NAME.sub("_", name) + _UNITS.get(unit, "")


def labels(workload: Workload, attributes: Mapping[str, Value]) -> str:
    """``a="b",c="d"``, escaped; never empty, because the service's name is always in it."""
    return ",".join(
        f'{_NOT_A_NAME.sub("_", key)}="{_escape(value)}"'
        for key, value in {**resource_attributes(workload), **attributes}.items()
    )


def _escape(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    text = clean(str(value))  # without line ends, from here on
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _head(name: str, kind: str, description: str) -> str:
    description = clean(description).replace("\\", "\\\\")
    return f"# HELP {name} {description}\n# TYPE {name} {kind}\n"


def _histogram(name: str, row_labels: str, bounds: list[str], histogram: Histogram) -> str:
    prefix = f"{name}_bucket{{{row_labels},le="
    lines = []
    count = 0
    for bound, n in zip(bounds, histogram.counts, strict=True):
        count += n
        lines.append(f"{prefix}{bound}}} {count}\n")
    lines.append(f"{name}_sum{{{row_labels}}} {histogram.total}\n{name}_count{{{row_labels}}} {count}\n")
    return "".join(lines)
