"""Protocols: bytes in, messages out. Standard library only; README.md beside this file tells how to add one."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final, Protocol

from parsers import http1
from parsers.base import Description, Message, Verdict

GROUP: Final = "meshscope.protocols"  # entry points of protocols that other packages bring; each names a module


class Speech(Protocol):
    """A protocol's module, see parsers/base.py."""

    NAME: str
    Parser: Any

    def sniff(self, head: bytes) -> Verdict: ...

    def describe(self, request: Message | None, response: Message | None) -> Description: ...


class Refiner(Protocol):
    """A module that knows more about what another protocol carries.

    OVER: names of the protocols it refines. claims(request): whether this exchange is one of its own.
    """

    NAME: str
    OVER: tuple[str, ...]

    def claims(self, request: Message) -> bool: ...

    def describe(self, request: Message | None, response: Message | None) -> Description: ...


# In the order in which they are asked about the first bytes of a connection.
PROTOCOLS: Final[tuple[Speech, ...]] = (http1,)
REFINERS: Final[tuple[Refiner, ...]] = ()


def protocols(found: Iterable[EntryPoint] | None = None) -> tuple[tuple[Speech, ...], tuple[str, ...]]:
    """PROTOCOLS and what other packages bring, and a line about each that cannot be used.

    found: entry points, for tests; None reads the installed packages' (slow, once at the start is enough). A protocol
    of another package cannot take the name of one that is here.
    """
    taken = list(PROTOCOLS)
    refused = []
    for point in sorted(entry_points(group=GROUP) if found is None else found, key=lambda point: point.name):
        try:
            module = point.load()
        except Exception as error:  # noqa: BLE001 a stranger's module may fail in any way when it is imported
            refused.append(f"protocol {point.name}: {point.value} cannot be imported ({type(error).__name__})")
            continue
        missing = [name for name in ("NAME", "Parser", "sniff", "describe") if not hasattr(module, name)]
        if missing:
            refused.append(f"protocol {point.name}: {point.value} has no {', '.join(missing)}")
        elif module.NAME in {protocol.NAME for protocol in taken}:
            refused.append(f"protocol {point.name}: the name {module.NAME} is taken")
        else:
            taken.append(module)
    return tuple(taken), tuple(refused)
