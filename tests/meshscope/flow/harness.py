"""A flow over a tape, and its exchanges as plain values that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshscope.flow import Flow
from meshscope.flow.limits import Limits
from meshscope.model import Exchange
from meshscope.stats import Stats
from parsers.base import Message
from tests.meshscope.flow import toy
from tests.meshscope.records import Tape


def plain(exchange: Exchange) -> dict[str, Any]:
    """Everything an exchange says."""

    def message(m: Message | None) -> dict[str, Any] | None:
        return None if m is None else {name: getattr(m, name) for name in m.__slots__}

    values = {name: getattr(exchange, name) for name in exchange.__slots__}
    values["request"] = message(exchange.request)
    values["response"] = message(exchange.response)
    values["about"] = {name: getattr(exchange.about, name) for name in exchange.about.__slots__}
    for end in ("client", "server"):
        values[end] = (values[end].address, values[end].port)
    return values


class Run:
    """What came of a tape. Before `finish` everything open is still open."""

    def __init__(
        self,
        protocols: Sequence[Any] = (toy,),
        limits: Limits | None = None,
        bind: Callable[..., bytes | None] = lambda *_: None,
        redact: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self.stats = Stats()
        self.flow = Flow(protocols, frozenset(), self.stats, bind, redact, limits)
        self.flow.wall_offset_ns = 5
        self.exchanges: list[Exchange] = []
        self.verdicts: list[tuple[int, int, int, int]] = []

    def take(self, tape: Tape, cuts: Sequence[int] = ()) -> Run:
        """Step through the tape, cut before these records, and empty it."""
        for batch in tape.batches(cuts):
            self.exchanges += self.flow.step(batch)
        tape.records.clear()
        self.verdicts += self.flow.take_verdicts()
        return self

    def finish(self) -> Run:
        """The end of the input; afterwards the equation of messages holds with nothing open."""
        self.exchanges += self.flow.finish()
        self.verdicts += self.flow.take_verdicts()
        n = self.stats.n
        ends = ("messages_paired", "messages_aborted", "messages_orphaned", "messages_unknown")
        assert n["messages"] == sum(n[name] for name in ends)
        assert not any(self.flow.active().values())
        assert sum(n[name] for name in n if name.startswith("unknown_")) == sum(
            x.about.outcome == "unknown" for x in self.exchanges
        )
        return self

    @property
    def targets(self) -> list[str | None]:
        return [x.request.target for x in self.exchanges]

    @property
    def outcomes(self) -> list[str]:
        return [x.about.outcome for x in self.exchanges]

    def plain(self) -> list[dict[str, Any]]:
        return [plain(x) for x in self.exchanges]
