"""The customers of the demo shop: python customers.py URL LOG. Starts when a line comes in, stops in order at SIGTERM.

Four of them visit over kept-open TLS connections, one with traceparent headers; a fifth uses curl, a new process each time.
Each answer received adds a line to LOG.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

PAUSE_S = 0.12


def journey() -> Iterator[tuple[str, str, str | None]]:
    """One visit: (method, path, body)."""
    basket = uuid.uuid4()
    yield "GET", "/", None
    yield "GET", "/api/products", None
    for _ in range(random.randrange(1, 4)):
        yield "GET", f"/api/products/{random.randrange(44)}", None
    if random.random() < 0.4:
        yield "GET", f"/api/search?q=thing+{random.randrange(9)}", None
    for _ in range(random.randrange(1, 3)):
        yield "POST", f"/api/cart/{basket}", '{"product": 1}'
    yield "GET", f"/api/cart/{basket}", None
    if random.random() < 0.6:
        yield "POST", "/api/checkout", '{"cart": 1}'


class Customers:
    """Threads that go on with their journeys until told to stop."""

    def __init__(self, url: str, log: str) -> None:
        self.url = urlsplit(url)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.context = ssl.create_default_context(cafile=os.environ["SHOP_CA"])
        self.leave = threading.Event()

    def patient(self, traced: bool) -> None:
        while not self.leave.is_set():
            link = http.client.HTTPSConnection(self.url.hostname or "", self.url.port, timeout=20, context=self.context)
            for method, path, body in journey():
                headers = {"content-type": "application/json"} if body else {}
                if traced:
                    headers["traceparent"] = f"00-{uuid.uuid4().hex}-{os.urandom(8).hex()}-01"
                link.request(method, path, body, headers)
                link.getresponse().read()
                os.write(self.log, b"1\n")
                if self.leave.wait(PAUSE_S):
                    break
            link.close()

    def hasty(self) -> None:
        while not self.leave.wait(3 * PAUSE_S):
            path = random.choice(["/", "/api/products", f"/api/products/{random.randrange(44)}"])
            command = ["curl", "-s", "-o", os.devnull, "--cacert", os.environ["SHOP_CA"], self.url.geturl() + path]
            subprocess.run(command, check=False)
            os.write(self.log, b"1\n")


def main() -> None:
    customers = Customers(*sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: customers.leave.set())
    sys.stdin.readline()
    threads = [threading.Thread(target=customers.patient, args=(number == 0,)) for number in range(4)]
    threads.append(threading.Thread(target=customers.hasty))
    for thread in threads:
        thread.start()
        time.sleep(PAUSE_S / len(threads))
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
