"""Playing a conversation to a parser: pieces, holes, what was said, and what the parser's state takes."""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from parsers.base import ORPHAN, REQUESTS, RESPONSES, Ending, Handover, Message, ProtocolError

Conversation = Sequence[tuple[int, bytes]]  # (half, bytes), in the order they were seen

STEP_NS = 1_000  # between two feeds


class Piece(NamedTuple):
    """Bytes to feed, or with data empty a gap."""

    half: int
    data: bytes
    gap: int = 0
    lost: bool = True


class Told(NamedTuple):
    """A message as a test compares it; ORPHAN is the only stream number that means the same in two runs."""

    half: int
    offset: int
    verb: str
    target: str | None
    status: int
    version: str
    headers: tuple[tuple[str, str], ...]
    trailers: tuple[tuple[str, str], ...] | None
    size: int
    messages: int | None
    interim: tuple[int, ...]
    ending: Ending
    orphan: bool


def tell(message: Message, shift: Sequence[int] = (0, 0)) -> Told:
    m = message
    trailers = None if m.trailers is None else tuple(sorted(m.trailers.items()))
    return Told(
        m.half,
        m.offset + shift[m.half],
        m.verb,
        m.target,
        m.status,
        m.version,
        tuple(sorted(m.headers.items())),
        trailers,
        m.size,
        m.messages,
        m.interim,
        m.ending,
        m.stream == ORPHAN,
    )


class Run:
    """One parser and what it said. `limit`: bytes its state may take."""

    def __init__(
        self, protocol: Any, keep: frozenset[str] | None, limit: int, late: bool = False, shared: dict[int, Any] | None = None
    ) -> None:
        self.parser = protocol.Parser(keep)
        self.messages: list[Message] = []
        self.handovers: list[Handover] = []
        self.errors = 0
        self._limit = limit
        self._shared = shared_by(protocol, keep) if shared is None else shared
        self._seen: set[int] = set()
        self._calls = 0
        self._offset = [0, 0]
        self._ts = 1_000_000
        if late:
            for half in (REQUESTS, RESPONSES):
                self.call(self.parser.gap, half, 0, True)

    def play(self, pieces: Iterable[Piece]) -> Run:
        for piece in pieces:
            if piece.gap:
                self.gap(piece.half, piece.gap, piece.lost)
            elif piece.data:
                self.feed(piece.half, piece.data)
        return self

    def feed(self, half: int, data: bytes) -> None:
        self._offset[half] += len(data)
        try:
            self.call(self.parser.feed, half, data)
        except ProtocolError:
            self.errors += 1
            self.call(self.parser.gap, half, len(data), True)

    def gap(self, half: int, n: int, lost: bool) -> None:
        self._offset[half] += n
        self.call(self.parser.gap, half, n, lost)

    def end(self) -> Run:
        for half in (RESPONSES, REQUESTS, RESPONSES):
            self.call(self.parser.close, half)
        self.weigh()
        for message in self.messages:
            assert message.final, "a message stayed open behind the end of the connection"
        return self

    def call(self, method: Callable[..., None], half: int, *what: Any) -> None:
        out: list[Message | Handover] = []
        parser = self.parser
        self._ts += STEP_NS
        self._calls += 1
        try:
            method(half, *what, self._ts, out)
        finally:
            if out:
                self._sort(out)
            if self._calls % 256 == 0:
                self.weigh()
        assert parser.ready(REQUESTS) in {True, False}
        assert parser.ready(RESPONSES) in {True, False}
        assert min(parser.skip) >= 0

    def weigh(self) -> int:
        size = sizeof(self.parser, self._shared)
        assert size <= self._limit, f"the parser's state takes {size} bytes"
        return size

    def told(self, shift: Sequence[int] = (0, 0)) -> Counter[Told]:
        return Counter(tell(message, shift) for message in self.messages)

    def pairs(self, shift: Sequence[int] = (0, 0), sure: bool = False) -> set[tuple[int, int]]:
        """Offsets of the requests and the responses that belong together; `sure`: of those without a doubt."""
        told = [m for m in self.messages if not (sure and doubtful(m))]
        asked = {m.stream: m.offset + shift[REQUESTS] for m in told if m.half == REQUESTS}
        answered = [m for m in told if m.half == RESPONSES and m.stream in asked]
        return {(asked[m.stream], m.offset + shift[RESPONSES]) for m in answered}

    def _sort(self, out: list[Message | Handover]) -> None:
        assert len({id(one) for one in out}) == len(out), "told twice in one call"
        for one in out:
            if isinstance(one, Handover):
                self.handovers.append(one)
                continue
            assert 0 <= one.offset < self._offset[one.half], "a message begins where no byte was"
            assert one.ts <= self._ts
            assert one.final == (one.ending is not Ending.OPEN)
            assert (one.end_ts >= one.ts) if one.final else (one.end_ts == 0)
            if id(one) in self._seen:
                assert one.final, "told again and still open"
            else:
                self._seen.add(id(one))
                self.messages.append(one)


