"""The asyncio service of the demo shop, TLS on both sides: python checkout.py PORT LOG CERT KEY

asyncio hands bytes to OpenSSL through memory, never a socket: the case in which TLS bytes are hardest to place.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
import sys
from typing import NamedTuple
from urllib.parse import urlsplit


class Head(NamedTuple):
    """First line, split, and lower-case header fields."""

    line: list[str]
    fields: dict[str, str]


async def read_message(reader: asyncio.StreamReader) -> tuple[Head, bytes] | None:
    """One request or answer with its counted body; None at the end of the connection."""
    try:
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        return None
    first, *rest = text.rstrip().split("\r\n")
    fields = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in rest)}
    return Head(first.split(" ", 2), fields), await reader.readexactly(int(fields.get("content-length", 0)))


async def charge(trace: str | None) -> int:
    """Ask the payment service; its status."""
    url = urlsplit(os.environ["PAYMENT_URL"])
    context = ssl.create_default_context(cafile=os.environ["SHOP_CA"])
    reader, writer = await asyncio.open_connection(url.hostname, url.port, ssl=context)
    body = json.dumps({"amount": random.randrange(5, 200)})
    passed = f"traceparent: {trace}\r\n" if trace else ""
    writer.write(f"POST /charge HTTP/1.1\r\nhost: {url.hostname}\r\n{passed}content-length: {len(body)}\r\n\r\n{body}".encode())
    answer = await read_message(reader)
    writer.close()
    return int(answer[0].line[1]) if answer else 502


async def serve(log: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: requests one after another."""
    while request := await read_message(reader):
        head, _ = request
        if random.random() < 0.05:
            status, body = "503 Service Unavailable", b'{"error": "too many orders"}'
        else:
            await asyncio.sleep(random.uniform(0, 0.02))
            paid = await charge(head.fields.get("traceparent")) == 200
            status, body = ("201 Created", b'{"order": 1}') if paid else ("402 Payment Required", b'{"error": "declined"}')
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body
        )
        await writer.drain()
        os.write(log, b"1\n")
    writer.close()


async def main() -> None:
    port, log, cert, key = sys.argv[1:]
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    server = await asyncio.start_server(lambda r, w: serve(out, r, w), "127.0.0.1", int(port), ssl=context)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
