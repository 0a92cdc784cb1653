"""Nobody is hurt: attaching, detaching, being killed or stopped under load; who was not selected is not touched."""

from __future__ import annotations

import signal
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.live import nginx, wrk
from tests.live.agent import Agent
from tests.live.driver import Driver
from tests.live.facts import tell
from tests.live.fleet import PATIENCE, Fleet, free_port
from tests.live.kernel import breakpoints
from tests.live.plans import SHORT

pytestmark = pytest.mark.usefixtures("kernel_state")
ROUNDS = 2 if SHORT else 20
PAUSE_MS = 60 if SHORT else 3  # an emulated machine must still have time for the agent
CLOSE_S = 1.0 * PATIENCE  # what a close may take from outside, however stopped the agent is


class Closer(threading.Thread):
    """Asks for answers that end by the server's close, and measures how long the end takes to arrive."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port
        self.slowest = 0.0
        self.count = 0
        self.failed: list[str] = []
        self.leave = threading.Event()

    def run(self) -> None:
        while not self.leave.wait(PAUSE_MS / 1000):
            began = time.monotonic()
            try:
                with socket.create_connection(("127.0.0.1", self.port), CLOSE_S * 10) as link:
                    link.sendall(f"GET /close/{80_000_000 + self.count} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
                    got = b""
                    while piece := link.recv(65536):
                        got += piece
                if not got.startswith(b"HTTP/1.1 200"):
                    self.failed.append(repr(got[:50]))
            except OSError as error:
                self.failed.append(str(error))
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1

    def stop(self) -> None:
        """End it and say whether all went well."""
        self.leave.set()
        self.join()
        assert self.count, "it never got an answer"
        assert not self.failed, f"{len(self.failed)} of {self.count} failed: {self.failed[:3]}"
        assert self.slowest < CLOSE_S, f"a close took {self.slowest:.2f} s"


class Town:
    """nginx and a threaded server, plain and TLS, under load from all sides until `settle`."""

    def __init__(self, fleet: Fleet, file: Path) -> None:
        self.fleet = fleet
        self.nginx = nginx.start(fleet, file)
        self.port = free_port()
        self.driver = Driver(fleet, [])
        log = fleet.folder / "server.log"
        self.python = fleet.python("servers/blocking.py", "threaded", self.port, log, file, name="threaded", ports=(self.port,))
        urls = {"plain": f"http://127.0.0.1:{self.nginx.plain}", "tls": f"https://127.0.0.1:{self.nginx.tls}"}
        urls["python"] = f"http://127.0.0.1:{self.port}"
        self.loads = {
            name: wrk.begin(fleet, url, wrk.UNTIL_ENDED, connections=4, pause_ms=PAUSE_MS, name=name)
            for name, url in urls.items()
        }
        self.closer = Closer(self.port)
        self.closer.start()

    def settle(self) -> dict[str, int]:
        """End the loads; fails if one request did. Requests answered by load."""
        self.closer.stop()
        answered = {}
        for name, process in self.loads.items():
            told = wrk.end(self.fleet, process, name, now=True)
            assert told["non2xx"] == told["socket"] == told["timeouts"] == 0, f"{name}: {told}"
            answered[name] = told["requests"]
        self.fleet.stop(self.driver.process)
        return answered


def test_attach_and_detach_under_load(fleet: Fleet, big_file: Path) -> None:
    town = Town(fleet, big_file)
    counts = []
    for turn in range(ROUNDS):
        agent = Agent(fleet, ["--cgroup", fleet.cgroup], name=f"agent{turn}")
        time.sleep(0.2)  # under load, so that there is something to detach from
        counts.append(len(agent.stop()))
        for pid in (town.nginx.pid, town.driver.process.pid):
            assert breakpoints(pid, "libssl.so") == 0, "a probe was left in a process"
    answered = town.settle()
    assert all(counts), f"an agent saw nothing: {counts}"
    slowest = f"slowest close {town.closer.slowest:.3f} s"
    tell(f"attached and detached {ROUNDS} times: {sum(answered.values())} requests, none failed, {slowest}")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["kill", "stop"])
def test_killed_or_stopped_under_load(how: signal.Signals, fleet: Fleet, big_file: Path) -> None:
    town = Town(fleet, big_file)
    agent = Agent(fleet, ["--cgroup", fleet.cgroup])
    time.sleep(0.5)  # into the load
    agent.process.send_signal(how)
    if how == signal.SIGKILL:
        agent.process.wait(10)
    time.sleep(3)  # long enough for a full ring, or for a breakpoint that stayed to be hit
    answered = town.settle()
    assert all(answered.values()), answered
    if how == signal.SIGSTOP:
        agent.process.send_signal(signal.SIGCONT)
        assert agent.stop(), "it saw nothing"
    assert breakpoints(town.nginx.pid, "libssl.so") == 0, "a probe was left in a process"
    tell(f"{how.name} under load: {sum(answered.values())} requests, none failed, slowest close {town.closer.slowest:.3f} s")


def test_who_was_not_selected_has_no_probe(fleet: Fleet, big_file: Path, tmp_path: Path) -> None:
    """A neighbour on the same libssl, outside the selection, is asked over TLS all the while."""
    selected = nginx.start(fleet, big_file)
    port = free_port()
    neighbour = fleet.python(
        "servers/blocking.py",
        "threaded",
        port,
        tmp_path / "n.log",
        big_file,
        *fleet.cert,
        name="neighbour",
        ports=(port,),
        inside=False,
    )
    bystander = Driver(fleet, [])  # selected, on a libssl of its own
    agent = Agent(fleet, ["--pid", selected.pid])
    process = wrk.begin(fleet, f"https://127.0.0.1:{port}", 1, connections=2, name="outside")
    assert breakpoints(selected.pid, "libssl.so") > 0, "the selected process has no probe"
    assert breakpoints(neighbour.pid, "libssl.so") == 0
    assert breakpoints(bystander.process.pid, "libssl.so") == 0
    told = wrk.end(fleet, process, "outside")
    assert breakpoints(neighbour.pid, "libssl.so") == 0
    assert told["requests"] > 0
    assert agent.stop() == []
    assert breakpoints(selected.pid, "libssl.so") == 0
    fleet.stop(bystander.process)
