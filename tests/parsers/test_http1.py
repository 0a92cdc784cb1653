from __future__ import annotations

import pytest

from parsers import http1
from tests.parsers import harness
from tests.parsers.http1.conversations import ALL, SLIDING

KEEP = frozenset({"host", "user-agent", "traceparent", "tracestate", "content-type"})


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("keep", [KEEP, None], ids=["kept", "all"])
def test_conversation(name: str, keep: frozenset[str] | None) -> None:
    conversation, in_time = ALL[name]
    harness.check(http1, conversation, keep, limit=65_536, in_time=in_time, runs=200 if keep else 20)


def test_sliding() -> None:
    sliding = harness.Harness(http1, SLIDING, KEEP)
    sliding.whole()
    sliding.bytewise()
    sliding.joined()
    sliding.split_points()
    sliding.requests_first()
