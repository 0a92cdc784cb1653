"""The command as users start it: what is wrong is said in one line, with the right exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from meshscope.capture import abi
from meshscope.capture.record import MAGIC

ROOT = Path(__file__).resolve().parents[2]
ENV = {name: value for name, value in os.environ.items() if not name.startswith(("MESHSCOPE_", "OTEL_"))}


def meshscope(*arguments: str | Path, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run it; its standard error if it should fail, else its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "meshscope", *map(str, arguments)],
        cwd=ROOT,
        env=ENV | (env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr if code else done.stdout


def line(*arguments: str | Path, env: dict[str, str] | None = None, code: int = 2) -> str:
    """The one line that a failing command says."""
    said = meshscope(*arguments, env=env, code=code)
    assert said.count("\n") == 1, said
    assert said.startswith("meshscope: "), said
    return said[len("meshscope: ") : -1]


def gone() -> int:
    """A process that is no more."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "no command; say run, replay, doctor or protocols (meshscope --help)"),
        ("watch", "watch: no such command; there are run, replay, doctor, protocols"),
        ("run", "nothing selected; say what to watch: --pid N, --exe GLOB, --cgroup PATH or --all"),
        ("run --pid", "--pid: wants a value"),
        ("run --pid x", '--pid: wants process ids, got ["x"]; e.g. 4711'),
        ("run --pid 0", '--pid: wants process ids, got ["0"]; e.g. 4711'),
        ("run --pidd 1", "--pidd: no such option of run; did you mean --pid?"),
        ("run --pi 1", "--pi: no such option of run; did you mean --pid?"),
        ("run 17", '"17": not expected here'),
        ("run --pid 4194300 --output xml", '--output: wants one of text, json, none, got "xml"; e.g. text'),
        ("run --pid 4194300 --sample 2", '--sample: wants a share from 0 to 1, got "2"; e.g. 0.1 or 10%'),
        ("run --pid 4194300 --max-memory much", '--max-memory: wants a number of bytes, got "much"; e.g. 8MiB'),
        ("run --pid 4194300 --duration soon", '--duration: wants a time in seconds, got "soon"; e.g. 10 or 200ms'),
        ("run --pid 4194300 --prometheus 9464", '--prometheus: wants ADDR:PORT, got "9464"; e.g. 127.0.0.1:9464'),
        (
            "run --pid 4194300 --otlp-endpoint localhost",
            '--otlp-endpoint: wants an http or https URL, got "localhost"; e.g. http://127.0.0.1:4317',
        ),
        ("run --pid 4194300 --rung kprobe", '--rung: wants one of auto, tp_btf, fexit, got "kprobe"; e.g. auto'),
        ("run --pid 4194300 --loader bcc", "--loader bcc: not built yet; auto and libbpf are"),
        ("run --ui 127.0.0.1:80", "--ui: not built yet"),
        ("run --port 80", "--port: not built yet"),
        ("run --container x", "--container: not built yet"),
        ("doctor --container x", "--container: not built yet"),
        ("doctor --output xml", '--output: wants one of text, json, got "xml"'),
        ("top", "top: not built yet"),
        ("replay", "FILE is missing"),
        ("replay x.pcapng", "x.pcapng: replay of packet captures is not built yet; it reads what run --record-raw wrote"),
        ("replay x --pid 4194300", "--pid: no such option of replay"),
        ("run --pid 4194300 --config /nonexistent", "/nonexistent: No such file or directory"),
    ],
)
def test_bad_usage(arguments: str, said: str) -> None:
    assert line(*arguments.split()) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("capture: {ring_bytes: lots}", 'capture.ring_bytes: wants a number of bytes, got "lots"; e.g. 8MiB'),
        ("capture: {rign_bytes: 1}", "capture.rign_bytes: no such setting; did you mean capture.ring_bytes?"),
        ("outputs: [1]", "outputs: wants settings below it, got [1]"),
    ],
)
def test_bad_configuration(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert line("run", "--pid", "1", "--config", file) == said
    assert line("run", "--pid", "1", env={"MESHSCOPE_CONFIG": str(file)}) == said


def test_bad_environment() -> None:
    said = line("run", "--pid", "1", env={"MESHSCOPE_BUDGET_CPU": "all"})
    assert said == 'MESHSCOPE_BUDGET_CPU: wants a number of cores, got "all"; e.g. 0.5 or 50%'
    said = line("run", "--pid", "1", env={"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"})
    assert said == 'OTEL_EXPORTER_OTLP_PROTOCOL: wants one of grpc, http/protobuf, got "http/json"; e.g. grpc'
    said = line("run", "--pid", "1", "--otlp-endpoint", "http://me:secret@h:1")
    assert said.startswith("OTLP endpoint: ")
    assert "secret" not in said


def test_a_variable_that_sets_nothing_is_told() -> None:
    said = meshscope("run", env={"MESHSCOPE_SELECT_PID": "4194300"}, code=2).splitlines()
    assert said[0] == "meshscope: MESHSCOPE_SELECT_PID: sets nothing; did you mean MESHSCOPE_SELECT_PIDS?"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "an empty file; replay reads what --record-raw wrote"),
        (b'{"format": "meshscope-exchanges"}\n', "a --record file (redacted exchanges); replay reads what --record-raw wrote"),
        (b"#!/bin/sh\n", "not a recording; replay reads what --record-raw wrote"),
        (b"\xd4\xc3\xb2\xa1\x02\0\4\0", "a packet capture; replay reads what --record-raw wrote"),
        (MAGIC + b"\1\0\0\0", f"cut short in its first {len(MAGIC) + 4} bytes"),
        (
            MAGIC + b"\1\0\0\0\xff\0\0\0\2\0\0\0{}",
            f"recorded with ABI version 255; this meshscope reads version {abi.ABI_VERSION}",
        ),
    ],
)
def test_bad_recordings(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "raw"
    if content is not None:
        file.write_bytes(content)
    assert line("replay", file, code=1) == f"{file}: {said}"


def test_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = line("run", "--pid", str(os.getpid()), "--prometheus", address, code=1)
    assert said == f"cannot serve metrics on {address}: it is in use; choose another port"


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    said = line("run", "--pid", str(os.getpid()), "--record", tmp_path / "no" / "where", code=1)
    assert said == f"{tmp_path / 'no' / 'where'}: No such file or directory"


def test_protocols() -> None:
    assert meshscope("protocols").splitlines() == ["http/1.1"]


def test_version_and_help() -> None:
    assert re.fullmatch(r"meshscope \d+\.\d+\.\d+\n", meshscope("--version"))
    text = meshscope("run", "--help")
    for flag in ("--pid N", "--exe GLOB", "--max-traps-per-second N", "--record-raw FILE", "--config FILE"):
        assert flag in text
    assert "--ui" not in text


def test_doctor_answers_in_json_whatever_the_kernel_allows() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "meshscope", "doctor", "--output", "json", "--pid", str(os.getpid())],
        cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert done.returncode == (0 if report["works"] else 1)
    assert os.getpid() in [process["pid"] for process in report["processes"]]
    assert (report["rung"] is not None) >= report["works"]


def test_doctor_of_nobody() -> None:
    assert line("doctor", "--pid", str(gone()), code=1).startswith("no process ")
