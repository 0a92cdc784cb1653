from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.budget import Actions, Governor, Limits
from meshscope.stats import Stats

SECOND = 10**9
MIB = 1 << 20


class Clock:
    """A governor that is asked once a second, and what it has said."""

    def __init__(self, cpu: float = 0.0, memory: int = 0, traps: int = 0) -> None:
        self.stats = Stats()
        self.governor = Governor(Limits(cpu, memory, traps), self.stats)
        self.seconds = 100
        self.used = 5.0
        self.hits: dict[int, int] = {}
        self.said: list[tuple[int, str]] = []
        self.last = Actions(False, False, frozenset(), ())
        self.pass_(1)

    def pass_(self, seconds: int, cpu: float = 0.0, rss: int = 0, rates: dict[int, int] | None = None) -> Actions:
        for _ in range(seconds):
            self.seconds += 1
            self.used += cpu
            for tgid, rate in (rates or {}).items():
                self.hits[tgid] = self.hits.get(tgid, 0) + rate
            self.last = self.governor.update(self.seconds * SECOND, self.used, rss, self.hits)
            self.said += [(self.seconds, line) for line in self.last.said]
        return self.last

    def until(self, word: str, seconds: int, cpu: float = 0.0) -> int:
        """Seconds until something said contains the word."""
        for passed in range(1, seconds + 1):
            self.pass_(1, cpu)
            if any(word in line for line in self.last.said):
                return passed
        raise AssertionError(f"{word} was not said in {seconds} seconds: {self.said}")

    @property
    def without(self) -> tuple[bool, bool, set[int]]:
        return self.last.spans, self.last.headers, set(self.last.tls)


def test_without_limits_nothing_is_given_up() -> None:
    clock = Clock()
    clock.pass_(100, cpu=64.0, rss=1 << 40, rates={1: 10**6})
    assert clock.without == (False, False, set())
    assert clock.said == []


def test_what_is_given_up_goes_in_order() -> None:
    clock = Clock(cpu=0.5)
    clock.hits = {1: 0, 2: 0, 3: 0}
    seen = []
    for _ in range(20):
        clock.pass_(1, cpu=0.6, rates={1: 10, 2: 1000, 3: 0})
        if not seen or seen[-1] != clock.without:
            seen.append(clock.without)
    assert seen == [
        (False, False, set()),
        (True, False, set()),
        (True, True, set()),
        (True, True, {2}),  # the busiest first
        (True, True, {1, 2}),  # the third hits no probe: giving them up would bring nothing
    ]
    assert clock.stats.n["budget_given_up"] == 4
    assert [line for _, line in clock.said] == [
        "over budget (CPU 0.60 of 0.5 cores): giving up spans",
        "over budget (CPU 0.60 of 0.5 cores): giving up headers",
        "over budget (CPU 0.60 of 0.5 cores): giving up TLS probes of process 2",
        "over budget (CPU 0.60 of 0.5 cores): giving up TLS probes of process 1",
    ]


def test_one_busy_second_is_no_trend() -> None:
    clock = Clock(cpu=0.5)
    for _ in range(50):
        clock.pass_(2, cpu=5.0)
        clock.pass_(1, cpu=0.45)
    assert clock.without == (False, False, set())


def test_memory_counts_too() -> None:
    clock = Clock(cpu=10, memory=80 * MIB)
    clock.pass_(2, rss=81 * MIB)
    assert clock.without == (False, False, set())
    clock.pass_(1, rss=81 * MIB)
    assert clock.without == (True, False, set())
    assert clock.said[0][1] == "over budget (memory 81 of 80 MiB): giving up spans"


def test_exactly_the_limit_is_within_it() -> None:
    clock = Clock(memory=80 * MIB)
    clock.pass_(100, rss=80 * MIB)
    assert clock.without == (False, False, set())


def test_what_was_given_up_comes_back_in_reverse() -> None:
    clock = Clock(cpu=0.5)
    clock.hits = {1: 0, 2: 0}
    clock.pass_(12, cpu=0.6, rates={1: 10, 2: 20})
    assert clock.without == (True, True, {1, 2})
    seen = [clock.without]
    for _ in range(60):
        clock.pass_(1, cpu=0.1)
        if seen[-1] != clock.without:
            seen.append(clock.without)
    assert seen[1:] == [(True, True, set()), (True, False, set()), (False, False, set())]
    assert clock.stats.n["budget_taken_back"] == 3
    assert [line.removeprefix("within budget again: taking back ") for _, line in clock.said[-3:]] == [
        "TLS probes",
        "headers",
        "spans",
    ]


def test_nothing_comes_back_between_relief_and_limit() -> None:
    clock = Clock(cpu=0.5)
    clock.pass_(3, cpu=0.6)
    for _ in range(40):
        clock.pass_(8, cpu=0.1)
        clock.pass_(1, cpu=0.45)  # above four fifths: the quiet time begins anew
    assert clock.without == (True, False, set())


def test_an_agent_at_its_limit_waits_longer_each_time() -> None:
    clock = Clock(cpu=0.5)
    waits = []
    for _ in range(9):
        clock.until("giving up spans", 3, cpu=0.6)
        waits.append(clock.until("taking back spans", 1000, cpu=0.1) - 1)
    assert waits == [10, 20, 40, 80, 160, 320, 640, 640, 640]


def test_after_a_quiet_time_the_wait_is_short_again() -> None:
    clock = Clock(cpu=0.5)
    for _ in range(4):
        clock.until("giving up spans", 3, cpu=0.6)
        clock.until("taking back spans", 1000, cpu=0.1)
    clock.pass_(161, cpu=0.1)
    clock.until("giving up spans", 3, cpu=0.6)
    assert clock.until("taking back spans", 1000, cpu=0.1) - 1 == 10


