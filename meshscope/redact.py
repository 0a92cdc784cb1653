"""What may leave: header allow-list, query values by key and by shape, path segments by shape.

Pure. Runs on every message before anything outside flow sees it, so what is harmless must cost little: one regular
expression says "nothing here can be a secret", and what was decided once is remembered for a while. In doubt a value
goes; whoever needs raw paths asks for them.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote

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
    }
)
_IDENTIFIERS: Final = {  # identifiers by definition: as they are where they have the form they must have
    "content-length": re.compile(r"\d{1,19}", re.ASCII).fullmatch,
    "traceparent": re.compile(r"[0-9a-f-]{55,255}").fullmatch,
    "tracestate": re.compile(r"[\x20-\x7e]{0,1024}").fullmatch,
    "x-request-id": re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}").fullmatch,
}

# Never kept, whoever asks.
_SECRET_HEADER: Final = re.compile(
    r"authori[sz]ation|authenti|cookie|token|secret|passw|credential|session|signature|assertion|jwt|[cx]srf"
    r"|(?:^|[-_])(?:api[-_]?)?key$|[-_]auth|^auth$"
)

# Key names, lower case without separators: anywhere in the name, or the whole of it.
_SECRET_KEY: Final = re.compile(
    r"token|secret|passw|pwd|apikey|accesskey|auth|credential|signature|session|jwt|bearer|cookie|private|assertion|saml"
    r"|email|phone|ssn|card|cvv|cvc|iban|otp|nonce|ticket"
    r"|^(?:pass|sig|sid|code|key|pin|mail|state|user|username|login|account)$|^x(?:amz|goog)"
)
_SEPARATORS: Final = re.compile(r"[^a-z0-9]+")

# Every repetition before a decisive character is bounded or starts at a boundary, so that hostile input costs linear time.
_AT: Final = r"(?:@|%(?:25)?40)"
_EMAIL: Final = rf"(?<![^\s/@,;<>])(?!{REDACTED}@)[^\s/@,;<>]+?{_AT}[^\s/,;<>]*"
_JWT: Final = r"(?<![\w-])(?=[\w-]*eyJ)[\w-]{8,}\.[\w-]*(?:\.[\w-]*)*"
_UUID: Final = r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
_ISSUED: Final = r"(?:(?:sk|pk|rk)[-_]|SG\.|gh[opsu]_|github_pat_|glpat-|xox[abprs]-|ya29[._]|AIza)"  # well-known prefixes
_PREFIXED: Final = rf"(?<![A-Za-z0-9])(?:{_ISSUED}[\w.-]{{12,}}|A[KS]IA[A-Z0-9]{{12,}})"
_SCHEME: Final = r"(?i:bearer|basic|negotiate)\s+\S+|(?i:digest)\s+\S.*"
_KNOWN: Final = rf"{_EMAIL}|{_JWT}|{_UUID}|{_PREFIXED}|{_SCHEME}"
_USER_INFO: Final = re.compile(r"(?<=://)[^/?#\s]*@")
_DIGITS: Final = r"\d(?:[ .+_-]{0,2}\d){8,}"  # nine and more: cards, phones, national ids, timestamps; eight stay
_MIXED: Final = (
    r"(?=[\w+/=~]{0,64}\d)(?=[\w+/=~]{0,64}[A-Za-z])[A-Za-z0-9_+/=~]{16,}|[A-Za-z0-9_+/=~]{32,}"
    r"|(?=[\w-]{0,64}\d)(?=[\w-]{0,64}[a-z])(?=[\w-]{0,64}[A-Z])[\w-]{20,}"
)
_SHAPE: Final = re.compile(rf"{_KNOWN}|{_DIGITS}|{_MIXED}")
# In free text (header values) slashes and dots separate; versions such as 5.10.0.123456789 are no card.
_TEXT_SHAPE: Final = re.compile(
    rf"{_KNOWN}|(?<![\w.])\d(?:[ -]?\d){{8,}}|(?<![\w+])(?=[\w+]*\d)(?=[\w+]*[A-Za-z])[\w+]{{24,}}={{0,2}}"
    r"|(?<![\w+/-])(?=[\w+/-]*\d)(?=[\w+/-]*[a-z])(?=[\w+/-]*[A-Z])[\w+/-]{40,}={0,2}"
)
# key=value, key%3Dvalue and "key": value inside other text.
_ASSIGNED: Final = re.compile(
    r"(?:(?<![^\s?&;,#{}()\"'=/])|(?<=%3[dD]))([^\s?&;,#{}()\"'=/]+?)(?:[\"']\s{0,4}:\s{0,4}|=|%(?:25)?3[dD])"
)
_ASSIGNED_VALUE: Final = re.compile(r"\"[^\"]*\"?|'[^']*'?|[^\s&;,\"'}]*")
# Most targets: short words and short numbers, and a page number at most. Says nothing about what it does not match.
_HARMLESS: Final = re.compile(
    r"(?:/(?!(?i:token|password|secret|otp|api-?key)/)(?:[A-Za-z_.-]{0,15}|[A-Za-z]?\d{1,8})(?![^/?]))+"
    r"(?:\?(?:id|page|limit|offset|size|n)=\d{1,8})?"
).fullmatch
_SECRET_PARENT: Final = frozenset({"token", "password", "secret", "otp", "apikey", "api-key"})
_ABSOLUTE: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]{0,11}://)([^/?#]*)(.*)", re.DOTALL).fullmatch
_NAME_AND_PORT: Final = re.compile(r"(?:[A-Za-z0-9_.-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\]):\d{1,5}", re.ASCII).fullmatch
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_VALUE_MAX: Final = 128  # characters of a query value or segment; what is longer is no word
_TEXT_MAX: Final = 1024  # characters of a header value; user agents end at about 300
_ROUNDS: Final = 5
_REMEMBERED: Final = 4096
_REMEMBERED_MAX: Final = 512  # characters of what is worth remembering


def target(text: str, *, raw_path: bool = False) -> str:
    """A request target of any form (RFC 9112 section 3.2) without user-info, secret segments and secret query values.

    raw_path: leave the path alone.
    """
    if _HARMLESS(text) is not None:
        return text
    text = _printable(text)
    absolute = _ABSOLUTE(text)
    if absolute is not None:
        start, authority, rest = absolute.groups()
        return start + value(f"://{authority}")[3:] + _relative(rest, raw_path)
    return value(text) if _NAME_AND_PORT(text) is not None else _relative(text, raw_path)


def path(text: str) -> str:
    """A path, segment by segment."""
    segments = text.split("/")
    before = ""
    for index, segment in enumerate(segments):
        name, mark, parameters = segment.partition(";")  # ;jsessionid= and its like (RFC 3986 section 3.3)
        plain = _decoded(name)
        if before in _SECRET_PARENT or _secret(plain):
            name = name and REDACTED
        before = plain.lower()
        segments[index] = name + (f";{_query(parameters)}" if mark else "")
    return "/".join(segments)


def value(text: str) -> str:
    """Free text such as a header value: what has the shape of a secret goes, the rest stays."""
    text = _USER_INFO.sub(f"{REDACTED}@", _printable(text))
    for _ in range(_ROUNDS):  # what is left beside a replacement can have a shape together with it
        done = _TEXT_SHAPE.sub(REDACTED, _assigned(text))
        if done == text:
            return text[:_TEXT_MAX]
        text = done
    return REDACTED


def kept(name: str) -> bool:
    """Whether a header (lower case) may be kept at all."""
    return _SECRET_HEADER.search(name) is None


class Redactor:
    """Redacts messages in place; what flow calls. raw_paths: leave paths alone (query and user-info still go)."""

    def __init__(self, *, raw_paths: bool = False) -> None:
        self._raw = raw_paths
        self._targets: dict[str, str] = {}
        self._harmless: set[tuple[str, str]] = set()
        self._replaced: dict[tuple[str, str], str] = {}

    def __call__(self, message: Message) -> None:
        """Idempotent."""
        text = message.target
        if text is not None and _HARMLESS(text) is None:
            done = self._targets.get(text)
            if done is None:
                done = target(text, raw_path=self._raw)
                if len(text) <= _REMEMBERED_MAX:
                    if len(self._targets) >= _REMEMBERED:
                        self._targets.clear()
                    self._targets[text] = done
            message.target = done
        if message.headers:
            self._headers(message.headers)
        if message.trailers:
            self._headers(message.trailers)

    def _headers(self, headers: dict[str, str]) -> None:
        harmless = self._harmless
        for pair in headers.items():
            if pair not in harmless and not self._is_harmless(pair):
                break
        else:
            return
        for pair in list(headers.items()):
            if pair not in harmless and not self._is_harmless(pair):
                done = self._done(pair)
                if done is None:
                    del headers[pair[0]]
                else:
                    headers[pair[0]] = done

    def _is_harmless(self, pair: tuple[str, str]) -> bool:
        is_identifier = _IDENTIFIERS.get(pair[0])
        if is_identifier is not None and is_identifier(pair[1]) is not None:
            return True
        if self._done(pair) != pair[1]:
            return False
        if len(pair[1]) <= _REMEMBERED_MAX:
            if len(self._harmless) >= _REMEMBERED:
                self._harmless.clear()
            self._harmless.add(pair)
        return True

    def _done(self, pair: tuple[str, str]) -> str | None:
        """What a header becomes; None: it goes."""
        name, text = pair
        if not kept(name):
            return None
        done = self._replaced.get(pair)
        if done is None:
            done = value(text)
            if done != text and len(text) <= _REMEMBERED_MAX:
                if len(self._replaced) >= _REMEMBERED:
                    self._replaced.clear()
                self._replaced[pair] = done
        return done


def _relative(text: str, raw_path: bool) -> str:
    """What follows the authority; a fragment has no business here (RFC 9112 section 3.2) and often is a token."""
    rest, hash_mark, fragment = text.partition("#")
    rest, mark, query = rest.partition("?")
    if not raw_path or rest[:1] != "/":
        rest = path(rest)
    return rest + (f"?{_query(query)}" if mark else "") + hash_mark + (fragment and REDACTED)


def _query(query: str) -> str:
    parts = re.split("([&;])", query)
    parts[::2] = [_pair(part) for part in parts[::2]]
    return "".join(parts)


def _pair(pair: str) -> str:
    key, _, text = pair.partition("=")
    plain = _decoded(key.replace("+", " "))
    if _secret(plain):
        return REDACTED
    if text and (_secret_key(plain) or _secret(_decoded(text.replace("+", " ")))):
        return f"{key}={REDACTED}"
    return pair


def _secret(plain: str) -> bool:
    """Whether decoded text is, or tells, a secret."""
    if len(plain) > _VALUE_MAX or _SHAPE.search(plain) is not None:
        return True
    return any(_secret_key(found[1]) for found in _ASSIGNED.finditer(plain))


def _secret_key(name: str) -> bool:
    return _SECRET_KEY.search(_SEPARATORS.sub("", _decoded(name).lower())) is not None


def _decoded(text: str) -> str:
    return unquote(unquote(text)) if "%" in text else text


def _assigned(text: str) -> str:
    """Free text without the values that follow a secret key."""
    parts, done = [], 0
    for found in _ASSIGNED.finditer(text):
        if found.start() >= done and _secret_key(found[1]):
            follows = _ASSIGNED_VALUE.match(text, found.end())
            if follows is not None and follows[0]:
                parts += [text[done : found.end()], REDACTED]
                done = follows.end()
    return "".join((*parts, text[done:])) if parts else text


def _printable(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
