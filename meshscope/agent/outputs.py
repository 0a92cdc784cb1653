"""The sinks of one run, built from the configuration."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from meshscope.agent.voice import AgentError
from meshscope.config import Config, ConfigError
from meshscope.model import Exchange, Sink
from meshscope.sinks.console import Console, Format, wants_colour
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_settings import Signal, resolve
from meshscope.sinks.prometheus import Prometheus
from meshscope.sinks.record import Record
from meshscope.stats import Stats

if TYPE_CHECKING:
    from meshscope.sinks.otlp import OtlpSpans


class Outputs:
    """The sinks of one run, in the order in which they see a batch: the metric table first, what may be slow last.

    Raises ConfigError and AgentError. ``stop`` is called when nobody reads standard output any more.
    """

    def __init__(self, config: Config, stats: Stats, stop: Callable[[], None]) -> None:
        self.golden = Golden(stats, config.metrics.series)
        self.spans: OtlpSpans | None = None
        self.sinks: list[Sink] = [self.golden]
        self._config = config
        self._stats = stats
        try:
            self._open_exports()
            if config.outputs.record:
                self.sinks.append(Record(config.outputs.record, stats))
        except OSError as error:
            self.close()
            raise AgentError(_reason(error)) from error
        except BaseException:
            self.close()
            raise
        console = config.outputs.console
        if console != "none":
            out = sys.stdout.buffer
            self.sinks.append(Console(out, stats, stop, cast("Format", console), colour=wants_colour(out, os.environ)))

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        """Hand one batch to every sink."""
        for sink in self.sinks:
            sink.emit(exchanges)

    def flush(self) -> None:
        """The interval is over."""
        now = time.time_ns()
        for sink in self.sinks:
            sink.flush(now)

    def close(self) -> None:
        """Close every sink, all at once, so that the slowest one's patience is the whole wait. Idempotent."""
        ends = [threading.Thread(target=sink.close) for sink in self.sinks]
        self.sinks.clear()
        for end in ends:
            end.start()
        for end in ends:
            end.join()

    def _open_exports(self) -> None:
        prometheus = self._config.outputs.prometheus
        if prometheus:
            address, _, port = prometheus.rpartition(":")
            self.sinks.append(Prometheus(self.golden, self._stats, address.strip("[]"), int(port)))
        otlp = self._config.otlp
        ways = {}
        signals: tuple[tuple[Signal, str], ...] = (("traces", otlp.traces_endpoint), ("metrics", otlp.metrics_endpoint))
        for name, own in signals:
            try:
                ways[name] = resolve(
                    name,
                    os.environ,
                    endpoint=otlp.endpoint,
                    signal_endpoint=own,
                    protocol=otlp.protocol,
                    headers=otlp.headers,
                    timeout_s=otlp.timeout,
                )
            except ValueError as error:
                where, _, what = str(error).partition(": ")
                raise ConfigError(where, what) from error
        if not any(ways.values()):
            return
        from meshscope.sinks.otlp import open_metrics, open_spans  # noqa: PLC0415 (tens of MiB that a run without it need not pay)

        if ways["metrics"]:
            self.sinks.append(open_metrics(ways["metrics"], self.golden, self._stats))
        if ways["traces"]:
            self.spans = open_spans(ways["traces"], self._stats, otlp.queue)
            self.sinks.append(self.spans)


def _reason(error: OSError) -> str:
    """One line of an OSError, whose text may already be one."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
