"""The loop: batch -> flow -> stages -> sinks, verdicts back to the source. Nothing in it waits for anything but the source."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Sequence
from types import FrameType
from typing import Final, Protocol

from meshscope.agent.outputs import Outputs
from meshscope.agent.voice import say
from meshscope.capture import Source
from meshscope.config import Config
from meshscope.enrich.procs import Processes
from meshscope.flow import Flow, Limits, ProcessEvent
from meshscope.model import Exchange, Role, Stage, Workload
from meshscope.redact import KEPT_HEADERS, Redactor
from meshscope.route import Routes
from meshscope.stats import Stats, imbalances
from meshscope.trace import Correlate
from parsers import PROTOCOLS, protocols
from parsers.base import REQUESTS, Message

FAILED: Final = 1
_GROUP: Final = 256  # exchanges handed on at once in a replay
_LEAST_HEADERS: Final = frozenset({"traceparent", "tracestate"})
_FAMILY: Final = PROTOCOLS[0].describe(Message(REQUESTS, 0, 0, 0), None).family  # the only one there is so far


class Attendant(Protocol):
    """What a live run does beside reading."""

    def attend(self, now: int, events: Sequence[ProcessEvent]) -> None:
        """Once per batch; `now` is CLOCK_MONOTONIC."""


class Stop:
    """Whether the loop should end, and when. A second signal ends the process at once."""

    def __init__(self) -> None:
        self.asked = False
        self.deadline_ns = 0  # CLOCK_MONOTONIC; 0: none

    def __call__(self) -> None:
        """End the loop soon."""
        self.asked = True

    def on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 (a signal handler's shape)
        if self.asked:
            os._exit(FAILED)  # every hook hangs on a descriptor: the kernel takes them back
        self.asked = True


class Agent:
    """Flow, stages and sinks behind one source; `loop` reads it, in one thread, to its end."""

    def __init__(self, config: Config, source: Source, key: bytes, outputs: Outputs, stats: Stats, stop: Stop) -> None:
        self._source = source
        self._outputs = outputs
        self._stats = stats
        self._stop = stop
        self._kept = KEPT_HEADERS | {name.lower() for name in config.exchanges.headers}
        spoken, refused = protocols()
        for line in refused:
            say(line)
        self.flow = Flow(
            spoken,
            self._kept,
            stats,
            source.bind,
            Redactor(raw_paths=config.exchanges.raw_paths),
            Limits(connections=config.exchanges.connections),
        )
        self.correlate = Correlate(key, config.trace.sample, config.trace.remote_per_second, stats)
        self.processes = Processes(source)
        self._stages: tuple[Stage, ...] = (self.processes, self.correlate, Routes(config.exchanges.routes, stats))
        self._interval_ns = int(config.metrics.interval * 1e9)
        self._waiting: list[Exchange] = []
        self._whole = True  # the source was read to its end
        self._flush_ns = time.monotonic_ns() + self._interval_ns

    def loop(self, live: Attendant | None) -> None:
        """Take batches until the source ends, which a live one does after it was stopped. Raises CaptureError."""
        # A batch's exchanges live and die together and hold no cycles; at the default threshold the collector would look at
        # them a dozen times (a tenth to a fifth of the core's cost). What the start made stays.
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        source, flow, n = self._source, self.flow, self._stats.n
        for batch in source.batches():
            flow.wall_offset_ns = source.wall_offset_ns
            exchanges = flow.step(batch) if batch else []
            n["batches"] += bool(batch)
            now = time.monotonic_ns()
            if live is not None:
                self.hand_on(exchanges if batch else flow.tick(now))
                source.apply(flow.take_verdicts())
                live.attend(now, flow.take_process_events())
            else:
                self._gather(exchanges, together=not batch)
                if self._stop.asked:
                    self._whole = False
                    return
            if now >= self._flush_ns:
                self._flush_ns = now + self._interval_ns
                self._outputs.flush()
        self._gather([], together=True)

    def hand_on(self, exchanges: list[Exchange]) -> None:
        """Through the stages to the sinks."""
        if exchanges:
            for stage in self._stages:
                exchanges = stage(exchanges)
            self._outputs.emit(exchanges)

    def _gather(self, exchanges: list[Exchange], *, together: bool) -> None:
        """In a replay stages see groups that do not depend on how the input is split. together: all that waits is one."""
        self._waiting += exchanges
        while len(self._waiting) >= (1 if together else _GROUP):
            self.hand_on(self._waiting[:_GROUP])
            del self._waiting[:_GROUP]

    def finish(self) -> None:
        """The input has ended: let out what is open, deliver, check that everything is accounted for."""
        self._gather(self.flow.finish(), together=True)
        kernel = self.take_counters() and self._whole
        self._outputs.flush()
        self._outputs.close()
        n = self._stats.n
        for line in imbalances(n, kernel=kernel):
            n["equations_unbalanced"] += 1
            say(f"does not add up: {line}")
        lost = max(n["kernel_bytes_lost"], n["bytes_lost"])  # told by the kernel, and seen as holes: the same bytes
        dropped = n["spans_dropped"] + n["spans_failed"] + n["console_failed"] + n["record_failed"]
        say(f"{n['exchanges']} exchanges, {n['records']} chunks, {lost} bytes lost, {dropped} dropped on the way out")

    def take_counters(self) -> bool:
        """The kernel's counters among ours. False: nobody knows them, as with a recording that was cut short."""
        counters = self._source.counters()
        for name, value in counters.items():
            self._stats.n["kernel_" + name] = value
        return bool(counters)

    def shed(self, *, spans: bool, headers: bool) -> None:
        """Do without spans, without headers but those that name the trace; or with them again."""
        if self._outputs.spans is not None:
            self._outputs.spans.shedding = spans
        self.flow.keep(_LEAST_HEADERS if headers else self._kept)

    def measure_active(self) -> None:
        """Requests under way now, by service, for the gauge."""
        counts: dict[tuple[Role, Workload, str], int] = {}
        for (role, tgid), n in self.flow.active().items():
            identity = self._source.processes.get(tgid)
            if identity is not None and n:
                key = (role, self.processes.workload(identity.service), _FAMILY)
                counts[key] = counts.get(key, 0) + n
        self._outputs.golden.set_active(counts)
