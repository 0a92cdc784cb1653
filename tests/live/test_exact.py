"""Exactness against the servers' own logs and the clients' own counts, both ends watched."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.live import compare, nginx
from tests.live.agent import Agent
from tests.live.driver import Driver
from tests.live.facts import tell
from tests.live.fleet import PATIENCE, Fleet, free_port, wait_until
from tests.live.plans import SHORT, plan
from tests.live.wrk import FIRST, wrk

ROUNDS = 1 if SHORT else 8
KEEP_ALIVE = 300 if SHORT else 20_000
COMBINATIONS = [(server, tls) for server in ("nginx", "threaded", "prefork", "uvicorn", "uvloop") for tls in (False, True)]
if SHORT:
    COMBINATIONS = [("nginx", False), ("nginx", True), ("prefork", False), ("uvicorn", True)]
ROOMY = 64 << 20  # downloads at loopback speed; loss has tests of its own
pytestmark = pytest.mark.usefixtures("kernel_state")
Lines = Callable[[], list[dict[str, Any]]]


def read(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def start(server: str, fleet: Fleet, file: Path, tls: bool) -> tuple[int, Lines]:
    """The server by name: its port and a function that reads its log."""
    if server == "nginx":
        made = nginx.start(fleet, file)
        return (made.tls if tls else made.plain), made.lines
    log = fleet.folder / "server.log"
    port = free_port()
    cert = fleet.cert if tls else ()
    script, first = ("asgi.py", ("asyncio", "h11")) if server == "uvicorn" else ("blocking.py", (server,))
    if server == "uvloop":
        script, first = "asgi.py", ("uvloop", "httptools")
    fleet.python(f"servers/{script}", *first, port, log, file, *cert, name=server, ports=(port,))
    return port, lambda: read(log)


def timed(server: str, driver: Driver) -> set[str]:
    """Ids whose durations are compared; of servers with an event loop not downloads.

    Such a server takes the time once per turn of its loop (nginx), or calls an answer done that lies in its buffer (uvicorn).
    """
    loops = server in {"nginx", "uvicorn", "uvloop"}
    asks = [one for job in driver.plan if job.get("timed") for one in job["asks"]]
    return {one["id"] for one in asks if not (loops and one["path"].startswith("/file/"))}


@pytest.mark.parametrize(("server", "tls"), COMBINATIONS, ids=["-".join((s, "tls" if t else "plain")) for s, t in COMBINATIONS])
def test_mixed_set(server: str, tls: bool, fleet: Fleet, big_file: Path) -> None:
    fleet.nice = -15
    port, lines = start(server, fleet, big_file, tls)
    driver = Driver(fleet, plan(server, port, tls, ROUNDS))
    agent = Agent(fleet, ["--cgroup", fleet.cgroup, "--ring-bytes", ROOMY])
    results = driver.go()
    hasty = {one["id"] for one in driver.asks.values() if "hangup" in one}
    wait_until(
        lambda: driver.asks.keys() - {line["id"] for line in lines()} <= hasty, 10, "the server has answered all who waited"
    )
    time.sleep(0.4 * PATIENCE)  # and those who did not: /slow/ takes 250 ms
    exchanges = agent.stop()

    faults = compare.Faults()
    logged = lines()
    compare.server_end(faults, exchanges, logged)
    compare.client_end(faults, exchanges, results, driver.asks)
    joined = compare.pairs(faults, exchanges, hasty)
    near = compare.durations(faults, exchanges, logged, timed(server, driver))
    compare.unharmed(faults, exchanges)
    faults.expect({e["tls"] for e in exchanges} == {tls}, "an exchange is wrong about TLS")
    kind = f"{server} {'tls' if tls else 'plain'}"
    tell(f"{kind}: {joined} pairs, durations within {near[0]:.2f} ms (p50), {near[1]:.2f} ms (p99)")
    faults.settle(agent.said())
    assert joined >= len(driver.asks) - len(hasty)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_keep_alive(tls: bool, fleet: Fleet, big_file: Path) -> None:
    """What wrk asked of nginx over 16 keep-alive connections, every request with an id of its own."""
    server = nginx.start(fleet, big_file)
    driver = Driver(fleet, [])  # holds the private libssl that wrk will use
    agent = Agent(fleet, ["--cgroup", fleet.cgroup, *(["--ring-bytes", ROOMY] if SHORT else [])])  # an emulated agent lags
    url = f"http{'s' if tls else ''}://127.0.0.1:{server.tls if tls else server.plain}"
    told = wrk(fleet, url, seconds=2 if SHORT else 5)
    while told["requests"] < KEEP_ALIVE:  # on a busy machine
        more = wrk(fleet, url, seconds=2, first=FIRST + 10_000 + told["requests"])
        told = {key: told[key] + more[key] for key in told}
    exchanges = agent.stop()
    fleet.stop(driver.process)

    assert told["non2xx"] == told["socket"] == told["timeouts"] == 0, told
    faults = compare.Faults()
    lines = server.lines()
    faults.expect(len(lines) >= told["requests"] >= KEEP_ALIVE, f"wrk made {told}, nginx logged {len(lines)}")
    compare.server_end(faults, exchanges, lines)
    compare.pairs(faults, exchanges)
    near = compare.durations(faults, exchanges, lines, {line["id"] for line in lines})
    compare.unharmed(faults, exchanges)
    answered = sum(1 for e in exchanges if e["role"] == "client" and e["response"])
    faults.expect(
        told["requests"] <= answered <= len(lines), f"{answered} answered client exchanges, wrk counted {told['requests']}"
    )
    kind = "tls" if tls else "plain"
    tell(f"keep-alive {kind}: {len(lines)} requests, durations within {near[0]:.2f} ms (p50), {near[1]:.2f} ms (p99)")
    faults.settle(agent.said())
