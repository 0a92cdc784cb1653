"""BPF ring buffers read in batches (Documentation/bpf/ringbuf.rst).

A record is preceded by eight bytes: its length with two flags, and a page offset. Producer and consumer positions only
grow; the data area is mapped twice in a row, so that a span that wraps is one slice.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from typing import Final, Protocol

from meshscope.capture.libbpf import SAMPLE, Libbpf

BUSY: Final = 1 << 31  # reserved, not yet submitted
DISCARDED: Final = 1 << 30
_LENGTH: Final = DISCARDED - 1
_HEADER: Final = struct.Struct("<II")
BATCH_BYTES: Final = 1 << 20  # a batch's upper bound, so that one full ring does not keep the loop from its other work


class Ring(Protocol):
    """One ring of the kernel's."""

    fd: int

    def take(self) -> bytes:
        """Whole records in ring framing, at most about BATCH_BYTES; b"" if none waits."""

    def close(self) -> None: ...


class MappedRing:
    """Reads the mapped ring directly: one copy per batch, no call per record.

    Right only where stores and loads stay in order between processors as on x86-64: the kernel publishes a record by
    clearing its busy bit, and sees from the consumer position that the copied bytes may be overwritten.
    """

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self._mask = size - 1
        self._front = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._back = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumer = memoryview(self._front).cast("Q")
        self._producer = memoryview(self._back)[:page].cast("Q")
        self._data = memoryview(self._back)[page:]
        self._words = self._data.cast("I")

    def take(self) -> bytes:
        begin = at = self._consumer[0]
        end, words, mask = min(self._producer[0], begin + BATCH_BYTES), self._words, self._mask
        while at < end:
            header = words[(at & mask) >> 2]
            if header & BUSY:
                break
            at += (header & _LENGTH) + 15 & ~7
        if at == begin:
            return b""
        start = begin & mask
        batch = bytes(self._data[start : start + at - begin])
        self._consumer[0] = at
        return batch

    def close(self) -> None:
        for view in (self._words, self._data, self._producer, self._consumer):
            view.release()
        self._back.close()
        self._front.close()


class CalledRing:
    """Reads through libbpf's callback, which knows the barriers of every processor; dearer by about 1 us a record."""

    def __init__(self, library: Libbpf, fd: int) -> None:
        self.fd = fd
        self._library = library
        self._taken: list[bytes] = []
        self._keep = SAMPLE(self._sample)
        self._ring = library.made(library.ring_buffer__new(fd, self._keep, None, None), "cannot map a ring buffer")

    def take(self) -> bytes:
        self._library.ring_buffer__consume(self._ring)
        batch = b"".join(self._taken)
        self._taken.clear()
        return batch

    def close(self) -> None:
        self._library.ring_buffer__free(self._ring)

    def _sample(self, _context: int, data: int, size: int) -> int:
        self._taken.append(_HEADER.pack(size, 0) + ctypes.string_at(data, size) + bytes(-size % 8))
        return 0


def open_ring(library: Libbpf, fd: int, size: int) -> Ring:
    """The fastest reader that is right on this processor."""
    if platform.machine() == "x86_64":
        return MappedRing(fd, size)
    return CalledRing(library, fd)
