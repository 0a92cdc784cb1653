"""One service of the demo shop: python service.py NAME PORT LOG [CERT KEY]; the others' addresses come as NAME_URL variables.

catalogue, cart, stock and payment are threaded servers; `checkout.py` is the asyncio one. Each answer adds a line to LOG, so that
the demo can compare what was answered with what was seen. A traceparent that came in is passed on to the next service.
"""

from __future__ import annotations

import http.client
import http.server
import json
import os
import random
import ssl
import sys
import time
from urllib.parse import urlsplit

PRODUCTS = 40
Answer = tuple[int, object]


def call(service: str, method: str, path: str, trace: str | None, body: object = None) -> Answer:
    """Ask another service; (status, decoded body)."""
    url = urlsplit(os.environ[f"{service.upper()}_URL"])
    assert url.hostname is not None
    if url.scheme == "https":
        context = ssl.create_default_context(cafile=os.environ["SHOP_CA"])
        link: http.client.HTTPConnection = http.client.HTTPSConnection(url.hostname, url.port, timeout=10, context=context)
    else:
        link = http.client.HTTPConnection(url.hostname, url.port, timeout=10)
    headers = {"content-type": "application/json", **({"traceparent": trace} if trace else {})}
    try:
        link.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = link.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    finally:
        link.close()


def catalogue(method: str, path: str, trace: str | None) -> Answer:
    """/products, /products/N (some do not exist), /search?q= (slow)."""
    del method, trace
    if path.startswith("/search"):
        time.sleep(random.uniform(0.08, 0.2))
        return 200, [{"id": random.randrange(PRODUCTS)} for _ in range(5)]
    if path == "/products":
        return 200, [{"id": number, "name": f"thing {number}"} for number in range(PRODUCTS)]
    number = int(path.rsplit("/", 1)[1])
    return (200, {"id": number, "name": f"thing {number}"}) if number < PRODUCTS else (404, {"error": "no such product"})


def cart(method: str, path: str, trace: str | None) -> Answer:
    """/cart/UUID: what is in it; POST asks the stock first."""
    if method == "GET":
        return 200, {"cart": path, "items": 2}
    status, _ = call("stock", "GET", f"/stock/{random.randrange(PRODUCTS)}", trace)
    return (201, {"added": 1}) if status == 200 else (502, {"error": "stock does not answer"})


def stock(method: str, path: str, trace: str | None) -> Answer:
    """/stock/N: now and then it fails."""
    del method, trace
    time.sleep(random.uniform(0.001, 0.01))
    return (500, {"error": "database is locked"}) if random.random() < 0.05 else (200, {"left": len(path)})


def payment(method: str, path: str, trace: str | None) -> Answer:
    """/charge: takes its time, declines one in ten."""
    del method, path, trace
    time.sleep(random.uniform(0.03, 0.09))
    return (402, {"error": "declined"}) if random.random() < 0.1 else (200, {"charged": True})


SERVICES = {"catalogue": catalogue, "cart": cart, "stock": stock, "payment": payment}


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads a request, asks the service's function, answers in JSON over a connection that stays open."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write
    service = staticmethod(catalogue)
    log = -1

    def any_method(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        status, answer = self.service(self.command, self.path, self.headers.get("traceparent"))
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        os.write(self.log, b"1\n")

    do_GET = do_POST = any_method  # noqa: N815 (http.server's names)

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def main() -> None:
    name, port, log, *tls = sys.argv[1:]
    Handler.service = staticmethod(SERVICES[name])
    Handler.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
