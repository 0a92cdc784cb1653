from __future__ import annotations

import sys

import pytest

from parsers.base import ProtocolError, Verdict
from parsers.http1 import heads

KEEP = frozenset({"host", "user-agent", "traceparent"})


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (b"", Verdict.MAYBE),
        (b"G", Verdict.MAYBE),
        (b"GET ", Verdict.MAYBE),
        (b"GET /", Verdict.MAYBE),
        (b"GET / HTTP/1.1", Verdict.MAYBE),
        (b"GET / HTTP/1.1\r\n", Verdict.REQUEST),
        (b"GET / HTTP/1.0\n", Verdict.REQUEST),
        (b"GET /" + b"x" * 9000, Verdict.REQUEST),
        (b"GET /" + b"x" * 200 + b" HTTP/1", Verdict.REQUEST),
        (b"OPTIONS * HTTP/1.1\r\n", Verdict.REQUEST),
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\n", Verdict.REQUEST),
        (b"CONNECT [::1]:443 HTTP/1.1\r\n", Verdict.REQUEST),
        (b"GET http://a/b HTTP/1.1\r\n", Verdict.REQUEST),
        (b"X-OWN!1 /b HTTP/1.1\r\n", Verdict.REQUEST),
        (b"GET /\r\n", Verdict.NO),  # HTTP/0.9
        (b"GET / HTTP/2.0\r\n", Verdict.NO),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict.NO),
        (b"GET some words of a chat\n", Verdict.NO),
        (b"GET key\r\n", Verdict.NO),  # memcached, redis inline
        (b"GET key HTTP/1.1\r\n", Verdict.NO),
        (b"GET /a\x00b HTTP/1.1\r\n", Verdict.NO),
        (b"GET  / HTTP/1.1\r\n", Verdict.NO),
        (b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Verdict.NO),
        (b"\x16\x03\x01\x02\x00\x01\x00", Verdict.NO),
        (b"x" * 200, Verdict.NO),
        (b"FOO /" + b"x" * 200, Verdict.NO),  # a method of its own needs its whole line
        (b"H", Verdict.MAYBE),
        (b"HTTP/1.1 2", Verdict.MAYBE),
        (b"HTTP/1.1 200", Verdict.MAYBE),
        (b"HTTP/1.1 200 OK", Verdict.RESPONSE),
        (b"HTTP/1.0 404\r\n", Verdict.RESPONSE),
        (b"HTTP/1.1 20x ", Verdict.NO),
        (b"HTTP/1.1 2000", Verdict.NO),
        (b"HTTP/1.1 000 ", Verdict.NO),
        (b"HTTP/2 200", Verdict.NO),
        (b"HEAD / HTTP/1.1\r\n", Verdict.REQUEST),
    ],
)
def test_sniff(head: bytes, verdict: Verdict) -> None:
    assert heads.sniff(head) == verdict


def test_sniff_makes_up_its_mind() -> None:
    for head in (b"GET /" + b"y" * 500, b"y" * 500, b"HTTP/1.1 200 " + b"y" * 500, b"PUT " + b"y" * 500):
        for n in range(heads.SNIFF_BYTES, len(head)):
            assert heads.sniff(head[:n]) != Verdict.MAYBE


def test_sniff_never_says_no_on_the_way_to_yes() -> None:
    for line in (b"GET /a?b HTTP/1.1\r\n", b"X-OWN * HTTP/1.0\r\n", b"HTTP/1.1 200 OK\r\n", b"CONNECT a:1 HTTP/1.1\n"):
        assert heads.sniff(line) in {Verdict.REQUEST, Verdict.RESPONSE}
        for n in range(len(line)):
            assert heads.sniff(line[:n]) != Verdict.NO, line[:n]


