"""Where bytes come from: a Source yields batches of records and takes verdicts back.

Nothing here knows exchanges, sinks or parsers. A batch is ``bytes`` in ring framing: repeated ``u32 header, u32
reserved, record, padding to 8``; the header is the record's length, bit 30 set means pass over. Every record begins
with struct ms_chunk of kprobes/meshscope.h.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol


class CaptureError(Exception):
    """Capturing cannot go on; the text names what is missing and, where there is one, the command that would fix it."""


class ProcessInfo(NamedTuple):
    """A watched process. started: starttime of /proc/PID/stat, clock ticks; service: the name it reports under."""

    pid: int
    started: int
    exe: str
    service: str


@dataclasses.dataclass(frozen=True, slots=True)
class CaptureSettings:
    """ring_bytes: power of two; poll_ms: pause between two looks at the rings; follow_exec: tell every exec on the node."""

    ring_bytes: int = 8 << 20
    rings: int = 1
    poll_ms: int = 20
    rung: str = "auto"
    watch_all: bool = False
    follow_exec: bool = False


class Source(Protocol):
    """A capture or a recording."""

    @property
    def wall_offset_ns(self) -> int:
        """Unix time minus CLOCK_MONOTONIC, for the batch last yielded."""

    @property
    def processes(self) -> Mapping[int, ProcessInfo]:
        """Watched processes by tgid."""

    def batches(self) -> Iterator[bytes]:
        """Batches of whole records; live: b"" when nothing came for one poll. Ends with the input. Raises CaptureError."""

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        """(connection or TLS session id, what, skip_rx, skip_tx); what -1: forget it."""

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:
        """Which of these server randoms lies in the SSL object at `ssl` in process `tgid`."""

    def counters(self) -> dict[str, int]:
        """The kernel's counters by name, sums over CPUs; of a recording: those at its end."""

    def close(self) -> None:
        """Let go of everything held in the kernel. Idempotent."""
