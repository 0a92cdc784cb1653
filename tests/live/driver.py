"""The client process of a test, waiting for `go`; started before the agent so that its libssl is known when the load begins."""

from __future__ import annotations

import json
from typing import Any

from tests.live.fleet import PATIENCE, Fleet, wait_until


class Driver:
    """clients.py with a plan; an empty plan only holds the private libssl that wrk and curl will use."""

    def __init__(
        self, fleet: Fleet, plan: list[dict[str, Any]], name: str = "clients", env: dict[str, str] | None = None
    ) -> None:
        self.fleet = fleet
        self.plan = plan
        self.results = fleet.folder / f"{name}.results"
        self.asks = {ask["id"]: ask for job in plan for ask in job["asks"]}
        path = fleet.folder / f"{name}.plan"
        path.write_text(json.dumps(plan), encoding="utf-8")
        self.process = fleet.python("clients.py", path, self.results, name=name, env=env, private=True)
        self.out = fleet.folder / f"{name}.out"
        wait_until(lambda: "waiting" in self.out.read_text(), 20, "the clients wait")

    def begin(self) -> None:
        """Let them start."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()

    def go(self, seconds: float = 120) -> list[dict[str, Any]]:
        """Carry out the plan; what the clients wrote down."""
        self.begin()
        self.process.wait(seconds * PATIENCE)
        assert self.process.returncode == 0, self.out.read_text()
        self.fleet.forget(self.process)
        return [json.loads(line) for line in self.results.read_text(encoding="utf-8").splitlines()]
