"""What /proc tells of processes: identity, descent, control group, memory mappings.

Every function answers None or nothing for a process that is gone; that is the usual case, not an error.
Source: proc(5), cgroups(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from meshscope.capture import ProcessInfo

PROC: Final = Path("/proc")
_SERVICE_NAME: Final = b"OTEL_SERVICE_NAME="
_NAME_MAX: Final = 255  # characters; it becomes a label of every series
_CONTAINER: Final = re.compile(r"(?:^|[-:])([0-9a-f]{64})(?:\.scope)?$")
_LOGIN_UNIT: Final = re.compile(r"^user(?:@\d+)?\.service$")
_LIBRARY: Final = re.compile(r"/libssl[.-][^/]*$")
_DELETED: Final = " (deleted)"


class Mapping(NamedTuple):
    """A file that a process has mapped executable.

    device, inode: as the kernel's mapping shows them; they name the file together.
    window:        address range in the form of an entry of /proc/PID/map_files.
    path:          as the process sees it.
    deleted:       unlinked or replaced on disk since.
    """

    device: str
    inode: int
    window: str
    path: str
    deleted: bool


def pids() -> Iterator[int]:
    """Every process of this PID namespace, in no order."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _read(pid: int, name: str) -> bytes:
    """A file of a process; nothing when the process is gone or may not be looked at.

    By bare calls, because every watched process is read of twice a second: half the cost of Path.read_bytes.
    """
    try:
        file = os.open(f"{PROC}/{pid}/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return b"".join(iter(lambda: os.read(file, 1 << 16), b""))
    except OSError:
        return b""
    finally:
        os.close(file)


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the third on: the second, in parentheses, may hold anything."""
    return _read(pid, "stat").rpartition(b")")[2].split()


def started(pid: int) -> int | None:
    """Start time in clock ticks since boot: with the pid it names a process for good. None: gone, or a zombie.

    A first thread that ended is a zombie, too, but the process lives on in the others.
    """
    fields = _stat(pid)
    if len(fields) < 20 or (fields[0] in {b"Z", b"X"} and int(fields[17]) <= 1):
        return None
    return int(fields[19])


def children() -> dict[int, list[int]]:
    """Parent -> its processes, of the whole node."""
    families: dict[int, list[int]] = {}
    for pid in pids():
        fields = _stat(pid)
        if len(fields) > 1:
            families.setdefault(int(fields[1]), []).append(pid)
    return families


def with_descendants(roots: list[int]) -> list[int]:
    """The roots, their processes, the processes of these and so on, each once."""
    families = children()
    found = list(dict.fromkeys(roots))
    seen = set(found)
    for pid in found:  # grows as it is walked
        for child in families.get(pid, ()):
            if child not in seen:
                seen.add(child)
                found.append(child)
    return found


def executable(pid: int) -> str:
    """Path of the executable as the process sees it, empty for a kernel thread or when gone."""
    try:
        return str((PROC / str(pid) / "exe").readlink()).removesuffix(_DELETED)
    except OSError:
        return ""


def control_group(pid: int) -> str:
    """Path in the cgroup v2 hierarchy, else in systemd's own; empty when there is neither."""
    systemd = ""
    for line in _read(pid, "cgroup").decode("utf-8", "replace").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers and path != "/":
            return path
        if controllers == "name=systemd":
            systemd = path
    return systemd


def _service(pid: int, exe: str) -> str:
    """Service name: the process's own OTEL_SERVICE_NAME, else unit, else container, else executable."""
    for variable in _read(pid, "environ").split(b"\0"):
        if variable.startswith(_SERVICE_NAME) and len(variable) > len(_SERVICE_NAME):
            return variable[len(_SERVICE_NAME) :].decode("utf-8", "replace")[:_NAME_MAX]
    for part in reversed(control_group(pid).split("/")):
        if part.endswith(".service") and not _LOGIN_UNIT.match(part):
            return part.removesuffix(".service")
        container = _CONTAINER.search(part)
        if container:
            return container.group(1)[:12]
    return exe.rpartition("/")[2] or _read(pid, "comm").decode("utf-8", "replace").strip()


def process_info(pid: int) -> ProcessInfo | None:
    """Who a process is, now. None when it is gone."""
    start = started(pid)
    if start is None:
        return None
    exe = executable(pid)
    return ProcessInfo(pid, start, exe, _service(pid, exe))


def footprint(pid: int) -> bytes:
    """Size of the address space in pages, as text: changes with almost every mapping and is cheap to read."""
    return _read(pid, "statm").partition(b" ")[0]


def libraries(pid: int) -> list[Mapping]:
    """The TLS libraries a process has mapped, each file once."""
    found: dict[tuple[str, int], Mapping] = {}
    data = _read(pid, "maps")
    if b"libssl" not in data:
        return []
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        fields = line.split(None, 5)
        if len(fields) < 6 or "x" not in fields[1]:
            continue
        path = fields[5].removesuffix(_DELETED)
        if _LIBRARY.search(path):
            deleted = fields[5].endswith(_DELETED)
            mapping = Mapping(fields[3], int(fields[4]), _window(fields[0]), path, deleted)
            found.setdefault((mapping.device, mapping.inode), mapping)
    return list(found.values())


def _window(addresses: str) -> str:
    """The listing pads addresses to eight digits, map_files does not."""
    low, _, high = addresses.partition("-")
    return f"{int(low, 16):x}-{int(high, 16):x}"
