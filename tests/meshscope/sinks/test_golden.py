from __future__ import annotations

import random
from bisect import bisect_left
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshscope.model import CLIENT, SERVER, Exchange, Process, Workload
from meshscope.sinks.conventions import resource_attributes
from meshscope.sinks.golden import DURATION_BOUNDS, SIZE_BOUNDS, Golden, Row, quantile
from meshscope.stats import Stats
from tests.meshscope.exchanges import CURL, SHOP, WALL_NS, exchange


@pytest.fixture
def stats() -> Stats:
    return Stats()


@pytest.fixture
def golden(stats: Stats) -> Golden:
    return Golden(stats)


def only(golden: Golden) -> Row:
    (row,) = golden.rows.values()
    return row


def test_a_row_holds_the_totals_of_its_exchanges(golden: Golden) -> None:
    golden.emit(
        [exchange(duration_ns=1_500_000, request={"size": 100}), exchange(duration_ns=60_000_000, response={"size": 5000})]
    )
    row = only(golden)
    assert (row.count, row.errors) == (2, 0)
    assert row.sum == pytest.approx(0.0615)
    assert row.buckets == [1, 0, 0, 0, 1, *[0] * 10]
    assert (row.request_bytes, row.response_bytes) == (100, 5512)
    assert row.request_sizes[:2] == [1, 1]
    assert row.response_sizes[:5] == [0, 0, 1, 0, 1]
    assert row.start_ns == WALL_NS + 5_000_000_000


@pytest.mark.parametrize("bound", DURATION_BOUNDS)
def test_a_duration_on_a_bound_belongs_below_it(golden: Golden, bound: float) -> None:
    golden.emit([exchange(duration_ns=round(bound * 1e9)), exchange(duration_ns=round(bound * 1e9) + 1)])
    place = DURATION_BOUNDS.index(bound)
    assert only(golden).buckets[place : place + 2] == [1, 1]


def test_time_never_runs_backwards_in_a_sum(golden: Golden) -> None:
    golden.emit([exchange(duration_ns=-5), exchange(duration_ns=0)])
    row = only(golden)
    assert (row.count, row.sum, row.buckets[0]) == (2, 0.0, 2)


def test_both_ends_of_an_exchange_count(golden: Golden) -> None:
    golden.emit([exchange(CLIENT), exchange(SERVER)])
    assert {(s.role, s.workload.name, s.peer.name if s.peer else "") for s in golden.rows} == {
        (CLIENT, "curl", "shop"),
        (SERVER, "shop", "curl"),
    }


def test_unsampled_exchanges_count_as_well(golden: Golden) -> None:
    golden.emit([exchange(sampled=False), exchange(sampled=None)])
    assert only(golden).count == 2


@pytest.mark.parametrize(
    ("role", "status", "outcome", "error"),
    [
        (SERVER, 200, "", ""),
        (SERVER, 404, "", ""),
        (SERVER, 500, "", "500"),
        (CLIENT, 404, "", "404"),
        (CLIENT, 503, "", "503"),
        (CLIENT, 302, "", ""),
        (SERVER, None, "aborted", "aborted"),
        (CLIENT, 200, "aborted", "aborted"),
    ],
)
def test_whose_error_it_is_depends_on_the_end(golden: Golden, role: Any, status: int | None, outcome: str, error: str) -> None:
    golden.emit([exchange(role, status=status, outcome=outcome)] * 3)
    row = only(golden)
    assert row.series.error_type == error
    assert row.errors == (3 if error else 0)


def test_an_unknown_outcome_is_in_no_row(golden: Golden, stats: Stats) -> None:
    golden.emit(
        [
            exchange(outcome="unknown", status=None, flags=("bytes_lost", "peer_unknown")),
            exchange(outcome="unknown", status=None, request={"doubts": ("late_join",)}),
            exchange(outcome="unknown", response={"doubts": ("late_join",)}),
            exchange(outcome="unknown", status=None, flags=("evicted", "late_join", "peer_unknown")),
            exchange(outcome="unknown", status=None, flags=("peer_unknown",)),
        ]
    )
    assert golden.rows == {}
    assert golden.unknown == {
        (SHOP, "bytes_lost"): 1,
        (SHOP, "late_join"): 2,
        (SHOP, "evicted"): 1,
        (SHOP, "unanswered"): 1,
    }
    assert (stats.n["golden_exchanges"], stats.n["golden_unknown"]) == (5, 5)


def test_a_response_that_is_missing_has_no_size(golden: Golden) -> None:
    golden.emit([exchange(status=None)])
    assert sum(only(golden).response_sizes) == 0
    assert sum(only(golden).request_sizes) == 1


def test_an_exchange_of_nobody_known_has_the_unknown_service(golden: Golden) -> None:
    golden.emit([exchange(server=None, client=None)])
    series = only(golden).series
    assert (series.workload.name, series.peer) == ("unknown_service", None)


def test_the_process_says_whose_end_it_is(golden: Golden) -> None:
    golden.emit([exchange(server=Workload("by address"), process=Process(1, 1, "/x", SHOP))])
    assert only(golden).series.workload is SHOP


def test_workloads_of_one_name_are_one(golden: Golden) -> None:
    golden.emit([exchange(server=Workload("a", "n"), client=None), exchange(server=Workload("a", "n", kind="unit"), client=None)])
    assert only(golden).count == 2


def test_a_client_is_told_where_it_called_by_the_name_it_used(golden: Golden) -> None:
    golden.emit([exchange(CLIENT), exchange(CLIENT, attributes={"server.address": "shop.local", "server.port": 81})])
    assert {(s.address, s.port) for s in golden.rows} == {("127.0.0.1", 8080), ("shop.local", 81)}


