"""What one HTTP/1 request and its response cost to parse, in us, next to h11 and httptools in the same run.

Eight fields each way; every request has a traceparent and a target of its own, every response a request id of its own,
because a memo must not be flattered. The parsers take turns in small rounds and the best round counts, so that a busy
machine does little harm; compare within one run only.

    python bench/parse.py [ROUNDS]
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h11
import httptools

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parsers import http1
from parsers.base import REQUESTS, RESPONSES, Handover, Message

KEEP = frozenset({"host", "user-agent", "traceparent", "tracestate", "content-type"})
PAIRS = 100  # per round


def request(n: int) -> bytes:
    return (
        b"GET /api/items/%d?page=2 HTTP/1.1\r\nHost: shop.example.com:8080\r\nUser-Agent: python-requests/2.31.0\r\n"
        b"Accept: application/json, text/plain, */*\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en-US,en;q=0.9\r\n"
        b"Connection: keep-alive\r\ntraceparent: 00-4bf92f3577b34da6a3ce929d%08x-00f067aa%08x-01\r\n"
        b"tracestate: congo=t61rcWkgMzE\r\n\r\n"
    ) % (n, n, n)


def response(n: int) -> bytes:
    body = b"x" * (200 + n % 50)
    return (
        b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Mon, 01 Jan 2024 00:00:%02d GMT\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: keep-alive\r\nCache-Control: no-store\r\nVary: Accept-Encoding\r\n"
        b"X-Request-Id: 9ce929d0e0e47364bf92f357%08x\r\n\r\n"
    ) % (n // 1000 % 60, len(body), n) + body


def steady_request(n: int) -> bytes:
    """No traceparent: the same fields every time, as from a load generator or a health check."""
    return b"".join(line for line in request(n).splitlines(keepends=True) if not line.startswith(b"trace"))


def steady_response(n: int) -> bytes:
    return b"".join(line for line in response(n // 50 * 50).splitlines(keepends=True) if not line.startswith(b"X-R"))


def chunked(n: int) -> bytes:
    head = response(n).replace(b"Content-Length: %d" % (200 + n % 50), b"Transfer-Encoding: chunked").partition(b"\r\n\r\n")[0]
    return head + b"\r\n\r\n" + b"40\r\n" + b"x" * 64 + b"\r\n" + b"80\r\n" + b"x" * 128 + b"\r\n0\r\n\r\n"


Load = list[tuple[bytes, bytes]]
Make = Callable[[int], bytes]


def ours(load: Load) -> None:
    parser = http1.Parser(KEEP)
    out: list[Message | Handover] = []
    feed = parser.feed
    for asked, answered in load:
        feed(REQUESTS, asked, 1, out)
        feed(RESPONSES, answered, 2, out)
        out.clear()


def ours_described(load: Load) -> None:
    parser = http1.Parser(KEEP)
    out: list[Message] = []
    for asked, answered in load:
        parser.feed(REQUESTS, asked, 1, out)  # type: ignore[arg-type]
        parser.feed(RESPONSES, answered, 2, out)  # type: ignore[arg-type]
        http1.describe(*out)
        out.clear()


def ours_split(load: Load) -> None:
    """Head and body in two writes, as many servers send them."""
    parser = http1.Parser(KEEP)
    out: list[Message | Handover] = []
    for asked, answered in load:
        cut = answered.index(b"\r\n\r\n") + 4
        parser.feed(REQUESTS, asked, 1, out)
        parser.feed(RESPONSES, answered[:cut], 2, out)
        parser.feed(RESPONSES, answered[cut:], 2, out)
        out.clear()


class Kept:
    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.target = ""
        self.size = 0

    def on_url(self, url: bytes) -> None:
        self.target = url.decode()

    def on_header(self, name: bytes, value: bytes) -> None:
        text = name.decode().lower()
        if text in KEEP:
            self.headers[text] = value.decode()

    def on_body(self, body: bytes) -> None:
        self.size += len(body)


def with_httptools(load: Load) -> None:
    for asked, answered in load:
        kept = Kept()
        asking = httptools.HttpRequestParser(kept)
        asking.feed_data(asked)
        asking.get_method().decode()
        kept = Kept()
        answering = httptools.HttpResponseParser(kept)
        answering.feed_data(answered)
        answering.get_status_code()


def with_h11(load: Load) -> None:
    for asked, answered in load[:20]:
        server, client = h11.Connection(h11.SERVER), h11.Connection(h11.CLIENT)
        server.receive_data(asked)
        while server.their_state is not h11.DONE:
            server.next_event()
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        client.send(h11.EndOfMessage())
        client.receive_data(answered)
        while client.their_state is not h11.DONE:
            client.next_event()


def measure(rounds: int) -> dict[str, float]:
    """Best us per pair of each parser."""
    best: dict[str, float] = {}
    runs: list[tuple[str, Callable[[Load], None], Make, Make, int]] = [
        ("http1, whole", ours, request, response, PAIRS),
        ("http1, whole, no ids in the heads", ours, steady_request, steady_response, PAIRS),
        ("http1, whole, described", ours_described, request, response, PAIRS),
        ("http1, response in two", ours_split, request, response, PAIRS),
        ("http1, response chunked", ours, request, chunked, PAIRS),
        ("httptools, kept fields", with_httptools, request, response, PAIRS),
        ("httptools, kept fields, no ids in the heads", with_httptools, steady_request, steady_response, PAIRS),
        ("h11", with_h11, request, response, 20),
    ]
    for turn in range(rounds):
        load = [(turn * PAIRS + n) for n in range(PAIRS)]
        for name, run, ask, answer, pairs in runs:
            data = [(ask(n), answer(n)) for n in load]
            begin = time.perf_counter_ns()
            run(data)
            took = (time.perf_counter_ns() - begin) / pairs / 1000
            best[name] = min(best.get(name, took), took)
    return best


def main() -> None:
    gc.disable()
    for name, took in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 300).items():
        print(f"{took:8.2f} us per request and response  {name}")


if __name__ == "__main__":
    main()
