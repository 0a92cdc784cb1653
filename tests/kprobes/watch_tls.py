"""Children that speak TLS under the real probes, and what the kernel told of their sessions."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from meshscope.capture import abi
from meshscope.capture.bpf import BpfSource
from meshscope.capture.targets import Selection, Targets
from meshscope.stats import Stats
from tests.kprobes.watch import BOUND_S, Seen, decode, drain, go, source

SESSION_BIT = 1 << 63


class Session(NamedTuple):
    """What was told of one TLS session."""

    id: int
    conn: int
    opened: bool
    closed: bool
    sent: bytes
    received: bytes


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


@contextmanager
def probed(opened: BpfSource, *pids: int) -> Iterator[Targets]:
    targets = Targets(opened, Selection(pids=pids), Stats())
    targets.start()
    try:
        until(lambda: targets.ready() is not None)
        yield targets
    finally:
        targets.stop()


@contextmanager
def waiting(*command: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A child that has loaded its libraries, said "up" and waits for `go`."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment or None)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def run(command: tuple[str | Path, ...], **environment: str) -> Seen:
    """Run a child to its end, probed from before its first TLS call."""
    with source() as opened, waiting(*command, **environment) as process, probed(opened, process.pid) as targets:
        assert targets.probed == {process.pid}
        go(process)
        assert process.wait(BOUND_S) == 0
        return Seen(decode(drain(opened)), opened.counters(), process.pid)


def sessions(seen: Seen) -> list[Session]:
    """In the order of their appearance; asserts that a session is announced first and its positions have no hole."""
    told = [one for one in seen.records if one.head["src"] == abi.TLS]
    found = []
    for ident in dict.fromkeys(one.head["tls"] for one in told):
        assert ident & SESSION_BIT
        mine = [one for one in told if one.head["tls"] == ident]
        assert mine[0].head["kind"] == abi.OPEN
        halves = {abi.RX: b"", abi.TX: b""}
        ends = {abi.RX: 0, abi.TX: 0}
        for one in mine:
            if one.head["kind"] == abi.DATA:
                way = one.head["dir"]
                assert one.head["pos"] == ends[way]
                ends[way] += one.head["len"]
                halves[way] += one.data
        conn = mine[-1].head["conn"]
        found.append(Session(ident, conn, True, mine[-1].head["kind"] == abi.CLOSE, halves[abi.TX], halves[abi.RX]))
    return found


def balanced(seen: Seen) -> None:
    c = seen.counters
    parts = ("copied", "skipped", "unreadable", "cut", "ciphertext", "lost")
    assert c["bytes_moved"] == sum(c[f"bytes_{part}"] for part in parts)
    assert c["records_attempted"] == c["records_reserved"] + c["records_reserve_failed"]
    assert c["calls_stale"] == c["rebinds"] == c["map_full"] == c["read_faults"] == 0
