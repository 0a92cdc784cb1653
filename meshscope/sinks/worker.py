"""A bounded queue and one thread: how slow outputs are kept away from the loop.

``put`` never waits. Everything that was put is counted exactly once: as done or failed by what ``consume`` says of its
batch, as dropped when the queue is full or closing leaves no time for it.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Generic, NamedTuple, TypeVar

from meshscope.stats import Stats

logger = logging.getLogger(__name__)
_GRACE_S: Final = 0.5  # for a batch under way to notice that it was aborted

Item = TypeVar("Item")


class Fates(NamedTuple):
    """Names of the counters for what becomes of an item. done and failed are written by the worker, dropped by the loop."""

    done: str
    failed: str
    dropped: str


class Worker(Generic[Item]):
    """Hands items to ``consume`` in batches, from a thread of its own.

    consume:  takes a list and returns how many of it arrived; an exception means none, and is a bug that is logged.
    abort:    makes a ``consume`` under way return soon; called from another thread.
    capacity: items that may wait; batch: how many make a batch; linger_s: how long a smaller batch may wait to grow.
    """

    def __init__(
        self,
        name: str,
        consume: Callable[[list[Item]], int],
        stats: Stats,
        fates: Fates,
        *,
        abort: Callable[[], None],
        capacity: int = 4096,
        batch: int = 512,
        linger_s: float = 0.5,
    ) -> None:
        self._consume = consume
        self._abort = abort
        self._stats = stats
        self._fates = fates
        self._capacity = capacity
        self._batch = min(batch, capacity)
        self._linger_s = linger_s
        self._queue: deque[Item] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._lock = threading.Lock()  # over taking from the queue and counting what was taken
        self._under_way = 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, items: Sequence[Item]) -> int:
        """Queue what there is room for; returns how many that were. Only one thread may call this."""
        room = max(0, self._capacity - len(self._queue)) if not self._closing else 0
        if len(items) > room:
            self._stats.n[self._fates.dropped] += len(items) - room
            items = items[:room]
        self._queue.extend(items)
        if len(self._queue) >= self._batch:
            self._wake.set()
        return len(items)

    def waiting(self) -> int:
        """Items in the queue now."""
        return len(self._queue)

    def close(self, timeout_s: float) -> None:
        """Let the thread empty the queue for at most ``timeout_s``, then abort it; what is left is counted. Idempotent."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._stats.n[self._fates.dropped] += self._clear()
            self._abort()
            self._thread.join(_GRACE_S)
        with self._lock:  # whoever still hangs in there has nothing left to count
            self._stats.n[self._fates.failed] += self._under_way
            self._under_way = 0
        self._stats.n[self._fates.dropped] += self._clear()

    def _clear(self) -> int:
        with self._lock:
            n = len(self._queue)
            self._queue.clear()
        return n

    def _run(self) -> None:
        while True:
            self._wake.wait(self._linger_s)
            self._wake.clear()
            closing = self._closing  # read before the queue is: nothing is put after it was set
            self._work()  # either a full batch, or what lingered long enough
            while len(self._queue) >= self._batch or (closing and self._queue):
                self._work()
            if closing:
                return

    def _work(self) -> None:
        with self._lock:
            items = [self._queue.popleft() for _ in range(min(self._batch, len(self._queue)))]
            self._under_way = len(items)
        if not items:
            return
        done = 0
        try:
            done = self._consume(items)
        except Exception:
            logger.exception("%s: %d items lost", self._thread.name, len(items))
        with self._lock:
            if self._under_way:  # else close gave up on it
                self._stats.n[self._fates.done] += done
                self._stats.n[self._fates.failed] += len(items) - done
                self._under_way = 0
