"""Start lines, header fields and body framing of HTTP/1 (RFC 9112 sections 2 to 6).

Strategy: a head is split at its line feeds once, and every field line is looked up in a memo that remembers what the
line said the last time (`Fields`). Most lines of most heads have been seen before, so a head of eight fields costs
one split and eight dictionary look-ups, and if all of them were seen together before, only one; a new line alone runs
Python code.

An observer cannot refuse a message. What an endpoint may forgive is forgiven here (bare LF as line end, folded
fields, lines without a colon); what would make the framing a guess raises ProtocolError.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from parsers.base import ProtocolError, Verdict

# Bytes of one head. Node.js stops at 16 KiB, nginx at 32, Apache at 100 fields of 8, h11 at 16; only Go (1 MiB) takes more.
MAX_HEAD: Final = 64 * 1024
# Field lines of one head whose values are kept; framing is read from all. Node.js keeps 2000, Apache 100.
MAX_FIELDS: Final = 2000
# Bytes kept of one target. Apache and nginx take 8 KiB request lines; RFC 9110 section 4.1 asks for 8000 octets.
# A head of at most this size is kept as it is.
MAX_TARGET: Final = 8192
# Characters kept of one value of a larger head. tracestate may have 512, a name of DNS 255.
MAX_VALUE: Final = 2048
# Bytes of one line that opens a chunk, extensions included. Go: 4096.
MAX_CHUNK_LINE: Final = 4096
# Bytes of one trailer section; as a head.
MAX_TRAILERS: Final = MAX_HEAD
# Digits of a Content-Length that is believed; 10**18 bytes is an exabyte.
MAX_DIGITS: Final = 18
# `sniff` has made up its mind when it has seen this many bytes.
SNIFF_BYTES: Final = 128
# And this much of an incomplete head is looked at again and again while it grows.
SHAPE_BYTES: Final = 512

UNTIL_CLOSE: Final = -1  # results of `framing` that are no length
CHUNKED: Final = -2

METHODS: Final[dict[bytes, str]] = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
}
VERSIONS: Final[dict[bytes, str]] = {b"HTTP/1.%d%s" % (n, end): f"1.{n}" for n in range(10) for end in (b"\r", b"")}

_TOKEN_BYTES: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,32}"
_TOKEN: Final = re.compile(_TOKEN_BYTES)
# The four forms of RFC 9112 section 3.2 as far as their beginnings tell them apart: /, *, scheme://, host:port.
_TARGET: Final = rb"(?>(?:[/*]|[A-Za-z][A-Za-z0-9+.-]{0,31}://|[\[\]A-Za-z0-9._:-]{1,255}:[0-9])[^\x00-\x20\x7f]*)"
_VERSION_PREFIX: Final = rb"(?: (?:H(?:T(?:T(?:P(?:/(?:1(?:\.(?:[0-9]\r?)?)?)?)?)?)?)?)?)?"
_REQUEST_LINE: Final = re.compile(_TOKEN_BYTES + b" " + _TARGET + rb" HTTP/1\.[0-9]\r?\n")
_REQUEST_START: Final = re.compile(b"(?:" + b"|".join(METHODS) + b") " + _TARGET + _VERSION_PREFIX)
_REQUEST_PREFIX: Final = re.compile(_TOKEN_BYTES + rb"(?: [^\x00-\x20\x7f]*" + _VERSION_PREFIX + b")?")
_LOOSE_LINE: Final = re.compile(_TOKEN_BYTES + rb" [^ \r\n]+ HTTP/1\.[0-9]\r?\n")  # what `request_line` takes,
_LOOSE_PREFIX: Final = re.compile(_TOKEN_BYTES + rb"(?: [^ \r\n]*" + _VERSION_PREFIX + b")?")  # and the beginning of it
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9]{2})(?:[ \r\n]|\Z)")
_STATUS_SHAPE: Final = b"HTTP/1.d ddd"
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]*)?\r")  # 16 digits: 64 bit, as Go and llhttp
_BLANK_LINE: Final = re.compile(rb"\n\r?\n")

BLANK: Final = ("", "")  # what `Fields` says of a line that has nothing in it,
FOLD: Final = (" ", "")  # of one that continues the line before (RFC 9112 section 5.2),
FAULT: Final = (":", "")  # and of a framing field that is not written as one (section 5.1)
_MARKS: Final = frozenset({"", " ", ":"})  # their names

_FRAMING: Final = ("content-length", "transfer-encoding")
_SECRET: Final = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})  # never remembered
_IDENTIFIER: Final = re.compile(rb"[0-9A-Za-z_-]{16}")
_MANY_IDS: Final = 32  # identifiers of one field, then it is not remembered any more
_MEMO_NAMES: Final = 256
_MEMO_LINES: Final = 2048  # entries of one memo, then it starts again: about 0.5 MB
_BLOCKS: Final = 256  # and as many whole heads, of at most
_BLOCK_BYTES: Final = 1024
_MEMO_BYTES: Final = 160  # longer lines are not remembered


def sniff(head: bytes) -> Verdict:
    """Tell by shape whether `head`, the first bytes of one direction, is HTTP/1.0 or 1.1 (RFC 9112 sections 3 and 4).

    Pure. It never says MAYBE to more than SNIFF_BYTES bytes. Only the beginning is looked at: on a connection joined
    late, ask again for the first bytes of every record. "GET " alone proves nothing: the target must have one of the
    four forms, and the version must follow it as far as the bytes go (so HTTP/0.9 and "PRI * HTTP/2.0" are NO).
    """
    if head[:7] == b"HTTP/1."[: len(head)] and head:
        return _sniff_status(head)
    if b"\n" in head:
        return Verdict.REQUEST if _REQUEST_LINE.match(head) else Verdict.NO
    if len(head) < SNIFF_BYTES:
        return Verdict.MAYBE if _REQUEST_PREFIX.fullmatch(head) or not head else Verdict.NO
    return Verdict.REQUEST if _REQUEST_START.fullmatch(head) else Verdict.NO


def _sniff_status(head: bytes) -> Verdict:
    if len(head) > len(_STATUS_SHAPE):
        return Verdict.RESPONSE if _STATUS_LINE.match(head) else Verdict.NO
    for byte, shape in zip(head, _STATUS_SHAPE, strict=False):
        if byte != shape and not (shape == ord("d") and chr(byte).isdigit()):
            return Verdict.NO
    return Verdict.MAYBE


def may_begin(head: bytes, *, request: bool) -> bool:
    """Whether `head`, the beginning of an incomplete head in its right place, can still become one."""
    if not request:
        return _sniff_status(head) is not Verdict.NO
    return (_LOOSE_LINE.match(head) if b"\n" in head else _LOOSE_PREFIX.fullmatch(head)) is not None


def printable(raw: bytes) -> str:
    """Text that can do a terminal, a log line or a label no harm: Latin-1 with every control character written out."""
    text = raw.decode("latin-1")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


class Fields(dict[bytes, tuple[str, str] | None]):
    """Field line -> (lower-case name, value) where it is wanted, None where not; a bounded memo.

    `keep` None: every field is wanted. The framing fields always are; `hidden` names those that the caller does not
    want to see. The lines come without LF and with or without the CR before it.

    A field that carries identifiers is not remembered: it is different every time.

    odd:    BLANK, FOLD or FAULT was given; whoever looks sets it back.
    blocks: what `read` said of all the lines of a head together, where each was remembered; do not change what it holds.
    """

    def __init__(self, keep: frozenset[str] | None) -> None:
        super().__init__()
        self.odd = False
        self.blocks: dict[bytes, dict[str, str]] = {}
        self._missed = False
        self._keep = keep
        wanted = (keep or frozenset()).union(_FRAMING)
        self._names = {spelt.encode("latin-1"): name for name in wanted for spelt in (name, name.title())}
        self._volatile: dict[bytes, str | None] = {}  # name as sent -> name, or None where it is not wanted
        self._ids: dict[bytes, int] = {}  # name as sent -> identifiers met
        self.hidden = tuple(name for name in _FRAMING if keep is not None and name not in keep)

    def __missing__(self, line: bytes) -> tuple[str, str] | None:
        self._missed = True
        raw, colon, value = line.partition(b":")
        if raw in self._volatile:
            known = self._volatile[raw]
            if known is None:
                return None
            text = value.strip(b" \t\r").decode("latin-1")
            return (known, text if text.isprintable() else printable(value.strip(b" \t\r")))
        name = self._names.get(raw) or self._name(raw, colon)
        if name in _MARKS:
            self.odd = True
            return (name, "")
        wanted = name != "?" and (self._keep is None or name in self._keep or name in _FRAMING)
        field = (name, printable(value.strip(b" \t\r"))) if wanted else None
        if len(line) <= _MEMO_BYTES and name != "?" and name not in _SECRET:
            if len(self) >= _MEMO_LINES:
                self.clear()
            self[line] = field
            if _IDENTIFIER.search(value):
                self._count_id(raw, name if wanted else None)
        return field

    def read(self, block: bytes) -> dict[str, str] | None:
        """The wanted fields of a head's lines; None if something needs the long way, see `read_fields`."""
        self._missed = False
        found = list(filter(None, map(self.__getitem__, block.split(b"\n"))))
        headers = dict(found)
        if self.odd or len(found) != len(headers):
            self.odd = False
            return None
        if not self._missed and len(block) <= _BLOCK_BYTES:
            if len(self.blocks) >= _BLOCKS:
                self.blocks.clear()
            self.blocks[block] = headers.copy()
        return headers

    def _count_id(self, raw: bytes, name: str | None) -> None:
        ids = self._ids
        ids[raw] = ids.get(raw, 0) + 1
        if ids[raw] >= _MANY_IDS:
            self._volatile[raw] = name
        if ids[raw] >= _MANY_IDS or len(ids) > _MEMO_NAMES:
            ids.clear()
        if len(self._volatile) > _MEMO_NAMES:
            self._volatile.clear()

    def _name(self, raw: bytes, colon: bytes) -> str:
        """Name as looked up; "" blank line, " " folded, ":" fault, "?" not a field."""
        if not colon:
            return "" if raw in {b"", b"\r"} else " " if raw[:1] in {b" ", b"\t"} else "?"
        if raw[:1] in {b" ", b"\t"}:
            return " "
        name = raw.decode("latin-1").lower()
        if _TOKEN.fullmatch(raw[:32]) and name.isascii():
            return name
        return ":" if name.strip(" \t\r\v\f\0") in _FRAMING else "?"


