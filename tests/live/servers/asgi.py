"""An ASGI application under uvicorn, with the routes and the log of blocking.py.

python asgi.py LOOP PARSER PORT LOG FILE [CERT KEY]      LOOP: asyncio or uvloop; PARSER: h11 or httptools
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import uvicorn

SCHEDSTAT = Path("/proc/thread-self/schedstat")
PIECES = (b"one,", b"two and ", b"three" * 400)
FIXED = {"none": (204, b""), "same": (304, b""), "gone": (404, b"no\n"), "fail": (500, b"no\n"), "move": (302, b"")}


class Application:
    """One call per request; writes its line when the last byte was handed to the server."""

    def __init__(self, log: str, file: str) -> None:
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.file = Path(file).read_bytes()
        self.queued = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        began = time.monotonic_ns()
        target = scope["raw_path"].decode() + ("?" + scope["query_string"].decode() if scope["query_string"] else "")
        _, kind, number = scope["path"].split("/")[:3]
        status, pieces, counted = await self.answer(kind, scope, receive)
        if status == 0:
            self.write(number, scope, target, 0, 0, began)
            return
        headers = [(b"content-length", str(sum(map(len, pieces))).encode())] if counted else []
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if scope["method"] == "HEAD":
            pieces = ()
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        self.write(number, scope, target, status, sum(map(len, pieces)), began)

    def write(self, number: str, scope: dict[str, Any], target: str, status: int, body: int, began: int) -> None:
        ns = time.monotonic_ns() - began
        queued = int(SCHEDSTAT.read_text(encoding="ascii").split()[1])
        line = {
            "id": number,
            "method": scope["method"],
            "target": target,
            "status": status,
            "body": body,
            "ns": ns,
            "waited": queued - self.queued,
            "head": status > 0,
            "complete": status > 0,
        }
        self.queued = queued
        os.write(self.log, (json.dumps(line) + "\n").encode())

    async def answer(self, kind: str, scope: dict[str, Any], receive: Any) -> tuple[int, tuple[bytes, ...], bool]:
        """Status (0: the client has gone), body in pieces, and whether its length is told ahead."""
        total = 0
        more = True
        while more:
            event = await receive()
            total += len(event.get("body", b""))
            more = event.get("more_body", False)
        if kind in FIXED:
            status, body = FIXED[kind]
            return status, (body,) if body else (), status not in {204, 304}
        if kind == "slow":
            gone = asyncio.ensure_future(receive())
            await asyncio.sleep(int(parse_qs(scope["query_string"].decode())["ms"][0]) / 1000)
            if gone.done():
                return 0, (), False
            gone.cancel()
        if kind == "file":
            return 200, (self.file,), True
        if kind == "chunked":
            return 200, PIECES, False
        return 200, (f"{total} bytes for {scope['path']}\n".encode(),), True


def main() -> None:
    loop, parser, port, log, file, *tls = sys.argv[1:]
    options: dict[str, Any] = {"ssl_certfile": tls[0], "ssl_keyfile": tls[1]} if tls else {}
    uvicorn.run(
        Application(log, file),
        host="127.0.0.1",
        port=int(port),
        loop=loop,
        http=parser,
        access_log=False,
        log_level="error",
        timeout_graceful_shutdown=1,
        **options,
    )


if __name__ == "__main__":
    main()
