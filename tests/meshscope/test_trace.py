from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.model import CLIENT, SERVER, Exchange, Process, Role, TraceContext, Workload
from meshscope.stats import Stats
from meshscope.trace import Correlate, parse, threshold, with_threshold
from tests.meshscope.exchanges import exchange

KEY = b"k" * 16
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
JOINT = ("10.0.0.1", 45678, 1234567, 0)
SECOND = 10**9


def traced(correlate: Correlate, one: Exchange) -> TraceContext | None:
    one.trace = None
    out = correlate([one])
    assert out == [one]
    return one.trace


def given_trace(correlate: Correlate, one: Exchange) -> TraceContext:
    found = traced(correlate, one)
    assert found is not None
    return found


def asked(header: str | None = None, state: str = "", role: Role = SERVER, **fields: Any) -> Exchange:
    headers = {} if header is None else {"traceparent": header}
    if state:
        headers["tracestate"] = state
    return exchange(role, request={"headers": headers}, **({"joint": JOINT, "sampled": None} | fields))


def fresh(ratio: float = 1.0, cap: float = 100.0, key: bytes = KEY) -> Correlate:
    return Correlate(key, ratio, cap, Stats())


# traceparent, W3C Trace Context level 2 section 3.2


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f"00-{TRACE}-{SPAN}-02", False),  # the random flag of level 2
        (f"00-{TRACE}-{SPAN}-03", True),
        (f"00-{TRACE}-{SPAN}-ff", True),  # unknown flags mean nothing
        (f"00-{TRACE}-{SPAN}-fe", False),
        (f" 00-{TRACE}-{SPAN}-01\t", True),
        (f"01-{TRACE}-{SPAN}-01", True),  # later versions: as far as this one knows them
        (f"cc-{TRACE}-{SPAN}-01", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
        (f"cc-{TRACE}-{SPAN}-01-", True),
        (f"fe-{TRACE}-{SPAN}-00-x", False),
    ],
)
def test_a_valid_traceparent(header: str, sampled: bool) -> None:
    assert parse(header) == (bytes.fromhex(TRACE), bytes.fromhex(SPAN), sampled)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00",
        "-",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-01-",
        f"00-{TRACE}-{SPAN}-01.",
        f"cc-{TRACE}-{SPAN}-01.what",
        f"cc-{TRACE}-{SPAN}-01what",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"cc-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN.upper()}-01",
        f"00-{TRACE}-{SPAN}-0A",
        f"0A-{TRACE}-{SPAN}-01",
        f"0-{TRACE}-{SPAN}-01",
        f"000-{TRACE}-{SPAN}-01",
        f"00-{TRACE[1:]}-{SPAN}-01",
        f"00-{TRACE}0-{SPAN}-01",
        f"00-{TRACE}-{SPAN[1:]}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-001",
        f"00-{TRACE}-{SPAN}",
        f"00_{TRACE}_{SPAN}_01",
        f"..-{TRACE}-{SPAN}-01",
        f"00-{TRACE[:-1]}.-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01, 00-{TRACE}-{SPAN}-01",  # sent twice
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE}-{SPAN}-0\u0661",  # a digit, in Arabic
    ],
)
def test_an_invalid_traceparent_is_counted_and_ignored(header: str) -> None:
    assert parse(header) is None
    stats = Stats()
    correlate = Correlate(KEY, 1.0, 100, stats)
    assert given_trace(correlate, asked(header)).trace_id == given_trace(correlate, asked()).trace_id
    assert stats.n["traceparent_invalid"] == 1


@given(st.text() | st.from_regex(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?", fullmatch=True))
def test_any_traceparent_is_taken(header: str) -> None:
    found = parse(header)
    if found is not None:
        trace, span, _ = found
        assert (len(trace), len(span)) == (16, 8)
        assert any(trace)
        assert any(span)


# Sampling: the threshold of OpenTelemetry's tracestate


@pytest.mark.parametrize(
    ("ratio", "th"),
    [(1.0, "0"), (0.5, "8"), (0.25, "c"), (0.75, "4"), (0.125, "e"), (0.0625, "f"), (1 / 256, "ff"), (2.0, "0")],
)
def test_thresholds_are_told_without_trailing_zeros(ratio: float, th: str) -> None:
    assert given_trace(fresh(ratio), asked()).tracestate == f"ot=th:{th}"


def test_thresholds_are_shares_of_56_bits() -> None:
    assert threshold(0.1) == pytest.approx(0xE6666666666666, abs=8)
    assert threshold(1 / 3) == pytest.approx(0xAAAAAAAAAAAAAB, abs=8)
    assert threshold(0) == threshold(-1) == 1 << 56
    assert threshold(1e-30) == (1 << 56) - 1
    assert given_trace(fresh(1e-30), asked()).tracestate == "ot=th:" + "f" * 14


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.1, 0.01, 1e-30])
def test_a_trace_is_kept_if_its_56_random_bits_reach_the_threshold(ratio: float) -> None:
    correlate = fresh(ratio)
    kept = 0
    for number in range(2000):
        found = given_trace(correlate, asked(joint=("10.0.0.1", 1, number, 0)))
        assert found.sampled == (int.from_bytes(found.trace_id[-7:], "big") >= threshold(ratio))
        kept += found.sampled
    assert kept == pytest.approx(2000 * ratio, abs=100)


