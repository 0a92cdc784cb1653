"""Control groups (version 2) as a way to name processes. Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from meshscope.capture import CaptureError

MOUNTS: Final = Path("/proc/self/mounts")


def mount_point() -> Path:
    """Where the version 2 hierarchy is mounted. Raises CaptureError."""
    for line in MOUNTS.read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(place.replace("\\040", " "))
    raise CaptureError("no cgroup v2 hierarchy is mounted, so nothing can be selected by cgroup; mount -t cgroup2 none DIRECTORY")


class ControlGroup:
    """One selected directory. Its id changes when it is removed and made again, as a service's is on a restart."""

    def __init__(self, path: str) -> None:
        """path: a directory, as it is or below the mount point. Raises CaptureError when there is none."""
        root = mount_point()
        self.path = Path(path)
        if not self.path.is_relative_to(root):
            self.path = root / path.lstrip("/")
        if not (self.path / "cgroup.procs").exists():
            raise CaptureError(f"no control group {path}; v2 groups are the directories under {root}")

    def ident(self) -> int | None:
        """The kernel's id: the inode of the directory. None while it does not exist."""
        try:
            return self.path.stat().st_ino
        except OSError:
            return None

    def members(self) -> Iterator[int]:
        """Processes inside, and inside the groups below."""
        for directory, _, _ in os.walk(self.path):
            try:
                listed = Path(directory, "cgroup.procs").read_text(encoding="ascii").split()
            except OSError:  # removed meanwhile, or a threaded group, whose processes its domain lists
                continue
            yield from (pid for pid in map(int, listed) if pid)  # 0: a process outside our PID namespace
