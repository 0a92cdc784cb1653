from __future__ import annotations

import pytest

from parsers import http1
from parsers.base import ORPHAN, REQUESTS, RESPONSES, Ending, Handover, Message, ProtocolError
from parsers.http1 import heads
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


def test_fields_of_a_request() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    (m,) = feed(parser, REQUESTS, b"POST /b?c HTTP/1.0\r\nUSER-AGENT: x\r\nCookie: s\r\nContent-Length: 3\r\n\r\nabc", 7)
    assert (m.half, m.stream, m.ts, m.end_ts, m.offset) == (REQUESTS, 1, 7, 7, len(GET))
    assert (m.verb, m.target, m.status, m.version, m.size) == ("POST", "/b?c", 0, "1.0", 3)
    assert m.headers == {"user-agent": "x"}
    assert (m.final, m.ending, m.trailers, m.messages, m.interim, m.doubts) == (True, Ending.COMPLETE, None, None, (), ())


def test_fields_of_a_response() -> None:
    parser = Parser(frozenset({"content-length"}))
    feed(parser, REQUESTS, GET)
    (m,) = feed(parser, RESPONSES, OK, 9)
    assert (m.half, m.stream, m.ts, m.end_ts, m.offset) == (RESPONSES, 0, 9, 9, 0)
    assert (m.verb, m.target, m.status, m.version, m.size) == ("", None, 200, "1.1", 2)
    assert m.headers == {"content-length": "2"}


def test_times_are_of_the_first_and_last_byte() -> None:
    parser = Parser(KEEP)
    assert feed(parser, REQUESTS, GET[:9], 1) == []
    assert feed(parser, REQUESTS, GET[9:12], 2) == []
    (request,) = feed(parser, REQUESTS, GET[12:] + GET[:4], 3)
    assert (request.ts, request.end_ts) == (1, 3)
    (request,) = feed(parser, REQUESTS, GET[4:], 4)
    assert (request.ts, request.end_ts, request.offset) == (3, 4, len(GET))
    (response,) = feed(parser, RESPONSES, OK[:-1], 5)
    assert (response.ts, response.end_ts, response.final) == (5, 0, False)
    assert feed(parser, RESPONSES, OK[-1:], 6) == [response]
    assert (response.ts, response.end_ts, response.final) == (5, 6, True)


def test_told_once_when_it_begins_and_ends_in_one_call() -> None:
    parser = Parser(KEEP)
    chunked = b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    (request,) = feed(parser, REQUESTS, chunked + b"2\r\nab\r\n0\r\nX: y\r\n\r\n")
    assert (request.final, request.size, request.trailers) == (True, 2, {})
    (request,) = feed(parser, REQUESTS, chunked)
    assert feed(parser, REQUESTS, b"0\r\n\r\n") == [request]


def test_skip_is_set_in_counted_bodies_only() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET * 2)
    assert parser.skip == [0, 0]
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
    feed(parser, RESPONSES, head + b"x" * 10)
    assert parser.skip == [0, len(head) + 1000]
    gap(parser, RESPONSES, 500, lost=False)
    assert parser.skip == [0, len(head) + 1000]
    feed(parser, RESPONSES, b"x" * 490)
    assert parser.skip == [0, 0]
    feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFF\r\nx")
    assert parser.skip == [0, 0]


