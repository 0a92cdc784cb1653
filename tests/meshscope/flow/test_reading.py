"""Positions, holes, overlaps, bytes not copied, answers that overtake their request, parsers that fail."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.capture import abi
from meshscope.flow.limits import Limits
from parsers.base import Message
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import SESSION, Tape

RX, TX = abi.RX, abi.TX
LINGER = Limits().linger_ns


def opened(conn: int = 1) -> Tape:
    """A server's connection with one exchange behind it."""
    return Tape().open(conn).data(conn, RX, b"ASK /0 0\n").data(conn, TX, b"TELL 200 0\n")


def asking(conn: int = 1) -> Tape:
    """A client's connection with one exchange behind it."""
    return Tape().open(conn, role=abi.ROLE_CLIENT).data(conn, TX, b"ASK /0 0\n").data(conn, RX, b"TELL 200 0\n")


def sizes(run: Run) -> list[int]:
    return [x.response.size if x.response else -1 for x in run.exchanges]


def test_a_lost_record_in_a_body_is_flagged_and_counted() -> None:
    tape = opened().data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 300\n" + bytes(100))
    tape.data(1, TX, bytes(100), lost=True).data(1, TX, bytes(100))
    run = Run().take(tape)
    assert (sizes(run), run.exchanges[1].flags, run.outcomes[1]) == ([0, 300], ("bytes_lost",), "ok")
    assert (run.stats.n["holes"], run.stats.n["bytes_lost"]) == (1, 100)


def test_what_was_not_copied_is_not_lost() -> None:
    tape = opened().data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 300\n" + bytes(100), length=313)
    run = Run().take(tape)
    assert (sizes(run), run.exchanges[1].flags) == ([0, 300], ())
    assert (run.stats.n["bytes_lost"], run.stats.n["bytes_not_copied"]) == (0, 200)
    tape.data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 200 300\n").data(1, TX, b"", length=300, flags=abi.UNREADABLE)
    assert sizes(run.take(tape)) == [0, 300, 300]


