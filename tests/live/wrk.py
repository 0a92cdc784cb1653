"""wrk as a load whose every request has an id of its own and whose own counts are the measure."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from typing import Any

from tests.live.fleet import HERE, PATIENCE, Fleet

FIRST = 10_000_000
UNTIL_ENDED = 600


def begin(
    fleet: Fleet,
    url: str,
    seconds: float,
    *,
    connections: int = 16,
    pause_ms: int = 3,
    path: str = "/ok/",
    first: int = FIRST,
    headers: tuple[str, ...] = (),
    name: str = "wrk",
    private: bool = True,
) -> subprocess.Popen[bytes]:
    """Start a load (UNTIL_ENDED: until `end` ends it): without pause 100,000 requests a second, with 3 ms about 4,500."""
    command: list[Any] = ["wrk", "-t2", f"-c{connections}", f"-d{math.ceil(seconds)}s", "-s", HERE / "requests.lua", url]
    return fleet.start([*command, "--", path, str(first), str(pause_ms), *headers], name, private=private)


def end(fleet: Fleet, process: subprocess.Popen[bytes], name: str = "wrk", now: bool = False) -> dict[str, int]:
    """Wait for it, or end it now: requests, non2xx, socket, timeouts, p50_us, p99_us as wrk counted them."""
    if now:
        process.send_signal(signal.SIGINT)
    process.wait(60 * PATIENCE)
    fleet.forget(process)
    said = (fleet.folder / f"{name}.out").read_text(encoding="utf-8")
    assert process.returncode == 0, said
    told: dict[str, int] = json.loads(said.splitlines()[-1])
    return told


def wrk(fleet: Fleet, url: str, seconds: float, **options: Any) -> dict[str, int]:
    """One whole load."""
    return end(fleet, begin(fleet, url, seconds, **options), options.get("name", "wrk"))
