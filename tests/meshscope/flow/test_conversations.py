"""Real conversations through flow with the real protocols and the real redaction."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscope.capture import abi
from meshscope.flow.limits import Limits
from meshscope.redact import Redactor
from parsers import PROTOCOLS
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import SESSION, Tape

RX, TX = abi.RX, abi.TX
Said = list[tuple[int, bytes]]  # (0 the client, 1 the server; bytes)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhello"
SAID: Said = [
    (0, b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (1, OK),
    (0, b'POST /1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{"a"}'),
    (1, CHUNKED),
    (0, b"HEAD /2 HTTP/1.1\r\nHost: a\r\n\r\n"),
    (1, b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
    (0, b"PUT /3 HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"),
    (1, b"HTTP/1.1 100 Continue\r\n\r\n"),
    (0, b'{"a"}'),
    (1, b"HTTP/1.1 204 No Content\r\n\r\n"),
    (0, b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % n for n in range(4, 8))),
    (1, OK + CHUNKED + b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n" + OK),
    (0, b"GET /8 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"),
    (1, UNTIL_CLOSE),
]
EXPECTED = [
    (f"/{n}", status, size)
    for n, (status, size) in enumerate(
        [(200, 5), (200, 5), (200, 0), (204, 0), (200, 5), (200, 5), (404, 0), (200, 5), (200, 5)],
    )
]


def tape_of(said: Said, role: int, tls: int = 0, started: int = 1) -> Tape:
    """One end of a conversation, which the server closes."""
    tape = Tape().open(1, role=role, started=started)
    if tls:
        tape.open(0, tls=tls)
    flip = 1 if role == abi.ROLE_CLIENT else 0
    for who, data in said:
        tape.data(0 if tls else 1, who ^ flip, data, tls=tls)
    if tls:
        return tape.close(0, tls=tls)
    return tape.shut(1, 1 ^ flip).close(1)


def run_of(tape: Tape, cuts: list[int] | None = None, limits: Limits | None = None) -> Run:
    return Run(PROTOCOLS, limits, redact=Redactor()).take(tape, cuts or []).finish()


def rows(run: Run) -> list[tuple[str | None, int, int]]:
    return [
        (x.request.target, x.response.status if x.response else 0, x.response.size if x.response else -1) for x in run.exchanges
    ]


@pytest.mark.parametrize("role", [abi.ROLE_SERVER, abi.ROLE_CLIENT])
@pytest.mark.parametrize("tls", [0, SESSION | 1])
def test_a_whole_conversation_from_either_end(role: int, tls: int) -> None:
    run = run_of(tape_of(SAID, role, tls))
    assert rows(run) == EXPECTED
    assert {x.flags for x in run.exchanges} == ({("peer_unknown",)} if tls else {()})
    assert run.stats.n["messages_paired"] == 18


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.sampled_from([abi.ROLE_SERVER, abi.ROLE_CLIENT]))
def test_in_records_of_any_size(sizes: list[int], role: int) -> None:
    said: Said = []
    for who, data in SAID:
        at = 0
        while at < len(data):
            size = sizes[len(said) % len(sizes)]
            said.append((who, data[at : at + size]))
            at += size
    run = run_of(tape_of(said, role))
    assert rows(run) == EXPECTED
    assert not any(x.flags for x in run.exchanges)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 60), max_size=10), st.lists(st.integers(0, 40), max_size=6))
def test_both_ends_however_they_are_split_and_whatever_is_lost(cuts: list[int], lost: list[int]) -> None:
    def both() -> Tape:
        tape = Tape().pair(1, 2).open_end(1).open_end(2)
        for n, (who, data) in enumerate(SAID):
            first, second = ((1, TX), (2, RX)) if who == 0 else ((2, TX), (1, RX))
            tape.data(*first, data, lost=2 * n in lost).data(*second, data, lost=2 * n + 1 in lost)
        return tape.shut(2, TX).shut(1, RX).close(1).close(2)

    whole, split = run_of(both()), run_of(both(), cuts)
    assert split.plain() == whole.plain()
    assert split.stats.n == whole.stats.n
    assert "aborted" not in whole.outcomes
    if not lost:
        assert sorted(rows(whole)) == sorted(EXPECTED * 2)
        assert all(x.peer_seen for x in whole.exchanges if x.role == "server")
        assert not any(x.flags for x in whole.exchanges)
    for x in whole.exchanges:
        if x.about.outcome != "unknown":
            assert x.response
            assert (x.request.target, x.response.status) in {row[:2] for row in EXPECTED}
            assert x.flags or (x.request.target, x.response.status, x.response.size) in EXPECTED


@pytest.mark.parametrize("skipped", range(1, len(SAID)))
def test_joined_late_the_second_request_on_is_right(skipped: int) -> None:
    run = run_of(tape_of(SAID[skipped:], abi.ROLE_UNKNOWN, started=0))
    assert set(rows(run)[1:]) <= set(EXPECTED)
    assert "aborted" not in run.outcomes
    wanted = [row for row in EXPECTED if any(f" {row[0]} ".encode() in data for who, data in SAID[skipped:] if who == 0)]
    assert rows(run)[1:] == wanted[1:]


def test_an_upgraded_connection_is_left_alone() -> None:
    said: Said = [
        (0, b"GET /chat HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"),
        (1, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n\x81\x05hello"),
        (0, b"\x81\x85aaaahello"),
    ]
    run = run_of(tape_of(said, abi.ROLE_SERVER))
    assert [(x.request.target, x.response and x.response.status, x.flags) for x in run.exchanges] == [
        ("/chat", 101, ("upgraded",))
    ]
    assert run.verdicts[0] == (1, abi.IGNORE, 0, 0)


def test_a_gigabyte_is_counted_without_being_copied() -> None:
    size = 1 << 30
    tape = Tape().open(1).data(1, RX, b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n")
    tape.data(1, TX, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + bytes(1_000))
    run = Run(PROTOCOLS).take(tape)
    assert run.verdicts[0][:3] == (1, abi.EVERYTHING, 0)
    run.take(tape.data(1, TX, b"", length=size - 1_001, lost=True).data(1, TX, b"x")).finish()
    assert rows(run) == [("/big", 200, size)]
    assert (run.exchanges[0].flags, run.stats.n["bytes_lost"]) == ((), 0)


def test_a_client_that_hangs_up_early() -> None:
    said: Said = [(0, b"GET /0 HTTP/1.1\r\nHost: a\r\n\r\n"), (1, OK), (0, b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")]
    run = run_of(tape_of(said, abi.ROLE_SERVER))
    assert [(x.about.outcome, x.response is None) for x in run.exchanges] == [("ok", False), ("aborted", True)]


def test_secrets_do_not_leave() -> None:
    said: Said = [
        (0, b"GET /a?token=s3cr3t HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer s3cr3t\r\nCookie: s3cr3t\r\n\r\n"),
        (1, b"HTTP/1.1 200 OK\r\nSet-Cookie: s3cr3t\r\nContent-Length: 0\r\n\r\n"),
    ]
    run = run_of(tape_of(said, abi.ROLE_SERVER))
    assert len(run.exchanges) == 1
    assert "s3cr3t" not in repr(run.plain())


def test_other_protocols_are_left_alone() -> None:
    for first, second in (
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"SSH-2.0-x\r\n"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", b"\0\0"),
        (b"*1\r\n$4\r\nPING\r\n", b"+PONG\r\n"),
    ):
        run = run_of(tape_of([(0, first), (1, second)], abi.ROLE_SERVER))
        assert run.exchanges == []
        assert run.verdicts[0] == (1, abi.IGNORE, 0, 0)