def test_what_a_small_ratio_keeps_a_larger_keeps() -> None:
    for number in range(500):
        joint = ("10.0.0.1", 1, number, 0)
        kept = [given_trace(fresh(ratio), asked(joint=joint)).sampled for ratio in (0.01, 0.1, 0.5, 1.0)]
        assert kept == sorted(kept)


def test_without_sampling_there_are_only_traces_that_callers_began() -> None:
    correlate = fresh(0)
    assert traced(correlate, asked()) is None
    assert given_trace(correlate, asked(f"00-{TRACE}-{SPAN}-01")).sampled


def test_the_callers_decision_holds() -> None:
    assert given_trace(fresh(1e-30), asked(f"00-{TRACE}-{SPAN}-01", "a=b,ot=th:c")).sampled
    found = given_trace(fresh(1.0), asked(f"00-{TRACE}-{SPAN}-00", "a=b"))
    assert not found.sampled
    assert found.tracestate == "a=b"


# Ids and parents


def test_both_ends_of_an_exchange_are_two_spans_of_one_trace() -> None:
    client = given_trace(fresh(), asked(role=CLIENT, peer_seen=True))
    server = given_trace(fresh(), asked(role=SERVER, peer_seen=True))
    assert client.trace_id == server.trace_id
    assert client.span_id != server.span_id
    assert client.parent_id == b""
    assert server.parent_id == client.span_id
    assert (len(client.trace_id), len(client.span_id), len(server.span_id)) == (16, 8, 8)


def test_a_server_whose_client_was_not_seen_is_a_root() -> None:
    assert given_trace(fresh(), asked(role=SERVER)).parent_id == b""


@pytest.mark.parametrize("sampled", ["00", "01"])
def test_parents_follow_the_header(sampled: str) -> None:
    header = f"00-{TRACE}-{SPAN}-{sampled}"
    client = given_trace(fresh(), asked(header, role=CLIENT, peer_seen=True))
    near = given_trace(fresh(), asked(header, role=SERVER, peer_seen=True))
    far = given_trace(fresh(), asked(header, role=SERVER))
    assert client.trace_id == near.trace_id == far.trace_id == bytes.fromhex(TRACE)
    assert client.parent_id == bytes.fromhex(SPAN)
    assert near.parent_id == client.span_id
    assert far.parent_id == bytes.fromhex(SPAN)
    assert client.sampled == near.sampled == far.sampled == (sampled == "01")


@pytest.mark.parametrize("joint", [JOINT, ("::1", 1, 2, 4026531840), (bytes(range(32)), 77, 0, 0), None])
def test_ids_are_alike_in_another_agent_and_in_replay(joint: Any) -> None:
    first, again = (given_trace(fresh(), asked(joint=joint)) for _ in range(2))
    assert (first.trace_id, first.span_id) == (again.trace_id, again.span_id)
    other_key = given_trace(fresh(key=b"x" * 16), asked(joint=joint))
    assert other_key.trace_id != first.trace_id


def test_ids_do_not_depend_on_what_went_before() -> None:
    correlate = fresh()
    numbers = list(range(50))
    joints = {number: ("10.0.0.1", 1, number, 0) for number in numbers}
    forward = {number: given_trace(correlate, asked(joint=joints[number])).span_id for number in numbers}
    random.Random(1).shuffle(numbers)
    assert forward == {number: given_trace(correlate, asked(joint=joints[number])).span_id for number in numbers}


@pytest.mark.parametrize(
    "other",
    [
        ("10.0.0.2", 45678, 1234567, 0),
        ("10.0.0.1", 45679, 1234567, 0),
        ("10.0.0.1", 45678, 1234568, 0),
        ("10.0.0.1", 45678, 1234567, 1),
        ("10.0.0.14", 5678, 1234567, 0),
        None,
    ],
)
def test_other_exchanges_have_other_ids(other: Any) -> None:
    assert given_trace(fresh(), asked()).trace_id != given_trace(fresh(), asked(joint=other)).trace_id


def test_without_a_joint_the_ends_are_told_by_connection_and_request() -> None:
    alone = [asked(joint=None) for _ in range(5)]
    alone[1].request.stream = 1
    alone[2].request.ts += 1
    alone[3].client.port += 1
    alone[4].server.address = "127.0.0.2"
    assert len({given_trace(fresh(), one).trace_id for one in alone}) == 5


# The cap on what callers may ask for


