"""The parser of one HTTP/1 connection, both halves (RFC 9112).

Strategy: a message that lies whole in one `feed` passes through one method, without a copy; everything unusual goes
the long way (`_unusual`), everything behind a head through the steps of bodies.py. HTTP/1 must know which request an
answer belongs to before it can tell whether it has a body (HEAD, CONNECT), so the order is kept here (pairs.py) and
nowhere else.

After a hole a counted body goes on, because the hole is counted, too; so does a chunk that reaches past the hole.
Otherwise the half hunts for the next start line, where a `feed` begins or behind a blank line, and whatever it finds
carries a doubt.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from parsers.base import ORPHAN, REQUESTS, RESPONSES, Handover, Message, ProtocolError, Verdict
from parsers.http1 import heads
from parsers.http1.bodies import (
    BYTES_LOST,
    COMPLETE,
    CUT,
    DEAF,
    EXPECT,
    HEAD,
    HUNT,
    LATE,
    LONG_HEAD,
    LOST,
    STEPS,
    TRAILERS,
    TRUNCATED,
    UNTIL_CLOSE,
    WAIT,
    WAITING,
    WANTED,
    Half,
    Out,
    doubt,
)
from parsers.http1.pairs import Pairs

# Who takes over after 101, by Upgrade token in lower case (RFC 9110 section 7.8); others are left alone.
UPGRADES: Final = {"h2c": "http/2"}

_EXPECT: Final = re.compile(rb"(?i:(?:^|\n)expect:)")
_UPGRADE: Final = re.compile(rb"(?i:(?:^|\n)upgrade):[ \t]*([^ \t\r\n,]+)")
_LINES: Final = frozenset({HEAD, TRAILERS})
_MAX_PLACES: Final = 64  # where one `feed` is searched for a start
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_VERSIONS: Final = heads.VERSIONS
_METHODS: Final = heads.METHODS
_statuses: Final = heads.Statuses()
_MAX_TARGET: Final = heads.MAX_TARGET
_lengths: Final = heads.Lengths()
_BODILESS: Final = frozenset({*range(100, 200), 204, 304})
_BODILESS_VERBS: Final = frozenset({"HEAD", "CONNECT"})


class Parser:
    """Bytes of one connection to messages, see parsers/base.py.

    keep: lower-case header names to keep, None for all. Content-Length and Transfer-Encoding are read anyhow.
    skip: per half, the offset up to which no byte is needed; set in counted bodies only.
    """

    __slots__ = ("_blocks", "_fields", "_halves", "_hides_length", "_pairs", "skip")

    def __init__(self, keep: Iterable[str] | None = None) -> None:
        self.skip = [0, 0]
        self._fields = heads.fields_for(keep)
        self._blocks = self._fields.blocks
        self._halves = (Half(REQUESTS, self.skip, self._fields), Half(RESPONSES, self.skip, self._fields))
        self._pairs = Pairs(self._halves)
        self._hides_length = "content-length" in self._fields.hidden

    @property
    def at(self) -> tuple[int, int]:
        """Bytes fed or gapped so far, per half; after a Handover, where HTTP/1 ended."""
        return self._halves[REQUESTS].at, self._halves[RESPONSES].at

    @property
    def dropped(self) -> int:
        """Requests that were not told because pairs.MAX_OPEN others waited for their answers."""
        return self._pairs.dropped

    def feed(self, half: int, data: bytes, ts: int, out: Out) -> None:
        """Read contiguous bytes of one half, see parsers/base.py. After ProtocolError the half hunts."""
        h = self._halves[half]
        base = h.base = h.at
        end = len(data)
        h.at = base + end
        h.begun = None
        h.fresh = 0
        if h.held:
            h.fresh = len(h.held)
            h.base = base - h.fresh
            data = h.held + data
            end += h.fresh
            if h.state in _LINES and end < heads.MAX_HEAD and heads.still_open(data, h.fresh):
                h.held = data  # a head in many small pieces must not be read again for each
                return
            h.held = b""
        pos = 0
        try:
            while pos < end:
                state = h.state
                if state == HEAD:
                    after = self._response(h, data, pos, ts, out) if half else self._request(h, data, pos, ts, out)
                elif state == HUNT:
                    after = self._hunt(h, data, pos, ts, out)
                else:
                    after = STEPS[state](h, data, pos, ts, out)
                if after < 0:
                    h.held = data[pos:]
                    if pos >= h.fresh:
                        h.held_ts = ts
                    break
                pos = after
        except ProtocolError:
            h.at = base
            if h.message is not None:
                h.finish(h.message, LOST, ts, out)
            self._pairs.lose(h, BYTES_LOST)
            raise

    def gap(self, half: int, n: int, lost: bool, ts: int, out: Out) -> None:
        """Pass over `n` unseen bytes of one half, see parsers/base.py.

        Before the first byte `n` may be 0: the connection was joined late.
        """
        h = self._halves[half]
        start = h.at
        if h.state == DEAF or (n <= 0 and start):
            return
        h.at += n
        if h.state == WAITING:
            return
        h.begun = None
        if not h.miss(n, lost, ts, out):
            self._pairs.lose(h, BYTES_LOST if n else LATE)

    def close(self, half: int, ts: int, out: Out) -> None:
        """End one half, see parsers/base.py. The end of the answers cuts every request that is still open."""
        h = self._halves[half]
        h.begun = None
        message, state = h.message, h.state
        if message is not None:
            whole = state == UNTIL_CLOSE or (state == EXPECT and h.early)
            h.finish(message, COMPLETE if whole else LOST if state == HUNT else CUT, ts, out)
        h.state = DEAF
        h.held = b""
        if half == RESPONSES:
            self._pairs.end(ts, out)

    def ready(self, half: int) -> bool:
        """False for the answers while no request is open and no answer is under way."""
        h = self._halves[RESPONSES]
        return half == REQUESTS or self._pairs.waiting() or h.message is not None or h.state == DEAF

    def _request(self, h: Half, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Read the head of a request, and its body if it is all there."""
        if not pos and data[-4:] == b"\r\n\r\n" and data[0] == 71:  # G: nothing but a GET, it seems
            stop = len(data) - 4
        else:
            stop = data.find(b"\r\n\r\n", pos)
            if stop < 0:
                return self._unusual(h, data, pos, ts, out)
        line, _, block = data[pos:stop].partition(b"\n")
        try:
            verb, raw, version = line.split(b" ")
            method, number = _METHODS[verb], _VERSIONS[version]
        except (ValueError, KeyError):
            return self._unusual(h, data, pos, ts, out)
        known = self._blocks.get(block)
        headers = known.copy() if known is not None else self._fields.read(block)
        target = raw.decode("latin-1")
        if headers is None or not block or stop - pos > _MAX_TARGET or not target.isprintable() or not target:
            return self._unusual(h, data, pos, ts, out)
        message = Message(REQUESTS, self._pairs.count, ts if pos >= h.fresh else h.held_ts, h.base + pos)
        message.verb = method
        message.target = target
        message.version = number
        message.headers = headers
        pairs = self._pairs
        if pairs.careful or "content-length" in headers or "transfer-encoding" in headers or method == "CONNECT":
            return self._ask(h, message, block, data, stop + 4, ts, out)
        pairs.append(message)
        message.end_ts = ts
        message.ending = COMPLETE
        message.final = True
        out.append(message)
        return stop + 4

    def _response(self, h: Half, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Read the head of a response, and its body if it is all there."""
        stop = data.find(b"\r\n\r\n", pos)
        if stop < 0:
            return self._unusual(h, data, pos, ts, out)
        line, _, block = data[pos:stop].partition(b"\n")
        try:
            version, status = _statuses[line[:13]]
        except ProtocolError:
            return self._unusual(h, data, pos, ts, out)
        known = self._blocks.get(block)
        headers = known.copy() if known is not None else self._fields.read(block)
        if headers is None or not block or stop - pos > _MAX_TARGET:
            return self._unusual(h, data, pos, ts, out)
        message = Message(RESPONSES, ORPHAN, ts if pos >= h.fresh else h.held_ts, h.base + pos)
        message.version = version
        message.status = status
        message.headers = headers
        pairs = self._pairs
        size = _lengths[headers["content-length"]] if "content-length" in headers else len(data)
        end = stop + 4 + size
        if (
            end > len(data)
            or size < 0
            or "transfer-encoding" in headers
            or pairs.careful
            or not pairs.open
            or pairs.open[0].verb in _BODILESS_VERBS
            or status in _BODILESS
        ):
            return self._answer(h, message, block, data, stop + 4, ts, out)
        pairs.take(message)
        if self._hides_length:
            del headers["content-length"]
        message.size = size
        message.end_ts = ts
        message.ending = COMPLETE
        message.final = True
        out.append(message)
        return end

    def _unusual(self, h: Half, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Read a head the long way: incomplete, too long, folded, repeated, LF alone, a method of its own, or no head."""
        self._fields.odd = False
        if data[pos] in b"\r\n":  # empty lines before a message are passed over (RFC 9112 section 2.2)
            return len(data) - len(data[pos:].lstrip(b"\r\n"))
        stop, end = heads.head_end(data, pos)
        truncated = stop < 0
        if truncated:
            if len(data) - pos < heads.MAX_HEAD:
                if heads.may_begin(data[pos : pos + heads.SHAPE_BYTES], request=h.which == REQUESTS):
                    return WAIT
                return self._reject(h, pos)
            end = stop = data.rfind(b"\n", pos, pos + heads.MAX_HEAD)
        line, _, block = data[pos : max(stop, pos)].partition(b"\n")
        message = Message(h.which, self._pairs.count, ts if pos >= h.fresh else h.held_ts, h.base + pos)
        try:
            if h.which == REQUESTS:
                message.verb, message.target, message.version, cut = heads.request_line(line)
            else:
                message.stream, cut = ORPHAN, False
                message.version, message.status = _statuses[line[:13]]
        except ProtocolError:
            return self._reject(h, pos)
        message.headers, more = heads.read_fields(block.split(b"\n") if block else [], self._fields)
        if cut or more or truncated:
            doubt(message, TRUNCATED)
        told = self._ask if h.which == REQUESTS else self._answer
        return told(h, message, block, data, end, ts, out, truncated)

    def _reject(self, h: Half, pos: int) -> int:
        """No start line where one belongs. At the very first byte it means that the connection was joined late."""
        if h.base + pos or h.mark:
            raise ProtocolError("not a status line" if h.which else "not a request line")
        self._pairs.lose(h, LATE)
        return pos

    def _ask(self, h: Half, message: Message, block: bytes, data: bytes, end: int, ts: int, out: Out, more: bool = False) -> int:
        """Take a request whose head ends at `end`; `more`: the head goes on, but no more of it is read."""
        if self._pairs.careful:
            self._pairs.ask(message)
        else:
            self._pairs.append(message)
        headers = message.headers
        length = 0
        if "content-length" in headers or "transfer-encoding" in headers:
            length = self._framing(h, message, ts, out)
        if message.verb == "CONNECT":
            length = 0
            h.state = WAITING
        rest = len(data) - end
        if more or not 0 <= length <= rest:
            expects = not rest and _EXPECT.search(block) is not None
            return h.enter(message, length, end, ts, out, LONG_HEAD if more else EXPECT if expects else HEAD)
        message.size = length
        message.end_ts = ts
        message.ending = COMPLETE
        message.final = True
        if message.stream >= 0:
            out.append(message)
        return end + length

    def _answer(
        self, h: Half, message: Message, block: bytes, data: bytes, end: int, ts: int, out: Out, more: bool = False
    ) -> int:
        """Take a response whose head ends at `end`, and find the request that it answers."""
        status = message.status
        if status < 200 and status != 101:
            if more:
                raise ProtocolError("endless interim answer")
            self._pairs.interim(status)
            return end
        request = self._pairs.answer(message) if self._pairs.careful or not self._pairs.open else self._pairs.take(message)
        if status == 101 or (status < 300 and request is not None and request.verb == "CONNECT"):
            return self._switch(h, message, request, block, end, ts, out)
        headers = message.headers
        if status in {204, 304} or (request is not None and request.verb == "HEAD"):  # RFC 9112 section 6.3 item 1
            length = 0
            self._hide(message)
        elif "content-length" in headers or "transfer-encoding" in headers:
            length = self._framing(h, message, ts, out)
        else:
            length = heads.UNTIL_CLOSE
        if more or not 0 <= length <= len(data) - end or (length and request is None):
            return h.enter(message, length, end, ts, out, LONG_HEAD if more else HEAD if request is not None else EXPECT)
        message.size = length
        message.end_ts = ts
        message.ending = COMPLETE
        message.final = True
        out.append(message)
        return end + length

    def _framing(self, h: Half, message: Message, ts: int, out: Out) -> int:
        """Length of the body, see heads.framing. A message whose end nobody can know is told all the same."""
        try:
            return heads.framing(message.headers, request=h.which == REQUESTS)
        except ProtocolError:
            h.begun = None
            h.finish(message, LOST, ts, out)
            raise
        finally:
            self._hide(message)

    def _hide(self, message: Message) -> None:
        """Forget the fields that only the framing needed."""
        for name in self._fields.hidden:
            message.headers.pop(name, None)

    def _switch(self, h: Half, message: Message, request: Message | None, block: bytes, end: int, ts: int, out: Out) -> int:
        """End HTTP/1 here: 101 (RFC 9110 section 7.8), or 2xx to CONNECT (section 9.3.6)."""
        self._hide(message)
        protocol = None
        token = _UPGRADE.search(block)
        if message.status == 101 and token is not None:
            protocol = UPGRADES.get(token[1].decode("latin-1").lower())
        asking = self._halves[REQUESTS]
        if asking.message is not None:
            asking.begun = None
            asking.finish(asking.message, LOST, ts, out)
        asking.held = b""
        h.finish(message, COMPLETE, ts, out)
        h.state = asking.state = DEAF
        out.append(Handover(protocol, request))
        return end

    def _hunt(self, h: Half, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Look for the start of a message where bytes begin, and behind each blank line."""
        total = len(data)
        message = h.message
        if message is not None and (data[pos:] == _LAST_CHUNK[2:] or data[-len(_LAST_CHUNK) :] == _LAST_CHUNK):
            message.size += total - pos
            h.finish(message, COMPLETE, ts, out)  # it looks like its end
            h.state = HUNT
            return total
        place = pos
        for _ in range(_MAX_PLACES):
            if place < 0:
                break
            start = total - len(data[place:].lstrip(b"\r\n"))
            verdict = heads.sniff(data[start : start + heads.MAX_TARGET]) if start < total else Verdict.NO
            if verdict == Verdict.MAYBE:
                return start if start > pos else WAIT
            if verdict == WANTED[h.which]:
                self._found(h, data[pos:start], ts, out)
                return start
            if place < h.fresh:  # bytes that had waited because they could have been a start
                place = h.fresh
            else:
                _, place = heads.head_end(data, place)
        if message is not None:
            message.size += total - pos
        return total

    def _found(self, h: Half, passed: bytes, ts: int, out: Out) -> None:
        """The next message begins behind the bytes that were `passed` by."""
        if h.message is not None:
            h.message.size += len(passed)
            h.finish(h.message, COMPLETE if passed.endswith(_LAST_CHUNK) else LOST, ts, out)
        h.state = HEAD
