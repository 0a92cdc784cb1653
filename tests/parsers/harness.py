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
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from parsers.base import REQUESTS, RESPONSES, Ending
from tests.parsers.playback import Conversation, Piece, Run, doubtful, pieces, shared_by, split, tell, without


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
            parts += split([(half, bytes(raw))], lambda data: chance.sample(range(len(data) + 1), min(len(data), 2)))
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
