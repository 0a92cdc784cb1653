"""Fixtures of the live suite. It needs root and a kernel it may hook; without them it fails, it never skips."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live.facts import TOLD
from tests.live.fleet import PATIENCE, Fleet, wait_until
from tests.live.kernel import leaked, loaded
from tests.live.plans import SHORT

TOOLS = ("bpftool", "curl", "nginx", "openssl", "wrk")
# Not run again in the short form: what the kernel has no part in, and what needs a load that an emulated machine cannot carry.
KERNEL_HAS_NO_PART = {"test_command.py", "test_private.py", "test_receivers.py"}
NEEDS_LOAD = {"test_joined_in_the_middle", "test_attach_and_detach_under_load"}
FILE_BYTES = (1 if SHORT else 5) * 1024 * 1024


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [
        item
        for item in items
        if SHORT and (item.path.name in KERNEL_HAS_NO_PART or getattr(item, "originalname", "") in NEEDS_LOAD)
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
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
    """What /file/ serves: 5 MiB (1 in the short form) that do not compress."""
    path = tmp_path / "big.bin"
    path.write_bytes(os.urandom(FILE_BYTES))
    return path


@pytest.fixture
def kernel_state() -> Iterator[None]:
    """Fails the test if it leaves a program or a link in the kernel."""
    before = loaded()
    yield
    wait_until(lambda: not leaked(before), 10, "our programs and links are gone from the kernel")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("live figures")
        for line in TOLD:
            terminalreporter.line(line)
