"""What the semantic conventions call an HTTP exchange (OpenTelemetry, HTTP, stable)."""

from __future__ import annotations

import re
from typing import Final

from parsers.base import Description, Ending, Message

# http.request.method: RFC 9110 section 9, PATCH (RFC 5789), and QUERY, which the conventions list as known, too.
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})

# RFC 3986 section 3.2: host as name, IPv4 address or bracketed IPv6 address; 255 is the longest name of DNS.
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]{1,255})(?::([0-9]{1,5})?)?")
_ABSOLUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#@]*)(/[^?]*)?(?:\?(.*))?")

_MEMO: Final = 1024
_authorities: Final[dict[str, tuple[str, int] | None]] = {}


def describe(request: Message | None, response: Message | None) -> Description:
    """Name, code, outcome and attributes of one exchange; either argument may be None, not both.

    Outcome: by status if the whole answer went by; "aborted" if the connection ended in it or before it;
    "unknown" if bytes are missing. The target is taken as it is now, so redact it first. An unknown method is
    `_OTHER`, and then the span name is "HTTP".
    """
    attributes: dict[str, str | int] = {"network.protocol.name": "http"}
    name = "HTTP"
    if request is not None:
        verb = request.verb
        if verb in METHODS:
            attributes["http.request.method"] = name = verb
        else:
            attributes["http.request.method"] = "_OTHER"
            attributes["http.request.method_original"] = verb
        attributes["network.protocol.version"] = request.version
        _tell_target(request, attributes)
        agent = request.headers.get("user-agent")
        if agent is not None:
            attributes["user_agent.original"] = agent
    elif response is not None:
        attributes["network.protocol.version"] = response.version
    if response is None:
        ending = Ending.OPEN if request is None else request.ending
        return Description(name, "", "aborted" if ending is Ending.CUT else "unknown", "http", attributes)
    status = response.status
    attributes["http.response.status_code"] = status
    ending = response.ending
    if ending is Ending.COMPLETE:
        outcome = "ok" if status < 400 else "client_error" if status < 500 else "server_error"
    else:
        outcome = "aborted" if ending is Ending.CUT else "unknown"
    return Description(name, str(status), outcome, "http", attributes)


def _tell_target(request: Message, attributes: dict[str, str | int]) -> None:
    """url.path and url.query of origin and absolute form, and the server the client meant (RFC 9112 section 3.2)."""
    target = request.target or ""
    authority = request.headers.get("host", "")
    if target[:1] == "/":
        path, mark, query = target.partition("?")
        attributes["url.path"] = path
        if mark:
            attributes["url.query"] = query
    elif request.verb == "CONNECT":
        authority = target
    elif (absolute := _ABSOLUTE.fullmatch(target)) is not None:  # wins over Host (section 3.2.2)
        authority = absolute[1] or authority
        attributes["url.path"] = absolute[2] or "/"
        if absolute[3] is not None:
            attributes["url.query"] = absolute[3]
    server = _server(authority) if authority else None
    if server is not None:
        attributes["server.address"] = server[0]
        if server[1]:
            attributes["server.port"] = server[1]


def _server(authority: str) -> tuple[str, int] | None:
    if authority not in _authorities:
        if len(_authorities) >= _MEMO:
            _authorities.clear()
        _authorities[authority] = _split(authority)
    return _authorities[authority]


def _split(authority: str) -> tuple[str, int] | None:
    """Host and port (0: none given) of `host[:port]`; None if it is not one."""
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        return None
    port = int(match[2] or 0)
    return (match[1].strip("[]").lower(), port) if port < 65536 else None
