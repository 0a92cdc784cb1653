"""The live source on this kernel; what its programs report is tested in tests/kprobes."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope.capture import CaptureError, CaptureSettings, abi, bpf
from meshscope.capture.bpf import RUNGS, BpfSource, possible_cpus
from tests.kprobes.watch import drain, source, watch

pytestmark = pytest.mark.live
SMALL = 1 << 16


def held() -> list[str]:
    """What this process holds of the kernel's BPF: descriptors and mappings."""
    descriptors = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    mappings = [line.split()[-1] for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()]
    return sorted(name for name in descriptors + mappings if name.startswith("anon_inode:bpf"))


# The ladder


def test_the_best_rung_that_works_is_taken() -> None:
    working = []
    for rung in RUNGS:
        try:
            opened = BpfSource(CaptureSettings(rung=rung, ring_bytes=SMALL))
        except CaptureError as error:
            assert str(error).startswith(f"{rung}: ")  # noqa: PT017 (either is right; which depends on the kernel)
        else:
            assert opened.rung == rung
            working.append(rung)
            opened.close()
    opened = BpfSource(CaptureSettings(ring_bytes=SMALL))
    assert opened.rung == working[0]
    better = list(RUNGS)[: list(RUNGS).index(opened.rung)]
    assert [refusal.partition(":")[0] for refusal in opened.refused] == better
    opened.close()


def test_when_no_rung_works_all_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: BpfSource, rung: str) -> None:
        raise CaptureError(f"no {rung} here")

    before = held()
    monkeypatch.setattr(BpfSource, "_load_sockets", refuse)
    with pytest.raises(CaptureError, match=r"tp_btf: no tp_btf here; fexit: no fexit here; .+"):
        BpfSource(CaptureSettings())
    assert held() == before


# What cannot work


