"""Messages to exchanges: the request waits in conn.open[stream], the end of its response takes it out.

    messages = messages_paired + messages_aborted + messages_orphaned + messages_unknown + those still open

Requests and responses count one each; after `Flow.finish` none is open.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from meshscope.capture import abi
from meshscope.flow.connection import Connection, Joint, Out, Pending, loopback
from meshscope.flow.limits import Limits
from meshscope.flow.waiting import Waiting
from meshscope.model import CLIENT, SERVER, UNKNOWN_REASONS, Exchange, Role
from meshscope.stats import Stats
from parsers.base import REQUESTS, RESPONSES, Handover, Message

ABORTED: Final = "aborted"

_ENDS: Final = {"aborted": "messages_aborted", "unknown": "messages_unknown"}  # outcome -> counter, else messages_paired

Redact = Callable[[Message], None]


class Stitcher:
    """Pairs messages and joins the two ends of an exchange that are both watched.

    exchanges: finished ones, taken away by Flow.
    active:    (role, tgid) -> requests whose head was seen and that have not ended.
    """

    def __init__(self, redact: Redact, waiting: Waiting, limits: Limits, stats: Stats) -> None:
        self.exchanges: list[Exchange] = []
        self.active: dict[tuple[Role, int], int] = {}
        self.wall_offset_ns = 0
        self.local_addresses: dict[str, None] = {}
        self._redact = redact
        self._waiting = waiting
        self._limits = limits
        self._n = stats.n
        # Requests whose other end was not seen yet, by role of this end: joint key -> Pending.seen.
        self._alone: dict[Role, OrderedDict[Joint, list[bool]]] = {CLIENT: OrderedDict(), SERVER: OrderedDict()}

    def take(self, c: Connection, out: Out, tgid: int, tid: int) -> None:
        """Sort in what a parser has said about bytes that `tid` of `tgid` has moved."""
        last = out[-1]
        if isinstance(last, Handover):
            c.handover = last.request
        for message in out:
            if isinstance(message, Handover):
                continue
            pending = c.open.get(message.stream)
            if message.half == RESPONSES:
                self._answered(c, pending, message)
            elif pending is None:
                if message.stream > c.newest:  # else it was given up before, and now it ends
                    self._ask(c, message, tgid, tid)
            elif message.final and pending.response is not None and pending.response.final:
                self._pair(c, pending)

    def settle(self, c: Connection, end_ns: int, reason: str, answered_only: bool = False) -> None:
        """Nothing more will be said about the open requests of `c`: ABORTED if it provably ended, or why we cannot tell.

        A request during which bytes were lost is not known to be aborted. `answered_only`: leave those alone
        that are still being sent.
        """
        for stream, pending in list(c.open.items()):
            if answered_only and not (pending.request.final and pending.response is None):
                continue
            self._emit(c, pending, end_ns, "bytes_lost" if pending.suspect and reason == ABORTED else reason)
            del c.open[stream]

    def local(self, address: str) -> None:
        """`address` is one of this node's own ends."""
        if address not in self.local_addresses:
            if len(self.local_addresses) >= self._limits.local_addresses:
                del self.local_addresses[next(iter(self.local_addresses))]
            self.local_addresses[address] = None

    def forget(self, tgid: int) -> None:
        """The process ended: its idle gauges go."""
        for role in (CLIENT, SERVER):
            if self.active.get((role, tgid)) == 0:
                del self.active[role, tgid]

    def _answered(self, c: Connection, pending: Pending | None, response: Message) -> None:
        if pending is None:
            if response.final:
                self._n["messages"] += 1
                self._n["messages_orphaned"] += 1
            return
        if pending.response is None:
            pending.response = response
            self._n["messages"] += 1
        if response.final:
            if pending.request.final:
                self._pair(c, pending)
            if c.suspects and not pending.suspect:
                self._drop_suspects(c)

    def _pair(self, c: Connection, pending: Pending) -> None:
        response = pending.response
        self._emit(c, pending, response.end_ts if response is not None else c.last_ns, "")
        del c.open[pending.request.stream]

    def _ask(self, c: Connection, request: Message, tgid: int, tid: int) -> None:
        role = c.role
        assert role is not None  # noqa: S101 a parser exists, so the role is settled
        pending = c.open[request.stream] = Pending(request, tgid, tid, c.retransmits)
        c.newest = request.stream
        self._n["messages"] += 1
        key = (role, tgid)
        active = self.active
        if key in active:
            active[key] += 1
        else:
            if len(active) >= self._limits.processes:
                self._drop_idle_gauges()
            active[key] = 1
        if c.joined_late:
            c.joined_late = False
            pending.late = True
        if len(c.open) > self._limits.open_requests:
            self._n["open_requests_evicted"] += 1
            oldest = next(iter(c.open))
            self._emit(c, c.open[oldest], request.ts, "evicted")
            del c.open[oldest]
        self._join(c, role, pending)

    def _join(self, c: Connection, role: Role, pending: Pending) -> None:
        # Name the exchange alike at both ends, and look whether the other end was there first.
        position = c.base[REQUESTS] + pending.request.offset
        joint: Joint
        if c.src == abi.TLS:
            random = c.socket.random if c.socket is not None else b""
            if not random or c.late:
                return
            joint = (random, position, 0, 0)
        elif c.place is None:
            return
        else:
            address, port, netns = c.place
            joint = (address, port, position & 0xFFFFFFFF, netns)
        pending.joint = joint
        seen = self._alone[SERVER if role == CLIENT else CLIENT].pop(joint, None)
        if seen is not None:
            seen[0] = True
            pending.seen = seen
            return
        alone = self._alone[role]
        if len(alone) >= self._limits.joints:
            alone.popitem(last=False)
        alone[joint] = pending.seen

    def abandon(self, c: Connection) -> None:
        """Describing the messages of `c` may fail: count its open requests as unknown and make no exchange of them."""
        for pending in c.open.values():
            self.active[c.role or CLIENT, pending.tgid] -= 1
            self._n["messages_unknown"] += 1 if pending.response is None else 2
            self._n["unknown_parser_error"] += 1
        c.open.clear()

    def _drop_suspects(self, c: Connection) -> None:
        # A request seen after the loss was answered. An answer to an older one would be rare luck (multiplexed streams);
        # waiting for it for the life of the connection would be worse.
        c.suspects = False
        for stream, pending in list(c.open.items()):
            if pending.suspect:
                self._emit(c, pending, c.last_ns, "bytes_lost")
                del c.open[stream]

    def _drop_idle_gauges(self) -> None:
        for key in [key for key, value in self.active.items() if value == 0]:
            del self.active[key]

    def _emit(self, c: Connection, pending: Pending, end_ns: int, reason: str) -> None:
        request, response = pending.request, pending.response
        role, protocol = c.role, c.protocol
        assert role is not None  # noqa: S101 as in _ask
        assert protocol is not None  # noqa: S101
        self._redact(request)
        if response is not None:
            self._redact(response)
        about = protocol.describe(request, response)
        exchange = Exchange(role, protocol.NAME, request, response, about, c.client, c.server)
        self.active[role, pending.tgid] -= 1
        exchange.tls = c.tls
        exchange.start_ns = start = request.ts
        exchange.end_ns = max(start, end_ns)
        exchange.wall_offset_ns = self.wall_offset_ns
        exchange.tgid = pending.tgid
        exchange.tid = pending.tid
        exchange.srtt_us = c.srtt_us
        exchange.retransmits = c.retransmits - pending.retransmits
        exchange.joint = pending.joint
        if reason:
            about.outcome = ABORTED if reason == ABORTED else "unknown"
        elif pending.suspect and about.outcome == ABORTED:
            about.outcome = "unknown"
        self._flag(c, pending, exchange, reason)
        self._n["exchanges"] += 1
        self._n[_ENDS.get(about.outcome, "messages_paired")] += 1 if response is None else 2
        if role == SERVER and not pending.seen[0] and pending.joint is not None:
            client = c.client.address
            if client in self.local_addresses or loopback(client):
                # The other end may be ours, and its record still on the way.
                self._waiting.add(c.shard, c.last_ns, self._release, (exchange, pending.seen))
                return
        exchange.peer_seen = pending.seen[0]
        self.exchanges.append(exchange)

    def _flag(self, c: Connection, pending: Pending, exchange: Exchange, reason: str) -> None:
        flags = {*c.doubts, *exchange.request.doubts}
        if exchange.response is not None:
            flags.update(exchange.response.doubts)
        if pending.late:
            flags.add("late_join")
        if pending.suspect:
            flags.add("bytes_lost")
        if c.handover is not None and c.handover is exchange.request:
            flags.add("upgraded")
        if exchange.about.outcome == "unknown":
            reason = reason or next((flag for flag in UNKNOWN_REASONS if flag in flags), "bytes_lost")
            flags.add(reason)
            self._n["unknown_" + reason] += 1
        if flags:
            exchange.flags = tuple(sorted(flags))

    def _release(self, waited: tuple[Exchange, list[bool]], _due: int) -> None:
        exchange, seen = waited
        exchange.peer_seen = seen[0]
        self.exchanges.append(exchange)
