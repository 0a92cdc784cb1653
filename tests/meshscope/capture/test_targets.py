"""The search for targets on real processes; the kernel is played by a dictionary and a list of what is attached."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from meshscope.capture import CaptureError, ProcessInfo
from meshscope.capture.abi import PROCESS_EXEC, PROCESS_EXIT, PROCESS_FORK
from meshscope.capture.targets import Selection, Targets
from meshscope.capture.uprobes import Closeable
from meshscope.stats import Stats

# A process that does what its input says: "tls" loads libssl, "exec" becomes sleep.
OBEY = """
import os, subprocess, sys
print("ready", flush=True)
for line in sys.stdin:
    if line == "tls\\n":
        import ctypes
        ctypes.CDLL(sys.argv[1])
    if line == "exec\\n":
        os.execvp("sleep", ["sleep", "60"])
    print("done", flush=True)
"""
BOUND_S = 15


class Probe:
    def __init__(self, kernel: Kernel, what: tuple[str, int]) -> None:
        self._kernel, self._what = kernel, what

    def close(self) -> None:
        self._kernel.attached.remove(self._what)


class Kernel:
    def __init__(self) -> None:
        self.processes: Mapping[int, ProcessInfo] = {}
        self.marked: dict[int, int] = {}
        self.attached: list[tuple[str, int]] = []
        self.forgotten: list[int] = []

    def select(self, tgid: int, shard: int = 0) -> None:
        self.marked.setdefault(tgid, shard)

    def deselect(self, tgid: int) -> None:
        self.marked.pop(tgid, None)

    def select_cgroup(self, cgroup: int, shard: int = 0) -> None:
        raise AssertionError(cgroup, shard)

    def selected(self) -> dict[int, int]:
        return dict.fromkeys(self.marked, 0)

    def attach_uprobe(
        self, program: str, pid: int, path: str, places: Sequence[tuple[int, int]], *, retprobe: bool
    ) -> list[Closeable]:
        assert places
        assert Path(path).exists()
        assert retprobe is (program == "ssl_return")
        self.attached.append((program, pid))
        return [Probe(self, (program, pid))]

    def forget_sessions(self, tgid: int) -> None:
        self.forgotten.append(tgid)


class Obedient:
    def __init__(self, library: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", OBEY, library], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        assert self._line() == "ready\n"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def tell(self, order: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        if order != "exec":
            assert self._line() == "done\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A libssl with an inode of its own, so that nobody else on this machine uses it."""
    listing = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return Path(shutil.copy(next(x.split(" => ")[1] for x in listing.splitlines() if "libssl.so.3 " in x), tmp_path))


@pytest.fixture
def obedient(library: Path) -> Iterator[Obedient]:
    made = Obedient(library)
    yield made
    made.end()


@pytest.fixture
def started() -> Iterator[Callable[[Kernel, Selection], Targets]]:
    running: list[Targets] = []

    def start(kernel: Kernel, selection: Selection) -> Targets:
        running.append(Targets(kernel, selection, Stats()))
        running[-1].start()
        until(lambda: running[-1].ready() is not None)
        return running[-1]

    yield start
    for targets in running:
        targets.stop()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + BOUND_S
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


THREE = ["ssl_enter", "ssl_free", "ssl_return"]


def test_a_library_loaded_late_is_probed(obedient: Obedient, started: Callable[..., Targets]) -> None:
    kernel = Kernel()
    targets = started(kernel, Selection(pids=[obedient.pid]))
    assert targets.ready() == (1, 0)
    assert targets.processes[obedient.pid].exe == str(Path(f"/proc/{obedient.pid}/exe").readlink())
    assert kernel.processes == targets.processes
    obedient.tell("tls")
    until(lambda: obedient.pid in targets.probed)
    assert sorted(kernel.attached) == [(name, -1) for name in THREE], "nobody else uses it: ahead, for all of its users"
    targets.stop()
    assert kernel.attached == []
    targets.stop()


