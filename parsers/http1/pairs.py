"""Which request a response answers (RFC 9112 section 9.3: in order), and what a hole does to that."""

from __future__ import annotations

from collections import deque
from typing import Final

from parsers.base import ORPHAN, REQUESTS, Message
from parsers.http1.bodies import BYTES_LOST, COMPLETE, CUT, EXPECT, HUNT, LOST, Half, Out, doubt

# Requests that may wait for an answer. Browsers pipelined 8, load generators 64; HTTP/2 peers allow 100 streams.
MAX_OPEN: Final = 128
MAX_INTERIM: Final = 16  # interim answers told of one request; hardly anybody sends more than 2
# Requests that must come while nothing is open before a client that was seen to pipeline counts as in step again.
_STEPS: Final = 16


class Pairs:
    """The open questions of a connection, oldest first.

    open:     requests without a final answer.
    count:    requests so far: the next one's stream.
    dropped:  requests that were not told because MAX_OPEN others waited.
    careful:  something is doubtful, see `ask` and `answer`.

    After a hole in the answers only the newest request stays open: a client that does not pipeline sends it after it
    has all older answers. Every message carries a doubt until client and server are in step again: a request that was
    not hunted for comes while nothing is open. If the client pipelines, that alone proves nothing, for answers to unseen
    requests may still be on their way; so it must happen more often. (A client that has two requests on their way at any
    time looks, joined late, exactly like one that has one, with every pair shifted. Nothing can be done about that.)
    """

    __slots__ = (
        "_answered",
        "_behind",
        "_interim",
        "_owed",
        "_pipelined",
        "_unsure",
        "careful",
        "count",
        "dropped",
        "halves",
        "open",
    )

    def __init__(self, halves: tuple[Half, Half]) -> None:
        self.halves = halves
        self.open: deque[Message] = deque()
        self.count = 0
        self.dropped = 0
        self.careful = False
        self._behind = 0  # dropped requests behind the newest open one, whose answers are still to come
        self._interim: tuple[int, ...] = ()
        self._pipelined = False  # seen, not guessed
        self._owed = 0  # requests that must still come in step
        self._answered = -1  # count when the last answer came, while careful
        self._unsure = ""

    def lose(self, half: Half, why: str) -> None:
        """The half is somewhere: what is found next, and who answers whom, is doubtful."""
        half.held = b""
        half.state = HUNT
        half.skip[half.which] = 0
        half.mark = half.mark or why
        self._unsure = self._unsure or why
        self._owed = _STEPS if self._pipelined else 1
        asking = self.halves[REQUESTS]
        if asking.state == EXPECT and asking.message is not None:  # it may have been refused, and its body not sent
            doubt(asking.message, why)
        self.careful = True

    def waiting(self) -> bool:
        """Whether an answer is still to come."""
        return bool(self.open) or self._behind > 0

    def append(self, request: Message) -> None:
        """Take a request in while nothing is doubtful."""
        self.open.append(request)
        self.count += 1
        if len(self.open) >= MAX_OPEN:
            self.careful = True

    def ask(self, request: Message) -> None:
        """Take a request in, doubtful or not.

        If too many are open it is dropped (stream ORPHAN), and so is what follows until the answers have come past
        it: the newest go, so that the pairs stay right.
        """
        asking, answering = self.halves
        if asking.mark:
            doubt(request, asking.mark)
            asking.mark = ""
        else:
            if not self.open and not self._behind:
                self._owed -= 1
            elif not answering.mark:  # else the answer to what is open may have been in the hole
                self._owed = _STEPS
            if self._owed <= 0:
                self._unsure = ""
            doubt(request, self._unsure)
        self.count += 1
        if self._behind or len(self.open) >= MAX_OPEN:
            self._behind += 1
            self.dropped += 1
            request.stream = ORPHAN
        else:
            self.open.append(request)
        self.careful = bool(self._unsure or answering.mark or self._behind or len(self.open) >= MAX_OPEN)

    def interim(self, status: int) -> None:
        """Remember an interim answer to the oldest open request (RFC 9110 section 15.2)."""
        if self.open and len(self._interim) < MAX_INTERIM:
            self._interim += (status,)

    def take(self, response: Message) -> Message:
        """The oldest open request, which this response answers."""
        request = self.open.popleft()
        response.stream = request.stream
        if self._interim:
            response.interim, self._interim = self._interim, ()
        if self.open:
            self._pipelined = True
        if not request.final:
            self.halves[REQUESTS].early = True
        elif request.verb == "CONNECT" and response.status >= 300:
            self.halves[REQUESTS].state = HUNT
        return request

    def answer(self, response: Message) -> Message | None:
        """The request that a response answers, doubtful or not; None for an orphan."""
        asking, answering = self.halves
        if answering.mark:
            doubt(response, answering.mark)
            answering.mark = ""
            self.careful = bool(self._unsure or asking.mark or self._behind)
            self._interim = ()
            while len(self.open) > (not self._behind):
                self._give_up(self.open.popleft())
            self._behind = 0
        else:
            doubt(response, self._unsure)
        again, self._answered = self._answered == self.count, self.count
        # A request behind a hole does not get an answer that was seen before it: that was meant for one in the hole.
        if self.open and not (self.open[0].doubts and response.ts < self.open[0].ts):
            return self.take(response)
        if not self.open:
            self._interim = ()
            self._behind -= self._behind > 0
            if again and not asking.mark:  # no request since the last answer, and none in a hole: somebody pipelines
                self._owed = _STEPS
        return None

    def end(self, ts: int, out: Out) -> None:
        """No more answers, ever: what is still open was cut, or lost if its answer may have gone by unseen."""
        asking, answering = self.halves
        ending = LOST if answering.mark or self._unsure else CUT
        while self.open:
            request = self.open.popleft()
            if request is asking.message:
                asking.finish(request, ending, ts, out)
            elif request.ending is COMPLETE:
                request.ending = ending
        self._behind = 0

    @staticmethod
    def _give_up(request: Message) -> None:
        # Its answer went by unseen.
        if request.ending is COMPLETE:
            request.ending = LOST
        doubt(request, BYTES_LOST)
