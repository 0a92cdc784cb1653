"""What is in the kernel, and in other processes' memory, on our account; told from outside the agent."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path


def loaded() -> dict[tuple[str, int], list[int]]:
    """Programs and links in the kernel by (kind, id), each with the processes that hold it (none: a leak)."""
    out = {}
    for kind in ("prog", "link"):
        listed = json.loads(subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, check=True).stdout or b"[]")
        for entry in listed:
            out[kind, entry["id"]] = [holder["pid"] for holder in entry.get("pids", [])]
    return out


def leaked(before: dict[tuple[str, int], list[int]]) -> list[tuple[str, int]]:
    """What came since `before` and is held by no process that lives."""
    now = loaded()
    return [
        key for key, holders in now.items() if key not in before and not any(Path(f"/proc/{pid}").exists() for pid in holders)
    ]


def breakpoints(pid: int, library: str) -> int:
    """Bytes of the library's code that differ in this process from the file: one for each uprobe, put there by the kernel."""
    for line in Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if len(fields) > 5 and library in fields[5] and "x" in fields[1]:
            first, last = (int(part, 16) for part in fields[0].split("-"))
            with Path(f"/proc/{pid}/mem").open("rb") as memory, Path(f"/proc/{pid}/root{fields[5]}").open("rb") as file:
                memory.seek(first)
                file.seek(int(fields[2], 16))
                there, here = memory.read(last - first), file.read(last - first)
            return sum(1 for a, b in zip(there, here, strict=False) if a != b)
    raise AssertionError(f"process {pid} has no {library} mapped")
