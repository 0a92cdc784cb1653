"""The contract of a protocol: bytes in, messages out, loss included.

A protocol is a module with four names:

``NAME``
    what users see, for example ``http/1.1``.
``sniff(head) -> Verdict``
    cheap and pure; ``head`` is the first bytes of one direction. ``REQUEST`` and ``RESPONSE`` say which
    half these bytes are, ``MAYBE`` asks for more bytes, ``NO`` is final.
``Parser(keep=None)``
    one per connection; ``keep`` is the set of lower-case header names to keep (None: all), whatever else the
    framing needs is read and forgotten. Its methods append to the list they are given:

    ``feed(half, data, ts, out)``
        contiguous bytes of one half, seen at ``ts``. Bytes that were never handed in are announced first by ``gap``.
    ``gap(half, n, lost, ts, out)``
        ``n`` bytes went by unseen. ``lost`` False: they were deliberately not copied, which inside a counted
        body is no loss. Inside a head it always is: forget, and hunt for the next start. ``n`` may be 0 before the
        first byte: the connection was joined late, so what comes first need not begin a message.
    ``close(half, ts, out)``
        no more bytes in this half, ever. Idempotent.
    ``ready(half) -> bool``
        False: bytes arriving now in this half would answer a request that has not been seen. The caller may hold
        them back for a while, because records of two ends can overtake each other; feeding them anyway is legal
        and makes an orphan.
    ``skip``
        a list of two: the offset of the half (counted as in ``Message.offset``) up to which the parser needs no
        bytes, 0 when it needs all.

``describe(request, response) -> Description``
    the only place that knows semantic conventions. Either argument may be None, not both.

Halves are ``REQUESTS`` (client to server) and ``RESPONSES``. Time is an argument, nanoseconds, never read. A parser
raises ProtocolError and nothing else; none of that call's bytes count then, so the caller says ``gap`` for all of them
and goes on. What was appended before stays valid. Memory is bounded whatever comes in.

A message is appended to ``out`` when its head is complete (``final`` False) and once more, the same object, when it
has ended (``final`` True); if both happen during one call it is appended once. A request may end after its response.
A message that ended without its end being seen has ``ending`` CUT (the connection closed) or LOST (bytes are missing,
nobody can tell). A request whose answer cannot come any more gets one of these, too, in place.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

REQUESTS: Final = 0
RESPONSES: Final = 1

ORPHAN: Final = -1  # Message.stream of a response whose request was not seen


class ProtocolError(Exception):
    """The bytes are not what the protocol allows; the text says what and never quotes payload."""


class Verdict(IntEnum):
    """What ``sniff`` thinks of the first bytes of one direction."""

    NO = 0
    MAYBE = 1
    REQUEST = 2
    RESPONSE = 3


class Ending(IntEnum):
    """How a message ended."""

    OPEN = 0  # it has not
    COMPLETE = 1  # by its own framing
    CUT = 2  # the connection closed before the framing said so
    LOST = 3  # bytes are missing, so its end is not known


_OPEN: Final = Ending.OPEN  # a global is found faster than a member


class Message:
    """One request or one response.

    half:      REQUESTS or RESPONSES.
    stream:    which exchange of the connection this is; both halves of one exchange carry the same number.
               HTTP/1 counts requests from 0; ORPHAN answers nothing that was seen.
    ts:        when its first byte was seen, ns.
    end_ts:    when its last byte was seen, ns; 0 while open.
    first_message_ts: when its first body message was seen, ns (streaming protocols); 0 unknown.
    offset:    bytes of its half, fed or gapped, before its first byte.
    verb:      method, or empty for a response.
    target:    request target as sent; None for a response or when unknown.
    status:    numeric status, 0 for a request.
    version:   protocol version as conventions write it: "1.0", "1.1", "2".
    headers:   lower-case name -> value; repeated fields joined by ", ". Only the wanted ones.
    trailers:  as headers.
    size:      body bytes, without framing.
    messages:  body messages (streaming protocols), None where the idea does not apply.
    interim:   status codes of interim answers that went before this response.
    final:     it has ended.
    ending:    how it ended, see Ending.
    doubts:    why something here may be incomplete: "bytes_lost", "head_truncated", "late_join".
    """

    __slots__ = (
        "doubts",
        "end_ts",
        "ending",
        "final",
        "first_message_ts",
        "half",
        "headers",
        "interim",
        "messages",
        "offset",
        "size",
        "status",
        "stream",
        "target",
        "trailers",
        "ts",
        "verb",
        "version",
    )

    def __init__(self, half: int, stream: int, ts: int, offset: int) -> None:
        self.half = half
        self.stream = stream
        self.ts = ts
        self.offset = offset
        self.end_ts = 0
        self.first_message_ts = 0
        self.verb = ""
        self.target: str | None = None
        self.status = 0
        self.version = ""
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] | None = None
        self.size = 0
        self.messages: int | None = None
        self.interim: tuple[int, ...] = ()
        self.final = False
        self.ending = _OPEN
        self.doubts: tuple[str, ...] = ()


class Handover:
    """Appended to ``out`` when the connection stops speaking this protocol (Upgrade, CONNECT).

    protocol: NAME of the parser that takes over, or None: leave the stream alone.
    request:  the request whose answer caused it.
    """

    __slots__ = ("protocol", "request")

    def __init__(self, protocol: str | None, request: Message | None) -> None:
        self.protocol = protocol
        self.request = request


class Description:
    """What everything outside ``parsers`` may know of an exchange's protocol.

    name:        span name of low cardinality without the route: the method, or the full RPC method.
    code:        status as text, "" when there was none.
    detail_code: a second code where the protocol has one (gRPC status over HTTP), or None.
    outcome:     ok, client_error, server_error, aborted, unknown. Never guessed: without a response it is
                 "aborted" if the connection provably ended, else "unknown".
    family:      metric stem of the conventions, "http" or "rpc".
    attributes:  semantic-convention attributes of the exchange that hold at both ends.
    """

    __slots__ = ("attributes", "code", "detail_code", "family", "name", "outcome")

    def __init__(
        self,
        name: str,
        code: str,
        outcome: str,
        family: str,
        attributes: dict[str, str | int],
        detail_code: str | None = None,
    ) -> None:
        self.name = name
        self.code = code
        self.outcome = outcome
        self.family = family
        self.attributes = attributes
        self.detail_code = detail_code
