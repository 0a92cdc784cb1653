"""A protocol for tests of flow: lines with counted bodies, answered in order.

    request:  ``ASK <target> <body bytes>\\n`` + body          response: ``TELL <status> <body bytes>\\n`` + body

Status 101 hands the connection over. A body of -1 bytes ends with the connection. A target ``/boom`` is a bug of the
parser; a line that is neither is a ProtocolError.
"""

from __future__ import annotations

from collections import deque

from meshscope.flow.connection import Out
from parsers.base import ORPHAN, REQUESTS, RESPONSES, Description, Ending, Handover, Message, ProtocolError, Verdict

NAME = "toy/1"
_WORDS = (b"ASK ", b"TELL ")


def sniff(head: bytes) -> Verdict:
    for word, verdict in zip(_WORDS, (Verdict.REQUEST, Verdict.RESPONSE), strict=True):
        if head.startswith(word):
            return verdict
        if word.startswith(head):
            return Verdict.MAYBE
    return Verdict.NO


class Parser:
    def __init__(self, keep: frozenset[str] | None = None) -> None:
        self.keep = keep
        self.skip = [0, 0]
        self.at = [0, 0]
        self.count = 0
        self.waiting: deque[Message] = deque()
        self.line = [b"", b""]
        self.begun = [0, 0]
        self.left = [0, 0]
        self.body: list[Message | None] = [None, None]
        self.doubt = ["", ""]

    def ready(self, half: int) -> bool:
        return half == REQUESTS or bool(self.waiting) or self.body[RESPONSES] is not None

    def feed(self, half: int, data: bytes, ts: int, out: Out) -> None:
        fed = len(data)
        self.at[half] += fed
        while data:
            message = self.body[half]
            if message is not None:
                n = len(data) if self.left[half] < 0 else min(len(data), self.left[half])
                message.size += n
                data = data[n:]
                if self.left[half] >= 0:
                    self.left[half] -= n
                    if not self.left[half]:
                        self._end(half, ts, out, Ending.COMPLETE)
                continue
            line, newline, rest = (self.line[half] + data).partition(b"\n")
            if not self.line[half]:
                self.begun[half] = ts
            if not newline:
                self.line[half] = line
                return
            self.line[half], data = b"", rest
            self._head(half, line, self.at[half] - len(rest) - len(line) - 1, ts, out, fed)

    def _head(self, half: int, line: bytes, offset: int, ts: int, out: Out, fed: int) -> None:
        words = line.split(b" ")
        if words[0] + b" " != _WORDS[half] or len(words) != 3:
            self.at[half] -= fed
            raise ProtocolError("not a line")
        message = Message(half, self.count, self.begun[half], offset)
        answered = None
        if half == REQUESTS:
            message.verb, message.target = "ASK", words[1].decode()
            if words[1] == b"/boom":
                raise ZeroDivisionError
            self.count += 1
            self.waiting.append(message)
        else:
            message.status = int(words[1])
            answered = self.waiting.popleft() if self.waiting else None
            message.stream = answered.stream if answered else ORPHAN
        if self.doubt[half]:
            message.doubts = (self.doubt[half],)
            self.doubt[half] = ""
        self.left[half] = int(words[2])
        self.body[half] = message
        if self.left[half] > 0:
            self.skip[half] = offset + len(line) + 1 + self.left[half]
        if not self.left[half]:
            self._end(half, ts, out, Ending.COMPLETE)
        else:
            out.append(message)
        if message.status == 101:
            out.append(Handover(None, answered))

    def _end(self, half: int, ts: int, out: Out, ending: Ending) -> None:
        message = self.body[half]
        assert message is not None
        self.body[half] = None
        self.skip[half] = 0
        message.final, message.ending, message.end_ts = True, ending, ts
        if message not in out:
            out.append(message)

    def gap(self, half: int, n: int, lost: bool, ts: int, out: Out) -> None:
        self.at[half] += n
        message = self.body[half]
        if message is not None and (self.left[half] < 0 or n <= self.left[half]):
            message.size += n
            if lost:
                message.doubts = ("bytes_lost",)
            if self.left[half] >= 0:
                self.left[half] -= n
                if not self.left[half]:
                    self._end(half, ts, out, Ending.COMPLETE)
            return
        if message is not None:
            self._end(half, ts, out, Ending.LOST)
        self.line[half] = b""
        self.doubt[half] = "bytes_lost" if n else ""
        if half == RESPONSES and n:
            while len(self.waiting) > 1:
                self.waiting.popleft()

    def close(self, half: int, ts: int, out: Out) -> None:
        if self.body[half] is not None:
            self._end(half, ts, out, Ending.COMPLETE if self.left[half] < 0 else Ending.CUT)


def describe(request: Message | None, response: Message | None) -> Description:
    if response is None:
        outcome = "aborted" if request is not None and request.ending == Ending.CUT else "unknown"
    else:
        outcome = {Ending.CUT: "aborted", Ending.LOST: "unknown"}.get(response.ending, "ok")
    attributes: dict[str, str | int] = {"toy.target": (request and request.target) or ""}
    return Description(NAME, str(response.status) if response else "", outcome, "toy", attributes)
