"""Batches in ring framing, made from a scripted conversation.

    tape = Tape()
    tape.open(1, role=abi.ROLE_SERVER)
    tape.data(1, abi.RX, b"GET / HTTP/1.1\r\n\r\n").data(1, abi.TX, b"HTTP/1.1 200 OK\r\n\r\n")
    tape.close(1)
    flow.step(tape.batch())

Positions go on by themselves per connection and direction, time by `step` ns per record. `pair` makes two connections
the two ends of one, with the same sequence numbers.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence

from meshscope.capture import abi

CLIENT_ADDRESS = ("10.0.0.1", 40_000)
SERVER_ADDRESS = ("10.0.0.2", 80)
SESSION = 1 << 63  # top bit of TLS session ids

Address = tuple[str, int]


def frame(record: bytes, discarded: bool = False) -> bytes:
    """A record as it lies in the ring."""
    return struct.pack("<II", len(record) | (1 << 30 if discarded else 0), 0) + record + bytes(-len(record) % 8)


def packed(text: str) -> tuple[int, bytes]:
    """Family and the 16 bytes of struct ms_conn."""
    if ":" in text:
        return socket.AF_INET6, socket.inet_pton(socket.AF_INET6, text)
    return socket.AF_INET, socket.inet_pton(socket.AF_INET, text) + bytes(12)


class Tape:
    """records: framed, in order. now: ts of the next one, ns. Every method returns the tape."""

    def __init__(self, now: int = 1_000_000_000, step: int = 1_000) -> None:
        self.records: list[bytes] = []
        self.now = now
        self.step = step
        self.tgid = self.tid = 100
        self.shard = 0
        self.srtt_us = self.retransmits = 0
        self._next: dict[tuple[int, int], int] = {}
        self._moved: dict[tuple[int, int], int] = {}
        self._about: dict[int, bytes] = {}
        self._wire: dict[tuple[int, int], tuple[int, int]] = {}

    def batch(self) -> bytes:
        """All of it as one batch."""
        return b"".join(self.records)

    def batches(self, cuts: Sequence[int]) -> Iterator[bytes]:
        """The same cut before the records with these numbers."""
        last = 0
        for cut in [*sorted(cuts), len(self.records)]:
            yield b"".join(self.records[last:cut])
            last = cut

    def later(self, ns: int) -> Tape:
        self.now += ns
        return self

    def by(self, tgid: int, tid: int = 0, shard: int = 0) -> Tape:
        """Who moves bytes from here on."""
        self.tgid, self.tid, self.shard = tgid, tid or tgid, shard
        return self

    def open(
        self,
        conn: int,
        role: int = abi.ROLE_SERVER,
        local: Address | None = None,
        remote: Address | None = None,
        started: int = 1,
        netns: int = 4_026_531_840,
        tls: int = 0,
        ssl: int = 0,
        memory: bytes = b"",
    ) -> Tape:
        """MS_OPEN of a socket, or of a TLS session if `tls`, with its object's memory. started 0: older than the agent."""
        mine, other = (CLIENT_ADDRESS, SERVER_ADDRESS) if role == abi.ROLE_CLIENT else (SERVER_ADDRESS, CLIENT_ADDRESS)
        local, remote = local or mine, remote or other
        starts = [self.position(conn, way) if started else 0 for way in (abi.RX, abi.TX)]
        moved = (self._moved.get((tls or conn, abi.RX), 0), self._moved.get((tls or conn, abi.TX), 0))
        started = 0 if tls else started
        family, near = packed(local[0])
        _, far = packed(remote[0])
        self._about[tls or conn] = struct.pack(
            "<QQQQIHHHHBBH16s16s",
            started,
            ssl or starts[abi.TX],
            *moved,
            netns,
            family,
            local[1],
            remote[1],
            0,
            role,
            1,
            0,
            near,
            far,
        )
        return self._put(abi.OPEN, conn, 0, tls, 0 if tls else starts[abi.RX], 0, self._about[tls or conn] + memory)

    def pair(self, client: int, server: int, client_address: Address = ("127.0.0.1", 40_000), port: int = 80) -> Tape:
        """Two connections that are the ends of one on this host; opens neither."""
        address = ("127.0.0.1" if client_address[0].startswith("127.") else client_address[0], port)
        self._wire[server, abi.RX] = (client, abi.TX)
        self._wire[client, abi.RX] = (server, abi.TX)
        self.ends = {client: (abi.ROLE_CLIENT, client_address, address), server: (abi.ROLE_SERVER, address, client_address)}
        return self

    def open_end(self, conn: int, started: int = 1) -> Tape:
        """MS_OPEN of one end of the last pair."""
        role, local, remote = self.ends[conn]
        return self.open(conn, role, local, remote, started)

    def data(
        self,
        conn: int,
        way: int,
        data: bytes,
        *,
        length: int | None = None,
        pos: int | None = None,
        tls: int = 0,
        flags: int = 0,
        lost: bool = False,
        at: int | None = None,
    ) -> Tape:
        """MS_DATA. length: true length if more than `data`; lost: the bytes moved, but their record is missing."""
        n = len(data) if length is None else length
        key = (tls or conn, way)
        if pos is None:
            pos = self.position(*key)
            self._next[key] = pos + n
        self._moved[key] = self._moved.get(key, 0) + n
        if lost:
            return self
        return self._put(abi.DATA, conn, way, tls, pos, n, data, flags=flags, at=at)

    def position(self, ident: int, way: int) -> int:
        """Where the next byte of this direction goes; both ends of a pair count alike."""
        known = self._next.get((ident, way))
        if known is None:
            if ident & SESSION:
                return 0
            conn, sent = self._wire.get((ident, way), (ident, way))
            known = 1_000_003 * (2 * conn + sent + 1) & 0xFFFFFFFF
        return known

    def shut(self, conn: int, way: int) -> Tape:
        """MS_SHUT: end of file read, or FIN sent."""
        return self._put(abi.SHUT, conn, way, 0, self.position(conn, way), 0)

    def close(self, conn: int, err: int = 0, tls: int = 0) -> Tape:
        """MS_CLOSE, with the bytes moved so far."""
        ident = tls or conn
        about = bytearray(self._about.get(ident, bytes(80)))
        struct.pack_into("<QQ", about, 16, self._moved.get((ident, abi.RX), 0), self._moved.get((ident, abi.TX), 0))
        struct.pack_into("<H", about, 42, err)
        return self._put(abi.CLOSE, conn, 0, tls, 0, 0, bytes(about))

    def process(self, event: int, tgid: int, parent: int = 1, comm: bytes = b"x") -> Tape:
        """MS_PROCESS."""
        was = self.tgid
        self.tgid = tgid
        self._put(abi.PROCESS, 0, 0, 0, 0, 0, struct.pack("<II16sQ", parent, event, comm, 7))
        self.tgid = was
        return self

    def _put(
        self, kind: int, conn: int, way: int, tls: int, pos: int, n: int, rest: bytes = b"", flags: int = 0, at: int | None = None
    ) -> Tape:
        copied = len(rest) if kind == abi.DATA else max(0, len(rest) - abi.CONN.size) if kind == abi.OPEN else 0
        src = abi.TLS if tls else abi.SOCKET
        ts = self.now if at is None else at
        place = (ts, conn, tls, pos, self.tgid, self.tid, n, copied)
        self.records.append(
            frame(abi.CHUNK.pack(*place, kind, way, src, flags, self.srtt_us, self.retransmits, self.shard) + rest)
        )
        self.now += self.step
        return self
