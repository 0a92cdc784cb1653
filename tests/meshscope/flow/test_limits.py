from __future__ import annotations

import dataclasses

from meshscope.flow.limits import Limits


def test_every_bound_is_a_positive_whole_number() -> None:
    assert all(isinstance(value, int) and value > 0 for value in dataclasses.asdict(Limits()).values())


def test_bounds_fit_each_other() -> None:
    limits = Limits()
    assert limits.held_bytes < limits.held_total_bytes
    assert limits.detect_bytes < limits.late_bytes
    assert limits.linger_ns < limits.lag_ns
