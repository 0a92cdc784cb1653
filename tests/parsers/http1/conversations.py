"""Recorded conversations of HTTP/1: what was sent in each half, in the order it was seen."""

from __future__ import annotations

from typing import Final

Conversation = list[tuple[int, bytes]]


def crlf(text: str) -> bytes:
    return text.replace("\n", "\r\n").encode("latin-1")


def get(n: int, more: str = "") -> tuple[int, bytes]:
    return 0, crlf(f"GET /thing/{n}?x={n} HTTP/1.1\nHost: shop.example:8080\nUser-Agent: tests/1.0\n{more}\n")


def ok(n: int, status: str = "200 OK") -> tuple[int, bytes]:
    body = b"b" * (n * 7)
    return 1, crlf(f"HTTP/1.1 {status}\nServer: s\nContent-Type: text/plain\nContent-Length: {len(body)}\n\n") + body


def one(*parts: tuple[int, bytes]) -> tuple[int, bytes]:
    """Several messages in one write."""
    return parts[0][0], b"".join(data for _, data in parts)


POST: Final = crlf("POST /cart HTTP/1.1\nHost: shop.example\nContent-Length: 11\n\n")
PUT: Final = crlf("PUT /file HTTP/1.1\nHost: shop.example\nTransfer-Encoding: chunked\n\n")
EXPECTING: Final = crlf("POST /big HTTP/1.1\nHost: shop.example\nExpect: 100-continue\nContent-Length: 12\n\n")

KEEP_ALIVE: Final[Conversation] = [part for n in range(6) for part in (get(n), ok(n, "404 Not Found" if n == 3 else "200 OK"))]

BODIES: Final[Conversation] = [
    (0, POST),
    (0, b"hello world"),
    (1, crlf("HTTP/1.1 201 Created\nLocation: /cart/1\nContent-Length: 0\n\n")),
    (0, PUT + b"5\r\nhello\r\n"),
    (0, b'6;ext=1;q="a;b"\r\n world\r\n00\r\n\r\n'),
    (1, crlf("HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\nTrailer: X-Sum\n\n") + b"1F\r\n" + b"c" * 31 + b"\r\n"),
    (1, b"3 \r\nabc\r\n0\r\nX-Sum: 12\r\nX-Other: y\r\n\r\n"),
    get(1),
    (1, crlf("HTTP/1.1 200 OK\nContent-Length: 150\n\n")),
    (1, b"d" * 90),
    (1, b"d" * 60),
    get(2),
    ok(2),
]

BODILESS: Final[Conversation] = [
    (0, crlf("HEAD /a HTTP/1.1\nHost: h\n\n")),
    (1, crlf("HTTP/1.1 200 OK\nContent-Length: 500\n\n")),
    (0, crlf("DELETE /a HTTP/1.1\nHost: h\n\n")),
    (1, crlf("HTTP/1.1 204 No Content\n\n")),
    get(1, "If-None-Match: x\n"),
    (1, crlf("HTTP/1.1 304 Not Modified\nContent-Length: 700\nETag: x\n\n")),
    (0, crlf("HEAD /b HTTP/1.1\nHost: h\n\n")),
    (1, crlf("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n")),
    (0, crlf("OPTIONS * HTTP/1.1\nHost: h\n\n")),
    (1, crlf("HTTP/1.1 200\nContent-Length: 0\n\n")),
    (0, crlf("PURGE /c HTTP/1.1\nHost: h\n\n")),
    (1, crlf("HTTP/1.1 405 Method Not Allowed\nContent-Length: 3\n\n") + b"no\n"),
]

OLD: Final[Conversation] = [
    (0, crlf("GET /old HTTP/1.0\n\n")),
    (1, crlf("HTTP/1.0 200 OK\nContent-Type: text/html\n\n") + b"<p>"),
    (1, b"and so on until the end"),
]

PIPELINED: Final[Conversation] = [
    one(*[get(n) for n in range(16)]),
    one(*[ok(n) for n in range(9)]),
    one(*[ok(n) for n in range(9, 16)]),
    one(get(16), (0, POST + b"hello world"), get(17)),
    one(ok(16), ok(3, "500 Oops"), ok(17)),
    get(18),
    ok(18),
]

