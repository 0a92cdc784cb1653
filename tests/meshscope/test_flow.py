"""The life of connections through the whole of flow, with a toy protocol."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscope.capture import abi
from meshscope.flow.limits import Limits
from tests.meshscope.flow.harness import Run
from tests.meshscope.records import SESSION, Tape

RX, TX = abi.RX, abi.TX
LINGER = Limits().linger_ns


def served(tape: Tape, conn: int, target: str, body: bytes = b"hello") -> Tape:
    """One exchange seen from the server's end."""
    tape.data(conn, RX, b"ASK %s 0\n" % target.encode())
    return tape.data(conn, TX, b"TELL 200 %d\n" % len(body) + body)


def asked(tape: Tape, conn: int, target: str, body: bytes = b"hello") -> Tape:
    """One exchange seen from the client's end."""
    tape.data(conn, TX, b"ASK %s 0\n" % target.encode())
    return tape.data(conn, RX, b"TELL 200 %d\n" % len(body) + body)


def test_an_exchange_says_what_the_records_said() -> None:
    tape = Tape().by(70, 71).open(1)
    start = tape.now
    served(tape, 1, "/a")
    run = Run().take(tape)
    (x,) = run.exchanges
    assert (x.role, x.protocol, x.tgid, x.tid, x.tls) == ("server", "toy/1", 70, 71, False)
    assert (x.start_ns, x.end_ns, x.wall_offset_ns) == (start, start + 1_000, 5)
    assert (x.client.address, x.client.port, x.server.address, x.server.port) == ("10.0.0.1", 40_000, "10.0.0.2", 80)
    assert x.joint == ("10.0.0.1", 40_000, x.joint[2] if x.joint else 0, 0)
    assert x.flags == ()
    assert x.response is not None
    assert x.response.size == 5
    run.finish()


def test_the_process_belongs_to_the_request_not_to_the_connection() -> None:
    tape = Tape().by(1).open(1)
    for tgid in (2, 3):
        served(tape.by(tgid), 1, f"/{tgid}")
    assert [x.tgid for x in Run().take(tape).exchanges] == [2, 3]


