"""What the core costs per exchange, in us: ring batch -> flow -> who, whose trace, which route -> metrics, next to h11.

An exchange is one end of one. The batches are in memory, as a recording would yield them; clients elsewhere, on this host
and not watched (a server end then waits for its other end, in record time), and both ends watched. CPU time of the thread,
batch by batch; the best batch counts, so that a busy machine does little harm. Compare within one run only.

    python bench/core.py [ROUNDS] [--profile]
"""

from __future__ import annotations

import cProfile
import gc
import pstats
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from parse import Make, request, response, steady_request, steady_response, with_h11

from meshscope.capture import ProcessInfo, abi
from meshscope.enrich.procs import Processes
from meshscope.flow import Flow
from meshscope.model import Exchange
from meshscope.redact import KEPT_HEADERS, Redactor
from meshscope.route import Routes
from meshscope.sinks.golden import Golden
from meshscope.stats import Stats
from meshscope.trace import Correlate
from parsers import PROTOCOLS
from tests.meshscope.records import Tape

BATCHES = 40
EXCHANGES = 256  # of a batch: 20 ms of 12,800 a second
CONNECTIONS = 32

Batches = list[bytes]


def servers(client: str, server: str, ask: Make, answer: Make) -> Batches:
    tape = Tape(step=40_000)
    for conn in range(1, CONNECTIONS + 1):
        tape.open(conn, remote=(client, 40_000 + conn), local=(server, 80))
    for n in range(EXCHANGES * BATCHES):
        conn = n % CONNECTIONS + 1
        tape.data(conn, abi.RX, ask(n)).data(conn, abi.TX, answer(n))
    return cut(tape)


def steady() -> Batches:
    """Server ends, clients elsewhere; the same fields every time, as from a load generator."""
    return servers("192.0.2.7", "192.0.2.8", steady_request, steady_response)


def traced() -> Batches:
    """Server ends, clients elsewhere; traceparent and request ids, every one new."""
    return servers("192.0.2.7", "192.0.2.8", request, response)


def unwatched() -> Batches:
    """The same, clients on this host and not watched."""
    return servers("127.0.0.1", "127.0.0.1", request, response)


def both() -> Batches:
    """The same, both ends watched."""
    tape = Tape(step=20_000)
    for conn in range(1, CONNECTIONS + 1, 2):
        tape.pair(conn, conn + 1, ("127.0.0.1", 40_000 + conn)).by(200).open_end(conn).by(100).open_end(conn + 1)
    for n in range(EXCHANGES * BATCHES // 2):
        conn = n * 2 % CONNECTIONS + 1
        asked, answered = request(n), response(n)
        tape.by(200).data(conn, abi.TX, asked).by(100).data(conn + 1, abi.RX, asked).data(conn + 1, abi.TX, answered)
        tape.by(200).data(conn, abi.RX, answered)
    return cut(tape)


def cut(tape: Tape) -> Batches:
    return list(tape.batches(range(CONNECTIONS, len(tape.records), 2 * EXCHANGES)))


class Core:
    """Flow, stages and metric table, as the agent puts them together."""

    def __init__(self) -> None:
        self.stats = stats = Stats()
        self.flow = Flow(PROTOCOLS, KEPT_HEADERS, stats, lambda *_: None, Redactor())
        known = SimpleNamespace(processes={tgid: ProcessInfo(tgid, 1, "/bin/shop", f"shop-{tgid}") for tgid in (100, 200)})
        golden = Golden(stats)
        self.steps: list[tuple[str, Callable[[list[Exchange]], object]]] = [
            ("who", Processes(known)),
            ("whose trace", Correlate(bytes(16), 0.1, 100, stats)),
            ("which route", Routes(1_000, stats)),
            ("metrics", golden.emit),
        ]

    def replay(self, batches: Batches, best: dict[str, float]) -> None:
        """Every batch through everything; the best time of each step goes into `best`, us per exchange."""
        self.flow.step(batches[0])
        for batch in batches[1:-1]:  # the first opens the connections, the last is short
            took, exchanges = clocked(self.flow.step, batch)
            rows = {"flow": took / EXCHANGES}
            if len(exchanges) < EXCHANGES // 2:  # they wait, and come with another batch
                continue
            for name, step in self.steps:
                took, _ = clocked(step, exchanges)
                rows[name] = took / len(exchanges)
            rows["together"] = sum(rows.values())
            for name, took in rows.items():
                best[name] = min(best.get(name, took), took)
        self.flow.step(batches[-1])
        self.flow.finish()
        n = self.stats.n
        assert n["exchanges"] * 2 == n["messages_paired"] == n["messages"], n


def clocked(call: Callable[[Any], Any], argument: object) -> tuple[float, Any]:
    begin = time.thread_time_ns()
    result = call(argument)
    return (time.thread_time_ns() - begin) / 1_000, result


def main() -> None:
    arguments = sys.argv[1:]
    rounds = next((int(text) for text in arguments if text.isdigit()), 5)
    cases = {made.__doc__ or "": made() for made in (steady, traced, unwatched, both)}
    if "--profile" in arguments:
        profile = cProfile.Profile()
        profile.runcall(Core().replay, next(iter(cases.values())), {})
        pstats.Stats(profile).sort_stats("tottime").print_stats(30)
        return
    gc.freeze()
    best: dict[str, dict[str, float]] = {about: {} for about in cases}
    pairs = [(request(n), response(n)) for n in range(20)]
    h11 = float("inf")
    for _ in range(rounds):
        for about, batches in cases.items():
            Core().replay(batches, best[about])
        h11 = min(h11, clocked(with_h11, pairs)[0] / len(pairs))
    for about, rows in best.items():
        print(about)
        for name, took in rows.items():
            print(f"{took:8.2f} us per exchange  {name}")
    print(f"The same bytes through h11, parsing alone\n{h11:8.2f} us per exchange")


if __name__ == "__main__":
    main()
