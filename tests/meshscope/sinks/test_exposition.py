from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from meshscope.model import CLIENT, SERVER, Workload
from meshscope.sinks.conventions import clean
from meshscope.sinks.exposition import Exposition, labels, metric_name
from meshscope.sinks.golden import Golden
from meshscope.stats import COUNTERS, Stats
from tests.meshscope.exchanges import SHOP, exchange

SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\\n]|\\[\\"n])*)"')


def parse(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """A strict reader of the text format: comments before samples, families in one piece, no sample twice."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    family, kind, families = "", "", set()
    assert page.endswith("\n")
    for text in page[:-1].split("\n"):
        if text.startswith("# HELP "):
            family = text.split(" ")[2]
            assert family not in families
            families.add(family)
        elif text.startswith("# TYPE "):
            assert text.split(" ")[2] == family
            kind = text.split(" ")[3]
        else:
            match = SAMPLE.fullmatch(text)
            assert match, text
            name, pairs, value = match.groups()
            assert name in ({f"{family}_bucket", f"{family}_sum", f"{family}_count"} if kind == "histogram" else {family})
            assert (kind == "counter") == name.endswith("_total")
            found_labels = [(k, re.sub(r"\\(.)", r"\1", v)) for k, v in LABEL.findall(pairs or "")]
            assert len({k for k, _ in found_labels}) == len(found_labels)
            key = (name, frozenset(found_labels))
            assert key not in found
            found[key] = float(value)
    return found


def page(golden: Golden, counters: dict[str, int] | None = None) -> str:
    return "".join(Exposition(golden).render(counters or {}))


def value(page_: str, name: str, **wanted: str) -> float:
    (found,) = [v for (n, ls), v in parse(page_).items() if n == name and wanted.items() <= dict(ls).items()]
    return found


def test_a_histogram_as_prometheus_wants_it() -> None:
    golden = Golden(Stats())
    golden.emit([exchange(duration_ns=ms * 1_000_000) for ms in (1, 6, 7, 60_000)])
    text = page(golden)
    name = "http_server_request_duration_seconds"
    assert f"# TYPE {name} histogram\n" in text
    assert value(text, f"{name}_bucket", le="0.005") == 1
    assert value(text, f"{name}_bucket", le="0.01") == 3
    assert value(text, f"{name}_bucket", le="10") == 3
    assert value(text, f"{name}_bucket", le="+Inf") == value(text, f"{name}_count") == 4
    assert abs(value(text, f"{name}_sum") - 60.014) < 1e-9
    assert value(text, "http_server_response_body_size_bytes_sum") == 4 * 512
    assert value(text, "http_server_response_body_size_bytes_bucket", le="16777216") == 4


def test_labels_are_the_conventions_attributes() -> None:
    golden = Golden(Stats())
    golden.emit([exchange(CLIENT, status=503, server=SHOP)])
    assert (
        'http_client_request_duration_seconds_count{service_name="curl",http_request_method="GET",url_scheme="http",'
        'http_response_status_code="503",url_template="/items/{id}",error_type="503",network_protocol_version="1.1",'
        'server_address="127.0.0.1",server_port="8080",service_peer_name="shop",service_peer_namespace="market"} 1\n'
    ) in page(golden)


def test_families_stay_in_one_piece_whatever_the_order_of_rows() -> None:
    golden = Golden(Stats())
    golden.emit([exchange((CLIENT, SERVER)[i % 2], route=f"/{i}", outcome=("ok", "unknown")[i % 5 == 0]) for i in range(50)])
    golden.set_active({(SERVER, SHOP, "http"): 1, (CLIENT, SHOP, "http"): 2, (SERVER, Workload("x"), "http"): 3})
    found = parse(page(golden))
    assert sum(v for (n, _), v in found.items() if n.endswith("duration_seconds_count")) == 40
    assert sum(v for (n, _), v in found.items() if n == "meshscope_unknown_exchanges_total") == 10
    assert value(page(golden), "http_client_active_requests") == 2


def test_every_counter_of_the_agent_is_there() -> None:
    stats = Stats()
    stats.n["spans_dropped"] = 7
    text = page(Golden(stats), stats.snapshot())
    assert value(text, "meshscope_spans_dropped_total") == 7
    assert {n for n, _ in parse(text)} == {f"meshscope_{name}_total" for name in COUNTERS}


def test_an_overflow_row_says_so() -> None:
    golden = Golden(Stats(), limit=1)
    golden.emit([exchange(route="/a"), exchange(route="/b")])
    assert value(page(golden), "http_server_request_duration_seconds_count", otel_metric_overflow="true") == 1


def test_rows_that_are_gone_are_forgotten() -> None:
    golden = Golden(Stats(), idle_ns=1)
    exposition = Exposition(golden)
    for generation in range(5):
        golden.emit([exchange(route=f"/{generation}/{i}") for i in range(100)])
        "".join(exposition.render({}))
        golden.flush(generation * 10)
        golden.flush(generation * 10 + 5)
    "".join(exposition.render({}))
    assert len(exposition._labels) <= 200


@given(st.text(st.characters(codec=None)), st.text(st.sampled_from('a"\\\n{},=é ')) | st.integers() | st.booleans())
def test_no_label_breaks_out(name: str, value_: str | int) -> None:
    text = labels(Workload(name), {"a.b": value_, "c": name})
    text.encode()
    ((_, found),) = parse(f"# HELP m x\n# TYPE m gauge\nm{{{text}}} 1\n")
    assert {key for key, _ in found} == {"service_name", "a_b", "c"}
    expected = str(value_).lower() if isinstance(value_, bool) else clean(str(value_))
    assert dict(found)["a_b"] == expected


def test_metric_names() -> None:
    assert metric_name("http.server.request.duration", "s") == "http_server_request_duration_seconds"
    assert metric_name("a-b.c", "{request}") == "a_b_c"