def capped(correlate: Correlate, ns: int, service: str | None = "shop", **fields: Any) -> TraceContext:
    process = None if service is None else Process(1, 1, "/bin/x", Workload(service))
    return given_trace(correlate, asked(f"00-{TRACE[:-14]}{'0' * 14}-{SPAN}-01", process=process, end_ns=ns, **fields))


def test_the_cap_is_a_second_of_spans_in_record_time() -> None:
    stats = Stats()
    correlate = Correlate(KEY, 1e-30, 10, stats)
    assert [capped(correlate, 5 * SECOND).sampled for _ in range(12)] == [True] * 10 + [False] * 2
    assert stats.n["remote_sampled_capped"] == 2
    assert [capped(correlate, 5 * SECOND + SECOND // 2).sampled for _ in range(6)] == [True] * 5 + [False]
    assert [capped(correlate, 900 * SECOND).sampled for _ in range(12)].count(True) == 10
    assert not capped(correlate, 3 * SECOND).sampled  # a record from before brings nothing


def test_the_cap_is_per_service() -> None:
    correlate = Correlate(KEY, 1e-30, 1, Stats())
    assert [capped(correlate, SECOND, name).sampled for name in ("a", "a", "b", "b")] == [True, False, True, False]
    assert [capped(correlate, SECOND, None, tgid=tgid).sampled for tgid in (7, 7, 8)] == [True, False, True]


def test_slow_caps_let_one_through_now_and_then() -> None:
    correlate = Correlate(KEY, 1e-30, 0.5, Stats())
    assert [capped(correlate, at * SECOND).sampled for at in range(1, 7)] == [True, False, True, False, True, False]


def test_a_cap_of_zero_lets_none_through() -> None:
    correlate = Correlate(KEY, 1e-30, 0, Stats())
    assert not any(capped(correlate, at * SECOND).sampled for at in range(100))


def test_beyond_the_cap_our_own_decision_holds_and_is_told() -> None:
    correlate = Correlate(KEY, 0.5, 0, Stats())
    low, high = f"00-{TRACE[:-14]}7{'f' * 13}-{SPAN}-01", f"00-{TRACE[:-14]}8{'0' * 13}-{SPAN}-01"
    refused, kept = (
        given_trace(correlate, asked(low, "a=b,ot=th:0;rv:80000000000000")),
        given_trace(correlate, asked(high, "a=b")),
    )
    assert refused.sampled  # its explicit random number decides, not the trace id
    assert refused.tracestate == "ot=th:8;rv:80000000000000,a=b"
    assert kept.sampled
    assert kept.tracestate == "ot=th:8,a=b"
    dropped = given_trace(correlate, asked(low, "a=b"))
    assert not dropped.sampled
    assert dropped.tracestate == "a=b"


@pytest.mark.parametrize("state", ["ot=rv:7fffffffffffff", "ot=th:0;rv:7fffffffffffff", "x=ot=rv:8,ot=rv:7fffffffffffff;th:0"])
def test_an_explicit_random_number_goes_before_the_trace_id(state: str) -> None:
    assert not given_trace(Correlate(KEY, 0.5, 0, Stats()), asked(f"00-{'f' * 32}-{SPAN}-01", state)).sampled


@pytest.mark.parametrize(
    "state", ["ot=rv:7", "ot=rv:7fffffffffffffff", "ot=rv:7FFFFFFFFFFFFF", "ot", "x=rv:7fffffffffffff", ",,", "ot=xrv:1"]
)
def test_a_random_number_of_another_form_is_none(state: str) -> None:
    assert given_trace(Correlate(KEY, 0.5, 0, Stats()), asked(f"00-{'f' * 32}-{SPAN}-01", state)).sampled


def test_memory_is_bounded() -> None:
    correlate = Correlate(KEY, 1.0, 1, Stats())
    for number in range(5000):
        capped(correlate, SECOND, f"service-{number}")
    assert len(correlate._buckets) == 4096


# tracestate


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("", "ot=th:8"),
        ("a=1", "ot=th:8,a=1"),
        ("a=1,b=2", "ot=th:8,a=1,b=2"),
        (" a=1 ,\tb=2,, ", "ot=th:8,a=1,b=2"),
        ("a=1,ot=th:0,b=2", "ot=th:8,a=1,b=2"),
        ("ot=rv:abcdefabcdefab;th:0;x:1", "ot=th:8;rv:abcdefabcdefab;x:1"),
        ("other=1,xot=2", "ot=th:8,other=1,xot=2"),
        (",".join(f"m{n}=1" for n in range(40)), ",".join(["ot=th:8", *(f"m{n}=1" for n in range(31))])),
    ],
)
def test_our_member_goes_first_and_the_others_keep_their_order(state: str, expected: str) -> None:
    assert with_threshold(state, "ot=th:8") == expected


@given(st.text(), st.text())
def test_any_headers_are_taken(header: str, state: str) -> None:
    correlate = Correlate(KEY, 0.5, 0, Stats())
    for one in (asked(header, state), asked(f"00-{TRACE}-{SPAN}-01", state)):
        assert given_trace(correlate, one).span_id
