from __future__ import annotations

import pytest

from meshscope.model import CLIENT, FLAGS, UNKNOWN_REASONS, Endpoint, Exchange, Process, TraceContext, Workload
from meshscope.stats import COUNTERS
from parsers.base import REQUESTS, Description, Message


def test_a_new_exchange_knows_nothing_it_was_not_told() -> None:
    about = Description("GET", "", "unknown", "http", {})
    exchange = Exchange(CLIENT, "http/1.1", Message(REQUESTS, 0, 5, 0), None, about, Endpoint("a", 1), Endpoint("b", 2))
    assert (exchange.response, exchange.process, exchange.trace, exchange.joint) == (None, None, None, None)
    assert (exchange.flags, exchange.peer_seen, exchange.route) == ((), False, "")


@pytest.mark.parametrize(
    "made",
    [Workload("w"), Endpoint("a", 1), TraceContext(b"", b"", b"", False), Process(1, 2, "/bin/x", Workload("w"))],
    ids=lambda made: type(made).__name__,
)
def test_a_misspelt_field_is_an_error(made: object) -> None:
    with pytest.raises(AttributeError):
        made.nmae = "x"  # type: ignore[attr-defined]


def test_workloads_are_told_apart_by_identity() -> None:
    assert Workload("w") != Workload("w")


def test_every_reason_is_a_flag_and_is_counted() -> None:
    assert set(UNKNOWN_REASONS) <= set(FLAGS)
    assert {f"unknown_{reason}" for reason in UNKNOWN_REASONS} == {name for name in COUNTERS if name.startswith("unknown_")}
