"""Raw recordings: what a Source yielded, written down as it came, and played again.

The one output of meshscope that is not redacted; the file is made with mode 0600 and never overwrites another.

File: ``MAGIC``, then ``<III``: version of this format, ABI version of the records, length of the JSON document that
follows (the key of the ids, in hex, and the rung; nothing that names the machine). Then frames: ``<B3xII`` kind,
length and CRC-32 of the payload, payload. A recording that does not end with an END frame was cut short.
"""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import Final

from meshscope.capture import CaptureError, ProcessInfo, Source
from meshscope.capture.abi import ABI_VERSION, CHUNK, RECORD_MAX

MAGIC: Final = b"MSRAW\r\n\x1a"
FORMAT: Final = 1
_HEADER: Final = struct.Struct("<III")
_FRAME: Final = struct.Struct("<B3xII")
_CLOCK: Final = struct.Struct("<q")
_BIND: Final = struct.Struct("<Q32s")
_RING: Final = struct.Struct("<II")  # the ring's own header of a record: length and flags, reserved
_LENGTH_MASK: Final = 0x3FFFFFFF
_ABOUT_MAX: Final = 1 << 16
_CAPTURE_FILES: Final = (b"\xd4\xc3\xb2\xa1", b"\xa1\xb2\xc3\xd4", b"\x4d\x3c\xb2\xa1", b"\xa1\xb2\x3c\x4d", b"\x0a\x0d\x0d\x0a")

_log = logging.getLogger(__name__)


class Frame(IntEnum):
    """What a frame holds."""

    BATCH = 1  # records in ring framing
    CLOCK = 2  # Unix time minus CLOCK_MONOTONIC, ns, from here on
    PROCESS = 3  # a watched process, JSON
    BIND = 4  # TLS session id and the server random found in its SSL object
    END = 5  # the kernel's counters when the capture ended, JSON


class Recorder:
    """A Source that writes down what passes through it.

    Writing never stops the capture: when the file cannot be written any more, ``fault`` says why and the rest passes
    unrecorded. Raises CaptureError when the file cannot be made.
    """

    def __init__(self, source: Source, path: str, key: bytes, rung: str = "") -> None:
        self._source = source
        self._path = path
        self._known: dict[int, ProcessInfo] = {}
        self._clock = 0
        self.fault = ""
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise CaptureError(f"{path}: exists; a raw recording overwrites nothing: remove it or name another file") from error
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}") from error
        self._file: io.FileIO = os.fdopen(descriptor, "wb", buffering=0)
        about = json.dumps({"key": key.hex(), "rung": rung}).encode()
        self._write(MAGIC + _HEADER.pack(FORMAT, ABI_VERSION, len(about)) + about)

    @property
    def wall_offset_ns(self) -> int:
        """Unix time minus CLOCK_MONOTONIC for the batch last yielded."""
        return self._source.wall_offset_ns

    @property
    def processes(self) -> Mapping[int, ProcessInfo]:
        """The source's."""
        return self._source.processes

    def batches(self) -> Iterator[bytes]:
        """The source's batches, each written down before it is handed on."""
        for batch in self._source.batches():
            if batch:
                self._note_surroundings()
                self._frame(Frame.BATCH, batch)
            yield batch

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        """The source's."""
        self._source.apply(verdicts)

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:
        """The source's answer, written down if there is one."""
        found = self._source.bind(tls, tgid, ssl, randoms)
        if found is not None:
            self._frame(Frame.BIND, _BIND.pack(tls, found))
        return found

    def counters(self) -> dict[str, int]:
        """The source's."""
        return self._source.counters()

    def close(self) -> None:
        """End the recording with the kernel's last counters, then close the source."""
        if self._file.closed:
            return
        self._note_surroundings()
        self._frame(Frame.END, json.dumps(self._source.counters()).encode())
        self._file.close()
        self._source.close()

    def _note_surroundings(self) -> None:
        clock = self._source.wall_offset_ns
        if clock != self._clock:
            self._clock = clock
            self._frame(Frame.CLOCK, _CLOCK.pack(clock))
        for pid, info in dict(self._source.processes).items():
            if self._known.get(pid) != info:
                self._known[pid] = info
                self._frame(Frame.PROCESS, json.dumps(info._asdict()).encode())

    def _frame(self, kind: Frame, payload: bytes) -> None:
        self._write(_FRAME.pack(kind, len(payload), zlib.crc32(payload)) + payload)

    def _write(self, data: bytes) -> None:
        if self.fault:
            return
        try:
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            self.fault = f"{self._path}: recording stopped: {error.strerror}"
            _log.error("%s", self.fault)


