"""TLS libraries as processes have them mapped: opened exactly, placed, and checked again before every attachment.

A path says little: the file may have been replaced since, or lie in another mount namespace. The mapping itself is
opened, by /proc/PID/map_files, and what is probed is the file behind that descriptor.
"""

from __future__ import annotations

import os
import re
import stat
from contextlib import suppress
from typing import Final, NamedTuple

from meshscope.capture.elf import BadElf
from meshscope.capture.placement import Library, place
from meshscope.capture.processes import PROC, Mapping

# The first kernels with a system call for return probes, which a seccomp filter did not know and killed for; and
# those on which it is exempt (Linux commit cf6cb56ef244, 6.14 and stable branches).
_RETURN_BY_SYSCALL: Final = (6, 11)
_EXEMPT_FROM_SECCOMP: Final = (6, 14)
_EXEMPT_STABLE: Final = {(6, 12): 20, (6, 13): 8}
# Kernels that give processes a shadow stack and do not keep it in step with return probes (until 488af8ea7131).
_SHADOW_STACK, _KEPT_IN_STEP = (6, 6), (6, 11)
_REMEMBERED: Final = 256  # files with TLS code on one node; reading one again costs 20 ms
_LARGEST: Final = 256 << 20  # bytes; a file made to harm could have us read as much as it claims to be
_STATUS_LINE: Final = re.compile(rb"^(Seccomp|x86_Thread_features):\s*(.*)$", re.MULTILINE)


class Refused(Exception):  # noqa: N818 - reads as what it is at every raise
    """A library is not probed. `counter` names the reason among the agent's counters, the text tells it."""

    def __init__(self, counter: str, text: str) -> None:
        super().__init__(text)
        self.counter = counter


class Opened(NamedTuple):
    """A library file held open: close the descriptor when the probes are attached.

    path names the file exactly, whatever has become of its name: it goes through the descriptor.
    """

    descriptor: int
    path: str
    library: Library


class Libraries:
    """Opens mapped libraries; what was read of a file is remembered by device, inode and time of change."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int], Library | str] = {}

    def open(self, pid: int, mapping: Mapping) -> Opened:
        """The file of a mapping, its placements checked against its bytes. Raises Refused."""
        descriptor = _open(pid, mapping)
        try:
            library = self._placements(descriptor, mapping.path)
            _verify(descriptor, library, mapping.path)
        except BaseException:
            os.close(descriptor)
            raise
        return Opened(descriptor, f"/proc/{os.getpid()}/fd/{descriptor}", library)

    def _placements(self, descriptor: int, path: str) -> Library:
        status = os.fstat(descriptor)
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        found = self._known.get(key)
        if status.st_size > _LARGEST:
            found = f"{status.st_size >> 20} MiB are too many for a TLS library"
        elif found is None:
            try:
                with os.fdopen(os.dup(descriptor), "rb") as stream:
                    found = place(stream)
            except BadElf as error:
                found = str(error)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = found
        if isinstance(found, str):
            raise Refused("tls_refused_shape", f"{path}: {found}")
        return found


def _verify(descriptor: int, library: Library, path: str) -> None:
    for placement in library.placements:
        if os.pread(descriptor, len(placement.code), placement.offset) != placement.code:
            raise Refused("tls_refused_changed", f"{path}: its code is not what it was when it was examined")


def _open(pid: int, mapping: Mapping) -> int:
    """By the mapping, else by the process's own view of the path if that is still the same file."""
    with suppress(OSError):
        return os.open(PROC / str(pid) / "map_files" / mapping.window, os.O_RDONLY | os.O_CLOEXEC)
    if not mapping.deleted:
        with suppress(OSError):
            # What stands there now may be anything, and opening a FIFO waits for ever: a mere handle first.
            handle = os.open(f"{PROC}/{pid}/root{mapping.path}", os.O_PATH | os.O_CLOEXEC)
            try:
                status = os.fstat(handle)
                device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
                if (device, status.st_ino) == (mapping.device, mapping.inode) and stat.S_ISREG(status.st_mode):
                    return os.open(f"/proc/self/fd/{handle}", os.O_RDONLY | os.O_CLOEXEC)
            finally:
                os.close(handle)
    raise Refused(
        "tls_refused_gone", f"{mapping.path} of process {pid}: deleted or replaced on disk, and not reachable by its mapping"
    )


def forbids_return_probes(pid: int, release: str) -> str:
    """Why a return probe would kill this process on this kernel, empty when it would not.

    release: as uname(2) tells it. Two known defects: a seccomp filter that does not know the kernel's own system call
    for return probes, and a shadow stack that the kernel did not keep in step.
    """
    if not return_probes_may_kill(release):
        return ""
    version, patch = _version(release)
    try:
        status = (PROC / str(pid) / "status").read_bytes()
    except OSError:
        return ""
    values = dict(_STATUS_LINE.findall(status))
    if values.get(b"Seccomp", b"0") != b"0" and _seccomp_kills(version, patch):
        return f"kernel {release} would kill it: it runs under seccomp, and return probes are a system call there"
    if b"shstk" in values.get(b"x86_Thread_features", b"") and _shadow_stack_kills(version):
        return f"kernel {release} would kill it: it has a shadow stack, which return probes break there"
    return ""


def return_probes_may_kill(release: str) -> bool:
    """On this kernel it depends on the process, so nobody who has not been looked at may meet a return probe."""
    version, patch = _version(release)
    return _shadow_stack_kills(version) or _seccomp_kills(version, patch)


def _seccomp_kills(version: tuple[int, int], patch: int) -> bool:
    return _RETURN_BY_SYSCALL <= version < _EXEMPT_FROM_SECCOMP and patch < _EXEMPT_STABLE.get(version, 1 << 30)


def _shadow_stack_kills(version: tuple[int, int]) -> bool:
    return _SHADOW_STACK <= version < _KEPT_IN_STEP


def _version(release: str) -> tuple[tuple[int, int], int]:
    numbers = [int(number) for number in re.findall(r"\d+", release)[:3]]
    numbers += [0] * (3 - len(numbers))
    return (numbers[0], numbers[1]), numbers[2]
