"""Exchanges for tests: everything has a believable default, keyword arguments change what a test is about."""

from __future__ import annotations

from typing import Any

from meshscope.model import SERVER, Endpoint, Exchange, Process, Role, TraceContext, Workload
from parsers.base import REQUESTS, RESPONSES, Description, Ending, Message

WALL_NS = 1_700_000_000 * 10**9
SHOP = Workload("shop", "market", "container", "c0ffee")
CURL = Workload("curl")


def message(half: int, **fields: Any) -> Message:
    """One finished half."""
    made = Message(half, 0, 1_000, 0)
    made.final = True
    made.ending = Ending.COMPLETE
    made.version = "1.1"
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def exchange(
    role: Role = SERVER,
    *,
    method: str = "GET",
    target: str | None = "/items/42?color=red",
    route: str = "/items/{id}",
    status: int | None = 200,
    outcome: str = "",
    duration_ns: int = 1_500_000,
    client: Workload | None = CURL,
    server: Workload | None = SHOP,
    sampled: bool | None = True,
    request: dict[str, Any] | None = None,
    response: dict[str, Any] | None = None,
    attributes: dict[str, str | int] | None = None,
    **fields: Any,
) -> Exchange:
    """One exchange; ``status`` None has no response, ``sampled`` None no trace; other names are the exchange's own fields."""
    headers = {"host": "shop.local", "user-agent": "curl/7.88.1"}
    asked = message(REQUESTS, **{"verb": method, "target": target, "headers": headers, **(request or {})})
    answered = None
    if status is not None:
        headers = {"content-type": "text/plain"}
        answered = message(RESPONSES, **{"status": status, "size": 512, "headers": headers, **(response or {})})
    if not outcome:
        outcome = "aborted" if status is None else {4: "client_error", 5: "server_error"}.get(status // 100, "ok")
    facts: dict[str, str | int] = {"http.request.method": method}
    if status is not None:
        facts["http.response.status_code"] = status
    about = Description(method, str(status or ""), outcome, "http", facts | (attributes or {}))
    ends = Endpoint("127.0.0.1", 45678, client), Endpoint("127.0.0.1", 8080, server)
    made = Exchange(role, "http/1.1", asked, answered, about, *ends)
    made.start_ns = 5_000_000_000
    made.end_ns = made.start_ns + duration_ns
    made.wall_offset_ns = WALL_NS
    made.tgid, made.tid = 4321, 4322
    own = server if role == SERVER else client
    if own is not None:
        made.process = Process(4321, 99, "/usr/bin/shop", own)
    made.route = route
    if sampled is not None:
        made.trace = TraceContext(b"\x01" * 16, b"\x02" * 8, b"\x03" * 8, sampled)
    for name, value in fields.items():
        setattr(made, name, value)
    return made
