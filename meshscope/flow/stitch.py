"""Messages to exchanges: the request waits in conn.open[stream], the end of its response takes it out.

    messages = messages_paired + messages_aborted + messages_orphaned + messages_unknown + those still open

Requests and responses count one each; after `Flow.finish` none is open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from meshscope.capture import abi
from meshscope.flow.connection import Connection, Out
from meshscope.flow.joints import Joint, Joints
from meshscope.flow.limits import Limits
from meshscope.flow.waiting import Waiting
from meshscope.model import CLIENT, SERVER, UNKNOWN_REASONS, Exchange, Role
from meshscope.stats import Stats
from parsers.base import REQUESTS, Description, Ending, Handover, Message

ABORTED: Final = "aborted"
UNKNOWN: Final = "unknown"
LOST: Final = "bytes_lost"
LATE: Final = "late_join"

_UNDESCRIBED: Final = Description("", "", UNKNOWN, "", {})  # of an exchange that has not ended

Redact = Callable[[Message], None]


class Stitcher:
    """Pairs messages and joins the two ends of an exchange that are both watched.

    exchanges: finished ones, taken away by Flow.
    active:    role -> tgid -> requests whose head was seen and that have not ended.
    """

    def __init__(self, redact: Redact, waiting: Waiting, limits: Limits, stats: Stats) -> None:
        self.exchanges: list[Exchange] = []
        self.active: dict[Role, dict[int, int]] = {CLIENT: {}, SERVER: {}}
        self.wall_offset_ns = 0
        self._local: dict[str, None] = {}
        self._redact = redact
        self._waiting = waiting
        self._limits = limits
        self._open_max = limits.open_requests
        self._n = stats.n
        self._joints = Joints(limits.joints)

    def take(self, c: Connection, out: Out, tgid: int, tid: int) -> None:
        """Sort in what a parser has said about bytes that `tid` of `tgid` has moved."""
        last = out[-1]
        if isinstance(last, Handover):
            c.handover = last
        opened = c.open
        for message in out:
            if isinstance(message, Handover):
                continue
            exchange = opened.get(message.stream)
            if message.half == REQUESTS:
                if exchange is None:
                    if message.stream > c.newest:  # else it was given up before, and now it ends
                        self._asked(c, message, tgid, tid)
                elif message.final and exchange.response is not None and exchange.response.final:
                    self._end(c, exchange, exchange.response.end_ts, "")
            elif exchange is not None:
                self._answered(c, exchange, message)
            elif message.final:
                self._n["messages"] += 1
                self._n["messages_orphaned"] += 1

    def settle(self, c: Connection, end_ns: int, reason: str, sent_only: bool = False) -> None:
        """Nothing more will be said about the open requests of `c`: ABORTED if it provably ended, or why we cannot tell.

        A request whose answer may lie in lost bytes is not known to be aborted. `sent_only`: leave those alone that are
        still being sent.
        """
        for exchange in list(c.open.values()):
            request = exchange.request
            if not sent_only or (request.final and exchange.response is None):
                doubtful = LOST in exchange.flags or request.ending == Ending.LOST
                self._end(c, exchange, end_ns, LOST if reason == ABORTED and doubtful else reason)

    def abandon(self, c: Connection) -> None:
        """Describing the messages of `c` may fail: count its open requests as unknown and make no exchange of them."""
        for exchange in c.open.values():
            self.active[c.side][exchange.tgid] -= 1
            self._n["messages_unknown"] += 1 if exchange.response is None else 2
        c.open.clear()

    def local(self, address: str) -> None:
        """`address` is one of this node's own ends."""
        if address not in self._local:
            if len(self._local) >= self._limits.local_addresses:
                del self._local[next(iter(self._local))]
            self._local[address] = None

    def forget(self, tgid: int) -> None:
        """The process ended: its idle gauges go."""
        for gauges in self.active.values():
            if gauges.get(tgid) == 0:
                del gauges[tgid]

    def _asked(self, c: Connection, request: Message, tgid: int, tid: int) -> None:
        side = c.side
        exchange = c.open[request.stream] = Exchange(side, c.speech, request, None, _UNDESCRIBED, c.client, c.server)
        exchange.tgid = tgid
        exchange.tid = tid
        exchange.start_ns = request.ts
        exchange.retransmits = c.retransmits
        exchange.tls = c.tls
        c.newest = request.stream
        self._n["messages"] += 1
        gauges = self.active[side]
        if tgid in gauges:
            gauges[tgid] += 1
        else:
            self._drop_idle(gauges)
            gauges[tgid] = 1
        if c.joined_late:  # an older request, unseen, may own the answer
            c.joined_late = False
            exchange.flags = (LATE,)
        if len(c.open) > self._open_max:
            self._n["open_requests_evicted"] += 1
            self._end(c, next(iter(c.open.values())), request.ts, "evicted")
        place, position = c.place, c.base[REQUESTS] + request.offset
        joint: Joint | None
        if c.src == abi.TLS:
            random = c.socket.random if c.socket is not None and not c.late else b""
            joint = (random, position, 0, 0) if random else None
        else:
            joint = (place[0], place[1], position & 0xFFFFFFFF, place[2]) if place is not None else None
        exchange.joint = joint
        if joint is None:
            return
        if side == CLIENT:
            exchange.peer_seen = self._joints.client(joint)
        elif c.near or c.client.address in self._local:
            exchange.peer_seen = self._joints.server(joint)

    def _answered(self, c: Connection, exchange: Exchange, response: Message) -> None:
        if exchange.response is None:
            exchange.response = response
            self._n["messages"] += 1
        if response.final:
            if exchange.request.final:
                self._end(c, exchange, response.end_ts, "")
            if c.suspects and LOST not in exchange.flags:
                # A request seen after the loss was answered. An answer to an older one would be rare luck (multiplexed
                # streams); waiting for it for the life of the connection would be worse.
                c.suspects = False
                for older in [open_ for open_ in c.open.values() if LOST in open_.flags]:
                    self._end(c, older, c.last_ns, LOST)

    def _end(self, c: Connection, exchange: Exchange, end_ns: int, reason: str) -> None:
        # `reason`: why there will be no whole answer; empty if there is one.
        request, response = exchange.request, exchange.response
        self._redact(request)
        if response is not None:
            self._redact(response)
        about = exchange.about = c.describe(request, response)
        del c.open[request.stream]
        side = c.side
        self.active[side][exchange.tgid] -= 1
        exchange.end_ns = max(exchange.start_ns, end_ns)
        exchange.wall_offset_ns = self.wall_offset_ns
        exchange.srtt_us = c.srtt_us
        exchange.retransmits = c.retransmits - exchange.retransmits
        n = self._n
        n["exchanges"] += 1
        if (
            reason
            or response is None
            or exchange.flags
            or c.doubts
            or c.handover is not None
            or request.doubts
            or response.doubts
            or about.outcome in {ABORTED, UNKNOWN}
        ):
            self._doubt(c, exchange, reason)
        else:
            n["messages_paired"] += 2
        joint = exchange.joint
        if joint is not None and not exchange.peer_seen:
            if side == CLIENT or c.alone:
                exchange.peer_seen = self._joints.both(joint)
            elif c.near or c.client.address in self._local:
                # The other end may be ours, and its record still on the way.
                self._waiting.add(c.shard, c.last_ns, self._release, (c, exchange))
                return
        self.exchanges.append(exchange)

    def _doubt(self, c: Connection, exchange: Exchange, reason: str) -> None:
        # What is not plain about an exchange: its outcome, its flags, where its messages count.
        about, response = exchange.about, exchange.response
        flags = {*exchange.flags, *c.doubts, *exchange.request.doubts}
        if response is not None:
            flags.update(response.doubts)
        if c.handover is not None and c.handover.request is exchange.request:
            flags.add("upgraded")
        if reason:
            about.outcome = ABORTED if reason == ABORTED else UNKNOWN
        elif LOST in exchange.flags or (about.outcome == ABORTED and LOST in flags):
            # This may be the answer to a request that went by unseen (Connection.lose); or the end a hole.
            about.outcome = UNKNOWN
        if about.outcome == UNKNOWN:
            flags.add(reason or LOST)
            self._n["unknown_" + next(flag for flag in UNKNOWN_REASONS if flag in flags)] += 1
        exchange.flags = tuple(sorted(flags))
        counter = f"messages_{about.outcome}" if about.outcome in {ABORTED, UNKNOWN} else "messages_paired"
        self._n[counter] += 1 if response is None else 2

    def _drop_idle(self, gauges: dict[int, int]) -> None:
        if len(gauges) >= self._limits.processes:
            for tgid in [tgid for tgid, value in gauges.items() if value == 0]:
                del gauges[tgid]

    def _release(self, waited: tuple[Connection, Exchange], _due: int) -> None:
        c, exchange = waited
        if exchange.joint is not None:
            exchange.peer_seen = self._joints.both(exchange.joint)
        c.alone = not exchange.peer_seen  # whoever is not watched once is not watched: do not wait for it every time
        self.exchanges.append(exchange)
