from __future__ import annotations

from meshscope.model import CLIENT, SERVER
from meshscope.sinks.families import histograms, numbers
from meshscope.sinks.golden import Golden
from meshscope.stats import Stats
from tests.meshscope.exchanges import SHOP, exchange


def test_a_row_is_three_histograms_where_bodies_have_sizes() -> None:
    golden = Golden(Stats())
    golden.emit([exchange(CLIENT, request={"size": 5})])
    (row,) = golden.rows.values()
    found = {h.name: h for h in histograms(row)}
    assert {name: (h.unit, sum(h.counts), h.total) for name, h in found.items()} == {
        "http.client.request.duration": ("s", 1, 0.0015),
        "http.client.request.body.size": ("By", 1, 5),
        "http.client.response.body.size": ("By", 1, 512),
    }
    assert all(len(h.counts) == len(h.bounds) + 1 for h in found.values())
    assert found["http.client.request.duration"].description == "Duration of HTTP client requests."


def test_other_families_have_their_own_names_and_no_sizes() -> None:
    golden = Golden(Stats())
    x = exchange()
    x.about.family = "rpc"
    golden.emit([x])
    (row,) = golden.rows.values()
    assert [h.name for h in histograms(row)] == ["rpc.server.call.duration"]


def test_what_was_handed_out_does_not_change_any_more() -> None:
    golden = Golden(Stats())
    golden.emit([exchange()])
    (row,) = golden.rows.values()
    before = list(histograms(row))
    golden.emit([exchange()])
    assert [sum(h.counts) for h in before] == [1, 1, 1]


def test_levels_and_counters_beside_the_rows() -> None:
    golden = Golden(Stats())
    golden.set_active({(SERVER, SHOP, "http"): 2, (SERVER, SHOP, "db"): 1})
    golden.emit([exchange(outcome="unknown")])
    assert [(n.name, n.monotonic, n.workload, n.attributes, n.value) for n in numbers(golden)] == [
        ("http.server.active_requests", False, SHOP, {}, 2),
        ("meshscope.unknown_exchanges", True, SHOP, {"reason": "unanswered"}, 1),
    ]
