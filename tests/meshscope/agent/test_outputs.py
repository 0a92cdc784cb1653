from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from meshscope.agent.outputs import Outputs
from meshscope.agent.voice import AgentError
from meshscope.config import Config, ConfigError, load
from meshscope.model import Exchange
from meshscope.sinks.console import Console
from meshscope.sinks.golden import Golden
from meshscope.sinks.prometheus import Prometheus
from meshscope.sinks.record import Record
from meshscope.stats import Stats


def config(**outputs: str) -> Config:
    return load(None, {}, {f"outputs.{name}": value for name, value in outputs.items()})


def test_what_is_asked_for_is_there_and_nothing_else(tmp_path: Path) -> None:
    outputs = Outputs(config(console="none"), Stats(), lambda: None)
    assert [type(sink) for sink in outputs.sinks] == [Golden]
    outputs.close()
    everything = config(console="json", record=str(tmp_path / "r"), prometheus="[::1]:0")
    outputs = Outputs(everything, Stats(), lambda: None)
    assert [type(sink) for sink in outputs.sinks] == [Golden, Prometheus, Record, Console]
    outputs.close()
    assert outputs.sinks == []
    outputs.close()


@pytest.mark.parametrize("signal", ["traces", "metrics"])
def test_one_signal_alone(signal: str) -> None:
    settings = load(None, {}, {f"otlp.{signal}_endpoint": "http://127.0.0.1:9/x", "outputs.console": "none"})
    outputs = Outputs(settings, Stats(), lambda: None)
    assert len(outputs.sinks) == 2
    assert (outputs.spans is not None) == (signal == "traces")
    outputs.close()


def test_a_wrong_variable_of_one_signal_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "smoke")
    with pytest.raises(ConfigError, match=r"^OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: "):
        Outputs(load(None, {}, {"otlp.endpoint": "http://127.0.0.1:9"}), Stats(), lambda: None)


def test_what_was_opened_before_an_error_is_closed(tmp_path: Path) -> None:
    before = threading.active_count()
    with pytest.raises(AgentError, match="No such file or directory$".replace("$", r"\Z")):
        Outputs(config(prometheus="127.0.0.1:0", record=str(tmp_path / "no" / "r")), Stats(), lambda: None)
    assert threading.active_count() == before


class Patient:
    """A sink whose close waits until every other one's has begun."""

    def __init__(self, together: threading.Barrier) -> None:
        self.together = together
        self.passed = False

    def emit(self, exchanges: Sequence[Exchange]) -> None: ...

    def flush(self, now_ns: int) -> None: ...

    def close(self) -> None:
        self.together.wait(10)
        self.passed = True


def test_sinks_close_at_once() -> None:
    outputs = Outputs(config(console="none"), Stats(), lambda: None)
    together = threading.Barrier(3)
    sinks = [Patient(together) for _ in range(3)]
    outputs.sinks += sinks
    outputs.close()
    assert [sink.passed for sink in sinks] == [True] * 3
