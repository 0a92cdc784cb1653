"""Fixtures of the live suite. It needs root and a kernel it may hook; without them it fails, it never skips."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live.fleet import PATIENCE, Fleet, wait_until

TOOLS = ("bpftool", "curl", "nginx", "openssl", "wrk")
FILE_BYTES = 5 * 1024 * 1024


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.live)
            item.add_marker(pytest.mark.timeout(300 * PATIENCE))


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    """Say at once what is missing, instead of in every test."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if os.geteuid() != 0:
        pytest.exit("tests/live needs root: it loads eBPF programs and makes cgroups", returncode=1)
    if missing:
        pytest.exit(f"tests/live needs {', '.join(missing)}: run `make venv`", returncode=1)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    made = Fleet(tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def big_file(tmp_path: Path) -> Path:
    """What /file/ serves: 5 MiB that do not compress."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(FILE_BYTES))
    return path


class Driver:
    """The client process, waiting for `go`; started before the agent so that its libssl is known when the load begins."""

    def __init__(self, fleet: Fleet, plan: list[dict[str, Any]]) -> None:
        self.fleet = fleet
        self.results = fleet.folder / "results.json"
        self.asks = {ask["id"]: ask for job in plan for ask in job["asks"]}
        path = fleet.folder / "plan.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        self.process = fleet.python("clients.py", path, self.results, name="clients", private=True)
        self.out = fleet.folder / "clients.out"
        wait_until(lambda: "waiting" in self.out.read_text(), 20, "the clients wait")

    def go(self, seconds: float = 120) -> list[dict[str, Any]]:
        """Carry out the plan; what the clients wrote down."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        self.process.wait(seconds * PATIENCE)
        assert self.process.returncode == 0, self.out.read_text()
        self.fleet.processes.remove(self.process)
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def kernel_state() -> Iterator[None]:
    """Fails the test if it leaves a program or a link in the kernel."""
    before = loaded()
    yield
    wait_until(lambda: loaded() <= before, 10, f"our programs and links are gone from the kernel: {loaded() - before}")


def loaded() -> set[tuple[str, int]]:
    """Programs and links in the kernel whose program is ours (by the pids that hold them there is no telling after a kill)."""
    out = set()
    for kind in ("prog", "link"):
        listed = json.loads(subprocess.run(["bpftool", "-j", kind, "list"], capture_output=True, check=True).stdout or b"[]")
        out |= {(kind, entry["id"]) for entry in listed}
    return out
