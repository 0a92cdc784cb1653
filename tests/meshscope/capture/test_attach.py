"""Exactly the probes that are wanted: ahead for a file whose users are all selected, else for each process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshscope.capture import CaptureError
from meshscope.capture.abi import SSL_ATTACHMENT
from meshscope.capture.attach import FILE, Attachments, Use
from meshscope.capture.libraries import Libraries, Opened, Refused
from meshscope.capture.placement import Library, Placement, Rule, Variant
from meshscope.capture.processes import Mapping
from meshscope.capture.uprobes import Closeable
from meshscope.stats import Stats

LIBRARY = Library(
    "beef",
    (
        Placement("SSL_read", Variant.READ, 0x10, Rule.SYMBOL, emulated=True, returns=True, code=b""),
        Placement("SSL_write", Variant.WRITE, 0x20, Rule.SYMBOL, emulated=True, returns=True, code=b""),
        Placement("SSL_free", Variant.READ, 0x30, Rule.ENTRY_ONLY, emulated=True, returns=False, code=b""),
    ),
)
ONE = Mapping("fe:00", 1, "0-1", "/lib/libssl.so.3", deleted=False)
OTHER = Mapping("fe:00", 2, "0-1", "/opt/libssl.so.3", deleted=False)
FIRST, SECOND = ("fe:00", 1), ("fe:00", 2)
ALIVE = os.getpid()  # a process that exists, for refusals: one that is gone refuses nothing


class Probe:
    def __init__(self, log: list[tuple[str, str, int]], program: str, pid: int) -> None:
        self._log, self._what = log, (program, pid)

    def close(self) -> None:
        self._log.append(("-", *self._what))


class Kernel:
    """Writes down what is attached and detached, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str, int]] = []
        self.forgotten: list[int] = []
        self.refuses = ""
        self.marks: list[int] = []  # of the attachments, in their order

    def attach_uprobe(
        self, program: str, pid: int, path: str, places: Sequence[tuple[int, int]], *, retprobe: bool
    ) -> list[Closeable]:
        if program == self.refuses:
            raise CaptureError("no")
        assert path.startswith("/proc/")
        assert retprobe is (program == "ssl_return")
        if retprobe:
            self.marks.append(places[0][1])
        mark = self.marks[-1]
        assert mark % SSL_ATTACHMENT == 0
        assert places == ([(0x30, 0)] if program == "ssl_free" else [(0x10, mark), (0x20, 1 | mark)])
        self.log.append(("+", program, pid))
        return [Probe(self.log, program, pid)]

    def forget_sessions(self, tgid: int) -> None:
        self.forgotten.append(tgid)

    def take(self) -> list[tuple[str, str, int]]:
        taken = self.log.copy()
        self.log.clear()
        return taken


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    def opened(_: Libraries, __: int, ___: Mapping) -> Opened:
        return Opened(os.open(os.devnull, os.O_RDONLY), "/proc/1/fd/1", LIBRARY)

    monkeypatch.setattr(Libraries, "open", opened)
    return Kernel()


def on(pid: int) -> list[tuple[str, str, int]]:
    """Return probes first, so that no entry is ever without one."""
    return [("+", program, pid) for program in ("ssl_return", "ssl_enter", "ssl_free")]


def off(*pids: int) -> set[tuple[str, str, int]]:
    return {("-", program, pid) for program in ("ssl_return", "ssl_enter", "ssl_free") for pid in pids}


def test_a_file_whose_users_are_all_selected_is_probed_ahead(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE), Use(11, ONE)], (), (), ())
    assert kernel.take() == on(FILE)
    attachments.update([Use(12, ONE)], (), (), [10, 11])
    assert kernel.take() == []
    attachments.update([], (), (), [12])
    assert kernel.take() == [], "it stays for the next short-lived process"
    assert attachments.files() == {FIRST}
    assert attachments.probes == 5
    attachments.close()
    assert set(kernel.take()) == off(FILE)


def test_a_stranger_means_probes_per_process(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE), Use(11, ONE), Use(11, OTHER)], {FIRST}, (), ())
    assert kernel.take() == [*on(10), *on(11), *on(FILE)]
    assert attachments.probed() == {10, 11}
    assert attachments.known_files() == {FIRST, SECOND}
    attachments.update([Use(11, ONE)], {FIRST}, (), [10])
    gone = kernel.take()
    assert set(gone) == off(10)
    assert gone[-1] == ("-", "ssl_return", 10), "returns go last"


def test_when_a_stranger_comes_and_goes_nothing_is_missed(kernel: Kernel) -> None:
    stats = Stats()
    attachments = Attachments(kernel, stats)
    attachments.update([Use(10, ONE)], (), (), ())
    kernel.take()
    attachments.update([Use(10, ONE)], {FIRST}, (), ())
    moved = kernel.take()
    assert moved[:3] == on(10)
    assert set(moved[3:]) == off(FILE)
    assert stats.n["tls_moved"] == 1
    attachments.update([Use(10, ONE)], (), (), ())
    moved = kernel.take()
    assert moved[:3] == on(FILE)
    assert set(moved[3:]) == off(10)
    assert kernel.forgotten == []


