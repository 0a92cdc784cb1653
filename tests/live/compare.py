"""What the agent saw against what the servers and clients wrote down, one to one by id."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tests.live.fleet import PATIENCE

Line = dict[str, Any]
LOSS = {"bytes_lost", "late_join", "head_truncated", "peer_unknown", "orphan"}
NEAR_NS = 2_000_000 * PATIENCE


def number(exchange: Line) -> str:
    """The id in an exchange's target, "" if it has none."""
    parts = (exchange["request"]["target"] or "").split("?")[0].split("/")
    return parts[2] if len(parts) > 2 else ""


def by_id(exchanges: list[Line], role: str) -> dict[str, list[Line]]:
    out: dict[str, list[Line]] = defaultdict(list)
    for exchange in exchanges:
        if exchange["role"] == role:
            out[number(exchange)].append(exchange)
    return out


def brief(exchanges: list[Line]) -> str:
    """Enough of the exchanges to see what is wrong with them."""
    return "\n".join(
        f"  {e['role']} {e['request']['method']} {e['request']['target']} -> {(e['response'] or {}).get('status')} "
        f"{e['outcome']} body {(e['response'] or {}).get('body_bytes')} pid {e['process'] and e['process']['pid']} {e['flags']}"
        for e in exchanges[:6]
    )


class Faults(list[str]):
    """Collects what differs, so that one run tells everything."""

    def expect(self, true: object, text: str) -> None:
        if not true:
            self.append(text)

    def settle(self, said: str = "") -> None:
        assert not self, f"{len(self)} differences, the first:\n" + "\n".join(self[:12]) + f"\n{said}"


def server_end(faults: Faults, exchanges: list[Line], lines: list[Line]) -> None:
    """Every line of the server's log has its exchange, every exchange its line."""
    seen = by_id(exchanges, "server")
    logged = {line["id"]: line for line in lines}
    faults.expect(len(logged) == len(lines), "the server logged an id twice")
    for line in lines:
        mine = seen.get(line["id"], [])
        if len(mine) != 1:
            faults.append(f"server: {len(mine)} exchanges for {line}\n{brief(mine)}")
            continue
        (exchange,) = mine
        got = (exchange["request"]["method"], exchange["request"]["target"])
        faults.expect(got == (line["method"], line["target"]), f"server: {got} for {line}")
        if not line["head"]:
            faults.expect(
                exchange["response"] is None and exchange["outcome"] == "aborted", f"server: no head in {line}\n{brief(mine)}"
            )
            continue
        if exchange["response"] is None:
            faults.append(f"server: no response for {line}\n{brief(mine)}")
            continue
        faults.expect(exchange["response"]["status"] == line["status"], f"server: status for {line}\n{brief(mine)}")
        if line["complete"] and line["body"] is not None:
            faults.expect(exchange["response"]["body_bytes"] == line["body"], f"server: body for {line}\n{brief(mine)}")
    for who, mine in seen.items():
        if who not in logged:
            no_answer = len(mine) == 1 and mine[0]["response"] is None and mine[0]["outcome"] == "aborted"
            faults.expect(no_answer, f"server: an exchange no log line tells of\n{brief(mine)}")


def client_end(faults: Faults, exchanges: list[Line], results: list[Line], asks: dict[str, Line]) -> None:
    """Every request a client made is an exchange with what the client received."""
    seen = by_id(exchanges, "client")
    for result in results:
        mine = seen.get(result["id"], [])
        if len(mine) != 1:
            faults.append(f"client: {len(mine)} exchanges for {result} of {asks[result['id']]}\n{brief(mine)}")
            continue
        (exchange,) = mine
        wanted = asks[result["id"]]
        got = (exchange["request"]["method"], exchange["request"]["target"])
        faults.expect(got == (wanted["method"], wanted["path"]), f"client: {got} for {wanted}")
        if result["status"] == 0:
            faults.expect(exchange["outcome"] == "aborted", f"client: {result} was left without an answer\n{brief(mine)}")
            continue
        answer = exchange["response"] or {"status": None, "body_bytes": None}
        told = (answer["status"], answer["body_bytes"])
        faults.expect(told == (result["status"], result["body"]), f"client: {told} for {result} of {wanted}\n{brief(mine)}")
        sent = exchange["request"]["body_bytes"]
        faults.expect(sent == wanted.get("upload", 0), f"client: request body {sent} for {wanted}\n{brief(mine)}")


def pairs(faults: Faults, exchanges: list[Line], hasty: set[str] = frozenset()) -> int:  # type: ignore[assignment]
    """As many client exchanges as server exchanges, joined one to one; returns how many.

    hasty: ids of clients that leave. A reset overtakes what they asked, so the server may never have read it.
    """
    servers, clients = by_id(exchanges, "server"), by_id(exchanges, "client")
    for who in servers.keys() | (clients.keys() - hasty):
        ours = servers.get(who, []), clients.get(who, [])
        if (len(ours[0]), len(ours[1])) != (1, 1):
            faults.append(f"pair {who}: {len(ours[0])} server, {len(ours[1])} client exchanges\n{brief([*ours[0], *ours[1]])}")
            continue
        server, client = ours[0][0]["trace"], ours[1][0]["trace"]
        joined = server["trace_id"] == client["trace_id"] and server["parent_span_id"] == client["span_id"]
        faults.expect(joined, f"pair {who} is not joined: client {client}, server {server}\n{brief([*ours[0], *ours[1]])}")
    return len(servers)


def durations(faults: Faults, exchanges: list[Line], lines: list[Line], timed: set[str]) -> tuple[float, float]:
    """Our duration minus the server's for the same exchange: (p50, p99) of its size in ms, each below 2 ms.

    What the server waited for a processor is taken off: it may wait between the kernel's event and its own look at the clock.

    timed: ids to compare. Not those that queue: ours begins when their bytes arrive, the server's when it comes to them.
    """
    seen = by_id(exchanges, "server")
    off = []
    for line in lines:
        mine = seen.get(line["id"], [])
        if line["complete"] and line["id"] in timed and len(mine) == 1:
            apart = abs(mine[0]["duration_ns"] - line["ns"])
            off.append((max(apart - line.get("waited", 0), 0), line["target"]))
    off.sort()
    assert off, "nothing to compare"
    p50, p99 = off[len(off) // 2][0], off[len(off) * 99 // 100][0]
    worst = ", ".join(f"{ns / 1e6:.2f} ms {target}" for ns, target in off[-8:])
    told = max(p50, p99) if len(off) >= 100 else p50  # of few the p99 is the worst
    faults.expect(told <= NEAR_NS, f"durations differ by {p50 / 1e6:.2f} ms (p50), {p99 / 1e6:.2f} ms (p99): {worst}")
    return p50 / 1e6, p99 / 1e6


def unharmed(faults: Faults, exchanges: list[Line]) -> None:
    """No exchange carries a doubt."""
    doubtful = [e for e in exchanges if LOSS & set(e["flags"]) or e["outcome"] == "unknown"]
    faults.expect(not doubtful, f"{len(doubtful)} exchanges with doubts\n{brief(doubtful)}")
