"""Which protocol a connection speaks, asked of its first bytes; and the TLS handshake of a socket.

A connection known from its start is asked once per direction. One joined in its middle (or with a hole before anything
was recognised) is asked at every record, because a record that begins a transfer often begins a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meshscope.capture import abi
from meshscope.flow.connection import DETECTING, HANDSHAKE, Connection, Record, Speech
from meshscope.flow.limits import Limits
from meshscope.flow.reading import Reader
from meshscope.flow.tls import CLIENT_HELLO, MORE, SERVER_HELLO, Handshakes, begins_tls, hello
from meshscope.model import CLIENT, SERVER, Role
from meshscope.stats import Stats
from parsers.base import Verdict


class Detector:
    """Gives a connection its parser and role, or leaves it alone."""

    def __init__(
        self,
        protocols: Sequence[Speech],
        keep: frozenset[str],
        reader: Reader,
        handshakes: Handshakes,
        limits: Limits,
        stats: Stats,
        bind: Callable[[Connection], None],
    ) -> None:
        self._protocols = tuple(protocols)
        self.keep = keep  # of connections recognised from now on
        self._reader = reader
        self._handshakes = handshakes
        self._limits = limits
        self._n = stats.n
        self._bind = bind  # finds the socket of a TLS session

    def take(self, c: Connection, r: Record) -> None:
        """A DATA record of a connection that no parser reads."""
        if c.state == HANDSHAKE:
            self._handshake(c, r)
            return
        if c.state != DETECTING:
            self._n["records_ignored"] += 1
            return
        way = r.way
        if c.refused[way] and not c.late:
            self._refuse(c, r)
            return
        if not self._contiguous(c, r):
            return
        head = b"".join(held.data for held in c.held if held.way == way) + r.data
        if c.src == abi.SOCKET and begins_tls(head):
            self._secure(c, r, head)
            return
        verdict, protocol = self._sniff(head)
        if protocol is not None and self._settle(c, protocol, verdict, way):
            held = [*c.held, r]
            c.held.clear()
            if c.joined_late:
                self._reader.late(c, r.ts)
            for record in held:
                self._reader.data(c, record)
        elif verdict == Verdict.MAYBE and self._may_wait(c, r, head):
            c.held.append(r)
        else:
            self._refuse(c, r)

    def _may_wait(self, c: Connection, r: Record, head: bytes) -> bool:
        # In the middle of a connection the tail of a body may look like the beginning of a word.
        beginning = not c.late or (c.src == abi.TLS and c.next[r.way] == 0)
        return beginning and len(head) < self._limits.detect_bytes and len(r.data) == r.len

    def _contiguous(self, c: Connection, r: Record) -> bool:
        # False: bytes that were looked at before. After a hole the connection counts as joined late.
        way = r.way
        last, c.looked[way] = c.looked[way], max(c.looked[way], r.pos + r.len)
        if last in {-1, r.pos}:
            return True
        if c.first[way] == last and c.src == abi.SOCKET:
            # Its very first bytes went to a process that was not watched yet, or were lost. Or came with the handshake.
            c.late = c.late or r.pos > last
            c.first[way] = c.next[way] = r.pos
            c.looked[way] = r.pos + r.len
            other = 1 - way
            if c.late and c.first[other] == c.next[other] == c.looked[other]:
                c.first[other] = c.next[other] = c.looked[other] = -1
            return True
        if r.pos < last:
            self._n["bytes_overlapped"] += r.len
            return False
        self._n["holes"] += 1
        self._n["bytes_lost"] += r.pos - last
        c.unrecognised += r.pos - last
        self._drop(c, way)
        c.next[way] = r.pos
        c.late = True
        return True

    def _sniff(self, head: bytes) -> tuple[Verdict, Speech | None]:
        for protocol in self._protocols:
            verdict = protocol.sniff(head)
            if verdict == Verdict.MAYBE:
                return verdict, None
            if verdict != Verdict.NO:
                return verdict, protocol
        return Verdict.NO, None

    def _settle(self, c: Connection, protocol: Speech, verdict: Verdict, way: int) -> bool:
        role: Role = CLIENT if (verdict == Verdict.REQUEST) == (way == abi.TX) else SERVER
        if c.role is not None and c.role != role:
            return False  # the handshake knows better than the bytes
        c.speak(protocol, role, self.keep)
        if c.src == abi.TLS and c.socket is None:
            self._bind(c)
        c.age()
        c.name_ends()
        self._n["connections_recognised"] += 1
        return True

    def _refuse(self, c: Connection, r: Record) -> None:
        # No protocol claims these bytes: they go by, and if that goes on the connection is left alone.
        way = r.way
        self._drop(c, way)
        if c.first[way] < 0:
            c.first[way] = r.pos
        c.next[way] = r.pos + r.len
        c.unrecognised += r.len
        self._n["bytes_unrecognised"] += r.len
        if c.late:
            c.turns += way != c.way
            c.way = way
            enough = c.turns >= self._limits.late_turns or c.unrecognised >= self._limits.late_bytes
        else:
            c.refused[way] = True
            enough = all(c.refused) or c.unrecognised >= self._limits.detect_bytes
        if enough:
            if c.src == abi.TLS and c.socket is None:
                self._bind(c)
            self._n["connections_unrecognised"] += 1
            self._reader.leave(c)

    def _drop(self, c: Connection, way: int) -> None:
        for held in [held for held in c.held if held.way == way]:
            c.held.remove(held)
            self._n["bytes_unrecognised"] += held.len
            if c.first[way] < 0:
                c.first[way] = held.pos
            c.next[way] = held.pos + held.len

    def _secure(self, c: Connection, r: Record, head: bytes) -> None:
        if len(head) < 3:
            c.held.append(r)
            return
        held = [*c.held, r]
        c.held.clear()
        c.tls = True
        c.state = HANDSHAKE
        c.heads = [b"", b""]
        self._n["tls_connections"] += 1
        for record in held:
            self._handshake(c, record)

    def _handshake(self, c: Connection, r: Record) -> None:
        if c.heads is None:
            return  # found among the records before this one
        sent = r.way == abi.TX
        head = c.heads[r.way] + r.data
        found, random = hello(head)
        if found == CLIENT_HELLO:
            c.role = c.role or (CLIENT if sent else SERVER)
            c.heads[r.way] = head[:6]  # enough to find it again; the rest of this direction does not matter
            return
        if found == SERVER_HELLO:
            c.role = c.role or (SERVER if sent else CLIENT)
            c.random = random
            c.tgid = r.tgid
            if c.session is None:
                self._handshakes.add(c)
        elif found == MORE and len(head) <= abi.TLS_HEAD_BYTES and len(r.data) == r.len:
            c.heads[r.way] = head
            return
        self._reader.leave(c)
