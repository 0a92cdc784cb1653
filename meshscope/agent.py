"""The composition root: the only module where capture and sinks meet.

Everything is built first, and may fail with one line; then one loop runs in one thread::

    source ── batch ── flow ── stages ── sinks      verdicts back to the source, process events to targets

Whatever is slow (network, /proc, ELF files) has a thread of its own behind a bounded queue; nothing here waits for it.
"""

from __future__ import annotations

import dataclasses
import logging
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, cast

from meshscope.budget import Governor
from meshscope.budget import Limits as Allowance
from meshscope.capture import CaptureError, CaptureSettings, Source, trial
from meshscope.capture.bpf import BpfSource
from meshscope.capture.record import Recorder, Replay
from meshscope.capture.targets import ProcessEvent, Selection, Targets
from meshscope.config import Config, ConfigError
from meshscope.enrich.procs import Processes
from meshscope.flow import Flow, Limits
from meshscope.model import Exchange, Role, Sink, Stage, Workload
from meshscope.redact import KEPT_HEADERS, Redactor
from meshscope.route import Routes
from meshscope.sinks.console import Console, Format, wants_colour
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_settings import Signal, resolve
from meshscope.sinks.prometheus import Prometheus
from meshscope.sinks.record import Record
from meshscope.stats import Stats, imbalances
from meshscope.trace import Correlate
from parsers import PROTOCOLS
from parsers.base import REQUESTS, Message

if TYPE_CHECKING:
    from meshscope.sinks.otlp import OtlpSpans

OK: Final = 0
FAILED: Final = 1
_TICK_NS: Final = 1_000_000_000
_KEY_BYTES: Final = 16
_GROUP: Final = 256  # exchanges handed on at once in a replay
_LEAST_HEADERS: Final = frozenset({"traceparent", "tracestate"})
_FAMILY: Final = PROTOCOLS[0].describe(Message(REQUESTS, 0, 0, 0), None).family  # the only one there is so far


class AgentError(Exception):
    """The agent cannot start or go on; the text is one line for the user."""


