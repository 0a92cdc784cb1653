"""The agent as an operator starts it: a subprocess, its output read from files, stopped by a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.live.fleet import PATIENCE, Fleet, wait_until

ROOT = Path(__file__).resolve().parents[2]


class Agent:
    """`meshscope run ARGUMENTS`, outside the fleet's cgroup, ready when the constructor returns.

    exchanges: what it printed, after `stop`.
    """

    def __init__(
        self,
        fleet: Fleet,
        arguments: Sequence[str | Path],
        name: str = "agent",
        env: dict[str, str] | None = None,
        output: str = "json",
    ) -> None:
        self.stdout = fleet.folder / f"{name}.json"
        self.stderr = fleet.folder / f"{name}.err"
        command = [sys.executable, "-m", "meshscope", "run", "--output", output, *map(str, arguments)]
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                command,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                start_new_session=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
            )
        fleet.agents.append(self.process)
        try:
            wait_until(lambda: self.ready_line() or self.process.poll() is not None, 30, "the agent is ready")
        except AssertionError as late:
            self.kill()
            raise AssertionError(f"{late}\n{self.said()}") from None
        assert self.process.poll() is None, f"the agent ended with {self.process.returncode}:\n{self.said()}"
        self.exchanges: list[dict[str, Any]] = []

    def said(self) -> str:
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def ready_line(self) -> str:
        return next((line for line in self.said().splitlines() if line.startswith("meshscope: ready")), "")

    def stop(self, how: int = signal.SIGINT) -> list[dict[str, Any]]:
        """End it in order; the exchanges it printed."""
        self.end(how)
        self.exchanges = [json.loads(line) for line in self.stdout.read_text(encoding="utf-8").splitlines()]
        return self.exchanges

    def end(self, how: int = signal.SIGINT) -> None:
        """End it in order."""
        self.process.send_signal(how)
        try:
            code = self.process.wait(20 * PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the agent did not end:\n{self.said()}") from None
        assert code == 0, f"the agent ended with {code}:\n{self.said()}"
        assert "Traceback" not in self.said(), self.said()
        assert "does not add up" not in self.said(), self.said()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def summary(self) -> str:
        """The line it prints at the end."""
        return self.said().splitlines()[-1]

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
