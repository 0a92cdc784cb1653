"""Who is watched: a thread of its own that finds the selected processes and keeps their TLS libraries probed.

The kernel follows forks and moves between control groups by itself (the map of selected processes is its own to extend);
this thread reads that map, adds what is selected by name, and sees to the probes. It wakes for process events and twice
a second, because nothing tells when a process loads a library late.
"""

from __future__ import annotations

import logging
import os
import resource
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

from meshscope.capture import CaptureError, ProcessInfo, processes
from meshscope.capture.abi import PROCESS_EXEC, PROCESS_EXIT, PROCESS_FORK
from meshscope.capture.attach import Attachments, File, Hooks, Use
from meshscope.capture.selection import Roots, Selecting, Selection
from meshscope.stats import Stats

_PERIOD_S: Final = 0.5
_PAUSE_S: Final = 0.02  # at least, between two rounds: a storm of forks is looked at together
_STRANGERS_S: Final = 2.0  # how often everyone else's mappings are looked at while files are probed as a whole
_REMEMBERED_S: Final = 60.0  # what is known of an ended process is kept: its last exchanges are still on their way
_REMEMBERED: Final = 4096  # of them, at most
_SETTLING: Final = 5  # rounds at the start, at most, until no new process turns up
_log = logging.getLogger(__name__)

ProcessEvent = tuple[int, int, int, bytes, int, int]  # event, tgid, parent, comm, cgroup, ts_ns

__all__ = ["ProcessEvent", "Readiness", "Selection", "Targets"]


class Readiness(NamedTuple):
    """Watched processes and uprobes held (socket hooks not counted)."""

    processes: int
    probes: int


class Kernel(Hooks, Selecting, Protocol):
    """What watching needs of the kernel; BpfSource has it."""

    processes: Mapping[int, ProcessInfo]


class _Seen:
    """What was found of one process: compared in every round, so that only changes cost."""

    __slots__ = ("exe", "footprint", "libraries", "started")

    def __init__(self, started: int) -> None:
        self.started = started
        self.exe = ""
        self.footprint = b""
        self.libraries: list[processes.Mapping] = []

    def refresh(self, pid: int) -> bool:
        """Read the mappings again if the address space changed size, as it does with every new program. True: it did."""
        footprint = processes.footprint(pid)
        if footprint == self.footprint:
            return False
        self.footprint = footprint
        self.libraries = processes.libraries(pid)
        return True

    def files(self) -> Iterable[File]:
        """The libraries, as files."""
        return ((library.device, library.inode) for library in self.libraries)