def test_skip_is_not_set_while_the_body_may_stay_away() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 99\r\n\r\n")
    assert parser.skip == [0, 0]
    feed(parser, REQUESTS, b"{")
    assert parser.skip[REQUESTS] > 0
    orphaned = Parser(KEEP)
    feed(orphaned, RESPONSES, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nx")
    assert orphaned.skip == [0, 0]


def test_a_body_until_close() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    feed(parser, RESPONSES, b"HTTP/1.0 200 OK\r\n\r\nabc")
    gap(parser, RESPONSES, 5, lost=False)
    (response,) = close(parser, RESPONSES, 4)
    assert (response.size, response.ending, response.end_ts, response.doubts) == (8, Ending.COMPLETE, 4, ())
    assert close(parser, RESPONSES) == []


def test_close_cuts() -> None:
    parser = Parser(KEEP)
    (posted,) = feed(parser, REQUESTS, b"POST /b HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
    assert close(parser, REQUESTS) == [posted]
    assert (posted.ending, posted.size) == (Ending.CUT, 3)
    (response,) = feed(parser, RESPONSES, OK[:-1])  # an answer may still come
    assert close(parser, RESPONSES) == [response]
    assert (response.stream, response.ending) == (0, Ending.CUT)
    unanswered = Parser(KEEP)
    (request,) = feed(unanswered, REQUESTS, GET)
    close(unanswered, RESPONSES)
    assert request.ending is Ending.CUT


def test_ready() -> None:
    parser = Parser(KEEP)
    assert parser.ready(REQUESTS)
    assert not parser.ready(RESPONSES)
    feed(parser, REQUESTS, GET)
    assert parser.ready(RESPONSES)
    feed(parser, RESPONSES, OK[:-1])
    assert parser.ready(RESPONSES)
    feed(parser, RESPONSES, OK[-1:])
    assert not parser.ready(RESPONSES)
    late = Parser(KEEP)
    gap(late, RESPONSES, 0)
    assert not late.ready(RESPONSES)


def test_an_answer_without_a_question_is_an_orphan() -> None:
    parser = Parser(KEEP)
    (orphan,) = {id(m): m for m in feed(parser, RESPONSES, OK)}.values()
    assert (orphan.stream, orphan.final, orphan.size) == (ORPHAN, True, 2)


def test_an_orphan_may_answer_head() -> None:
    parser = Parser(KEEP)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n"
    feed(parser, RESPONSES, head)
    feed(parser, REQUESTS, GET)
    orphan, response = feed(parser, RESPONSES, OK)
    assert (orphan.stream, orphan.size) == (ORPHAN, 0)
    assert (response.stream, response.offset, response.size) == (0, len(head), 2)


def test_error_counts_none_of_the_bytes() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    out: Out = []
    with pytest.raises(ProtocolError):
        parser.feed(REQUESTS, GET + b"garbage that is no request\r\n\r\n", 1, out)
    assert len(out) == 1
    assert parser.at == (len(GET), 0)
    gap(parser, REQUESTS, 100)
    (request,) = feed(parser, REQUESTS, GET)
    assert (request.offset, request.doubts, request.stream) == (len(GET) + 100, ("bytes_lost",), 2)


@pytest.mark.parametrize(
    "bad",
    [
        b"POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked, gzip\r\n\r\n",
    ],
)
def test_a_request_whose_end_nobody_knows_is_told_all_the_same(bad: bytes) -> None:
    parser = Parser(KEEP)
    out: Out = []
    with pytest.raises(ProtocolError):
        parser.feed(REQUESTS, bad + b"hello", 1, out)
    (request,) = out
    assert isinstance(request, Message)
    assert (request.final, request.ending, request.headers) == (True, Ending.LOST, {})
    gap(parser, REQUESTS, len(bad) + 5)
    (response,) = feed(parser, RESPONSES, b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    assert response.stream == request.stream


@pytest.mark.parametrize(
    "bad",
    [
        b"POST / HTTP/1.1\r\nContent-Length : 5\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding\t: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\nab\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2;" + b"x" * 5000,
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 15_000,
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET /\r\n",
        b"\x16\x03\x01" * 10,
    ],
)
def test_what_is_refused(bad: bytes) -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    out: Out = []
    with pytest.raises(ProtocolError):
        parser.feed(REQUESTS, bad, 1, out)
    assert all(isinstance(one, Message) and one.ending is Ending.LOST for one in out)


def test_bytes_behind_an_answer_are_refused() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    with pytest.raises(ProtocolError):
        feed(parser, RESPONSES, OK + b"too many")


def test_a_head_that_is_too_long() -> None:
    parser = Parser(KEEP)
    head = b"POST /long HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n" + b"X-Pad: 0123456789\r\n" * 6000 + b"\r\n"
    told = []
    for n in range(0, len(head), 4096):
        told += feed(parser, REQUESTS, head[n : n + 4096])
    (request,) = told
    assert (request.verb, request.target, request.headers, request.doubts) == (
        "POST",
        "/long",
        {"host": "h"},
        ("head_truncated",),
    )
    assert feed(parser, REQUESTS, b"abc") == [request]
    assert (request.size, request.ending) == (3, Ending.COMPLETE)
    (request,) = feed(parser, REQUESTS, GET)
    assert request.doubts == ()


def test_a_line_that_never_ends_is_refused() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET)
    for _ in range(heads.MAX_HEAD // 4096 - 1):
        feed(parser, REQUESTS, b"GET/" + b"x" * 4092 if parser.at[0] > len(GET) else b"GET /" + b"x" * 4091)
    with pytest.raises(ProtocolError):
        feed(parser, REQUESTS, b"x" * 4096)


def test_a_first_line_that_never_ends_is_refused() -> None:
    parser = Parser(KEEP)
    line = b"GET /" + b"x" * heads.MAX_HEAD
    with pytest.raises(ProtocolError):
        feed(parser, REQUESTS, line)
    gap(parser, REQUESTS, len(line))
    (request,) = feed(parser, REQUESTS, GET)
    assert request.offset == len(line)


def test_a_head_in_single_bytes_is_read_once() -> None:
    parser = Parser(KEEP)
    head = b"GET /slow HTTP/1.1\r\n" + b"a: b\n" * 1000 + b"Host: h\r\n\r\n"
    told = [m for n in range(len(head)) for m in feed(parser, REQUESTS, head[n : n + 1], n)]
    assert [(m.target, m.headers, m.ts, m.end_ts) for m in told] == [("/slow", {"host": "h"}, 0, len(head) - 1)]


def test_dropped_questions_are_waited_for_too() -> None:
    parser = Parser(KEEP)
    feed(parser, REQUESTS, GET * 200)
    for _ in range(200):
        assert parser.ready(RESPONSES)
        feed(parser, RESPONSES, OK)
    assert not parser.ready(RESPONSES)


def test_upgrade_hands_over() -> None:
    for token, protocol in ((b"h2c", "http/2"), (b"websocket", None), (b"H2C", "http/2")):
        parser = Parser(KEEP)
        (request,) = feed(parser, REQUESTS, GET)
        out: Out = []
        head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: " + token + b"\r\n\r\n"
        parser.feed(RESPONSES, head + b"PRI", 1, out)
        response, handover = out
        assert isinstance(response, Message)
        assert (response.status, response.stream, response.final) == (101, 0, True)
        assert isinstance(handover, Handover)
        assert (handover.protocol, handover.request) == (protocol, request)
        assert parser.at == (len(GET), len(head))
        assert feed(parser, REQUESTS, GET) == feed(parser, RESPONSES, OK) == gap(parser, RESPONSES, 9) == []
        assert parser.ready(RESPONSES)


def test_connect_hands_over_when_it_is_granted() -> None:
    parser = Parser(KEEP)
    connect = b"CONNECT db:443 HTTP/1.1\r\nHost: db:443\r\n\r\n"
    (refused,) = feed(parser, REQUESTS, connect)
    assert feed(parser, REQUESTS, b"\x16\x03\x01 too early") == []
    gap(parser, REQUESTS, 5)
    feed(parser, RESPONSES, b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")
    (granted,) = feed(parser, REQUESTS, connect)
    out: Out = []
    parser.feed(RESPONSES, b"HTTP/1.1 200 Yes\r\nContent-Length: 7\r\n\r\n", 1, out)
    assert (refused.stream, granted.stream, granted.doubts) == (0, 1, ())
    assert isinstance(out[-1], Handover)
    assert (out[-1].protocol, out[-1].request) == (None, granted)


def test_head_has_no_body_however_it_is_framed() -> None:
    parser = Parser(KEEP)
    for framing in (b"Content-Length: 99", b"Transfer-Encoding: chunked", b"Content-Length: bad", b"X: y"):
        feed(parser, REQUESTS, b"HEAD / HTTP/1.1\r\n\r\n")
        (response,) = feed(parser, RESPONSES, b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        assert (response.size, response.headers) == (0, {})


def test_module() -> None:
    assert http1.Parser is Parser
