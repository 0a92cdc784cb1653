from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope import doctor
from meshscope.capture import CaptureError, trial
from meshscope.capture.processes import Mapping
from meshscope.capture.trial import Trial
from meshscope.config import load

GOOD = Trial("uprobe", True, "")
BAD = Trial("fexit tcp_sendmsg", False, "this kernel forbids it, EPERM")


class Kernel:
    """In BpfSource's place: a kernel that takes everything."""

    rung = "tp_btf"

    def __init__(self, _settings: object) -> None:
        self.refused: list[str] = []

    def close(self) -> None: ...


class Refusing(Kernel):
    def __init__(self, _settings: object) -> None:
        raise CaptureError("tp_btf: refused; do this instead")


class Library:
    def libbpf_version_string(self) -> bytes:
        return b"v1.1"


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BpfSource", Kernel)
    monkeypatch.setattr(doctor, "Libbpf", Library)
    monkeypatch.setattr(trial, "trials", lambda: [GOOD, BAD])
    monkeypatch.setattr(trial, "missing_capabilities", list)
    monkeypatch.setattr(trial, "BTF_FILE", "/proc/self/stat")


@pytest.fixture
def child() -> Iterator[int]:
    """A process to look at: the one that asks is never watched."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def text(**args: object) -> str:
    return "\n".join(doctor.lines(doctor.examine(load(None, {}, args))))


def test_a_kernel_that_allows_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(load(None, {}, {}), "text") == 0
    said = capsys.readouterr().out
    assert "  uprobe                         works\n" in said
    assert "  fexit tcp_sendmsg              this kernel forbids it, EPERM\n" in said
    assert "socket bytes   tp_btf\n" in said
    assert said.endswith("run would work here\n")
    assert doctor.run(load(None, {}, {}), "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["works"], report["rung"], report["libbpf"], report["missing"]) == (True, "tp_btf", "v1.1", [])


def test_missing_capabilities_come_with_the_way_to_get_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trial, "missing_capabilities", lambda: ["CAP_BPF"])
    monkeypatch.setattr(doctor, "BpfSource", Refusing)
    assert doctor.run(load(None, {}, {}), "text") == 1
    said = capsys.readouterr().out
    assert "missing        CAP_BPF\n  to get it    start it with them: systemd AmbientCapabilities=CAP_BPF" in said
    assert said.endswith("run would not work here\n")


def test_looking_into_others_is_not_needed_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "missing_capabilities", lambda: ["CAP_SYS_PTRACE"])
    report = doctor.examine(load(None, {}, {}))
    assert report["works"]
    assert [lack["what"] for lack in report["missing"]] == ["CAP_SYS_PTRACE"]


def test_no_kernel_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BTF_FILE", "/nonexistent")
    assert "kernel types   missing" in text()
    assert "CONFIG_DEBUG_INFO_BTF=y" in text()


def test_a_refusal_of_the_kernel_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BpfSource", Refusing)
    report = doctor.examine(load(None, {}, {}))
    assert (report["works"], report["rung"]) == (False, None)
    assert report["missing"] == [{"what": "tp_btf: refused", "fix": "do this instead", "fatal": True}]


def test_a_glob_that_matches_nobody_is_told() -> None:
    assert "no process matches no-such-program yet; waiting for one" in text(**{"select.exes": "no-such-program"})


def test_no_libbpf(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise CaptureError("libbpf.so.1 is not installed; apt-get install libbpf1")

    monkeypatch.setattr(doctor, "Libbpf", missing)
    said = text()
    assert "libbpf         missing" in said
    assert "missing        libbpf.so.1 is not installed\n  to get it    apt-get install libbpf1" in said


def test_placements_are_told_for_who_is_selected(monkeypatch: pytest.MonkeyPatch, child: int) -> None:
    libssl = next(path for path in Path("/usr/lib").glob("*/libssl.so.3"))
    device = libssl.stat()
    mapping = Mapping(
        f"{os.major(device.st_dev):02x}:{os.minor(device.st_dev):02x}", device.st_ino, "0-1", str(libssl), deleted=False
    )
    monkeypatch.setattr(doctor, "libraries", lambda pid: [mapping] if pid == child else [])
    report = doctor.examine(load(None, {}, {"select.pids": str(child)}))
    process = next(process for process in report["processes"] if process["pid"] == child)
    assert process["libraries"][0]["path"] == str(libssl)
    functions = " ".join(probe["function"] for probe in process["libraries"][0]["probes"])
    assert "SSL_read" in functions
    assert "SSL_write" in functions
    said = "\n".join(doctor.lines(report))
    assert f"process {child}  " in said
    assert " emulated" in said or "single-stepped" in said


def test_what_cannot_be_probed_says_why(monkeypatch: pytest.MonkeyPatch, child: int) -> None:
    mapping = Mapping("00:00", 1, "0-1", "/gone/libssl.so.3", deleted=True)
    monkeypatch.setattr(doctor, "libraries", lambda _: [mapping])
    said = text(**{"select.pids": str(child)})
    assert "    not probed: /gone/libssl.so.3 of process" in said
