from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshscope.model import CLIENT, SERVER, Workload
from meshscope.sinks import conventions
from meshscope.sinks.conventions import attributes, clean, code_value, error_type, names, protocol_attributes, span_name
from tests.meshscope.exchanges import exchange


@given(st.text(st.characters(codec=None)))
def test_clean_text_is_utf8_without_controls_of_the_same_length(text: str) -> None:
    found = clean(text)
    found.encode()
    assert len(found) == len(text)
    assert not any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in {"Zl", "Zp"} for c in found)
    assert clean(found) == found


def test_clean_text_stays() -> None:
    assert clean("GET /käse?q=日本 1") == "GET /käse?q=日本 1"
    assert clean("a\x1b[31m\n\u202e\udc80\u2028b") == "a\ufffd[31m\ufffd\ufffd\ufffd\ufffdb"


def test_a_family_nobody_listed_has_the_names_most_families_share() -> None:
    assert names("db")[:3] == ("operation.duration", "db.operation.name", "db.response.status_code")


@pytest.mark.parametrize(
    ("protocol", "family", "found"),
    [
        ("http/1.1", "http", {"network.protocol.version": "1.1"}),
        ("redis", "db", {"network.protocol.name": "redis"}),
        ("spdy/3", "http", {"network.protocol.name": "spdy", "network.protocol.version": "3"}),
    ],
)
def test_a_protocol_name_that_repeats_the_family_is_left_out(protocol: str, family: str, found: dict[str, str]) -> None:
    assert protocol_attributes(protocol, family) == found


@pytest.mark.parametrize(("code", "value"), [("200", 200), ("", ""), ("OK", "OK"), ("²", "²"), ("-1", "-1")])
def test_numeric_codes_are_numbers(code: str, value: int | str) -> None:
    assert code_value(code) == value


@pytest.mark.parametrize(
    ("role", "outcome", "code", "detail", "error"),
    [
        (SERVER, "ok", "200", None, ""),
        (SERVER, "unknown", "500", None, ""),
        (SERVER, "client_error", "404", None, ""),
        (CLIENT, "client_error", "404", None, "404"),
        (SERVER, "server_error", "200", "INTERNAL", "INTERNAL"),
        (CLIENT, "server_error", "", None, "server_error"),
        (SERVER, "aborted", "200", None, "aborted"),
    ],
)
def test_error_types(role: Any, outcome: str, code: str, detail: str | None, error: str) -> None:
    about = exchange(outcome=outcome).about
    about.code, about.detail_code = code, detail
    assert error_type(role, about) == error


@pytest.mark.parametrize(("route", "name"), [("/items/{id}", "GET /items/{id}"), ("", "GET"), ("?", "GET"), ("*", "GET *")])
def test_a_span_is_named_by_method_and_route(route: str, name: str) -> None:
    assert span_name(exchange(route=route)) == name


def test_attributes_of_a_server_exchange() -> None:
    x = exchange(SERVER, status=500, attributes={"url.path": "/items/42", "user_agent.original": "cur\x00l"}, flags=("a", "b"))
    assert attributes(x) == {
        "http.request.method": "GET",
        "http.response.status_code": 500,
        "http.route": "/items/{id}",
        "url.scheme": "http",
        "url.path": "/items/42",
        "user_agent.original": "cur\ufffdl",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "network.peer.port": 45678,
        "client.address": "127.0.0.1",
        "client.port": 45678,
        "server.address": "127.0.0.1",
        "server.port": 8080,
        "service.peer.name": "curl",
        "http.request.body.size": 0,
        "http.response.body.size": 512,
        "error.type": "500",
        "process.pid": 4321,
        "thread.id": 4322,
        "meshscope.flags": "a,b",
    }


def test_attributes_of_a_client_exchange() -> None:
    found = attributes(exchange(CLIENT, tls=True, attributes={"server.address": "shop.local"}))
    assert found["url.full"] == "https://shop.local/items/42?color=red"
    assert found["url.template"] == "/items/{id}"
    assert (found["server.address"], found["network.peer.address"]) == ("shop.local", "127.0.0.1")
    assert (found["service.peer.name"], found["service.peer.namespace"]) == ("shop", "market")
    assert not {"client.address", "http.route", "error.type", "meshscope.flags"} & set(found)


@pytest.mark.parametrize(
    ("target", "said", "port", "tls", "url"),
    [
        ("/a", {"server.address": "h"}, 8080, False, "http://h/a"),
        ("/a", {"server.address": "h", "server.port": 81}, 8080, False, "http://h:81/a"),
        ("/a", {"server.address": "h", "server.port": 443}, 443, True, "https://h/a"),
        ("/a", {"server.address": "::1", "server.port": 81}, 81, False, "http://[::1]:81/a"),
        ("/a", {}, 8080, False, "http://127.0.0.1:8080/a"),
        ("/a", {}, 80, False, "http://127.0.0.1/a"),
        ("http://other/b", {"server.address": "proxy"}, 3128, False, "http://other/b"),
        ("*", {}, 80, False, None),
        ("h:443", {}, 80, False, None),
        (None, {}, 80, False, None),
    ],
)
def test_the_full_url_of_a_client(target: str | None, said: dict[str, str | int], port: int, tls: bool, url: str | None) -> None:
    x = exchange(CLIENT, target=target, tls=tls, attributes=said)
    x.server.port = port
    assert attributes(x).get("url.full") == url


def test_what_is_not_known_is_left_out() -> None:
    found = attributes(exchange(client=None, route="?", process=None, tid=0))
    assert not {"http.route", "service.peer.name", "process.pid", "thread.id"} & set(found)
    assert conventions.resource_attributes(Workload("")) == {"service.name": "unknown_service"}
    assert conventions.peer_attributes(None) == {}