def test_a_file_without_users_is_given_up_for_a_stranger(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE)], (), (), ())
    attachments.update([], (), (), [10])
    kernel.take()
    attachments.update([], {FIRST}, (), ())
    assert set(kernel.take()) == off(FILE)


def test_a_library_that_a_process_maps_no_more_is_let_go(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE), Use(10, OTHER)], {FIRST, SECOND}, (), ())
    kernel.take()
    attachments.update([Use(10, OTHER)], {FIRST, SECOND}, (), ())
    assert set(kernel.take()) == off(10)
    assert attachments.known_files() == {SECOND}


def test_every_attachment_has_a_number_of_its_own(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE)], (), (), ())
    attachments.update([Use(10, ONE), Use(11, OTHER)], {FIRST}, (), ())
    assert len(set(kernel.marks)) == 3


def test_files_that_nobody_maps_any_more_are_given_up_oldest_first(kernel: Kernel) -> None:
    """As the libraries of containers that come and go."""
    attachments = Attachments(kernel, Stats())
    for inode in range(20):
        attachments.update([Use(10 + inode, ONE._replace(inode=inode))], (), (), [9 + inode])
    attachments.update([], (), (), [29])
    assert attachments.files() == {("fe:00", inode) for inode in range(12, 20)}


def test_a_spared_process_has_no_probe_and_its_sessions_begin_anew(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    both = [Use(10, ONE), Use(11, ONE)]
    attachments.update(both, (), (), ())
    kernel.take()
    attachments.update(both, (), {10}, ())
    moved = kernel.take()
    assert moved[:3] == on(11)
    assert set(moved[3:]) == off(FILE)
    assert kernel.forgotten == [10]
    attachments.update(both, {FIRST}, {10}, ())
    assert kernel.take() == []
    assert kernel.forgotten == [10]
    attachments.update(both, {FIRST}, (), ())
    assert kernel.take() == on(10)
    attachments.update(both, {FIRST}, {11}, ())
    assert set(kernel.take()) == off(11)
    assert kernel.forgotten == [10, 11]


def test_a_pid_used_again_gets_probes_of_its_own(kernel: Kernel) -> None:
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE)], {FIRST}, (), ())
    kernel.take()
    attachments.update([Use(10, ONE)], {FIRST}, (), [10])
    moved = kernel.take()
    assert moved[:3] == on(10)
    assert set(moved[3:]) == off(10)
    assert attachments.probed() == {10}


def test_a_refusal_is_counted_and_told_once_and_leaves_nothing_attached(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    stats = Stats()
    attachments = Attachments(kernel, stats)
    kernel.refuses = "ssl_enter"
    attachments.update([Use(ALIVE, ONE)], {FIRST}, (), ())
    attachments.update([Use(ALIVE, ONE)], {FIRST}, (), ())
    assert kernel.take() == [("+", "ssl_return", ALIVE), ("-", "ssl_return", ALIVE)]
    assert stats.n["tls_refused_kernel"] == 1
    (complaint,) = attachments.take_complaints()
    assert str(ONE.path) in complaint
    assert attachments.take_complaints() == []
    assert attachments.probed() == set()
    assert list(attachments.refusals()) == [(FIRST, ALIVE)]

    def gone(_: Libraries, __: int, mapping: Mapping) -> Opened:
        raise Refused("tls_refused_gone", mapping.path)

    monkeypatch.setattr(Libraries, "open", gone)
    attachments.update([Use(ALIVE, ONE), Use(ALIVE, OTHER), Use(1 << 30, OTHER)], {FIRST, SECOND}, (), ())
    assert stats.n["tls_refused_gone"] == 1, "a process that is gone refuses nothing"


def test_a_process_that_may_not_be_probed_is_not(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And on such a kernel no file is probed for users who were not looked at."""
    monkeypatch.setattr("meshscope.capture.attach.return_probes_may_kill", lambda _: True)
    monkeypatch.setattr("meshscope.capture.attach.forbids_return_probes", lambda pid, _: "it would die" if pid == ALIVE else "")
    stats = Stats()
    attachments = Attachments(kernel, stats)
    attachments.update([Use(10, ONE), Use(ALIVE, ONE)], (), (), ())
    assert kernel.take() == on(10)
    assert stats.n["tls_refused_unsafe"] == 1
    assert "it would die" in attachments.take_complaints()[0]


def test_descriptors_are_closed(kernel: Kernel) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    attachments = Attachments(kernel, Stats())
    attachments.update([Use(10, ONE)], (), (), ())
    kernel.refuses = "ssl_return"
    attachments.update([Use(11, OTHER)], {SECOND}, (), ())
    attachments.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
