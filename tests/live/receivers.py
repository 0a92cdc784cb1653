"""Receivers that this project did not write: Jaeger (which is an OpenTelemetry Collector, too) and Prometheus."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.live.fleet import Fleet, free_port, wait_until

JAEGER = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter, debug]}}
    metrics: {{receivers: [otlp], exporters: [prometheus, debug]}}
  telemetry: {{metrics: {{level: none}}, logs: {{level: info}}}}
extensions:
  jaeger_query:
    {{storage: {{traces: memory}}, http: {{endpoint: "127.0.0.1:{query}"}}, grpc: {{endpoint: "127.0.0.1:{query_grpc}"}}}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 100000}}}}}}}}
receivers:
  otlp: {{protocols: {{grpc: {{endpoint: "127.0.0.1:{grpc}"}}, http: {{endpoint: "127.0.0.1:{http}"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
  debug: {{verbosity: detailed, sampling_initial: 1000000, sampling_thereafter: 1}}
  prometheus: {{endpoint: "127.0.0.1:{metrics}", resource_to_telemetry_conversion: {{enabled: true}}}}
"""


def get(port: int, path: str, **query: str | int) -> Any:
    """JSON from a loopback port."""
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


class Jaeger:
    """OTLP in over gRPC and HTTP; traces out by the query API, metrics by the Collector's Prometheus page, all of it in `log`."""

    def __init__(self, fleet: Fleet) -> None:
        cache = os.environ.get("MESHSCOPE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/meshscope"
        binary = Path(cache) / "bin" / "jaeger"
        assert binary.exists(), f"{binary} is missing: run `make jaeger`"
        self.ports = {name: free_port() for name in ("query", "query_grpc", "grpc", "http", "metrics")}
        config = fleet.folder / "jaeger.yaml"
        config.write_text(JAEGER.format(**self.ports), encoding="utf-8")
        self.log = fleet.folder / "jaeger.out"
        fleet.serve([binary, "--config", config], "jaeger", list(self.ports.values()), inside=False)

    def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Spans of one trace as the query API tells them."""
        try:
            found = get(self.ports["query"], f"/api/traces/{trace_id}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []
        return [Span(span, found["data"][0]["processes"]).plain() for span in found["data"][0]["spans"]]

    def of_service(self, service: str) -> list[dict[str, Any]]:
        """Spans of all traces in which the service took part."""
        found = get(self.ports["query"], "/api/traces", service=service, limit=1000, lookback="1h")
        return [Span(span, trace["processes"]).plain() for trace in found["data"] for span in trace["spans"]]


class Span:
    """A span in Jaeger's own words, put into plain ones."""

    def __init__(self, told: dict[str, Any], processes: dict[str, Any]) -> None:
        self.told = told
        self.process = processes[told["processID"]]

    def plain(self) -> dict[str, Any]:
        tags = {tag["key"]: tag["value"] for tag in self.told["tags"]}
        parents = [one["spanID"] for one in self.told.get("references", []) if one["refType"] == "CHILD_OF"]
        return {
            "trace": self.told["traceID"],
            "id": self.told["spanID"],
            "parent": parents[0] if parents else "",
            "name": self.told["operationName"],
            "service": self.process["serviceName"],
            "kind": tags.get("span.kind"),
            "status": tags.get("http.response.status_code"),
            "error": bool(tags.get("error", False)),
            "us": self.told["duration"],
            "tags": tags,
        }


class Prometheus:
    """Debian's Prometheus, scraping one page each second."""

    def __init__(self, fleet: Fleet, page: int) -> None:
        self.port = free_port()
        config = fleet.folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: meshscope, static_configs: [{{targets: ['127.0.0.1:{page}']}}]}}]\n",
            encoding="utf-8",
        )
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={fleet.folder}/tsdb"]
        fleet.serve([*command, f"--web.listen-address=127.0.0.1:{self.port}"], "prometheus", [self.port], inside=False)

    def query(self, text: str) -> list[tuple[dict[str, str], float]]:
        """An instant query: (labels, value) of each series."""
        found = get(self.port, "/api/v1/query", query=text)
        return [(one["metric"], float(one["value"][1])) for one in found["data"]["result"]]

    def number(self, text: str) -> float:
        """A query with one result; 0 while there is none."""
        found = self.query(text)
        return found[0][1] if found else 0.0

    def becomes(self, text: str, value: float) -> None:
        """Wait until the query gives that value."""
        wait_until(lambda: self.number(text) == value, 20, f"{text} is {value} (now {self.query(text)})")
