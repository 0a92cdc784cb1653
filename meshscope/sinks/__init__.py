"""Where exchanges and rows go. ``open_sinks`` builds what the settings ask for, in the order of ``SINKS``.

A new sink is a file with a class of model.Sink's shape and a function here; modules are imported only when they are asked for, so
that nobody pays for OpenTelemetry or a server that is not used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Final, Literal, NamedTuple

from meshscope.model import Sink
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_settings import OtlpSettings
from meshscope.stats import Stats


@dataclass(frozen=True, slots=True)
class SinkSettings:
    """What is wanted; empty or None: not that.

    console: how standard output looks. record: a file for redacted exchanges. prometheus: (address, port) to serve on.
    traces, metrics: OTLP, from ``otlp_settings.resolve``. queue: exchanges that may wait to become spans.
    """

    console: Literal["text", "json", "none"] = "none"
    record: str = ""
    prometheus: tuple[str, int] | None = None
    traces: OtlpSettings | None = None
    metrics: OtlpSettings | None = None
    queue: int = 4096
    stdout: BinaryIO = field(default_factory=lambda: sys.stdout.buffer)


class Wiring(NamedTuple):
    """What sinks share. stop: ends the run, without an error."""

    settings: SinkSettings
    golden: Golden
    stats: Stats
    stop: Callable[[], None]


def _console(wiring: Wiring) -> Sink | None:
    if wiring.settings.console == "none":
        return None
    from meshscope.sinks.console import Console, wants_colour  # noqa: PLC0415

    out = wiring.settings.stdout
    return Console(out, wiring.stats, wiring.stop, wiring.settings.console, colour=wants_colour(out, os.environ))


def _record(wiring: Wiring) -> Sink | None:
    if not wiring.settings.record:
        return None
    from meshscope.sinks.record import Record  # noqa: PLC0415

    return Record(wiring.settings.record, wiring.stats)


def _prometheus(wiring: Wiring) -> Sink | None:
    if wiring.settings.prometheus is None:
        return None
    from meshscope.sinks.prometheus import Prometheus  # noqa: PLC0415

    return Prometheus(wiring.golden, wiring.stats, *wiring.settings.prometheus)


def _spans(wiring: Wiring) -> Sink | None:
    if wiring.settings.traces is None:
        return None
    from meshscope.sinks.otlp import open_spans  # noqa: PLC0415

    return open_spans(wiring.settings.traces, wiring.stats, wiring.settings.queue)


def _metrics(wiring: Wiring) -> Sink | None:
    if wiring.settings.metrics is None:
        return None
    from meshscope.sinks.otlp import open_metrics  # noqa: PLC0415

    return open_metrics(wiring.settings.metrics, wiring.golden, wiring.stats)


SINKS: Final[dict[str, Callable[[Wiring], Sink | None]]] = {
    "console": _console,
    "record": _record,
    "prometheus": _prometheus,
    "spans": _spans,
    "metrics": _metrics,
}


def open_sinks(wiring: Wiring) -> dict[str, Sink]:
    """The table first, as "golden", because the others read it; then every sink that is wanted, by its name in SINKS.

    Raises OSError for a file that cannot be written, an address in use or a certificate that cannot be read; what was opened
    before is closed then.
    """
    opened: dict[str, Sink] = {"golden": wiring.golden}
    try:
        for name, build in SINKS.items():
            sink = build(wiring)
            if sink is not None:
                opened[name] = sink
    except OSError:
        for sink in opened.values():
            sink.close()
        raise
    return opened
