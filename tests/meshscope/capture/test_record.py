from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from meshscope.capture import CaptureError, ProcessInfo
from meshscope.capture.abi import ABI_VERSION
from meshscope.capture.record import MAGIC, Recorder, Replay, records
from tests.meshscope.records import Tape

KEY = bytes(range(16))
SHOP = ProcessInfo(7, 70, "/usr/bin/shop", "shop")


class Scripted:
    """A source that plays a list of (batch, wall offset, processes)."""

    def __init__(self, script: Sequence[tuple[bytes, int, Mapping[int, ProcessInfo]]]) -> None:
        self.script = script
        self.wall_offset_ns = 0
        self.processes: Mapping[int, ProcessInfo] = {}
        self.applied: list[tuple[int, int, int, int]] = []
        self.closed = 0

    def batches(self) -> Iterator[bytes]:
        for batch, offset, processes in self.script:
            self.wall_offset_ns, self.processes = offset, processes
            yield batch

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        self.applied += verdicts

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:
        assert (tgid, ssl) == (7, 0xABC)
        return randoms[0] if tls == 5 else None

    def counters(self) -> dict[str, int]:
        return {"bytes_moved": 12}

    def close(self) -> None:
        self.closed += 1


def tape() -> Tape:
    made = Tape().open(1)
    for n in range(5):
        made.data(1, n & 1, b"x" * (10 * n + 1))
    return made.close(1)


def recording(tmp_path: Path, *, bind: bool = True) -> str:
    path = str(tmp_path / "raw")
    a, b, c = list(tape().batches([2, 5]))
    script = [(a, 100, {}), (b"", 100, {}), (b, 100, {7: SHOP}), (c, 200, {7: SHOP._replace(started=71)})]
    source = Scripted(script)
    recorder = Recorder(source, path, KEY, "tp_btf")
    for n, _ in enumerate(recorder.batches()):
        if bind and n == 2:
            assert recorder.bind(5, 7, 0xABC, [b"r" * 32, b"s" * 32]) == b"r" * 32
            assert recorder.bind(6, 7, 0xABC, [b"r" * 32]) is None
    recorder.apply([(1, 2, 3, 4)])
    recorder.close()
    recorder.close()
    assert (source.applied, source.closed, recorder.fault) == ([(1, 2, 3, 4)], 1, "")
    return path


def test_what_was_recorded_is_played(tmp_path: Path) -> None:
    path = recording(tmp_path)
    assert Path(path).stat().st_mode & 0o777 == 0o600
    replay = Replay(path)
    assert (replay.key, replay.rung, replay.counters()) == (KEY, "tp_btf", {"bytes_moved": 12})
    assert replay.processes == {7: SHOP}
    assert replay.wall_offset_ns == 100
    seen = [(batch, replay.wall_offset_ns, replay.processes[7].started) for batch in replay.batches()]
    a, b, c = tape().batches([2, 5])
    assert seen == [(a, 100, 70), (b, 100, 70), (b"", 200, 70), (c, 200, 71)]
    assert replay.bind(5, 7, 1, [b"q" * 32, b"r" * 32]) == b"r" * 32
    assert replay.bind(5, 7, 1, [b"q" * 32]) is None
    assert replay.bind(6, 7, 1, [b"r" * 32]) is None
    replay.close()


@pytest.mark.parametrize("resplit", [1, 2, 3, 100])
def test_split_otherwise_the_records_and_what_surrounds_them_stay(tmp_path: Path, resplit: int) -> None:
    path = recording(tmp_path)
    whole, parts = Replay(path), Replay(path, resplit)
    expected = [(record, whole.wall_offset_ns, whole.processes[7]) for batch in whole.batches() for record in records(batch)]
    played = []
    for batch in parts.batches():
        assert len(records(batch)) <= resplit
        played += [(record, parts.wall_offset_ns, parts.processes[7]) for record in records(batch)]
    assert played == expected
    whole.close()
    parts.close()


@pytest.mark.parametrize("resplit", [0, 1])
def test_cut_short_anywhere_plays_what_is_whole(tmp_path: Path, resplit: int) -> None:
    data = Path(recording(tmp_path)).read_bytes()
    whole = [record for batch in tape().batches([]) for record in records(batch)]
    cut = tmp_path / "cut"
    played_before = 0
    for end in range(len(data)):
        cut.write_bytes(data[:end])
        played: list[bytes] = []
        with pytest.raises(CaptureError) as caught:
            play(str(cut), resplit, played)
        assert str(caught.value).startswith(f"{cut}: ")
        assert "\n" not in str(caught.value)
        assert played == whole[: len(played)]
        assert len(played) >= played_before
        played_before = len(played)
    assert played_before == len(whole)


