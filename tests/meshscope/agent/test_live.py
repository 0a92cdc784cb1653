from __future__ import annotations

import dataclasses

import pytest

from meshscope.agent.live import Live
from meshscope.agent.loop import Stop
from meshscope.capture.targets import ProcessEvent, Readiness
from meshscope.config import Config, load
from meshscope.stats import Stats

SECOND = 1_000_000_000
EVENT: ProcessEvent = (2, 7, 1, b"x", 0, 5)


@dataclasses.dataclass
class World:
    """Kernel, targets and agent in one: what Live asked of them."""

    rung: str = "tp_btf"
    traps: dict[int, int] = dataclasses.field(default_factory=dict)
    readiness: Readiness | None = None
    done: list[object] = dataclasses.field(default_factory=list)
    given_up: tuple[bool, bool] = (False, False)

    def selected(self) -> dict[int, int]:
        return dict(self.traps)

    def stop(self) -> None:
        self.done.append("stop")

    def on_process(self, event: ProcessEvent) -> None:
        self.done.append(event)

    def ready(self) -> Readiness | None:
        return self.readiness

    def shed_tls(self, tgid: int) -> None:
        self.done.append(("shed", tgid))

    def restore_tls(self, tgid: int) -> None:
        self.done.append(("restore", tgid))

    def take_counters(self) -> bool:
        self.done.append("counters")
        return True

    def measure_active(self) -> None:
        self.done.append("active")

    def shed(self, *, spans: bool, headers: bool) -> None:
        self.given_up = (spans, headers)


def made(world: World, stop: Stop, config: Config | None = None) -> Live:
    return Live(world, world, world, config or Config(), Stats(), stop)


def test_ready_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    world, stop = World(), Stop()
    live = made(world, stop)
    live.attend(1, [])
    assert capsys.readouterr().err == ""
    world.readiness = Readiness(2, 10)
    live.attend(2, [])
    live.attend(3, [])
    assert capsys.readouterr().err == "meshscope: ready processes=2 probes=10 rung=tp_btf loader=libbpf\n"


def test_process_events_are_passed_on_and_the_rest_waits_for_its_second() -> None:
    world = World()
    live = made(world, Stop())
    live.attend(SECOND, [EVENT])
    live.attend(SECOND + 1, [EVENT])
    live.attend(2 * SECOND, [])
    assert world.done == [EVENT, "counters", "active", EVENT, "counters", "active"]


def test_the_end_comes_once_targets_first() -> None:
    targets, kernel, agent, stop = World(), World(), World(), Stop()
    order: list[str] = []
    targets.stop = lambda: order.append("targets")  # type: ignore[method-assign]
    kernel.stop = lambda: order.append("kernel")  # type: ignore[method-assign]
    live = Live(agent, kernel, targets, Config(), Stats(), stop)
    live.attend(1, [])
    assert order == []
    stop()
    live.attend(2, [])
    live.attend(3, [])
    assert order == ["targets", "kernel"]


def test_duration_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic_ns", lambda: 10 * SECOND)
    world = World()
    live = made(world, Stop(), load(None, {}, {"duration": "2"}))
    live.attend(12 * SECOND - 1, [])
    assert "stop" not in world.done
    live.attend(12 * SECOND, [])
    assert world.done[-2:] == ["stop", "stop"]


def test_over_budget_things_are_given_up_and_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    used = 0.0
    monkeypatch.setattr("time.process_time", lambda: used)
    world = World()
    live = made(world, Stop(), load(None, {}, {"budget.cpu": "0.5", "budget.memory": "0"}))
    for second in range(1, 9):
        live.attend(second * SECOND, [])
        used += 1.0
    assert world.given_up == (True, True)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("meshscope: over budget (CPU 1.00 of 0.5 cores): giving up spans")
    assert said[1].startswith("meshscope: over budget (CPU 1.00 of 0.5 cores): giving up headers")


def test_a_process_that_hits_too_many_probes_loses_them_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    world = World(traps={7: 0})
    live = made(world, Stop(), load(None, {}, {"budget.traps_per_second": "100", "budget.memory": "0", "budget.cpu": "0"}))
    for second in range(1, 40):
        live.attend(second * SECOND, [])
        if ("shed", 7) not in world.done:
            world.traps[7] += 1000
    assert [one for one in world.done if isinstance(one, tuple)] == [("shed", 7), ("restore", 7)]
    assert "process 7 " in capsys.readouterr().err
