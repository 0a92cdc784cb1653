from __future__ import annotations

from parsers import http1
from parsers.base import ORPHAN, REQUESTS, RESPONSES, Ending, Handover, Message
from parsers.http1.pairs import MAX_INTERIM, MAX_OPEN
from parsers.http1.parser import Parser
from tests.parsers.playback import shared_by, sizeof


def get(n: int) -> bytes:
    return b"GET /%d HTTP/1.1\r\n\r\n" % n


def ok(n: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % n + b"x" * n


def feed(parser: Parser, half: int, data: bytes, ts: int = 1) -> list[Message]:
    out: list[Message | Handover] = []
    parser.feed(half, data, ts, out)
    told: list[Message] = []
    for one in out:
        if isinstance(one, Message) and one not in told:
            told.append(one)
    return told


def test_interim_answers_go_with_the_final_one() -> None:
    parser = Parser()
    feed(parser, REQUESTS, get(0) + get(1))
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
    (first,) = feed(parser, RESPONSES, b"HTTP/1.1 102 Processing\r\n\r\n" + hint + ok(1))
    (second,) = feed(parser, RESPONSES, hint * 100 + ok(2))
    assert (first.stream, first.interim) == (0, (102, 103))
    assert (second.stream, second.interim) == (1, (103,) * MAX_INTERIM)


def test_a_flood_of_requests_drops_the_newest_and_keeps_the_pairs() -> None:
    shared = shared_by(http1, None)
    parser = Parser()
    flood = MAX_OPEN + 1000
    told = [m for n in range(flood) for m in feed(parser, REQUESTS, get(n))]
    assert len(told) == MAX_OPEN
    assert parser.dropped == 1000
    assert sizeof(parser, shared) < 500_000
    for n in range(50):
        (response,) = feed(parser, RESPONSES, ok(n))
        assert (response.stream, response.doubts) == (n, ())
    assert feed(parser, REQUESTS, get(flood)) == []  # there is room, but its answer comes behind those of the dropped
    for n in range(50, MAX_OPEN):
        (response,) = feed(parser, RESPONSES, ok(n))
        assert response.stream == n
    for n in range(1001):
        (response,) = feed(parser, RESPONSES, ok(n))
        assert response.stream == ORPHAN
    (request,) = feed(parser, REQUESTS, get(1))
    (response,) = feed(parser, RESPONSES, ok(1))
    assert (request.stream, response.stream) == (flood + 1, flood + 1)


def test_dropped_requests_keep_their_bodies() -> None:
    parser = Parser()
    for n in range(MAX_OPEN):
        feed(parser, REQUESTS, get(n))
    assert feed(parser, REQUESTS, b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nGET /no HTTP") == []
    assert feed(parser, REQUESTS, b"/1.1\r\n\r\n" + get(1)) == []
    assert parser.dropped == 2


def test_a_hole_in_the_answers_leaves_only_the_newest_request_open() -> None:
    parser = Parser()
    requests = feed(parser, REQUESTS, get(0) + get(1) + get(2))
    parser.gap(RESPONSES, 60, True, 1, [])
    (response,) = feed(parser, RESPONSES, ok(3))
    assert (response.stream, response.doubts) == (2, ("bytes_lost",))
    assert [request.ending for request in requests] == [Ending.LOST, Ending.LOST, Ending.COMPLETE]
    assert [request.doubts for request in requests] == [("bytes_lost",), ("bytes_lost",), ()]


def test_doubt_ends_when_a_request_comes_while_nothing_is_open() -> None:
    parser = Parser()
    feed(parser, REQUESTS, get(0))
    parser.gap(RESPONSES, 60, True, 1, [])
    for doubts in ((), (), ()):
        (request,) = feed(parser, REQUESTS, get(1))
        (response,) = feed(parser, RESPONSES, ok(1))
        assert request.stream == response.stream
        if request.stream > 1:
            assert (request.doubts, response.doubts) == (doubts, doubts)
        else:
            assert response.doubts == ("bytes_lost",)


def test_doubt_stays_longer_where_somebody_pipelines() -> None:
    parser = Parser()
    feed(parser, REQUESTS, get(0) + get(1))
    feed(parser, RESPONSES, ok(0) + ok(1))
    parser.gap(REQUESTS, 60, True, 1, [])
    doubts = []
    for n in range(30):
        (request,) = feed(parser, REQUESTS, get(n))
        feed(parser, RESPONSES, ok(1))
        doubts.append(bool(request.doubts))
    assert doubts == [True] * 16 + [False] * 14


def test_an_early_answer_takes_its_request_before_that_has_ended() -> None:
    parser = Parser()
    (request,) = feed(parser, REQUESTS, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc")
    (response,) = feed(parser, RESPONSES, ok(1))
    assert (response.stream, request.final) == (0, False)
    assert feed(parser, REQUESTS, b"defghi") == [request]
    assert request.final