class Replay:
    """A Source that reads a recording. Plays alike every time, into however small pieces it is split.

    resplit: 0: batches as recorded; else batches of at most that many records, joined where nothing lay between them.
    Raises CaptureError for a file that is no recording of this version; ``batches`` raises it at the end if the
    recording was cut short or is damaged, after all that is whole was yielded.
    """

    def __init__(self, path: str, resplit: int = 0) -> None:
        self._path = path
        self._resplit = resplit
        self.wall_offset_ns = 0
        self.processes: dict[int, ProcessInfo] = {}
        self._counters: dict[str, int] = {}
        self._bound: dict[int, bytes] = {}
        with ExitStack() as opened:
            try:
                self._file = opened.enter_context(Path(path).open("rb"))
                self.key, self.rung = self._header()
                self._first = self._file.tell()
                self._survey()
            except OSError as error:
                raise CaptureError(f"{path}: cannot be read: {error.strerror}") from error
            opened.pop_all()

    def batches(self) -> Iterator[bytes]:
        """What was recorded, in its order; b"" before a pid comes to mean another process."""
        self._file.seek(self._first)
        if self._resplit:
            yield from self._split()
            return
        for kind, payload in self._frames():
            if kind == Frame.BATCH:
                yield payload
            else:
                if self._replaces(kind, payload):
                    yield b""
                self._take(kind, payload)

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        """Nothing: what the kernel did about them is in the recording."""

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:  # noqa: ARG002 (live only)
        """What was found when the recording was made."""
        found = self._bound.get(tls)
        return found if found in randoms else None

    def counters(self) -> dict[str, int]:
        """The kernel's, when the capture ended; {} if the recording was cut short."""
        return dict(self._counters)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _header(self) -> tuple[bytes, str]:
        head = self._file.read(len(MAGIC) + _HEADER.size)
        if not head.startswith(MAGIC):
            raise CaptureError(f"{self._path}: {_what(head)}; replay reads what --record-raw wrote")
        if len(head) < len(MAGIC) + _HEADER.size:
            raise CaptureError(f"{self._path}: cut short in its first {len(head)} bytes")
        version, abi, length = _HEADER.unpack_from(head, len(MAGIC))
        if version != FORMAT:
            raise CaptureError(f"{self._path}: a recording of format {version}; this meshscope reads format {FORMAT}")
        if abi != ABI_VERSION:
            raise CaptureError(f"{self._path}: recorded with ABI version {abi}; this meshscope reads version {ABI_VERSION}")
        text = self._file.read(min(length, _ABOUT_MAX))
        try:
            about = json.loads(text)
            return bytes.fromhex(about["key"]), str(about["rung"])
        except (ValueError, KeyError, TypeError) as error:
            raise CaptureError(f"{self._path}: damaged in its header") from error

    def _survey(self) -> None:
        """Read ahead what holds for the whole: who was bound, the counters, the first process under each pid.

        The capture learns of these a little after the records they belong to; a replay that learnt them as late would
        depend on how the records are split.
        """
        try:
            for kind, payload in self._frames(skip=Frame.BATCH):
                if kind == Frame.BIND:
                    tls, found = _BIND.unpack(payload)
                    self._bound[tls] = found
                elif kind == Frame.PROCESS:
                    info = _process(payload)
                    self.processes.setdefault(info.pid, info)
                elif kind == Frame.END:
                    self._counters = {str(name): int(value) for name, value in json.loads(payload).items()}
                elif kind == Frame.CLOCK and not self.wall_offset_ns:
                    self._take(kind, payload)
        except CaptureError:
            return  # told by batches(), after what is whole
        except (ValueError, TypeError, AttributeError, struct.error) as error:
            raise CaptureError(f"{self._path}: damaged") from error

    def _frames(self, skip: Frame | None = None) -> Iterator[tuple[int, bytes]]:
        while True:
            at = self._file.tell()
            head = self._file.read(_FRAME.size)
            if len(head) < _FRAME.size:
                raise CaptureError(f"{self._path}: cut short at byte {at}; what comes before was played")
            kind, length, checksum = _FRAME.unpack(head)
            if kind == skip:
                self._file.seek(length, os.SEEK_CUR)
                continue
            payload = self._file.read(length)
            if len(payload) < length:
                raise CaptureError(f"{self._path}: cut short at byte {at}; what comes before was played")
            if zlib.crc32(payload) != checksum or not (kind != Frame.BATCH or _framed(payload)):
                raise CaptureError(f"{self._path}: damaged at byte {at}; what comes before was played")
            yield kind, payload
            if kind == Frame.END:
                return

    def _replaces(self, kind: int, payload: bytes) -> bool:
        if kind != Frame.PROCESS:
            return False
        info = _process(payload)
        return self.processes.get(info.pid, info) != info

    def _take(self, kind: int, payload: bytes) -> None:
        if kind == Frame.CLOCK:
            (self.wall_offset_ns,) = _CLOCK.unpack(payload)
        elif kind == Frame.PROCESS:
            info = _process(payload)
            self.processes[info.pid] = info

    def _split(self) -> Iterator[bytes]:
        waiting: list[bytes] = []
        try:
            for kind, payload in self._frames():
                if kind == Frame.BATCH:
                    waiting += records(payload)
                    continue
                if kind != Frame.BIND:
                    yield from self._pieces(waiting)
                    waiting = []
                if self._replaces(kind, payload):
                    yield b""
                self._take(kind, payload)
        except CaptureError:
            yield from self._pieces(waiting)
            raise

    def _pieces(self, waiting: Sequence[bytes]) -> Iterator[bytes]:
        for start in range(0, len(waiting), self._resplit):
            yield b"".join(waiting[start : start + self._resplit])


def records(batch: bytes) -> list[bytes]:
    """The records of a batch, each with its ring header and padding."""
    out = []
    at = 0
    while at < len(batch):
        length = _RING.unpack_from(batch, at)[0] & _LENGTH_MASK
        end = at + _RING.size + (length + 7 & ~7)
        out.append(batch[at:end])
        at = end
    return out


def _framed(batch: bytes) -> bool:
    """Whether a batch holds whole records, so that nobody behind needs to look."""
    at, end, header, least = 0, len(batch), _RING.size, CHUNK.size
    while at + header <= end:
        length = int.from_bytes(batch[at : at + 4], "little") & _LENGTH_MASK
        if not least <= length <= RECORD_MAX:
            return False
        at += header + (length + 7 & ~7)
    return at == end


def _process(payload: bytes) -> ProcessInfo:
    fields = json.loads(payload)
    return ProcessInfo(int(fields["pid"]), int(fields["started"]), str(fields["exe"]), str(fields["service"]))


def _what(head: bytes) -> str:
    if head.startswith(b'{"'):
        return "a --record file (redacted exchanges)"
    if head[:4] in _CAPTURE_FILES:
        return "a packet capture"
    return "an empty file" if not head else "not a recording"
