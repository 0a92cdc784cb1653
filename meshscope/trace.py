"""Trace context: whose trace an exchange belongs to, its span id, its parent, whether it is exported. A stage.

Sources: W3C Trace Context level 2 (traceparent, tracestate); OpenTelemetry's probability sampling in tracestate
(`ot=th:`, consistent by the 56 random bits of the trace id). Ids that no header gives are one keyed hash of what both ends
of an exchange see alike, so both ends, a second agent with the same key and a replay say the same. Nothing is inferred
inside a process: without traceparent an incoming and an outgoing exchange of one service stay separate traces.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Final

from meshscope.model import CLIENT, Exchange, TraceContext
from meshscope.stats import Stats

_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_ZERO_TRACE: Final = "0" * 32
_ZERO_SPAN: Final = "0" * 16
_RANDOM_BITS: Final = 56
_RANDOM: Final = (1 << _RANDOM_BITS) - 1
_EXPLICIT_RANDOM: Final = re.compile(r"(?:^|;)rv:([0-9a-f]{14})(?:;|$)")
_MEMBERS_MAX: Final = 32  # list members of a tracestate (W3C section 3.3.1.1)
_SERVICES: Final = 4096
_PLACES: Final = 16384
_WORD: Final = (1 << 64) - 1

Parent = tuple[bytes, bytes, bool]  # trace id, span id, sampled
Name = tuple[str | bytes, int, int, int]  # what ids are made of: Exchange.joint, or for one end alone its own words
End = tuple[str, bool]  # role, peer_seen


def parse(header: str) -> Parent | None:
    """A traceparent (section 3.2); None if it is not valid. Later versions are read as far as this one knows them."""
    found = _TRACEPARENT.fullmatch(header.strip(" \t"))
    if found is None:
        return None
    version, trace, span, flags, more = found.groups()
    if version == "ff" or (version == "00" and more) or trace == _ZERO_TRACE or span == _ZERO_SPAN:
        return None
    return bytes.fromhex(trace), bytes.fromhex(span), bool(int(flags, 16) & 1)


def threshold(ratio: float) -> int:
    """The rejection threshold of a sampling ratio: traces whose 56 random bits are at least this are kept.

    Beyond every random number (2**56) only for a ratio of 0.
    """
    most = 1 << _RANDOM_BITS
    return most if ratio <= 0 else min(max(round((1 - ratio) * most), 0), most - 1)


class _Unsampled(TraceContext):
    """Not exported; its ids are made when somebody asks for them. Holds no exchange: a cycle would be the collector's work."""

    __slots__ = ("_correlate", "_end", "_name", "_parent")

    def __init__(self, correlate: Correlate, name: Name, end: End, parent: Parent | None, tracestate: str) -> None:
        self.sampled = False
        self.tracestate = tracestate
        self._correlate = correlate
        self._name = name
        self._end = end
        self._parent = parent

    def __getattr__(self, name: str) -> bytes:  # called while the slot is empty
        if name not in {"trace_id", "span_id", "parent_id"}:
            raise AttributeError(name)
        self.trace_id, self.span_id, self.parent_id = self._correlate.ids(self._name, self._end, self._parent)
        return bytes(object.__getattribute__(self, name))


