"""What counting, printing and exporting cost, next to the SDK's way in the same run. CPU time of the thread that does it.

The loop pays for the first block (all of it per exchange and end), the worker threads for the second, and a scrape for the third.
Deliveries go to a receiver in a process of its own. Figures are the best of several rounds; compare within one run only.

    python bench/sinks.py [ROUNDS]
"""

from __future__ import annotations

import functools
import io
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from meshscope.model import CLIENT, SERVER, Exchange
from meshscope.sinks.console import Console, Format
from meshscope.sinks.conventions import attributes, span_name
from meshscope.sinks.exposition import Exposition
from meshscope.sinks.golden import Golden
from meshscope.sinks.otlp_export import Exporter, open_transport
from meshscope.sinks.otlp_metrics import requests
from meshscope.sinks.otlp_resource import Resources
from meshscope.sinks.otlp_settings import resolve
from meshscope.sinks.otlp_spans import Known, request
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange

ROOT = Path(__file__).resolve().parent.parent
N = 512  # a batch of the span exporter
ROWS = 1000

RECEIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.receivers import grpc_receiver, http_receiver
with (grpc_receiver if sys.argv[2] == "grpc" else http_receiver)() as receiver:
    receiver.take = lambda path, headers, body: __import__("tests.receivers").receivers.Answer()
    print(receiver.endpoint, flush=True)
    sys.stdin.read()
"""


def load() -> list[Exchange]:
    made = []
    for i in range(N):
        x = exchange(
            (CLIENT, SERVER)[i % 2],
            status=(200, 200, 404, 500)[i % 4],
            route=f"/items/{{id}}/{i % 8}",
            duration_ns=100_000 + i * 7919,
            attributes={"url.path": f"/items/{i}", "user_agent.original": "curl/7.88.1", "http.response.body.size": i},
        )
        made.append(x)
    return made


def best(rounds: int, work: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """Seconds."""
    taken = []
    for _ in range(rounds):
        before = clock()
        work()
        taken.append(clock() - before)
    return min(taken)


def show(what: str, seconds: float, per: int, unit: str = "us") -> None:
    scale = {"us": 1e6, "ms": 1e3}[unit]
    print(f"  {what:<62} {seconds / per * scale:9.2f} {unit}")


def loop(rounds: int, xs: list[Exchange]) -> None:
    print("loop, per exchange:")
    golden = Golden(Stats())
    show("count it in the metric table", best(rounds, lambda: golden.emit(xs)), N)
    meter = MeterProvider([InMemoryMetricReader()]).get_meter("bench")
    instruments = [meter.create_histogram(name) for name in ("duration", "request.size", "response.size")]
    labels = [row.series.attributes() for row in golden.rows.values()]

    def record() -> None:
        for i in range(N):
            for instrument in instruments:
                instrument.record(i, labels[i % len(labels)])

    show("  the SDK: three histogram.record with the same attributes", best(rounds, record), N)
    form: Format
    for form in ("text", "json"):
        console = Console(io.BytesIO(), Stats(), lambda: None, form)
        show(f"print it as {form}", best(rounds, functools.partial(console.emit, xs)), N)


def sdk_spans(xs: list[Exchange]) -> bytes:
    tracer = TracerProvider()
    memory = InMemorySpanExporter()
    tracer.add_span_processor(SimpleSpanProcessor(memory))
    start = tracer.get_tracer("bench").start_span
    for x in xs:
        start(span_name(x), attributes=attributes(x), start_time=x.start_ns).end(x.end_ns)
    return encode_spans(memory.get_finished_spans()).SerializeToString()


def spans(rounds: int, xs: list[Exchange]) -> None:
    print("worker, per span:")
    resources = Resources()
    known: Known = {}
    show("build and serialise it", best(rounds, lambda: request(xs, resources, known).SerializeToString()), N)
    show("  of that, its attributes", best(rounds, lambda: [attributes(x) for x in xs]), N)
    show("  the SDK: start_span, end, encode_spans, serialise", best(rounds, lambda: sdk_spans(xs)), N)
    for protocol, gzip in itertools.product(("http/protobuf", "grpc"), (False, True)):
        process = subprocess.Popen(
            [sys.executable, "-c", RECEIVER, str(ROOT), protocol], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin
        assert process.stdout
        compression = {"OTEL_EXPORTER_OTLP_COMPRESSION": "gzip" if gzip else "none"}
        settings = resolve("traces", compression, endpoint=process.stdout.readline().strip(), protocol=protocol)
        assert settings
        exporter = Exporter(settings, Stats(), open_transport(settings))

        def deliver(exporter: Exporter = exporter) -> None:
            assert exporter.send(request(xs, resources, known), N) == N

        deliver()
        name = f"build and deliver it, {protocol}{', gzip' if gzip else ''}"
        show(f"{name}: CPU of the whole process", best(rounds, deliver, time.process_time), N)
        show(f"{name}: wall", best(rounds, deliver, time.perf_counter), N)
        exporter.close()
        process.communicate()


def tables() -> None:
    print(f"per interval or scrape, {ROWS} rows of three histograms:")
    stats, golden = Stats(), Golden(Stats())
    golden.emit([exchange(route=f"/r{i}/{{id}}", duration_ns=100_000 + i * 3333) for i in range(ROWS)])
    exposition = Exposition(golden)
    lines = "".join(exposition.render(stats.n)).count("\n")
    taken = best(5, lambda: "".join(exposition.render(stats.n)).encode())
    show(f"Prometheus text, {lines} lines", taken, 1, "ms")
    show("  of that, 10,000 lines", taken / lines * 1e4, 1, "ms")
    resources = Resources()
    show("OTLP metrics", best(5, lambda: [m.SerializeToString() for m, _ in requests(golden, resources, stats.n, 1, 2)]), 1, "ms")
    show("flush of the table", best(5, lambda: golden.flush(1)), 1, "ms")


def memory() -> None:
    print("resident memory of a process that imported:")
    for what, modules in {
        "nothing": "sys",
        "the sinks, console and record": "meshscope.sinks.console, meshscope.sinks.record",
        "and Prometheus": "meshscope.sinks.console, meshscope.sinks.record, meshscope.sinks.prometheus",
        "and OTLP over HTTP": "meshscope.sinks.console, meshscope.sinks.record, meshscope.sinks.otlp",
        "and OTLP over gRPC": "meshscope.sinks.console, meshscope.sinks.record, meshscope.sinks.otlp, meshscope.sinks.otlp_grpc",
        "  the SDK's exporter over HTTP alone": "opentelemetry.exporter.otlp.proto.http.trace_exporter, opentelemetry.sdk.trace",
    }.items():
        program = f"import {modules}; print(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])"
        shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        print(f"  {what:<62} {int(shown) / 1024:9.1f} MiB")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    xs = load()
    loop(rounds, xs)
    spans(rounds, xs)
    tables()
    memory()


if __name__ == "__main__":
    main()
