"""One half of an HTTP/1 connection, and the reading of bodies (RFC 9112 sections 6 and 7).

Strategy: a half is in one state, and STEPS[state] reads in that state. A step is given bytes and a position and returns the
new position, or WAIT to have the rest kept until more comes. Bodies are counted, never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from parsers.base import RESPONSES, Ending, Handover, Message, ProtocolError, Verdict
from parsers.http1 import heads

Out = list[Message | Handover]

# States of a half.
HEAD: Final = 0  # at the start of a message
HUNT: Final = 1  # somewhere; looking for a start
COUNTED: Final = 2  # in a body of known length
CHUNK_SIZE: Final = 3  # at the line that opens a chunk
CHUNK: Final = 4  # in a chunk of known length
CHUNK_END: Final = 5  # at the CRLF behind its payload
TRAILERS: Final = 6
UNTIL_CLOSE: Final = 7
EXPECT: Final = 8  # behind a head, where a body may or may not follow
LONG_HEAD: Final = 9  # in a head of which enough is known
WAITING: Final = 10  # behind a CONNECT that has no answer yet
DEAF: Final = 11  # another protocol, or the end

WAIT: Final = -1

COMPLETE: Final = Ending.COMPLETE
LOST: Final = Ending.LOST
CUT: Final = Ending.CUT

WANTED: Final = (Verdict.REQUEST, Verdict.RESPONSE)

BYTES_LOST: Final = "bytes_lost"
TRUNCATED: Final = "head_truncated"
LATE: Final = "late_join"


def doubt(message: Message, why: str) -> None:
    """Say once why something of the message may be incomplete."""
    if why and why not in message.doubts:
        message.doubts = (*message.doubts, why)


class Half:
    """Where one direction stands.

    which:   REQUESTS or RESPONSES.
    skip:    the parser's list of two.
    at:      bytes fed or gapped so far.
    base:    offset of the first byte of the data at hand; fresh: how many of its bytes had waited, since held_ts.
    held:    bytes that wait for more.
    message: the one whose body is being read; begun: the one that was told in this call.
    left:    payload bytes to come in COUNTED and CHUNK.
    body:    state and length of the body that comes after EXPECT or LONG_HEAD, and when its head ended.
    mark:    doubt of the next message, because it was hunted for.
    early:   the message in EXPECT has its final answer.
    fields:  reads header lines.
    """

    __slots__ = (
        "at",
        "base",
        "begun",
        "body",
        "early",
        "fields",
        "fresh",
        "held",
        "held_ts",
        "left",
        "mark",
        "message",
        "skip",
        "state",
        "which",
    )

    def __init__(self, which: int, skip: list[int], fields: heads.Fields) -> None:
        self.which = which
        self.skip = skip
        self.fields = fields
        self.state = HEAD
        self.at = self.base = self.fresh = 0
        self.held = b""
        self.held_ts = 0
        self.message: Message | None = None
        self.begun: Message | None = None
        self.left = 0
        self.body = (HEAD, 0, 0)
        self.mark = ""
        self.early = False

    def enter(self, message: Message, length: int, end: int, ts: int, out: Out, before: int) -> int:
        """Begin a message that goes on at `end`, behind its head; `before`: state in front of the body, or HEAD."""
        self.message = self.begun = message
        if self.which == RESPONSES or message.stream >= 0:
            out.append(message)
        state = COUNTED if length >= 0 else CHUNK_SIZE if length == heads.CHUNKED else UNTIL_CLOSE
        self.body = (state, max(length, 0), ts)
        self.early = False
        self.state = before
        if before == HEAD:
            self.start(self.base + end)
        return end

    def start(self, offset: int) -> None:
        """The body begins at `offset` of the half."""
        self.state, self.left, _ = self.body
        if self.state == COUNTED and self.message is not None and self.message.stream >= 0:
            self.skip[self.which] = offset + self.left

    def finish(self, message: Message, ending: Ending, ts: int, out: Out) -> None:
        """End a message; the half is at the start of the next one. A request that was dropped is not told of."""
        message.final = True
        message.ending = ending
        message.end_ts = ts
        if self.begun is not message and (self.which == RESPONSES or message.stream >= 0):
            out.append(message)
        self.message = None
        self.state = HEAD
        self.skip[self.which] = 0

    def miss(self, n: int, lost: bool, ts: int, out: Out) -> bool:
        """Pass over `n` unseen bytes (`at` counts them already); True if the half knows where it is all the same.

        It does in a counted body, and in a chunk that reaches at least as far.
        """
        message = self.message
        if message is None:
            return False
        if self.state == EXPECT and not self.held:
            self.start(self.at - n)
            if self.early or self.which == RESPONSES:  # it need not have been the body
                doubt(message, BYTES_LOST)
        state, left = self.state, self.left
        if state == UNTIL_CLOSE or (state in {COUNTED, CHUNK} and n <= left):
            if lost:
                doubt(message, BYTES_LOST)
            message.size += n
            self.left = left - n
            if self.left == 0:
                self._filled(message, ts, out)
            return True
        doubt(message, BYTES_LOST)
        message.size += left if state == COUNTED else n
        if state == COUNTED:
            self.finish(message, COMPLETE, ts, out)
        elif state == LONG_HEAD:
            self.finish(message, LOST, ts, out)
        return False

    def _filled(self, message: Message, ts: int, out: Out) -> None:
        if self.state == COUNTED:
            self.finish(message, COMPLETE, ts, out)
        elif self.state == CHUNK:
            self.state = CHUNK_END

    def count(self, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Count a body of known length (RFC 9112 section 6.2), or the rest of a chunk."""
        message = self._reading()
        taken = min(self.left, len(data) - pos)
        message.size += taken
        self.left -= taken
        if not self.left:
            self._filled(message, ts, out)
        return pos + taken

    def until_close(self, data: bytes, pos: int, _ts: int, _out: Out) -> int:
        """Count a body that ends with the connection."""
        self._reading().size += len(data) - pos
        return len(data)

    def chunk_size(self, data: bytes, pos: int, _ts: int, _out: Out) -> int:
        """Count the chunks that lie whole in `data` (RFC 9112 section 7.1), and begin one that does not."""
        message = self._reading()
        begin, end = pos, len(data)
        while pos < end:
            line = data.find(b"\n", pos)
            if line < 0:
                if end - pos > heads.MAX_CHUNK_LINE:
                    raise ProtocolError("endless chunk line")
                return pos if pos > begin else WAIT
            size = heads.chunk_size(data, pos, line)
            pos = line + 1
            if not size:
                self.state = TRAILERS
                break
            if pos + size + 2 > end:
                self.state = CHUNK
                self.left = size
                break
            message.size += size
            pos += size + 2
            if data[pos - 2 : pos] != b"\r\n":
                raise ProtocolError("chunk longer than its size")
        return pos

    def chunk_end(self, data: bytes, pos: int, _ts: int, _out: Out) -> int:
        """Pass over the CRLF behind a chunk. Without it the framing is lost (CVE-2025-43859)."""
        ends = data[pos : pos + 2]
        if ends == b"\r\n":
            self.state = CHUNK_SIZE
            return pos + 2
        if ends == b"\r":
            return WAIT
        raise ProtocolError("chunk longer than its size")

    def trailers(self, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Read the trailer section (RFC 9112 section 7.1.2)."""
        message = self._reading()
        if data[pos : pos + 2] == b"\r\n":
            self.finish(message, COMPLETE, ts, out)
            return pos + 2
        stop, end = heads.head_end(data, pos)
        if stop < 0:
            if len(data) - pos > heads.MAX_TRAILERS:
                raise ProtocolError("endless trailers")
            return WAIT
        trailers, cut = heads.read_fields(data[pos:stop].split(b"\n"), self.fields)
        message.trailers = {name: value for name, value in trailers.items() if name not in self.fields.hidden}
        if cut:
            doubt(message, TRUNCATED)
        self.finish(message, COMPLETE, ts, out)
        return end

    def expect(self, data: bytes, pos: int, _ts: int, out: Out) -> int:
        """Tell a body from the next message, where it may have stayed away.

        Requests: the client announced Expect: 100-continue and got its final answer first (RFC 9110 section 10.1.1);
        whether we saw that answer or not.
        Responses: nobody knows what was asked; it may have been HEAD.
        """
        state, length, ended = self.body
        verdict = heads.sniff(data[pos : pos + heads.MAX_TARGET])
        if verdict == WANTED[self.which]:
            self.finish(self._reading(), COMPLETE, ended, out)
            return pos
        if verdict == Verdict.MAYBE and (self.early or state != COUNTED or len(data) - pos < length):
            return WAIT
        self.start(self.base + pos)
        return pos

    def long_head(self, data: bytes, pos: int, ts: int, out: Out) -> int:
        """Pass over the rest of a head that is too long."""
        _, end = heads.head_end(data, pos)
        if end < 0:
            return max(pos, len(data) - 2) if len(data) - pos > 2 else WAIT
        self.start(self.base + end)
        if not self.left:
            self._filled(self._reading(), ts, out)
        return end

    def waiting(self, data: bytes, _pos: int, _ts: int, _out: Out) -> int:
        """Pass over what a client sent behind CONNECT before it had an answer."""
        return len(data)

    def deaf(self, data: bytes, pos: int, _ts: int, _out: Out) -> int:
        """Pass over what is not ours; `at` stays where our bytes ended."""
        self.at -= len(data) - pos
        return len(data)

    def _reading(self) -> Message:
        assert self.message is not None  # noqa: S101 a half in a body has a message
        return self.message


Step = Callable[[Half, bytes, int, int, Out], int]

STEPS: Final[dict[int, Step]] = {
    COUNTED: Half.count,
    CHUNK_SIZE: Half.chunk_size,
    CHUNK: Half.count,
    CHUNK_END: Half.chunk_end,
    TRAILERS: Half.trailers,
    UNTIL_CLOSE: Half.until_close,
    EXPECT: Half.expect,
    LONG_HEAD: Half.long_head,
    WAITING: Half.waiting,
    DEAF: Half.deaf,
}
