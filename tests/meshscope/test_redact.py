from __future__ import annotations

from urllib.parse import quote

import pytest

from meshscope.redact import KEPT_HEADERS, REDACTED, Redactor, kept, path, target, value
from parsers.base import REQUESTS, RESPONSES
from tests.meshscope.planted import EVERY_HEADER, JWT, SECRETS, message

secret = pytest.mark.parametrize("planted", SECRETS.values(), ids=SECRETS.keys())


# Targets


@pytest.mark.parametrize(
    "harmless",
    [
        "/",
        "*",
        "/orders/12345678",
        "/orders/12345678?page=2&id=90000001",
        "/ok/90000000",
        "/w/10000000?ms=250",
        "/a/1/b/22/c/333?limit=10",
        "/static/app.min.js?v=1.2.3",
        "/marketing-campaigns-of-the-year/desktop-application",
        "/Tokens-and-other-words",
        "/v1/files/report-2024-01-15.pdf",
        "/search?q=blue+shoes&sort=price&order=desc",
        "/caf%C3%A9/men%C3%BC",
        "?page=2",
        "/a//b/./../c;v=1/d",
        "example.org:443",
        "192.168.100.200:8443",
        "[2001:db8::1]:443",
        "http://192.168.100.200:8080/ok/12345678?page=1",
        "http://example.org",
    ],
)
def test_what_is_harmless_stays(harmless: str) -> None:
    assert target(harmless) == harmless
    assert target(harmless, raw_path=True) == harmless


@pytest.mark.parametrize("digits", range(1, 9))
@pytest.mark.parametrize("form", ["/ok/{}", "/ok/{}/more", "/ok?id={}", "/ok?x=1&y={}", "http://h/ok/{}", "/ok/o{}"])
def test_ids_of_up_to_eight_digits_survive(digits: int, form: str) -> None:
    text = form.format("9" * digits)
    assert target(text) == text


@pytest.mark.parametrize("form", ["/ok/{}", "/ok?id={}", "/ok?{}", "http://h/ok/{}"])
def test_nine_digits_do_not(form: str) -> None:
    assert "9" * 9 not in target(form.format("9" * 9))


@secret
@pytest.mark.parametrize(
    "encode", [str, quote, lambda text: quote(quote(text)), lambda text: "".join(f"%{ord(c):02x}" for c in text)]
)
@pytest.mark.parametrize(
    "form", ["/a/{}", "/a/{}/b", "/a/{};v=1", "/a?x={}", "/a?x=1&y={}#top", "/a?{}", "/a;x={}/b", "http://h/{}", "{}"]
)
def test_secrets_by_shape_never_pass(planted: str, encode: object, form: str) -> None:
    assert callable(encode)
    text = encode(planted)
    if form == "{}" and "/" in text:
        form = "/a/x" + quote(form, safe="{}")
    if "/" in text and "{}/" in form:  # its own slashes would end the segment
        text = text.replace("/", "%2F")
    done = target(form.format(text))
    assert text not in done
    assert planted not in done
    assert REDACTED in done


@pytest.mark.parametrize(
    "key",
    [
        *("token", "TOKEN", "access_token", "access-token", "accessToken", "id_token", "password", "passwd", "pwd", "pass"),
        *("secret", "client_secret", "api_key", "apikey", "key", "sig", "signature", "X-Amz-Signature", "X-Amz-Credential"),
        *("session", "sid", "jwt", "code", "state", "user", "email", "mail", "otp", "user[password]", "auth", "card.number"),
        *("%74oken", "t%6Fken", "%2574oken", "to%6ben"),
    ],
)
@pytest.mark.parametrize(
    "form", ["/a?{}=x", "/a?b=1&{}=x", "/a?b=1;{}=x&c=2", "/a;{}=x/b", "h://n?{}=x", "/a/{}=x", "/?u=%2Fcb%3F{}%3Dx"]
)
def test_values_by_key_never_pass(key: str, form: str) -> None:
    done = target(form.replace("=x", "=planted").replace("%3Dx", "%3Dplanted").format(key))
    assert "planted" not in done
    assert target(done) == done


