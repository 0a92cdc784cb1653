"""Which TLS library is probed for whom, and exactly that many links.

A file is probed as a whole ahead of its users, so that even the shortest-lived is seen, but only while everyone who maps
it is selected; otherwise each selected process has probes of its own, and nobody else pays for a trap. When a stranger
comes or goes, the new probes are in place before the old ones leave: kprobes/openssl.bpf.c tells a call once that two
attachments see.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

from meshscope.capture import CaptureError
from meshscope.capture.abi import SSL_ATTACHMENT
from meshscope.capture.libraries import Libraries, Refused, forbids_return_probes, return_probes_may_kill
from meshscope.capture.processes import Mapping, started
from meshscope.capture.uprobes import Closeable, close_all
from meshscope.stats import Stats

FILE: Final = -1  # in place of a tgid: every user of the file
_AHEAD: Final = 8  # files probed while nobody maps them; each also keeps its mount busy, so not every container that ever was
File = tuple[str, int]  # device and inode as mappings show them


class Hooks(Protocol):
    """What attaching needs of the kernel; BpfSource has it."""

    def attach_uprobe(
        self, program: str, pid: int, path: str, places: Sequence[tuple[int, int]], *, retprobe: bool
    ) -> list[Closeable]:
        """Places are offset and cookie; pid -1 means everyone. All or none. Raises CaptureError."""

    def forget_sessions(self, tgid: int) -> None:
        """TLS calls of this process went by unseen: its sessions begin anew."""


class Probes(NamedTuple):
    """What was attached for one use; entries go before returns. places: how many breakpoints and return hooks that is."""

    entries: list[Closeable]
    returns: list[Closeable]
    places: int


class Use(NamedTuple):
    """A selected process maps this library."""

    tgid: int
    mapping: Mapping


class Attachments:
    """All links on TLS libraries. Single-threaded: called by the search for targets only."""

    def __init__(self, hooks: Hooks, stats: Stats) -> None:
        self._hooks = hooks
        self._stats = stats
        self._libraries = Libraries()
        self._links: dict[tuple[File, int], Probes] = {}
        self._refused: dict[tuple[File, int], str] = {}
        self._leaving: list[Probes] = []
        self._unseen: set[int] = set()  # processes whose probes go although they live on
        self._release = os.uname().release
        self._wary = return_probes_may_kill(self._release)
        self._complaints: list[str] = []
        self._attached = 0

    @property
    def probes(self) -> int:
        """Probes held."""
        return sum(probes.places for probes in self._links.values())

    def probed(self) -> set[int]:
        """Processes with probes of their own."""
        return {tgid for _, tgid in self._links if tgid != FILE}

    def files(self) -> set[File]:
        """Files probed as a whole."""
        return {file for file, tgid in self._links if tgid == FILE}

    def known_files(self) -> set[File]:
        """Files that are decided on: probed somehow, or refused."""
        return {file for table in (self._links, self._refused) for file, _ in table}

    def take_complaints(self) -> list[str]:
        """Lines for the user, each handed out once."""
        complaints, self._complaints = self._complaints, []
        return complaints

    def refusals(self) -> dict[tuple[File, int], str]:
        """What is not probed, and why."""
        return dict(self._refused)

    def update(self, uses: Iterable[Use], foreign: Collection[File], spared: Collection[int], gone: Iterable[int]) -> None:
        """Attach and detach until exactly what is wanted is there.

        uses:    every library of every selected process.
        foreign: files that processes outside the selection map.
        spared:  selected processes whose probes are withheld; for file-wide probes they are strangers.
        gone:    processes that ended.
        """
        by_file: dict[File, list[Use]] = {}
        for use in uses:
            by_file.setdefault((use.mapping.device, use.mapping.inode), []).append(use)
        ended = set(gone)
        for file, tgid in list(self._links):
            users = by_file.get(file, [])
            unused = file in foreign and not users if tgid == FILE else all(use.tgid != tgid for use in users)
            if tgid in ended or unused:  # unused by one: it unloaded the library, or became another program
                self._detach(file, tgid)
        idle = [file for file, tgid in self._links if tgid == FILE and file not in by_file]
        for file in idle[:-_AHEAD]:
            self._detach(file, FILE)
        for key in [key for key in self._refused if key[1] in ended]:
            del self._refused[key]
        for file, users in by_file.items():
            self._update_file(file, users, file in foreign, spared)
        self._take_leaving()
        for tgid in self._unseen:
            self._hooks.forget_sessions(tgid)
        self._unseen.clear()

    def _update_file(self, file: File, users: list[Use], foreign: bool, spared: Collection[int]) -> None:
        """One library file and the selected processes that map it."""
        alone = not foreign and not any(use.tgid in spared for use in users)
        whole = (file, FILE) in self._links
        if alone and not whole and not any((file, use.tgid) in self._refused for use in users):
            whole = self._attach(file, FILE, users[0])
            for use in users if whole else ():
                self._detach(file, use.tgid)
        if whole and alone:
            return
        for use in users:
            if use.tgid not in spared:
                self._attach(file, use.tgid, use)
        if whole:
            self._stats.n["tls_moved"] += 1
            self._detach(file, FILE)
        for use in users:
            if use.tgid in spared and (whole or (file, use.tgid) in self._links):
                self._detach(file, use.tgid)
                self._unseen.add(use.tgid)

    def _attach(self, file: File, tgid: int, use: Use) -> bool:
        """True: probes are there, now or already."""
        key = (file, tgid)
        if key in self._links:
            return True
        if key in self._refused:
            return False
        try:
            self._links[key] = self._attach_all(tgid, use)
        except Refused as error:
            if tgid != FILE and started(tgid) is not None:  # a file is tried again for each process
                self._refused[key] = str(error)
                self._stats.n[error.counter] += 1
                self._complaints.append(f"TLS not seen: {error}")
            return False
        self._stats.n["tls_attached"] += 1
        return True

    def _attach_all(self, tgid: int, use: Use) -> Probes:
        """All probes or none. Raises Refused."""
        unsafe = forbids_return_probes(use.tgid, self._release)
        if tgid == FILE and not unsafe and self._wary:
            unsafe = "who else will map it may not stand return probes"
        if unsafe:
            raise Refused("tls_refused_unsafe", f"{use.mapping.path} of process {use.tgid}: {unsafe}")
        opened = self._libraries.open(use.tgid, use.mapping)
        self._attached += 1
        mark = self._attached * SSL_ATTACHMENT
        calls = [(one.offset, one.variant | mark) for one in opened.library.placements if one.returns]
        frees = [(one.offset, 0) for one in opened.library.placements if not one.returns]
        entries: list[Closeable] = []
        returns: list[Closeable] = []
        try:
            # An entry without a return would leave a call that never ends; a return without an entry is ignored.
            returns += self._hooks.attach_uprobe("ssl_return", tgid, opened.path, calls, retprobe=True)
            entries += self._hooks.attach_uprobe("ssl_enter", tgid, opened.path, calls, retprobe=False)
            if frees:
                entries += self._hooks.attach_uprobe("ssl_free", tgid, opened.path, frees, retprobe=False)
        except CaptureError as error:
            close_all(entries)
            close_all(returns)
            raise Refused("tls_refused_kernel", f"{use.mapping.path} of process {use.tgid}: {error}") from None
        finally:
            os.close(opened.descriptor)
        return Probes(entries, returns, 2 * len(calls) + len(frees))

    def _detach(self, file: File, tgid: int) -> None:
        """Not at once: what goes in one update goes together, because each waits for the kernel."""
        probes = self._links.pop((file, tgid), None)
        if probes is not None:
            self._leaving.append(probes)
            self._stats.n["tls_detached"] += 1

    def _take_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        close_all(link for probes in leaving for link in probes.entries)
        close_all(link for probes in leaving for link in probes.returns)

    def close(self) -> None:
        """Detach everything."""
        for file, tgid in list(self._links):
            self._detach(file, tgid)
        self._take_leaving()
