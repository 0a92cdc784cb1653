"""Which workload each end gets, and when none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from meshscope.enrich.procs import Processes
from meshscope.model import Endpoint, Exchange, Role
from parsers.base import REQUESTS, Description, Message


class Identity(NamedTuple):
    pid: int
    started: int
    exe: str
    service: str


class Known:
    def __init__(self, *identities: Identity) -> None:
        self.processes: Mapping[int, Identity] = {one.pid: one for one in identities}


CURL = Identity(10, 5, "/usr/bin/curl", "curl")
SHOP = Identity(20, 6, "/usr/bin/python3", "shop")


def exchange(role: Role, tgid: int, joint: tuple[str | bytes, int, int, int] | None, server: str = "10.0.0.2") -> Exchange:
    about = Description("GET", "200", "ok", "http", {})
    made = Exchange(role, "x/1", Message(REQUESTS, 0, 0, 0), None, about, Endpoint("10.0.0.1", 40000), Endpoint(server, 443))
    made.tgid = tgid
    made.joint = joint
    return made


def test_own_end_by_process() -> None:
    (made,) = Processes(Known(CURL))([exchange("client", 10, None)])
    assert made.process is not None
    assert (made.process.pid, made.process.started, made.process.exe) == (10, 5, "/usr/bin/curl")
    assert made.client.workload is made.process.workload
    assert made.client.workload.name == "curl"
    assert made.server.workload is None


def test_unknown_process_stays_unknown() -> None:
    (made,) = Processes(Known())([exchange("server", 20, ("10.0.0.1", 40000, 7, 0))])
    assert made.process is None
    assert made.server.workload is None
    assert made.client.workload is None


def test_both_ends_in_one_batch_in_either_order() -> None:
    for joint in (("10.0.0.1", 40000, 7, 0), (b"r" * 32, 0, 0, 0)):
        for roles in (("client", "server"), ("server", "client")):
            made = {role: exchange(role, 10 if role == "client" else 20, joint, "127.0.0.1") for role in ("client", "server")}
            Processes(Known(CURL, SHOP))([made[role] for role in roles])
            for one in made.values():
                assert one.client.workload is not None
                assert one.server.workload is not None
                assert (one.client.workload.name, one.server.workload.name) == ("curl", "shop")
            assert made["client"].client.workload is made["server"].client.workload


def test_ends_in_later_batches() -> None:
    stage = Processes(Known(CURL, SHOP))
    stage([exchange("client", 10, ("10.0.0.1", 40000, 7, 0))])
    (made,) = stage([exchange("server", 20, ("10.0.0.1", 40000, 900, 0))])
    assert made.client.workload is not None
    assert made.client.workload.name == "curl"


def test_a_listener_is_known_by_its_address_but_not_on_loopback_without_a_namespace() -> None:
    stage = Processes(Known(CURL, SHOP))
    stage([exchange("server", 20, None), exchange("server", 20, (b"a" * 32, 0, 0, 0), "127.0.0.1")])
    outside, inside = stage([exchange("client", 10, None), exchange("client", 10, (b"b" * 32, 0, 0, 0), "127.0.0.1")])
    assert outside.server.workload is not None
    assert outside.server.workload.name == "shop"
    assert inside.server.workload is None


def test_the_same_loopback_address_in_another_namespace_is_another_server() -> None:
    stage = Processes(Known(CURL, SHOP))
    stage([exchange("server", 20, ("127.0.0.1", 1, 7, 111), "127.0.0.1")])
    here, elsewhere = stage(
        [
            exchange("client", 10, ("127.0.0.1", 2, 7, 111), "127.0.0.1"),
            exchange("client", 10, ("127.0.0.1", 1, 7, 222), "127.0.0.1"),
        ],
    )
    assert here.server.workload is not None
    assert elsewhere.server.workload is None


def test_a_pid_used_again_is_another_process_and_one_that_ended_is_remembered() -> None:
    known = Known(CURL)
    stage = Processes(known)
    (first,) = stage([exchange("client", 10, None)])
    known.processes = {10: Identity(10, 99, "/usr/bin/wget", "wget")}
    (second,) = stage([exchange("client", 10, None)])
    known.processes = {}
    (third,) = stage([exchange("client", 10, None)])
    assert first.process is not None
    assert second.process is not None
    assert (first.process.workload.name, second.process.workload.name) == ("curl", "wget")
    assert third.process is second.process


def test_memory_is_bounded() -> None:
    stage = Processes(Known(CURL))
    for number in range(40):
        stage([exchange("client", 10, ("10.0.0.1", port, 7, 0)) for port in range(number * 1000, number * 1000 + 1000)])
    assert len(stage._ends) <= 16384
    for number in range(20_000):  # transient units have a name of their own each time
        stage.workload(f"run-{number}")
    assert len(stage._workloads) <= 16384
