"""docs/reference.md, from the code.

    python scripts/reference.py > docs/reference.md

What a user can set and what meshscope can say, each with its sentence. Nothing is written twice: a setting, a counter or a
flag that is declared appears here, and tests/test_docs.py tells when the page is behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from meshscope.config import Setting, settings
from meshscope.model import CLIENT, FLAGS, SERVER, UNKNOWN_REASONS, Role, Workload
from meshscope.redact import KEPT_HEADERS
from meshscope.sinks.exposition import labels, metric_name
from meshscope.sinks.families import Histogram, histograms, numbers
from meshscope.sinks.golden import Active, Golden, Row, Series
from meshscope.stats import COUNTERS, EQUATIONS, Stats
from parsers import PROTOCOLS, REFINERS, Refiner, Speech
from parsers.base import REQUESTS, Message

_SOMEBODY = Workload("x", "x", container="x")
_SPEECHES: tuple[Speech | Refiner, ...] = (*PROTOCOLS, *REFINERS)


def page() -> str:
    """The whole page."""
    parts = (
        ["# Reference", "Made from the code by `scripts/reference.py`; do not edit."],
        _settings(),
        _protocols(),
        _metrics(),
        _flags(),
        _counters(),
    )
    return "\n\n".join(block for part in parts for block in part) + "\n"


def _settings() -> Iterator[str]:
    yield "## Settings"
    yield (
        "A setting stands in the file given with `--config` (YAML; the path is its place), in the environment or on the\n"
        "command line; the later wins. Unknown names and wrong types are errors that say what would be right."
    )
    sections: dict[str, list[Setting]] = {}
    for one in settings():
        section, dot, _ = one.path.rpartition(".")
        sections.setdefault(section if dot else "", []).append(one)
    for name, members in sections.items():
        yield f"### `{name}`" if name else "### Top level"
        rows = ([_code(one.path), one.type, _default(one), _flag(one), _codes(one.env), one.doc] for one in members)
        yield _table(("Setting", "Type", "Default", "Flag", "Environment", "What it does"), rows)


def _protocols() -> Iterator[str]:
    yield "## Protocols"
    found = [[_code(one.NAME), _first_line(one)] for one in _SPEECHES]
    yield _table(("Name", "What it is"), found)
    yield (
        "Headers that are kept, unless they look like a secret: "
        + _codes(sorted(KEPT_HEADERS))
        + "; others by `exchanges.headers`."
    )


def _metrics() -> Iterator[str]:
    yield "## Metrics"
    yield (
        "The same rows as OTLP metrics (cumulative) and as Prometheus text. The reporting service is the resource in OTLP\n"
        "and the labels `service_name`, `service_namespace` and `container_id` in Prometheus. Attributes that are not known\n"
        "are left out. An exchange counts once at each end that was watched; one whose outcome is unknown counts only in\n"
        "`meshscope.unknown_exchanges`."
    )
    rows = []
    golden = Golden(Stats())
    families = {one.describe(Message(REQUESTS, 0, 0, 0), None).family: one.NAME for one in _SPEECHES}
    for family, protocol in families.items():
        for role in (SERVER, CLIENT):
            series = _fullest(role, family, protocol)
            known = sorted(series.attributes())
            golden.active = {**golden.active, Active(role, _SOMEBODY, family): 1}
            rows += [_histogram(one, known) for one in histograms(Row(series, 0))]
    golden.unknown[_SOMEBODY, "x"] = 1
    for number in numbers(golden):
        name = metric_name(number.name, number.unit) + ("_total" if number.monotonic else "")
        kind = "counter" if number.monotonic else "gauge"
        rows.append([_code(number.name), _code(name), kind, number.unit, _codes(sorted(number.attributes)), number.description])
    yield _table(("OpenTelemetry", "Prometheus", "Kind", "Unit", "Attributes", "What it is"), rows)
    label = labels(_SOMEBODY, {"otel.metric.overflow": True}).rpartition(",")[2]
    yield (
        f"Rows beyond `metrics.series` share one with `{label}`. The agent's own counters follow below, as\n"
        "`meshscope.NAME` and `meshscope_NAME_total`."
    )


def _fullest(role: Role, family: str, protocol: str) -> Series:
    """A series in which nothing is unknown."""
    return Series(role, _SOMEBODY, _SOMEBODY, family, protocol, "x", "x", "/x", "200", "", "x", "x", 1)


def _histogram(one: Histogram, known: list[str]) -> list[str]:
    bounds = ", ".join(f"{bound:g}" if bound < 1 else f"{int(bound) if bound == int(bound) else bound}" for bound in one.bounds)
    name = _code(metric_name(one.name, one.unit))
    return [_code(one.name), name, "histogram", one.unit, _codes(known), f"{one.description} Bounds: {bounds}."]


def _flags() -> Iterator[str]:
    yield "## Doubts"
    yield "What `flags` of an exchange may hold. They are no errors; they say what was not seen."
    yield _table(("Flag", "What it says"), ([_code(name), text] for name, text in sorted(FLAGS.items())))
    yield (
        "An exchange of which these leave open how it ended has the outcome `unknown`. The first of "
        + _codes(UNKNOWN_REASONS)
        + "\n"
        "among its flags is the `reason` it is counted by."
    )


def _counters() -> Iterator[str]:
    yield "## The agent's own counters"
    yield _table(("Counter", "What it counts"), ([_code(name), text] for name, text in sorted(COUNTERS.items())))
    yield "When the agent ends, these hold:"
    yield "\n".join(f"- {_sum(left)} = {_sum(right)}" for left, right in EQUATIONS)


def _sum(names: Iterable[str]) -> str:
    return " + ".join(map(_code, names))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _default(one: Setting) -> str:
    if isinstance(one.default, bool):
        return "on" if one.default else "off"
    if isinstance(one.default, Mapping | tuple | str) and not one.default:
        return ""
    value, kind = one.default, one.type
    if kind == "size" and value:
        return f"{value >> 20} MiB"
    if kind == "time" and value:
        return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"
    return _code(f"{value:g}" if isinstance(value, float) else str(value))


def _flag(one: Setting) -> str:
    return _code(f"{one.flag} {one.metavar}".strip()) if one.flag else ""


def _first_line(module: object) -> str:
    return (module.__doc__ or "").strip().partition("\n")[0]


def _codes(names: Iterable[str]) -> str:
    return ", ".join(map(_code, names))


def _code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    sys.stdout.write(page())