def doubtful(message: Message) -> bool:
    return bool(message.doubts) or message.ending is Ending.LOST


def children(thing: Any) -> Iterator[Any]:
    if isinstance(thing, dict):
        yield from thing.keys()
        yield from thing.values()
    elif isinstance(thing, list | tuple | set | frozenset | deque):
        yield from thing
    if type(thing).__module__ not in {"builtins", "collections", "re", "enum"}:
        for kind in type(thing).__mro__:
            for name in getattr(kind, "__slots__", ()):
                if hasattr(thing, name):
                    yield getattr(thing, name)
        yield from getattr(thing, "__dict__", {}).values()


def reachable(root: Any, shared: Container[int] = ()) -> dict[int, Any]:
    """Everything that hangs on `root`, by id; without classes, modules, functions and what is `shared`."""
    found: dict[int, Any] = {}
    todo = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in found or id(thing) in shared or isinstance(thing, type | type(sys)) or callable(thing):
            continue
        found[id(thing)] = thing
        todo.extend(children(thing))
    return found


def shared_by(protocol: Any, keep: frozenset[str] | None) -> dict[int, Any]:
    """What two parsers have in common."""
    one, other = reachable(protocol.Parser(keep)), reachable(protocol.Parser(keep))
    return {key: thing for key, thing in one.items() if key in other}


def sizeof(root: Any, shared: dict[int, Any]) -> int:
    """Bytes that `root` and all that hangs on it take, without what every parser of its kind shares."""
    return sum(map(sys.getsizeof, reachable(root, shared).values()))


def pieces(conversation: Conversation) -> list[Piece]:
    return [Piece(half, data) for half, data in conversation]


def split(conversation: Conversation, cuts: Callable[[bytes], Iterable[int]]) -> list[Piece]:
    """Every piece cut where `cuts` says."""
    parts: list[Piece] = []
    for half, data in conversation:
        edges = [0, *sorted(cuts(data)), len(data)]
        parts += [Piece(half, data[a:b]) for a, b in pairwise(edges)]
    return parts


def without(conversation: Conversation, holes: Sequence[tuple[int, int, int]], lost: bool, at_once: bool) -> list[Piece]:
    """The conversation with the ranges (half, from, to) gone.

    `at_once`: the gap is noticed when it happens, not only when the next bytes of its half come.
    """
    parts: list[Piece] = []
    offset = [0, 0]
    owed = [0, 0]
    for half, data in conversation:
        begin, offset[half] = offset[half], offset[half] + len(data)
        keep = bytearray(b"\1" * len(data))
        for hole_half, a, b in holes:
            if hole_half == half:
                low, high = max(a - begin, 0), min(b - begin, len(data))
                if low < high:
                    keep[low:high] = bytes(high - low)
        pos = 0
        while pos < len(data):
            end = pos
            while end < len(data) and keep[end] == keep[pos]:
                end += 1
            if keep[pos]:
                if owed[half]:
                    parts.append(Piece(half, b"", owed[half], lost))
                    owed[half] = 0
                parts.append(Piece(half, data[pos:end]))
            else:
                owed[half] += end - pos
                if at_once:
                    parts.append(Piece(half, b"", owed[half], lost))
                    owed[half] = 0
            pos = end
    return parts + [Piece(half, b"", owed[half], lost) for half in (REQUESTS, RESPONSES) if owed[half]]
