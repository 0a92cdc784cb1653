from __future__ import annotations

import errno
import struct
from contextlib import ExitStack
from pathlib import Path

import pytest

from meshscope.capture import trial


def btf(strings: bytes, *types: bytes) -> bytes:
    body = b"".join(types)
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(body), len(body), len(strings)) + body + strings


def test_ids_are_found_in_btf_past_every_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strings = b"\0int\0tcp_sendmsg\0"
    data = btf(
        strings,
        struct.pack("<III", 1, 1 << 24, 4) + bytes(4),  # int
        struct.pack("<III", 0, 4 << 24 | 2, 8) + bytes(24),  # struct of two members
        struct.pack("<III", 0, 13 << 24 | 3, 0) + bytes(24),  # prototype of three
        struct.pack("<III", 5, 8 << 24, 1),  # typedef of the same name
        struct.pack("<III", 5, 12 << 24, 3),  # the function
    )
    file = tmp_path / "vmlinux"
    file.write_bytes(data)
    monkeypatch.setattr(trial, "BTF_FILE", str(file))
    trial.btf_id.cache_clear()
    assert trial.btf_id("tcp_sendmsg", 12) == 5
    assert trial.btf_id("tcp_sendmsg", 8) == 4
    assert trial.btf_id("int", 12) == 0
    assert trial.btf_id("nothing", 12) == 0
    trial.btf_id.cache_clear()


def test_a_refusal_is_told_and_everything_is_undone() -> None:
    closed: list[int] = []

    def refuse(stack: ExitStack) -> None:
        stack.callback(closed.append, 1)
        raise OSError(errno.EINVAL, "x")

    assert trial.attempt("it", refuse) == trial.Trial("it", False, "this kernel does not know it, EINVAL")
    assert closed == [1]


def test_a_missing_capability_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "capabilities", lambda: frozenset({"CAP_BPF"}))
    assert trial.explain(OSError(errno.EPERM, "x")) == "needs CAP_PERFMON, EPERM"
    monkeypatch.setattr(trial, "capabilities", lambda: frozenset({"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}))
    assert trial.explain(OSError(errno.EPERM, "x")) == "this kernel forbids it, EPERM"
    assert trial.explain(OSError(524, "x")) == "this kernel was built without it, ENOTSUPP"


def test_trials_leave_no_descriptor() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    found = trial.trials()
    assert set(Path("/proc/self/fd").iterdir()) == before
    assert len({each.name for each in found}) == len(found)
    for each in found:
        assert each.works == (each.why == "")


def test_no_btf_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "BTF_FILE", "/nonexistent/vmlinux")
    trial.btf_id.cache_clear()
    found = {each.name: each for each in trial.trials()}["tp_btf sock_send_length"]
    assert found.why == "this kernel has no BTF, ENOENT (/nonexistent/vmlinux)"
    trial.btf_id.cache_clear()


def test_what_stands_in_the_way_is_told_before_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "capabilities", lambda: frozenset({"CAP_PERFMON"}))
    assert trial.obstacle().startswith("missing CAP_BPF; start it with them: ")
    monkeypatch.setattr(trial, "capabilities", lambda: frozenset({"CAP_BPF", "CAP_PERFMON"}))
    monkeypatch.setattr(trial, "BTF_FILE", "/nonexistent/vmlinux")
    assert trial.obstacle().startswith("this kernel has no BTF (/nonexistent/vmlinux); ")
    monkeypatch.setattr(trial, "BTF_FILE", "/proc/self/stat")
    assert trial.obstacle() == ""


@pytest.mark.parametrize(
    ("text", "mode"),
    [("none integrity [confidentiality]\n", "confidentiality"), ("[none] integrity confidentiality\n", "none"), (None, "")],
)
def test_lockdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, mode: str) -> None:
    file = tmp_path / "lockdown"
    if text:
        file.write_text(text)
    monkeypatch.setattr(trial, "_LOCKDOWN", file)
    assert trial.lockdown() == mode