@pytest.fixture
def objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the built objects in place of them; whatever happens, nothing may stay in the kernel."""
    before = held()
    copy = shutil.copytree(bpf.OBJECTS, tmp_path / "objects")
    monkeypatch.setattr(bpf, "OBJECTS", copy)
    yield copy
    assert held() == before


@pytest.mark.parametrize("file", ["sockets.bpf.o", "openssl.bpf.o"])
def test_objects_that_are_not_built(objects: Path, file: str) -> None:
    (objects / file).unlink()
    with pytest.raises(CaptureError, match=rf"{file} is not built; make -C kprobes"):
        BpfSource(CaptureSettings())


@pytest.mark.parametrize("file", ["sockets.bpf.o", "openssl.bpf.o"])
def test_objects_of_another_abi(objects: Path, file: str) -> None:
    ours, other = (struct.pack("<II", abi.MAGIC, version) for version in (abi.ABI_VERSION, abi.ABI_VERSION + 1))
    built = (objects / file).read_bytes()
    assert built.count(ours) == 1
    (objects / file).write_bytes(built.replace(ours, other))
    with pytest.raises(CaptureError, match=f"{file} is of ABI version {abi.ABI_VERSION + 1}, this agent of {abi.ABI_VERSION}"):
        BpfSource(CaptureSettings())


@pytest.mark.parametrize("file", ["sockets.bpf.o", "openssl.bpf.o"])
def test_objects_that_are_none(objects: Path, file: str) -> None:
    (objects / file).write_bytes(b"\x7fELF and no more")
    with pytest.raises(CaptureError, match=f"cannot open {file}"):
        BpfSource(CaptureSettings())


def test_a_ring_of_a_size_that_no_ring_can_have() -> None:
    before = held()
    with pytest.raises(CaptureError, match="cannot make a ring of 12345 bytes: Invalid argument"):
        BpfSource(CaptureSettings(ring_bytes=12345))
    assert held() == before


# Binding: a server random in another process's memory

CHILD = """
import ctypes, mmap, sys
region = mmap.mmap(-1, 4 * mmap.PAGESIZE)
base = ctypes.addressof(ctypes.c_char.from_buffer(region))
offset = int(sys.argv[1])
region[offset : offset + 32] = bytes.fromhex(sys.argv[2])
ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + 3 * mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE), 0)
print(base, flush=True)
sys.stdin.read()
"""
RANDOM, OTHER = bytes(range(1, 33)), bytes(range(101, 133))
PAGE = 4096


@pytest.mark.parametrize(
    ("ssl", "offset", "found"),
    [
        (0, 0, True),
        (0, 300, True),
        (0, 4064, True),
        (0, 4065, False),  # behind what is looked at
        (100, 99, False),  # before the object
        (2 * PAGE + 1000, 3 * PAGE - 32, True),  # the page behind it cannot be read
        (2 * PAGE + 1000, 2 * PAGE, False),
        (3 * PAGE, 0, False),  # none of it can be read
    ],
)
def test_a_random_in_another_process(ssl: int, offset: int, found: bool) -> None:
    with source(ring_bytes=SMALL) as opened:
        process = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(offset), RANDOM.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        base = int(process.stdout.readline())
        assert opened.bind(1, process.pid, base + ssl, [OTHER, RANDOM]) == (RANDOM if found else None)
        assert opened.bind(1, process.pid, base + ssl, [OTHER]) is None
        assert opened.bind(1, process.pid, base + ssl, []) is None
        process.communicate("")
        assert opened.bind(1, process.pid, base + ssl, [RANDOM]) is None


# Maps


def test_counters_are_sums_over_processors() -> None:
    with source(ring_bytes=SMALL) as opened:
        assert opened.counters() == dict.fromkeys(abi.COUNTER_NAMES, 0)
    assert possible_cpus() >= (os.cpu_count() or 1)
    seen = watch("c, s = pair()\nc.sendall(b'x' * 1000)\nexactly(s, 1000)\n", ring_bytes=SMALL)
    assert seen.counters["bytes_moved"] == seen.counters["bytes_copied"] == 2000
    assert seen.counters["records_reserved"] == len(seen.records)


def test_who_is_watched() -> None:
    with source(ring_bytes=SMALL) as opened:
        assert opened.selected() == {}
        for tgid in (4_000_001, 4_000_002, 4_000_002):
            opened.select(tgid)
        assert opened.selected() == {4_000_001: 0, 4_000_002: 0}
        opened.deselect(4_000_001)
        opened.deselect(4_000_001)
        assert opened.selected() == {4_000_002: 0}


def test_what_is_written_to_maps_may_be_about_nothing() -> None:
    with source(ring_bytes=SMALL) as opened:
        opened.select_cgroup(1 << 40)
        opened.forget_sessions(4_000_001)
        opened.apply([(1, abi.IGNORE, 0, 0), (2, abi.EVERYTHING, 5, 1 << 60), (1, -1, 0, 0), (3, -1, 0, 0)])
        opened.apply([])


def test_maps_that_forget_have_room_for_what_every_processor_keeps_free() -> None:
    with source(ring_bytes=SMALL) as opened:
        for name, used in (("calls", 8192), ("sessions", 16384)):
            about = Path(f"/proc/self/fdinfo/{opened._maps[name]}").read_text(encoding="ascii")
            assert f"max_entries:\t{used + 128 * possible_cpus()}\n" in about


def test_verdicts_beyond_the_map_are_counted_and_nothing_else() -> None:
    with source(ring_bytes=SMALL) as opened:
        opened.apply([(number, abi.IGNORE, 0, 0) for number in range(1, 65536 + 11)])
        assert opened.counters()["map_full"] == 10


# The life of a source


def test_an_idle_source_breathes_and_ends_when_stopped() -> None:
    with source(ring_bytes=SMALL, poll_ms=1) as opened:
        batches = opened.batches()
        assert [next(batches) for _ in range(5)] == [b""] * 5
        offset = opened.wall_offset_ns
        assert abs(time.time_ns() - time.monotonic_ns() - offset) < 10**9
        opened.stop()
        assert [batch for batch in batches if batch] == []
        opened.stop()


def test_several_rings_are_all_read() -> None:
    with source(ring_bytes=SMALL, rings=3) as opened:
        assert len(opened._rings) == 3
        assert drain(opened) == []


@pytest.mark.parametrize("end", ["close", "stop and close", "twice"])
def test_close_leaves_nothing_behind(end: str) -> None:
    before = held()
    opened = BpfSource(CaptureSettings(rings=2, ring_bytes=SMALL))
    now = held()
    assert all(any(kind in name for name in now) for kind in ("prog", "map", "link"))
    if end == "stop and close":
        opened.stop()
    opened.close()
    if end == "twice":
        opened.close()
    assert held() == before
