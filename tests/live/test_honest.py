"""What was not seen is counted and flagged; what is shown is true."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.live import compare, nginx, wrk
from tests.live.agent import Agent
from tests.live.driver import Driver
from tests.live.facts import tell
from tests.live.fleet import Fleet, free_port, wait_until
from tests.live.plans import SHORT
from tests.live.scrape import Samples, fetch, samples, total

pytestmark = pytest.mark.usefixtures("kernel_state")


def leaving(exchanges: list[dict[str, Any]]) -> int:
    """How often wrk left in the middle of a request, as it does at the end of its time: the only errors there are."""
    return sum(1 for e in exchanges if e["role"] == "client" and e["response"] is None and e["outcome"] == "aborted")


def true_or_silent(exchanges: list[dict[str, Any]], lines: list[dict[str, Any]], connections: int) -> None:
    """Nothing is invented: each exchange that names an id is in the server's log, once per end, and what it says is so."""
    logged = {line["id"]: line for line in lines}
    faults = compare.Faults()
    for role in ("client", "server"):
        for who, mine in compare.by_id(exchanges, role).items():
            if not who:
                continue
            faults.expect(len(mine) == 1, f"{role} {who}: {len(mine)} exchanges\n{compare.brief(mine)}")
            line = logged.get(who)
            if line is None:
                faults.expect(mine[0]["response"] is None, f"{role}: an answer to an id nobody asked\n{compare.brief(mine)}")
                continue
            for exchange in mine:
                faults.expect(
                    exchange["request"]["method"] in {"GET", ""}, f"{role}: a method nobody used\n{compare.brief(mine)}"
                )
                if exchange["response"]:
                    told = exchange["response"]["status"]
                    faults.expect(told == line["status"], f"{role}: status {told} for {line}")
                    complete = exchange["outcome"] == "ok" and not exchange["flags"]
                    size = exchange["response"]["body_bytes"]
                    faults.expect(not complete or size == line["body"], f"{role}: body {size} for {line}")
                fine = exchange["outcome"] in {"ok", "unknown"} or leaving([exchange])
                faults.expect(fine, f"{role}: an error nobody had\n{compare.brief(mine)}")
    faults.expect(leaving(exchanges) <= connections, f"{leaving(exchanges)} requests aborted on {connections} connections")
    faults.settle()


def balanced(found: Samples) -> None:
    """The equations of loss, from the agent's own counters."""

    def n(name: str) -> float:
        return total(found, f"meshscope_{name}_total")

    where = ("copied", "skipped", "unreadable", "cut", "ciphertext", "lost")
    assert n("kernel_bytes_moved") == sum(n(f"kernel_bytes_{one}") for one in where)
    assert n("kernel_records_attempted") == n("kernel_records_reserved") + n("kernel_records_reserve_failed")


def errors(found: Samples) -> float:
    """Requests counted with an error type, at either end."""
    names = {"http_server_request_duration_seconds_count", "http_client_request_duration_seconds_count"}
    return sum(value for (name, labels), value in found.items() if name in names and "error_type" in dict(labels))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_ring_too_small(tls: bool, fleet: Fleet, big_file: Path) -> None:
    server = nginx.start(fleet, big_file)
    driver = Driver(fleet, [])
    page = free_port()
    agent = Agent(fleet, ["--cgroup", fleet.cgroup, "--ring-bytes", 16384, "--prometheus", f"127.0.0.1:{page}", "--max-cpu", 0])
    url = f"https://127.0.0.1:{server.tls}" if tls else f"http://127.0.0.1:{server.plain}"
    told = wrk.wrk(fleet, url, seconds=2, pause_ms=0 if not SHORT else 1)
    quiet = settled(page)
    exchanges = agent.stop()
    fleet.stop(driver.process)
    assert told["non2xx"] == told["socket"] == told["timeouts"] == 0, told
    lost = total(quiet, "meshscope_kernel_bytes_lost_total")
    assert lost > 0, "the ring was not too small"
    assert "lost" in agent.summary(), agent.summary()
    balanced(quiet)
    true_or_silent(exchanges, server.lines(), 16)
    assert errors(quiet) == leaving(exchanges), "loss was taken for errors"
    doubtful = [e for e in exchanges if e["flags"]]
    assert doubtful, "loss, and no exchange is flagged"
    seen = f"{len(exchanges)} ends told, {len(doubtful)} of them flagged, no error"
    tell(f"ring too small: {told['requests']} requests, {lost:.0f} bytes lost, {seen}")


def settled(page: int) -> Samples:
    """The counters once they stand still. The agent reads the kernel's once a second."""
    before: Samples = {}
    for _ in range(10):
        now = {key: value for key, value in samples(fetch(page)).items() if "kernel_" in key[0] or "_count" in key[0]}
        if now == before:
            return samples(fetch(page))
        before = now
        time.sleep(1.5)
    raise AssertionError("the counters do not come to rest")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_joined_in_the_middle(tls: bool, fleet: Fleet, big_file: Path) -> None:
    """Connections busy before the agent came: from each one's second request on, all is right."""
    server = nginx.start(fleet, big_file)
    driver = Driver(fleet, [])
    url = f"https://127.0.0.1:{server.tls}" if tls else f"http://127.0.0.1:{server.plain}"
    connections = 8
    process = wrk.begin(fleet, url, wrk.UNTIL_ENDED, connections=connections, pause_ms=60 if SHORT else 4)
    wait_until(lambda: len(server.lines()) > connections * 3, 20, "wrk is busy")
    agent = Agent(fleet, ["--cgroup", fleet.cgroup])
    ready_ns = time.time_ns()
    time.sleep(2)  # long enough for many requests on each connection
    told = wrk.end(fleet, process, now=True)
    fleet.stop(driver.process)
    exchanges = agent.stop()
    assert told["non2xx"] == told["socket"] == told["timeouts"] == 0, told

    lines = server.lines()
    true_or_silent(exchanges, lines, connections)
    faults = compare.Faults()
    servers = compare.by_id(exchanges, "server")
    first = min(int(who) for who in servers if who)
    for role in ("client", "server"):
        mine = [e for e in exchanges if e["role"] == role]
        ports = {e["client"]["port"] for e in mine if e["start_ns"] > ready_ns}
        faults.expect(len(ports) == connections, f"{role}: {len(ports)} of {connections} connections seen")
        for port in ports:
            of_port = sorted((e for e in mine if e["client"]["port"] == port), key=lambda e: e["start_ns"])
            doubtful = [e for e in of_port[1:] if e["outcome"] != "ok" or "late_join" in e["flags"]]
            last = of_port[-1]
            doubtful = [e for e in doubtful if e is not last]  # wrk leaves in the middle of its last request
            faults.expect(not doubtful, f"{role}: doubts after the first request\n{compare.brief(doubtful)}")
    seen = {who for who in servers if who}
    missed = [line["id"] for line in lines if line["id"] not in seen and complete_after(line, servers, first)]
    faults.expect(not missed, f"{len(missed)} requests after the join are missing: {missed[:5]}")
    tell(f"joined in the middle ({'tls' if tls else 'plain'}): {len(exchanges)} ends, {len(lines)} requests in all")
    faults.settle(agent.said())


def complete_after(line: dict[str, Any], servers: dict[str, list[dict[str, Any]]], first: int) -> bool:
    """Whether a log line surely lies after the join: its wrk thread's ids are well past the first one seen of that thread."""
    number = int(line["id"])
    thread = number // 1_000_000
    seen = [int(who) for who in servers if who and int(who) // 1_000_000 == thread]
    return bool(seen) and first >= wrk.FIRST and number > min(seen) + 16
