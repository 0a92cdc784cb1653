"""What may leave: header allow-list, query values by key and by shape, path segments by shape.

Pure. Runs on every message before anything outside flow sees it, so what is harmless must cost little: one regular
expression says "nothing here can be a secret", and what was decided once is remembered for a while. In doubt a value
goes; whoever needs raw paths asks for them.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote, unquote_plus

from parsers.base import Message

REDACTED: Final = "REDACTED"

KEPT_HEADERS: Final = frozenset(
    {
        "accept",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "retry-after",
        "server",
        "traceparent",
        "tracestate",
        "user-agent",
        "x-request-id",
    }
)
_AS_THEY_ARE: Final = frozenset({"content-length", "traceparent", "tracestate"})  # identifiers by definition, parsed strictly

# Never kept, whoever asks.
_SECRET_HEADER: Final = re.compile(r"authori[sz]ation|cookie|token|secret|passw|credential|session|(?:^|-|_)(?:api-?)?key$|-auth")

# Key names, lower case without separators: anywhere in the name, or the whole of it.
_SECRET_KEY: Final = re.compile(
    r"token|secret|passw|pwd|apikey|accesskey|auth|credential|signature|session|jwt|bearer|cookie|private|assertion|saml"
    r"|email|phone|ssn|card|cvv|cvc|iban|otp|nonce|ticket"
    r"|^(?:pass|sig|sid|code|key|pin|mail|state|user|username|login|account)$|^x(?:amz|goog)"
)
_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")

# Every repetition before a decisive character is bounded, so that hostile input costs linear time.
_EMAIL: Final = r"[^\s/@,;<>]{1,64}@[^\s/@,;<>]+"
_JWT: Final = r"eyJ[\w-]{5,2048}\.[\w-]*(?:\.[\w-]*)?"
_UUID: Final = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_PREFIXED: Final = r"(?:sk|pk|rk|ghp|gho|ghu|ghs|github_pat|glpat|xox[abprs]|AKIA|ASIA|AIza|ya29|SG)[-_.]?[\w.-]{12,}"
_SCHEME: Final = r"(?i:bearer|basic|digest|negotiate)\s+\S+"
_KNOWN: Final = rf"{_EMAIL}|{_JWT}|{_UUID}|{_PREFIXED}|{_SCHEME}"
_USER_INFO: Final = re.compile(r"(?<=://)[^/@?#\s]*@")
_DIGITS: Final = r"\d(?:[ .-]?\d){8,}"  # nine and more: cards, phones, national ids, timestamps; eight stay
_MIXED: Final = r"(?=[\w+/=~]{0,64}\d)(?=[\w+/=~]{0,64}[A-Za-z])[A-Za-z0-9_+/=~]{16,}|[A-Za-z0-9_+/=~]{32,}"
_SHAPE: Final = re.compile(rf"{_KNOWN}|{_DIGITS}|{_MIXED}")
# In free text (header values) slashes and dots separate; versions such as 5.10.0.123456789 are no card.
_TEXT_SHAPE: Final = re.compile(
    rf"{_KNOWN}|(?<![\w.])\d(?:[ -]?\d){{8,}}|(?=[\w+]{{0,64}}\d)(?=[\w+]{{0,64}}[A-Za-z])[\w+]{{24,}}={{0,2}}"
)
# Most targets: short words and short numbers, and a page number at most. Says nothing about what it does not match.
_HARMLESS: Final = re.compile(
    r"(?:/(?!(?i:token|password|secret|otp|api-?key)/)(?:[A-Za-z_.-]{0,15}|[A-Za-z]?\d{1,8})(?![^/?]))+"
    r"(?:\?(?:id|page|limit|offset|size|n)=\d{1,8})?"
).fullmatch
_SECRET_PARENT: Final = frozenset({"token", "password", "secret", "otp", "apikey", "api-key"})
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_VALUE_MAX: Final = 128  # characters of a query value or segment; what is longer is no word
_TEXT_MAX: Final = 1024  # characters of a header value; user agents end at about 300
_REMEMBERED: Final = 4096


def target(text: str) -> str:
    """A request target of any form (RFC 9112 section 3.2) without user-info, secret segments and secret query values."""
    if _HARMLESS(text) is not None:
        return text
    text = _USER_INFO.sub(f"{REDACTED}@", _printable(text))
    start = text.find("://") + 3 if "://" in text[:12] else 0
    slash = text.find("/", start) if start else 0
    if start and slash < 0:
        return text
    rest, mark, query = text[slash:].partition("?")
    return text[:slash] + path(rest) + (f"?{_query(query)}" if mark else "")


def path(text: str) -> str:
    """A path, segment by segment."""
    segments = text.split("/")
    if len(segments) == 1:  # authority form and "*": a name and a port
        return text if len(text) <= 2 * _VALUE_MAX and _SHAPE.search(unquote(text)) is None else REDACTED
    before = ""
    for index, segment in enumerate(segments):
        if segment:
            segments[index] = _segment(segment, before)
        before = segment
    return "/".join(segments)


def value(text: str) -> str:
    """Free text such as a header value: what has the shape of a secret goes, the rest stays."""
    return _TEXT_SHAPE.sub(REDACTED, _USER_INFO.sub(f"{REDACTED}@", _printable(text[:_TEXT_MAX])))


def kept(name: str) -> bool:
    """Whether a header (lower case) may be kept at all."""
    return _SECRET_HEADER.search(name) is None


class Redactor:
    """Redacts messages in place; what flow calls. raw_paths: leave paths alone (query and user-info still go)."""

    def __init__(self, *, raw_paths: bool = False) -> None:
        self._raw = raw_paths
        self._targets: dict[str, str] = {}
        self._values: dict[tuple[str, str], str | None] = {}

    def __call__(self, message: Message) -> None:
        """Idempotent."""
        text = message.target
        if text is not None and _HARMLESS(text) is None:
            done = self._targets.get(text)
            if done is None:
                if len(self._targets) >= _REMEMBERED:
                    self._targets.clear()
                done = self._targets[text] = self._raw_target(text) if self._raw else target(text)
            message.target = done
        if message.headers:
            self._headers(message.headers)
        if message.trailers:
            self._headers(message.trailers)

    def _headers(self, headers: dict[str, str]) -> None:
        known = self._values
        for pair in list(headers.items()):
            if pair[0] in _AS_THEY_ARE:
                continue
            done = known.get(pair, "")
            if done == "":
                if len(known) >= _REMEMBERED:
                    known.clear()
                done = known[pair] = value(pair[1]) if kept(pair[0]) else None
            if done is None:
                del headers[pair[0]]
            elif done != pair[1]:
                headers[pair[0]] = done

    @staticmethod
    def _raw_target(text: str) -> str:
        rest, mark, query = _USER_INFO.sub(f"{REDACTED}@", _printable(text)).partition("?")
        return rest + (f"?{_query(query)}" if mark else "")


def _segment(segment: str, before: str) -> str:
    name, mark, parameters = segment.partition(";")  # ;jsessionid= and its like (RFC 3986 section 3.3)
    decoded = unquote(unquote(name))
    if before.lower() in _SECRET_PARENT or len(decoded) > _VALUE_MAX or _SHAPE.search(decoded) is not None:
        name = REDACTED
    return name + (f";{_query(parameters)}" if mark else "")


def _query(query: str) -> str:
    query, mark, fragment = query.partition("#")
    parts = re.split("([&;])", query)
    parts[::2] = [_pair(part) for part in parts[::2]]
    return "".join(parts) + (f"#{REDACTED}" if mark and fragment else mark)


def _pair(pair: str) -> str:
    key, mark, text = pair.partition("=")
    plain = unquote_plus(unquote_plus(key))
    if not mark:
        return REDACTED if len(plain) > _VALUE_MAX or _SHAPE.search(plain) else key
    if len(plain) > _VALUE_MAX or _SHAPE.search(plain) is not None:
        return REDACTED
    if not text:
        return pair
    decoded = unquote_plus(unquote_plus(text))
    secret = len(decoded) > _VALUE_MAX or _SECRET_KEY.search(_SEPARATORS.sub("", plain.lower())) or _SHAPE.search(decoded)
    return f"{key}={REDACTED}" if secret else pair


def _printable(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
