"""Waiting by record time: nothing here reads a clock, so a recording gives the same output however it is split."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final, TypeVar

from meshscope.flow.limits import Limits
from meshscope.stats import Stats

NEVER: Final = 1 << 63

T = TypeVar("T")


class Waiting:
    """Things to be done once a record of their shard, `linger_ns` later in record time, was processed.

    `due` (shard -> time of its oldest thing) and `due_any` let the caller ask the question in two comparisons:
    an idle shard is served by the others' time, `lag_ns` later.
    """

    def __init__(self, limits: Limits, stats: Stats) -> None:
        self.due: dict[int, int] = {}
        self.due_any = NEVER
        self._linger = limits.linger_ns
        self._lag = limits.lag_ns
        self._bound = limits.waiting
        self._queues: dict[int, deque[tuple[int, Callable[[Any, int], None], Any]]] = {}
        self._n = stats.n

    def add(self, shard: int, ts: int, action: Callable[[T, int], None], subject: T) -> None:
        """Do `action(subject, due time)` when `linger_ns` have passed since `ts` in that shard."""
        queue = self._queues.get(shard)
        if queue is None:
            queue = self._queues[shard] = deque()
        queue.append((ts + self._linger, action, subject))
        if len(queue) == 1:
            self._refresh(shard)
        elif len(queue) > self._bound:
            self._n["waiting_overflows"] += 1
            self._first(shard)

    def advance(self, shard: int, now: int) -> None:
        """A record of `shard` with time `now` was taken."""
        self._until(shard, now)
        if now >= self.due_any:
            self.tick(now - self._lag)

    def tick(self, now: int) -> None:
        """All shards have reached `now`."""
        for shard in sorted(self.due):
            self._until(shard, now)

    def finish(self) -> None:
        """Nothing will come any more: do what is left, oldest first."""
        while self.due:
            self._first(min(self.due, key=lambda shard: (self.due[shard], shard)))

    def _until(self, shard: int, now: int) -> None:
        queue = self._queues.get(shard)
        if queue is None or queue[0][0] > now:
            return
        while queue and queue[0][0] <= now:
            due, action, subject = queue.popleft()
            action(subject, due)
        self._refresh(shard)

    def _first(self, shard: int) -> None:
        due, action, subject = self._queues[shard].popleft()
        self._refresh(shard)
        action(subject, due)

    def _refresh(self, shard: int) -> None:
        queue = self._queues[shard]
        if queue:
            self.due[shard] = queue[0][0]
        else:
            del self._queues[shard]
            self.due.pop(shard, None)
        self.due_any = min(self.due.values()) + self._lag if self.due else NEVER