class Correlate:
    """Fills exchange.trace.

    key:               bytes of the hash key.
    ratio:             share of traces exported, by trace id.
    remote_per_second: spans per second and service that are exported because a caller's sampled flag asks for it;
                       beyond that our own decision holds.
    With ratio 0 an exchange without traceparent gets no trace at all.
    """

    def __init__(self, key: bytes, ratio: float, remote_per_second: float, stats: Stats) -> None:
        self._keyed = blake2b(digest_size=32, key=key)
        self._n = stats.n
        self._rate = float(remote_per_second)
        self._most = max(self._rate, 1.0) if self._rate > 0 else 0.0
        self._buckets: dict[str | int, tuple[float, int]] = {}  # service -> tokens, when they were counted
        self._nothing = ratio <= 0
        self._places: dict[str | bytes, int] = {}  # client address or server random -> its keyed hash
        self._threshold = threshold(ratio)
        # Trailing zeros are left out, but one digit stays.
        self._th = f"ot=th:{f'{self._threshold:014x}'.rstrip('0') or '0'}"

    def __call__(self, exchanges: list[Exchange]) -> list[Exchange]:
        for exchange in exchanges:
            header = exchange.request.headers.get("traceparent")
            if header is not None:
                parent = parse(header)
                if parent is not None:
                    self._join(exchange, parent)
                    continue
                self._n["traceparent_invalid"] += 1
            if not self._nothing:
                name = exchange.joint or _alone(exchange)
                self._set(exchange, name, None, self._bits(name) >= self._threshold, self._th)
        return exchanges

    def _join(self, exchange: Exchange, parent: Parent) -> None:
        state = exchange.request.headers.get("tracestate", "")
        sampled = parent[2]
        if sampled and not self._allowed(exchange):
            self._n["remote_sampled_capped"] += 1
            sampled = self._random(parent[0], state) >= self._threshold
            state = with_threshold(state, self._th) if sampled else state
        self._set(exchange, exchange.joint or _alone(exchange), parent, sampled, state)

    def _set(self, exchange: Exchange, name: Name, parent: Parent | None, sampled: bool, state: str) -> None:
        end = (exchange.role, exchange.peer_seen)
        if sampled:
            exchange.trace = TraceContext(*self.ids(name, end, parent), True, state)
        else:
            exchange.trace = _Unsampled(self, name, end, parent, state)

    def _bits(self, name: Name) -> int:
        """The 56 random bits of the trace id: what decides on sampling, so cheaper than the rest of the ids."""
        first, port, position, space = name
        place = self._places.get(first)
        if place is None:
            if len(self._places) >= _PLACES:
                self._places.clear()
            keyed = self._keyed.copy()
            keyed.update(first if isinstance(first, bytes) else first.encode())
            place = self._places[first] = int.from_bytes(keyed.digest()[:8], "big")
        # splitmix64 (Steele, Lea, Flood 2014) over a keyed start
        mixed = place + port * 0x9E3779B97F4A7C15 + position + (space << 32) & _WORD
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & _WORD
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & _WORD
        return (mixed ^ mixed >> 31) & _RANDOM

    def ids(self, name: Name, end: End, parent: Parent | None) -> tuple[bytes, bytes, bytes]:
        """Trace id, span id, parent id (empty for a root); `parent` is what the request's header says."""
        first, port, position, space = name
        hashed = self._keyed.copy()
        hashed.update(b"%b|%d|%d|%d" % (first if isinstance(first, bytes) else first.encode(), port, position, space))
        made = hashed.digest()
        client, server = made[16:24], made[24:]
        trace, above = parent[:2] if parent is not None else (made[:9] + self._bits(name).to_bytes(7, "big"), b"")
        role, peer_seen = end
        if role == CLIENT:
            return trace, client, above
        return trace, server, client if peer_seen else above

    @staticmethod
    def _random(trace: bytes, state: str) -> int:
        for member in state.split(",")[:_MEMBERS_MAX]:
            name, _, text = member.strip().partition("=")
            if name == "ot" and (found := _EXPLICIT_RANDOM.search(text)):
                return int(found[1], 16)
        return int.from_bytes(trace[9:], "big") & _RANDOM

    def _allowed(self, exchange: Exchange) -> bool:
        """Take a token of the service's bucket, which holds one second's worth and one at least, in record time."""
        process = exchange.process
        service = process.workload.name if process is not None else exchange.tgid
        tokens, then = self._buckets.get(service, (self._most, exchange.end_ns))
        tokens = min(self._most, tokens + max(exchange.end_ns - then, 0) * self._rate / 1e9)
        allowed = tokens >= 1
        if len(self._buckets) >= _SERVICES and service not in self._buckets:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[service] = (tokens - 1 if allowed else tokens, max(then, exchange.end_ns))
        return allowed


def _alone(exchange: Exchange) -> Name:
    """A name for an exchange that its other end would not call the same; alike in every replay."""
    client, server, request = exchange.client, exchange.server, exchange.request
    ends = f"{exchange.role}|{client.address}|{client.port}|{server.address}|{server.port}"
    return f"{ends}|{request.stream}|{request.ts}", 0, 0, 0


def with_threshold(state: str, ours: str) -> str:
    """A tracestate with our `ot` member first; `rv` of an existing one is kept, the other members follow in order."""
    members = [member.strip() for member in state.split(",") if member.strip()]
    for index, member in enumerate(members):
        if member.startswith("ot="):
            del members[index]
            rest = [part for part in member[3:].split(";") if part and not part.startswith("th:")]
            ours = ";".join((ours, *rest))
            break
    return ",".join([ours, *members][:_MEMBERS_MAX])
