from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Iterator

import pytest

from meshscope.capture.libbpf import Libbpf
from meshscope.capture.ring import BATCH_BYTES, BUSY, DISCARDED, CalledRing, MappedRing, open_ring
from tests.kprobes.watch import child, go, source

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE


class Kernel:
    """The producer's side of a ring in a memory file: consumer page, producer page, data twice in a row."""

    def __init__(self, size: int = SIZE, start: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.truncate(self.fd, 2 * PAGE + 2 * size)
        self.size = size
        self.at = start
        self._put(0, struct.pack("<Q", start))
        self._put(PAGE, struct.pack("<Q", start))

    def reserve(self, length: int) -> int:
        """Room for a record, busy; returns its place."""
        place = self.at
        self._header(place, length | BUSY)
        self.at += length + 15 & ~7
        self._put(PAGE, struct.pack("<Q", self.at))
        return place

    def submit(self, place: int, data: bytes, flags: int = 0) -> None:
        for index, byte in enumerate(data):
            self._data(place + 8 + index, bytes([byte]))
        self._header(place, len(data) | flags)

    def write(self, data: bytes, flags: int = 0) -> None:
        self.submit(self.reserve(len(data)), data, flags)

    @property
    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")

    def _header(self, place: int, word: int) -> None:
        self._data(place, struct.pack("<II", word, 7))

    def _data(self, place: int, data: bytes) -> None:
        at = place % self.size
        self._put(2 * PAGE + at, data)
        self._put(2 * PAGE + self.size + at, data)

    def _put(self, at: int, data: bytes) -> None:
        # What the second mapping of a real ring shows at its end is its beginning.
        last = 2 * PAGE + 2 * self.size
        os.pwrite(self.fd, data[: last - at], at)
        if at + len(data) > last:
            os.pwrite(self.fd, data[last - at :], 2 * PAGE)
            os.pwrite(self.fd, data[last - at :], 2 * PAGE + self.size)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    os.close(made.fd)


def records(batch: bytes) -> list[bytes]:
    """The records of a batch; asserts that it is whole."""
    found, at = [], 0
    while at < len(batch):
        word = int.from_bytes(batch[at : at + 4], "little")
        assert not word & BUSY
        length = word & (DISCARDED - 1)
        if not word & DISCARDED:
            found.append(batch[at + 8 : at + 8 + length])
        at += length + 15 & ~7
    assert at == len(batch)
    return found


def test_an_empty_ring_gives_nothing(kernel: Kernel) -> None:
    ring = MappedRing(kernel.fd, SIZE)
    assert ring.take() == b""
    ring.close()


def test_records_come_once_in_order_and_are_given_back(kernel: Kernel) -> None:
    ring = MappedRing(kernel.fd, SIZE)
    sent = [b"a", b"bc" * 4, b"d" * 9, b"", b"e" * 100]
    for data in sent:
        kernel.write(data)
    assert records(ring.take()) == sent
    assert kernel.consumed == kernel.at
    assert ring.take() == b""
    kernel.write(b"more")
    assert records(ring.take()) == [b"more"]
    ring.close()


def test_a_busy_record_holds_back_what_follows(kernel: Kernel) -> None:
    ring = MappedRing(kernel.fd, SIZE)
    kernel.write(b"first")
    busy = kernel.reserve(100)
    kernel.write(b"third")
    assert records(ring.take()) == [b"first"]
    assert kernel.consumed == busy
    assert ring.take() == b""
    kernel.submit(busy, b"s" * 100)
    assert records(ring.take()) == [b"s" * 100, b"third"]
    ring.close()


def test_discarded_records_are_passed_over(kernel: Kernel) -> None:
    ring = MappedRing(kernel.fd, SIZE)
    kernel.write(b"x" * 20, DISCARDED)
    kernel.write(b"kept")
    kernel.write(b"y" * 20, DISCARDED)
    assert records(ring.take()) == [b"kept"]
    assert kernel.consumed == kernel.at
    ring.close()


@pytest.mark.parametrize("start", [0, SIZE - 8, SIZE - 16, (1 << 32) - 64, (1 << 40) + SIZE - 200])
def test_records_across_the_end_are_one_piece(start: int) -> None:
    kernel = Kernel(start=start)
    ring = MappedRing(kernel.fd, SIZE)
    chance = random.Random(start)
    for _ in range(200):
        sent = [chance.randbytes(chance.randrange(300)) for _ in range(chance.randrange(1, 12))]
        for data in sent:
            kernel.write(data)
        assert records(ring.take()) == sent
    assert kernel.at - start > 10 * SIZE
    ring.close()
    os.close(kernel.fd)


def test_a_ring_full_to_the_brim(kernel: Kernel) -> None:
    ring = MappedRing(kernel.fd, SIZE)
    sent = [bytes([n]) * 1016 for n in range(SIZE // 1024)]
    for data in sent:
        kernel.write(data)
    assert kernel.at == SIZE
    assert records(ring.take()) == sent
    ring.close()


def test_batches_are_bounded() -> None:
    kernel = Kernel(4 * BATCH_BYTES)
    ring = MappedRing(kernel.fd, kernel.size)
    for _ in range(3 * BATCH_BYTES // 4096):
        kernel.reserve(4088)
    for place in range(0, kernel.at, 4096):
        kernel._header(place, 4088)
    taken = []
    while batch := ring.take():
        assert len(batch) < BATCH_BYTES + 4096
        taken += records(batch)
    assert len(taken) == 3 * BATCH_BYTES // 4096
    ring.close()
    os.close(kernel.fd)


@pytest.mark.live
def test_both_readers_read_the_same_of_a_real_ring() -> None:
    script = "c, s = pair()\nfor n in range(50):\n    c.sendall(bytes([n]) * (n * 97 + 1))\n    exactly(s, n * 97 + 1)\n"
    with source() as opened, child(script) as process:
        opened.select(process.pid)
        go(process)
        assert process.wait(60) == 0
        opened.stop()
        fd = opened._fds[0]
        mapped = MappedRing(fd, opened._settings.ring_bytes)
        begin = mapped._consumer[0]
        once = records(mapped.take())
        mapped._consumer[0] = begin  # nobody writes any more, so it is all still there
        called = CalledRing(opened._library, fd)
        again = records(called.take())
        assert len(once) > 100
        assert once == again
        assert called.take() == mapped.take() == b""
        called.close()
        mapped.close()


@pytest.mark.live
def test_the_reader_fits_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    with source() as opened:
        size = opened._settings.ring_bytes
        for machine, kind in (("x86_64", MappedRing), ("aarch64", CalledRing)):
            monkeypatch.setattr("platform.machine", lambda machine=machine: machine)
            ring = open_ring(Libbpf(), opened._fds[0], size)
            assert isinstance(ring, kind)
            ring.close()
