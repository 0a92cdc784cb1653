"""Rows of the metric table as named instruments: what OTLP and Prometheus both say, each in its own way.

Names are OpenTelemetry's. Everything is read from live rows as golden.py allows, so these functions may run in any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from meshscope.model import Workload
from meshscope.sinks.conventions import names
from meshscope.sinks.golden import DURATION_BOUNDS, SIZE_BOUNDS, Golden, Row


class Histogram(NamedTuple):
    """One row's part of a histogram. counts: per bound, and one for what is above all; total: the sum of what was measured."""

    name: str
    unit: str
    description: str
    bounds: Sequence[float]
    counts: list[int]
    total: float


class Number(NamedTuple):
    """One counter, or one level that goes up and down (``monotonic`` False)."""

    name: str
    unit: str
    description: str
    monotonic: bool
    workload: Workload
    attributes: dict[str, str]
    value: int


def histograms(row: Row) -> Iterator[Histogram]:
    """What a row measures; totals may be one exchange ahead of counts, never behind what was seen before."""
    family, role = row.series.family, row.series.role
    found = names(family)
    what = f"{family.upper()} {role}"
    yield Histogram(
        f"{family}.{role}.{found.duration}", "s", f"Duration of {what} requests.", DURATION_BOUNDS, row.buckets[:], row.sum
    )
    if found.sizes:
        for half, counts, total in (
            ("request", row.request_sizes, row.request_bytes),
            ("response", row.response_sizes, row.response_bytes),
        ):
            yield Histogram(
                f"{family}.{role}.{half}.body.size", "By", f"Size of {what} {half} bodies.", SIZE_BOUNDS, counts[:], total
            )


def numbers(golden: Golden) -> Iterator[Number]:
    """What is under way, and what cannot be told."""
    for active, n in golden.active.items():  # replaced whole, never changed
        name = names(active.family).active
        if name:
            yield Number(
                f"{active.family}.{active.role}.{name}",
                "{request}",
                f"Number of active {active.family.upper()} {active.role} requests.",
                False,
                active.workload,
                {},
                n,
            )
    for (workload, reason), n in list(golden.unknown.items()):
        yield Number(
            "meshscope.unknown_exchanges",
            "{exchange}",
            "Exchanges whose outcome is not known, by reason; they count in no request, duration or error metric.",
            True,
            workload,
            {"reason": reason},
            n,
        )
