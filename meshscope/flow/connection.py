"""What flow remembers of one connection: a socket, or the plaintext of one TLS session (a stream of its own)."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from meshscope.capture import abi
from meshscope.model import CLIENT, SERVER, Endpoint, Exchange, Role
from parsers.base import Description, Handover, Message, Verdict

DETECTING: Final = 0  # no parser yet
SPEAKING: Final = 1  # a parser reads it
HANDSHAKE: Final = 2  # a socket that carries TLS: looking for the ServerHello
IGNORED: Final = 3  # left alone; only its end matters

Out = list[Message | Handover]


class Record(NamedTuple):
    """A DATA record that left the fast path: held back, or before a parser is found, or with bytes missing."""

    way: int  # direction, RX or TX
    pos: int
    len: int
    data: bytes  # what was copied
    ts: int
    tgid: int
    tid: int
    flags: int
    srtt_us: int
    retransmits: int


class Parser(Protocol):
    """What parsers/base.py asks of a parser."""

    skip: list[int]

    def feed(self, half: int, data: bytes, ts: int, out: Out) -> None: ...
    def gap(self, half: int, n: int, lost: bool, ts: int, out: Out) -> None: ...
    def close(self, half: int, ts: int, out: Out) -> None: ...
    def ready(self, half: int) -> bool: ...


class Speech(Protocol):
    """What parsers/base.py asks of a protocol's module."""

    NAME: str

    def Parser(self, keep: frozenset[str] | None = None) -> Parser: ...  # noqa: N802 the contract's name
    def sniff(self, head: bytes) -> Verdict: ...
    def describe(self, request: Message | None, response: Message | None) -> Description: ...


class Opening(NamedTuple):
    """MS_OPEN and MS_CLOSE after the head: the fields of struct ms_conn, in order, and the beginning of the SSL object."""

    started_ns: int
    object: int
    moved_rx: int
    moved_tx: int
    netns: int
    family: int
    local_port: int
    remote_port: int
    err: int
    role: int
    state: int
    pad: int
    local: bytes
    remote: bytes
    memory: bytes


def address(family: int, raw: bytes) -> str:
    """Text of an address of struct ms_conn; an IPv4-mapped IPv6 one reads as IPv4; another family as nothing."""
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, raw[:4])
    if family != socket.AF_INET6:
        return ""
    if raw[:12] == b"\0\0\0\0\0\0\0\0\0\0\xff\xff":
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def loopback(text: str) -> bool:
    """An address that means something else in every network namespace."""
    return text.startswith("127.") or text == "::1"


NOWHERE: Final = Endpoint("", 0)


def _undescribed(_request: Message | None, _response: Message | None) -> Description:
    return Description("", "", "unknown", "", {})


