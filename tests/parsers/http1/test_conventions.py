from __future__ import annotations

import pytest

from parsers.base import REQUESTS, RESPONSES, Ending, Message
from parsers.http1 import conventions
from parsers.http1.conventions import describe


def request(verb: str = "GET", target: str | None = "/a/b?c=d&e", **headers: str) -> Message:
    m = Message(REQUESTS, 0, 1, 0)
    m.verb, m.target, m.version, m.ending = verb, target, "1.1", Ending.COMPLETE
    m.headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return m


def response(status: int, ending: Ending = Ending.COMPLETE) -> Message:
    m = Message(RESPONSES, 0, 1, 0)
    m.status, m.version, m.ending = status, "1.0", ending
    return m


def test_attributes() -> None:
    about = describe(request(host="Shop.Example:8080", user_agent="curl/8"), response(200))
    assert (about.name, about.code, about.detail_code, about.outcome, about.family) == ("GET", "200", None, "ok", "http")
    assert about.attributes == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "network.protocol.name": "http",
        "network.protocol.version": "1.1",
        "server.address": "shop.example",
        "server.port": 8080,
        "url.path": "/a/b",
        "url.query": "c=d&e",
        "user_agent.original": "curl/8",
    }


def test_unknown_method() -> None:
    about = describe(request("PROPFIND"), None)
    assert about.name == "HTTP"
    assert about.attributes["http.request.method"] == "_OTHER"
    assert about.attributes["http.request.method_original"] == "PROPFIND"
    assert describe(request("get"), None).attributes["http.request.method"] == "_OTHER"  # methods are case-sensitive


@pytest.mark.parametrize(
    ("verb", "target", "host", "told"),
    [
        ("GET", "/", "[2001:DB8::1]:80", {"url.path": "/", "server.address": "2001:db8::1", "server.port": 80}),
        ("GET", "/?", "a", {"url.path": "/", "url.query": "", "server.address": "a"}),
        ("OPTIONS", "*", "a", {"server.address": "a"}),
        ("CONNECT", "db.example:443", "a", {"server.address": "db.example", "server.port": 443}),
        (
            "GET",
            "http://o.example:81/x?y",
            "a",
            {"url.path": "/x", "url.query": "y", "server.address": "o.example", "server.port": 81},
        ),
        ("GET", "http://u:p@o.example", "a", {"url.path": "/", "server.address": "o.example"}),
        ("GET", None, "a:99999", {}),
        ("GET", "/", 'a"b{c}', {"url.path": "/"}),
        ("GET", "/", "a:", {"url.path": "/", "server.address": "a"}),
        ("GET", "/", "x" * 300, {"url.path": "/"}),
    ],
)
def test_targets(verb: str, target: str | None, host: str, told: dict[str, str | int]) -> None:
    attributes = describe(request(verb, target, host=host), None).attributes
    keys = ("url.path", "url.query", "server.address", "server.port")
    assert {key: attributes[key] for key in keys if key in attributes} == told


@pytest.mark.parametrize(
    ("status", "ending", "outcome"),
    [
        (101, Ending.COMPLETE, "ok"),
        (304, Ending.COMPLETE, "ok"),
        (404, Ending.COMPLETE, "client_error"),
        (500, Ending.COMPLETE, "server_error"),
        (999, Ending.COMPLETE, "server_error"),
        (200, Ending.CUT, "aborted"),
        (500, Ending.LOST, "unknown"),
        (200, Ending.OPEN, "unknown"),
    ],
)
def test_outcome_by_the_answer(status: int, ending: Ending, outcome: str) -> None:
    assert describe(request(), response(status, ending)).outcome == outcome
    assert describe(None, response(status, ending)).outcome == outcome


@pytest.mark.parametrize(
    ("ending", "outcome"),
    [(Ending.CUT, "aborted"), (Ending.LOST, "unknown"), (Ending.COMPLETE, "unknown"), (Ending.OPEN, "unknown")],
)
def test_outcome_without_an_answer(ending: Ending, outcome: str) -> None:
    asked = request()
    asked.ending = ending
    about = describe(asked, None)
    assert (about.outcome, about.code) == (outcome, "")
    assert "http.response.status_code" not in about.attributes


def test_orphan() -> None:
    about = describe(None, response(200))
    assert (about.name, about.attributes["network.protocol.version"]) == ("HTTP", "1.0")


def test_the_memo_of_authorities_is_bounded() -> None:
    for n in range(5000):
        describe(request(host=f"h{n}.example"), None)
    assert len(conventions._authorities) <= 1024
