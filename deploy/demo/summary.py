"""The demo's closing table: what each service answered by its own count, next to what was seen of it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Seen(NamedTuple):
    """What the summary needs of one exchange: which end told it, of which service, how it went and how long it took (ns)."""

    role: str
    service: str
    outcome: str
    duration_ns: int

    @classmethod
    def of(cls, document: dict[str, Any]) -> Seen:
        service = document["server"].get("workload") or "?"
        return cls(document["role"], service, document["outcome"], document["duration_ns"])


def quantile_ms(durations: list[int], share: float) -> float:
    """Of sorted durations in ns, at least one."""
    return durations[min(int(len(durations) * share), len(durations) - 1)] / 1e6


def table(answered: dict[str, int], seen: list[Seen]) -> tuple[str, bool]:
    """The table as text, and whether each service's server-side exchanges equal the requests it answered."""
    customers = answered.pop("customers", 0)
    rows = [f"{'service':<12} {'answered':>9} {'seen':>9} {'errors':>8} {'p50':>10} {'p95':>10}"]
    complete = True
    for service, count in answered.items():
        mine = [one for one in seen if one.role == "server" and one.service == service]
        durations = sorted(one.duration_ns for one in mine) or [0]
        errors = sum(1 for one in mine if one.outcome == "server_error")
        complete = complete and len(mine) == count
        times = f"{quantile_ms(durations, 0.5):>7.1f} ms {quantile_ms(durations, 0.95):>7.1f} ms"
        rows.append(f"{service:<12} {count:>9} {len(mine):>9} {errors:>8} {times}")
    inside = sum(1 for one in seen if one.role == "client")
    rows.append("")
    rows.append(f"customers received {customers} answers; {len(seen)} exchange ends seen, {inside} of them by clients")
    rows.append("every request was seen" if complete else "NOT every request was seen")
    return "\n".join(rows), complete
