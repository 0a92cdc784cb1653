"""One exchange as a JSON document: what ``--output json`` prints and ``--record`` writes, one a line."""

from __future__ import annotations

import json
from typing import Any

from meshscope.model import Endpoint, Exchange
from meshscope.sinks.conventions import attributes, clean, span_name
from parsers.base import Message

_encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode


def line(exchange: Exchange) -> bytes:
    """One exchange as one line of UTF-8, with its line end and no other control character."""
    return f"{_encode(document(exchange))}\n".encode()


def document(exchange: Exchange) -> dict[str, Any]:
    """One exchange as plain JSON types. Times are Unix nanoseconds; what is not known is null or absent, never guessed."""
    about, trace, process, response = exchange.about, exchange.trace, exchange.process, exchange.response
    answer = None
    if response is not None:
        answer = {"status": response.status}
        if about.detail_code is not None:
            answer["grpc_status"] = clean(about.detail_code)  # type: ignore[assignment]
        answer |= _half(response)
    request = exchange.request
    return {
        "start_ns": exchange.start_ns + exchange.wall_offset_ns,
        "end_ns": exchange.end_ns + exchange.wall_offset_ns,
        "duration_ns": exchange.end_ns - exchange.start_ns,
        "protocol": clean(exchange.protocol),
        "role": exchange.role,
        "tls": exchange.tls,
        "client": _endpoint(exchange.client),
        "server": _endpoint(exchange.server),
        "process": None if process is None else {"pid": process.pid, "tid": exchange.tid, "exe": clean(process.exe)},
        "name": span_name(exchange),
        "outcome": about.outcome,
        "request": {
            "method": clean(request.verb),
            "target": None if request.target is None else clean(request.target),
            **_half(request),
        },
        "response": answer,
        "attributes": attributes(exchange),
        "trace": None
        if trace is None
        else {
            "trace_id": trace.trace_id.hex(),
            "span_id": trace.span_id.hex(),
            "parent_span_id": trace.parent_id.hex() or None,
        },
        "flags": list(exchange.flags),
    }


def _half(message: Message) -> dict[str, Any]:
    found: dict[str, Any] = {
        "headers": {clean(name): clean(value) for name, value in message.headers.items()},
        "body_bytes": message.size,
    }
    if message.messages is not None:
        found["messages"] = message.messages
    return found


def _endpoint(end: Endpoint) -> dict[str, Any]:
    found: dict[str, Any] = {"address": clean(end.address), "port": end.port}
    if end.workload is not None:
        found["workload"] = clean(end.workload.name)
        if end.workload.namespace:
            found["namespace"] = clean(end.workload.namespace)
    return found