def test_a_stranger_on_the_same_library_is_spared(obedient: Obedient, library: Path, started: Callable[..., Targets]) -> None:
    stranger = Obedient(library)
    stranger.tell("tls")
    obedient.tell("tls")
    kernel = Kernel()
    targets = started(kernel, Selection(pids=[obedient.pid]))
    assert sorted(kernel.attached) == [(name, obedient.pid) for name in THREE]
    assert targets.ready() == (1, 5)
    assert targets.probed == {obedient.pid}
    stranger.end()
    until(lambda: ("ssl_enter", -1) in kernel.attached)


def test_probes_go_with_the_process(obedient: Obedient, library: Path, started: Callable[..., Targets]) -> None:
    stranger = Obedient(library)
    stranger.tell("tls")
    obedient.tell("tls")
    kernel = Kernel()
    targets = started(kernel, Selection(pids=[obedient.pid]))
    obedient.end()
    until(lambda: kernel.attached == [] and kernel.marked == {})
    assert targets.probed == set()
    assert obedient.pid in targets.processes, "its last exchanges are still on their way"
    stranger.end()


def test_probes_are_shed_and_restored(obedient: Obedient, started: Callable[..., Targets]) -> None:
    obedient.tell("tls")
    kernel = Kernel()
    targets = started(kernel, Selection(pids=[obedient.pid]))
    assert kernel.attached
    targets.shed_tls(obedient.pid)
    until(lambda: kernel.attached == [] and kernel.forgotten == [obedient.pid])
    targets.restore_tls(obedient.pid)
    until(lambda: bool(kernel.attached))
    until(lambda: obedient.pid in targets.probed)


def test_who_a_process_is_follows_its_events(obedient: Obedient, started: Callable[..., Targets]) -> None:
    kernel = Kernel()
    targets = started(kernel, Selection(pids=[obedient.pid]))
    before = targets.processes[obedient.pid]
    targets.on_process((PROCESS_FORK, 1 << 30, obedient.pid, b"python", 0, 0))
    assert targets.processes[1 << 30] == before._replace(pid=1 << 30, started=0), "a fork is what its parent was"
    targets.on_process((PROCESS_EXEC, 1 << 30, 0, b"curl", 0, 0))
    assert targets.processes[1 << 30] == (1 << 30, 0, "curl", "curl"), "it lived and died unseen"
    targets.on_process((PROCESS_EXIT, 1 << 30, 0, b"other", 0, 0))
    assert targets.processes[1 << 30].service == "curl"
    obedient.tell("exec")
    until(lambda: Path(f"/proc/{obedient.pid}/exe").readlink().name != Path(before.exe).name)
    targets.on_process((PROCESS_EXEC, obedient.pid, 0, b"sleep", 0, 0))
    assert targets.processes[obedient.pid].service == "sleep"
    assert kernel.processes is targets.processes


def test_an_unknown_process_is_an_error_at_the_start() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(CaptureError, match="no process"):
        Targets(Kernel(), Selection(pids=[gone.pid]), Stats()).start()


def test_a_glob_that_matches_nothing_is_told_once_and_waited_for(
    caplog: pytest.LogCaptureFixture, started: Callable[..., Targets], tmp_path: Path
) -> None:
    program = tmp_path / "peculiar-program"
    shutil.copy(shutil.which("sleep") or "", program)
    kernel = Kernel()
    targets = started(kernel, Selection(exes=["peculiar-*"]))
    assert targets.ready() == (0, 0)
    waited_for = subprocess.Popen([program, "60"])
    until(lambda: waited_for.pid in targets.processes)
    assert [record.message for record in caplog.records if "peculiar" in record.message] == [
        "no process matches peculiar-* yet; waiting for one"
    ]
    waited_for.kill()
    waited_for.wait()


def test_an_error_does_not_end_the_search(
    caplog: pytest.LogCaptureFixture, obedient: Obedient, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, stats = Kernel(), Stats()
    monkeypatch.setattr(kernel, "selected", lambda: (_ for _ in ()).throw(CaptureError("map gone")))
    targets = Targets(kernel, Selection(pids=[obedient.pid]), stats)
    targets.start()
    until(lambda: stats.n["targets_failed"] >= 2)
    monkeypatch.undo()
    targets.on_process((PROCESS_FORK, os.getpid(), 0, b"", 0, 0))
    until(lambda: obedient.pid in targets.processes)
    targets.stop()
    assert [record.message for record in caplog.records].count("looking for processes failed: map gone") == 1
