"""The demo: a small shop on loopback in a cgroup of its own, customers who visit it, and meshscope watching exactly that cgroup.

python demo.py [--seconds N]    without N until Ctrl-C; at the end, what was answered is put next to what was seen.

                     plain         plain
customers --TLS--> nginx --> catalogue       cart --> stock
 and curl            | ----> cart ------------^
                     | -TLS-> checkout (asyncio) -TLS-> payment
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Self

from summary import Seen, table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE_S = 60

NGINX = """
user root; daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.err warn;
events {{ worker_connections 512; }}
http {{
  access_log off; sendfile on; keepalive_timeout 60s; default_type text/html; log_format one "1";
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4;
  scgi_temp_path {folder}/t5; proxy_http_version 1.1; proxy_set_header Connection "";
  upstream catalogue {{ server 127.0.0.1:{catalogue}; keepalive 8; }}
  upstream cart {{ server 127.0.0.1:{cart}; keepalive 8; }}
  upstream checkout {{ server 127.0.0.1:{checkout}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{front} ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    access_log {folder}/nginx.log one;
    location = / {{ root {folder}; index index.html; }}
    location = /index.html {{ internal; root {folder}; }}
    location /api/cart/ {{ proxy_pass http://cart/cart/; }}
    location = /api/checkout {{ proxy_pass https://checkout/checkout; }}
    location /api/ {{ proxy_pass http://catalogue/; }}
  }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def cgroup2() -> Path:
    """Where cgroup v2 is mounted: at /sys/fs/cgroup, or beside version 1."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    raise SystemExit("demo: no cgroup2 file system is mounted: mount -t cgroup2 none /sys/fs/cgroup")


def system_libssl() -> list[Path]:
    """libssl and libcrypto as this Python uses them."""
    assert ssl.OPENSSL_VERSION
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return sorted({Path(line.split()[-1]) for line in lines if "/libssl.so" in line or "/libcrypto.so" in line})


class Shop:
    """Everything the demo starts and makes; a context manager that takes all of it away again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="meshscope-demo-"))
        self.cgroup = cgroup2() / f"meshscope-demo-{os.getpid()}"
        self.ports = {name: free_port() for name in ("front", "catalogue", "cart", "stock", "checkout", "payment")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        self.cgroup.mkdir()
        key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            "key.pem",
            "-out",
            "cert.pem",
            "-days",
            "2",
        ]
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
        subprocess.run(["openssl", "req", "-x509", *key, *names], check=True, capture_output=True, cwd=self.folder)
        (self.folder / "lib").mkdir()
        for library in system_libssl():
            shutil.copy(library, self.folder / "lib")
        (self.folder / "index.html").write_text("<h1>The shop</h1>\n" * 200, encoding="utf-8")
        (self.folder / "nginx.conf").write_text(NGINX.format(folder=self.folder, **self.ports), encoding="utf-8")
        cert = [self.folder / "cert.pem", self.folder / "key.pem"]
        for name in ("catalogue", "cart", "stock", "payment"):
            tls = cert if name == "payment" else []
            self.start(name, [sys.executable, HERE / "service.py", name, self.ports[name], self.folder / f"{name}.log", *tls])
        self.start(
            "checkout", [sys.executable, HERE / "checkout.py", self.ports["checkout"], self.folder / "checkout.log", *cert]
        )
        self.start("nginx", ["nginx", "-p", self.folder, "-e", f"{self.folder}/nginx.err", "-c", f"{self.folder}/nginx.conf"])
        self.wait_open()
        url = f"https://127.0.0.1:{self.ports['front']}"
        self.start("customers", [sys.executable, HERE / "customers.py", url, self.folder / "customers.log"])

    def start(self, name: str, command: list[object]) -> None:
        """One process inside the cgroup, ended by the kernel if this one is killed."""
        environment = {**os.environ, "SHOP_CA": str(self.folder / "cert.pem"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PATH"] += ":/usr/sbin:/sbin"
        environment["STOCK_URL"] = f"http://127.0.0.1:{self.ports['stock']}"
        environment["PAYMENT_URL"] = f"https://127.0.0.1:{self.ports['payment']}"
        if name == "customers":  # their curl is gone in milliseconds: a libssl that is theirs alone can be watched ahead
            environment["LD_LIBRARY_PATH"] = str(self.folder / "lib")
        elif name != "nginx":  # which goes by the name of its executable
            environment["OTEL_SERVICE_NAME"] = name
        with (self.folder / f"{name}.out").open("wb") as out:
            self.processes[name] = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "TERM",
                    "sh",
                    "-c",
                    f'echo $$ > {self.cgroup}/cgroup.procs; exec "$@"',
                    "sh",
                    *map(str, command),
                ],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def wait_open(self) -> None:
        end = time.monotonic() + PATIENCE_S
        waiting = dict(self.ports)
        while waiting:
            waiting = {name: port for name, port in waiting.items() if not answers(port)}
            for name, process in self.processes.items():
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"demo: {name} does not run:\n{(self.folder / f'{name}.out').read_text(errors='replace')}")
            time.sleep(0.02)

    def answered(self) -> dict[str, int]:
        """Requests each service answered by its own count."""
        return {path.stem: len(path.read_bytes().split()) for path in sorted(self.folder.glob("*.log"))}

    def stop(self, name: str) -> None:
        """End one process in order."""
        process = self.processes.pop(name)
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        for name in reversed(list(self.processes)):
            self.stop(name)
        end = time.monotonic() + 5
        while self.cgroup.exists() and time.monotonic() < end:
            for pid in (self.cgroup / "cgroup.procs").read_text(encoding="ascii").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            with contextlib.suppress(OSError):
                self.cgroup.rmdir()
            time.sleep(0.02)
        shutil.rmtree(self.folder, ignore_errors=True)


class Agent:
    """`meshscope run --cgroup` on the shop, printing to this terminal and recording for the summary."""

    def __init__(self, shop: Shop) -> None:
        self.record = shop.folder / "exchanges.json"
        self.errors = shop.folder / "agent.err"
        command = [sys.executable, "-m", "meshscope", "run", "--cgroup", str(shop.cgroup), "--record", str(self.record)]
        with self.errors.open("wb") as err:
            self.process = subprocess.Popen(command, cwd=ROOT, stderr=err, start_new_session=True)
        end = time.monotonic() + PATIENCE_S
        while "meshscope: ready" not in self.said():
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit(f"demo: the agent is not ready:\n{self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def seen(self) -> list[Seen]:
        with self.record.open(encoding="utf-8") as lines:
            next(lines)  # names the format
            return [Seen.of(json.loads(line)) for line in lines]


def sweep() -> None:
    """What a demo that was killed left behind."""
    for group in cgroup2().glob("meshscope-demo-*"):
        if not Path(f"/proc/{group.name.rsplit('-', 1)[1]}").exists():
            with contextlib.suppress(OSError):
                group.rmdir()


def watch(shop: Shop, seconds: float | None) -> int:
    """Drive the shop with the agent on it, then compare; 0 if every answer was seen."""
    agent = Agent(shop)
    print(agent.said().rstrip(), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            customers = shop.processes["customers"]
            assert customers.stdin is not None
            customers.stdin.write(b"go\n")
            customers.stdin.flush()
            agent.process.wait(seconds)
            raise SystemExit(f"demo: the agent ended:\n{agent.said()}")
        except subprocess.TimeoutExpired:
            pass
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not leave anything behind
    shop.stop("customers")
    agent.stop()
    print(f"\n{agent.said().splitlines()[-1]}\n")
    text, complete = table(shop.answered(), agent.seen())
    print(text)
    return 0 if complete and agent.process.returncode == 0 else 1


def main() -> int:
    parser = argparse.ArgumentParser(description="A small shop, watched by meshscope.")
    parser.add_argument("--seconds", type=float, help="end after so long (default: at Ctrl-C)")
    seconds = parser.parse_args().seconds
    if os.geteuid() != 0:
        raise SystemExit("demo: loading eBPF programs and making a cgroup needs root")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    sweep()
    with Shop() as shop:
        return watch(shop, seconds)


if __name__ == "__main__":
    sys.exit(main())