class Targets:
    """Keeps the kernel's selection and the TLS probes right until `stop`.

    processes: watched processes by tgid, those that ended lately included; replaced whole, also in `kernel.processes`.
    probed:    tgids whose TLS calls are seen; what others encrypt is opaque. Replaced whole.
    """

    def __init__(self, kernel: Kernel, selection: Selection, stats: Stats) -> None:
        self._kernel = kernel
        self._stats = stats
        self._roots = Roots(selection)
        self._attachments = Attachments(kernel, stats)
        self._watched: dict[int, _Seen] = {}
        self._strangers: dict[int, _Seen] = {}
        self._strangers_at = 0.0
        self._ended: dict[int, float] = {}
        self._renewed: deque[int] = deque()  # processes that became another program
        self._lock = threading.Lock()  # around the replacement of what others read
        self._spared: set[int] = set()
        self._wake = threading.Event()
        self._stopping = False
        self._ready: Readiness | None = None
        self._said: set[str] = set()
        self._thread = threading.Thread(target=self._run, name="targets", daemon=True)
        self.processes: Mapping[int, ProcessInfo] = {}
        self.probed: frozenset[int] = frozenset()

    def start(self) -> None:
        """Begin to watch. Raises CaptureError at once for a process or control group that does not exist."""
        self._roots.check()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < hard:  # every probe takes two descriptors
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._thread.start()

    def ready(self) -> Readiness | None:
        """What is attached, as soon as that is everything selected so far; None before."""
        return self._ready

    def on_process(self, event: ProcessEvent) -> None:
        """A process began, became another program, or ended. Any thread; a few small files of /proc are read.

        Who it is is told at once, not in the next round: it may have ended by then, and its exchanges are on their way.
        """
        kind, tgid, parent, comm, _, _ = event
        known = self.processes
        if kind == PROCESS_EXEC:
            self._renewed.append(tgid)
        if kind != PROCESS_EXIT or tgid not in known:
            like = known.get(parent) if kind == PROCESS_FORK else processes.process_info(tgid)
            name, start = comm.decode("utf-8", "replace"), processes.started(tgid) or 0
            self._learn({tgid: ProcessInfo(tgid, start, *((like.exe, like.service) if like else (name, name)))})
        if kind != PROCESS_EXIT:
            self._wake.set()

    def shed_tls(self, tgid: int) -> None:
        """Take the TLS probes of a process away. Any thread; done within a round."""
        self._spared.add(tgid)
        self._wake.set()

    def restore_tls(self, tgid: int) -> None:
        """Give them back."""
        self._spared.discard(tgid)
        self._wake.set()

    def stop(self) -> None:
        """Detach everything. Idempotent."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        self._attachments.close()
        self.probed = frozenset()

    def _run(self) -> None:
        rounds = 0
        while not self._stopping:
            before = len(self._watched)
            settled = self._attempt() and len(self._watched) == before
            rounds += 1
            if self._ready is not None or settled or rounds >= _SETTLING:
                self._ready = Readiness(len(self._watched), self._attachments.probes)
                self._wake.wait(_PERIOD_S)
                self._wake.clear()
                if not self._stopping:
                    time.sleep(_PAUSE_S)

    def _attempt(self) -> bool:
        """One round. An error is told once and does not end the search: the next round may do better."""
        self._stats.n["targets_rounds"] += 1
        try:
            self._round()
        except (OSError, CaptureError, ValueError) as error:
            self._stats.n["targets_failed"] += 1
            self._tell(f"looking for processes failed: {error}")
            return False
        finally:
            for line in (*self._roots.take_notices(), *self._attachments.take_complaints()):
                self._tell(line)
        return True

    def _tell(self, line: str) -> None:
        if line not in self._said and len(self._said) < 1000:
            self._said.add(line)
            _log.warning("%s", line)

    def _round(self) -> None:
        self._roots.choose(self._kernel)
        watched = self._roots.watched(self._kernel)
        spared = frozenset(self._spared)
        gone = self._look(watched)
        uses = [Use(tgid, library) for tgid, seen in self._watched.items() for library in seen.libraries]
        foreign = self._foreign({(use.mapping.device, use.mapping.inode) for use in uses})
        self._attachments.update(uses, foreign, spared, gone)
        whole = self._attachments.files()
        self.probed = frozenset(self._attachments.probed()) | {
            tgid for tgid, seen in self._watched.items() if not whole.isdisjoint(seen.files())
        }

    def _look(self, watched: set[int]) -> list[int]:
        """Refresh what is known of every watched process; returns those that ended, a pid used again among them."""
        self._look_afresh()
        told: dict[int, ProcessInfo] = {}
        gone = [tgid for tgid in self._watched if tgid not in watched]
        for tgid in watched:
            start = processes.started(tgid)
            seen = self._watched.get(tgid)
            if seen is not None and seen.started != start:
                gone.append(tgid)
                seen = None
            if start is None:
                self._kernel.deselect(tgid)
                self._watched.pop(tgid, None)
                continue
            if seen is None:
                seen = self._watched[tgid] = _Seen(start)
            exe = processes.executable(tgid) if seen.refresh(tgid) else seen.exe
            if exe != seen.exe:
                seen.exe = exe
                told[tgid] = processes.process_info(tgid) or ProcessInfo(tgid, start, exe, exe.rpartition("/")[2])
        for tgid in gone:
            if tgid not in watched:
                self._watched.pop(tgid, None)
            self._spared.discard(tgid)
        expired = self._expired()
        if told or expired:
            self._learn(told, expired)
        return gone

    def _look_afresh(self) -> None:
        while self._renewed:
            seen = self._watched.get(self._renewed.popleft())
            if seen is not None:
                seen.footprint = b""  # another program, perhaps of the same size

    def _learn(self, told: Mapping[int, ProcessInfo], forgotten: Iterable[int] = ()) -> None:
        """Replace what others read, whole."""
        with self._lock:
            known = {**self.processes, **told}
            for tgid in forgotten:
                known.pop(tgid, None)
            self.processes = self._kernel.processes = known

    def _expired(self) -> list[int]:
        """Processes that ended long enough ago to be forgotten, or so many that the oldest are."""
        now = time.monotonic()
        for tgid in self.processes.keys() - self._watched.keys():
            self._ended.setdefault(tgid, now)
        for tgid in self._ended.keys() & self._watched.keys():
            del self._ended[tgid]
        excess = max(0, len(self._ended) - _REMEMBERED)
        expired = [tgid for index, (tgid, at) in enumerate(self._ended.items()) if index < excess or now - at > _REMEMBERED_S]
        for tgid in expired:
            del self._ended[tgid]
        return expired

    def _foreign(self, ours: set[File]) -> set[File]:
        """Which files must not be probed as a whole: processes outside the selection map them, or another mount shows them."""
        ours = ours | self._attachments.files()
        if not ours:
            return set()
        now = time.monotonic()
        undecided = ours - self._attachments.known_files()
        if not self._roots.everything and (undecided or now - self._strangers_at >= _STRANGERS_S):
            self._strangers_at = now
            others = set(processes.pids()) - self._watched.keys() - {os.getpid()}
            self._strangers = {pid: self._strangers.get(pid) or _Seen(0) for pid in others}
            for pid, seen in self._strangers.items():
                seen.refresh(pid)
            for tgid in self._roots.watched(self._kernel):  # begun since the round did; the kernel selected it at once
                self._strangers.pop(tgid, None)
        theirs = {file for seen in self._strangers.values() for file in seen.files()}
        return theirs | _aliases(ours, theirs)


def _aliases(ours: set[File], theirs: set[File]) -> set[File]:
    """Files of ours that may be one file to the kernel with another: overlay mounts of one layer, as containers of one
    image have them, show it with devices of their own and the same inode number. Unrelated files that agree by chance
    are only probed less far ahead.
    """
    mounts = Counter(inode for _, inode in ours | theirs)
    return {file for file in ours if mounts[file[1]] > 1}