def test_a_long_body_is_skipped_but_for_its_last_byte() -> None:
    tape = opened().data(1, RX, b"ASK /a 0\n")
    begin = tape.position(1, TX)
    head = b"TELL 200 100000\n"
    run = Run().take(tape.data(1, TX, head + bytes(100)))
    end = begin + len(head) + 99_999
    assert run.verdicts == [(1, abi.EVERYTHING, 0, end)]
    assert run.stats.n["verdicts_skip"] == 1
    tape.data(1, TX, bytes(99_899), lost=True).later(1_000_000)  # the kernel heeds it
    last = tape.now
    run.take(tape.data(1, TX, b"x").data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 200 0\n"))
    assert (sizes(run), [x.flags for x in run.exchanges]) == ([0, 100_000, 0], [(), (), ()])
    assert run.exchanges[1].end_ns == last
    assert (run.stats.n["bytes_lost"], run.stats.n["holes"]) == (0, 0)


def test_what_is_lost_beyond_the_skip_is_lost() -> None:
    tape = opened().data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 100000\n")
    tape.data(1, TX, bytes(100_000), lost=True).data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert run.stats.n["bytes_lost"] == 1
    assert run.exchanges[1].flags == ("bytes_lost",)


def test_short_bodies_are_not_worth_a_verdict() -> None:
    run = Run().take(opened().data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 9000\n"))
    assert run.verdicts == []


@pytest.mark.parametrize(("back", "n"), [(9, 9), (3, 3), (9, 4)])
def test_bytes_that_come_twice_are_read_once(back: int, n: int) -> None:
    tape = opened().data(1, RX, b"ASK /a 0\n")
    tape.data(1, RX, b"x" * n, pos=tape.position(1, RX) - back).data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert (run.targets, run.stats.n["bytes_overlapped"]) == (["/0", "/a"], n)


def test_the_new_part_of_an_overlapping_record_is_read() -> None:
    tape = opened().data(1, RX, b"ASK /")
    tape.data(1, RX, b"/a 0\n", pos=tape.position(1, RX) - 1)
    tape.data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape)
    assert (run.targets, run.stats.n["bytes_overlapped"]) == (["/0", "/a"], 1)


def test_records_of_racing_threads_are_a_hole_and_an_overlap() -> None:
    tape = opened()
    at = tape.position(1, RX)
    tape.data(1, RX, b"ASK /b 0\n", pos=at + 9).data(1, RX, b"ASK /a 0\n", pos=at).data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    assert (run.targets, run.stats.n["bytes_lost"], run.stats.n["bytes_overlapped"]) == (["/0", "/b"], 9, 9)
    assert run.exchanges[1].flags == ("bytes_lost",)


def test_bytes_without_a_position_are_taken_in_order_and_have_no_joint_key() -> None:
    tape = Tape().open(1)
    for n in range(2):
        tape.data(1, RX, b"ASK /%d 0\n" % n, pos=7, flags=abi.UNPOSITIONED)
        tape.data(1, TX, b"TELL 200 0\n", pos=7, flags=abi.UNPOSITIONED)
    run = Run().take(tape)
    assert run.targets == ["/0", "/1"]
    assert [x.flags for x in run.exchanges] == [("unpositioned",)] * 2
    assert all(x.joint is None for x in run.exchanges)


def test_an_answer_before_its_request_waits_for_it() -> None:
    tape = asking().data(1, RX, b"TELL 201 5\nhel").data(1, RX, b"lo")
    run = Run().take(tape)
    assert run.stats.n["records_held"] == 2
    run.take(tape.later(LINGER - 10_000).data(1, TX, b"ASK /a 0\n"))
    assert sizes(run) == [0, 5]
    assert not run.flow.connections[1].held


def test_it_does_not_wait_longer_than_that() -> None:
    tape = asking().data(1, RX, b"TELL 201 0\n").later(LINGER)
    run = Run().take(tape.data(1, TX, b"ASK /a 0\n").data(1, RX, b"TELL 202 0\n")).finish()
    assert [x.response and x.response.status for x in run.exchanges] == [200, 202]
    assert run.stats.n["messages_orphaned"] == 1


def test_live_it_waits_until_tick_says_so() -> None:
    tape = asking().data(1, RX, b"TELL 201 0\n")
    run = Run().take(tape)
    run.flow.tick(tape.now + LINGER - 10_000)
    assert run.stats.n["messages_orphaned"] == 0
    run.flow.tick(tape.now + LINGER)
    assert run.stats.n["messages_orphaned"] == 1


def test_each_held_answer_waits_its_own_time() -> None:
    tape = asking().data(1, RX, b"TELL 201 0\n").later(LINGER - 10_000).data(1, RX, b"TELL 202 0\n").later(10_000)
    tape.data(1, TX, b"ASK /a 0\n")
    run = Run().take(tape).finish()
    assert [x.response and x.response.status for x in run.exchanges] == [200, 202]
    assert run.stats.n["messages_orphaned"] == 1


def test_a_server_does_not_answer_before_it_has_read() -> None:
    tape = opened().data(1, TX, b"TELL 201 0\n").data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 202 0\n")
    run = Run().take(tape).finish()
    assert [x.response and x.response.status for x in run.exchanges] == [200, 202]
    assert (run.stats.n["messages_orphaned"], run.stats.n["records_held"]) == (1, 0)


def test_a_lost_first_record_is_a_hole_like_any_other() -> None:
    tape = Tape().open(1, role=abi.ROLE_CLIENT).data(1, TX, b"ASK /a 0\n", lost=True).data(1, RX, b"TELL 200 0\n")
    tape.data(1, TX, b"ASK /b 0\n").data(1, RX, b"TELL 201 0\n")
    run = Run().take(tape).finish()
    assert (run.stats.n["bytes_lost"], run.stats.n["holes"]) == (9, 1)
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n", lost=True)
    tape.data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 201 0\n")
    run = Run().take(tape).finish()
    assert set(run.outcomes) == {"unknown"}
    assert run.stats.n["bytes_lost"] == 11


def test_bytes_moved_before_the_process_was_watched_are_not_lost() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n", lost=True).data(1, TX, b"TELL 200 0\n", lost=True)
    tape.data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 201 0\n")
    run = Run().take(tape).finish()
    assert [(x.request.target, x.flags) for x in run.exchanges] == [("/b", ("late_join",))]
    assert run.stats.n["bytes_lost"] == 0


def test_bytes_that_came_with_the_handshake_are_read() -> None:
    tape = Tape().open(1)
    start = tape.position(1, RX)
    tape.data(1, RX, b"ASK /a 0\n", pos=start - 9).data(1, TX, b"TELL 200 0\n")
    tape._next[1, RX] = start
    run = Run().take(tape.data(1, RX, b"ASK /b 0\n").data(1, TX, b"TELL 200 0\n"))
    assert [(x.request.target, x.flags) for x in run.exchanges] == [("/a", ()), ("/b", ())]
    tape = Tape().open(1, role=abi.ROLE_CLIENT).data(1, TX, b"ASK /a 0\n")
    tape.data(1, RX, b"TELL 200 0\n", pos=tape.position(1, RX) - 11)
    assert Run().take(tape).exchanges[0].flags == ()


def test_what_is_held_back_is_bounded() -> None:
    limits = Limits(held_bytes=10_000, held_total_bytes=15_000)
    tape = Tape()
    for conn in range(1, 5):
        tape.open(conn, role=abi.ROLE_CLIENT)
        for _ in range(10):
            tape.data(conn, RX, b"TELL 200 1000\n" + bytes(1_000))
    run = Run(limits=limits).take(tape)
    held = [sum(len(r.data) for r in c.held) for c in run.flow.connections.values()]
    assert max(held) <= 10_000
    assert sum(held) <= 15_000
    assert run.stats.n["held_overflows"] > 0
    run.finish()
    assert run.stats.n["messages_orphaned"] == 40


def test_the_end_waits_for_records_of_another_thread() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 -1\nhel")
    end = tape.position(1, TX) + 2
    tape.records.append(Tape(now=tape.now).data(1, TX, b"lo", pos=end - 2).records[0])
    late = tape.records.pop()
    tape._next[1, TX] = end
    tape.shut(1, TX).records.append(late)
    run = Run().take(tape)
    assert run.exchanges == []
    run.take(tape.later(LINGER).open(2))
    assert (sizes(run), run.outcomes, run.exchanges[0].flags) == ([5], ["ok"], ())


def test_bytes_lost_before_the_end_of_a_direction() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 -1\nhel").data(1, TX, b"lo", lost=True).shut(1, TX)
    run = Run().take(tape.later(LINGER).open(2))
    assert (sizes(run), run.exchanges[0].flags) == ([5], ("bytes_lost",))


@pytest.mark.parametrize("source", [0, SESSION | 1])
def test_a_fin_counted_as_a_byte_is_no_loss(source: int) -> None:
    tape = Tape().open(1, tls=source).data(1, RX, b"ASK /a 0\n", tls=source).data(1, TX, b"TELL 200 -1\nhello", tls=source)
    if not source:
        tape._next[1, TX] = tape.position(1, TX) + 1
        tape.shut(1, TX)
    run = Run().take(tape.close(1, tls=source)).finish()
    assert (sizes(run), run.outcomes) == ([5], ["ok"])
    assert run.stats.n["bytes_lost"] == 0


def test_refused_bytes_are_counted_per_protocol_and_passed_over() -> None:
    tape = opened().data(1, RX, b"WHAT\n").data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    assert (run.targets, run.flow.protocol_errors) == (["/0", "/a"], {"toy/1": 1})
    joints = [x.joint[2] for x in run.exchanges if x.joint]
    assert joints[1] - joints[0] == len(b"ASK /0 0\nWHAT\n")  # offsets go on where the refused bytes ended


def test_too_many_refusals_and_the_connection_is_left_alone() -> None:
    tape = opened().data(1, RX, b"ASK /open 0\n")
    for _ in range(Limits().protocol_errors):
        tape.data(1, TX, b"WHAT\n")
    run = Run().take(tape)
    assert run.verdicts == [(1, abi.IGNORE, 0, 0)]
    assert run.stats.n["connections_given_up"] == 1
    assert (run.outcomes[1], run.exchanges[1].flags) == ("unknown", ("bytes_lost", "parser_error"))
    assert run.stats.n["unknown_parser_error"] == 1
    run.finish()


def test_a_bug_of_a_parser_costs_its_connection_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    tape = opened().data(1, RX, b"ASK /secret 0\n").data(1, RX, b"ASK /boom 0\n").data(1, TX, b"TELL 200 0\n")
    tape.open(2).data(2, RX, b"ASK /b 0\n").data(2, TX, b"TELL 200 0\n")
    with caplog.at_level(logging.ERROR):
        run = Run().take(tape).finish()
    assert run.targets == ["/0", "/b"]
    assert (run.stats.n["parser_bugs"], run.stats.n["protocol_errors"]) == (1, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "the toy/1 parser failed on connection 1, which is left alone from here on"
    ]
    assert caplog.records[0].exc_info is None  # a traceback may quote payload


@pytest.mark.parametrize("end", ["answer", "close", "nothing"])
def test_a_bug_in_a_description_costs_its_connection_and_nothing_else(end: str) -> None:
    def redact(message: Message) -> None:
        if message.target == "/bad":
            raise ZeroDivisionError

    tape = opened().data(1, RX, b"ASK /bad 0\n")
    if end == "answer":
        tape.data(1, TX, b"TELL 200 0\n")
    elif end == "close":
        tape.close(1).later(LINGER).open(3)
    run = Run(redact=redact).take(tape).finish()
    assert run.targets == ["/0"]
    assert run.stats.n["parser_bugs"] == 1


def test_messages_are_redacted_before_they_are_described() -> None:
    def redact(message: Message) -> None:
        if message.target:
            message.target = "/redacted"

    run = Run(redact=redact).take(opened())
    assert run.targets == ["/redacted"]
    assert run.exchanges[0].about.attributes == {"toy.target": "/redacted"}


def test_a_handover_leaves_the_stream_alone() -> None:
    tape = opened().data(1, RX, b"ASK /up 0\n").data(1, TX, b"TELL 101 0\n").data(1, RX, b"ASK /no 0\n").close(1)
    run = Run().take(tape).finish()
    assert [(x.request.target, x.flags) for x in run.exchanges] == [("/0", ()), ("/up", ("upgraded",))]
    assert run.verdicts == [(1, abi.IGNORE, 0, 0), (1, -1, 0, 0)]
    assert run.stats.n["handovers"] == 1


@given(st.data())
def test_any_loss_is_counted_and_nothing_is_invented(data: st.DataObject) -> None:
    tape = Tape().open(1)
    lost = 0
    for n in range(8):
        for way, chunk in ((RX, b"ASK /%d 20\n" % n), (RX, bytes(20)), (TX, b"TELL 200 30\n"), (TX, bytes(30))):
            missing = data.draw(st.integers(0, 4)) == 0
            lost += len(chunk) if missing else 0
            tape.data(1, way, chunk, lost=missing)
    run = Run().take(tape.close(1)).finish()
    known = {f"/{n}" for n in range(8)}
    assert set(run.targets) <= known
    assert len(set(run.targets)) == len(run.targets)
    assert "aborted" not in run.outcomes
    assert run.stats.n["bytes_lost"] <= lost
    if lost == 0:
        assert not any(x.flags for x in run.exchanges)
        assert len(run.exchanges) == 8
