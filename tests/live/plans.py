"""What the clients of the live suite ask, with ids nobody else uses (8 digits, so that no redaction takes them)."""

from __future__ import annotations

import itertools
import os
from typing import Any

SHORT = os.environ.get("MESHSCOPE_LIVE") == "short"
Ask = dict[str, Any]
LARGE = 60_000  # of one transfer 64 KiB are copied; beyond, a chunked body is flagged
_ids = itertools.count(90_000_000)  # wrk counts from 10 million upwards


def ask(kind: str, method: str = "GET", query: str = "", **more: Any) -> Ask:
    number = str(next(_ids))
    return {"id": number, "method": method, "path": f"/{kind}/{number}{query}", **more}


def mixed(server: str, rounds: int) -> list[Ask]:
    """One of everything, `rounds` times: methods, bodies both ways, no body, redirects, downloads, slow answers."""
    out: list[Ask] = []
    for turn in range(rounds):
        out += [
            ask("ok"),
            ask("ok", query=f"?page={turn}&id={90000000 + turn}"),
            ask("ok", "HEAD"),
            ask("ok", "OPTIONS"),
            ask("ok", "DELETE"),
        ]
        out += [ask("echo", "POST", upload=10), ask("echo", "POST", upload=5000), ask("echo", "POST", upload=LARGE)]
        out += [ask("echo", "PUT", upload=3000, chunked=True), ask("echo", "POST", upload=2000, expect=True)]
        out += [ask("none"), ask("same"), ask("gone"), ask("fail"), ask("move"), ask("chunked"), ask("chunked", "HEAD")]
        if server in {"threaded", "prefork"}:
            out += [ask("close")]
        if turn % 4 == 0:
            out += [ask("file"), ask("file", "HEAD"), ask("slow", query="?ms=250")]
    if server == "nginx":
        out = [one for one in out if one["method"] not in {"OPTIONS", "DELETE"}]
    return out


def pipelinable(rounds: int) -> list[Ask]:
    """Requests whose answers can be told apart in one stream, 16 at a time."""
    kinds = ["ok", "none", "gone", "same", "fail", "move", "ok", "ok"]
    return [ask(kind) for _ in range(2 * rounds) for kind in kinds]


def impatient(server: str, rounds: int) -> list[Ask]:
    """Clients that leave before the answer, and servers that never give one."""
    out = [ask("slow", query="?ms=250", hangup=60) for _ in range(4 * rounds)]
    if server == "nginx":  # logged as 499 and 408
        out += [ask("wait", hangup=60) for _ in range(2 * rounds)]
        out += [ask("echo", "POST", upload=1000, stall=500, hangup=5000)]
    if server not in {"uvicorn", "uvloop"}:
        out += [ask("drop", hangup=5000) for _ in range(2 * rounds)]
    return out


def plan(server: str, port: int, tls: bool, rounds: int) -> list[dict[str, Any]]:
    """The whole mixed set against one server. Durations are compared where `timed`: one request at a time, nothing queued."""
    curl = mixed(server, 1 if SHORT else 2)
    if SHORT:
        curl = curl[2:12:2]  # a new process each time is what emulation is slowest at
    return [
        {"how": "python", "port": port, "tls": tls, "threads": 1, "asks": mixed(server, 2 * rounds), "timed": True},
        {"how": "python", "port": port, "tls": tls, "threads": 3, "asks": mixed(server, rounds // 2 or 1)},
        {"how": "curl", "port": port, "tls": tls, "threads": 1, "asks": curl},
        {"how": "asyncio", "port": port, "tls": tls, "threads": 16, "asks": pipelinable(rounds) + impatient(server, rounds)},
    ]
