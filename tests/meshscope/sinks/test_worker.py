from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from meshscope.sinks.worker import Fates, Worker
from meshscope.stats import Stats

FATES = Fates("spans_exported", "spans_failed", "spans_dropped")
Make = Callable[..., Worker[int]]
BOUND_S = 10.0  # far beyond what anything here takes


class Consumer:
    """Takes batches; can be told to wait, to refuse some, or to raise."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()
        self.accept: Callable[[list[int]], int] = len

    def __call__(self, items: list[int]) -> int:
        self.batches.append(items)
        self.entered.set()
        assert self.go.wait(BOUND_S)
        return self.accept(items)


@pytest.fixture
def consumer() -> Consumer:
    return Consumer()


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def make(consumer: Consumer, stats: Stats) -> Iterator[Make]:
    made: list[Worker[int]] = []

    def build(**options: object) -> Worker[int]:
        made.append(Worker("test", consumer, stats, FATES, abort=consumer.go.set, **options))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for worker in made:
        worker.close(BOUND_S)


def counted(stats: Stats) -> tuple[int, int, int]:
    return stats.n["spans_exported"], stats.n["spans_failed"], stats.n["spans_dropped"]


def test_everything_put_arrives_in_order_and_in_batches(make: Make, consumer: Consumer, stats: Stats) -> None:
    worker = make(batch=10)
    for start in range(0, 100, 4):
        worker.put(range(start, start + 4))
    worker.close(BOUND_S)
    assert [i for batch in consumer.batches for i in batch] == list(range(100))
    assert max(map(len, consumer.batches)) <= 10
    assert counted(stats) == (100, 0, 0)


def test_a_small_batch_goes_out_after_lingering(make: Make, consumer: Consumer) -> None:
    make(batch=512, linger_s=0.01).put([1, 2])
    assert consumer.entered.wait(BOUND_S)
    assert consumer.batches == [[1, 2]]


def test_a_full_queue_drops_the_newest_and_counts_them(make: Make, consumer: Consumer, stats: Stats) -> None:
    consumer.go.clear()
    worker = make(capacity=5, batch=2)
    assert worker.put([0, 1]) == 2
    assert consumer.entered.wait(BOUND_S)  # 0 and 1 are under way
    assert worker.put(range(2, 10)) == 5
    assert worker.put([10]) == 0
    assert worker.waiting() == 5
    assert stats.n["spans_dropped"] == 4
    consumer.go.set()
    worker.close(BOUND_S)
    assert [i for batch in consumer.batches for i in batch] == [0, 1, 2, 3, 4, 5, 6]
    assert counted(stats) == (7, 0, 4)


def test_what_consume_did_not_deliver_has_failed(make: Make, consumer: Consumer, stats: Stats) -> None:
    consumer.accept = lambda items: len(items) - 1
    worker = make(batch=5)
    worker.put(range(10))
    worker.close(BOUND_S)
    assert counted(stats) == (8, 2, 0)


def test_an_exception_loses_one_batch_and_is_logged(
    make: Make, consumer: Consumer, stats: Stats, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_first(items: list[int]) -> int:
        if items[0] == 0:
            raise RuntimeError("boom")
        return len(items)

    consumer.accept = refuse_first
    worker = make(batch=2)
    worker.put([0, 1, 2, 3])
    worker.close(BOUND_S)
    assert counted(stats) == (2, 2, 0)
    assert "boom" in caplog.text


def test_closing_in_no_time_aborts_what_is_under_way_and_counts_the_rest(make: Make, consumer: Consumer, stats: Stats) -> None:
    consumer.go.clear()
    worker = make(batch=2, capacity=10)
    worker.put([0, 1])
    assert consumer.entered.wait(BOUND_S)
    worker.put([2, 3, 4])
    worker.close(0.01)
    assert sum(counted(stats)) == 5
    assert stats.n["spans_dropped"] == 3


def test_a_consumer_that_cannot_be_aborted_is_left_behind_and_counted_once(stats: Stats) -> None:
    entered, release, left = threading.Event(), threading.Event(), threading.Event()

    def hang(items: list[int]) -> int:
        entered.set()
        assert release.wait(BOUND_S)
        left.set()
        return len(items)

    worker = Worker("test", hang, stats, FATES, abort=lambda: None, batch=2)
    worker.put([0, 1])
    assert entered.wait(BOUND_S)
    worker.close(0.01)
    assert counted(stats) == (0, 2, 0)
    release.set()
    assert left.wait(BOUND_S)
    worker.close(BOUND_S)
    assert counted(stats) == (0, 2, 0)


def test_after_closing_everything_is_dropped(make: Make, stats: Stats) -> None:
    worker = make()
    worker.close(BOUND_S)
    assert worker.put([1, 2, 3]) == 0
    assert counted(stats) == (0, 0, 3)
