"""The processes of the live suite: in a cgroup of their own, on free loopback ports, ended by pid."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATIENCE = 10 if os.environ.get("MESHSCOPE_VM") else 1  # an emulated machine is about ten times slower


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: object, seconds: float, what: str) -> None:
    """Poll until `true()` holds; AssertionError says what did not happen."""
    end = time.monotonic() + seconds * PATIENCE
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, f"{what}: not within {seconds * PATIENCE:.0f} s"
        time.sleep(0.02)


def listening(port: int) -> bool:
    """Whether somebody listens on the port, without connecting to it."""
    wanted = f":{port:04X}"
    lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    return any(line.split()[1].endswith(wanted) and line.split()[3] == "0A" for line in lines)


def cgroup2() -> Path:
    """Where cgroup v2 is mounted: alone at /sys/fs/cgroup, or beside the old hierarchies."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise AssertionError("no cgroup2 file system is mounted")


def private_libssl(folder: Path) -> Path:
    """A copy of libssl and libcrypto with inodes of their own, for LD_LIBRARY_PATH: only our processes use them."""
    folder.mkdir()
    assert ssl.OPENSSL_VERSION  # imported, so mapped
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = Path(line.split()[-1])
        if path.name.startswith(("libssl.so", "libcrypto.so")) and not (folder / path.name).exists():
            shutil.copy(path, folder)
    assert any(folder.iterdir()), "this Python has no libssl of its own process"
    return folder


def certificate(folder: Path) -> tuple[str, str]:
    """A self-signed certificate for localhost: (certificate, key)."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return str(cert), str(key)


class Fleet:
    """Processes in one cgroup; `close` ends them all and removes it.

    folder: for logs, sockets and certificates of this test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cgroup = cgroup2() / f"meshscope-test-{os.getpid()}-{folder.name[-24:]}"
        self.cgroup.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.agents: list[subprocess.Popen[bytes]] = []
        self.cert = certificate(folder)
        self.nice = 0  # of the processes to come: below 0 their own clock readings wait for nobody else
        self.libssl = private_libssl(folder / "lib")

    def start(
        self,
        command: Sequence[str | Path],
        name: str,
        env: dict[str, str] | None = None,
        private: bool = False,
        inside: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a process in the cgroup; what it prints goes to NAME.out. private: with the fleet's own libssl."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})}
        if private:
            environment["LD_LIBRARY_PATH"] = str(self.libssl)
        enter = f"echo $$ > {self.cgroup}/cgroup.procs && " if inside else ""
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(
                ["sh", "-c", f'{enter}exec nice -n {self.nice} "$@"', "sh", *map(str, command)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def serve(self, command: Sequence[str | Path], name: str, ports: Sequence[int], **options: object) -> subprocess.Popen[bytes]:
        """Start a server and wait until it listens on all its ports."""
        process = self.start(command, name, **options)  # type: ignore[arg-type]
        for port in ports:
            wait_until(lambda port=port: listening(port) or process.poll() is not None, 20, f"{name} listens on {port}")
        assert process.poll() is None, f"{name} ended:\n{(self.folder / f'{name}.out').read_text()}"
        return process

    def python(
        self, script: str, *arguments: object, name: str, ports: Sequence[int] = (), **options: object
    ) -> subprocess.Popen[bytes]:
        """A Python program of this folder."""
        command = [sys.executable, HERE / script, *map(str, arguments)]
        return self.serve(command, name, ports, **options)

    def stop(self, process: subprocess.Popen[bytes], how: int = signal.SIGTERM) -> None:
        """End one process, waiting for it."""
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(how)
        try:
            process.wait(5 * PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self.forget(process)

    def forget(self, process: subprocess.Popen[bytes]) -> None:
        """It has ended; close what was kept for it."""
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        if process in self.processes:
            self.processes.remove(process)

    def close(self) -> None:
        for agent in self.agents:
            if agent.poll() is None:
                agent.kill()
                agent.wait()
        for process in reversed(list(self.processes)):
            self.stop(process)
        for pid in (self.cgroup / "cgroup.procs").read_text(encoding="ascii").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_until(self.removed, 5, f"{self.cgroup} empties")

    def removed(self) -> bool:
        with contextlib.suppress(OSError):
            self.cgroup.rmdir()
        return not self.cgroup.exists()