def play(path: str, resplit: int, played: list[bytes]) -> None:
    replay = Replay(path, resplit)
    try:
        for batch in replay.batches():
            played += records(batch)
    finally:
        replay.close()


def test_a_changed_byte_is_found(tmp_path: Path) -> None:
    data = Path(recording(tmp_path)).read_bytes()
    spoilt = tmp_path / "spoilt"
    start = data.index(b"}", len(MAGIC)) + 1
    for at in range(start, len(data), 7):
        if (at - start) % 12 in {1, 2, 3}:
            continue
        changed = bytearray(data)
        changed[at] ^= 0x5A
        spoilt.write_bytes(changed)
        try:
            play(str(spoilt), 0, [])
        except CaptureError as error:
            assert str(error).startswith(f"{spoilt}: ")  # noqa: PT017 (padding bytes of a frame's head may change)


def test_whole_records_are_checked(tmp_path: Path) -> None:
    path = str(tmp_path / "raw")
    source = Scripted([(struct.pack("<II", 9999, 0) + bytes(80), 0, {})])
    recorder = Recorder(source, path, KEY)
    list(recorder.batches())
    recorder.close()
    with pytest.raises(CaptureError, match="damaged at byte"):
        play(path, 0, [])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "an empty file"),
        (b'{"format":"meshscope-exchanges","version":1}\n', "a --record file (redacted exchanges)"),
        (b"\xd4\xc3\xb2\xa1" + bytes(20), "a packet capture"),
        (b"\x0a\x0d\x0d\x0a" + bytes(20), "a packet capture"),
        (os.urandom(4) + b"x" * 60, "not a recording"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, content: bytes, line: str) -> None:
    file = tmp_path / "foreign"
    file.write_bytes(content)
    with pytest.raises(CaptureError) as caught:
        Replay(str(file))
    assert str(caught.value) == f"{file}: {line}; replay reads what --record-raw wrote"


def test_other_versions_are_told(tmp_path: Path) -> None:
    file = tmp_path / "other"
    file.write_bytes(MAGIC + struct.pack("<III", 1, ABI_VERSION + 1, 2) + b"{}")
    with pytest.raises(CaptureError, match=f"ABI version {ABI_VERSION + 1}; this meshscope reads version {ABI_VERSION}$"):
        Replay(str(file))
    file.write_bytes(MAGIC + struct.pack("<III", 2, ABI_VERSION, 2) + b"{}")
    with pytest.raises(CaptureError, match=r"format 2; this meshscope reads format 1$"):
        Replay(str(file))
    file.write_bytes(MAGIC + struct.pack("<III", 1, ABI_VERSION, 2) + b"{}")
    with pytest.raises(CaptureError, match=r"damaged in its header$"):
        Replay(str(file))
    with pytest.raises(CaptureError, match=r"cannot be read: No such file or directory$"):
        Replay(str(tmp_path / "nothing"))
    with pytest.raises(CaptureError, match=r"cannot be read: Is a directory$"):
        Replay(str(tmp_path))


def test_nothing_is_overwritten_and_links_are_not_followed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    with pytest.raises(CaptureError, match="exists; a raw recording overwrites nothing"):
        Recorder(Scripted([]), str(there), KEY)
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with pytest.raises(CaptureError, match="exists"):
        Recorder(Scripted([]), str(tmp_path / "link"), KEY)
    assert there.read_text() == "mine"
    with pytest.raises(CaptureError, match="cannot be written: No such file or directory"):
        Recorder(Scripted([]), str(tmp_path / "no" / "where"), KEY)


def test_a_full_disk_ends_the_recording_not_the_capture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(Scripted([(tape().batch(), 1, {})] * 3), str(tmp_path / "raw"), KEY)
    with recorder._file, Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr(recorder, "_file", full)
        assert len(list(recorder.batches())) == 3
        recorder.close()
    assert recorder.fault == f"{tmp_path / 'raw'}: recording stopped: No space left on device"