@pytest.mark.parametrize(
    ("headers", "asking", "length"),
    [
        ({}, True, 0),
        ({}, False, heads.UNTIL_CLOSE),
        ({"content-length": "12"}, True, 12),
        ({"content-length": "7, 7,7"}, False, 7),
        ({"transfer-encoding": "chunked"}, True, heads.CHUNKED),
        ({"transfer-encoding": "gzip, Chunked"}, False, heads.CHUNKED),
        ({"transfer-encoding": "chunked", "content-length": "5"}, True, heads.CHUNKED),
        ({"transfer-encoding": "gzip"}, False, heads.UNTIL_CLOSE),
        ({"transfer-encoding": "chunked, gzip"}, False, heads.UNTIL_CLOSE),
        ({"transfer-encoding": "identity", "content-length": "5"}, True, 5),
    ],
)
def test_framing(headers: dict[str, str], asking: bool, length: int) -> None:
    assert heads.framing(headers, request=asking) == length


@pytest.mark.parametrize("value", ["", "+5", "-5", "5 5", "0x5", "5, 6", "5,", "\xb2", "9" * 19, "1e3", "5_0"])
def test_framing_refuses_what_is_not_one_number(value: str) -> None:
    for asking in (True, False):
        with pytest.raises(ProtocolError):
            heads.framing({"content-length": value}, request=asking)
    assert heads.Lengths()[value] == -1


@pytest.mark.parametrize("coding", ["gzip", "chunked, gzip", "xchunked"])
def test_framing_of_a_request_needs_chunked_last(coding: str) -> None:
    with pytest.raises(ProtocolError):
        heads.framing({"transfer-encoding": coding}, request=True)


@pytest.mark.parametrize(("line", "size"), [(b"0\r", 0), (b"1f\r", 31), (b"FFFFFFFFFFFFFFFF\r", 2**64 - 1), (b"5 ;a=b\r", 5)])
def test_chunk_size(line: bytes, size: int) -> None:
    assert heads.chunk_size(b"xx" + line, 2, 2 + len(line)) == size


