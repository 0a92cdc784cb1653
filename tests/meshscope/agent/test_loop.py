from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence

import pytest

from meshscope.agent.loop import Agent, Attendant, Stop
from meshscope.agent.outputs import Outputs
from meshscope.capture import CaptureError, ProcessInfo, abi
from meshscope.config import load
from meshscope.flow import ProcessEvent
from meshscope.stats import Stats
from tests.meshscope.records import Tape

REQUEST = b"POST /upload HTTP/1.1\r\nHost: shop\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 100


class Fake:
    """A live source: batches, then what was told to it. Also attends."""

    def __init__(self, batches: Sequence[bytes], fault: str = "") -> None:
        self.wall_offset_ns = 1000
        self.processes = {100: ProcessInfo(100, 1, "/bin/shop", "shop")}
        self.applied: list[tuple[int, int, int, int]] = []
        self.attended: list[Sequence[ProcessEvent]] = []
        self._batches = batches
        self._fault = fault

    def batches(self) -> Iterator[bytes]:
        yield from self._batches
        if self._fault:
            raise CaptureError(self._fault)

    def apply(self, verdicts: Sequence[tuple[int, int, int, int]]) -> None:
        self.applied += verdicts

    def bind(self, tls: int, tgid: int, ssl: int, randoms: Sequence[bytes]) -> bytes | None:
        raise AssertionError((tls, tgid, ssl, randoms))

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None: ...

    def attend(self, now: int, events: Sequence[ProcessEvent]) -> None:
        assert now > 0
        self.attended.append(events)


def played(source: Fake, live: Attendant | None) -> tuple[Agent, Stats, Outputs]:
    stats, stop = Stats(), Stop()
    config = load(None, {}, {"outputs.console": "none"})
    outputs = Outputs(config, stats, stop)
    agent = Agent(config, source, bytes(16), outputs, stats, stop)
    agent.loop(live)
    return agent, stats, outputs


def test_verdicts_and_process_events_go_their_ways() -> None:
    tape = Tape().open(1).data(1, abi.RX, REQUEST)
    process = abi.PROCESS_PART.pack(1, abi.PROCESS_EXEC, b"shop", 5)
    tape._put(abi.PROCESS, 0, 0, 0, 0, 0, process)
    source = Fake([tape.batch(), b""])
    agent, stats, _ = played(source, source)
    (verdict,) = source.applied
    assert verdict[0] == 1
    assert verdict[2] > 4_000_000, "the rest of a counted body need not be copied"
    assert [len(events) for events in source.attended] == [1, 0]
    assert source.attended[0][0][:4] == (abi.PROCESS_EXEC, 100, 1, b"shop")
    assert stats.n["batches"] == 1
    agent.finish()


def test_requests_under_way_are_a_gauge_by_service() -> None:
    source = Fake([Tape().open(1).data(1, abi.RX, REQUEST).batch()])
    agent, _, outputs = played(source, source)
    agent.measure_active()
    assert [(active.role, active.workload.name, n) for active, n in outputs.golden.active.items()] == [("server", "shop", 1)]
    agent.finish()


def test_a_source_that_fails_is_told_after_what_it_gave() -> None:
    source = Fake([Tape().open(1).data(1, abi.RX, REQUEST).batch()], fault="the kernel is gone")
    stats, stop = Stats(), Stop()
    config = load(None, {}, {"outputs.console": "none"})
    agent = Agent(config, source, bytes(16), Outputs(config, stats, stop), stats, stop)
    with pytest.raises(CaptureError, match="the kernel is gone"):
        agent.loop(None)
    agent.finish()
    assert stats.n["exchanges"] == 1


def test_the_second_signal_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    stop = Stop()
    stop.on_signal(signal.SIGINT, None)
    assert (stop.asked, codes) == (True, [])
    stop.on_signal(signal.SIGTERM, None)
    assert codes == [1]