def test_the_rest_of_a_query_stays() -> None:
    assert target("/a?pass+word=planted&pass%20word=planted") == f"/a?pass+word={REDACTED}&pass%20word={REDACTED}"
    assert target("/a?page=2&token=abc&x=1;y=2") == f"/a?page=2&token={REDACTED}&x=1;y=2"
    assert target("/a?token=&flag&b") == "/a?token=&flag&b"


@pytest.mark.parametrize(
    "text",
    [
        "http://alice:planted@example.org/ok/1",
        "http://alice:planted@example.org",
        "http://alice:planted@example.org?page=1",
        "https://planted@example.org/ok/1?page=2",
        "http://alice:pl@planted@example.org/",
        "http://alice%3Aplanted%40example.org/",
        "ftp://alice:planted@example.org:21/x",
        "//alice:planted@example.org/x",
        "alice:planted@example.org:443",
    ],
)
def test_user_info_never_passes(text: str) -> None:
    for raw in (False, True):
        done = target(text, raw_path=raw)
        if not (raw and text.startswith("//")):  # in origin form that is a path
            assert "planted" not in done
            assert "alice" not in done


def test_the_host_of_a_url_with_user_info_stays() -> None:
    assert target("http://alice:planted@example.org:8080/ok?page=1") == f"http://{REDACTED}@example.org:8080/ok?page=1"


@pytest.mark.parametrize("parent", ["token", "Password", "SECRET", "otp", "api-key", "apikey", "%74oken", "token;v=1"])
def test_what_follows_a_telling_segment_goes(parent: str) -> None:
    assert target(f"/reset/{parent}/planted/x") == f"/reset/{parent}/{REDACTED}/x"


@pytest.mark.parametrize("text", ["/a#access_token=planted", "/a?b=1#planted", "http://h#planted", "#planted", "/a#?planted"])
def test_fragments_go(text: str) -> None:
    assert "planted" not in target(text)
    assert "planted" not in target(text, raw_path=True)


@pytest.mark.parametrize("text", ["/" + "a" * 200, "/?a=" + "b-" * 100, "/?" + "b-" * 100, "/a;x=" + "b-" * 100])
def test_what_is_longer_than_a_word_goes(text: str) -> None:
    assert "-b-b" not in target(text)
    assert "aaa" not in target(text)


def test_raw_paths_are_left_alone_and_nothing_else() -> None:
    text = f"/mail/alice@example.org/{JWT}?token=planted&mail=bob@example.org&page=2"
    assert target(text, raw_path=True) == f"/mail/alice@example.org/{JWT}?token={REDACTED}&mail={REDACTED}&page=2"


def test_a_path_is_redacted_segment_by_segment() -> None:
    assert path("/users/alice@example.org/orders/42") == f"/users/{REDACTED}/orders/42"


# Header values


@secret
@pytest.mark.parametrize("form", ["{}", "id {}", "a, {}; b", "<{}>", "http://h/{}", "x={}", '"{}"'])
def test_secrets_in_header_values_never_pass(planted: str, form: str) -> None:
    if planted.startswith(("41", "49")) and form == "http://h/{}":
        form += "?"
    done = value(form.format(planted))
    assert planted not in done
    assert REDACTED in done
    assert value(done) == done


@pytest.mark.parametrize(
    "text",
    [
        "Bearer planted",
        "bearer  planted",
        "Basic cGxhbnRlZA==",
        'Digest username="alice", realm="planted", response="planted"',
        "http://h/a?token=planted&page=1",
        "http://alice:planted@h/",
        "see https://planted@h:80, or not",
        '{"password": "planted more planted", "page": 1}',
        "{'api_key':'planted'}",
        "https%3A%2F%2Fh%2Fcb%3Ftoken%3Dplanted",
        "https%3A%2F%2Fh%2Fcb%3Fa%3Db%26token%3Dplanted",
        "planted%40example.org",
        "a" * 100 + "planted@example.org",
        "sid=planted; Path=/",
        "x" * 1020 + " " + JWT.replace("eyJhbGci", "eyJplanted"),
    ],
)
def test_secrets_in_text_never_pass(text: str) -> None:
    assert "planted" not in value(text)