# Always two requests on their way. Joined late, this cannot be told from one at a time: only whole runs are true.
SLIDING: Final[Conversation] = [get(0), *[part for n in range(6) for part in (get(n + 1), ok(n))], ok(6)]

INTERIM: Final[Conversation] = [
    (0, EXPECTING),
    (1, crlf("HTTP/1.1 100 Continue\n\n")),
    (0, b"twelve bytes"),
    (1, crlf("HTTP/1.1 200 OK\nContent-Length: 2\n\n") + b"ok"),
    get(1),
    (1, crlf("HTTP/1.1 103 Early Hints\nLink: </s.css>; rel=preload\n\nHTTP/1.1 102 Processing\n\n")),
    ok(1),
    (0, EXPECTING),  # refused, and the client sends the body all the same
    (1, crlf("HTTP/1.1 417 Expectation Failed\nContent-Length: 0\n\n")),
    (0, b"twelve bytes"),
    (0, EXPECTING),  # refused, and the client does not
    (1, crlf("HTTP/1.1 413 Content Too Large\nContent-Length: 3\n\n") + b"no\n"),
    get(2),
    ok(2),
    (0, EXPECTING.replace(b"Content-Length: 12", b"Transfer-Encoding: chunked")),
    (1, crlf("HTTP/1.1 401 Unauthorized\nContent-Length: 0\n\n")),
    get(3),
    ok(3),
]

LENIENT: Final[Conversation] = [
    (0, b"\r\n\r\nGET /crlf-before HTTP/1.1\r\nHost: h\r\n\r\n"),
    ok(1),
    (0, b"GET /lf HTTP/1.1\nHost: h\nUser-Agent: lf\n\n"),
    (1, b"HTTP/1.1 200 OK\nContent-Length: 4\n\nbody"),
    (0, b"GET /fold HTTP/1.1\r\nHost: h\r\nUser-Agent: a\r\n  b\r\n\tc\r\n\r\n"),
    ok(2),
    (0, b"GET /junk HTTP/1.1\r\nHost: h\r\nno colon here\r\n: no name\r\nb\xffd: x\r\nUser-Agent: \x1b[31m\x00\xe9\r\n\r\n"),
    ok(3),
    (0, b"GET /twice HTTP/1.1\r\nHost: h\r\ntracestate: a=1\r\nTraceState:\t b=2 \r\n\r\n"),
    (1, b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok"),
    (0, b"POST /both HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
    (1, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n!"),
    (0, b"GET http://other.example:81/abs?q HTTP/1.1\r\nHost: h\r\n\r\n"),
    ok(4),
]

UPGRADE: Final[Conversation] = [
    get(1),
    ok(1),
    (0, crlf("GET /chat HTTP/1.1\nHost: h\nConnection: Upgrade\nUpgrade: websocket\n\n")),
    (1, crlf("HTTP/1.1 101 Switching Protocols\nConnection: Upgrade\nUpgrade: websocket\n\n")),
    (1, b"\x81\x05hello"),
    (0, b"\x81\x85abcdhello"),
    (1, b"HTTP/1.1 200 OK\r\n\r\n"),
]

CONNECT: Final[Conversation] = [
    (0, crlf("CONNECT db.example:443 HTTP/1.1\nHost: db.example:443\n\n")),
    (1, crlf("HTTP/1.1 407 Proxy Authentication Required\nContent-Length: 3\n\n") + b"no\n"),
    (0, crlf("CONNECT db.example:443 HTTP/1.1\nHost: db.example:443\nProxy-Authorization: Basic eA==\n\n")),
    (1, crlf("HTTP/1.1 200 Connection established\n\n")),
    (0, b"\x16\x03\x01\x00\x05hello"),
    (1, b"\x16\x03\x03\x00\x05olleh"),
]

ALL: Final = {
    "keep_alive": (KEEP_ALIVE, False),
    "bodies": (BODIES, False),
    "bodiless": (BODILESS, False),
    "old": (OLD, False),
    "pipelined": (PIPELINED, False),
    "interim": (INTERIM, True),  # (conversation, order of the halves matters)
    "lenient": (LENIENT, False),
    "upgrade": (UPGRADE, True),
    "connect": (CONNECT, True),
}
