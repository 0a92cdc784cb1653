"""The settings: every one declared once, with its default and a sentence.

Its place in the file (``capture.ring_bytes``), its variable (``MESHSCOPE_CAPTURE_RING_BYTES``) and its flag follow
from the declaration. Units are those of the value inside the program: bytes, seconds, cores, shares of one.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from meshscope.config.kinds import (
    ADDRESS,
    BYTES,
    COUNT,
    CPUS,
    HEADERS,
    LIST,
    MILLISECONDS,
    PATH,
    PIDS,
    RATIO,
    SECONDS,
    SWITCH,
    URL,
    Kind,
    choice,
)


def _setting(default: object, kind: Kind, doc: str, flag: str = "", env: str = "", env_kind: Kind | None = None) -> Any:  # noqa: ANN401
    """flag: with its metavar. env: a variable of the specification that means the same; env_kind: if it is written otherwise."""
    metadata = {"kind": kind, "doc": doc, "flag": flag, "env": env, "env_kind": env_kind or kind}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, slots=True)
class Select:
    """Which processes are watched. Nothing is, unless it is named here."""

    pids: tuple[int, ...] = _setting((), PIDS, "Watch this process and its descendants, present and future.", "--pid N")
    exes: tuple[str, ...] = _setting((), LIST, "Watch every process whose executable's path matches this glob.", "--exe GLOB")
    cgroups: tuple[str, ...] = _setting((), LIST, "Watch every process in this cgroup v2 directory or below it.", "--cgroup PATH")
    all: bool = _setting(False, SWITCH, "Watch every process on this node.", "--all")

    def __bool__(self) -> bool:
        return bool(self.pids or self.exes or self.cgroups or self.all)


@dataclasses.dataclass(frozen=True, slots=True)
class Capture:
    """How bytes leave the kernel."""

    ring_bytes: int = _setting(4 << 20, BYTES, "Size of one ring between kernel and agent, a power of two.", "--ring-bytes SIZE")
    rings: int = _setting(1, COUNT, "Number of rings, 1 to 16; watched processes are spread over them.")
    poll: float = _setting(0.02, SECONDS, "Pause between two looks at the rings while little happens.")
    rung: str = _setting(
        "auto",
        choice("auto", "tp_btf", "fexit"),
        "Socket hook; auto takes the best this kernel allows.",
        "--rung auto|tp_btf|fexit",
    )
    nice: int = _setting(
        10, COUNT, "Scheduling priority of the agent, 0 to 19: what it watches goes first when processors are short."
    )
    loader: str = _setting(
        "auto", choice("auto", "libbpf", "bcc"), "What loads the programs into the kernel.", "--loader auto|libbpf"
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Exchanges:
    """What is kept of an exchange."""

    headers: tuple[str, ...] = _setting((), LIST, "Header names to keep besides the built-in ones; secret ones never are.")
    raw_paths: bool = _setting(False, SWITCH, "Show path segments that look like tokens or identifiers.", "--raw-paths")
    routes: int = _setting(200, COUNT, "Routes told apart per service; the others share one.")
    connections: int = _setting(65536, COUNT, "Connections followed at once; beyond, the longest idle is forgotten and counted.")


@dataclasses.dataclass(frozen=True, slots=True)
class Trace:
    """Which exchanges become spans."""

    sample: float = _setting(1.0, RATIO, "Share of traces exported, decided by trace id.", "--sample RATIO")
    remote_per_second: int = _setting(100, COUNT, "Spans a second and service exported because a caller's header asks for it.")


@dataclasses.dataclass(frozen=True, slots=True)
class Metrics:
    """The table behind every metric output."""

    interval: float = _setting(
        10.0, SECONDS, "Time between two exports of metrics.", "", "OTEL_METRIC_EXPORT_INTERVAL", MILLISECONDS
    )
    series: int = _setting(10000, COUNT, "Rows of the metric table; the others share one overflow row.")


@dataclasses.dataclass(frozen=True, slots=True)
class Otlp:
    """Export to an OpenTelemetry receiver; off while there is no endpoint."""

    endpoint: str = _setting("", URL, "Receiver of spans and metrics.", "--otlp-endpoint URL", "OTEL_EXPORTER_OTLP_ENDPOINT")
    traces_endpoint: str = _setting("", URL, "Receiver of spans, used as written.", "", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    metrics_endpoint: str = _setting("", URL, "Receiver of metrics, used as written.", "", "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT")
    protocol: str = _setting(
        "",
        choice("grpc", "http/protobuf"),
        "Transport; unset: by the port, 4317 is grpc.",
        "--otlp-protocol grpc|http/protobuf",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    )
    headers: tuple[tuple[str, str], ...] = _setting(
        (), HEADERS, "Headers sent with every export.", "", "OTEL_EXPORTER_OTLP_HEADERS"
    )
    timeout: float = _setting(10.0, SECONDS, "Time one export may take.", "", "OTEL_EXPORTER_OTLP_TIMEOUT", MILLISECONDS)
    queue: int = _setting(8192, COUNT, "Spans that may wait for the exporter; the others are dropped and counted.")


@dataclasses.dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go besides OTLP."""

    console: str = _setting(
        "text", choice("text", "json", "none"), "What is printed to standard output.", "--output text|json|none"
    )
    record: str = _setting("", PATH, "Write redacted exchanges to this file, one JSON document a line.", "--record FILE")
    record_raw: str = _setting(
        "", PATH, "Write all that is captured, NOT redacted, to this new file, for replay.", "--record-raw FILE"
    )
    prometheus: str = _setting("", ADDRESS, "Serve the metrics as Prometheus text here.", "--prometheus ADDR:PORT")


@dataclasses.dataclass(frozen=True, slots=True)
class Budget:
    """What the agent may cost. Exceeded: it gives up spans, then headers, then TLS probes, and says so."""

    cpu: float = _setting(1.0, CPUS, "CPU the agent may use, in cores; 0: no limit.", "--max-cpu CORES")
    memory: int = _setting(256 << 20, BYTES, "Memory the agent may use; 0: no limit.", "--max-memory SIZE")
    traps_per_second: int = _setting(0, COUNT, "TLS probe hits a second and process; 0: no limit.", "--max-traps-per-second N")


@dataclasses.dataclass(frozen=True, slots=True)
class Config:
    """The whole tree."""

    select: Select = dataclasses.field(default_factory=Select)
    capture: Capture = dataclasses.field(default_factory=Capture)
    exchanges: Exchanges = dataclasses.field(default_factory=Exchanges)
    trace: Trace = dataclasses.field(default_factory=Trace)
    metrics: Metrics = dataclasses.field(default_factory=Metrics)
    otlp: Otlp = dataclasses.field(default_factory=Otlp)
    outputs: Outputs = dataclasses.field(default_factory=Outputs)
    budget: Budget = dataclasses.field(default_factory=Budget)
    duration: float = _setting(0.0, SECONDS, "Stop after this long; 0: run until told to stop.", "--duration S")