class Connection:
    """Pairs are indexed by direction (RX 0, TX 1) or, where it says so, by half; half = direction ^ flip.

    Positions are those of struct ms_chunk, -1 while unknown.
    """

    __slots__ = (
        "again",  # TLS session: not the first on its socket
        "alarm",  # a look at what is held back is due
        "alone",  # its client was waited for, and did not show
        "asked",  # per half: the parser's skip that was last looked at
        "base",  # per half: position of the parser's offset 0
        "carried",  # socket: a TLS session was seen on it
        "client",
        "closing",  # (time of MS_CLOSE, what it says)
        "describe",  # of its protocol
        "doubts",  # flags of every exchange from here on
        "errors",  # ProtocolErrors so far
        "first",  # position of the first byte seen
        "flip",
        "handover",  # the protocol has ended
        "heads",  # first bytes of a TLS handshake
        "held",  # records that wait: for their request, or for more bytes to recognise them by
        "held_bytes",
        "id",
        "joined_late",  # its beginning was not seen, and no request since
        "last_ns",  # time of the last record
        "late",  # its beginning was not seen
        "linked",  # TLS session: the socket that its last record named
        "local",
        "looked",  # position up to which bytes were looked at for recognition
        "memory",  # TLS session: what its SSL object began with when it moved its first bytes
        "near",  # the client's address is a loopback one
        "netns",
        "newest",  # stream of the newest request
        "next",  # position expected
        "object",  # TLS session: the SSL pointer
        "open",  # stream -> exchange that has not ended
        "parser",
        "place",  # (client address, client port, namespace) of the joint key
        "random",  # server random of its handshake
        "refused",  # no protocol claims this direction
        "remote",
        "retransmits",  # as of the last record with a message
        "role",
        "server",
        "session",  # socket: the TLS session that it carries
        "shard",
        "shut",  # (position, time) at which the direction ended
        "side",  # the role, once a parser is there
        "skip",  # bytes below were left out at our wish
        "socket",  # TLS session: the socket that carries it
        "speech",  # NAME of its protocol
        "src",
        "srtt_us",
        "state",
        "suspects",  # some of `open` are flagged so that their answers cannot be told
        "tgid",
        "tls",
        "told",  # the kernel holds a verdict
        "touched_ns",  # last_ns when eviction last passed by
        "turns",  # changes of direction while nothing is recognised
        "unbound",  # TLS session: its socket was looked for in vain
        "unrecognised",  # bytes of the same time
        "way",  # direction of the last unrecognised record
    )

    def __init__(self, ident: int, src: int, shard: int, tgid: int) -> None:
        self.id = ident
        self.src = src
        self.shard = shard
        self.tgid = tgid
        self.state = DETECTING
        self.tls = src == abi.TLS
        self.role: Role | None = None
        self.flip = 0
        self.late = True
        self.joined_late = False
        self.local = self.remote = self.client = self.server = NOWHERE
        self.netns = 0
        self.place: tuple[str, int, int] | None = None
        start = 0 if src == abi.TLS else -1  # a TLS session counts from 0
        self.first = [start, start]
        self.next = [start, start]
        self.base = [0, 0]
        self.skip = [0, 0]
        self.asked = [0, 0]
        self.looked = [start, start]
        self.shut: list[tuple[int, int] | None] = [None, None]
        self.parser: Parser | None = None
        self.speech = ""
        self.describe: Callable[[Message | None, Message | None], Description] = _undescribed
        self.side: Role = CLIENT
        self.near = False
        self.open: dict[int, Exchange] = {}
        self.newest = -1
        self.suspects = False
        self.doubts: tuple[str, ...] = ()
        self.held: deque[Record] = deque()
        self.held_bytes = 0
        self.alarm = self.told = self.carried = self.again = self.unbound = self.alone = False
        self.srtt_us = self.retransmits = 0
        self.errors = 0
        self.handover: Handover | None = None
        self.closing: tuple[int, Opening | None] | None = None
        self.last_ns = self.touched_ns = 0
        self.refused = [False, False]
        self.turns = self.unrecognised = 0
        self.way = -1
        self.heads: list[bytes] | None = None
        self.random = b""
        self.object = self.linked = 0
        self.memory = b""
        self.session: Connection | None = None
        self.socket: Connection | None = None

    def opened(self, about: Opening, pos: int) -> None:
        """Take what MS_OPEN knows; nothing was recognised yet.

        A socket without a start is older than the agent; one that has moved bytes already lost the records of them.
        If its first positions are told (`pos` and `about.object`), a lost first record is a hole like any other.
        A TLS session does not know its age: see `age`.
        """
        if self.src == abi.TLS:
            self.object = about.object
            self.memory = about.memory
            return
        self.late = about.started_ns == 0 or about.moved_rx + about.moved_tx > 0
        if not self.late and (pos or about.object):
            self.first = [pos, about.object]
            self.next = [pos, about.object]
            self.looked = [pos, about.object]
        self.netns = about.netns
        self.local = Endpoint(address(about.family, about.local), about.local_port)
        self.remote = Endpoint(address(about.family, about.remote), about.remote_port)
        if about.role != abi.ROLE_UNKNOWN:
            self.role = CLIENT if about.role == abi.ROLE_CLIENT else SERVER

    def age(self) -> None:
        """A parser is found: was the beginning seen? Of a TLS session, if nothing else suggests that bytes went before."""
        if self.src == abi.TLS:
            self.late = self.unrecognised > 0 or self.again or (self.socket is not None and self.socket.late)
        self.joined_late = self.late or any(self.refused)

    def speak(self, protocol: Speech, role: Role, keep: frozenset[str]) -> None:
        """Protocol and role are known: which direction carries requests, which endpoint is the client."""
        self.state = SPEAKING
        self.parser = protocol.Parser(keep)
        self.speech = protocol.NAME
        self.describe = protocol.describe
        self.role = self.side = role
        self.flip = flip = 1 if role == CLIENT else 0
        self.base = [self.next[flip], self.next[1 - flip]]  # what went by unrecognised lies before

    def name_ends(self) -> None:
        """Name client and server, for a TLS session by the socket that carries it."""
        carrier = self.socket if self.src == abi.TLS else self
        known = carrier is not None and carrier.remote is not NOWHERE
        # An unknown end is an object of its own: later stages write into it.
        local, remote = (carrier.local, carrier.remote) if carrier is not None and known else (Endpoint("", 0), Endpoint("", 0))
        self.client, self.server = (local, remote) if self.side == CLIENT else (remote, local)
        self.near = loopback(self.client.address)
        self.place = None
        if carrier is not None and known:
            self.place = (self.client.address, self.client.port, carrier.netns if self.near else 0)
            self.doubts = tuple(doubt for doubt in self.doubts if doubt != "peer_unknown")
        elif "peer_unknown" not in self.doubts:
            self.doubts = (*self.doubts, "peer_unknown")

    def lose(self) -> None:
        """Answers were lost or refused: nobody can tell any more who answers a request that has no answer yet."""
        for exchange in self.open.values():
            if exchange.response is None:
                self.suspects = True
                exchange.flags = tuple({*exchange.flags, "bytes_lost"})


def read_opening(batch: bytes, at: int, copied: int = 0) -> Opening:
    """The part of MS_OPEN or MS_CLOSE after the head, and the `copied` bytes behind it."""
    memory = at + abi.CONN.size
    return Opening._make((*abi.CONN.unpack_from(batch, at), batch[memory : memory + copied]))
