"""Which request a response answers (RFC 9112 section 9.3: in order), and what a hole does to that."""

from __future__ import annotations

from collections import deque
from typing import Final

from parsers.base import ORPHAN, REQUESTS, Message
from parsers.http1.bodies import BYTES_LOST, COMPLETE, CUT, HUNT, LOST, Half, Out, doubt

# Requests that may wait for an answer. Browsers pipelined 8, load generators 64; HTTP/2 peers allow 100 streams.
MAX_OPEN: Final = 256
MAX_INTERIM: Final = 16  # interim answers told of one request; hardly anybody sends more than 2


class Pairs:
    """The open questions of a connection, oldest first.

    open:     requests without a final answer.
    count:    requests so far: the next one's stream.
    dropped:  requests that were not told because MAX_OPEN others waited.
    careful:  something is doubtful, see `ask` and `answer`.

    After a hole in the answers only the newest request stays open: a client that does not pipeline sends it after it
    has all older answers. Until client and server are provably in step again, every message carries a doubt.
    """

    __slots__ = ("_behind", "_interim", "_pipelined", "_unsure", "careful", "count", "dropped", "halves", "open")

    def __init__(self, halves: tuple[Half, Half]) -> None:
        self.halves = halves
        self.open: deque[Message] = deque()
        self.count = 0
        self.dropped = 0
        self.careful = False
        self._behind = 0  # dropped requests behind the newest open one, whose answers are still to come
        self._interim: tuple[int, ...] = ()
        self._pipelined = False  # seen, not guessed
        self._unsure = ""

    def lose(self, half: Half, why: str) -> None:
        """The half is somewhere: what is found next, and who answers whom, is doubtful."""
        half.held = b""
        half.state = HUNT
        half.skip[half.which] = 0
        half.mark = half.mark or why
        self._unsure = self._unsure or why
        self.careful = True

    def ask(self, request: Message) -> None:
        """Take a new request in.

        If too many are open it is dropped (stream ORPHAN), and so is what follows until the answers have come past
        it: the newest go, so that the pairs stay right.
        """
        if self.careful:
            self._doubt_request(request)
        self.count += 1
        if self._behind or len(self.open) >= MAX_OPEN:
            self._behind += 1
            self.dropped += 1
            request.stream = ORPHAN
        else:
            self.open.append(request)

    def interim(self, status: int) -> None:
        """Remember an interim answer to the oldest open request (RFC 9110 section 15.2)."""
        if self.open and len(self._interim) < MAX_INTERIM:
            self._interim += (status,)

    def answer(self, response: Message) -> Message | None:
        """The request that a response answers, taken from the open ones; None for an orphan."""
        if self.careful and self._doubt_response(response):
            return None
        interim, self._interim = self._interim, ()
        if not self.open:
            self._behind -= self._behind > 0
            return None
        request = self.open.popleft()
        response.stream = request.stream
        response.interim = interim
        if self.open:
            self._pipelined = True
        asking = self.halves[REQUESTS]
        if request is asking.message:
            asking.early = True
        elif request.verb == "CONNECT" and response.status >= 300:
            asking.state = HUNT
        return request

    def end(self, ts: int, out: Out) -> None:
        """No more answers, ever: what is still open was cut, or lost if there is a hole at the end of the answers."""
        asking, answering = self.halves
        ending = LOST if answering.mark else CUT
        while self.open:
            request = self.open.popleft()
            if request is asking.message:
                asking.finish(request, ending, ts, out)
            elif request.ending is COMPLETE:
                request.ending = ending
        self._behind = 0

    def _doubt_request(self, request: Message) -> None:
        # In step again: a request that was not hunted for comes while nothing is open. Not if the client pipelines:
        # then answers to unseen requests may still be on their way.
        asking, answering = self.halves
        if asking.mark:
            doubt(request, asking.mark)
            asking.mark = ""
        elif self.open or self._behind or self._pipelined:
            doubt(request, self._unsure)
        else:
            self._unsure = ""
        self.careful = bool(self._unsure or answering.mark)

    def _doubt_response(self, response: Message) -> bool:
        # True: it cannot answer what is open.
        asking, answering = self.halves
        if answering.mark:
            doubt(response, answering.mark)
            answering.mark = ""
            self.careful = bool(self._unsure or asking.mark)
            self._interim = ()
            while len(self.open) > (not self._behind):
                self._give_up(self.open.popleft())
            self._behind = 0
        else:
            doubt(response, self._unsure)
        # A request behind a hole does not get an answer that was seen before it: that was meant for one in the hole.
        return bool(self.open) and bool(self.open[0].doubts) and response.ts < self.open[0].ts

    @staticmethod
    def _give_up(request: Message) -> None:
        # Its answer went by unseen.
        if request.ending is COMPLETE:
            request.ending = LOST
        doubt(request, BYTES_LOST)
