from __future__ import annotations

from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp import open_metrics, open_spans
from meshscope.sinks.otlp_settings import resolve
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange
from tests.receivers import http_receiver


def test_spans_and_metrics_go_where_the_settings_say() -> None:
    stats = Stats()
    golden = Golden(stats)
    with http_receiver() as receiver:
        traces, metrics = (resolve(signal, {}, endpoint=receiver.endpoint) for signal in ("traces", "metrics"))  # type: ignore[arg-type]
        assert traces is not None
        assert metrics is not None
        sinks = [golden, open_spans(traces, stats, 100), open_metrics(metrics, golden, stats)]
        for sink in sinks:
            sink.emit([exchange()])
        for sink in sinks:
            sink.flush(2_000_000_000 * 10**9)
            sink.close()
        assert len(receiver.spans()) == 1
        assert ("shop", "http.server.request.duration") in receiver.metrics()
    assert (stats.n["spans_exported"], stats.n["metrics_exports"]) == (1, 1)
