"""Live cost: what the agent takes and what it adds, each next to the same load without it, in one run.

    python bench/live.py [--seconds N] [--rounds N] [--minute]

nginx (one worker, small answers, keep-alive) is loaded plain and over TLS. Rounds alternate "without" and "with", so that
the machine's drift falls on both. CPU is read from the scheduler's own account of the worker and of the agent. The agent
runs as an operator would run it: Prometheus on, JSON off, spans at 10 % over OTLP/HTTP to a receiver that throws them away.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PATH = os.environ["PATH"] + ":/usr/sbin:/sbin"
SINK = """
import http.server, sys
class Sink(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Sink).serve_forever()
"""


class Load(NamedTuple):
    """One stretch of load: requests answered, worker CPU per request, latency quantiles in us, failures."""

    requests: int
    worker_us: float
    p50_us: float
    p99_us: float
    failed: int


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_port(port: int) -> None:
    end = time.monotonic() + 10
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"nothing listens on 127.0.0.1:{port} after 10 s")
        time.sleep(0.02)


def cpu_us(pid: int) -> float:
    """CPU time of all threads of a process, microseconds."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread may end meanwhile
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1000


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]


class Nginx:
    """One master, one worker, two ports; the worker is what is measured."""

    def __init__(self, folder: Path) -> None:
        self.ports = {"plain": free_port(), "tls": free_port()}
        key, cert = folder / "key.pem", folder / "cert.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-keyout", key, "-out", cert],
            check=True, capture_output=True,
        )  # fmt: skip
        conf = folder / "nginx.conf"
        conf.write_text(f"""
            daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
            events {{ worker_connections 1024; }}
            http {{
              access_log off; keepalive_requests 100000000; client_body_temp_path {folder}/body;
              proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fcgi; uwsgi_temp_path {folder}/uwsgi;
              scgi_temp_path {folder}/scgi;
              server {{
                listen 127.0.0.1:{self.ports["plain"]};
                listen 127.0.0.1:{self.ports["tls"]} ssl;
                ssl_certificate {cert}; ssl_certificate_key {key};
                default_type application/json;
                location / {{ return 200 '{{"items":[1,2,3,4,5,6,7,8],"total":36,"currency":"EUR"}}'; }}
              }}
            }}""")
        self.process = subprocess.Popen(["nginx", "-c", conf, "-p", folder], env={**os.environ, "PATH": PATH})
        for port in self.ports.values():
            wait_port(port)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.worker = int(children[0])

    def url(self, kind: str) -> str:
        return f"{'https' if kind == 'tls' else 'http'}://127.0.0.1:{self.ports[kind]}/api/orders/7"

    def saturate(self, kind: str, seconds: float) -> Load:
        """Wrk, closed loop: as many requests as it can."""
        before = cpu_us(self.worker)
        out = subprocess.run(
            ["wrk", "-t1", "-c8", f"-d{max(1, round(seconds))}s", "--latency", self.url(kind)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        used = cpu_us(self.worker) - before
        requests = int(re.search(r"(\d+) requests in", out)[1])  # type: ignore[index]
        failed = sum(map(int, re.findall(r"(?:connect|read|write|timeout|Non-2xx or 3xx responses:?) (\d+)", out)))
        return Load(requests, used / requests, quantile(out, "50"), quantile(out, "99"), failed)

    def pace(self, kind: str, rate: float, seconds: float, log: Path) -> Load:
        """H2load at a fixed rate, HTTP/1.1 over 8 connections; quantiles from every request's own row."""
        before = cpu_us(self.worker)
        log.unlink(missing_ok=True)
        out = subprocess.run(
            ["h2load", "--h1", "-c8", "-t1", f"-D{max(1, round(seconds))}", f"--rps={max(1, round(rate / 8))}",
             f"--log-file={log}", self.url(kind)],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        used = cpu_us(self.worker) - before
        rows = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
        failed = int(re.search(r"(\d+) failed", out)[1])  # type: ignore[index]
        total = int(re.search(r"requests: (\d+) total", out)[1])  # type: ignore[index]
        return Load(total, used / max(total, 1), rows[len(rows) // 2], rows[len(rows) * 99 // 100], failed)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def quantile(wrk: str, percent: str) -> float:
    value, unit = re.search(rf"\s{percent}%\s+([\d.]+)(us|ms|s)", wrk).groups()  # type: ignore[union-attr]
    return float(value) * {"us": 1, "ms": 1e3, "s": 1e6}[unit]


class Agent:
    """A running meshscope watching exactly one process tree."""

    def __init__(self, pid: int, sink: int, *extra: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", "meshscope", "run", "--pid", str(pid), "--output", "none", "--sample", "0.1",
                   "--prometheus", f"127.0.0.1:{self.port}", "--otlp-endpoint", f"http://127.0.0.1:{sink}", *extra]  # fmt: skip
        env = {**os.environ, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf", "PATH": PATH}
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if line.startswith("meshscope: ready"):
                return
        raise RuntimeError("the agent ended before it was ready:\n" + "\n".join(self.said))

    def metrics(self) -> dict[str, float]:
        """Sums of the agent's own counters and of request counts, by metric name."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10).read().decode()
        sums: dict[str, float] = {}
        for line in text.splitlines():
            if line and not line.startswith("#"):
                name, value = line.split("{")[0].split(" ")[0], line.rsplit(" ", 1)[1]
                sums[name] = sums.get(name, 0) + float(value)
        return sums

    def stop(self) -> str:
        """End it; its summary line."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.stderr is not None
        rest = self.process.stderr.read().splitlines()
        self.process.wait(30)
        return rest[-1] if rest else ""


@contextlib.contextmanager
def watching(pid: int, sink: int) -> Iterator[Agent]:
    agent = Agent(pid, sink)
    try:
        yield agent
    finally:
        agent.stop()


def row(name: str, without: float, with_: float, unit: str, bar: str) -> None:
    print(f"{name:<44}{without:>10.1f}{with_:>10.1f} {unit:<4}{with_ / without:>8.2f}x   {bar}", flush=True)


def middle(without: list[Load], with_: list[Load], field: str) -> tuple[float, float]:
    """Medians of one figure, without and with the agent."""
    return statistics.median(getattr(load, field) for load in without), statistics.median(getattr(load, field) for load in with_)


def worker_cost(nginx: Nginx, sink: int, kind: str, seconds: float, rounds: int) -> float:
    """Worker CPU per request and what wrk sees, alternating; returns the saturation rate without the agent."""
    without: list[Load] = []
    with_: list[Load] = []
    for _ in range(rounds):
        without.append(nginx.saturate(kind, seconds))
        with watching(nginx.worker, sink):
            with_.append(nginx.saturate(kind, seconds))
    goal = {"plain": "goal 1.1, at most 1.3", "tls": "goal 1.6, at most 2.2"}[kind]
    row(f"{kind}: nginx worker CPU per request", *middle(without, with_, "worker_us"), "us", goal)
    row(f"{kind}: p50 seen by wrk at saturation", *middle(without, with_, "p50_us"), "us", "")
    row(f"{kind}: p99 seen by wrk at saturation", *middle(without, with_, "p99_us"), "us", "")
    print(f"{kind}: failed requests with the agent: {sum(load.failed for load in with_)}")
    return statistics.median(load.requests for load in without) / seconds


def half_load(nginx: Nginx, sink: int, kind: str, rate: float, seconds: float, rounds: int, folder: Path) -> None:
    without: list[Load] = []
    with_: list[Load] = []
    for _ in range(rounds):
        without.append(nginx.pace(kind, rate, seconds, folder / "h2load.log"))
        with watching(nginx.worker, sink):
            with_.append(nginx.pace(kind, rate, seconds, folder / "h2load.log"))
    for field, bar in (("p50_us", ""), ("p99_us", {"plain": "at most 1.05", "tls": "at most 1.20"}[kind])):
        row(f"{kind}: {field[:3]} at {rate:,.0f} req/s (half of saturation)", *middle(without, with_, field), "us", bar)


def steady(nginx: Nginx, sink: int, kind: str, seconds: float, folder: Path) -> None:
    """20,000 requests a second: agent CPU per exchange, loss, memory."""
    with watching(nginx.worker, sink) as agent:
        nginx.pace(kind, 2000, 1, folder / "h2load.log")  # imports and caches are not what is measured
        start, before = agent.metrics(), cpu_us(agent.process.pid)
        load = nginx.pace(kind, 20000, seconds, folder / "h2load.log")
        time.sleep(1)  # the last interval of the ring
        end, used = agent.metrics(), cpu_us(agent.process.pid) - before
        exchanges = sum(end.get(n, 0) - start.get(n, 0) for n in end if n == "http_server_request_duration_seconds_count")
        lost = {n: v for n, v in end.items() if v and re.search(r"lost|reserve_failed|orphan|dropped|unknown", n)}
        each = used / max(exchanges, 1)
        print(f"{kind}: {load.requests:,} sent at {load.requests / seconds:,.0f} a second, {exchanges:,.0f} exchanges counted")
        print(f"{kind}: agent CPU per exchange {each:.1f} us (goal 15, at most 25); nginx worker {load.worker_us:.1f} us")
        print(f"{kind}: agent memory {rss_mib(agent.process.pid):.0f} MiB (at most 80)")
        print(f"{kind}: lost: {json.dumps(lost) if lost else 'nothing'}")


def main() -> None:
    arguments = argparse.ArgumentParser(description="what the agent costs, next to the same load without it")
    arguments.add_argument("--seconds", type=float, default=4, help="length of one stretch of load")
    arguments.add_argument("--rounds", type=int, default=3, help="alternations of without and with")
    arguments.add_argument("--minute", action="store_true", help="hold 20,000 requests a second for a minute instead of 10 s")
    options = arguments.parse_args()
    os.environ["PATH"] = PATH
    with tempfile.TemporaryDirectory() as name:
        folder, sink = Path(name), free_port()
        receiver = subprocess.Popen([sys.executable, "-c", SINK, str(sink)])
        nginx = Nginx(folder)
        try:
            wait_port(sink)
            print(f"{'':<44}{'without':>10}{'with':>10}")
            for kind in ("plain", "tls"):
                rate = worker_cost(nginx, sink, kind, options.seconds, options.rounds)
                half_load(nginx, sink, kind, rate / 2, options.seconds, options.rounds, folder)
            for kind in ("plain", "tls"):
                steady(nginx, sink, kind, 60 if options.minute else 10, folder)
        finally:
            nginx.stop()
            receiver.terminate()
            receiver.wait(10)


if __name__ == "__main__":
    main()
