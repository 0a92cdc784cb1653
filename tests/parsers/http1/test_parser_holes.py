from __future__ import annotations

import pytest

from parsers.base import ORPHAN, REQUESTS, RESPONSES, Ending, Handover, Message
from parsers.http1.parser import Parser

KEEP = frozenset({"host", "user-agent", "traceparent"})
GET = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Out = list[Message | Handover]


def feed(parser: Parser, half: int, data: bytes, ts: int = 1) -> list[Message]:
    out: Out = []
    parser.feed(half, data, ts, out)
    return [one for one in out if isinstance(one, Message)]


def gap(parser: Parser, half: int, n: int, lost: bool = True, ts: int = 1) -> list[Message]:
    out: Out = []
    parser.gap(half, n, lost, ts, out)
    return [one for one in out if isinstance(one, Message)]


def close(parser: Parser, half: int, ts: int = 1) -> list[Message]:
    out: Out = []
    parser.close(half, ts, out)
    return [one for one in out if isinstance(one, Message)]


def test_a_body_of_gigabytes_is_counted() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    size = 5 * 2**30
    (response,) = feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
    megabyte = bytes(2**20)
    for _ in range(20):
        assert feed(parser, RESPONSES, megabyte) == []
    assert gap(parser, RESPONSES, size - 20 * 2**20, lost=False, ts=5) == [response]
    assert (response.size, response.ending, response.doubts, response.end_ts) == (size, Ending.COMPLETE, (), 5)
    assert feed(parser, REQUESTS, GET) + feed(parser, RESPONSES, OK) != []


def test_a_hole_in_a_counted_body_keeps_the_framing() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    feed(parser, RESPONSES, OK[:-2])
    (response,) = gap(parser, RESPONSES, 2)
    assert (response.size, response.ending, response.doubts) == (2, Ending.COMPLETE, ("bytes_lost",))
    (request,) = feed(parser, REQUESTS, GET)
    (response,) = feed(parser, RESPONSES, OK)
    assert (response.stream, request.doubts, response.doubts) == (1, (), ())


def test_a_hole_within_a_chunk_keeps_the_framing() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nx")
    assert gap(parser, RESPONSES, 90, lost=False) == []
    (response,) = feed(parser, RESPONSES, b"x" * 9 + b"\r\n0\r\n\r\n")
    assert (response.size, response.doubts) == (100, ())


@pytest.mark.parametrize("lost", [True, False])
def test_a_hole_past_a_chunk_hunts_for_the_end(lost: bool) -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx")
    gap(parser, RESPONSES, 90, lost=lost)
    assert feed(parser, RESPONSES, b"xx\r\n10\r\nHTTP/1.1 is fun!\r\n") == []
    (response,) = feed(parser, RESPONSES, b"0\r\n\r\n", 8)
    assert (response.ending, response.doubts, response.end_ts) == (Ending.COMPLETE, ("bytes_lost",), 8)
    (request,) = feed(parser, REQUESTS, GET)
    (response,) = feed(parser, RESPONSES, OK)
    assert (request.stream, response.stream, response.doubts) == (1, 1, ("bytes_lost",))
    (request,) = feed(parser, REQUESTS, GET)
    (response,) = feed(parser, RESPONSES, OK)
    assert (request.doubts, response.doubts, response.stream) == ((), (), 2)


def test_a_chunked_body_whose_end_is_lost_ends_at_the_next_start() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nx")
    gap(parser, RESPONSES, 90)
    feed(parser, REQUESTS, GET)
    first, second = feed(parser, RESPONSES, OK)
    assert (first.stream, first.ending) == (0, Ending.LOST)
    assert (second.stream, second.ending, second.doubts) == (1, Ending.COMPLETE, ("bytes_lost",))


def test_close_after_a_hole_does_not_say_cut() -> None:
    parser = Parser(KEEP)
    (request,) = feed(parser, REQUESTS, GET)
    gap(parser, RESPONSES, 40)
    close(parser, RESPONSES)
    assert request.ending is Ending.LOST


def test_late_join_is_told() -> None:
    parser = Parser(KEEP)
    for half in (REQUESTS, RESPONSES):
        gap(parser, half, 0)
    feed(parser, RESPONSES, b"the end of a body")
    (request,) = feed(parser, REQUESTS, GET, 5)
    assert request.doubts == ("late_join",)
    (response,) = feed(parser, RESPONSES, OK, 6)
    assert (response.stream, response.doubts, response.offset) == (0, ("late_join",), 17)
    (request,) = feed(parser, REQUESTS, GET)
    (response,) = feed(parser, RESPONSES, OK)
    assert (request.doubts, response.doubts, response.stream) == ((), (), 1)


def test_late_join_that_nobody_told_of() -> None:
    parser = Parser(KEEP)
    assert feed(parser, RESPONSES, b"the end of a body") == []
    feed(parser, REQUESTS, GET)
    (response,) = feed(parser, RESPONSES, OK)
    assert (response.stream, response.doubts) == (0, ("late_join",))


def test_an_older_answer_is_not_for_a_younger_request_behind_a_hole() -> None:
    parser = Parser(KEEP)
    gap(parser, REQUESTS, 0)
    (request,) = feed(parser, REQUESTS, GET, 50)
    (held_back,) = {id(m): m for m in feed(parser, RESPONSES, OK, 40)}.values()
    assert held_back.stream == ORPHAN
    (response,) = feed(parser, RESPONSES, OK, 60)
    assert response.stream == request.stream


def test_an_overtaking_answer_is_taken() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET, 50)
    (response,) = feed(parser, RESPONSES, OK, 40)
    assert response.stream == 0


def test_a_request_in_a_hunted_body_needs_a_whole_line() -> None:
    parser = Parser(KEEP)
    gap(parser, REQUESTS, 10)
    for text in (b"GET me out of here\r\n\r\n", b"POST office\n\n", b"{}\r\n\r\nGET /x HTTP/9.1\r\n\r\n"):
        assert feed(parser, REQUESTS, text) == []
    (request,) = feed(parser, REQUESTS, b"tail of a body\r\n\r\n" + GET)
    assert (request.target, request.doubts) == ("/a", ("bytes_lost",))
