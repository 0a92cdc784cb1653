from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from meshscope.sinks import SINKS, SinkSettings, Wiring, open_sinks
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_settings import resolve
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange
from tests.receivers import http_receiver


def wiring(settings: SinkSettings) -> Wiring:
    stats = Stats()
    return Wiring(settings, Golden(stats), stats, lambda: None)


def test_only_what_is_wanted_is_opened() -> None:
    wired = wiring(SinkSettings(stdout=io.BytesIO()))
    assert open_sinks(wired) == {"golden": wired.golden}


def test_everything_at_once(tmp_path: Path) -> None:
    out = io.BytesIO()
    with http_receiver() as receiver:
        traces = resolve("traces", {}, endpoint=receiver.endpoint)
        metrics = resolve("metrics", {}, endpoint=receiver.endpoint)
        wired = wiring(SinkSettings("json", str(tmp_path / "r"), ("127.0.0.1", 0), traces, metrics, stdout=out))
        opened = open_sinks(wired)
        assert list(opened) == ["golden", *SINKS]
        for sink in opened.values():
            sink.emit([exchange(), exchange()])
        for sink in opened.values():
            sink.flush(2_000_000_000 * 10**9)
            sink.close()
        assert len(receiver.spans()) == 2
        assert len(receiver.metrics()) > 3
    assert out.getvalue().count(b"\n") == 2
    assert (tmp_path / "r").read_bytes().count(b"\n") == 3


def test_what_was_opened_is_closed_if_a_later_one_cannot_be(tmp_path: Path) -> None:
    wired = wiring(SinkSettings(record=str(tmp_path / "r"), prometheus=("192.0.2.1", 9100), stdout=io.BytesIO()))
    with pytest.raises(OSError, match="cannot serve metrics"):
        open_sinks(wired)


def test_what_is_not_wanted_is_not_imported() -> None:
    program = (
        "import sys; import meshscope.sinks; names = {name.split('.')[0] for name in sys.modules};"
        "sys.exit(bool(names & {'opentelemetry', 'grpc', 'google'}) or 'http.server' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=20)
