"""TLS on the wire: the server random, and how it binds a session to its socket."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.capture import abi
from meshscope.flow.connection import Connection
from meshscope.flow.limits import Limits
from meshscope.flow.tls import CLIENT_HELLO, MORE, OTHER, RETRY, SERVER_HELLO, Handshakes, begins_tls, hello
from meshscope.model import CLIENT, SERVER
from meshscope.stats import Stats
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import SESSION, Tape

RX, TX = abi.RX, abi.TX
LINGER = Limits().linger_ns


def record(kind: int, body: bytes) -> bytes:
    return bytes([kind, 3, 3]) + len(body).to_bytes(2, "big") + body


def client_hello() -> bytes:
    return record(22, b"\1\0\0\x60\3\3" + b"c" * 94)


def server_hello(random: bytes) -> bytes:
    return record(22, b"\2\0\0\x46\3\3" + random + bytes(38)) + record(23, b"e" * 100)


def random_of(n: int) -> bytes:
    return n.to_bytes(4, "big") * 8


class Memory:
    """Stands for process_vm_readv: SSL pointer -> server random in the object."""

    def __init__(self, **objects: int) -> None:
        self.objects = {int(name[1:]): random_of(n) for name, n in objects.items()}
        self.asked: list[tuple[int, int, int, int]] = []

    def __call__(self, tls: int, tgid: int, pointer: int, randoms: Sequence[bytes]) -> bytes | None:
        self.asked.append((tls, tgid, pointer, len(randoms)))
        random = self.objects.get(pointer)
        return random if random in randoms else None


def handshake(tape: Tape, conn: int, role: int, random: bytes) -> Tape:
    """A socket with TLS, up to the ServerHello."""
    out, back = (TX, RX) if role == abi.ROLE_CLIENT else (RX, TX)
    return tape.open(conn, role).data(conn, out, client_hello()).data(conn, back, server_hello(random))


def asked(tape: Tape, tls: int, role: int, conn: int = 0, target: bytes = b"/a") -> Tape:
    """An exchange of a TLS session."""
    out, back = (TX, RX) if role == abi.ROLE_CLIENT else (RX, TX)
    return tape.data(conn, out, b"ASK %s 0\n" % target, tls=SESSION | tls).data(conn, back, b"TELL 200 0\n", tls=SESSION | tls)


def test_a_real_hello() -> None:
    out = ssl.MemoryBIO()
    context = ssl.create_default_context()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="example.test").do_handshake()
    assert hello(out.read()) == (CLIENT_HELLO, b"")


def test_the_random_is_found_behind_a_retry() -> None:
    assert hello(server_hello(RETRY)[:81] + record(20, b"\1") + server_hello(random_of(7))) == (SERVER_HELLO, random_of(7))


@given(st.integers(0, 300))
def test_a_hello_that_is_not_whole_asks_for_more(cut: int) -> None:
    whole = server_hello(RETRY)[:81] + record(20, b"\1") + server_hello(random_of(7))
    found, random = hello(whole[:cut])
    assert (found, random) == ((SERVER_HELLO, random_of(7)) if cut >= 81 + 6 + 43 else (MORE, b""))


def test_other_beginnings() -> None:
    assert hello(client_hello()) == (CLIENT_HELLO, b"")
    assert hello(record(23, b"data")) == (OTHER, b"")
    assert hello(record(21, b"\2\x28")) == (OTHER, b"")
    assert hello(record(22, b"\x0b\0\0\1")) == (OTHER, b"")


@given(st.binary(max_size=400))
def test_any_bytes_have_an_answer(head: bytes) -> None:
    hello(head)
    hello(b"\x16\x03\x01" + head)


def test_what_looks_like_tls() -> None:
    assert begins_tls(client_hello())
    assert begins_tls(b"\x17\x03\x03\0\1x")
    assert begins_tls(b"\x16")
    assert not begins_tls(b"")
    assert not begins_tls(b"\x16\x02")
    assert not begins_tls(b"\x16\x03\x09")
    assert not begins_tls(b"GET / HTTP/1.1")


def test_after_the_hello_a_socket_is_left_alone() -> None:
    run = Run().take(handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)))
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert run.stats.n["tls_connections"] == 1
    assert run.flow.connections[1].random == random_of(1)


@pytest.mark.parametrize("cut", [1, 2, 4, 40])
def test_a_handshake_in_pieces(cut: int) -> None:
    tape = Tape().open(1, role=abi.ROLE_UNKNOWN, started=0)
    for way, data in ((RX, client_hello()), (TX, server_hello(random_of(1)))):
        tape.data(1, way, data[:cut]).data(1, way, data[cut:])
    connection = Run().take(tape).flow.connections[1]
    assert (connection.random, connection.role) == (random_of(1), SERVER)


def test_a_tls_connection_joined_in_its_middle() -> None:
    run = Run().take(Tape().open(1, started=0).data(1, RX, record(23, b"secret")))
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert run.flow.connections[1].random == b""


def test_a_handshake_without_a_hello_is_not_waited_for() -> None:
    tape = Tape().open(1).data(1, TX, record(22, b"")[:5] + b"\0" * 0)
    for _ in range(3):
        tape.data(1, TX, record(20, bytes(1_000)))
    assert Run().take(tape).verdicts == [(1, abi.IGNORE, 0, 0)]


def test_a_session_bound_by_the_kernel() -> None:
    tape = handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)).open(1, tls=SESSION | 9, ssl=64)
    memory = Memory(_64=1)
    run = Run(bind=memory).take(asked(asked(tape, 9, abi.ROLE_SERVER, 1), 9, abi.ROLE_SERVER, 1))
    assert memory.asked == []
    x, y = run.exchanges
    assert (x.tls, x.role, x.client.address, x.client.port, x.server.port, x.flags) == (
        True,
        "server",
        "10.0.0.1",
        40_000,
        80,
        (),
    )
    assert (x.joint, y.joint) == ((random_of(1), 0, 0, 0), (random_of(1), 9, 0, 0))


def test_a_session_bound_by_its_random() -> None:
    tape = Tape()
    for conn in (1, 2, 3):
        handshake(tape, conn, abi.ROLE_SERVER, random_of(conn))
    tape.open(0, tls=SESSION | 9, ssl=64)
    memory = Memory(_64=2)
    run = Run(bind=memory).take(asked(tape, 9, abi.ROLE_SERVER))
    assert memory.asked == [(SESSION | 9, 100, 64, 3)]
    (x,) = run.exchanges
    assert (x.joint, x.flags) == ((random_of(2), 0, 0, 0), ())
    assert run.flow.connections[2].session is run.flow.connections[SESSION | 9]
    tape.open(0, tls=SESSION | 10, ssl=64)
    run.take(asked(tape, 10, abi.ROLE_SERVER))
    assert run.exchanges[1].flags == ("peer_unknown",)  # one socket carries one session
    assert run.stats.n["tls_sessions_unbound"] == 1


def test_a_session_bound_by_the_memory_it_brought() -> None:
    tape = Tape()
    for conn in (1, 2, 3):
        handshake(tape, conn, abi.ROLE_SERVER, random_of(conn))
    tape.open(0, tls=SESSION | 9, ssl=64, memory=bytes(320) + random_of(3) + bytes(160))
    gone = Memory()
    run = Run(bind=gone).take(asked(tape, 9, abi.ROLE_SERVER))
    assert gone.asked == []
    assert (run.exchanges[0].joint, run.exchanges[0].flags) == ((random_of(3), 0, 0, 0), ())


def test_both_ends_in_one_process_are_told_apart_by_their_role() -> None:
    tape = Tape().pair(1, 2).open_end(1).data(1, TX, client_hello()).open_end(2).data(2, RX, client_hello())
    hello_back = server_hello(random_of(5))
    tape.data(2, TX, hello_back).data(1, RX, hello_back).open(0, tls=SESSION | 1, ssl=64).open(0, tls=SESSION | 2, ssl=128)
    ask = b"ASK /a 0\n"
    tape.data(0, TX, ask, tls=SESSION | 1).data(0, RX, ask, tls=SESSION | 2)
    tape.data(0, TX, b"TELL 200 0\n", tls=SESSION | 2).data(0, RX, b"TELL 200 0\n", tls=SESSION | 1)
    run = Run(bind=Memory(_64=5, _128=5)).take(tape).finish()
    assert {(x.role, x.peer_seen, x.flags) for x in run.exchanges} == {("client", True, ()), ("server", True, ())}
    assert run.flow.connections == {}
    assert len({x.joint for x in run.exchanges}) == 1


def test_the_kernel_knows_better_than_memory() -> None:
    tape = handshake(handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)), 2, abi.ROLE_SERVER, random_of(2))
    tape.open(0, tls=SESSION | 9, ssl=64)
    run = Run(bind=Memory(_64=1)).take(asked(asked(tape, 9, abi.ROLE_SERVER), 9, abi.ROLE_SERVER, conn=2))
    assert [x.joint and x.joint[0] for x in run.exchanges] == [random_of(1), random_of(2)]
    assert run.stats.n["tls_rebinds"] == 1


def test_a_session_named_late_gets_its_peer_from_then_on() -> None:
    tape = handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)).open(0, tls=SESSION | 9)
    run = Run().take(asked(asked(tape, 9, abi.ROLE_SERVER), 9, abi.ROLE_SERVER, conn=1))
    assert [x.flags for x in run.exchanges] == [("peer_unknown",), ()]
    run.take(tape.close(1)).finish()
    assert run.flow.opaque_tls == {}


def test_a_session_of_an_older_connection_is_unjoined_and_flagged() -> None:
    tape = Tape().open(1, started=0).data(1, RX, record(23, b"x")).open(1, tls=SESSION | 9)
    (x,) = Run().take(asked(tape, 9, abi.ROLE_SERVER, 1)).exchanges
    assert (x.joint, x.flags, x.client.port) == (None, ("late_join",), 40_000)


def test_a_second_session_on_a_socket_has_lost_count() -> None:
    tape = handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)).open(1, tls=SESSION | 9)
    asked(tape, 9, abi.ROLE_SERVER, 1).close(1, tls=SESSION | 9).open(1, tls=SESSION | 10)
    run = Run().take(asked(tape, 10, abi.ROLE_SERVER, 1, b"/b"))
    assert [(x.flags, x.joint is None) for x in run.exchanges] == [((), False), (("late_join",), True)]


@pytest.mark.parametrize(("socket_ends", "outcome"), [(True, "aborted"), (False, "unknown")])
def test_a_session_that_ends_before_its_socket(socket_ends: bool, outcome: str) -> None:
    tape = handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)).open(1, tls=SESSION | 9)
    tape.data(1, RX, b"ASK /a 0\n", tls=SESSION | 9).close(1, tls=SESSION | 9)
    if socket_ends:
        tape.close(1)
    run = Run().take(tape.later(LINGER).open(5))
    assert run.outcomes == [outcome]
    run.finish()


def test_the_end_of_the_socket_ends_the_session() -> None:
    tape = handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)).open(1, tls=SESSION | 9)
    tape.data(1, RX, b"ASK /a 0\n", tls=SESSION | 9).data(1, TX, b"TELL 200 -1\nhel", tls=SESSION | 9).shut(1, TX)
    end = tape.now - 1_000
    run = Run().take(tape.data(1, TX, b"lo", tls=SESSION | 9))
    assert run.exchanges == []
    run.take(tape.later(LINGER).open(5))
    (x,) = run.exchanges
    assert x.response
    assert (x.response.size, x.about.outcome, x.end_ns) == (5, "ok", end)
    run.take(tape.close(1).later(LINGER).open(6))
    assert SESSION | 9 not in run.flow.connections


def test_tls_without_plaintext_is_counted_per_process() -> None:
    tape = Tape()
    for conn in (1, 2, 3):
        handshake(tape.by(70 + conn % 2), conn, abi.ROLE_CLIENT, random_of(conn))
    run = Run().take(tape.close(1).close(2).later(LINGER).open(9))
    assert run.flow.opaque_tls == {71: 1, 70: 1}
    run.finish()
    assert run.flow.opaque_tls == {71: 2, 70: 1}
    assert run.stats.n["tls_connections_opaque"] == 3


def test_a_session_whose_socket_was_not_found_excuses_one_connection() -> None:
    tape = handshake(handshake(Tape(), 1, abi.ROLE_SERVER, random_of(1)), 2, abi.ROLE_SERVER, random_of(2)).open(
        0, tls=SESSION | 9
    )
    run = Run().take(asked(tape, 9, abi.ROLE_SERVER).close(1).close(2)).finish()
    assert run.flow.opaque_tls == {100: 1}


def test_handshakes_without_a_session_are_bounded() -> None:
    stats = Stats()
    handshakes = Handshakes(lambda *_: None, Limits(randoms=10, processes=5), stats)
    for tgid in range(20):
        for n in range(20):
            socket = Connection(n + 1, abi.SOCKET, 0, tgid)
            socket.random = random_of(n)
            handshakes.add(socket)
    assert len(handshakes._seen) == 5
    assert all(len(seen) == 10 for seen in handshakes._seen.values())
    handshakes.forget(19)
    assert 19 not in handshakes._seen


def test_of_two_sockets_without_a_role_none_is_guessed() -> None:
    handshakes = Handshakes(lambda *_: random_of(1), Limits(), Stats())
    sockets = [Connection(n, abi.SOCKET, 0, 7) for n in (1, 2)]
    for socket in sockets:
        socket.random = random_of(1)
        handshakes.add(socket)
    session = Connection(SESSION, abi.TLS, 0, 7)
    session.object, session.role = 64, CLIENT
    assert handshakes.claim(session) is None
    sockets[0].role, sockets[1].role = SERVER, CLIENT
    assert handshakes.claim(session) is sockets[1]
    handshakes.done(sockets[1])
    assert handshakes.claim(session) is None