def test_steps_wait_each_for_themselves() -> None:
    clock = Clock(cpu=0.5)
    clock.pass_(6, cpu=0.6)
    for wait in (10, 20, 40):
        assert clock.without == (True, True, set())
        assert clock.until("taking back headers", 100, cpu=0.1) - 1 in {wait, wait - 1}
        clock.until("giving up headers", 3, cpu=0.6)
    clock.until("taking back headers", 100, cpu=0.1)
    assert clock.until("taking back spans", 100, cpu=0.1) == 10


def test_nothing_is_said_to_come_back_that_never_went() -> None:
    clock = Clock(cpu=0.5)
    clock.pass_(60, cpu=0.6)  # no probe anywhere
    clock.pass_(100, cpu=0.1)
    assert clock.stats.n["budget_given_up"] == clock.stats.n["budget_taken_back"] == 2
    assert not any("TLS" in line for _, line in clock.said)


def test_a_process_that_ends_is_forgotten() -> None:
    clock = Clock(cpu=0.5, traps=100)
    clock.hits = {1: 0, 2: 0}
    clock.pass_(12, cpu=0.6, rates={1: 10, 2: 1000})
    assert clock.without == (True, True, {1, 2})
    clock.hits = {}
    clock.pass_(1, cpu=0.45)
    assert clock.without == (True, True, set())


# The budget of one process


def test_a_process_beyond_its_trap_budget_is_without_probes_for_a_while() -> None:
    clock = Clock(traps=1000)
    clock.hits = {1: 0, 2: 0}
    clock.pass_(1, rates={1: 1000, 2: 10})
    assert clock.without == (False, False, set())
    clock.pass_(1, rates={1: 1001, 2: 10})
    assert clock.without == (False, False, {1})
    assert clock.said[-1][1] == "process 1 hits 1001 TLS probes a second, at most 1000: giving them up for a while"
    clock.pass_(9, rates={2: 10})
    assert clock.without == (False, False, {1})
    clock.pass_(1, rates={2: 10})
    assert clock.without == (False, False, set())
    assert clock.said[-1][1] == "trying TLS probes of process 1 again"
    assert (clock.stats.n["budget_given_up"], clock.stats.n["budget_taken_back"]) == (1, 1)


def test_a_process_that_stays_too_busy_is_left_alone_longer_each_time() -> None:
    clock = Clock(traps=1000)
    clock.hits = {1: 0}
    clock.pass_(1)
    waits = []
    for _ in range(9):
        clock.pass_(1, rates={1: 5000})
        assert clock.last.tls == {1}
        waits.append(clock.until("again", 1000))
    assert waits == [10, 20, 40, 80, 160, 320, 640, 640, 640]
    clock.pass_(1281)
    clock.pass_(1, rates={1: 5000})
    assert clock.until("again", 1000) == 10


def test_processes_have_budgets_each_for_themselves() -> None:
    clock = Clock(traps=1000)
    clock.hits = {1: 0, 2: 0}
    clock.pass_(1)
    clock.pass_(1, rates={1: 5000})
    clock.pass_(1, rates={2: 5000})
    assert clock.without[2] == {1, 2}
    clock.pass_(9)
    assert clock.without[2] == {2}


def test_rates_need_two_looks() -> None:
    clock = Clock(traps=10)
    clock.hits = {1: 10**9}  # what it did before it was watched is no rate
    assert not clock.pass_(1).tls
    clock.hits = {1: 0}  # another process with the same number
    assert not clock.pass_(1).tls


def test_a_clock_that_stands_still_or_runs_back_decides_nothing() -> None:
    clock = Clock(cpu=0.5, traps=10)
    clock.hits = {1: 0}
    for now in (50, 50, 49, 49, 10):
        clock.used += 100
        clock.hits[1] += 10**6
        actions = clock.governor.update(now * SECOND, clock.used, 0, clock.hits)
        assert actions == Actions(False, False, frozenset(), ())


@pytest.mark.parametrize("step", [0.25, 1, 3])
def test_rates_are_per_second_however_often_it_is_asked(step: float) -> None:
    governor = Governor(Limits(cpu=0.5, traps_per_second=1000), Stats())
    for turn in range(1, 10):
        now = turn * step
        actions = governor.update(int(now * SECOND), now * 0.4, 0, {1: int(now * 900)})
    assert actions == Actions(False, False, frozenset(), ())


@given(st.integers(0, 2**32), st.booleans(), st.booleans())
def test_whatever_the_figures_given_up_and_taken_back_balance(seed: int, cpu: bool, traps: bool) -> None:
    figures = random.Random(seed)
    clock = Clock(cpu=0.5 if cpu else 0, memory=MIB, traps=100 if traps else 0)
    for _ in range(200):
        rates = {tgid: figures.choice([0, 50, 150]) for tgid in range(figures.randrange(4))}
        clock.pass_(figures.randrange(1, 12), figures.choice([0.1, 0.45, 0.6]), figures.choice([0, 2 * MIB]), rates)
        spans, headers, _ = clock.without
        assert spans or not headers
        if figures.random() < 0.1:
            clock.hits.pop(figures.randrange(4), None)
    assert clock.stats.n["budget_taken_back"] <= clock.stats.n["budget_given_up"]
    assert len([line for _, line in clock.said if "giving" in line]) == clock.stats.n["budget_given_up"]
