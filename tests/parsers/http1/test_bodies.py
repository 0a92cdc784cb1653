from __future__ import annotations

import pytest

from parsers.base import REQUESTS, RESPONSES, Ending, Handover, Message, ProtocolError
from parsers.http1 import bodies, heads
from parsers.http1.bodies import Half

Out = list[Message | Handover]


def half(length: int, which: int = RESPONSES, before: int = bodies.HEAD) -> tuple[Half, Message, Out]:
    h = Half(which, [0, 0], heads.Fields(frozenset({"x"})))
    message = Message(which, 0, 1, 0)
    out: Out = []
    h.enter(message, length, 0, 1, out, before)
    return h, message, out


def read(h: Half, data: bytes, out: Out) -> bytes:
    """Step until the message ends or more is needed; returns what is left."""
    pos = 0
    while pos < len(data) and h.message is not None:
        after = bodies.STEPS[h.state](h, data, pos, 2, out)
        if after < 0:
            break
        pos = after
    return data[pos:]


def test_counted() -> None:
    h, message, out = half(10)
    assert h.skip == [0, 10]
    assert read(h, b"x" * 4, out) == b""
    assert not message.final
    assert read(h, b"x" * 9, out) == b"xxx"
    assert (message.final, message.size, h.state, h.skip) == (True, 10, bodies.HEAD, [0, 0])
    assert out == [message]  # told once, in one call


def test_chunked_with_trailers() -> None:
    h, message, out = half(heads.CHUNKED)
    assert read(h, b"3;a=b\r\nabc\r\n0002\r\nde\r\n0\r\nX: 1\r\nY: 2\r\nX: 3\r\n\r\nrest", out) == b"rest"
    assert (message.size, message.trailers, message.ending) == (5, {"x": "1, 3"}, Ending.COMPLETE)


def test_chunked_without_trailers() -> None:
    h, message, out = half(heads.CHUNKED)
    assert read(h, b"0\r\n\r\n", out) == b""
    assert (message.size, message.trailers) == (0, None)


@pytest.mark.parametrize("data", [b"3\r\nabcd", b"3\r\nabc\n0", b"3\r\nabcX", b"zz\r\n", b"3\nabc"])
def test_chunked_that_is_none(data: bytes) -> None:
    h, _, out = half(heads.CHUNKED)
    with pytest.raises(ProtocolError):
        read(h, data + b"\r\n" * 9, out)


def test_missed_bytes() -> None:
    h, message, out = half(10)
    assert h.miss(4, False, 2, out)
    assert (message.size, message.doubts) == (4, ())
    assert not h.miss(9, True, 2, out)  # past the end: whatever follows is lost
    assert (message.size, message.doubts, message.ending) == (10, ("bytes_lost",), Ending.COMPLETE)
    h, message, out = half(heads.CHUNKED)
    read(h, b"9\r\nabc", out)
    assert h.miss(6, False, 2, out)
    assert read(h, b"\r\n0\r\n\r\n", out) == b""
    assert (message.size, message.doubts) == (9, ())
    h, message, out = half(heads.UNTIL_CLOSE)
    assert h.miss(10**12, True, 2, out)
    assert (message.size, message.doubts) == (10**12, ("bytes_lost",))


def test_expected_body_comes() -> None:
    h, message, out = half(5, REQUESTS, bodies.EXPECT)
    assert read(h, b"GET /", out) == b""
    assert (message.size, message.final) == (5, True)


def test_expected_body_stays_away() -> None:
    h, message, out = half(50, REQUESTS, bodies.EXPECT)
    h.early = True
    following = b"GET /next HTTP/1.1\r\n"
    assert read(h, following[:7], out) == following[:7]
    assert read(h, following, out) == following
    assert (message.size, message.ending, message.end_ts) == (0, Ending.COMPLETE, 1)


def test_every_state_of_a_body_has_a_step() -> None:
    assert set(bodies.STEPS) == set(range(bodies.COUNTED, bodies.DEAF + 1))
