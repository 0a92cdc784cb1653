"""What the agent may cost, and what it gives up to keep to that. Pure: measured figures in, decisions out.

In order: spans, then headers, then TLS probes, the busiest process first. Taken back in reverse, each step only after the
figures have stayed well below the limit for a while; the while doubles when a step that was taken back has to be given up
again soon, so that an agent at its limit does not flap, and is short again after a quiet time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Final, NamedTuple

from meshscope.stats import Stats

_SPANS: Final = 1
_HEADERS: Final = 2
_TLS: Final = 3
_PATIENCE: Final = 3  # updates over the limit before something is given up: one busy second is no trend
_RELIEF: Final = 0.8  # of the limit: below it there is room again
_WAIT_NS: Final = 10_000_000_000
_WAIT_MAX_NS: Final = 640_000_000_000
_WORDS: Final = {_SPANS: "spans", _HEADERS: "headers", _TLS: "TLS probes"}


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """0: no limit. cpu: cores; memory: bytes resident; traps_per_second: per process."""

    cpu: float = 0.0
    memory: int = 0
    traps_per_second: int = 0


class Actions(NamedTuple):
    """What has to be without now, and what there is to say about it (only when it changed)."""

    spans: bool
    headers: bool
    tls: frozenset[int]
    said: tuple[str, ...]


class _Wait:
    """How long to be without something: doubled when it has to go again soon after it was taken back."""

    __slots__ = ("back_ns", "ns", "until_ns")

    def __init__(self) -> None:
        self.ns = 0
        self.back_ns = 0  # when it was taken back last; 0: never
        self.until_ns = 0  # 0: it is not gone

    def gone(self, now_ns: int) -> None:
        soon = self.back_ns and now_ns - self.back_ns <= 2 * self.ns
        self.ns = min(self.ns * 2, _WAIT_MAX_NS) if soon else _WAIT_NS
        self.until_ns = now_ns + self.ns

    def back(self, now_ns: int) -> None:
        self.back_ns = now_ns
        self.until_ns = 0


class Governor:
    """Call `update` about once a second."""

    def __init__(self, limits: Limits, stats: Stats) -> None:
        self._limits = limits
        self._n = stats.n
        self._then: tuple[int, float] | None = None
        self._traps: dict[int, int] = {}
        self._step = 0
        self._over = 0
        self._calm_ns = 0  # since when the figures are low; 0: they are not
        self._waits = {step: _Wait() for step in _WORDS}
        self._own: dict[int, _Wait] = {}  # tgid -> its own trap budget exceeded
        self._shed: set[int] = set()  # tgids without probes for the agent's sake

    def update(self, now_ns: int, cpu_seconds: float, rss_bytes: int, traps: Mapping[int, int]) -> Actions:
        """cpu_seconds: this process's so far; traps: probe hits so far by watched process."""
        then, self._then = self._then, (now_ns, cpu_seconds)
        before, self._traps = self._traps, dict(traps)
        said: list[str] = []
        if then is not None and now_ns > then[0]:
            seconds = (now_ns - then[0]) / 1e9
            rates = {tgid: (hits - before[tgid]) / seconds for tgid, hits in traps.items() if tgid in before}
            self._weigh(now_ns, (cpu_seconds - then[1]) / seconds, rss_bytes, rates, said)
            self._trap_budget(now_ns, rates, said)
        for tgid in [tgid for tgid in self._own if tgid not in traps]:
            del self._own[tgid]
        held = {tgid for tgid, one in self._own.items() if one.until_ns}
        self._shed &= traps.keys()
        return Actions(self._step >= _SPANS, self._step >= _HEADERS, frozenset(held | self._shed), tuple(said))

    def _weigh(self, now_ns: int, cpu: float, rss: int, rates: Mapping[int, float], said: list[str]) -> None:
        limits = self._limits
        figures = [(cpu, limits.cpu, f"CPU {cpu:.2f} of {limits.cpu:g} cores")] if limits.cpu else []
        if limits.memory:
            figures.append((rss, limits.memory, f"memory {rss >> 20} of {limits.memory >> 20} MiB"))
        exceeded = [words for used, limit, words in figures if used > limit]
        if exceeded:
            self._over += 1
            self._calm_ns = 0
            if self._over >= _PATIENCE:
                self._over = 0
                self._give_up(now_ns, exceeded[0], rates, said)
            return
        self._over = 0
        if not self._step or any(used > limit * _RELIEF for used, limit, _ in figures):
            self._calm_ns = 0
        elif not self._calm_ns:
            self._calm_ns = now_ns
        elif now_ns - self._calm_ns >= self._waits[self._step].ns:
            self._take_back(now_ns, said)

    def _give_up(self, now_ns: int, why: str, rates: Mapping[int, float], said: list[str]) -> None:
        if self._step < _HEADERS:
            what = _WORDS[self._step + 1]
        else:
            busiest = max((tgid for tgid in rates if tgid not in self._shed), key=lambda tgid: rates[tgid], default=None)
            if busiest is None or rates[busiest] <= 0:
                return  # nothing left that would help
            self._shed.add(busiest)
            what = f"{_WORDS[_TLS]} of process {busiest}"
        if self._step < _TLS:
            self._step += 1
            self._waits[self._step].gone(now_ns)
        self._n["budget_given_up"] += 1
        said.append(f"over budget ({why}): giving up {what}")

    def _take_back(self, now_ns: int, said: list[str]) -> None:
        said.append(f"within budget again: taking back {_WORDS[self._step]}")
        self._n["budget_taken_back"] += 1
        self._waits[self._step].back(now_ns)
        if self._step == _TLS:
            self._shed.clear()
        self._step -= 1
        self._calm_ns = now_ns

    def _trap_budget(self, now_ns: int, rates: Mapping[int, float], said: list[str]) -> None:
        limit = self._limits.traps_per_second
        if not limit:
            return
        for tgid, rate in rates.items():
            one = self._own.get(tgid)
            if one is not None and one.until_ns:
                if now_ns >= one.until_ns:
                    one.back(now_ns)
                    self._n["budget_taken_back"] += 1
                    said.append(f"trying TLS probes of process {tgid} again")
            elif rate > limit:
                self._own.setdefault(tgid, _Wait()).gone(now_ns)
                self._n["budget_given_up"] += 1
                said.append(f"process {tgid} hits {rate:.0f} TLS probes a second, at most {limit}: giving them up for a while")
