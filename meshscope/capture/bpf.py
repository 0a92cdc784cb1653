"""The live Source: loads the programs, attaches them, drains the rings, writes verdicts.

Everything held in the kernel hangs on descriptors of this process (links, perf events, maps; nothing is pinned), so
whatever ends it, kill -9 included, leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import select
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from meshscope.capture import CaptureError, CaptureSettings, ProcessInfo, abi
from meshscope.capture.libbpf import Libbpf, explain
from meshscope.capture.ring import BATCH_BYTES, Ring, open_ring
from meshscope.capture.uprobes import TOGETHER, Closeable, PerfLink, Uprobes, may_attach_together

OBJECTS: Final = Path(__file__).parent / "objects"
OPTIONAL: Final = ("tcp_sendpage",)  # gone with 6.5
_TRACE_FEXIT: Final = 25  # enum bpf_attach_type
RUNGS: Final = {"tp_btf": "fexit/tcp_", "fexit": "tp_btf/sock_"}  # best first; the sections that each leaves out
_FORGET: Final = -1
_CONFIG_MAP: Final = ".rodata.ms"
_RINGBUF_TYPE: Final = 27  # BPF_MAP_TYPE_RINGBUF
_OBJECT_BYTES: Final = 4096  # of an SSL object: the server random lies in its first KiB (OpenSSL 3.0: struct ssl_st.s3)
_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")
_SESSION_KEY: Final = struct.Struct("<QII")  # struct ms_session_key: SSL object, tgid
# Free elements of an LRU map that every CPU keeps to itself (kernel/bpf/bpf_lru_list.c, until 6.17 whatever the map's
# size): without as many more, a map on a machine with many CPUs forgets what is in use while most of it is empty.
_LRU_MAPS: Final = ("calls", "sessions")
_LRU_KEPT: Final = 128
_CLOCK_EVERY_NS: Final = 1_000_000_000


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class BpfSource:
    """Capture on this machine. Building it loads and attaches the socket programs; nothing is watched until `select`.

    rung: which socket hooks are used; refused: the better ones that were tried, with the kernel's reason.
    Raises CaptureError.
    """

    def __init__(self, settings: CaptureSettings) -> None:
        self._library = Libbpf()
        self._settings = settings
        self._links: list[Closeable] = []
        self._objects: list[int] = []
        self._maps: dict[str, int] = {}
        self._rings: list[Ring] = []
        self._fds: list[int] = []
        self._epoll = select.epoll()
        self._stopped = False
        self._verdicts_refused = 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._cpus = possible_cpus()
        self.wall_offset_ns = 0
        self._clock_ns = 0
        self._sample_clock()
        self.processes: Mapping[int, ProcessInfo] = {}
        self.refused: list[str] = []
        with suppress(ValueError, OSError):  # kernels before 5.11 account maps to RLIMIT_MEMLOCK
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        try:
            self.rung = self._climb(settings.rung)
            self._open_rings()
            self._load_tls()
        except BaseException:
            self.close()
            raise

    def batches(self) -> Iterator[bytes]:
        """Whole records; b"" when a poll found nothing. After `stop`: what is left in the rings, then the end."""
        pause = self._settings.poll_ms / 1000
        while True:
            ending, found, full = self._stopped, False, False
            for ring in self._rings:
                batch = ring.take()
                if batch:
                    found = True
                    full = full or len(batch) >= BATCH_BYTES
                    yield batch
            if full:
                continue
            if ending:
                return
            if not found:
                yield b""
            self._epoll.poll(pause)  # edge-triggered: returns early only when the kernel forces a wake-up
            self._sample_clock()

    def stop(self) -> None:
        """Take the socket programs out, so that the rings can be drained to their end."""
        self._stopped = True
        for link in self._links:
            link.close()

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        fd = self._maps["verdicts"]
        for ident, what, skip_rx, skip_tx in verdicts:
            if what == _FORGET:
                self._library.bpf_map_delete_elem(fd, _U64.pack(ident))
            elif self._library.bpf_map_update_elem(fd, _U64.pack(ident), abi.VERDICT.pack(what, 0, skip_rx, skip_tx), 0):
                self._verdicts_refused += 1  # no room: more is copied than is needed, and nothing is wrong

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:  # noqa: ARG002 (a recording needs it)
        buffer = ctypes.create_string_buffer(_OBJECT_BYTES)
        # Stop at page borders: the object may end just before an unmapped page, and a partial read is then still good.
        first = min(_OBJECT_BYTES, mmap.PAGESIZE - ssl % mmap.PAGESIZE)
        parts = (_Iovec * 2)(_Iovec(ssl, first), _Iovec(ssl + first, _OBJECT_BYTES - first))
        into = _Iovec(ctypes.addressof(buffer), _OBJECT_BYTES)
        got = self._libc.process_vm_readv(
            tgid, ctypes.byref(into), ctypes.c_ulong(1), parts, ctypes.c_ulong(2), ctypes.c_ulong(0)
        )
        memory = buffer.raw[: max(got, 0)]
        return next((random for random in randoms if random in memory), None)

    def counters(self) -> dict[str, int]:
        n = len(abi.COUNTER_NAMES)
        values = ctypes.create_string_buffer(8 * n * self._cpus)
        code = self._library.bpf_map_lookup_elem(self._maps["counters"], _U32.pack(0), values)
        self._library.done(code, "cannot read the counters")
        numbers = struct.unpack(f"<{n * self._cpus}Q", values.raw)
        sums = {name: sum(numbers[index::n]) for index, name in enumerate(abi.COUNTER_NAMES)}
        sums["map_full"] += self._verdicts_refused
        return sums

    def select(self, tgid: int, shard: int = 0) -> None:
        """Watch a process; its descendants from now on follow by themselves."""
        key = _U32.pack(tgid)
        if not self._known(self._maps["procs"], key):
            self._update(self._maps["procs"], key, abi.WATCHED.pack(shard, 0, 0))

    def deselect(self, tgid: int) -> None:
        """Watch a process no more."""
        self._library.bpf_map_delete_elem(self._maps["procs"], _U32.pack(tgid))

    def select_cgroup(self, cgroup: int, shard: int = 0) -> None:
        """Watch whoever enters this cgroup (v2 id) or one below it. Those inside already are for `select`."""
        self._update(self._maps["cgroups"], _U64.pack(cgroup), _U32.pack(shard))

    def selected(self) -> dict[int, int]:
        """Tgid -> uprobe hits so far."""
        fd, found = self._maps["procs"], {}
        key, following = None, ctypes.create_string_buffer(_U32.size)
        value = ctypes.create_string_buffer(abi.WATCHED.size)
        while self._library.bpf_map_get_next_key(fd, key, following) == 0:
            key = following.raw
            if self._library.bpf_map_lookup_elem(fd, key, value) == 0:
                found[_U32.unpack(key)[0]] = abi.WATCHED.unpack(value.raw)[2]
        return found

    def forget_sessions(self, tgid: int) -> None:
        """TLS calls of a process went by unseen: its SSL objects begin new sessions, with positions from 0."""
        fd, mine = self._maps["sessions"], []
        key, following = None, ctypes.create_string_buffer(_SESSION_KEY.size)
        while self._library.bpf_map_get_next_key(fd, key, following) == 0:
            key = following.raw
            if _SESSION_KEY.unpack(key)[1] == tgid:
                mine.append(key)
        for key in mine:
            self._library.bpf_map_delete_elem(fd, key)

    def attach_uprobe(
        self, program: str, pid: int, path: str, places: Sequence[tuple[int, int]], *, retprobe: bool
    ) -> list[Closeable]:
        """Probe places of a file (offset in bytes, cookie) in one process; for pid -1 in all that map it. Raises CaptureError."""
        return self._uprobes.attach(program, pid, path, places, retprobe=retprobe)

    def close(self) -> None:
        """Take everything out of the kernel. Idempotent."""
        self._stopped = True
        for link in self._links:
            link.close()
        for ring in self._rings:
            ring.close()
        for fd in self._fds:
            os.close(fd)
        for opened in reversed(self._objects):
            self._library.bpf_object__close(opened)
        for held in (self._links, self._rings, self._fds, self._objects):
            held.clear()
        self._epoll.close()

    def _climb(self, wish: str) -> str:
        """Load and attach by the best rung that this kernel takes."""
        for rung in RUNGS if wish == "auto" else (wish,):
            try:
                self._load_sockets(rung)
            except CaptureError as error:
                self.refused.append(f"{rung}: {error}")
            else:
                return rung
        raise CaptureError(f"{'; '.join(self.refused)}; {missing()}")

    def _load_sockets(self, rung: str) -> None:
        unwanted = (RUNGS[rung], *self._absent())
        opened = self._open("sockets.bpf.o")
        try:
            programs = self._programs_of(opened)
            for program, section in programs.values():
                if section.startswith(unwanted):
                    self._library.bpf_program__set_autoload(program, ctypes.c_bool(False))
            self._make_room(self._maps_of(opened))
            self._load(opened)
            for name, (program, section) in programs.items():
                if not section.startswith(unwanted):
                    link = self._library.made(self._library.bpf_program__attach(program), f"cannot attach {name} ({section})")
                    self._links.append(PerfLink(self._library, link))
        except BaseException:
            for link_ in self._links:
                link_.close()
            self._links.clear()
            self._library.bpf_object__close(opened)
            raise
        self._objects.append(opened)
        self._maps = {name: self._library.bpf_map__fd(found) for name, found in self._maps_of(opened).items()}

    def _absent(self) -> list[str]:
        """Sections that this kernel has no function for; it needs none then."""
        names = [name for name in OPTIONAL if self._library.libbpf_find_vmlinux_btf_id(name.encode(), _TRACE_FEXIT) <= 0]
        return [f"fexit/{name}" for name in names]

    def _make_room(self, maps: Mapping[str, int]) -> None:
        for name in _LRU_MAPS:
            entries = self._library.bpf_map__max_entries(maps[name]) + _LRU_KEPT * self._cpus
            self._library.done(self._library.bpf_map__set_max_entries(maps[name], entries), f"cannot size the map {name}")

    def _load_tls(self) -> None:
        """The uprobe programs, over the same maps; for attaching many places by one link, if the kernel can."""
        for together in (True, False) if may_attach_together(os.uname().release) else (False,):
            opened = self._open("openssl.bpf.o")
            try:
                for name, found in self._maps_of(opened).items():
                    if name in self._maps and not name.startswith("."):
                        self._library.done(self._library.bpf_map__reuse_fd(found, self._maps[name]), f"cannot share map {name}")
                programs = {name: program for name, (program, _) in self._programs_of(opened).items()}
                for program in programs.values() if together else ():
                    self._library.bpf_program__set_expected_attach_type(program, TOGETHER)
                self._load(opened)
                self._uprobes = Uprobes(self._library, programs, together)
                if not together or self._uprobes.works(OBJECTS / "openssl.bpf.o"):
                    self._objects.append(opened)
                    return
            except BaseException:
                self._library.bpf_object__close(opened)
                raise
            self._library.bpf_object__close(opened)

    def _open(self, file: str) -> int:
        path = OBJECTS / file
        if not path.exists():
            raise CaptureError(f"{path} is not built; make -C kprobes")
        opened = self._library.made(self._library.bpf_object__open_file(str(path).encode(), None), f"cannot open {file}")
        try:
            self._configure(opened, file)
        except BaseException:
            self._library.bpf_object__close(opened)
            raise
        return opened

    def _configure(self, opened: int, file: str) -> None:
        size = ctypes.c_size_t()
        found = self._maps_of(opened).get(_CONFIG_MAP, 0)
        values = int(self._library.bpf_map__initial_value(found, ctypes.byref(size)) or 0) if found else 0
        magic, version, *_ = abi.CONFIG.unpack(ctypes.string_at(values, abi.CONFIG.size)) if values else (0, 0)
        if (magic, version) != (abi.MAGIC, abi.ABI_VERSION):
            raise CaptureError(f"{file} is of ABI version {version}, this agent of {abi.ABI_VERSION}; make -C kprobes")
        settings = self._settings
        config = abi.CONFIG.pack(
            magic, version, os.getpid(), settings.ring_bytes, settings.rings, settings.watch_all, settings.follow_exec, 1
        )
        ctypes.memmove(values, config, len(config))

    def _load(self, opened: int) -> None:
        self._library.said.clear()
        code = self._library.bpf_object__load(opened)
        if code:
            raise CaptureError(f"the kernel refuses the programs: {explain(-code, self._library.said)}")

    def _open_rings(self) -> None:
        for index in range(self._settings.rings):
            fd = self._library.bpf_map_create(_RINGBUF_TYPE, b"ms_ring", 0, 0, self._settings.ring_bytes, None)
            self._fds.append(self._library.made(fd, f"cannot make a ring of {self._settings.ring_bytes} bytes"))
            self._update(self._maps["rings"], _U32.pack(index), _U32.pack(fd))
            self._rings.append(open_ring(self._library, fd, self._settings.ring_bytes))
            self._epoll.register(fd, select.EPOLLIN | select.EPOLLET)

    def _programs_of(self, opened: int) -> dict[str, tuple[int, str]]:
        found: dict[str, tuple[int, str]] = {}
        program = self._library.bpf_object__next_program(opened, None)
        while program:
            section = self._library.bpf_program__section_name(program).decode()
            found[self._library.bpf_program__name(program).decode()] = (program, section)
            program = self._library.bpf_object__next_program(opened, program)
        return found

    def _maps_of(self, opened: int) -> dict[str, int]:
        found: dict[str, int] = {}
        each = self._library.bpf_object__next_map(opened, None)
        while each:
            found[self._library.bpf_map__name(each).decode()] = each
            each = self._library.bpf_object__next_map(opened, each)
        return found

    def _update(self, fd: int, key: bytes, value: bytes) -> None:
        self._library.done(self._library.bpf_map_update_elem(fd, key, value, 0), "cannot write a map")

    def _known(self, fd: int, key: bytes) -> bool:
        return bool(self._library.bpf_map_lookup_elem(fd, key, ctypes.create_string_buffer(abi.WATCHED.size)) == 0)

    def _sample_clock(self) -> None:
        now = time.monotonic_ns()
        if now - self._clock_ns >= _CLOCK_EVERY_NS or not self._clock_ns:
            self._clock_ns = now
            self.wall_offset_ns = time.time_ns() - time.monotonic_ns()


def possible_cpus() -> int:
    """How many values a per-CPU map returns (/sys/devices/system/cpu/possible, as "0-3" or "0,2-5")."""
    last = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii").strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1


def missing() -> str:
    """What this process or kernel lacks, with the way to get it."""
    from meshscope.capture import trial  # noqa: PLC0415 (needed only to explain a failure)

    lacking = trial.missing_capabilities()
    if lacking:
        return f"missing {', '.join(lacking)}; run with those capabilities"
    if not Path(trial.BTF_FILE).exists():
        return f"{trial.BTF_FILE} is missing: the kernel needs CONFIG_DEBUG_INFO_BTF=y"
    return "meshscope doctor tells what this kernel allows"
