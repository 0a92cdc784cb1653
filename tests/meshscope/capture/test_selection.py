"""Pids, globs and groups become marks in the kernel; here the kernel is a dictionary."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope.capture import CaptureError, cgroups
from meshscope.capture.selection import Roots, Selection

WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


class Marks:
    """Stands in for the kernel's maps."""

    def __init__(self) -> None:
        self.processes: dict[int, int] = {}
        self.groups: dict[int, int] = {}

    def select(self, tgid: int, shard: int = 0) -> None:
        self.processes.setdefault(tgid, shard)

    def deselect(self, tgid: int) -> None:
        self.processes.pop(tgid, None)

    def select_cgroup(self, cgroup: int, shard: int = 0) -> None:
        self.groups[cgroup] = shard

    def selected(self) -> dict[int, int]:
        return dict.fromkeys(self.processes, 0)


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """A parent with one child; both end with the parent's input."""
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]).wait()"
    made = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    yield made
    made.communicate()


def test_a_process_with_its_descendants(family: subprocess.Popen[str]) -> None:
    kernel, roots = Marks(), Roots(Selection(pids=[family.pid]))
    roots.check()
    roots.choose(kernel)
    assert family.pid in kernel.processes
    assert len(kernel.processes) == 2
    assert len(set(kernel.processes.values())) == 1
    assert roots.watched(kernel) == set(kernel.processes)


def test_roots_have_shards_of_their_own(family: subprocess.Popen[str]) -> None:
    kernel = Marks()
    Roots(Selection(pids=[family.pid, os.getppid()])).choose(kernel)
    assert len({kernel.processes[family.pid], kernel.processes[os.getppid()]}) >= 1
    assert os.getpid() not in Roots(Selection()).watched(kernel)


def test_a_pid_is_asked_for_once(family: subprocess.Popen[str]) -> None:
    """Once it has ended, the number may come to mean another process."""
    kernel, roots = Marks(), Roots(Selection(pids=[family.pid]))
    roots.choose(kernel)
    kernel.processes.clear()
    roots.choose(kernel)
    assert kernel.processes == {}


def test_an_unknown_process_is_an_error() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(CaptureError, match=f"no process {gone.pid}"):
        Roots(Selection(pids=[gone.pid])).check()


def test_globs_by_name_and_by_path(family: subprocess.Popen[str]) -> None:
    exe = Path(f"/proc/{family.pid}/exe").readlink()
    for glob in (exe.name, exe.name[:4] + "*", str(exe), f"*/{exe.name}"):
        kernel, roots = Marks(), Roots(Selection(exes=[glob]))
        roots.choose(kernel)
        assert family.pid in kernel.processes
        assert os.getpid() not in kernel.processes
        assert roots.take_notices() == []


def test_a_glob_without_a_match_is_told_once() -> None:
    kernel, roots = Marks(), Roots(Selection(exes=["no-such-program*"]))
    roots.choose(kernel)
    roots.choose(kernel)
    (notice,) = roots.take_notices()
    assert "no process matches no-such-program*" in notice
    assert roots.take_notices() == []


def test_groups_and_their_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: subprocess.Popen[str]) -> None:
    group = tmp_path / "shop"
    group.mkdir()
    (group / "cgroup.procs").write_text(f"{family.pid}\n{os.getpid()}\n")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"none {tmp_path} cgroup2 rw 0 0\n")
    monkeypatch.setattr(cgroups, "MOUNTS", mounts)
    kernel, roots = Marks(), Roots(Selection(cgroups=["/shop"]))
    roots.choose(kernel)
    assert list(kernel.processes) == [family.pid]
    assert kernel.groups == {group.stat().st_ino: kernel.processes[family.pid]}
    group.rename(tmp_path / "old")
    roots.choose(kernel)
    group.mkdir()
    roots.choose(kernel)
    assert set(kernel.groups) == {group.stat().st_ino, (tmp_path / "old").stat().st_ino}
    assert len(set(kernel.groups.values())) == 1, "the same root keeps its shard"


def test_everything_is_everyone_but_this_process() -> None:
    kernel, roots = Marks(), Roots(Selection(all=True))
    roots.choose(kernel)
    assert kernel.processes == {}
    watched = roots.watched(kernel)
    assert os.getppid() in watched
    assert os.getpid() not in watched