@pytest.mark.parametrize(
    "text",
    [
        "curl/7.88.1",
        "python-requests/2.31.0",
        "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/115.0",
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.6099.109",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet; charset=utf-8",
        "application/json",
        "auth.example.org:8080",
        "localhost:8443",
        "192.168.100.200:8443",
        "nginx/1.22.1",
        "kernel 5.10.0.123456789",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "gzip, br",
        "120",
        "",
    ],
)
def test_ordinary_header_values_stay(text: str) -> None:
    assert value(text) == text


def test_long_header_values_are_cut() -> None:
    assert len(value("word " * 1000)) == 1024


# Headers by name


def test_telling_headers_go_whoever_asked_for_them() -> None:
    redact = Redactor()
    for half in (REQUESTS, RESPONSES):
        done = message(half)
        done.headers = dict(EVERY_HEADER)
        done.trailers = dict(EVERY_HEADER)
        redact(done)
        assert done.headers == {}
        assert done.trailers == {}


def test_none_of_the_default_headers_is_one_that_is_never_kept() -> None:
    assert all(kept(name) for name in KEPT_HEADERS)
    assert not any(kept(name) for name in EVERY_HEADER)
    assert kept(":authority")


def test_identifiers_stay_as_they_are() -> None:
    headers = {
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "tracestate": "ot=th:8;rv:6e6d1a75832a2f,tenant@vendor=5f4dcc3b5aa765d61d8327deb882cf99",
        "x-request-id": "123e4567-e89b-42d3-a456-426614174000",
        "content-length": "12345678901",
    }
    done = message()
    done.headers = dict(headers)
    Redactor()(done)
    assert done.headers == headers


@pytest.mark.parametrize("name", ["traceparent", "tracestate", "x-request-id", "content-length"])
def test_identifiers_without_the_form_of_one_are_text_like_any_other(name: str) -> None:
    done = message()
    done.headers = {name: f"Bearer planted, {JWT}\x1b[31m"}
    Redactor()(done)
    assert "planted" not in done.headers[name]
    assert JWT not in done.headers[name]
    assert "\x1b" not in done.headers[name]


# The redactor


def test_a_message_is_redacted_in_place_and_only_once() -> None:
    redact = Redactor()
    for _ in range(2):  # the second time from memory
        done = message(REQUESTS, "/a/alice@example.org?token=planted", user_agent=f"agent {JWT}", host="h", cookie="planted")
        for _ in range(2):
            redact(done)
            assert done.target == f"/a/{REDACTED}?token={REDACTED}"
            assert done.headers == {"user-agent": f"agent {REDACTED}", "host": "h"}


def test_an_unknown_target_stays_unknown() -> None:
    done = message()
    Redactor()(done)
    assert done.target is None


def test_raw_paths_are_a_choice() -> None:
    done = message(REQUESTS, "/a/alice@example.org?token=planted")
    Redactor(raw_paths=True)(done)
    assert done.target == f"/a/alice@example.org?token={REDACTED}"


def test_memory_is_bounded() -> None:
    redact = Redactor()
    for number in range(10_000):
        redact(message(REQUESTS, f"/a-word-and-number-{number}x", user_agent=f"agent {number}", host=f"a@b{number}"))
        if number < 20:
            redact(message(REQUESTS, "/" + f"{number}/" * 1000, user_agent=f"agent {number} " * 100, host=f"a@b{number} " * 100))
    for memory in (redact._targets, redact._harmless, redact._replaced):
        assert 0 < len(memory) <= 4096
    assert max(map(len, redact._targets)) <= 512
    assert max(len(text) for _, text in (*redact._harmless, *redact._replaced)) <= 512
