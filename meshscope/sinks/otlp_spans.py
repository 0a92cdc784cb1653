"""Sampled exchanges as OTLP spans, built without the SDK's tracer: one message each, grouped by workload, in the worker's thread.

Status follows the HTTP conventions: an error of the other side is none of ours, so a server's 4xx leaves its span unset.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, Status

from meshscope.model import SERVER, Exchange, Workload
from meshscope.sinks.conventions import (
    SCHEMA_URL,
    UNKNOWN_SERVICE,
    Attributes,
    Value,
    attributes,
    clean,
    error_type,
    own_workload,
    span_name,
)
from meshscope.sinks.otlp_export import Exporter
from meshscope.sinks.otlp_resource import Resources, put
from meshscope.sinks.worker import Fates, Worker
from meshscope.stats import Stats

_SAMPLED: Final = 0x01  # W3C trace flags
_PARENT_IS_REMOTE: Final = 0x300  # SpanFlags: we know, and it is
_CLOSE_S: Final = 3.0
_KNOWN: Final = 4096  # attributes remembered
_VARYING: Final = frozenset(
    {
        "client.port",
        "http.request.body.size",
        "http.response.body.size",
        "network.peer.port",
        "url.full",
        "url.path",
        "url.query",
    }
)  # attributes not worth remembering

Known = dict[tuple[str, Value], bytes]  # an attribute -> a serialised span that has it and nothing else


class OtlpSpans:
    """The sink: what is sampled goes to the worker, everything is counted.

    shedding: while True nothing is handed on, to keep the agent's budget.
    """

    def __init__(
        self, exporter: Exporter, resources: Resources, stats: Stats, *, queue: int = 4096, linger_s: float = 0.5
    ) -> None:
        self.shedding = False
        self._exporter = exporter
        self._resources = resources
        self._stats = stats
        self._known: Known = {}
        self._worker = Worker[Exchange](
            "meshscope-spans",
            self._export,
            stats,
            Fates("spans_exported", "spans_failed", "spans_dropped"),
            abort=exporter.abort,
            capacity=queue,
            linger_s=linger_s,
        )

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        n = self._stats.n
        n["spans_offered"] += len(exchanges)
        sampled = [x for x in exchanges if x.trace is not None and x.trace.sampled]
        if self.shedding:
            n["spans_shed"] += len(sampled)
            sampled = []
        n["spans_sampled_out"] += len(exchanges) - len(sampled)
        if sampled:
            self._worker.put(sampled)

    def flush(self, now_ns: int) -> None:
        """Spans leave when a batch is full, or after half a second."""

    def close(self) -> None:
        """Deliver what waits, for at most three seconds; count what is left."""
        self._exporter.hurry()
        self._worker.close(_CLOSE_S)
        self._exporter.close()

    def _export(self, exchanges: list[Exchange]) -> int:
        return self._exporter.send(request(exchanges, self._resources, self._known), len(exchanges))


def request(exchanges: Iterable[Exchange], resources: Resources, known: Known) -> ExportTraceServiceRequest:
    """Exchanges that have a trace, as one request; one resource per workload. ``known`` is kept from one call to the next."""
    made = ExportTraceServiceRequest()
    if len(known) > _KNOWN:
        known.clear()
    scopes: dict[Workload, ScopeSpans] = {}
    for exchange in exchanges:
        workload = own_workload(exchange) or UNKNOWN_SERVICE
        scope = scopes.get(workload)
        if scope is None:
            resource = made.resource_spans.add(resource=resources.of(workload), schema_url=SCHEMA_URL)
            scope = scopes[workload] = resource.scope_spans.add(scope=resources.scope, schema_url=SCHEMA_URL)
        _fill(scope.spans.add(), exchange, known)
    return made


def _fill(span: Span, exchange: Exchange, known: Known) -> None:
    trace = exchange.trace
    if trace is None:
        raise ValueError("an exchange without a trace is no span")
    server = exchange.role == SERVER
    span.trace_id = trace.trace_id
    span.span_id = trace.span_id
    span.parent_span_id = trace.parent_id
    span.trace_state = clean(trace.tracestate)
    span.flags = _SAMPLED | (_PARENT_IS_REMOTE if server and trace.parent_id else 0)
    span.name = span_name(exchange)
    span.kind = Span.SPAN_KIND_SERVER if server else Span.SPAN_KIND_CLIENT
    span.start_time_unix_nano = exchange.start_ns + exchange.wall_offset_ns
    span.end_time_unix_nano = max(exchange.start_ns, exchange.end_ns) + exchange.wall_offset_ns
    _describe(span, attributes(exchange), known)
    if error_type(exchange.role, exchange.about):
        span.status.code = Status.STATUS_CODE_ERROR


def _describe(span: Span, values: Attributes, known: Known) -> None:
    """Add attributes. Most were in a span before: joining their bytes takes half as long as making them anew."""
    joined = []
    for pair in values.items():
        data = known.get(pair)
        if data is None:
            if pair[0] in _VARYING:
                put(span.attributes, {pair[0]: pair[1]})
                continue
            one = Span()
            put(one.attributes, {pair[0]: pair[1]})
            data = known[pair] = one.SerializeToString()
        joined.append(data)
    span.MergeFromString(b"".join(joined))
