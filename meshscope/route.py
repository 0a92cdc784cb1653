"""Low-cardinality paths: /orders/123 -> /orders/{id}. A stage.

A guess by shape, not the framework's route: wrong only where numbers are names. Bounded per service, because a metric
with a label per path is how observability takes a cluster down.
"""

from __future__ import annotations

import re
from typing import Final

from meshscope.model import Exchange
from meshscope.redact import REDACTED
from meshscope.stats import Stats

UNKNOWN: Final = "?"  # the target was not seen
OTHER: Final = "{other}"  # beyond the service's bound
_ID: Final = re.compile(
    r"(?<=/)(?:\d+|(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}|[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
    rf"|{REDACTED}(?:;[^/]*)?)(?=/|$)"
)
_PARAMETERS: Final = re.compile(r";[^/]*")
_REMEMBERED: Final = 8192
_SERVICES: Final = 4096
_ROUTE_MAX: Final = 256  # characters; what is longer is no label


def template(target: str) -> str:
    """The route of a redacted request target; "" for the authority form (CONNECT), which has no path."""
    path = target.partition("?")[0].partition("#")[0]
    if path[:1] != "/":
        if path == "*":
            return path
        _, mark, rest = path.partition("://")
        if not mark:
            return ""
        path = "/" + rest.partition("/")[2]
    if ";" in path:
        path = _PARAMETERS.sub("", path)
    return _ID.sub("{id}", path)


class Routes:
    """Fills exchange.route. limit: routes told apart per service."""

    def __init__(self, limit: int, stats: Stats) -> None:
        self._limit = limit
        self._n = stats.n
        self._templates: dict[str, str] = {}
        self._services: dict[str | int, set[str]] = {}

    def __call__(self, exchanges: list[Exchange]) -> list[Exchange]:
        for exchange in exchanges:
            target = exchange.request.target
            if target is None:
                exchange.route = UNKNOWN
                continue
            route = self._templates.get(target)
            if route is None:
                route = template(target)
                if len(target) <= _ROUTE_MAX:
                    if len(self._templates) >= _REMEMBERED:
                        self._templates.clear()
                    self._templates[target] = route
            process = exchange.process
            exchange.route = self._bounded(process.workload.name if process is not None else exchange.tgid, route)
        return exchanges

    def _bounded(self, service: str | int, route: str) -> str:
        routes = self._services.get(service)
        if routes is None:
            if len(self._services) >= _SERVICES:
                del self._services[next(iter(self._services))]
            routes = self._services[service] = set()
        if route in routes:
            return route
        if len(routes) >= self._limit or len(route) > _ROUTE_MAX:
            self._n["routes_collapsed"] += 1
            return OTHER
        routes.add(route)
        return route
