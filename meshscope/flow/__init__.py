"""Records to exchanges: connections, positions, detection, parsers, stitching. One thread, no clock, no I/O.

    step ── records ─┬─ DATA ── parser known, in order ──────────────┐
                     │          else Detector.take ─ or Reader.data ─┴─ Reader.feed ─ parser ─ Stitcher.take ─> exchanges
                     └─ OPEN SHUT CLOSE PROCESS: the life of connections, here

Everything that has to wait does so by the time of the records (Waiting), so the exchanges are the same however the
input is split into batches.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Sequence
from typing import Final

from meshscope.capture import abi
from meshscope.flow.connection import DETECTING, SPEAKING, Connection, Opening, Record, Speech, read_opening
from meshscope.flow.detect import Detector
from meshscope.flow.limits import Limits
from meshscope.flow.reading import Reader
from meshscope.flow.stitch import ABORTED, LOST, Redact, Stitcher
from meshscope.flow.tls import Bind, Handshakes
from meshscope.flow.waiting import NEVER, Waiting
from meshscope.model import Exchange, Role
from meshscope.stats import Stats
from parsers.base import REQUESTS, RESPONSES

__all__ = ["Connection", "Flow", "Limits"]

_DISCARDED: Final = 1 << 30  # ring framing: pass over this record
_LENGTH: Final = _DISCARDED - 1
_FRAME: Final = struct.Struct("<II" + abi.CHUNK.format.lstrip("<"))  # ring header and head in one unpack

Verdict = tuple[int, int, int, int]  # connection or session id, what (-1: forget it), skip_rx, skip_tx
ProcessEvent = tuple[int, int, int, bytes, int, int]  # event, tgid, parent, comm, cgroup, ts_ns
FORGET: Final = -1


class Flow:
    """The core. Feed it batches in ring framing (capture.Source), take exchanges, verdicts and process events.

    protocols:   modules of parsers/, in the order in which they are asked.
    keep:        lower-case names of the headers that parsers keep.
    bind:        Source.bind, see flow.tls.
    redact:      takes what must not leave out of a message, before it is described.
    connections: id (socket cookie or TLS session id) -> Connection.
    opaque_tls:  tgid -> TLS connections whose plaintext was not seen.
    protocol_errors: NAME -> how often its parser refused the bytes.
    wall_offset_ns: Unix time minus record time; to be set before each step.
    """

    def __init__(
        self,
        protocols: Sequence[Speech],
        keep: frozenset[str],
        stats: Stats,
        bind: Bind,
        redact: Redact,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        self.connections: OrderedDict[int, Connection] = OrderedDict()
        self.opaque_tls: dict[int, int] = {}
        self.wall_offset_ns = 0
        self._limits = limits
        self._n = stats.n
        self._waiting = Waiting(limits, stats)
        self._stitcher = Stitcher(redact, self._waiting, limits, stats)
        self._reader = Reader(self._stitcher, self._waiting, limits, stats)
        self._handshakes = Handshakes(bind, limits, stats)
        self._detector = Detector(protocols, keep, self._reader, self._handshakes, limits, stats, self._bind)
        self._process_events: list[ProcessEvent] = []
        self._sessions: dict[int, dict[int, None]] = {}  # tgid -> its TLS session ids
        self._unbound: dict[int, int] = {}  # tgid -> sessions whose socket was not found
        self._retired: OrderedDict[int, int] = OrderedDict()  # id -> when it closed
        self.protocol_errors = self._reader.protocol_errors

    def step(self, batch: bytes) -> list[Exchange]:
        """Take a batch of whole records; returns the exchanges that ended with it."""
        self._stitcher.wall_offset_ns = self.wall_offset_ns
        unpack, get, due = _FRAME.unpack_from, self.connections.get, self._waiting.due.get
        waiting, feed, skip = self._waiting, self._reader.feed, self._reader.skip
        at, last = 0, len(batch) - _FRAME.size
        records = 0
        while at <= last:
            header, _, ts, conn, tls, pos, tgid, tid, n, copied, kind, way, src, flags, srtt, resent, shard = unpack(batch, at)
            body = at + _FRAME.size
            at += 8 + ((header & _LENGTH) + 7 & ~7)
            if header & _DISCARDED:
                continue
            records += 1
            if ts >= due(shard, NEVER) or ts >= waiting.due_any:
                waiting.advance(shard, ts)
            if kind != abi.DATA:
                self._event(kind, batch, body, copied, (ts, conn, tls, pos, tgid, way, src, shard))
                continue
            c = get(tls or conn)
            if c is None or shard != c.shard or (tls and conn != c.linked):
                c = self._meet(c, conn, tls, src, shard, tgid)
                if c is None:
                    continue
            c.last_ns = ts
            parser, half = c.parser, way ^ c.flip
            if (
                parser is not None
                and pos == c.next[way]
                and n == copied
                and not flags
                and not c.held
                and (half == REQUESTS or parser.ready(RESPONSES))
            ):
                c.srtt_us, c.retransmits = srtt, resent
                c.next[way] = pos + n
                feed(c, parser, half, batch[body : body + copied], ts, tgid, tid)
                if parser.skip[half] != c.asked[half] and c.parser is not None:
                    skip(c, half)
            else:
                take = self._detector.take if parser is None else self._reader.data
                take(c, Record(way, pos, n, batch[body : body + copied], ts, tgid, tid, flags, srtt, resent))
        self._n["records"] += records
        if at != len(batch):
            self._n["batches_torn"] += 1
        return self._take()

    def tick(self, now_mono_ns: int) -> list[Exchange]:
        """The input is idle: everything that waits since before `now_mono_ns` (CLOCK_MONOTONIC) waits no longer. Live only."""
        self._waiting.tick(now_mono_ns)
        return self._take()

    def finish(self) -> list[Exchange]:
        """The input has ended: what is open stays unknown, nothing waits any more."""
        self._waiting.finish()
        for c in list(self.connections.values()):
            self._reader.release(c)
            self._reader.settle(c, c.last_ns, "input_ended")
            self._uncarried(c)
        self._waiting.finish()
        self.connections.clear()
        return self._take()

    def take_verdicts(self) -> list[Verdict]:
        """What the kernel should be told since last asked, in order."""
        verdicts, self._reader.verdicts = self._reader.verdicts, []
        return verdicts

    def take_process_events(self) -> list[ProcessEvent]:
        """Forks, execs and exits since last asked, in order."""
        events, self._process_events = self._process_events, []
        return events

    def keep(self, names: frozenset[str]) -> None:
        """Keep other headers, of connections recognised from now on."""
        self._detector.keep = names

    def active(self) -> dict[tuple[Role, int], int]:
        """Requests under way by (role, tgid): head seen, not ended."""
        return {(role, tgid): n for role, gauges in self._stitcher.active.items() for tgid, n in gauges.items()}

    def _take(self) -> list[Exchange]:
        exchanges, self._stitcher.exchanges = self._stitcher.exchanges, []
        return exchanges

    def _event(
        self, kind: int, batch: bytes, body: int, copied: int, head: tuple[int, int, int, int, int, int, int, int]
    ) -> None:
        # A record that is not DATA; `head` is (ts, conn, tls, pos, tgid, way, src, shard).
        ts, conn, tls, pos, tgid, way, src, shard = head
        ident = tls if src == abi.TLS else conn
        c = self.connections.get(ident)
        if kind == abi.OPEN:
            self._opened(c, ident, read_opening(batch, body, copied), (ts, conn, pos, tgid, src, shard))
        elif kind == abi.SHUT:
            if c is not None:
                self._shut(c, way, pos, ts)
        elif kind == abi.CLOSE:
            if c is not None and c.closing is None:
                c.closing = (ts, read_opening(batch, body))
                self._waiting.add(c.shard, ts, self._retire, c)
        elif kind == abi.PROCESS:
            parent, event, comm, cgroup = abi.PROCESS_PART.unpack_from(batch, body)
            self._process_events.append((event, tgid, parent, comm.rstrip(b"\0"), cgroup, ts))
            if event == abi.PROCESS_EXIT:
                self._waiting.add(shard, ts, self._exited, (tgid, ts))
        else:
            self._n["records_of_unknown_kind"] += 1

    def _new(self, ident: int, src: int, shard: int, tgid: int) -> Connection:
        while len(self.connections) >= self._limits.connections:
            self._evict()
        c = self.connections[ident] = Connection(ident, src, shard, tgid)
        if src == abi.TLS:
            self._sessions.setdefault(tgid, {})[ident] = None
        return c

    def _evict(self) -> None:
        # Second chance: the oldest that has been silent since the last time round.
        while True:
            ident, c = self.connections.popitem(last=False)
            if c.touched_ns == c.last_ns or not self.connections:
                break
            c.touched_ns = c.last_ns
            self.connections[ident] = c
        self._n["connections_evicted"] += 1
        self._reader.settle(c, c.last_ns, "evicted")
        self._gone(c)

    def _meet(self, c: Connection | None, conn: int, tls: int, src: int, shard: int, tgid: int) -> Connection | None:
        # DATA of a connection that is new, or of another shard, or of a TLS session that names another socket.
        ident = tls if src == abi.TLS else conn
        if c is None:
            if ident in self._retired:
                self._n["records_after_close"] += 1
                return None
            self._n["connections_without_open"] += 1
            c = self._new(ident, src, shard, tgid)
        if c.shard != shard and "shards_mixed" not in c.doubts:
            self._n["connections_in_two_shards"] += 1
            c.doubts = (*c.doubts, "shards_mixed")
        if src == abi.TLS and conn != c.linked:
            self._link(c, conn)
        return c

    def _opened(self, c: Connection | None, ident: int, about: Opening, head: tuple[int, int, int, int, int, int]) -> None:
        # `head` is (ts, conn, pos, tgid, src, shard).
        ts, conn, pos, tgid, src, shard = head
        if c is not None and c.closing is not None and about.started_ns > c.closing[0]:
            self._retire(c, ts)  # the socket was connected anew
            c = None
        if c is None:
            if ident in self._retired and about.started_ns <= self._retired[ident]:
                return  # announced again, because bytes were read after it was closed
            c = self._new(ident, src, shard, tgid)
            c.last_ns = c.touched_ns = ts
        elif c.state == SPEAKING or c.closing is not None:
            return
        c.opened(about, pos)
        if src == abi.TLS:
            self._link(c, conn)
        elif c.local.address:
            self._stitcher.local(c.local.address)

    def _link(self, session: Connection, conn: int) -> None:
        # The kernel saw a socket move bytes inside a call of this session.
        session.linked = conn
        socket = self.connections.get(conn)
        if socket is not None and socket is not session.socket:
            if session.socket is not None:
                self._n["tls_rebinds"] += 1
                session.socket.session = None
            self._attach(session, socket)

    def _bind(self, session: Connection) -> None:
        # No socket was named: the one whose server random lies in the SSL object.
        socket = self._handshakes.claim(session)
        if socket is not None:
            self._attach(session, socket)
        else:
            session.unbound = True
            self._n["tls_sessions_unbound"] += 1
            if session.tgid in self._unbound or len(self._unbound) < self._limits.processes:
                self._unbound[session.tgid] = self._unbound.get(session.tgid, 0) + 1

    def _attach(self, session: Connection, socket: Connection) -> None:
        session.socket, socket.session = socket, session
        session.again = socket.carried
        socket.tls = socket.carried = True
        self._n["tls_sessions_bound"] += 1
        self._handshakes.done(socket)
        if session.unbound:
            session.unbound = False
            self._unbound[session.tgid] = max(self._unbound.get(session.tgid, 0) - 1, 0)
        if socket.state == DETECTING:
            self._reader.leave(socket)  # joined too late for its handshake
        if session.role is None:
            session.role = socket.role
        elif socket.role is None:
            socket.role = session.role
        if session.state == SPEAKING:
            session.name_ends()
        for way in (abi.RX, abi.TX):
            if (end := socket.shut[way]) is not None:
                self._waiting.add(socket.shard, end[1], self._session_shut, (session, way, end[1]))

    def _shut(self, c: Connection, way: int, pos: int, ts: int) -> None:
        c.shut[way] = (pos, ts)
        if c.session is not None:
            # Plaintext may still be read out of the session after the socket's last byte.
            self._waiting.add(c.shard, ts, self._session_shut, (c.session, way, ts))
        else:
            self._reader.shut(c, way, pos, ts)

    def _session_shut(self, what: tuple[Connection, int, int], _due: int) -> None:
        session, way, ts = what
        self._reader.release(session)
        self._reader.shut(session, way, -1, ts, patient=False)

    def _exited(self, what: tuple[int, int], _due: int) -> None:
        tgid, ts = what
        for ident in list(self._sessions.get(tgid, ())):
            session = self.connections[ident]
            session.closing = session.closing or (ts, None)
            self._retire(session, ts)
        self._handshakes.forget(tgid)
        self._unbound.pop(tgid, None)
        self._stitcher.forget(tgid)

    def _retire(self, c: Connection, _due: int) -> None:
        if self.connections.get(c.id) is not c or c.closing is None:
            return  # evicted, or the process has ended before
        ts, about = c.closing
        # A TLS session may have been given up by the kernel while its socket goes on: that ends no request.
        ended = c.socket is None or c.socket.closing is not None or any(c.socket.shut)
        self._reader.end(c, ts, about, ABORTED if ended else LOST)
        if c.session is not None:
            c.session.closing = c.session.closing or (ts, None)
            self._retire(c.session, ts)
        del self.connections[c.id]
        self._uncarried(c)
        self._gone(c)
        if c.src == abi.SOCKET:
            if len(self._retired) >= self._limits.retired:
                self._retired.popitem(last=False)
            self._retired[c.id] = ts

    def _gone(self, c: Connection) -> None:
        # Undo every reference to a connection that is no longer in `connections`.
        self._reader.forget(c)
        if c.told:
            self._reader.verdicts.append((c.id, FORGET, 0, 0))
        if c.src == abi.TLS:
            sessions = self._sessions.get(c.tgid)
            if sessions is not None:
                sessions.pop(c.id, None)
                if not sessions:
                    del self._sessions[c.tgid]
            if c.socket is not None:
                c.socket.session = None
        else:
            self._handshakes.done(c)
            if c.session is not None:
                c.session.socket = None

    def _uncarried(self, c: Connection) -> None:
        # A TLS connection whose plaintext never showed, unless it may be that of a session whose socket was not found.
        if c.src == abi.TLS or not c.tls or c.carried:
            return
        if self._unbound.get(c.tgid, 0) > 0:
            self._unbound[c.tgid] -= 1
            return
        self._n["tls_connections_opaque"] += 1
        if c.tgid in self.opaque_tls or len(self.opaque_tls) < self._limits.processes:
            self.opaque_tls[c.tgid] = self.opaque_tls.get(c.tgid, 0) + 1
