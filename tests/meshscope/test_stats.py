from __future__ import annotations

import pytest

from meshscope.capture import abi
from meshscope.stats import COUNTERS, EQUATIONS, Stats, imbalances


def test_every_counter_has_a_sentence() -> None:
    for name, sentence in COUNTERS.items():
        assert name == name.lower()
        assert sentence[0].isupper(), name
        assert sentence.endswith("."), name


def test_every_counter_of_the_kernel_is_declared() -> None:
    assert {f"kernel_{name}" for name in abi.COUNTER_NAMES} == {name for name in COUNTERS if name.startswith("kernel_")}


def test_a_typo_cannot_lose_a_loss() -> None:
    with pytest.raises(KeyError):
        Stats().n["bytes_losst"] += 1


def test_a_snapshot_stands_still() -> None:
    stats = Stats()
    snapshot = stats.snapshot()
    stats.n["records"] += 1
    assert (snapshot["records"], stats.n["records"]) == (0, 1)


def test_equations_name_counters_and_tell_what_does_not_add_up() -> None:
    n = dict.fromkeys(COUNTERS, 0)
    assert imbalances(n, kernel=True) == []
    for left, right in EQUATIONS:
        for name in (*left, *right):
            assert imbalances(n | {name: 3}, kernel=True), name
    told = imbalances(n | {"kernel_records_attempted": 5, "kernel_records_reserve_failed": 4}, kernel=True)
    assert told == ["kernel_records_attempted = 5 but kernel_records_reserved + kernel_records_reserve_failed = 4"]
    assert imbalances(n | {"kernel_records_attempted": 5}, kernel=False) == []
