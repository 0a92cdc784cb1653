"""Planted secrets are found in no output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.agent import Agent
from tests.live.driver import Driver
from tests.live.fleet import Fleet, free_port, wait_until
from tests.live.plans import ask
from tests.live.receivers import Jaeger
from tests.live.scrape import fetch

pytestmark = pytest.mark.usefixtures("kernel_state")
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2VjcmV0LXNpZ25hdHVyZS1wbGFudGVk"
HEADERS = {
    "authorization": "Bearer planted-bearer-7f3a",
    "proxy-authorization": "Basic cGxhbnRlZC1iYXNpYw==",
    "cookie": "session=planted-cookie-91",
    "x-api-key": "planted-api-key-55",
    "x-plant": "sid=planted-set-cookie-23; Path=/",
}
QUERIES = (
    "?token=planted-token-41&page=2",
    "?%74oken=planted-encoded-key-42",
    "?password=planted-password-43",
    f"?next={JWT}",
    "?mail=planted.query%40example.org",
)
SECRETS = [
    *("planted-bearer", "cGxhbnRlZC1iYXNpYw", "planted-cookie", "planted-api-key", "planted-set-cookie", "planted-token"),
    *("planted-encoded-key", "planted-password", JWT, JWT.split(".")[2], "planted.query", "planted-user", "planted-pass"),
    *("planted.path", "planted-body", "5f4dcc3b5aa765d61d8327deb882cf99planted"),
]


@pytest.mark.parametrize("output", ["text", "json"])
def test_secrets_reach_no_output(output: str, fleet: Fleet, big_file: Path) -> None:
    jaeger = Jaeger(fleet)
    port, page, record = free_port(), free_port(), fleet.folder / "record.json"
    log = fleet.folder / "server.log"
    process = fleet.python("servers/blocking.py", "threaded", port, log, big_file, name="threaded", ports=(port,))
    asks = [ask("ok", query=query, headers=HEADERS) for query in QUERIES]
    for extra in ("/planted.path@example.org", "/5f4dcc3b5aa765d61d8327deb882cf99planted", "/planted.path%40example.org/x"):
        one = ask("ok", headers=HEADERS)
        one["path"] += extra
        asks.append(one)
    absolute = ask("ok")
    absolute["path"] = f"http://planted-user:planted-pass@localhost{absolute['path']}"
    asks.append(absolute)
    driver = Driver(fleet, [{"how": "asyncio", "port": port, "tls": False, "threads": 4, "asks": asks}])
    arguments = ["--pid", process.pid, "--pid", driver.process.pid, "--record", record, "--prometheus", f"127.0.0.1:{page}"]
    arguments += ["--otlp-endpoint", f"http://127.0.0.1:{jaeger.ports['http']}", "--otlp-protocol", "http/protobuf"]
    agent = Agent(fleet, list(map(str, arguments)), output=output)
    assert len(driver.go()) == len(asks)
    wait_until(lambda: f" {2 * len(asks)}" in counted(page), 10, "both ends of all requests are counted")
    metrics = fetch(page)
    agent.end()
    wait_until(lambda: jaeger.log.read_text(encoding="utf-8").count("Trace ID ") >= 2 * len(asks), 10, "the spans arrive")
    told = {
        "console": agent.stdout.read_text(encoding="utf-8"),
        "log": agent.said(),
        "record": record.read_text(encoding="utf-8"),
        "metrics": metrics,
        "spans and metrics as the Collector got them": jaeger.log.read_text(encoding="utf-8"),
    }
    for where, text in told.items():
        assert text, f"{where} is empty"
        found = [secret for secret in SECRETS if secret in text]
        assert not found, f"{found} in {where}"
    for where in ("console", "record"):
        assert all(one["id"] in told[where] for one in asks), f"{where} does not tell of every request"


def counted(page: int) -> str:
    return next((line for line in fetch(page).splitlines() if line.startswith("meshscope_exchanges_total")), "")
