"""Real receivers get what was seen: Jaeger over both transports, a Collector's metrics, Debian's Prometheus."""

from __future__ import annotations

import bisect
import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.live.agent import Agent
from tests.live.driver import Driver
from tests.live.fleet import Fleet, free_port, wait_until
from tests.live.plans import ask
from tests.live.receivers import Jaeger, Prometheus
from tests.live.scrape import fetch, samples, total

pytestmark = pytest.mark.usefixtures("kernel_state")
STATUS = {"ok": 200, "gone": 404, "fail": 500}
Asks = list[dict[str, Any]]


def threaded(fleet: Fleet, file: Path, service: str) -> tuple[int, int, Path]:
    """A threaded server that calls itself `service`: port, pid, log."""
    port, log = free_port(), fleet.folder / f"{service}.log"
    env = {"OTEL_SERVICE_NAME": service}
    process = fleet.python("servers/blocking.py", "threaded", port, log, file, name=service, ports=(port,), env=env)
    return port, process.pid, log


def called(traced: bool) -> Asks:
    """Three requests of each status; traced: with a traceparent of their own each."""
    out = [ask(kind) for kind in STATUS for _ in range(3)]
    for one in out:
        one["trace"], one["caller"] = uuid.uuid4().hex, os.urandom(8).hex()
        if traced:
            one["headers"] = {"traceparent": f"00-{one['trace']}-{one['caller']}-01"}
    return out


def run_case(fleet: Fleet, jaeger: Jaeger, protocol: str, case: str, server: tuple[int, int, Path], asks: Asks) -> str:
    """Drive one case with the agent on the ends the case watches; the client's service name."""
    name = f"client-{case}"
    plan = [{"how": "python", "port": server[0], "tls": False, "threads": 1, "asks": asks}]
    driver = Driver(fleet, plan, name, env={"OTEL_SERVICE_NAME": name})
    pids = {"server": [server[1]], "client": [driver.process.pid]}.get(case, [server[1], driver.process.pid])
    transport = ["--otlp-endpoint", f"http://127.0.0.1:{jaeger.ports['grpc' if protocol == 'grpc' else 'http']}"]
    select = [text for pid in pids for text in ("--pid", str(pid))]
    env = {"OTEL_METRIC_EXPORT_INTERVAL": "500"}
    agent = Agent(fleet, [*select, *transport, "--otlp-protocol", protocol], name=f"agent-{case}", env=env)
    driver.go()
    agent.stop()
    return name


def expect_span(span: dict[str, Any], kind: str, service: str, status: int, parent: str) -> None:
    told = (span["kind"], span["service"], span["status"], span["parent"])
    assert told == (kind, service, status, parent), span
    assert span["error"] == (status >= 500 if kind == "server" else status >= 400), span
    assert ("error.type" in span["tags"]) == span["error"], span


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_jaeger_and_collector(protocol: str, fleet: Fleet, big_file: Path) -> None:
    jaeger = Jaeger(fleet)
    server = threaded(fleet, big_file, "shop")
    for case, ends in {"both": 2, "client": 1, "server": 1}.items():
        asks = called(traced=True)
        client = run_case(fleet, jaeger, protocol, case, server, asks)
        for one in asks:
            wait_until(lambda one=one, ends=ends: len(jaeger.trace(one["trace"])) == ends, 10, f"{case}: {ends} spans in a trace")
            status = STATUS[one["path"].split("/")[1]]
            spans = {span["kind"]: span for span in jaeger.trace(one["trace"])}
            if "client" in spans:
                expect_span(spans["client"], "client", client, status, one["caller"])
            if "server" in spans:
                parent = spans["client"]["id"] if case == "both" else one["caller"]
                expect_span(spans["server"], "server", "shop", status, parent)
            assert set(spans) == {"both": {"client", "server"}}.get(case, {case})

    asks = called(traced=False)
    client = run_case(fleet, jaeger, protocol, "none", server, asks)
    wait_until(lambda: len(jaeger.of_service(client)) == 2 * len(asks), 10, "none: two spans a request")
    roots = {span["id"]: span for span in jaeger.of_service(client) if span["kind"] == "client"}
    children = [span for span in jaeger.of_service(client) if span["kind"] == "server"]
    for root in roots.values():
        expect_span(root, "client", client, root["status"], "")
    for child in children:
        expect_span(child, "server", "shop", roots[child["parent"]]["status"], child["parent"])
        assert child["trace"] == roots[child["parent"]]["trace"]
    assert sorted(span["status"] for span in children) == sorted(STATUS[one["path"].split("/")[1]] for one in asks)
    collector_metrics(jaeger, 9 * len(asks) // 3)


def collector_metrics(jaeger: Jaeger, per_case: int) -> None:
    """The Collector's page shows the counts: the last agent's totals for the server, each client's own."""

    def count(side: str, service: str, **labels: str) -> float:
        page = samples(fetch(jaeger.ports["metrics"]))
        return total(page, f"http_{side}_request_duration_seconds_count", service_name=service, **labels)

    each = per_case // 9 * 3
    wait_until(lambda: count("client", "client-none") == each, 10, "the client's requests arrive as metrics")
    assert count("client", "client-both") == each
    assert count("server", "shop", http_response_status_code="500") > 0
    assert count("client", "client-none", error_type="404") == each / 3
    assert count("server", "shop", error_type="404") == 0


def test_prometheus(fleet: Fleet, big_file: Path) -> None:
    """Counts equal what was asked; the p99 lies in the bucket in which the server's own log has it."""
    port, pid, log = threaded(fleet, big_file, "shop")
    asks = [ask("slow", query="?ms=300") if i % 16 == 0 else ask("ok") for i in range(320)]
    asks += [ask("fail") for _ in range(7)] + [ask("gone") for _ in range(5)]
    driver = Driver(
        fleet, [{"how": "python", "port": port, "tls": False, "threads": 4, "asks": asks}], env={"OTEL_SERVICE_NAME": "buyer"}
    )
    page = free_port()
    select = ["--pid", str(pid), "--pid", str(driver.process.pid)]
    agent = Agent(fleet, [*select, "--prometheus", f"127.0.0.1:{page}"])
    prometheus = Prometheus(fleet, page)
    results = driver.go()
    assert len(results) == len(asks)
    for side in ("server", "client"):
        name = f"http_{side}_request_duration_seconds"
        prometheus.becomes(f"sum({name}_count)", len(asks))
        assert prometheus.number(f'sum({name}_count{{http_response_status_code="500"}})') == 7
        assert prometheus.number(f'sum({name}_count{{http_response_status_code="404"}})') == 5
        assert prometheus.number(f'sum({name}_count{{error_type!=""}})') == (7 if side == "server" else 12)

    name = "http_server_request_duration_seconds"
    bounds = sorted(float(labels["le"]) for labels, _ in prometheus.query(f"sum by (le) ({name}_bucket)"))
    took = sorted(json.loads(line)["ns"] / 1e9 for line in log.read_text(encoding="utf-8").splitlines())
    true_p99 = took[len(took) * 99 // 100]
    place = bisect.bisect_left(bounds, true_p99)
    told = prometheus.number(f"histogram_quantile(0.99, sum by (le) ({name}_bucket))")
    assert bounds[place - 1] < told <= bounds[place], f"p99 {told} s by Prometheus, {true_p99} s by the server"
    agent.stop()
