"""/proc as it is for processes started here, and for names that cannot be made here, from a tree of files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope.capture import processes


def child(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A process that says "ready" and lives until its standard input closes."""
    environment = {"PATH": os.environ["PATH"], **environment}
    made = subprocess.Popen(arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture
def python() -> Iterator[subprocess.Popen[str]]:
    made = child(sys.executable, "-c", "import ssl;" + WAIT, OTEL_SERVICE_NAME="shop", OTHER="secret")
    yield made
    made.communicate()


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of our own with one process, 7."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_text("7 (a) b) (c) S 1 " + " ".join(str(n) for n in range(5, 53)))
    (tmp_path / "7" / "exe").symlink_to("/usr/bin/tool (deleted)")
    return tmp_path


def test_identity(python: subprocess.Popen[str]) -> None:
    info = processes.process_info(python.pid)
    assert info is not None
    assert info.pid == python.pid
    assert info.exe == str(Path(f"/proc/{python.pid}/exe").readlink())
    assert info.service == "shop"
    assert info.started == processes.started(python.pid)
    assert info.started > 0


def test_a_process_that_is_gone() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert processes.process_info(gone.pid) is None
    assert processes.started(gone.pid) is None
    assert processes.executable(gone.pid) == ""
    assert processes.libraries(gone.pid) == []
    assert processes.footprint(gone.pid) == b""
    assert processes.control_group(gone.pid) == ""


def test_a_zombie_is_gone() -> None:
    dying = subprocess.Popen(["true"], stdout=subprocess.PIPE)
    assert dying.stdout is not None
    assert dying.stdout.read() == b""  # it has exited, or is about to; nobody has waited for it
    os.waitid(os.P_PID, dying.pid, os.WEXITED | os.WNOWAIT)
    assert processes.started(dying.pid) is None
    dying.wait()
    dying.stdout.close()


def test_descendants() -> None:
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {WAIT!r}]).wait()"
    outer = child(sys.executable, "-c", script)
    found = processes.with_descendants([outer.pid])
    assert found[0] == outer.pid
    assert len(found) == 2
    assert processes.with_descendants([found[1], outer.pid, found[1]]) == [found[1], outer.pid]
    outer.communicate()


def test_the_library_of_a_python(python: subprocess.Popen[str]) -> None:
    (library,) = processes.libraries(python.pid)
    assert "/libssl" in library.path
    assert not library.deleted
    assert Path(f"/proc/{python.pid}/map_files/{library.window}").is_symlink()
    assert processes.footprint(python.pid).isdigit()


def test_names_in_stat_may_hold_anything(tree: Path) -> None:
    assert processes.started(7) == 22
    assert processes.children() == {1: [7]}
    assert processes.executable(7) == "/usr/bin/tool"
    assert tree.exists()


IDENTIFIER = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("groups", "service"),
    [
        ("0::/system.slice/nginx.service\n", "nginx"),
        ("0::/\n1:name=systemd:/system.slice/nginx.service\n", "nginx"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service\n", "mail"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run.scope\n", "tool"),
        (f"0::/system.slice/docker-{IDENTIFIER}.scope\n", IDENTIFIER[:12]),
        (f"0::/docker/{IDENTIFIER}\n", IDENTIFIER[:12]),
        (f"0::/system.slice/containerd.service/kubepods-pod1:cri-containerd:{IDENTIFIER}\n", IDENTIFIER[:12]),
        ("4:cpu,cpuacct:/a.service\n", "tool"),
        ("", "tool"),
    ],
)
def test_service_names(tree: Path, groups: str, service: str) -> None:
    (tree / "7" / "cgroup").write_text(groups)
    (tree / "7" / "environ").write_bytes(b"A=OTEL_SERVICE_NAME=no\0OTEL_SERVICE_NAME=\0")
    info = processes.process_info(7)
    assert info is not None
    assert info.service == service


def test_mappings(tree: Path) -> None:
    (tree / "7" / "maps").write_text(
        "00400000-00401000 r-xp 00000000 fe:00 11                         /usr/bin/tool\n"
        "7f0000000000-7f0000001000 r--p 00000000 fe:00 12                 /usr/lib/libssl.so.3\n"
        "0040a000-0040b000 r-xp 00001000 fe:00 12                         /usr/lib/libssl.so.3\n"
        "7f0000001000-7f0000002000 r-xp 00001000 fe:00 12                 /usr/lib/libssl.so.3\n"
        "7f0000003000-7f0000004000 r-xp 00001000 fe:01 12                 /opt/my libs/libssl-1d6df745.so.1.1.1k (deleted)\n"
        "7f0000005000-7f0000006000 r-xp 00001000 fe:01 13                 /opt/libsslx.so\n"
        "7f0000007000-7f0000008000 rwxp 00000000 00:00 0 \n",
    )
    assert processes.libraries(7) == [
        processes.Mapping("fe:00", 12, "40a000-40b000", "/usr/lib/libssl.so.3", deleted=False),
        processes.Mapping("fe:01", 12, "7f0000003000-7f0000004000", "/opt/my libs/libssl-1d6df745.so.1.1.1k", deleted=True),
    ]
