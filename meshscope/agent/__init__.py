"""The composition root: the only module where capture and sinks meet.

Everything is built first, and may fail with one line; then one loop runs in one thread::

    source ── batch ── flow ── stages ── sinks      verdicts back to the source, process events to targets

This module builds; ``loop`` is the loop, ``live`` what a live run does beside it, ``outputs`` the sinks, ``voice`` what the
user is told. Whatever is slow (network, /proc, ELF files) has a thread of its own behind a bounded queue; the loop never
waits for it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from contextlib import ExitStack, closing
from typing import Final

import parsers
from meshscope.agent.live import Live
from meshscope.agent.loop import FAILED, Agent, Stop
from meshscope.agent.outputs import Outputs
from meshscope.agent.voice import AgentError, log_to_stderr, say
from meshscope.capture import CaptureError, CaptureSettings, Source, trial
from meshscope.capture.bpf import BpfSource
from meshscope.capture.record import Recorder, Replay
from meshscope.capture.targets import Selection, Targets
from meshscope.config import Config
from meshscope.stats import Stats

__all__ = ["AgentError", "protocols", "replay", "run"]

OK: Final = 0
_KEY_BYTES: Final = 16


def run(config: Config) -> int:
    """Watch what is selected until a signal, --duration or a failure. Returns the exit code; raises AgentError."""
    log_to_stderr()
    stats, stop, key = Stats(), Stop(), os.urandom(_KEY_BYTES)
    with ExitStack() as held:
        for number in (signal.SIGINT, signal.SIGTERM):
            held.callback(signal.signal, number, signal.signal(number, stop.on_signal))
        outputs = held.enter_context(closing(Outputs(config, stats, stop)))
        os.nice(config.capture.nice)
        obstacle = trial.obstacle()
        if obstacle:
            raise AgentError(obstacle)
        try:
            kernel = held.enter_context(closing(BpfSource(_capture_settings(config))))
            targets = Targets(kernel, Selection(*dataclasses.astuple(config.select)), stats)
            source: Source = kernel
            recorder: Recorder | None = None
            if config.outputs.record_raw:
                source = recorder = Recorder(kernel, config.outputs.record_raw, key, kernel.rung)
                say(f"{config.outputs.record_raw}: recording all that is captured, NOT redacted, for the owner's eyes only")
            held.callback(targets.stop)
            targets.start()
        except CaptureError as error:
            locked = trial.lockdown().replace("none", "")
            raise AgentError(f"{error}; kernel lockdown is {locked}" if locked else str(error)) from error
        agent = Agent(config, source, key, outputs, stats, stop)
        fault = _play(agent, Live(agent, kernel, targets, config, stats, stop))
        targets.stop()  # its thread uses what is closed next
        source.close()
        return FAILED if recorder is not None and recorder.fault else _end(fault)


def replay(config: Config, path: str) -> int:
    """Play a recording through the same flow, stages and sinks. Returns the exit code; raises AgentError."""
    log_to_stderr()
    stats, stop = Stats(), Stop()
    with ExitStack() as held:
        try:
            source = held.enter_context(closing(Replay(path)))
        except CaptureError as error:
            raise AgentError(str(error)) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            held.callback(signal.signal, number, signal.signal(number, stop.on_signal))
        outputs = held.enter_context(closing(Outputs(config, stats, stop)))
        return _end(_play(Agent(config, source, source.key, outputs, stats, stop), None))


def protocols() -> list[str]:
    """Names of the protocols that are understood."""
    return [protocol.NAME for protocol in parsers.protocols()[0]]


def _play(agent: Agent, live: Live | None) -> str:
    """Loop and finish; returns why the input ended early, empty if it did not."""
    fault = ""
    try:
        agent.loop(live)
    except CaptureError as error:
        fault = str(error)
    agent.finish()
    return fault


def _end(fault: str) -> int:
    if fault:
        say(fault)
    return FAILED if fault else OK


def _capture_settings(config: Config) -> CaptureSettings:
    capture, select = config.capture, config.select
    return CaptureSettings(
        ring_bytes=capture.ring_bytes,
        rings=capture.rings,
        poll_ms=max(1, round(capture.poll * 1000)),
        rung=capture.rung,
        watch_all=select.all,
        follow_exec=bool(select.exes),
    )
