"""Every bound of the flow, beside its reason. What goes over one is let go oldest first and counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on memory and on waiting; counts unless the name says bytes or ns."""

    connections: int = 20_000
    """Sockets and TLS sessions followed at once; an idle one with a parser takes about 2 KiB."""

    open_requests: int = 1_024
    """Unanswered requests of one connection; servers allow 100 to 250 concurrent streams, pipelines are shorter."""

    linger_ns: int = 100_000_000
    """Record time that something which may have been overtaken waits. Records of two ends are written at the end of the
    transfer and may pass each other; 100 ms is twice the longest poll interval."""

    lag_ns: int = 900_000_000
    """Beyond `linger_ns`, when only other shards move: rings are drained in turn, far more often than this."""

    waiting: int = 8_192
    """Things that wait for record time to pass, per shard: 100 ms at 80,000 a second."""

    held_bytes: int = 262_144
    """Bytes of one connection held back: an answer that overtook its request is rarely longer than a socket buffer."""

    held_total_bytes: int = 16_777_216
    """The same over all connections."""

    detect_bytes: int = 4_096
    """First bytes of one half, known from its start, in which a protocol must be recognised: one record."""

    late_turns: int = 16
    """Changes of direction after which a connection joined in its middle and not recognised is left alone."""

    late_bytes: int = 16_777_216
    """Bytes after which it is left alone: a download that was under way when we came gets the time to end."""

    skip_bytes: int = 16_384
    """A body's remaining bytes that are worth telling the kernel not to copy: a verdict costs a map update."""

    protocol_errors: int = 16
    """Errors of one parser after which its connection does not speak the protocol."""

    joints: int = 16_384
    """Requests of either end remembered until the other end shows: most show within a millisecond."""

    local_addresses: int = 4_096
    """Addresses of this node's own ends: the addresses of some hundred pods."""

    randoms: int = 512
    """TLS handshakes of one process without a session yet: one process_vm_readv looks for all of them."""

    processes: int = 4_096
    """Processes with such handshakes, and rows of the gauge of active requests."""

    retired: int = 16_384
    """Ids of closed sockets remembered, so that a straggling record does not make a new connection."""
