from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.model import Process, Workload
from meshscope.redact import target
from meshscope.route import OTHER, UNKNOWN, Routes, template
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange

UUID = "123e4567-e89b-42d3-a456-426614174000"


@pytest.mark.parametrize(
    ("text", "route"),
    [
        ("/", "/"),
        ("/orders", "/orders"),
        ("/orders/", "/orders/"),
        ("/orders/123", "/orders/{id}"),
        ("/orders/123/items/4", "/orders/{id}/items/{id}"),
        ("/orders/123?page=2", "/orders/{id}"),
        ("/1/2/3", "/{id}/{id}/{id}"),
        (f"/orders/{UUID}", "/orders/{id}"),
        (f"/orders/{UUID.upper()}", "/orders/{id}"),
        ("/commit/5f4dcc3b", "/commit/{id}"),
        ("/word/deadbeef", "/word/deadbeef"),  # no digit: a word, as `facade` is
        ("/v1/api2/x86", "/v1/api2/x86"),
        ("/mail/REDACTED", "/mail/{id}"),
        ("/REDACTED/REDACTED", "/{id}/{id}"),
        ("/REDACTED.html", "/REDACTED.html"),
        ("/a;v=1/b;x=REDACTED", "/a/b"),
        ("/orders/123;v=1", "/orders/{id}"),
        ("/a#REDACTED", "/a"),
        ("*", "*"),
        ("http://shop.local/orders/123?x=1", "/orders/{id}"),
        ("http://REDACTED@shop.local/orders", "/orders"),
        ("http://shop.local", "/"),
        ("http://shop.local?x=1", "/"),
        ("shop.local:443", ""),
        ("REDACTED", ""),
        ("?page=2", ""),
        ("", ""),
        ("/orders/12a", "/orders/12a"),
        ("/orders/123.json", "/orders/123.json"),
        ("/orders/123 ", "/orders/123 "),
    ],
)
def test_the_route_of_a_target(text: str, route: str) -> None:
    assert template(text) == route


@given(st.text())
def test_any_target_has_a_route_without_query(text: str) -> None:
    route = template(target(text))
    assert "?" not in route
    assert template(route) == route or not route.startswith("/")


def routed(routes: Routes, *targets: str | None, service: str = "shop", tgid: int = 1) -> list[str]:
    given = [exchange(target=one, route="", tgid=tgid) for one in targets]
    for one in given:
        one.process = Process(tgid, 1, "/bin/x", Workload(service)) if service else None
    out = routes(given)
    assert out is given
    return [one.route for one in out]


def test_routes_are_filled_in() -> None:
    assert routed(Routes(10, Stats()), "/a/1", "/a/2?x=1", None, "*", "h:1") == ["/a/{id}", "/a/{id}", UNKNOWN, "*", ""]


def test_routes_are_bounded_per_service() -> None:
    stats = Stats()
    routes = Routes(3, stats)
    assert routed(routes, *[f"/w{'x' * n}" for n in range(5)]) == ["/w", "/wx", "/wxx", OTHER, OTHER]
    assert stats.n["routes_collapsed"] == 2
    assert routed(routes, "/wx", "/w") == ["/wx", "/w"]
    assert routed(routes, "/other", service="cart") == ["/other"]
    assert stats.n["routes_collapsed"] == 2


def test_what_is_not_seen_takes_no_room() -> None:
    assert routed(Routes(1, Stats()), None, None, "/a", None, "/b") == [UNKNOWN, UNKNOWN, "/a", UNKNOWN, OTHER]


def test_a_process_without_a_name_is_a_service_of_its_own() -> None:
    routes = Routes(1, Stats())
    assert routed(routes, "/a", service="", tgid=1) == ["/a"]
    assert routed(routes, "/b", service="", tgid=1) == [OTHER]
    assert routed(routes, "/b", service="", tgid=2) == ["/b"]


def test_a_route_too_long_for_a_label_is_another() -> None:
    stats = Stats()
    assert routed(Routes(10, stats), "/word" * 100, "/word" * 10) == [OTHER, "/word" * 10]
    assert stats.n["routes_collapsed"] == 1


def test_memory_is_bounded() -> None:
    routes = Routes(2, Stats())
    for number in range(10_000):
        routed(routes, f"/a/{number}", f"/{'b' * 300}/{number}", service="", tgid=number)
    assert len(routes._templates) <= 8192
    assert len(routes._services) <= 4096
    assert max(map(len, routes._templates)) <= 256
