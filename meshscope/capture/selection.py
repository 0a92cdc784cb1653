"""From what was asked for (pids, globs, control groups) to processes marked in the kernel."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple, Protocol

from meshscope.capture import CaptureError, processes
from meshscope.capture.cgroups import ControlGroup


class Selection(NamedTuple):
    """What to watch: processes with their descendants, globs of executables, control groups, or everything.

    A glob without a slash is compared with the file's name, one with a slash with its whole path.
    """

    pids: Sequence[int] = ()
    exes: Sequence[str] = ()
    cgroups: Sequence[str] = ()
    all: bool = False


class Selecting(Protocol):
    """What selecting needs of the kernel; BpfSource has it."""

    def select(self, tgid: int, shard: int = 0) -> None: ...
    def deselect(self, tgid: int) -> None: ...
    def select_cgroup(self, cgroup: int, shard: int = 0) -> None: ...
    def selected(self) -> dict[int, int]: ...


class Roots:
    """The selected roots. Each has a shard of its own, which its descendants share."""

    def __init__(self, selection: Selection) -> None:
        self.everything = selection.all
        self._pids = list(selection.pids)
        self._exes = list(selection.exes)
        self._cgroups = [ControlGroup(path) for path in selection.cgroups] if not selection.all else []
        self._idents: dict[int, tuple[int, int]] = {}  # index of the group -> its id, its shard
        self._unmatched = set(self._exes)
        self._asked = False
        self._shards = 0
        self._notices: list[str] = []

    def check(self) -> None:
        """Raises CaptureError for a process that does not exist."""
        for pid in self._pids:
            if processes.started(pid) is None:
                raise CaptureError(f"no process {pid}")

    def choose(self, kernel: Selecting) -> None:
        """Mark whoever is selected and not marked yet."""
        if self.everything:
            return
        marked = kernel.selected().keys()
        for pid in self._pids:
            self._mark_family(kernel, [pid])
        self._pids.clear()  # the kernel follows from here; the number may come to mean another process
        for index, group in enumerate(self._cgroups):
            self._mark_group(kernel, index, group, marked)
        if self._exes:
            self._mark_executables(kernel, marked)
        self._asked = True

    def watched(self, kernel: Selecting) -> set[int]:
        """Everyone who is watched now, never this process."""
        return (set(processes.pids()) if self.everything else set(kernel.selected())) - {os.getpid()}

    def take_notices(self) -> list[str]:
        """Lines for the user, each handed out once."""
        notices, self._notices = self._notices, []
        return notices

    def _shard(self) -> int:
        self._shards += 1
        return self._shards - 1

    def _mark_family(self, kernel: Selecting, roots: list[int]) -> None:
        """A root first, then its descendants until no new one turns up: from then on the kernel follows forks."""
        shard, marked = self._shard(), set[int]()
        for root in roots:
            kernel.select(root, shard)
        while True:
            family = set(processes.with_descendants(roots)) - {os.getpid()}
            if family <= marked:
                return
            for pid in family - marked:
                kernel.select(pid, shard)
            marked |= family

    def _mark_group(self, kernel: Selecting, index: int, group: ControlGroup, marked: Collection[int]) -> None:
        """The group itself, so that the kernel marks whoever enters, then those inside."""
        ident = group.ident()
        if ident is None:
            return
        known = self._idents.get(index)
        if known is None or known[0] != ident:
            known = self._idents[index] = (ident, self._shard() if known is None else known[1])
            kernel.select_cgroup(*known)
        for pid in group.members():
            if pid not in marked and pid != os.getpid():
                kernel.select(pid, known[1])

    def _mark_executables(self, kernel: Selecting, marked: Collection[int]) -> None:
        for pid in processes.pids():
            exe = processes.executable(pid)
            for glob in self._exes if exe and pid != os.getpid() else ():
                if fnmatchcase(exe if "/" in glob else exe.rpartition("/")[2], glob):
                    self._unmatched.discard(glob)
                    if pid not in marked:
                        self._mark_family(kernel, [pid])
        if not self._asked:
            self._notices += [f"no process matches {glob} yet; waiting for one" for glob in sorted(self._unmatched)]
