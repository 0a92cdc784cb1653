"""Conversations that nobody wrote down: made at random, so that what is true is known without the parser.

A few examples per run; MESHSCOPE_FUZZ_SECONDS (`make fuzz`) asks for more, about a hundred a second, new ones each time.
"""

from __future__ import annotations

import os
import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parsers import http1
from parsers.base import REQUESTS, RESPONSES
from tests.parsers.harness import Harness
from tests.parsers.playback import Conversation, Piece, Run, split, without

SECONDS = int(os.environ.get("MESHSCOPE_FUZZ_SECONDS", "0"))
FUZZ = settings(
    max_examples=max(40, SECONDS * 30),
    deadline=None,
    database=None,
    derandomize=not SECONDS,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LIMIT = 262_144
KEEP = frozenset({"host", "x-kept"})

payloads = st.one_of(
    st.binary(max_size=60),
    st.sampled_from([b"\r\n\r\n", b"0\r\n\r\n", b"HTTP/1.1", b"GET / HTTP/1.1", b"\n\n", b"GET /no HTTP/1.1\r", b"a" * 300]),
)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=30).map(str.strip)


@st.composite
def heads(draw: st.DrawFn, start: str, framing: str) -> bytes:
    lines = [start]
    if framing:
        lines.append(framing)
    lines += [
        f"{draw(st.sampled_from(['X-Kept', 'x-other', 'Accept', 'VIA']))}: {draw(values)}" for _ in range(draw(st.integers(0, 3)))
    ]
    if draw(st.booleans()):
        lines.append("HOST:h.example")
    end = draw(st.sampled_from(["\r\n", "\r\n", "\r\n", "\n"]))
    return (end.join(lines) + end + end).encode()


@st.composite
def messages(draw: st.DrawFn, start: str, bodiless: bool, request: bool) -> tuple[bytes, int]:
    """A message, and how many bytes its body has."""
    body = draw(payloads)
    kind = draw(st.sampled_from(["length", "chunked", "none"])) if request else draw(st.sampled_from(["length", "chunked"]))
    if kind == "none":
        return draw(heads(start, "")), 0
    if kind == "length":
        head = draw(heads(start, f"Content-Length: {len(body)}"))
        return (head, 0) if bodiless else (head + body, len(body))
    head = draw(heads(start, "Transfer-Encoding: chunked"))
    if bodiless:
        return head, 0
    cut = draw(st.integers(0, len(body)))
    chunks = b"".join(
        b"%x%s\r\n%s\r\n" % (len(part), draw(st.sampled_from([b"", b";x=y"])), part) for part in (body[:cut], body[cut:]) if part
    )
    return head + chunks + draw(st.sampled_from([b"0\r\n\r\n", b"000;end\r\nX-Sum: 1\r\n\r\n"])), len(body)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Conversation, list[tuple[int, str, int, int]]]:
    """A conversation of one exchange after the other, and (half, target, status, size) of its messages."""
    conversation: list[tuple[int, bytes]] = []
    truth = []
    for n in range(draw(st.integers(1, 5))):
        verb = draw(st.sampled_from(["GET", "POST", "HEAD", "DELETE", "PURGE"]))
        status = draw(st.sampled_from([200, 200, 204, 304, 404, 503]))
        asked, size = draw(messages(f"{verb} /{n} HTTP/1.1", bodiless=False, request=True))
        conversation.append((REQUESTS, asked))
        truth.append((REQUESTS, f"/{n}", 0, size))
        bodiless = verb == "HEAD" or status in {204, 304}
        answered, size = draw(messages(f"HTTP/1.1 {status} Words", bodiless, request=False))
        if draw(st.booleans()):
            conversation.append((RESPONSES, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"))
        conversation.append((RESPONSES, answered))
        truth.append((RESPONSES, "", status, size))
    return conversation, truth


@FUZZ
@given(exchanges(), st.integers())
def test_fuzz_everything_is_seen(made: tuple[Conversation, list[tuple[int, str, int, int]]], seed: int) -> None:
    conversation, truth = made
    chance = random.Random(seed)
    parts = split(conversation, lambda data: chance.sample(range(len(data)), min(len(data), chance.choice((0, 1, 3, 50)))))
    run = Run(http1, KEEP, LIMIT).play(parts).end()
    assert run.errors == 0
    assert sorted((m.half, m.target or "", m.status, m.size) for m in run.messages) == sorted(truth)
    assert len(run.pairs(sure=True)) == len(truth) // 2


@FUZZ
@given(exchanges(), st.integers())
def test_fuzz_nothing_is_invented(made: tuple[Conversation, list[tuple[int, str, int, int]]], seed: int) -> None:
    conversation, _ = made
    chance = random.Random(seed)
    harness = Harness(http1, conversation, KEEP, LIMIT)
    for turn in range(8):
        half = chance.choice([side for side in (REQUESTS, RESPONSES) if harness.length[side]])
        a = chance.randrange(harness.length[half])
        hole = (half, a, a + chance.choice((1, 10, 100)))
        harness.honest(harness.play(without(conversation, [hole], lost=bool(turn & 1), at_once=bool(turn & 2))))
    for _ in range(8):
        harness.play(harness.mutated(chance))


@FUZZ
@given(st.lists(st.tuples(st.integers(0, 1), st.one_of(payloads, st.integers(1, 5000))), max_size=30))
def test_fuzz_only_protocol_errors_leave(events: list[tuple[int, bytes | int]]) -> None:
    heads_first = [(REQUESTS, b"PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), (RESPONSES, b"HTTP/1.1 200 OK\r\n")]
    parts = [Piece(half, what) if isinstance(what, bytes) else Piece(half, b"", what) for half, what in [*heads_first, *events]]
    Run(http1, KEEP, LIMIT).play(parts).end()
    Run(http1, None, LIMIT, late=True).play(parts[2:]).end()
