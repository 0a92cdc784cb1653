from __future__ import annotations

import random

import pytest

from parsers import http1
from tests.parsers import harness
from tests.parsers.http1.conversations import ALL, KEEP_ALIVE, PIPELINED, SLIDING
from tests.parsers.playback import pieces, without

KEEP = frozenset({"host", "user-agent", "traceparent", "tracestate", "content-type"})


@pytest.mark.parametrize("name", ALL)
def test_conversation(name: str) -> None:
    conversation, in_time = ALL[name]
    harness.check(http1, conversation, KEEP, limit=65_536, in_time=in_time, runs=150)


@pytest.mark.parametrize("name", ALL)
def test_conversation_with_all_fields(name: str) -> None:
    conversation, in_time = ALL[name]
    all_fields = harness.Harness(http1, conversation, None, limit=65_536, in_time=in_time)
    all_fields.whole()
    all_fields.bytewise()
    all_fields.random_splits(20)
    all_fields.holes(50)
    all_fields.mutations(100)


def test_two_requests_always_on_their_way() -> None:
    sliding = harness.Harness(http1, SLIDING, KEEP)
    sliding.whole()
    sliding.bytewise()
    sliding.joined()
    sliding.split_points()
    sliding.requests_first()


def test_a_pipeline_is_sixteen_deep() -> None:
    run = harness.Harness(http1, PIPELINED, KEEP).play(pieces(PIPELINED))
    assert len(run.pairs()) == 20


def test_holes_leave_most_exchanges_alone() -> None:
    keep_alive = harness.Harness(http1, KEEP_ALIVE, KEEP)
    trials = 100
    known = 0
    for seed in range(trials):
        chance = random.Random(seed)
        half = chance.randrange(2)
        a = chance.randrange(keep_alive.length[half] - 40)
        known += keep_alive.honest(keep_alive.play(without(KEEP_ALIVE, [(half, a, a + 40)], lost=True, at_once=False)))
    assert known >= 3 * trials  # of six: the one hit, the one that is found again, and the next may be doubtful


def test_joined_late_all_is_right_from_the_second_request_on() -> None:
    keep_alive = harness.Harness(http1, KEEP_ALIVE, KEEP)
    before_the_last_two = sum(len(data) for _, data in KEEP_ALIVE[:-4])
    assert keep_alive.late_joins() >= before_the_last_two


def test_module_has_the_four_names() -> None:
    assert http1.NAME == "http/1.1"
    assert {"NAME", "Parser", "describe", "sniff"} == set(http1.__all__)