def test_the_joint_key_is_the_same_at_both_ends_and_tells_that_both_were_seen() -> None:
    tape = Tape().pair(1, 2).open_end(1)
    for n in range(3):
        target = b"ASK /%d 0\n" % n
        tape.data(1, TX, target)
        if n == 0:
            tape.open_end(2)
        tape.data(2, RX, target).data(2, TX, b"TELL 200 0\n").data(1, RX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    by_role = {role: [x for x in run.exchanges if x.role == role] for role in ("client", "server")}
    assert [x.joint for x in by_role["client"]] == [x.joint for x in by_role["server"]]
    assert len({x.joint for x in run.exchanges}) == 3
    assert all(x.peer_seen for x in run.exchanges)
    assert all(x.joint and x.joint[3] == 4_026_531_840 for x in run.exchanges)  # loopback: the namespace belongs to it


def test_a_server_end_waits_for_the_record_of_its_client() -> None:
    # On loopback the client's write returns after the server has read, answered, and been recorded.
    tape = Tape().pair(1, 2).open_end(2)
    served(tape, 2, "/a", b"")
    run = Run().take(tape)
    assert run.exchanges == []
    asked(tape.open_end(1), 1, "/a", b"")
    run.take(tape)
    run.take(tape.later(LINGER).open(9))
    assert sorted((x.role, x.peer_seen) for x in run.exchanges) == [("client", True), ("server", True)]


def test_a_server_end_of_a_client_that_is_not_watched_waits_in_vain() -> None:
    tape = Tape().pair(1, 2).open_end(2)
    run = Run().take(served(tape, 2, "/a"))
    assert run.exchanges == []
    run.exchanges += run.flow.tick(tape.now + LINGER - 10_000)
    assert run.exchanges == []
    run.exchanges += run.flow.tick(tape.now + LINGER)
    assert [(x.role, x.peer_seen) for x in run.exchanges] == [("server", False)]


def test_both_ends_in_network_namespaces_are_joined_by_addresses_known_as_local() -> None:
    tape = Tape().pair(1, 2, ("10.1.0.5", 4_000)).open_end(1)
    tape.data(1, TX, b"ASK /a 0\n").open_end(2)
    served(tape, 2, "/a", b"").data(1, RX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    assert [x.peer_seen for x in run.exchanges] == [True, True]
    assert run.exchanges[0].joint
    assert run.exchanges[0].joint[3] == 0


def test_an_older_connection_learns_its_role_from_the_first_request() -> None:
    tape = Tape().open(1, role=abi.ROLE_UNKNOWN, local=("10.0.0.1", 5), remote=("10.0.0.2", 80), started=0)
    run = Run().take(asked(tape, 1, "/a"))
    (x,) = run.exchanges
    assert (x.role, x.client.port, x.flags) == ("client", 5, ("late_join",))
    assert Run().take(asked(asked(tape, 1, "/b"), 1, "/c")).exchanges[0].flags == ("late_join", "peer_unknown")


def test_from_the_second_request_on_a_late_join_is_right() -> None:
    tape = Tape().open(1, role=abi.ROLE_UNKNOWN, started=0)
    tape.data(1, TX, b"the tail of some body").data(1, TX, b"and more of it")
    run = Run().take(served(served(tape, 1, "/a"), 1, "/b"))
    assert [x.flags for x in run.exchanges] == [("late_join",), ()]
    assert run.outcomes == ["ok", "ok"]
    assert run.stats.n["bytes_unrecognised"] == len(b"the tail of some bodyand more of it")


def test_data_without_an_open_has_an_unknown_peer() -> None:
    run = Run().take(served(Tape(), 1, "/a"))
    (x,) = run.exchanges
    assert x.flags == ("late_join", "peer_unknown")
    assert (x.client.address, x.joint, x.peer_seen) == ("", None, False)
    assert run.stats.n["connections_without_open"] == 1


def test_a_connection_that_closes_without_an_answer_aborts_its_request() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").close(1, err=104)
    run = Run().take(tape)
    assert run.exchanges == []  # data of another thread may still come
    assert run.flow.active() == {("server", 100): 1}
    run.take(tape.later(LINGER).open(2))
    assert run.outcomes == ["aborted"]
    assert run.exchanges[0].response is None
    assert run.flow.active() == {("server", 100): 0}
    run.finish()


def test_the_end_of_the_answers_aborts_what_waits_for_one() -> None:
    tape = asked(Tape().open(1, role=abi.ROLE_CLIENT), 1, "/a").data(1, TX, b"ASK /b 0\n").shut(1, RX)
    end = tape.now - 1_000
    run = Run().take(tape)
    assert (run.outcomes, run.exchanges[1].end_ns) == (["ok", "aborted"], end)


def test_a_client_that_has_said_everything_still_gets_its_answer() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").shut(1, RX).data(1, TX, b"TELL 200 0\n").shut(1, TX).close(1)
    assert Run().take(tape).finish().outcomes == ["ok"]


def test_data_that_comes_after_the_close_is_read() -> None:
    # The peer has reset; what lies in the receive queue is still read.
    tape = Tape().open(1, role=abi.ROLE_CLIENT).data(1, TX, b"ASK /a 0\n").close(1, err=104).data(1, RX, b"TELL 200 0\n")
    run = Run().take(tape).finish()
    assert run.outcomes == ["ok"]
    run = Run().take(tape.open(1).close(1).later(LINGER).open(2).data(1, RX, b"ASK /late 0\n"))
    assert run.stats.n["records_after_close"] == 1
    assert 1 not in run.flow.connections


def test_an_answer_lost_at_the_end_of_a_connection_is_unknown_not_aborted() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").data(1, TX, b"TELL 200 0\n", lost=True).close(1)
    run = Run().take(tape).finish()
    assert run.outcomes == ["unknown"]
    assert run.exchanges[0].flags == ("bytes_lost",)
    assert run.stats.n["bytes_lost"] == 11
    tape.open(2).data(2, RX, b"ASK /a 0\n").data(2, TX, b"TELL 200 0\n", lost=True).shut(2, TX)
    assert Run().take(tape.close(2)).finish().outcomes == ["unknown"]
    served(tape.open(3), 3, "/a").data(3, RX, b"ASK /b 0\n").data(3, TX, b"TELL 200 0\n", lost=True).shut(3, TX)
    assert Run().take(tape).finish().outcomes == ["ok", "unknown"]


def test_at_the_end_of_the_input_nothing_is_aborted() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\nASK /b 0\n").data(1, TX, b"TELL 200 9\nabc")
    run = Run().take(tape).finish()
    assert run.outcomes == ["unknown", "unknown"]
    assert [x.flags for x in run.exchanges] == [("input_ended",)] * 2
    assert [x.response is None for x in run.exchanges] == [False, True]
    assert run.stats.n["unknown_input_ended"] == 2


def test_the_kernel_is_told_to_forget_only_what_it_was_told() -> None:
    tape = served(Tape().open(1), 1, "/a").open(2).data(2, RX, b"\0\1").data(2, TX, b"\0\1")
    run = Run().take(tape)
    assert run.verdicts == [(2, abi.IGNORE, 0, 0)]
    run.take(tape.close(1).close(2)).finish()
    assert run.verdicts == [(2, abi.IGNORE, 0, 0), (2, -1, 0, 0)]


def test_a_connection_moved_by_two_roots_is_flagged() -> None:
    tape = Tape().open(1).data(1, RX, b"ASK /a 0\n").by(7, 7, shard=1).data(1, TX, b"TELL 200 0\n")
    assert Run().take(tape).exchanges[0].flags == ("shards_mixed",)


def test_an_idle_shard_is_served_by_the_time_of_the_others() -> None:
    tape = Tape().pair(1, 2).open_end(2)
    served(tape, 2, "/a").by(7, 7, shard=1)
    run = Run().take(tape.later(LINGER * 2).open(7))
    assert run.exchanges == []  # its own records may be in another ring
    run.take(tape.later(Limits().lag_ns).data(7, RX, b"x"))
    assert run.targets == ["/a"]


def test_process_events_are_passed_on() -> None:
    tape = Tape().process(abi.PROCESS_FORK, 8, 7, b"nginx\0\0")
    flow = Run().take(tape).flow
    assert flow.take_process_events() == [(abi.PROCESS_FORK, 8, 7, b"nginx", 7, 1_000_000_000)]
    assert flow.take_process_events() == []


def test_a_process_number_that_is_used_again_starts_anew() -> None:
    tape = Tape().by(7).open(0, tls=SESSION | 1, ssl=64)
    tape.data(0, RX, b"ASK /old 0\n", tls=SESSION | 1).process(abi.PROCESS_EXIT, 7)
    run = Run().take(tape.later(LINGER).open(5))
    assert (run.targets, run.outcomes) == (["/old"], ["aborted"])
    assert run.flow.active() == {}
    tape.by(7).open(0, tls=SESSION | 2, ssl=64).data(0, RX, b"ASK /new 0\n", tls=SESSION | 2)
    run.take(tape.data(0, TX, b"TELL 200 0\n", tls=SESSION | 2))
    assert run.targets == ["/old", "/new"]
    assert run.flow.active() == {("server", 7): 0}


def test_discarded_records_and_torn_batches() -> None:
    tape = served(Tape().open(1), 1, "/a")
    tape.records[1] = b"".join((b"\x50\0\0\x40", tape.records[1][4:8], bytes(80)))
    run = Run().take(tape)
    assert run.stats.n["records"] == 2
    assert run.stats.n["batches_torn"] == 0
    assert run.flow.step(b"\x48\0\0\0\0\0\0\0") == []
    assert run.stats.n["batches_torn"] == 1


def test_a_hundred_thousand_connections_stay_within_bounds() -> None:
    limits = Limits(connections=500, retired=500, joints=500, local_addresses=50)
    run = Run(limits=limits)

    def load(first: int, last: int) -> None:
        for conn in range(first, last):
            tape = Tape(now=conn * 1_000_000)
            address = f"10.{conn >> 16 & 255}.{conn >> 8 & 255}.{conn & 255}"
            tape.open(conn, remote=("10.9.9.9", 4), local=(address, 5)).data(conn, RX, b"ASK /a 0\n")
            if conn % 3 == 0:
                tape.close(conn)
            run.exchanges.clear()
            run.take(tape)
            run.verdicts.clear()

    load(1, 5_000)
    before = len(gc.get_objects())
    load(5_000, 100_000)
    assert len(gc.get_objects()) - before < 1_000
    assert len(run.flow.connections) <= 500
    assert run.stats.n["connections_evicted"] > 60_000
    assert sum(run.flow.active().values()) <= 500


def test_the_busy_stay_when_the_silent_are_forgotten() -> None:
    run = Run(limits=Limits(connections=10))
    tape = Tape().open(1)
    for conn in range(2, 200):
        served(tape, 1, f"/{conn}").open(conn)
    run.take(tape)
    assert 1 in run.flow.connections
    assert len(run.exchanges) == 198
    assert not any(x.flags for x in run.exchanges)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[object, ...]]:
    """What may happen on a few connections, as a list of things to do to a tape."""
    steps: list[tuple[object, ...]] = []
    for _ in range(draw(st.integers(1, 25))):
        conn = draw(st.integers(1, 4))
        what = draw(st.sampled_from(["ask", "ask", "ask", "overtake", "body", "lost", "late", "junk", "close", "shut", "wait"]))
        steps.append((what, conn, draw(st.integers(0, 40))))
    return steps


def play(steps: list[tuple[object, ...]]) -> Tape:
    tape = Tape(step=3_000_000).pair(1, 2).open_end(1).open_end(2).open(3).open(4, started=0, role=abi.ROLE_UNKNOWN)
    for what, conn, n in steps:
        assert isinstance(conn, int)
        assert isinstance(n, int)
        ask, tell = (TX, RX) if conn == 1 else (RX, TX)
        head = b"ASK /%d 0\n" % n
        match what:
            case "ask":
                tape.data(conn, ask, head[: n % 5]).data(conn, ask, head[n % 5 :]).data(conn, tell, b"TELL 200 0\n")
            case "overtake":
                tape.data(conn, tell, b"TELL 200 %d\n" % n + bytes(n)).data(conn, ask, head)
            case "body":
                tape.data(conn, ask, b"ASK /%d 50\n" % n + bytes(n)).data(conn, ask, bytes(50 - n))
            case "lost":
                tape.data(conn, ask, head, lost=n % 2 == 0).data(conn, tell, b"TELL 200 0\n", lost=n % 3 == 0)
            case "late":
                tape.data(conn, ask, head, at=tape.now - 20_000_000)
            case "junk":
                tape.data(conn, ask, bytes(n + 1))
            case "close":
                tape.close(conn)
            case "shut":
                tape.shut(conn, tell if n % 2 else ask)
            case _:
                tape.later(n * 10_000_000)
    return tape


@settings(max_examples=200, deadline=None)
@given(conversations(), st.lists(st.integers(0, 80), max_size=12))
def test_exchanges_do_not_depend_on_how_the_input_is_split(steps: list[tuple[object, ...]], cuts: list[int]) -> None:
    tape = play(steps)
    records = list(tape.records)
    whole = Run().take(tape).finish()
    for these in (cuts, range(len(records))):
        tape.records = list(records)
        run = Run().take(tape, [cut for cut in these if cut < len(records)]).finish()
        assert run.plain() == whole.plain()
        assert run.stats.n == whole.stats.n
        assert run.verdicts == whole.verdicts


@pytest.mark.parametrize("cut", range(14))
def test_an_answer_that_overtakes_its_request_at_every_split(cut: int) -> None:
    tape = Tape().pair(1, 2).open_end(2).open_end(1)
    for n in range(3):
        tape.data(1, RX, b"TELL 200 0\n").data(1, TX, b"ASK /%d 0\n" % n)
        served(tape, 2, f"/{n}", b"")
    run = Run().take(tape, [cut]).finish()
    assert run.outcomes == ["ok"] * 6
    assert all(x.peer_seen for x in run.exchanges if x.role == "server")
    assert not any(x.flags for x in run.exchanges)
    assert run.stats.n["messages_orphaned"] == 0
    assert run.stats.n["records_held"] == 3
