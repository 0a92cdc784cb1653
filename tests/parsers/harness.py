"""Every protocol's test: one recorded conversation, and what must hold however it reaches the parser.

    check(protocol, conversation)

plays the conversation whole, byte by byte, split at every point, with bytes lost, with bytes not copied, joined late at
every byte, cut off at every byte, and mutated. What must hold:

- only ProtocolError leaves the parser; after it the harness says gap, like flow, and goes on;
- the parser's state stays small;
- without holes, the messages are the same however the bytes are split;
- with holes, a message that carries no doubt is one of the true ones, at its true place, and two messages that carry
  none and belong together belong together in truth.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
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
        parts += [Piece(half, data[a:b]) for a, b in zip(edges, edges[1:], strict=False)]
    return parts


def without(conversation: Conversation, holes: Sequence[tuple[int, int, int]], lost: bool, at_once: bool) -> list[Piece]:
    """The conversation with the ranges (half, from, to) gone. `at_once`: the gap is noticed when it happens, not only when
    the next bytes of its half come."""
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


class Harness:
    """The checks, one method each; `check` runs them all.

    limit:   bytes of state a parser may have.
    in_time: the order of the two halves matters beyond requests before their answers (interim answers, tunnels), so
             a run in another order may differ.
    """

    def __init__(
        self,
        protocol: Any,
        conversation: Conversation,
        keep: frozenset[str] | None = None,
        limit: int = 262_144,
        in_time: bool = False,
    ) -> None:
        self.protocol = protocol
        self.conversation = list(conversation)
        self.keep = keep
        self.limit = limit
        self.in_time = in_time
        self._shared = shared_by(protocol, keep)
        self.length = [sum(len(data) for half, data in conversation if half == side) for side in (REQUESTS, RESPONSES)]
        whole = self.play(pieces(conversation))
        assert whole.errors == 0, "the conversation itself is refused"
        assert whole.messages, "nothing was seen in the conversation"
        self.truth = whole.told()
        self.true_pairs = whole.pairs()

    def play(self, parts: Iterable[Piece], late: bool = False) -> Run:
        return Run(self.protocol, self.keep, self.limit, late, self._shared).play(parts).end()

    def same(self, parts: Iterable[Piece]) -> None:
        """Nothing is missing, so everything is as in truth."""
        run = self.play(parts)
        assert run.errors == 0
        assert run.told() == self.truth
        assert run.pairs() == self.true_pairs

    def honest(self, run: Run, shift: Sequence[int] = (0, 0)) -> int:
        """Something is missing, and what the parser still says without a doubt is true. Returns how many true pairs it knew."""
        sure = Counter(tell(message, shift) for message in run.messages if not doubtful(message))
        for told in sure - self.truth:
            cut = [true for true in self.truth if true[:7] == told[:7]]
            assert cut, f"invented: {told}"
            # Its end is not the true one, so it must not claim to be whole.
            if not told.orphan:
                assert told.ending is Ending.CUT, f"not as it was: {told}"
        pairs = run.pairs(shift, sure=True)
        assert pairs <= self.true_pairs, f"wrong pairs: {sorted(pairs - self.true_pairs)}"
        return len(pairs)

    def whole(self) -> None:
        self.same(pieces(self.conversation))

    def bytewise(self) -> None:
        self.same(split(self.conversation, lambda data: range(1, len(data))))

    def joined(self) -> None:
        """Neighbours of one half in one piece, as when one read fetches two writes."""
        parts: list[Piece] = []
        for half, data in self.conversation:
            if parts and parts[-1].half == half:
                parts[-1] = Piece(half, parts[-1].data + data)
            else:
                parts.append(Piece(half, data))
        self.same(parts)

    def split_points(self) -> None:
        """Every piece split at every point, one at a time."""
        for n, (half, data) in enumerate(self.conversation):
            before, after = pieces(self.conversation[:n]), pieces(self.conversation[n + 1 :])
            for cut in range(1, len(data)):
                self.same([*before, Piece(half, data[:cut]), Piece(half, data[cut:]), *after])

    def random_splits(self, runs: int = 200) -> None:
        for seed in range(runs):
            chance = random.Random(seed)
            self.same(split(self.conversation, lambda data, c=chance: c.sample(range(len(data)), min(len(data), c.randrange(4)))))

    def requests_first(self) -> None:
        """All requests before all answers."""
        if not self.in_time:
            self.same(sorted(pieces(self.conversation), key=lambda piece: piece.half))

    def holes(self, runs: int = 400, lost: bool = True) -> int:
        """Bytes missing at one to three random places. Returns how many pairs were known without a doubt in all."""
        known = 0
        for seed in range(runs):
            chance = random.Random(seed)
            gone = []
            for _ in range(chance.choice((1, 1, 2, 3))):
                half = chance.choice([side for side in (REQUESTS, RESPONSES) if self.length[side]])
                a = chance.randrange(self.length[half])
                gone.append((half, a, min(a + chance.choice((1, 3, 40, 300)), self.length[half])))
            known += self.honest(self.play(without(self.conversation, gone, lost, at_once=bool(seed % 2))))
        return known

    def late_joins(self) -> int:
        """Joined at every byte. Returns at how many the last exchange was known without a doubt."""
        known = 0
        last = max(self.true_pairs, default=None)
        shift = [0, 0]
        for n, (half, data) in enumerate(self.conversation):
            for cut in range(len(data)):
                shift[half] += 1 if cut else 0
                run = self.play([Piece(half, data[cut:]), *pieces(self.conversation[n + 1 :])], late=True)
                self.honest(run, shift)
                known += last in run.pairs(shift, sure=True)
            shift[half] += 1
        return known

    def truncations(self) -> None:
        """Cut off at every byte: a message that was not whole does not say that it was."""
        for n, (half, data) in enumerate(self.conversation):
            for cut in range(len(data)):
                run = self.play([*pieces(self.conversation[:n]), Piece(half, data[:cut])])
                for told in run.told():
                    assert any(true[:7] == told[:7] for true in self.truth), f"invented: {told}"
                assert run.pairs() <= self.true_pairs

    def mutations(self, runs: int = 2000) -> int:
        """Bytes changed, put in, taken out or doubled. Returns how many runs met a ProtocolError."""
        return sum(self.play(self.mutated(random.Random(seed))).errors > 0 for seed in range(runs))

    def mutated(self, chance: random.Random) -> list[Piece]:
        parts = []
        for half, data in self.conversation:
            raw = bytearray(data)
            for _ in range(chance.choice((0, 0, 1, 1, 2, 5))):
                at = chance.randrange(len(raw)) if raw else 0
                change = chance.randrange(4)
                if change == 0 and raw:
                    raw[at] = chance.choice(b"\0\r\n :;,-+0159afAF/\x7f\xff" + bytes([chance.randrange(256)]))
                elif change == 1:
                    raw[at:at] = bytes(chance.choice(b"\0\r\n :0f\xff") for _ in range(chance.randrange(1, 4)))
                elif change == 2:
                    del raw[at : at + chance.choice((1, 2, 10))]
                else:
                    raw[at:at] = raw[at : at + chance.choice((1, 20, 200))]
            cuts = chance.randrange(3)
            parts += split([(half, bytes(raw))], lambda data: chance.sample(range(len(data) + 1), min(len(data), cuts)))
            if chance.random() < 0.02:
                parts.append(Piece(half, b"", chance.randrange(1, 500), chance.random() < 0.5))
        if chance.random() < 0.2:
            chance.shuffle(parts)
        return parts


def check(
    protocol: Any,
    conversation: Conversation,
    keep: frozenset[str] | None = None,
    limit: int = 262_144,
    in_time: bool = False,
    runs: int = 200,
) -> Harness:
    """All checks on one conversation; `runs` scales the random ones. Returns the harness for more."""
    harness = Harness(protocol, conversation, keep, limit, in_time)
    harness.whole()
    harness.bytewise()
    harness.joined()
    harness.split_points()
    harness.random_splits(runs)
    harness.requests_first()
    harness.holes(runs)
    harness.holes(runs // 2, lost=False)
    harness.late_joins()
    harness.truncations()
    harness.mutations(runs * 2)
    return harness
