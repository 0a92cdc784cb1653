"""Which connections get a parser, in which role, and which are left alone."""

from __future__ import annotations

import types

import pytest

from meshscope.capture import abi
from meshscope.flow.limits import Limits
from parsers.base import Verdict
from tests.meshscope.flow import toy
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import SESSION, Tape

RX, TX = abi.RX, abi.TX
LIMITS = Limits()


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_first_line_in_two_records(cut: int) -> None:
    line = b"ASK /a 0\n"
    tape = Tape().open(1).data(1, RX, line[:cut]).later(5_000).data(1, RX, line[cut:]).data(1, TX, b"TELL 200 0\n")
    start = 1_000_001_000
    run = Run().take(tape).finish()
    (x,) = run.exchanges
    assert (x.start_ns, x.flags, x.request.target) == (start, (), "/a")


def test_the_first_protocol_that_claims_the_bytes_gets_them() -> None:
    def other(name: str, verdict: Verdict) -> types.SimpleNamespace:
        return types.SimpleNamespace(NAME=name, sniff=lambda _: verdict, Parser=toy.Parser, describe=toy.describe)

    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n")
    records = list(tape.records)
    run = Run(protocols=(other("none", Verdict.NO), toy, other("all", Verdict.REQUEST))).take(tape)
    assert run.exchanges[0].protocol == "toy/1"
    tape.records = records
    run = Run(protocols=(other("waits", Verdict.MAYBE), toy)).take(tape)
    assert run.exchanges == []  # the order is a priority


def test_bytes_nobody_claims() -> None:
    run = Run().take(Tape().open(1).data(1, RX, b"\0hello"))
    assert run.verdicts == []  # the other direction has not spoken
    tape = Tape().open(1).data(1, RX, b"\0hello").data(1, TX, b"\0hello").data(1, RX, b"ASK /a 0\n")
    run = Run().take(tape).finish()
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert run.stats.n["connections_unrecognised"] == 1
    assert run.stats.n["bytes_unrecognised"] == 12
    assert run.stats.n["records_ignored"] == 1
    assert run.exchanges == []


def test_one_direction_alone_says_enough() -> None:
    tape = Tape().open(1)
    for _ in range(3):
        tape.data(1, RX, bytes(2_000))
    assert Run().take(tape).verdicts == [(1, abi.IGNORE, 0, 0)]


def test_a_line_that_does_not_end_is_given_up() -> None:
    run = Run(protocols=(types.SimpleNamespace(NAME="x", sniff=lambda _: Verdict.MAYBE, Parser=None),))
    tape = Tape().open(1)
    for _ in range(20):
        tape.data(1, RX, b"x" * 1_000)
    run.take(tape)
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert not run.flow.connections[1].held


def test_the_handshake_knows_the_role_better_than_the_bytes() -> None:
    tape = Tape().open(1, role=abi.ROLE_CLIENT).data(1, RX, b"ASK /a 0\n").data(1, TX, b"ASK /b 0\n").data(1, RX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert [(x.role, x.request.target) for x in run.exchanges] == [("client", "/b")]


def test_an_answer_gives_the_role_too() -> None:
    tape = Tape().open(1, role=abi.ROLE_UNKNOWN, started=0).data(1, RX, b"TELL 200 0\n").data(1, TX, b"ASK /b 0\n")
    tape.later(LIMITS.linger_ns).data(1, RX, b"TELL 201 0\n")
    run = Run().take(tape).finish()
    assert [(x.role, x.response and x.response.status) for x in run.exchanges] == [("client", 200)]  # they may have raced
    tape = Tape().open(1, role=abi.ROLE_UNKNOWN, started=0).data(1, RX, b"TELL 200 0\n").later(LIMITS.linger_ns)
    run = Run().take(tape.data(1, TX, b"ASK /b 0\n").data(1, RX, b"TELL 201 0\n")).finish()
    assert [(x.role, x.response and x.response.status) for x in run.exchanges] == [("client", 201)]
    assert run.stats.n["messages_orphaned"] == 1


def test_a_late_join_is_asked_at_every_record_but_not_for_ever() -> None:
    tape = Tape().open(1, started=0)
    for n in range(40):
        tape.data(1, n % 2, b"nothing known")
    run = Run().take(tape)
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert run.stats.n["records_ignored"] == 40 - LIMITS.late_turns
    tape.open(2, started=0).data(2, TX, b"", length=LIMITS.late_bytes)
    assert run.take(tape).verdicts == [(1, abi.IGNORE, 0, 0), (2, abi.IGNORE, 0, 0)]


def test_a_hole_before_anything_is_recognised_makes_it_a_late_join() -> None:
    tape = Tape().open(1).data(1, RX, b"AS").data(1, RX, b"K /a 0\n", lost=True).data(1, RX, b"ASK /b 0\n")
    run = Run().take(tape.data(1, TX, b"TELL 200 0\n"))
    assert [(x.request.target, x.flags) for x in run.exchanges] == [("/b", ("late_join",))]
    assert run.stats.n["bytes_lost"] == 7


def test_a_connection_whose_first_records_were_lost_is_known_by_what_it_has_moved() -> None:
    tape = Tape().data(1, RX, b"ASK /a 0\n", lost=True).data(1, TX, b"TELL 200 0\n", lost=True)
    tape.open(1).data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 200 0\n")
    assert Run().take(tape).exchanges[0].flags == ("late_join",)


def test_bytes_that_come_twice_before_anything_is_recognised() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK")
    tape.data(1, RX, b"ASK", pos=tape.position(1, RX) - 3).data(1, RX, b" /a 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert (run.targets, run.stats.n["bytes_overlapped"]) == (["/a"], 3)


def test_an_unread_first_record_is_passed_over() -> None:
    tape = Tape().open(1).data(1, TX, b"", length=500, flags=abi.UNREADABLE)
    run = Run().take(tape.data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n"))
    assert [x.flags for x in run.exchanges] == [("late_join",)]


def test_a_tls_session_is_a_stream_of_its_own() -> None:
    ids = {"tls": SESSION | 5}
    tape = Tape().open(0, ssl=99, **ids).data(0, TX, b"ASK /a 0\n", **ids).data(0, RX, b"TELL 200 0\n", **ids)
    run = Run().take(tape)
    (x,) = run.exchanges
    assert (x.role, x.tls, x.flags, x.joint) == ("client", True, ("peer_unknown",), None)
    assert run.stats.n["tls_sessions_unbound"] == 1


def test_a_tls_session_joined_in_its_middle() -> None:
    ids = {"tls": SESSION | 5}
    tape = Tape().open(0, **ids).data(0, RX, b"rest of a body", **ids).data(0, RX, b"ASK /a 0\n", **ids)
    run = Run().take(tape.data(0, TX, b"TELL 200 0\n", **ids))
    assert run.exchanges[0].flags == ("late_join", "peer_unknown")


def test_a_tls_session_nobody_claims_is_left_alone() -> None:
    tape = Tape().open(0, tls=SESSION | 5)
    for n in range(LIMITS.late_turns):
        tape.data(0, n % 2, b"\0\0", tls=SESSION | 5)
    assert Run().take(tape).verdicts == [(SESSION | 5, abi.IGNORE, 0, 0)]
