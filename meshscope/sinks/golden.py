"""The metric table: one row per series, mutated in place, written by the loop alone.

Every exchange counts once per reporting end, sampled or not. Other threads may read at any time without a lock: take
``list(golden.rows.values())`` and copy a row's bucket lists (each copy is one step for the interpreter); the count that
belongs to a copied list is its sum, so what is exported is consistent even while the loop goes on counting.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import ceil, log
from typing import Final, NamedTuple

from meshscope.model import CLIENT, SERVER, UNKNOWN_REASONS, Exchange, Role, Workload
from meshscope.sinks.conventions import (
    UNKNOWN_SERVICE,
    Attributes,
    clean,
    code_value,
    error_type,
    names,
    own_workload,
    peer_attributes,
    protocol_attributes,
)
from meshscope.stats import Stats

DURATION_BOUNDS: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)  # s, as advised
SIZE_BOUNDS: Final = (0, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216)  # bytes; nothing is advised

IDLE_NS: Final = 900 * 10**9  # a row that counted nothing for so long goes: three times Prometheus' five minutes
_LOG_BASE: Final = 1.01 / 0.99  # buckets this wide answer any quantile within 1 %
_BOUNDS_NS: Final = tuple(round(bound * 1e9) for bound in DURATION_BOUNDS)  # whole numbers: what is on a bound is on it
_PER_BUCKET: Final = 1 / log(_LOG_BASE)


class Series(NamedTuple):
    """What a row counts. Two rows never export the same labels: every field here is one, or names the metric.

    role: which end reports. workload: that end. peer: the other end's service, None if not known.
    method: as conventions write it. error_type: empty for no error. scheme, address, port: empty where the family or the role
    has no such label. overflow: the sum of everything that came after the table was full.
    """

    role: Role
    workload: Workload
    peer: Workload | None
    family: str
    protocol: str
    scheme: str
    method: str
    route: str
    code: str
    detail_code: str
    error_type: str
    address: str
    port: int
    overflow: bool = False

    def attributes(self) -> Attributes:
        """Metric attributes, without those of the workload itself."""
        if self.overflow:
            return {"otel.metric.overflow": True}
        family = names(self.family)
        found: Attributes = {family.method: self.method}
        if self.scheme:
            found["url.scheme"] = self.scheme
        if self.detail_code:
            found["http.response.status_code"] = code_value(self.code)
        code = self.detail_code or self.code
        if code:
            found[family.code] = code_value(code)
        if self.route:
            found["http.route" if self.role == SERVER else "url.template"] = self.route
        if self.error_type:
            found["error.type"] = self.error_type
        found.update(protocol_attributes(self.protocol, self.family))
        if self.role == CLIENT:
            found["server.address"] = self.address
            found["server.port"] = self.port
        found.update(peer_attributes(self.peer))
        return found


class Row:
    """Totals since ``start_ns`` (Unix time). sum: seconds. buckets: per DURATION_BOUNDS and above; log: for quantiles."""

    __slots__ = (
        "buckets",
        "count",
        "errors",
        "idle_since_ns",
        "log",
        "request_bytes",
        "request_sizes",
        "response_bytes",
        "response_sizes",
        "seen",
        "series",
        "start_ns",
        "sum",
    )

    def __init__(self, series: Series, start_ns: int) -> None:
        self.series = series
        self.start_ns = start_ns
        self.count = 0
        self.errors = 0
        self.sum = 0.0
        self.buckets = [0] * (len(DURATION_BOUNDS) + 1)
        self.log: defaultdict[int, int] = defaultdict(int)
        self.request_bytes = 0
        self.request_sizes = [0] * (len(SIZE_BOUNDS) + 1)
        self.response_bytes = 0
        self.response_sizes = [0] * (len(SIZE_BOUNDS) + 1)
        self.seen = 0  # count when last looked at by flush
        self.idle_since_ns = 0


class Active(NamedTuple):
    """Whose requests are under way."""

    role: Role
    workload: Workload
    family: str


def quantile(buckets: Mapping[int, int], q: float) -> float:
    """Seconds below which the share ``q`` of a row's (or several rows' added) log buckets lies, within 1 %; 0 if empty."""
    rank = q * (sum(buckets.values()) - 1)
    for index in sorted(buckets):
        rank -= buckets[index]
        if rank < 0:
            return 2 * _LOG_BASE**index / (_LOG_BASE + 1) * 1e-9
    return 0.0


class Golden:
    """The table. ``limit`` bounds rows; what comes later counts in one overflow row per role, family and workload."""

    def __init__(self, stats: Stats, limit: int = 5000, idle_ns: int = IDLE_NS) -> None:
        self.rows: dict[Series, Row] = {}
        self.unknown: dict[tuple[Workload, str], int] = {}
        self.active: dict[Active, int] = {}
        self._stats = stats
        self._limit = limit
        self._idle_ns = idle_ns
        self._index: dict[tuple[object, ...], tuple[Row, bool]] = {}  # what an exchange shows at a glance -> its row
        self._workloads: dict[tuple[str, str, str], Workload] = {}

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        index = self._index
        self._stats.n["golden_exchanges"] += len(exchanges)
        for x in exchanges:
            about = x.about
            if about.outcome == "unknown":
                self._count_unknown(x)
                continue
            process = x.process
            key: tuple[object, ...]  # of 9 for servers and of 11 for clients, so the role is in it
            if x.role == SERVER:
                own = process.workload if process is not None else x.server.workload
                key = (own, x.client.workload, x.protocol, x.tls, about.name, x.route,
                       about.code, about.detail_code, about.outcome)  # fmt: skip
            else:
                peer, said = x.server, about.attributes
                own = process.workload if process is not None else x.client.workload
                key = (own, peer.workload, x.protocol, x.tls, about.name, x.route,
                       about.code, about.detail_code, about.outcome,
                       said.get("server.address", peer.address), said.get("server.port", peer.port))  # fmt: skip
            row, error = index.get(key) or self._enter(key, x)
            row.count += 1
            if error:
                row.errors += 1
            bucket = place = 0
            took = x.end_ns - x.start_ns
            if took > 0:
                row.sum += took / 1e9
                bucket = bisect_left(_BOUNDS_NS, took)
                place = ceil(log(took) * _PER_BUCKET)
            row.buckets[bucket] += 1
            row.log[place] += 1
            size = x.request.size
            row.request_bytes += size
            row.request_sizes[bisect_left(SIZE_BOUNDS, size)] += 1
            response = x.response
            if response is not None:
                size = response.size
                row.response_bytes += size
                row.response_sizes[bisect_left(SIZE_BOUNDS, size)] += 1

    def flush(self, now_ns: int) -> None:
        """Forget rows that counted nothing for long; a row that comes back starts anew, with a new start time."""
        idle = []
        for row in self.rows.values():
            if row.seen != row.count:
                row.seen = row.count
                row.idle_since_ns = now_ns
            elif now_ns - row.idle_since_ns > self._idle_ns:
                idle.append(row.series)
        if idle:
            self._stats.n["series_expired"] += len(idle)
            rows = dict(self.rows)
            for series in idle:
                del rows[series]
            self.rows = rows
            self._index.clear()
            kept = [w for s in rows for w in (s.workload, s.peer) if w] + [w for w, _ in self.unknown]
            self._workloads = {}
            for workload in kept:
                self._interned(workload)

    def close(self) -> None:
        """Nothing is held that could be lost."""

    def set_active(self, counts: Mapping[tuple[Role, Workload, str], int]) -> None:
        """Requests under way now, by role, workload and family; replaces what was said before."""
        self.active = {Active(role, self._interned(workload), family): n for (role, workload, family), n in counts.items()}

    def _count_unknown(self, exchange: Exchange) -> None:
        """Neither a request nor an error of anybody: it counts by reason, alone."""
        self._stats.n["golden_unknown"] += 1
        response = exchange.response
        doubts = {*exchange.request.doubts, *(response.doubts if response is not None else ()), *exchange.flags}
        reason = next((doubt for doubt in UNKNOWN_REASONS if doubt in doubts), "unanswered")
        key = (self._interned(own_workload(exchange) or UNKNOWN_SERVICE), reason)
        if key not in self.unknown and len(self.unknown) >= self._limit:
            key = (self._interned(UNKNOWN_SERVICE), reason)
        self.unknown[key] = self.unknown.get(key, 0) + 1

    def _enter(self, key: tuple[object, ...], exchange: Exchange) -> tuple[Row, bool]:
        """The row of an exchange that looks like none before it."""
        series = self._series(exchange)
        row = self.rows.get(series)
        if row is None and len(self.rows) >= self._limit:
            self._stats.n["series_overflowed"] += 1
            series = _overflow(series)
            row = self.rows.get(series)
            if row is None and len(self.rows) >= 2 * self._limit:
                series = _overflow(series._replace(workload=self._interned(UNKNOWN_SERVICE)))
                row = self.rows.get(series)
        if row is None:
            row = self.rows[series] = Row(series, exchange.start_ns + exchange.wall_offset_ns)
        entry = (row, bool(error_type(exchange.role, exchange.about)))
        if not series.overflow:  # so that what overflows is looked up, and counted, each time
            if len(self._index) >= 4 * self._limit:
                self._index.clear()
            self._index[key] = entry
        return entry

    def _series(self, exchange: Exchange) -> Series:
        about = exchange.about
        family = names(about.family)
        server = exchange.role == SERVER
        peer = exchange.client.workload if server else exchange.server.workload
        return Series(
            exchange.role,
            self._interned(own_workload(exchange) or UNKNOWN_SERVICE),
            self._interned(Workload(peer.name, peer.namespace)) if peer is not None else None,
            about.family,
            clean(exchange.protocol),
            family.schemes[exchange.tls] if family.schemes else "",
            clean(str(about.attributes.get(family.method, about.name))),
            clean(exchange.route),
            clean(about.code),
            clean(about.detail_code or ""),
            error_type(exchange.role, about),
            "" if server else clean(str(about.attributes.get("server.address", exchange.server.address))),
            0 if server else int(about.attributes.get("server.port", exchange.server.port)),
        )

    def _interned(self, workload: Workload) -> Workload:
        """One object for all that would be exported under the same name."""
        key = (clean(workload.name) or UNKNOWN_SERVICE.name, clean(workload.namespace), clean(workload.container))
        return self._workloads.setdefault(key, workload)


def _overflow(series: Series) -> Series:
    return Series(series.role, series.workload, None, series.family, "", "", "", "", "", "", "", "", 0, overflow=True)