_memos: Final[dict[frozenset[str] | None, Fields]] = {}


def fields_for(keep: Iterable[str] | None) -> Fields:
    """The memo that all parsers with the same `keep` share."""
    key = None if keep is None else frozenset(name.lower() for name in keep)
    if key not in _memos:
        _memos[key] = Fields(key)
    return _memos[key]


def joined(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Repeated fields as one, joined by a comma and a blank (RFC 9110 section 5.3)."""
    headers: dict[str, str] = {}
    for name, value in found:
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def read_fields(lines: list[bytes], fields: Fields) -> tuple[dict[str, str], bool]:
    """The wanted fields of any lines, and whether something was cut off. The way for everything unusual.

    Raises ProtocolError for a framing field with blanks before its colon (RFC 9112 section 5.1: reject).
    """
    whole: list[bytes] = []
    for line in lines:
        if line[:1] in {b" ", b"\t"} and whole:  # a fold is a blank (section 5.2)
            whole[-1] = whole[-1].rstrip(b"\r") + b" " + line.strip(b" \t\r")
        else:
            whole.append(line)
    found = [field for field in map(fields.__getitem__, whole[:MAX_FIELDS]) if field and field not in {BLANK, FOLD}]
    large = sum(map(len, whole)) > MAX_TARGET
    beyond = map(fields.__getitem__, whole[MAX_FIELDS:])
    found += [field for field in beyond if field and (field[0] in _FRAMING or field == FAULT)]
    fields.odd = False
    if FAULT in found:
        raise ProtocolError("framing field with blanks before its colon")
    headers = joined(found)
    long = [name for name, value in headers.items() if large and len(value) > MAX_VALUE and name not in _FRAMING]
    for name in long:
        headers[name] = headers[name][:MAX_VALUE]
    return headers, bool(long) or len(whole) > MAX_FIELDS


def framing(headers: dict[str, str], *, request: bool) -> int:
    """Body length by RFC 9112 section 6.3 items 4 to 8: bytes, or CHUNKED, or UNTIL_CLOSE.

    Items 1 to 3 (HEAD, 204, 304, CONNECT) are the caller's. Transfer-Encoding wins over Content-Length (item 3 of the
    list of precedence, "ought to be handled as an error" by an endpoint, but this is what it will read by).
    Raises ProtocolError where the RFC says that the length cannot be determined.
    """
    coding = headers.get("transfer-encoding")
    if coding is not None:
        codings = [c.strip(" \t").lower() for c in coding.split(",") if c.strip(" \t")]
        if codings and codings[-1].partition(";")[0].rstrip() == "chunked":
            return CHUNKED
        if any(c != "identity" for c in codings):  # identity was in RFC 2616 and means nothing was done
            if request:
                raise ProtocolError("request whose last transfer coding is not chunked")
            return UNTIL_CLOSE
    length = headers.get("content-length")
    if length is None:
        return 0 if request else UNTIL_CLOSE
    if not length.isdecimal():  # several fields or a list are valid if all say the same (item 5)
        values = {value.strip(" \t") for value in length.split(",")}
        length = values.pop() if len(values) == 1 else ""
    if not length.isdecimal() or not length.isascii() or len(length) > MAX_DIGITS:
        raise ProtocolError("content length that is not one number")
    return int(length)


def head_end(data: bytes, pos: int) -> tuple[int, int]:
    """Where the head that begins at `pos` ends: (before, after) the blank line; (-1, -1) if it does not.

    The line before keeps its CR if it has one; a line may end with LF alone (RFC 9112 section 2.2). `pos` may lie inside
    the head where its beginning was searched before.
    """
    match = _BLANK_LINE.search(data, pos)
    return match.span() if match else (-1, -1)


def still_open(data: bytes, fresh: int) -> bool:
    """Whether the lines in `data`, of which the first `fresh` bytes were read before, are whole but for their end."""
    if data.find(b"\n", 0, fresh) < 0:
        return fresh > SHAPE_BYTES and data.find(b"\n", fresh) < 0
    return head_end(data, max(fresh - 2, 0))[0] < 0


def request_line(line: bytes) -> tuple[str, str, str, bool]:
    """Split a request line into (method, target, version, cut); cut: the target was longer than is kept.

    Raises ProtocolError if it is none (RFC 9112 section 3).
    """
    try:
        raw, target, rest = line.split(b" ")
        version = VERSIONS[rest]
    except (ValueError, KeyError):
        raise ProtocolError("not a request line") from None
    method = METHODS.get(raw)
    if method is None:
        if not _TOKEN.fullmatch(raw):
            raise ProtocolError("method that is no token")
        method = raw.decode("ascii")
    if not target:
        raise ProtocolError("request without target")
    return method, printable(target[:MAX_TARGET]), version, len(target) > MAX_TARGET


class Statuses(dict[bytes, tuple[str, int]]):
    """First 13 bytes of a status line -> (version, status) (RFC 9112 section 4). Raises ProtocolError for anything else.

    Bounded by its keys: ten minor versions, 900 codes, four ends.
    """

    def __missing__(self, start: bytes) -> tuple[str, int]:
        match = _STATUS_LINE.match(start)
        if match is None:
            raise ProtocolError("not a status line")
        found = self[start] = (f"1.{match[1].decode()}", int(match[2]))
        return found


class Lengths(dict[str, int]):
    """Content-Length -> bytes where it is one plain number, else -1; a bounded memo for the fast path."""

    def __missing__(self, text: str) -> int:
        if not text.isdecimal() or len(text) > MAX_DIGITS:
            return -1
        if len(self) >= _MEMO_LINES:
            self.clear()
        size = self[text] = int(text)
        return size


def chunk_size(data: bytes, pos: int, end: int) -> int:
    """Payload bytes that the chunk line data[pos:end] (its CR included, its LF not) opens (RFC 9112 section 7.1).

    Extensions are read and forgotten. A line that ends with LF alone is refused: endpoints disagree about it
    (CVE-2025-22871), so its framing is anybody's guess. Raises ProtocolError.
    """
    match = _CHUNK_LINE.fullmatch(data, pos, end)
    if match is None:
        raise ProtocolError("not a chunk size")
    return int(match[1], 16)
