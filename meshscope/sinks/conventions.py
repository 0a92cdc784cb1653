"""Semantic conventions outside the parsers: what a family's metrics and attributes are called, and what is an error.

Names follow OpenTelemetry's semantic conventions 1.44 (stable for HTTP; ``url.template``, ``service.peer.name`` and
body sizes are in development). Pure functions; every text they return is valid UTF-8 without control characters.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from meshscope.model import CLIENT, SERVER, Endpoint, Exchange, Role, Workload
from parsers.base import Description

SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"
UNKNOWN_SERVICE: Final = Workload("unknown_service", kind="unknown")  # the name OpenTelemetry gives a service without one
UNKNOWN_TARGET: Final = "?"  # the route of an exchange whose target was not seen

Value = str | int
Attributes = dict[str, Value]


class Names(NamedTuple):
    """What one family calls things. ``schemes`` are for plain and TLS, empty where the family has no such attribute."""

    duration: str
    method: str
    code: str
    schemes: tuple[str, str] | None = None
    sizes: bool = False
    active: str = ""


_FAMILIES: Final = {
    "http": Names(
        duration="request.duration",
        method="http.request.method",
        code="http.response.status_code",
        schemes=("http", "https"),
        sizes=True,
        active="active_requests",
    ),
    "rpc": Names(duration="call.duration", method="rpc.method", code="rpc.response.status_code"),
}


def names(family: str) -> Names:
    """Names of a family; one that is not listed gets those most families share (``db.operation.name``)."""
    found = _FAMILIES.get(family)
    return found or Names("operation.duration", f"{family}.operation.name", f"{family}.response.status_code")


def clean(text: str) -> str:
    """The same text with U+FFFD for everything a terminal, a label or UTF-8 could choke on.

    That is controls, lone surrogates, direction marks and line separators (Unicode categories C* and Z*, but not the space).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def error_type(role: Role, about: Description) -> str:
    """Empty if this is no error seen from this end: a server is not to blame for its client's errors."""
    outcome = about.outcome
    if outcome == "aborted":
        return "aborted"
    if outcome == "server_error" or (outcome == "client_error" and role == CLIENT):
        return clean(about.detail_code or about.code) or outcome
    return ""


def own_workload(exchange: Exchange) -> Workload | None:
    """Who reports this exchange."""
    if exchange.process is not None:
        return exchange.process.workload
    return (exchange.server if exchange.role == SERVER else exchange.client).workload


def span_name(exchange: Exchange) -> str:
    """The method, and the route where one is known; never the path itself."""
    route = exchange.route
    if not route or route == UNKNOWN_TARGET:
        return clean(exchange.about.name)
    return clean(f"{exchange.about.name} {route}")


def protocol_attributes(protocol: str, family: str) -> Attributes:
    """``http/1.1`` is name and version; a name that only repeats the family is left out, as the conventions ask."""
    name, _, version = clean(protocol).partition("/")
    found: Attributes = {}
    if name != family:
        found["network.protocol.name"] = name
    if version:
        found["network.protocol.version"] = version
    return found


def code_value(code: str) -> Value:
    """Numeric codes are numbers."""
    return int(code) if code.isascii() and code.isdigit() else code


def resource_attributes(workload: Workload) -> dict[str, str]:
    """What names a workload in spans, metrics and labels."""
    found = {"service.name": clean(workload.name) or UNKNOWN_SERVICE.name}
    if workload.namespace:
        found["service.namespace"] = clean(workload.namespace)
    if workload.container:
        found["container.id"] = clean(workload.container)
    return found


def peer_attributes(peer: Workload | None) -> dict[str, str]:
    """The other end's service, where it is known."""
    if peer is None:
        return {}
    found = {"service.peer.name": clean(peer.name) or UNKNOWN_SERVICE.name}
    if peer.namespace:
        found["service.peer.namespace"] = clean(peer.namespace)
    return found


def attributes(exchange: Exchange) -> Attributes:
    """Attributes of one exchange as a span or a JSON line carries them.

    What the protocol says (``Description.attributes``) is put over what the connection shows.
    """
    about = exchange.about
    family = names(about.family)
    found = protocol_attributes(exchange.protocol, about.family)
    peer = _add_ends(exchange, found)
    if family.schemes:
        found["url.scheme"] = family.schemes[exchange.tls]
    if exchange.route and exchange.route != UNKNOWN_TARGET:
        found["http.route" if exchange.role == SERVER else "url.template"] = clean(exchange.route)
    if family.sizes:
        found[f"{about.family}.request.body.size"] = exchange.request.size
        if exchange.response is not None:
            found[f"{about.family}.response.body.size"] = exchange.response.size
    for key, value in about.attributes.items():
        found[key] = clean(value) if isinstance(value, str) else value
    if family.schemes and exchange.role == CLIENT:
        _add_full_url(exchange, found)
    if error := error_type(exchange.role, about):
        found["error.type"] = error
    found.update(peer_attributes(peer.workload))
    _add_origin(exchange, found)
    return found


def _add_ends(exchange: Exchange, found: Attributes) -> Endpoint:
    """Addresses as the connection shows them; returns the other end."""
    client, server = exchange.client, exchange.server
    found["server.address"] = server.address
    found["server.port"] = server.port
    peer = server
    if exchange.role == SERVER:
        found["client.address"] = client.address
        found["client.port"] = client.port
        peer = client
    found["network.peer.address"] = peer.address
    found["network.peer.port"] = peer.port
    return peer


def _add_origin(exchange: Exchange, found: Attributes) -> None:
    """Whose doing it is, and what speaks against trusting it."""
    if exchange.process is not None:
        found["process.pid"] = exchange.process.pid
    if exchange.tid:
        found["thread.id"] = exchange.tid
    if exchange.flags:
        found["meshscope.flags"] = ",".join(exchange.flags)


def _add_full_url(exchange: Exchange, found: Attributes) -> None:
    """Client spans carry ``url.full`` in place of its parts; a target that is no path (OPTIONS *, CONNECT) has none."""
    target = exchange.request.target
    if "url.full" in found or not target:
        return
    if "://" in target[:16]:
        found["url.full"] = clean(target)
    elif target[0] == "/":
        default = 443 if exchange.tls else 80
        said = exchange.about.attributes
        port = said.get("server.port", default) if "server.address" in said else exchange.server.port
        host = str(found["server.address"])
        if ":" in host:
            host = f"[{host}]"
        if port != default:
            host = f"{host}:{port}"
        found["url.full"] = clean(f"{found['url.scheme']}://{host}{target}")
