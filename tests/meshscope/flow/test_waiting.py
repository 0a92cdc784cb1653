from __future__ import annotations

from meshscope.flow.limits import Limits
from meshscope.flow.waiting import NEVER, Waiting
from meshscope.stats import Stats

LIMITS = Limits(linger_ns=100, lag_ns=900, waiting=3)


def made() -> tuple[Waiting, list[tuple[str, int]], Stats]:
    stats = Stats()
    return Waiting(LIMITS, stats), [], stats


def test_things_are_done_in_order_when_their_shard_has_moved_on() -> None:
    waiting, done, _ = made()
    note = lambda what, due: done.append((what, due))  # noqa: E731
    waiting.add(1, 10, note, "a")
    waiting.add(1, 12, note, "b")
    assert (waiting.due, waiting.due_any) == ({1: 110}, 1_010)
    waiting.advance(1, 109)
    waiting.advance(2, 500)
    assert done == []
    waiting.advance(1, 111)
    assert done == [("a", 110)]
    waiting.advance(1, 112)
    assert done == [("a", 110), ("b", 112)]
    assert (waiting.due, waiting.due_any) == ({}, NEVER)


def test_an_idle_shard_is_served_by_another() -> None:
    waiting, done, _ = made()
    waiting.add(1, 0, lambda what, due: done.append((what, due)), "a")
    waiting.advance(2, 999)
    assert done == []
    waiting.advance(2, 1_000)
    assert done == [("a", 100)]


def test_too_many_and_the_oldest_is_done_early() -> None:
    waiting, done, stats = made()
    for n in range(5):
        waiting.add(1, n, lambda what, due: done.append((what, due)), str(n))
    assert done == [("0", 100), ("1", 101)]
    assert stats.n["waiting_overflows"] == 2


def test_finish_does_what_is_left_and_what_comes_of_it() -> None:
    waiting, done, _ = made()

    def again(what: str, due: int) -> None:
        done.append((what, due))
        if what == "a":
            waiting.add(2, due, again, "c")

    waiting.add(1, 5, again, "b")
    waiting.add(2, 0, again, "a")
    waiting.finish()
    assert done == [("a", 100), ("b", 105), ("c", 200)]
    assert waiting.due == {}


def test_tick_serves_every_shard() -> None:
    waiting, done, _ = made()
    for shard in (3, 1):
        waiting.add(shard, 0, lambda what, due: done.append((what, due)), str(shard))
    waiting.tick(100)
    assert done == [("1", 100), ("3", 100)]
