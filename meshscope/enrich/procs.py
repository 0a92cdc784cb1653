"""Who the two ends of an exchange are, as far as this node's processes tell.

The end that was watched is known by its process. The other end is known only when it was watched, too: by the identity
both ends see alike (``Exchange.joint``), or by the address and port it answers on. Never by a guess.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Final, Protocol, TypeVar

from meshscope.model import CLIENT, Endpoint, Exchange, Process, Workload

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_REMEMBERED: Final = 16384  # of each kind


class Identity(Protocol):
    """A watched process as capture knows it; `started` in clock ticks since boot."""

    @property
    def pid(self) -> int: ...
    @property
    def started(self) -> int: ...
    @property
    def exe(self) -> str: ...
    @property
    def service(self) -> str: ...


class Known(Protocol):
    """Whatever can say which processes are watched: the live search for targets, or a recording."""

    @property
    def processes(self) -> Mapping[int, Identity]:
        """By tgid. May be replaced whole by another thread."""


class Processes:
    """Stage that fills an exchange's process and the workloads of its ends.

    Memory is bounded: of connections, listening addresses, processes and services the oldest are forgotten.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._workloads: dict[str, Workload] = {}
        self._processes: dict[int, Process] = {}
        self._ends: dict[Hashable, dict[str, Workload]] = {}  # connection -> role -> who is at that end
        self._listeners: dict[Hashable, Workload] = {}

    def __call__(self, exchanges: list[Exchange]) -> list[Exchange]:
        """Fill in place. Two passes: the other end of an exchange may be in the same batch, behind it."""
        places = [self._own(exchange) for exchange in exchanges]
        for exchange, (connection, listener) in zip(exchanges, places, strict=True):
            if exchange.role == CLIENT:
                if exchange.server.workload is None:
                    exchange.server.workload = self._peer(connection, "server") or self._listeners.get(listener)
            elif exchange.client.workload is None:
                exchange.client.workload = self._peer(connection, "client")
        return exchanges

    def workload(self, service: str) -> Workload:
        """The one object for a service name."""
        found = self._workloads.get(service)
        if found is None:
            found = _remember(self._workloads, service, Workload(service))
        return found

    def _own(self, exchange: Exchange) -> tuple[Hashable, Hashable]:
        """The watched end; returns the names under which the connection and the server's address are remembered."""
        connection, listener = _connection(exchange), _listener(exchange)
        process = self._process(exchange.tgid)
        if process is None:
            return connection, listener
        exchange.process = process
        end = exchange.client if exchange.role == CLIENT else exchange.server
        end.workload = process.workload
        if connection is not None:
            ends = self._ends.get(connection)
            if ends is None:
                ends = _remember(self._ends, connection, {})
            ends[exchange.role] = process.workload
        if exchange.role != CLIENT and listener is not None and self._listeners.get(listener) is not process.workload:
            _remember(self._listeners, listener, process.workload)
        return connection, listener

    def _peer(self, connection: Hashable, role: str) -> Workload | None:
        ends = self._ends.get(connection)
        return ends.get(role) if ends else None

    def _process(self, tgid: int) -> Process | None:
        identity = self._known.processes.get(tgid)
        process = self._processes.get(tgid)
        if identity is None:
            return process
        if process is None or (process.started, process.exe) != (identity.started, identity.exe):
            process = Process(identity.pid, identity.started, identity.exe, self.workload(identity.service))
            _remember(self._processes, tgid, process)
        return process


def _remember(table: dict[_Key, _Value], key: _Key, value: _Value) -> _Value:
    """Store, forgetting the oldest entry of a full table."""
    if len(table) >= _REMEMBERED:
        del table[next(iter(table))]
    table[key] = value
    return value


def _connection(exchange: Exchange) -> Hashable:
    """What both ends of a connection call it alike, None when that cannot be known.

    Over TLS the server random; on plain TCP the client's address with, for loopback, the network namespace.
    """
    joint = exchange.joint
    if joint is None:
        return None
    return joint[0] if isinstance(joint[0], bytes) else (joint[0], joint[1], joint[3])


def _listener(exchange: Exchange) -> Hashable:
    """Address and port of the server; None where the same address may mean different servers and nothing tells which."""
    server, joint = exchange.server, exchange.joint
    if not _is_loopback(server):
        return (server.address, server.port, 0)
    if joint is None or isinstance(joint[0], bytes):
        return None
    return (server.address, server.port, joint[3])


def _is_loopback(end: Endpoint) -> bool:
    """Without an address it is as ambiguous as loopback."""
    return not end.address or end.address == "::1" or end.address.startswith("127.")
