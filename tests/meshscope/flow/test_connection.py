from __future__ import annotations

import socket

import pytest

from meshscope.capture import abi
from meshscope.flow.connection import Connection, address, loopback, read_opening
from meshscope.model import CLIENT, SERVER
from tests.meshscope.flow import toy
from tests.meshscope.records import Tape


@pytest.mark.parametrize("text", ["10.1.2.3", "2001:db8::1", "::1"])
def test_addresses(text: str) -> None:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    assert address(family, socket.inet_pton(family, text).ljust(16, b"\0")) == text


def test_an_address_mapped_into_ipv6_reads_as_ipv4() -> None:
    assert address(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "::ffff:10.1.2.3")) == "10.1.2.3"


def test_another_family_has_no_address() -> None:
    assert address(0, bytes(16)) == ""


def test_loopback() -> None:
    assert loopback("127.8.0.1")
    assert loopback("::1")
    assert not loopback("10.0.0.1")
    assert not loopback("")


def test_an_opening_is_read_from_its_record() -> None:
    about = read_opening(Tape().open(1, role=abi.ROLE_CLIENT, netns=7).records[0], 8 + abi.CHUNK.size)
    assert (about.started_ns, about.local_port, about.remote_port, about.netns, about.role) == (1, 40_000, 80, 7, abi.ROLE_CLIENT)
    connection = Connection(1, abi.SOCKET, 0, 7)
    connection.opened(about, 7)
    assert (connection.late, connection.role, connection.local.address, connection.remote.port) == (False, CLIENT, "10.0.0.1", 80)


def test_the_direction_of_requests_depends_on_the_role() -> None:
    for role, requests in ((CLIENT, abi.TX), (SERVER, abi.RX)):
        connection = Connection(1, abi.SOCKET, 0, 7)
        connection.next = [5, 6]
        connection.speak(toy, role, frozenset())
        assert requests ^ connection.flip == 0
        assert connection.base[0] == connection.next[requests]