def say(line: str) -> None:
    """One line for the user, on standard error."""
    print(f"meshscope: {line}", file=sys.stderr, flush=True)  # noqa: T201 (where users look)


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
    """The loop: one thread, one source, its stages and sinks. targets: None in a replay."""

    def __init__(self, config: Config, source: Source, key: bytes, outputs: Outputs, stats: Stats, stop: Stop) -> None:
        self._source = source
        self._outputs = outputs
        self._stats = stats
        self._stop = stop
        self._kept = KEPT_HEADERS | {name.lower() for name in config.exchanges.headers}
        self.flow = Flow(
            PROTOCOLS,
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

    def loop(self, live: Live | None) -> None:
        """Take batches until the source ends, which a live one does after it was stopped. Raises CaptureError."""
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
        lost = n["kernel_bytes_lost"] + n["bytes_lost"]
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


class Live:
    """What a live run does beside reading: the ready line, process events, budgets, the orderly end."""

    def __init__(self, agent: Agent, kernel: BpfSource, targets: Targets, config: Config, stats: Stats, stop: Stop) -> None:
        self._agent = agent
        self._kernel = kernel
        self._targets = targets
        self._loader = "libbpf"
        self._stop = stop
        budget = config.budget
        self._governor = Governor(Allowance(budget.cpu, budget.memory, budget.traps_per_second), stats)
        self._unprobed: frozenset[int] = frozenset()
        self._ready = False
        self._ending = False
        self._tick_ns = 0
        self._end_ns = time.monotonic_ns() + int(config.duration * 1e9) if config.duration else 0

    def attend(self, now: int, events: Sequence[ProcessEvent]) -> None:
        """Once per batch; `now` is CLOCK_MONOTONIC."""
        for event in events:
            self._targets.on_process(event)
        if not self._ready and (ready := self._targets.ready()) is not None:
            self._ready = True
            say(f"ready processes={ready.processes} probes={ready.probes} rung={self._kernel.rung} loader={self._loader}")
        if now >= self._tick_ns:
            self._tick_ns = now + _TICK_NS
            self._agent.take_counters()
            self._agent.measure_active()
            self._govern(now)
        if not self._ending and (self._stop.asked or (self._end_ns and now >= self._end_ns)):
            self._ending = True
            self._targets.stop()
            self._kernel.stop()  # its batches end when the rings are empty

    def _govern(self, now: int) -> None:
        actions = self._governor.update(now, time.process_time(), _resident_bytes(), self._kernel.selected())
        for line in actions.said:
            say(line)
        self._agent.shed(spans=actions.spans, headers=actions.headers)
        for tgid in actions.tls - self._unprobed:
            self._targets.shed_tls(tgid)
        for tgid in self._unprobed - actions.tls:
            self._targets.restore_tls(tgid)
        self._unprobed = actions.tls


def run(config: Config) -> int:
    """Watch what is selected until a signal, --duration or a failure. Returns the exit code; raises AgentError."""
    _log_to_stderr()
    stats, stop, key = Stats(), Stop(), os.urandom(_KEY_BYTES)
    with ExitStack() as held:
        for number in (signal.SIGINT, signal.SIGTERM):
            held.callback(signal.signal, number, signal.signal(number, stop.on_signal))
        outputs = held.enter_context(closing(Outputs(config, stats, stop)))
        obstacle = trial.obstacle()
        if obstacle:
            raise AgentError(obstacle)
        try:
            kernel = held.enter_context(closing(BpfSource(_capture_settings(config))))
            targets = Targets(kernel, Selection(*dataclasses.astuple(config.select)), stats)
            source: Source = kernel
            recorder: Recorder | None = None
            if config.outputs.record_raw:
                source = recorder = Recorder(kernel, config.outputs.record_raw, key, kernel.rung)
                say(f"{config.outputs.record_raw}: recording all that is captured, NOT redacted, for the owner's eyes only")
            held.callback(targets.stop)
            targets.start()
        except CaptureError as error:
            locked = trial.lockdown().replace("none", "")
            raise AgentError(f"{error}; kernel lockdown is {locked}" if locked else str(error)) from error
        agent = Agent(config, source, key, outputs, stats, stop)
        fault = _play(agent, Live(agent, kernel, targets, config, stats, stop))
        source.close()
        return FAILED if recorder is not None and recorder.fault else _end(fault)


def replay(config: Config, path: str) -> int:
    """Play a recording through the same flow, stages and sinks. Returns the exit code; raises AgentError."""
    _log_to_stderr()
    stats, stop = Stats(), Stop()
    with ExitStack() as held:
        try:
            source = held.enter_context(closing(Replay(path)))
        except CaptureError as error:
            raise AgentError(str(error)) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            held.callback(signal.signal, number, signal.signal(number, stop.on_signal))
        outputs = held.enter_context(closing(Outputs(config, stats, stop)))
        return _end(_play(Agent(config, source, source.key, outputs, stats, stop), None))


def protocols() -> list[str]:
    """Names of the protocols that are understood."""
    return [protocol.NAME for protocol in PROTOCOLS]


def _play(agent: Agent, live: Live | None) -> str:
    """Loop and finish; returns why the input ended early, empty if it did not."""
    fault = ""
    try:
        agent.loop(live)
    except CaptureError as error:
        fault = str(error)
    agent.finish()
    return fault


def _end(fault: str) -> int:
    if fault:
        say(fault)
    return FAILED if fault else OK


def _capture_settings(config: Config) -> CaptureSettings:
    capture, select = config.capture, config.select
    return CaptureSettings(
        ring_bytes=capture.ring_bytes,
        rings=capture.rings,
        poll_ms=max(1, round(capture.poll * 1000)),
        rung=capture.rung,
        watch_all=select.all,
        follow_exec=bool(select.exes),
    )


def _resident_bytes() -> int:
    """Of this process, by /proc/self/statm."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE


def _log_to_stderr() -> None:
    """What parts of the agent log are lines for the user, like those of `say`."""
    logging.basicConfig(format="meshscope: %(message)s", level=logging.WARNING, stream=sys.stderr, force=True)


def _reason(error: OSError) -> str:
    """One line of an OSError, whose text may already be one."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
