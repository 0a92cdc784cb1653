"""Opening the very file a process has mapped, and refusing what is not safe or not what it was."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope.capture import libraries, processes
from meshscope.capture.libraries import Libraries, Refused, forbids_return_probes, return_probes_may_kill
from meshscope.capture.placement import place

# Maps the file it is given executable, says so, and waits; the file need not be a library that can be linked.
HOLDER = """
import mmap, sys
with open(sys.argv[1], "rb") as f:
    kept = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_EXEC, flags=mmap.MAP_PRIVATE)
print("ready", flush=True)
sys.stdin.read()
"""


def hold(path: Path) -> subprocess.Popen[str]:
    import sys

    made = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert made.stdout is not None
    assert made.stdout.readline() == "ready\n"
    return made


def system_library() -> Path:
    listing = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return Path(next(line.split(" => ")[1] for line in listing.splitlines() if "libssl.so.3 " in line))


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copy(system_library(), tmp_path / "libssl.so.3"))


@pytest.fixture
def holder(copied: Path) -> Iterator[subprocess.Popen[str]]:
    made = hold(copied)
    yield made
    made.communicate()


def mapping_of(pid: int) -> processes.Mapping:
    (mapping,) = processes.libraries(pid)
    return mapping


def test_the_file_behind_the_mapping(holder: subprocess.Popen[str], copied: Path) -> None:
    opened = Libraries().open(holder.pid, mapping_of(holder.pid))
    with copied.open("rb") as stream:
        assert opened.library == place(stream)
    assert Path(opened.path).stat().st_ino == copied.stat().st_ino
    os.close(opened.descriptor)


def test_a_replaced_file_is_still_the_mapped_one_or_refused(holder: subprocess.Popen[str], copied: Path) -> None:
    """With the rights to follow a mapping the deleted file is reached; without, it is refused, never mistaken."""
    inode = copied.stat().st_ino
    copied.unlink()
    copied.write_bytes(b"another file")
    mapping = mapping_of(holder.pid)
    assert mapping.deleted
    reason = ""
    try:
        opened = Libraries().open(holder.pid, mapping)
    except Refused as refused:
        reason = refused.counter
    else:
        assert os.fstat(opened.descriptor).st_ino == inode
        os.close(opened.descriptor)
    assert reason in {"", "tls_refused_gone"}


def test_without_the_right_to_follow_mappings(
    holder: subprocess.Popen[str], copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path as the process sees it serves, if it still is the same file."""
    proc = tmp_path / "proc" / str(holder.pid)
    proc.mkdir(parents=True)
    (proc / "root").symlink_to("/")
    mapping = mapping_of(holder.pid)
    monkeypatch.setattr(libraries, "PROC", tmp_path / "proc")
    opened = Libraries().open(holder.pid, mapping)
    assert os.fstat(opened.descriptor).st_ino == copied.stat().st_ino
    os.close(opened.descriptor)
    for wrong in (mapping._replace(inode=1), mapping._replace(device="ff:ff"), mapping._replace(deleted=True)):
        with pytest.raises(Refused, match="deleted or replaced") as refused:
            Libraries().open(holder.pid, wrong)
        assert refused.value.counter == "tls_refused_gone"
    copied.unlink()
    os.mkfifo(copied)  # whose opening would wait for a writer
    with pytest.raises(Refused, match="deleted or replaced"):
        Libraries().open(holder.pid, mapping)


def test_code_that_changed_in_place_is_refused(holder: subprocess.Popen[str], copied: Path) -> None:
    known = Libraries()
    opened = known.open(holder.pid, mapping_of(holder.pid))
    os.close(opened.descriptor)
    before = copied.stat()
    with copied.open("r+b") as stream:
        stream.seek(opened.library.placements[0].offset)
        stream.write(b"\xcc")
    os.utime(copied, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had happened
    with pytest.raises(Refused) as refused:
        known.open(holder.pid, mapping_of(holder.pid))
    assert refused.value.counter == "tls_refused_changed"


def test_a_file_of_another_kind_is_refused_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so.9"
    path.write_bytes(b"no library" * 1000)
    made = hold(path)
    with pytest.raises(Refused, match="not an ELF file") as refused:
        Libraries().open(made.pid, mapping_of(made.pid))
    assert refused.value.counter == "tls_refused_shape"
    made.communicate()


def test_a_file_made_to_be_read_for_ever_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libssl.so.9"
    path.touch()
    os.truncate(path, 300 << 20)
    made = hold(path)
    with pytest.raises(Refused, match="300 MiB are too many"):
        Libraries().open(made.pid, mapping_of(made.pid))
    made.communicate()


@pytest.mark.parametrize(
    ("release", "status", "killed"),
    [
        ("6.1.0-13-amd64", "Seccomp:\t2\n", False),
        ("6.11.0-9-generic", "Seccomp:\t2\n", True),
        ("6.11.0-9-generic", "Seccomp:\t0\n", False),
        ("6.12.5", "Seccomp:\t2\n", True),
        ("6.12.48+deb13-amd64", "Seccomp:\t2\n", False),
        ("6.13.2", "Seccomp:\t2\n", True),
        ("6.14.0", "Seccomp:\t2\n", False),
        ("6.18.44", "Seccomp:\t2\nx86_Thread_features:\tshstk \n", False),
        ("6.8.0-45-generic", "Seccomp:\t0\nx86_Thread_features:\tshstk wrss \n", True),
        ("6.8.0-45-generic", "Seccomp:\t0\nx86_Thread_features:\t\n", False),
        ("strange", "Seccomp:\t2\n", False),
    ],
)
def test_where_a_return_probe_would_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str, status: str, killed: bool
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tx\n" + status)
    monkeypatch.setattr(libraries, "PROC", tmp_path)
    assert bool(forbids_return_probes(7, release)) is killed
    assert return_probes_may_kill(release) or not killed
    assert forbids_return_probes(8, release) == ""
