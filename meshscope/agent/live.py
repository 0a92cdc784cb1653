"""What a live run does beside reading: tell that it is ready, pass on process events, keep its budget, end in order."""

from __future__ import annotations

import mmap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from meshscope.agent.loop import Stop
from meshscope.agent.voice import say
from meshscope.budget import Governor, Limits
from meshscope.capture.targets import ProcessEvent, Readiness
from meshscope.config import Config
from meshscope.stats import Stats

_TICK_NS: Final = 1_000_000_000


class Kernel(Protocol):
    """The live source, as far as this module needs it."""

    rung: str

    def selected(self) -> Mapping[int, int]: ...
    def stop(self) -> None: ...


class Watched(Protocol):
    """The search for targets, as far as this module needs it."""

    def on_process(self, event: ProcessEvent) -> None: ...
    def ready(self) -> Readiness | None: ...
    def shed_tls(self, tgid: int) -> None: ...
    def restore_tls(self, tgid: int) -> None: ...
    def stop(self) -> None: ...


class Sheds(Protocol):
    """The agent, as far as this module needs it."""

    def take_counters(self) -> bool: ...
    def measure_active(self) -> None: ...
    def shed(self, *, spans: bool, headers: bool) -> None: ...


class Live:
    """Attends a live run."""

    def __init__(self, agent: Sheds, kernel: Kernel, targets: Watched, config: Config, stats: Stats, stop: Stop) -> None:
        self._agent = agent
        self._kernel = kernel
        self._targets = targets
        self._loader = "libbpf"
        self._stop = stop
        budget = config.budget
        self._governor = Governor(Limits(budget.cpu, budget.memory, budget.traps_per_second), stats)
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


def _resident_bytes() -> int:
    """Of this process, by /proc/self/statm."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * mmap.PAGESIZE
