"""The types that flow between stages.

Plain slots, mutated by one thread; never frozen, because a frozen dataclass costs three times as much to make.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal, Protocol

from parsers.base import Description, Message

CLIENT: Final = "client"
SERVER: Final = "server"
Role = Literal["client", "server"]

# Why an outcome is unknown: the first of these in Exchange.flags is the reason, and one always is.
UNKNOWN_REASONS: Final = ("parser_error", "bytes_lost", "evicted", "upgraded", "input_ended", "late_join")

# What an exchange may carry in Exchange.flags. None of them is an error of anybody: they say what was not seen.
FLAGS: Final = {
    "bytes_lost": "Bytes of the connection were lost in or before it: fields, sizes or its end may be missing.",
    "evicted": "It was given up because a bound on what is followed at once was reached.",
    "head_truncated": "Its head or trailers were longer than what is read of them: headers may be missing.",
    "input_ended": "The agent stopped, or the recording ended, before its end.",
    "late_join": "The connection was joined in its middle: what came before is not known.",
    "parser_error": "The bytes were not what the protocol allows, so its end was not found.",
    "peer_unknown": "The TLS session's socket was not found: there are no addresses, and it cannot be joined with its other end.",
    "shards_mixed": "Its connection was used by two selected process trees: the order of their bytes is not trusted.",
    "unpositioned": "Its bytes have no position (kernel TLS, MPTCP): a loss among them would not be noticed.",
    "upgraded": "The connection stopped speaking the protocol with it (Upgrade, CONNECT); what follows is not read.",
}


class Workload:
    """Who a process or an address is; one interned object per workload, compared by identity.

    name: service name as OpenTelemetry would report it. The other fields are empty where unknown.
    """

    __slots__ = ("container", "kind", "name", "namespace")

    def __init__(self, name: str, namespace: str = "", kind: str = "process", container: str = "") -> None:
        self.name = name
        self.namespace = namespace
        self.kind = kind  # "process", "unit", "container", later Kubernetes kinds
        self.container = container


class Endpoint:
    """One end of a connection: textual address (IPv4-mapped IPv6 written as IPv4), port, and who it is.

    All exchanges of a connection share its two endpoints. An unknown one is "" and 0.
    """

    __slots__ = ("address", "port", "workload")

    def __init__(self, address: str, port: int, workload: Workload | None = None) -> None:
        self.address = address
        self.port = port
        self.workload = workload


class TraceContext:
    """Ids are bytes: 16, 8, 8 or b"" for a root. sampled: export this span."""

    __slots__ = ("parent_id", "sampled", "span_id", "trace_id", "tracestate")

    def __init__(self, trace_id: bytes, span_id: bytes, parent_id: bytes, sampled: bool, tracestate: str = "") -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_id = parent_id
        self.sampled = sampled
        self.tracestate = tracestate


class Process:
    """A watched process as it was when first met; `started` is starttime of /proc/PID/stat in clock ticks."""

    __slots__ = ("exe", "pid", "started", "workload")

    def __init__(self, pid: int, started: int, exe: str, workload: Workload) -> None:
        self.pid = pid
        self.started = started
        self.exe = exe
        self.workload = workload


class Exchange:
    """One request and what became of it, seen from one end.

    Times are CLOCK_MONOTONIC ns; `wall_offset_ns` added to them gives Unix time.
    role:       which end this process is.
    start_ns:   first byte of the request as seen at this end; end_ns: last byte of the response, or when it was given up.
    tgid, tid:  who moved the request's head.
    srtt_us:    as of the last record, 0 unknown; retransmits: of the connection since the request's head.
    response:   None: reset, lost or never sent; `about.outcome` says which.
    joint:      names the exchange alike at both ends: (client address, client port, low 32 bits of the TCP sequence
                number of the request's first byte, netns if loopback else 0), or over TLS (server random, plaintext
                offset of the request's first byte, 0, 0); None when it cannot be known.
    peer_seen:  the other end of this exchange was seen by this agent. Server ends wait for it; a client end
                knows it if the other end's record came first, as it nearly always does.
    route:      low-cardinality path, filled by the route stage.
    flags:      doubts, sorted: names of FLAGS.
    """

    __slots__ = (
        "about",
        "client",
        "end_ns",
        "flags",
        "joint",
        "peer_seen",
        "process",
        "protocol",
        "request",
        "response",
        "retransmits",
        "role",
        "route",
        "server",
        "srtt_us",
        "start_ns",
        "tgid",
        "tid",
        "tls",
        "trace",
        "wall_offset_ns",
    )

    def __init__(
        self,
        role: Role,
        protocol: str,
        request: Message,
        response: Message | None,
        about: Description,
        client: Endpoint,
        server: Endpoint,
    ) -> None:
        self.role: Role = role
        self.protocol = protocol
        self.request = request
        self.response = response
        self.about = about
        self.client = client
        self.server = server
        self.tls = False
        self.start_ns = 0
        self.end_ns = 0
        self.wall_offset_ns = 0
        self.tgid = 0
        self.tid = 0
        self.srtt_us = 0
        self.retransmits = 0
        self.process: Process | None = None
        self.joint: tuple[str | bytes, int, int, int] | None = None
        self.peer_seen = False
        self.trace: TraceContext | None = None
        self.route = ""
        self.flags: tuple[str, ...] = ()


class Stage(Protocol):
    """A step between flow and sinks: takes a list of exchanges, returns a list (often the same one, filled in)."""

    def __call__(self, exchanges: list[Exchange]) -> list[Exchange]: ...


class Sink(Protocol):
    """Where exchanges go. None of the three may block or raise."""

    def emit(self, exchanges: Sequence[Exchange]) -> None: ...

    def flush(self, now_ns: int) -> None:
        """Once per interval and before close; `now_ns` is Unix time."""

    def close(self) -> None:
        """Flush what waits, in bounded time; count what is dropped."""