def test_a_full_table_counts_the_rest_together_but_by_workload(stats: Stats) -> None:
    golden = Golden(stats, limit=3)
    golden.emit([exchange(route=f"/{i}", status=500) for i in range(10)])
    golden.emit([exchange(CLIENT, status=200)])
    golden.emit([exchange(route="/1")] * 2)  # status 200: new, so it overflows, too
    rows = {s: r for s, r in golden.rows.items() if s.overflow}
    assert len(golden.rows) == 3 + 2
    assert {(s.role, s.workload.name, r.count, r.errors) for s, r in rows.items()} == {
        (SERVER, "shop", 9, 7),
        (CLIENT, "curl", 1, 0),
    }
    assert stats.n["series_overflowed"] == 10
    assert sum(row.count for row in golden.rows.values()) == 13


def test_many_workloads_cannot_grow_the_table_for_ever(stats: Stats) -> None:
    golden = Golden(stats, limit=5)
    golden.emit([exchange(server=Workload(f"w{i}")) for i in range(100)])
    golden.emit([exchange(server=Workload(f"w{i}"), outcome="unknown") for i in range(100)])
    assert len(golden.rows) <= 2 * 5 + 1
    assert sum(row.count for row in golden.rows.values()) == 100
    assert len(golden.unknown) <= 5 + 1
    assert sum(golden.unknown.values()) == 100


def test_idle_rows_go_and_come_back_with_a_new_start(stats: Stats) -> None:
    golden = Golden(stats, idle_ns=100)
    golden.emit([exchange(route="/a"), exchange(route="/b")])
    golden.flush(1000)
    golden.emit([exchange(route="/b")])
    golden.flush(1100)
    assert len(golden.rows) == 2
    golden.flush(1101)
    assert [(s.route, r.count) for s, r in golden.rows.items()] == [("/b", 2)]
    assert stats.n["series_expired"] == 1
    golden.emit([exchange(route="/a", start_ns=9_000_000_000, end_ns=9_000_000_001)])
    row = next(r for s, r in golden.rows.items() if s.route == "/a")
    assert (row.count, row.start_ns) == (1, WALL_NS + 9_000_000_000)


def test_expiry_makes_room(stats: Stats) -> None:
    golden = Golden(stats, limit=1, idle_ns=100)
    golden.emit([exchange(route="/a")])
    golden.flush(0)
    golden.flush(101)
    golden.emit([exchange(route="/b")])
    assert [s.route for s in golden.rows] == ["/b"]


def test_active_requests_are_replaced_whole(golden: Golden) -> None:
    golden.set_active({(SERVER, SHOP, "http"): 3})
    golden.set_active({(SERVER, SHOP, "http"): 2})
    assert [(a.role, a.workload, a.family, n) for a, n in golden.active.items()] == [(SERVER, SHOP, "http", 2)]


def test_quantiles_are_within_one_percent(golden: Golden) -> None:
    chance = random.Random(7)
    durations = sorted(int(chance.lognormvariate(15, 1.5)) + 1 for _ in range(5000))
    golden.emit([exchange(duration_ns=ns) for ns in durations])
    for q in (0.0, 0.01, 0.5, 0.9, 0.99, 0.999, 1.0):
        exact = durations[int(q * (len(durations) - 1))] * 1e-9
        assert quantile(only(golden).log, q) == pytest.approx(exact, rel=0.0101)
    assert quantile({}, 0.5) == 0.0


texts = st.sampled_from(["", "a", "b", "a\x00", "a\ufffd", "GET", "200", "500", "?", "/x", "é"])
workloads = st.sampled_from(
    [None, SHOP, CURL, Workload("curl"), Workload("curl", "x"), Workload("shop"), Workload("c\x01"), Workload("")]
)


@st.composite
def any_exchange(draw: st.DrawFn) -> Exchange:
    made = exchange(
        draw(st.sampled_from([CLIENT, SERVER])),
        client=draw(workloads),
        server=draw(workloads),
        route=draw(texts),
        outcome=draw(st.sampled_from(["ok", "client_error", "server_error", "aborted"])),
        duration_ns=draw(st.integers(0, 20 * 10**9)),
        tls=draw(st.booleans()),
        protocol=draw(st.sampled_from(["http/1.0", "http/1.1", "redis", "rpc"])),
    )
    made.about.family = draw(st.sampled_from(["http", "rpc", "db"]))
    made.about.name = draw(texts)
    made.about.code = draw(texts)
    made.about.detail_code = draw(st.none() | texts)
    made.about.attributes = {} if draw(st.booleans()) else {"server.address": draw(texts)}
    made.request.size = draw(st.integers(0, 2**30))
    return made


@settings(max_examples=200, deadline=None)
@given(st.lists(any_exchange(), max_size=60), st.integers(1, 40))
def test_no_two_rows_export_the_same_labels_and_nothing_is_lost(exchanges: list[Exchange], limit: int) -> None:
    golden = Golden(Stats(), limit=limit)
    golden.emit(exchanges)
    labels = {
        (s.family, s.role, tuple(resource_attributes(s.workload).items()), frozenset(s.attributes().items())) for s in golden.rows
    }
    assert len(labels) == len(golden.rows)
    rows = golden.rows.values()
    assert sum(row.count for row in rows) == len(exchanges)
    for row in rows:
        assert row.count == sum(row.buckets) == sum(row.log.values()) == sum(row.request_sizes)
        assert row.errors <= row.count
    assert sum(row.request_bytes for row in rows) == sum(x.request.size for x in exchanges)
    expected = [0] * (len(SIZE_BOUNDS) + 1)
    for x in exchanges:
        expected[bisect_left(SIZE_BOUNDS, x.request.size)] += 1
    assert [sum(column) for column in zip(*(row.request_sizes for row in rows), strict=True)] == (expected if rows else [])
