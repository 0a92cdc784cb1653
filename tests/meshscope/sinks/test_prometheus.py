from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse

import pytest

from meshscope.sinks import prometheus
from meshscope.sinks.golden import Golden
from meshscope.sinks.prometheus import Prometheus
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange
from tests.meshscope.sinks.test_exposition import value

BOUND_S = 10.0


class Served:
    def __init__(self) -> None:
        self.stats = Stats()
        self.golden = Golden(self.stats)
        self.sink = Prometheus(self.golden, self.stats, "127.0.0.1", 0)

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection("127.0.0.1", self.sink.port, timeout=BOUND_S)
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response, response.read()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.sink.port), BOUND_S)


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.sink.close()


def test_the_page_is_what_was_counted_up_to_now(served: Served) -> None:
    for n in (1, 2):
        served.golden.emit([exchange()])
        response, body = served.ask("GET", "/metrics?x=1")
        assert response.status == 200
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert value(body.decode(), "http_server_request_duration_seconds_count") == n
    assert served.stats.n["scrapes"] == 2


def test_the_page_is_gzipped_for_who_takes_it(served: Served) -> None:
    served.golden.emit([exchange()])
    response, body = served.ask("GET", "/metrics", {"accept-encoding": "gzip"})
    assert response.headers["content-encoding"] == "gzip"
    assert value(gzip.decompress(body).decode(), "http_server_request_duration_seconds_count") == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/healthz", 200, b"ok\n"),
        ("GET", "/", 404, b"there is /metrics and /healthz\n"),
        ("GET", "/metrics/..", 404, b"there is /metrics and /healthz\n"),
        ("POST", "/metrics", 405, b"Method Not Allowed\n"),
        ("HEAD", "/metrics", 405, b""),
        ("<script>", "/<script>", 405, b"Method Not Allowed\n"),
    ],
)
def test_there_is_nothing_else(served: Served, method: str, path: str, status: int, body: bytes) -> None:
    response, found = served.ask(method, path)
    assert (response.status, found) == (status, body)
    assert response.headers["server"] == "meshscope"


@pytest.mark.parametrize(
    "rubbish", [b"\x16\x03\x01\x02\x00" * 50 + b"\r\n\r\n", b"GET /" + b"x" * 70000, b"GET / HTTP/9.9\r\n\r\n"]
)
def test_rubbish_gets_an_answer_or_a_close_and_the_next_is_served(served: Served, rubbish: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(rubbish)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionResetError:  # it did not read all of that
            pass
    assert rubbish[:20] not in answer
    assert served.ask("GET", "/healthz")[0].status == 200


def test_a_client_that_goes_away_is_no_trouble(served: Served) -> None:
    served.golden.emit([exchange(route=f"/{i}") for i in range(200)])
    for _ in range(20):
        with served.connect() as connection:
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert served.ask("GET", "/metrics")[0].status == 200


def test_too_many_connections_are_turned_away_until_they_are_overdue(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [served.connect() for _ in range(16)]
    with served.connect() as refused:
        assert refused.recv(1) == b""
    assert served.stats.n["scrapes_refused"] == 1
    monkeypatch.setattr(prometheus, "_OVERDUE_S", -1.0)
    assert served.ask("GET", "/healthz")[0].status == 200
    assert idle[0].recv(1) == b""
    for connection in idle:
        connection.close()


def test_an_address_in_use_is_one_clear_line(served: Served) -> None:
    with pytest.raises(
        OSError, match=rf"cannot serve metrics on 127.0.0.1:{served.sink.port}: it is in use; choose another port"
    ):
        Prometheus(served.golden, served.stats, "127.0.0.1", served.sink.port)


@pytest.mark.parametrize("address", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_that_is_not_ours_is_one_clear_line(address: str) -> None:
    with pytest.raises(OSError, match=f"cannot serve metrics on {address}:9100: ") as error:
        Prometheus(Golden(Stats()), Stats(), address, 9100)
    assert "\n" not in str(error.value)


def test_ipv6() -> None:
    sink = Prometheus(Golden(Stats()), Stats(), "::1", 0)
    connection = HTTPConnection("::1", sink.port, timeout=BOUND_S)
    connection.request("GET", "/healthz")
    assert connection.getresponse().read() == b"ok\n"
    connection.close()
    sink.close()


def test_scraping_while_counting_never_shows_less_than_before(served: Served) -> None:
    done = threading.Event()

    def count() -> None:
        i = 0
        while not done.is_set():
            served.golden.emit([exchange(route=f"/{i % 50}")])
            served.golden.flush(i)
            i += 1

    thread = threading.Thread(target=count)
    thread.start()
    try:
        before = 0.0
        for _ in range(20):
            text = served.ask("GET", "/metrics")[1].decode()
            counts = [
                float(x.rpartition(" ")[2])
                for x in text.splitlines()
                if x.startswith("http_server_request_duration_seconds_count")
            ]
            assert sum(counts) >= before
            before = sum(counts)
    finally:
        done.set()
        thread.join(BOUND_S)
    assert before > 0


def test_closing_frees_the_address(served: Served) -> None:
    served.sink.close()
    again = Prometheus(served.golden, served.stats, "127.0.0.1", served.sink.port)
    again.emit([])
    again.flush(0)
    again.close()
