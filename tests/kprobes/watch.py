"""Runs a child under the real hooks and returns what the kernel told of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

from meshscope.capture import CaptureSettings, abi
from meshscope.capture.bpf import BpfSource

BOUND_S = 60 if os.environ.get("MESHSCOPE_VM") else 20

# What every child has at hand: a connected pair over loopback, IPv4 and IPv6.
PRELUDE = """
import os, socket, struct, sys, threading
def pair(host="127.0.0.1"):
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    client = socket.create_connection(listener.getsockname()[:2])
    server, _ = listener.accept()
    listener.close()
    return client, server
def exactly(sock, n):
    got = b""
    while len(got) < n:
        piece = sock.recv(n - len(got))
        assert piece, "early end"
        got += piece
    return got
print("up", flush=True)
sys.stdin.readline()
"""


class Told(NamedTuple):
    """One record: the head by field names, the part after it, and the copied bytes."""

    head: dict[str, int]
    more: dict[str, int | bytes]
    data: bytes


class Seen(NamedTuple):
    records: list[Told]
    counters: dict[str, int]
    pid: int

    def of(self, kind: int, conn: int = 0, direction: int | None = None) -> list[Told]:
        """Records of one kind, of one connection and direction if given, in ring order."""
        return [
            told
            for told in self.records
            if told.head["kind"] == kind
            and (not conn or told.head["conn"] == conn)
            and (direction is None or told.head["dir"] == direction)
        ]

    def conn(self, role: int) -> int:
        """The one connection end of this role."""
        (found,) = [told.head["conn"] for told in self.of(abi.OPEN) if told.more["role"] == role]
        return found

    def bytes(self, conn: int, direction: int) -> bytes:
        """What was copied of one direction; asserts that positions follow each other without a hole or an overlap."""
        chunks = self.of(abi.DATA, conn, direction)
        for before, after in pairwise(chunks):
            assert after.head["pos"] == before.head["pos"] + before.head["len"]
        return b"".join(told.data for told in chunks)


def decode(batches: Sequence[bytes]) -> list[Told]:
    told = []
    for batch in batches:
        at = 0
        while at < len(batch):
            length = int.from_bytes(batch[at : at + 4], "little") & 0x3FFFFFFF
            head = dict(zip(abi.CHUNK_FIELDS, abi.CHUNK.unpack_from(batch, at + 8), strict=True))
            body = at + 8 + abi.CHUNK.size
            more: dict[str, int | bytes] = {}
            if head["kind"] in {abi.OPEN, abi.CLOSE}:
                more = dict(zip(abi.CONN_FIELDS, abi.CONN.unpack_from(batch, body), strict=True))
            elif head["kind"] == abi.PROCESS:
                more = dict(zip(abi.PROCESS_PART_FIELDS, abi.PROCESS_PART.unpack_from(batch, body), strict=True))
            told.append(Told(head, more, batch[body : body + head["copied"]]))
            at += 8 + (length + 7 & ~7)
    return told


@contextmanager
def source(**settings: int) -> Iterator[BpfSource]:
    rung = os.environ.get("MESHSCOPE_RUNG", "auto")
    opened = BpfSource(CaptureSettings(rung=rung, **settings))
    try:
        yield opened
    finally:
        opened.close()


@contextmanager
def child(script: str) -> Iterator[subprocess.Popen[str]]:
    """A child that waits for `go` before it does anything."""
    process = subprocess.Popen([sys.executable, "-c", PRELUDE + script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"  # its own exec is over
        yield process
    finally:
        process.kill()
        process.communicate()


def go(process: subprocess.Popen[str], line: str = "go") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def drain(opened: BpfSource) -> list[bytes]:
    """Everything that is in the rings, after taking the programs out."""
    opened.stop()
    return [batch for batch in opened.batches() if batch]


def watch(script: str, *, select: bool = True, **settings: int) -> Seen:
    """Run `script` to its end, selected from before its first byte."""
    with source(**settings) as opened, child(script) as process:
        if select:
            opened.select(process.pid)
        go(process)
        assert process.wait(BOUND_S) == 0
        return Seen(decode(drain(opened)), opened.counters(), process.pid)


def until(condition: object, opened: BpfSource, batches: list[bytes]) -> None:
    """Drain until `condition(records)` holds, within the bound."""
    end = time.monotonic() + BOUND_S
    for batch in opened.batches():
        if batch:
            batches.append(batch)
        if condition(decode(batches)):  # type: ignore[operator]
            return
        assert time.monotonic() < end, "what was waited for was not seen"
