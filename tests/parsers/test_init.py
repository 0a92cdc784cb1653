from __future__ import annotations

import sys
import types
from importlib.metadata import EntryPoint

import pytest

import parsers
from parsers import http1

GROUP = parsers.GROUP


def test_every_protocol_has_the_four_names() -> None:
    names = [protocol.NAME for protocol in parsers.PROTOCOLS]
    assert len(set(names)) == len(names)
    for protocol in parsers.PROTOCOLS:
        for name in ("NAME", "Parser", "sniff", "describe"):
            assert hasattr(protocol, name)
    carriers = set(names) | {refiner.NAME for refiner in parsers.REFINERS}
    for refiner in parsers.REFINERS:
        assert set(refiner.OVER) <= carriers


def test_no_protocol_is_claimed_before_a_byte_was_seen() -> None:
    for protocol in parsers.PROTOCOLS:
        assert protocol.sniff(b"") == parsers.Verdict.MAYBE


def test_protocols_of_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    ping = types.ModuleType("ping_protocol")
    vars(ping).update(NAME="ping", Parser=http1.Parser, sniff=http1.sniff, describe=http1.describe)
    same = types.ModuleType("same_protocol")
    vars(same).update(NAME=http1.NAME, Parser=http1.Parser, sniff=http1.sniff, describe=http1.describe)
    for module in (ping, same):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    found, refused = parsers.protocols(
        [
            EntryPoint("ping", "ping_protocol", GROUP),
            EntryPoint("same", "same_protocol", GROUP),
            EntryPoint("gone", "no_such_module_here", GROUP),
            EntryPoint("odd", "types", GROUP),
        ]
    )
    assert found == (*parsers.PROTOCOLS, ping)
    assert refused == (
        "protocol gone: no_such_module_here cannot be imported (ModuleNotFoundError)",
        "protocol odd: types has no NAME, Parser, sniff, describe",
        "protocol same: the name http/1.1 is taken",
    )


def test_installed_packages_are_asked() -> None:
    found, _ = parsers.protocols()
    assert found[: len(parsers.PROTOCOLS)] == parsers.PROTOCOLS
