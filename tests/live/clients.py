"""The clients of the live suite, run as a process of its own: python clients.py PLAN RESULTS

Says "waiting" on standard output, waits for a line on standard input, carries out the plan and writes one line per request:
id, status (0: no answer), body (bytes of the answer's body received). A plan is a list of jobs, carried out one after another:
{"how": "python" | "curl" | "asyncio", "port", "tls", "threads", "asks": [{"id", "method", "path", ...}]}. Of an ask:
upload (bytes of a body), chunked, expect (100-continue), headers, hangup (leave so many ms after asking), stall (send only so
many bytes of the body).
asyncio asks run pipelined, `threads` deep, unless they hang up.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

Ask = dict[str, Any]


def context() -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    return made


def payload(ask: Ask) -> bytes:
    return (b"meshscope" * (ask.get("upload", 0) // 9 + 1))[: ask.get("upload", 0)]


class Results:
    """One line per answer, from any thread."""

    def __init__(self, out: TextIO) -> None:
        self.out = out
        self.lock = threading.Lock()

    def add(self, ask: Ask, status: int, body: int) -> None:
        with self.lock:
            self.out.write(json.dumps({"id": ask["id"], "status": status, "body": body}) + "\n")


def python_thread(job: dict[str, Any], asks: list[Ask], results: Results) -> None:
    """Keep-alive requests of http.client over one connection, made again when it was closed."""
    connection: http.client.HTTPConnection | None = None
    for ask in asks:
        if connection is None:
            if job["tls"]:
                connection = http.client.HTTPSConnection("127.0.0.1", job["port"], timeout=60, context=context())
            else:
                connection = http.client.HTTPConnection("127.0.0.1", job["port"], timeout=60)
        body: Any = payload(ask) or None
        headers = dict(ask.get("headers", {}))
        if ask.get("chunked"):
            headers["Transfer-Encoding"] = "chunked"
            whole = payload(ask)
            body = [whole[i : i + 700] for i in range(0, len(whole), 700)]
        try:
            connection.request(ask["method"], ask["path"], body, headers, encode_chunked=bool(ask.get("chunked")))
            if "hangup" in ask:
                assert connection.sock is not None
                connection.sock.settimeout(ask["hangup"] / 1000)
            answer = connection.getresponse()
            size = len(answer.read())
            results.add(ask, answer.status, size)
            if answer.will_close:
                connection.close()
                connection = None
        except (OSError, http.client.HTTPException):
            results.add(ask, 0, 0)
            connection.close()
            connection = None
    if connection is not None:
        connection.close()


def run_python(job: dict[str, Any], results: Results) -> None:
    share = [job["asks"][i :: job["threads"]] for i in range(job["threads"])]
    threads = [threading.Thread(target=python_thread, args=(job, asks, results)) for asks in share if asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def curl_once(job: dict[str, Any], ask: Ask, results: Results) -> None:
    url = f"http{'s' if job['tls'] else ''}://127.0.0.1:{job['port']}{ask['path']}"
    command = ["curl", "-sk", "--http1.1", "-o", "/dev/null", "-w", "%{http_code} %{size_download}", "-X", ask["method"], url]
    if ask["method"] == "HEAD":
        command.append("-I")
    if ask.get("upload"):
        command += ["--data-binary", "@-"]
    if ask.get("chunked"):
        command += ["-H", "Transfer-Encoding: chunked"]
    command += ["-H", "Expect: 100-continue" if ask.get("expect") else "Expect:"]
    for name, value in ask.get("headers", {}).items():
        command += ["-H", f"{name}: {value}"]
    if "hangup" in ask:
        command += ["--max-time", str(ask["hangup"] / 1000)]
    done = subprocess.run(command, input=payload(ask), capture_output=True, check=False, timeout=120)
    status, size = done.stdout.split()
    results.add(ask, int(status), int(size))


def run_curl(job: dict[str, Any], results: Results) -> None:
    for ask in job["asks"]:
        curl_once(job, ask, results)


async def read_answer(reader: asyncio.StreamReader, method: str) -> tuple[int, int]:
    """Status and body size of one answer, read here by hand so that no library stands between test and wire."""
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split()[1])
        if status >= 200:
            break
    if method == "HEAD" or status in {204, 304}:
        return status, 0
    fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
    if fields.get("transfer-encoding") != "chunked":
        return status, len(await reader.readexactly(int(fields["content-length"])))
    total = 0
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        total += len(await reader.readexactly(size + 2)) - 2
    while (await reader.readuntil(b"\r\n")).strip():
        pass
    return status, total


def wire(ask: Ask) -> bytes:
    headers = {"host": "localhost", **ask.get("headers", {})}
    body = payload(ask)
    if body or ask["method"] in {"POST", "PUT"}:
        headers["content-length"] = str(len(body))
    return (
        "".join([f"{ask['method']} {ask['path']} HTTP/1.1\r\n", *(f"{k}: {v}\r\n" for k, v in headers.items()), "\r\n"]).encode()
        + body
    )


async def pipelined(job: dict[str, Any], asks: list[Ask], results: Results) -> None:
    """All asks in one write, then all the answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", job["port"], ssl=context() if job["tls"] else None)
    writer.write(b"".join(wire(ask) for ask in asks))
    await writer.drain()
    for ask in asks:
        results.add(ask, *await read_answer(reader, ask["method"]))
    writer.close()
    await writer.wait_closed()


async def hang_up(job: dict[str, Any], ask: Ask, results: Results) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", job["port"], ssl=context() if job["tls"] else None)
    whole = wire(ask)
    writer.write(whole[: len(whole) - ask["upload"] + ask["stall"]] if "stall" in ask else whole)
    await writer.drain()
    try:
        results.add(ask, *await asyncio.wait_for(read_answer(reader, ask["method"]), ask["hangup"] / 1000))
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        results.add(ask, 0, 0)
    writer.transport.abort()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()


def run_asyncio(job: dict[str, Any], results: Results) -> None:
    async def work() -> None:
        stay = [ask for ask in job["asks"] if "hangup" not in ask]
        for i in range(0, len(stay), job["threads"]):
            await pipelined(job, stay[i : i + job["threads"]], results)
        await asyncio.gather(*(hang_up(job, ask, results) for ask in job["asks"] if "hangup" in ask))

    asyncio.run(work())


HOW = {"python": run_python, "curl": run_curl, "asyncio": run_asyncio}


def main() -> None:
    print("waiting", flush=True)
    sys.stdin.readline()
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    with Path(sys.argv[2]).open("w", encoding="utf-8") as out:
        results = Results(out)
        for job in plan:
            HOW[job["how"]](job, results)
    print("done", flush=True)


if __name__ == "__main__":
    main()