@pytest.mark.parametrize(
    "line", [b"\r", b"5", b"0x5\r", b"+5\r", b" 5\r", b"5_0\r", b"g\r", b"1" * 17 + b"\r", b"5 5\r", b"-0\r"]
)
def test_chunk_size_refuses(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        heads.chunk_size(line, 0, len(line))


def test_request_line() -> None:
    assert heads.request_line(b"GET /a HTTP/1.1\r") == ("GET", "/a", "1.1", False)
    assert heads.request_line(b"M-SEARCH * HTTP/1.0") == ("M-SEARCH", "*", "1.0", False)
    assert heads.request_line(b"GET /\x1b[31m\xe4 HTTP/1.1")[1] == "/\\x1b[31m\xe4"
    method, target, _, cut = heads.request_line(b"GET /" + b"x" * 20_000 + b" HTTP/1.1")
    assert (method, len(target), cut) == ("GET", heads.MAX_TARGET, True)
    for line in (b"", b"GET / HTTP/1.1 x", b"GET / HTTP/3.0", b"G(T / HTTP/1.1", b"A" * 33 + b" / HTTP/1.1", b"GET  HTTP/1.1"):
        with pytest.raises(ProtocolError):
            heads.request_line(line)


def test_printable_lets_no_control_character_through() -> None:
    text = heads.printable(bytes(range(256)))
    assert text.isprintable()
    assert "\\x0a" in text
    assert "\\x1b" in text
    assert "\\x9b" in text  # the one-byte form of ESC [


def test_fields_keep_what_is_wanted() -> None:
    fields = heads.Fields(KEEP)
    for _ in range(2):  # the second time from memory
        assert fields[b"Host: a.example\r"] == ("host", "a.example")
        assert fields[b"HOST:\t a.example \r"] == ("host", "a.example")
        assert fields[b"Accept: */*\r"] is None
        assert fields[b"Content-Length: 5\r"] == ("content-length", "5")
        assert fields[b"no colon\r"] is None
        assert fields[b"b\xffd: x\r"] is None
        assert fields[b"User-Agent : x\r"] is None
    assert fields.odd is False
    assert fields[b"\r"] == heads.BLANK
    assert fields[b" folded\r"] == heads.FOLD
    assert fields[b"Content-Length : 5\r"] == heads.FAULT
    assert fields.odd


def test_fields_keep_everything_when_asked() -> None:
    fields = heads.Fields(None)
    assert fields[b"X-Own: 1\r"] == ("x-own", "1")
    assert fields.hidden == ()


def test_fields_do_not_remember_secrets() -> None:
    fields = heads.Fields(None)
    for name in (b"Authorization", b"Cookie", b"Set-Cookie", b"Proxy-Authorization"):
        assert fields[name + b": secret\r"] == (name.decode().lower(), "secret")
    assert not fields


def test_fields_are_bounded() -> None:
    fields = heads.Fields(KEEP)
    for n in range(20_000):
        assert fields[b"User-Agent: %d\r" % n] == ("user-agent", str(n))
        assert fields[b"traceparent: 00-%032x-%016x-01\r" % (n, n)] == ("traceparent", f"00-{n:032x}-{n:016x}-01")
        assert fields[b"X-%d: %032x\r" % (n, n)] is None
    assert len(fields) <= 2048
    assert b"traceparent: 00-%032x-%016x-01\r" % (19_999, 19_999) not in fields
    assert sum(map(sys.getsizeof, fields)) < 1_000_000


def test_read_fields_joins_folds_and_repeats() -> None:
    fields = heads.Fields(KEEP)
    lines = [b" leading\r", b"Host: a\r", b"User-Agent: x\r", b"  y\r", b"HOST: b"]
    assert heads.read_fields(lines, fields) == ({"host": "a, b", "user-agent": "x y"}, False)
    with pytest.raises(ProtocolError):
        heads.read_fields([b"Transfer-Encoding : chunked\r"], fields)
    assert fields.odd is False


def test_read_fields_of_a_huge_head() -> None:
    fields = heads.Fields(KEEP)
    lines = [b"Host: a\r", *[b"X-%d: 1\r" % n for n in range(heads.MAX_FIELDS)], b"User-Agent: x\r", b"Content-Length: 3\r"]
    assert heads.read_fields(lines, fields) == ({"host": "a", "content-length": "3"}, True)
    headers, cut = heads.read_fields([b"User-Agent: " + b"x" * 9000], fields)
    assert (len(headers["user-agent"]), cut) == (heads.MAX_VALUE, True)


def test_head_end() -> None:
    assert heads.head_end(b"a\r\nb\r\n\r\nc", 0) == (5, 8)
    assert heads.head_end(b"a\nb\n\nc", 0) == (3, 5)
    assert heads.head_end(b"a\nb\n", 0) == (-1, -1)


def test_still_open() -> None:
    assert heads.still_open(b"GET / HTTP/1.1\r\nHo", 17)
    assert not heads.still_open(b"GET / HT", 7)  # the first line has to be looked at as it grows,
    assert heads.still_open(b"GET /" + b"x" * 600, 604)  # but not for ever
    assert not heads.still_open(b"GET / HTTP/1.1\r\n\r\n", 17)
    assert not heads.still_open(b"GET / HTTP/1.1\n\n", 15)


def test_statuses() -> None:
    statuses = heads.Statuses()
    assert statuses[b"HTTP/1.1 200 "] == ("1.1", 200)
    assert statuses[b"HTTP/1.0 599\r"] == ("1.0", 599)
    assert statuses[b"HTTP/1.1 200"] == ("1.1", 200)
    for start in (b"", b"HTTP/1.1 2000", b"HTTP/1.1 abc ", b"HTTP/2.0 200 ", b"GET / HTTP/1."):
        with pytest.raises(ProtocolError):
            statuses[start]
    assert len(statuses) == 3


def test_fields_for_shares_one_memo() -> None:
    assert heads.fields_for({"Host"}) is heads.fields_for(["host"])
    assert heads.fields_for(None) is heads.fields_for(None)
