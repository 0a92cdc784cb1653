"""Pairs, their two ends, what becomes of requests without an answer, and the gauge of those under way."""

from __future__ import annotations

import pytest

from meshscope.capture import abi
from meshscope.flow.limits import Limits
from meshscope.model import UNKNOWN_REASONS
from meshscope.stats import COUNTERS
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import Tape

RX, TX = abi.RX, abi.TX
LINGER = Limits().linger_ns


def test_pipelined_requests_are_paired_in_order() -> None:
    tape = Tape().open(1).data(1, RX, b"".join(b"ASK /%d 0\n" % n for n in range(16)))
    run = Run().take(tape)
    assert run.flow.active() == {("server", 100): 16}
    tape.data(1, TX, b"".join(b"TELL %d 0\n" % (200 + n) for n in range(16)))
    run.take(tape)
    assert [(x.request.target, x.response and x.response.status) for x in run.exchanges] == [
        (f"/{n}", 200 + n) for n in range(16)
    ]
    assert run.flow.active() == {("server", 100): 0}
    assert [x.joint[2] - run.exchanges[0].joint[2] for x in run.exchanges if x.joint and run.exchanges[0].joint][1] == 9
    run.finish()


def test_an_early_answer_waits_for_the_end_of_its_request() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 9\n1234").data(1, TX, b"TELL 413 0\n")
    run = Run().take(tape)
    assert run.exchanges == []
    run.take(tape.data(1, RX, b"56789"))
    assert [(x.request.size, x.response and x.response.status) for x in run.exchanges] == [(9, 413)]


def test_an_early_answer_and_the_end() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 9\n1234").data(1, TX, b"TELL 413 0\n").shut(1, TX).shut(1, RX)
    run = Run().take(tape.close(1)).finish()
    assert [(x.request.size, x.response and x.response.status, x.about.outcome) for x in run.exchanges] == [(4, 413, "ok")]


def test_an_answer_that_breaks_off() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 9\n1234").close(1, err=104)
    run = Run().take(tape).finish()
    assert [(x.about.outcome, x.response and x.response.size) for x in run.exchanges] == [("aborted", 4)]
    assert (run.stats.n["messages_aborted"], run.stats.n["messages_paired"]) == (2, 0)


def test_what_breaks_off_where_bytes_were_lost_is_unknown() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 99\n1").data(1, TX, b"2", lost=True).data(1, TX, b"3")
    run = Run().take(tape.close(1)).finish()
    assert (run.outcomes, run.exchanges[0].flags) == (["unknown"], ("bytes_lost",))


def test_requests_whose_answers_were_lost_do_not_wait_for_ever() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n", lost=True).data(1, RX, b"ASK /b 0\n", lost=True)
    tape.data(1, TX, b"TELL 200 0\n").data(1, RX, b"ASK /c 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert not run.flow.connections[1].open
    assert set(run.flow.active().values()) == {0}
    run.finish()
    assert run.exchanges[-1].request.target == "/c"


def test_an_orphan_counts_once() -> None:
    tape = (
        Tape()
        .open(1)
        .data(1, RX, b"ASK /a 0\n")
        .data(1, TX, b"TELL 200 0\n")
        .data(1, TX, b"TELL 200 9\n123")
        .data(1, TX, b"456789")
    )
    run = Run().take(tape.later(LINGER).open(2)).finish()
    assert (run.stats.n["messages"], run.stats.n["messages_orphaned"]) == (3, 1)
    assert run.targets == ["/a"]


def test_open_requests_are_bounded_and_the_oldest_goes_first() -> None:
    tape = Tape().open(1).data(1, RX, b"".join(b"ASK /%d 0\n" % n for n in range(12)))
    run = Run(limits=Limits(open_requests=10)).take(tape)
    assert run.targets == ["/0", "/1"]
    assert [x.flags for x in run.exchanges] == [("evicted",)] * 2
    tape.data(1, TX, b"TELL 200 0\n" * 12)
    run.take(tape).finish()
    assert len(run.exchanges) == 12
    assert (run.stats.n["open_requests_evicted"], run.stats.n["messages_orphaned"]) == (2, 2)


def test_a_request_given_up_before_its_end_does_not_come_back() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 5\n12")
    for conn in (2, 3, 4):
        tape.open(conn).data(conn, RX, b"ASK")
    run = Run(limits=Limits(connections=2)).take(tape.data(1, RX, b"345"))
    assert run.outcomes == ["unknown"]
    run.finish()
    assert run.stats.n["messages"] == 1
    assert run.stats.n["connections_without_open"] == 1


def test_the_gauge_forgets_processes_that_ended() -> None:
    tape = Tape().open(1)
    for tgid in (1, 2, 3):
        tape.by(tgid).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert run.flow.active() == {("server", 1): 0, ("server", 2): 0, ("server", 3): 0}
    run.take(tape.process(abi.PROCESS_EXIT, 2).later(LINGER).open(7))
    assert run.flow.active() == {("server", 1): 0, ("server", 3): 0}


def test_the_gauge_is_bounded() -> None:
    tape = Tape().open(1)
    for tgid in range(1, 40):
        tape.by(tgid).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n")
    assert len(Run(limits=Limits(processes=10)).take(tape).flow.active()) <= 10


def test_every_reason_has_a_counter() -> None:
    assert {name for name in COUNTERS if name.startswith("unknown_")} == {"unknown_" + reason for reason in UNKNOWN_REASONS}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.5.5.5"])
def test_the_namespace_belongs_to_the_joint_key_of_loopback(address: str) -> None:
    tape = Tape().open(1, remote=(address, 9), local=(address, 80)).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    joint = run.exchanges[0].joint
    assert joint
    assert (joint[0], joint[1], joint[3]) == (address, 9, 0 if address.startswith("10.") else 4_026_531_840)


def test_retransmits_are_those_since_the_request() -> None:
    tape = Tape().open(1)
    tape.retransmits = 3
    tape.data(1, RX, b"ASK /a 0\n")
    tape.retransmits, tape.srtt_us = 5, 900
    run = Run().take(tape.data(1, TX, b"TELL 200 0\n"))
    assert (run.exchanges[0].retransmits, run.exchanges[0].srtt_us) == (2, 900)


def test_an_answer_recorded_before_its_request_has_no_negative_duration() -> None:
    tape = Tape().open(1, role=abi.ROLE_CLIENT).data(1, RX, b"TELL 200 0\n").data(1, TX, b"ASK /a 0\n")
    (x,) = Run().take(tape).exchanges
    assert x.end_ns == x.start_ns
