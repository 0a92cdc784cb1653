"""TLS on the wire, as far as flow needs it: the server random, which names a connection inside the SSL object.

TLS is not a protocol of parsers/: its plaintext arrives as a stream of its own. From the socket only the handshake up
to the ServerHello is read (RFC 8446 sections 4 and 5.1, the same layout since TLS 1.0), and its random is kept until a
session turns up whose memory holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from meshscope.flow.connection import Connection
from meshscope.flow.limits import Limits
from meshscope.stats import Stats

MORE: Final = 0  # not enough bytes yet
CLIENT_HELLO: Final = 1
SERVER_HELLO: Final = 2
OTHER: Final = 3  # TLS, but not its beginning

_CHANGE_CIPHER_SPEC: Final = 20
_HANDSHAKE: Final = 22
_APPLICATION_DATA: Final = 23
_RECORD_HEAD: Final = 5  # type, version, length
_RANDOM_AT: Final = 11  # record head, handshake type, length (3), version (2)

# RFC 8446 section 4.1.3: the "random" of every HelloRetryRequest, SHA-256 of that word. It names nobody.
RETRY: Final = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")

# (tls session id, tgid, SSL pointer, server randoms) -> the one that lies in the object, or None.
Bind = Callable[[int, int, int, Sequence[bytes]], bytes | None]


def begins_tls(head: bytes) -> bool:
    """The first bytes of a direction are a TLS record: handshake, or application data if we joined late.

    One byte is enough to suspect it; the caller asks again when it has three.
    """
    return head[:1] in {b"\x16", b"\x17"} and head[1:2] in {b"", b"\x03"} and (len(head) < 3 or head[2] <= 4)


def hello(head: bytes) -> tuple[int, bytes]:
    """What the first bytes of one direction show, and the server random if they are those of a server."""
    at = 0
    while len(head) > at + _RECORD_HEAD:
        kind, length = head[at], int.from_bytes(head[at + 3 : at + 5], "big")
        if kind == _HANDSHAKE and head[at + _RECORD_HEAD] == CLIENT_HELLO:
            return CLIENT_HELLO, b""
        if kind == _HANDSHAKE and head[at + _RECORD_HEAD] == SERVER_HELLO:
            random = head[at + _RANDOM_AT : at + _RANDOM_AT + 32]
            if len(random) < 32:
                return MORE, b""
            if random != RETRY:
                return SERVER_HELLO, random
        elif kind != _CHANGE_CIPHER_SPEC:  # after a HelloRetryRequest one may come for middleboxes, appendix D.4
            return OTHER, b""
        at += _RECORD_HEAD + length
    return MORE, b""


class Handshakes:
    """Randoms seen on the wire of each process, waiting for the session that holds them."""

    def __init__(self, bind: Bind, limits: Limits, stats: Stats) -> None:
        self._bind = bind
        self._limits = limits
        self._n = stats.n
        self._seen: dict[int, dict[bytes, list[Connection]]] = {}  # tgid -> random -> its sockets: two if both ends are ours

    def add(self, socket: Connection) -> None:
        """A ServerHello passed on `socket`, sent or received by its process."""
        tgid, random = socket.tgid, socket.random
        seen = self._seen.get(tgid)
        if seen is None:
            if len(self._seen) >= self._limits.processes:
                self.forget(next(iter(self._seen)))
            seen = self._seen[tgid] = {}
        if random not in seen and len(seen) >= self._limits.randoms:
            del seen[next(iter(seen))]
            self._n["tls_handshakes_dropped"] += 1
        seen.setdefault(random, []).append(socket)

    def claim(self, session: Connection) -> Connection | None:
        """The socket that carries `session`, found by memory; of two with one random that of the same role."""
        seen = self._seen.get(session.tgid)
        if not seen or session.object == 0:
            return None
        memory, session.memory = session.memory, b""  # as it was then: the object may be gone by now
        random = next((random for random in seen if random in memory), None)
        if random is None:
            random = self._bind(session.id, session.tgid, session.object, tuple(seen))
        sockets = seen.get(random, []) if random is not None else []
        role = session.role
        fitting = [socket for socket in sockets if role is None or socket.role in {None, role}]
        if len(fitting) != 1:
            return None
        return fitting[0]

    def done(self, socket: Connection) -> None:
        """`socket` is bound or gone: its handshake is no candidate any more."""
        tgid = socket.tgid
        seen = self._seen.get(tgid)
        sockets = seen.get(socket.random) if seen else None
        if seen is None or sockets is None or socket not in sockets:
            return
        sockets.remove(socket)
        if not sockets:
            del seen[socket.random]
            if not seen:
                del self._seen[tgid]

    def forget(self, tgid: int) -> None:
        """The process ended; its number may be given to another."""
        self._seen.pop(tgid, None)
