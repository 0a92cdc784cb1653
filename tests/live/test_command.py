"""What `meshscope run` says when the world is not as it was told: one line, the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.live.agent import Agent
from tests.live.fleet import Fleet, wait_until

ROOT = Path(__file__).resolve().parents[2]
DROPPED = "-bpf,-perfmon,-sys_admin"


def line(*arguments: str, prefix: tuple[str, ...] = ()) -> str:
    """The one line that a failing run says."""
    command = [*prefix, sys.executable, "-m", "meshscope", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr.removeprefix("meshscope: ").rstrip("\n")


def test_no_such_process() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert line("run", "--pid", str(process.pid)) == f"no process {process.pid}"


def test_no_such_control_group() -> None:
    assert line("run", "--cgroup", "/no/such/group").startswith("no control group /no/such/group; ")


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_the_missing_capability_is_named(command: str) -> None:
    prefix = ("setpriv", "--bounding-set", DROPPED)
    if command == "run":
        said = line("run", "--pid", "1", prefix=prefix)
        assert said.startswith("missing CAP_BPF and CAP_PERFMON; start it with them: ")
        assert "root" not in said
        return
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "meshscope", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "missing        CAP_BPF, CAP_PERFMON" in done.stdout
    assert "needs CAP_BPF and CAP_PERFMON, EPERM" in done.stdout


def test_a_raw_recording_overwrites_nothing(fleet: Fleet) -> None:
    file = fleet.folder / "raw"
    file.write_text("mine")
    said = line("run", "--cgroup", str(fleet.cgroup), "--record-raw", str(file), "--output", "none")
    assert said == f"{file}: exists; a raw recording overwrites nothing: remove it or name another file"
    assert file.read_text() == "mine"


def test_a_glob_waits_for_its_process(fleet: Fleet) -> None:
    name = f"meshscope-test-{os.getpid()}"
    agent = Agent(fleet, ["--exe", name])
    assert f"meshscope: no process matches {name} yet; waiting for one" in agent.said().splitlines()
    assert "processes=0" in agent.ready_line()
    assert agent.stop() == []


def test_duration_and_none(fleet: Fleet) -> None:
    agent = Agent(fleet, ["--cgroup", fleet.cgroup, "--duration", "300ms"], output="none")
    assert agent.process.wait(30) == 0
    assert agent.stdout.read_bytes() == b""
    assert agent.summary().startswith("meshscope: 0 exchanges, ")


def test_a_second_signal_leaves_at_once(fleet: Fleet) -> None:
    """Both wait when it wakes, so that the second finds it ending."""
    agent = Agent(fleet, ["--cgroup", fleet.cgroup])
    os.kill(agent.process.pid, signal.SIGSTOP)
    os.kill(agent.process.pid, signal.SIGINT)
    os.kill(agent.process.pid, signal.SIGTERM)
    os.kill(agent.process.pid, signal.SIGCONT)
    wait_until(lambda: agent.process.poll() is not None, 10, "the agent is gone")
    assert agent.process.returncode == 1
