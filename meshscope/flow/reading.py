"""From records to the parser: positions, holes, overlaps, bytes not copied, answers that overtook their request.

Nothing a parser does wrong goes further than its connection: see `Reader._failed`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from meshscope.capture import abi
from meshscope.flow.connection import IGNORED, SPEAKING, Connection, Opening, Out, Parser, Record
from meshscope.flow.limits import Limits
from meshscope.flow.stitch import ABORTED, Stitcher
from meshscope.flow.waiting import Waiting
from meshscope.model import CLIENT
from meshscope.stats import Stats
from parsers.base import REQUESTS, RESPONSES, ProtocolError

log = logging.getLogger(__name__)

_RECORD_COST = 256  # bytes of memory a held record takes beside its data


class Reader:
    """Hands bytes to parsers. verdicts: what the kernel should be told, taken away by Flow."""

    def __init__(self, stitcher: Stitcher, waiting: Waiting, limits: Limits, stats: Stats) -> None:
        self.verdicts: list[tuple[int, int, int, int]] = []
        self.protocol_errors: dict[str, int] = {}
        self._out: Out = []
        self._stitcher = stitcher
        self._waiting = waiting
        self._limits = limits
        self._held_bytes = 0
        self._n = stats.n

    def feed(self, c: Connection, parser: Parser, half: int, data: bytes, ts: int, tgid: int, tid: int) -> None:
        """Contiguous bytes for the parser, moved by `tid` of `tgid`; stitch what it says."""
        out = self._out
        try:
            parser.feed(half, data, ts, out)
            if out:
                self._stitcher.take(c, out, tgid, tid)
                out.clear()
        except Exception as error:  # noqa: BLE001 whatever it is
            self._failed(c, error, half, len(data), ts)
        if c.handover is not None:
            self._hand_over(c)

    def tell(self, c: Connection, call: Callable[..., None], half: int, *what: int) -> None:
        """The same for `gap` and `close`, which no thread has caused."""
        out = self._out
        try:
            call(half, *what, out)
            if out:
                self._stitcher.take(c, out, c.tgid, 0)
                out.clear()
        except Exception as error:  # noqa: BLE001 whatever it is
            self._failed(c, error, half, 0, what[-1])

    def late(self, c: Connection, ts: int) -> None:
        """Tell a new parser that it was not there from the beginning.

        Requests may have gone before, so an answer may not be for the first one seen. In the other half it matters only
        if bytes went by unrecognised, since the next ones may be in the middle of a message then.
        """
        for half in (REQUESTS, RESPONSES):
            way = half ^ c.flip
            if c.parser is not None and (half == REQUESTS or c.next[way] != c.first[way]):
                self.tell(c, c.parser.gap, half, 0, True, ts)

    def data(self, c: Connection, r: Record, patient: bool = True) -> None:
        """A DATA record of a connection with a parser. `patient`: an answer may be held back until its request comes."""
        half = r.way ^ c.flip
        parser = c.parser
        if parser is None:
            return
        if half == RESPONSES:
            # A server reads before it answers, and so do its records; a client's write may return after the answer came.
            if patient and c.side == CLIENT and (c.held or not parser.ready(RESPONSES)):
                self._hold(c, r)
            else:
                self._bytes(c, half, r)
            return
        self._bytes(c, half, r)
        while c.held and c.parser is not None and c.parser.ready(RESPONSES):
            self._bytes(c, RESPONSES, self._next_held(c))

    def skip(self, c: Connection, half: int) -> None:
        """The parser needs no bytes up to an offset: tell the kernel, if it is worth it. The last one is asked for."""
        assert c.parser is not None  # noqa: S101 the caller has just fed it
        c.asked[half] = wanted = c.parser.skip[half]
        way = half ^ c.flip
        end = c.base[half] + wanted - 1
        if end - c.next[way] >= self._limits.skip_bytes:
            c.skip[way] = end
            c.told = True
            self._n["verdicts_skip"] += 1
            self.verdicts.append((c.id, abi.EVERYTHING, c.skip[abi.RX], c.skip[abi.TX]))

    def shut(self, c: Connection, way: int, pos: int, ts: int, patient: bool = True) -> None:
        """Direction `way` ended at `pos`. Records of another thread may still be on their way."""
        if c.state != SPEAKING or c.next[way] < 0:
            return  # without a byte of it only MS_CLOSE can tell whether any was lost
        missing = pos > c.next[way] + 1  # the FIN takes a sequence number of its own
        if patient and (c.held or missing):
            self._waiting.add(c.shard, ts, self._shut_later, (c, way, pos, ts))
            return
        half = way ^ c.flip
        if missing:
            self._hole(c, half, pos, ts)
        self._close(c, half, ts)
        if half == RESPONSES and c.src == abi.SOCKET:  # of a TLS session only MS_CLOSE tells
            self.settle(c, ts, ABORTED, sent_only=True)

    def end(self, c: Connection, ts: int, about: Opening | None, reason: str) -> None:
        """The connection is gone; `about` says how many bytes it moved, so bytes lost at its end are known to be.

        `reason`: what that means for its open requests, see Stitcher.settle.
        """
        if c.state != SPEAKING:
            return
        self.release(c)
        if about is not None:
            for way, moved in ((abi.RX, about.moved_rx), (abi.TX, about.moved_tx)):
                seen = c.next[way] - c.first[way]
                if moved > seen and c.parser is not None:
                    self._hole(c, way ^ c.flip, max(c.next[way], 0) + moved - seen, ts)
        for half in (REQUESTS, RESPONSES):
            self._close(c, half, ts)
        self.settle(c, ts, reason)

    def release(self, c: Connection) -> None:
        """Wait no longer for the requests of what is held back."""
        while c.held:
            self._bytes(c, RESPONSES, self._next_held(c))

    def settle(self, c: Connection, end_ns: int, reason: str, sent_only: bool = False) -> None:
        """Stitcher.settle, whose descriptions are the parser's code, too."""
        try:
            self._stitcher.settle(c, end_ns, reason, sent_only)
        except Exception as error:  # noqa: BLE001 whatever it is
            self._failed(c, error, 0, 0, end_ns)

    def leave(self, c: Connection, reason: str = "parser_error") -> None:
        """Leave the connection alone from here on; `reason` is why its open requests, if any, stay unknown."""
        self.settle(c, c.last_ns, reason)
        self.forget(c)
        c.state = IGNORED
        c.told = True
        self.verdicts.append((c.id, abi.IGNORE, 0, 0))

    def forget(self, c: Connection) -> None:
        """Let go of the parser and of everything held back."""
        self._held_bytes -= c.held_bytes
        c.held.clear()
        c.held_bytes = 0
        c.parser = None
        c.heads = None

    def _close(self, c: Connection, half: int, ts: int) -> None:
        if c.parser is not None:
            self.tell(c, c.parser.close, half, ts)

    def _shut_later(self, what: tuple[Connection, int, int, int], _due: int) -> None:
        c, way, pos, ts = what
        self.release(c)
        self.shut(c, way, pos, ts, patient=False)

    def _hold(self, c: Connection, r: Record) -> None:
        cost = len(r.data) + _RECORD_COST
        if c.held_bytes + cost > self._limits.held_bytes or self._held_bytes + cost > self._limits.held_total_bytes:
            self._n["held_overflows"] += 1
            self.release(c)
            self._bytes(c, RESPONSES, r)
            return
        self._n["records_held"] += 1
        c.held.append(r)
        c.held_bytes += cost
        self._held_bytes += cost
        if not c.alarm:
            c.alarm = True
            self._waiting.add(c.shard, r.ts, self._overdue, c)

    def _next_held(self, c: Connection) -> Record:
        r = c.held.popleft()
        cost = len(r.data) + _RECORD_COST
        c.held_bytes -= cost
        self._held_bytes -= cost
        return r

    def _overdue(self, c: Connection, due: int) -> None:
        c.alarm = False
        while c.held and c.parser is not None:
            if c.held[0].ts + self._limits.linger_ns > due and not c.parser.ready(RESPONSES):
                c.alarm = True
                self._waiting.add(c.shard, c.held[0].ts, self._overdue, c)
                return
            self._bytes(c, RESPONSES, self._next_held(c))

    def _bytes(self, c: Connection, half: int, r: Record) -> None:
        if c.parser is None:
            return
        way, pos, n, data = r.way, r.pos, r.len, r.data
        expected = c.next[way]
        if expected < 0 or (pos < expected == c.first[way] and not r.flags & abi.UNPOSITIONED):
            expected = c.first[way] = c.next[way] = c.base[half] = pos  # nothing of it was seen before
        if r.flags & abi.UNPOSITIONED:
            pos = expected
            self._unpositioned(c)
        c.srtt_us, c.retransmits = r.srtt_us, r.retransmits
        if pos > expected:
            self._hole(c, half, pos, r.ts)
        elif pos < expected:  # racing threads: what came first is kept
            known = min(expected - pos, n)
            self._n["bytes_overlapped"] += known
            n, data = n - known, data[known:]
        if n:
            self._contiguous(c, half, n, data, r)

    def _contiguous(self, c: Connection, half: int, n: int, data: bytes, r: Record) -> None:
        # `n` bytes where they are expected, of which `data` was copied.
        if data and c.parser is not None:
            self.feed(c, c.parser, half, data, r.ts, r.tgid, r.tid)
        missing = n - len(data)
        if missing and c.parser is not None:
            self._n["bytes_not_copied"] += missing
            self.tell(c, c.parser.gap, half, missing, False, r.ts)
        c.next[r.way] += n
        if c.parser is not None and c.parser.skip[half] != c.asked[half]:
            self.skip(c, half)

    def _hole(self, c: Connection, half: int, to: int, ts: int) -> None:
        # Bytes up to `to` went by unseen: at our own wish up to the skip position, lost after it.
        way = half ^ c.flip
        at = max(c.next[way], 0)
        wanted = min(max(c.skip[way] - at, 0), to - at)
        c.next[way] = to
        if wanted and c.parser is not None:
            self.tell(c, c.parser.gap, half, wanted, False, ts)
        lost = to - at - wanted
        if lost and c.parser is not None:
            self._n["holes"] += 1
            self._n["bytes_lost"] += lost
            if half == RESPONSES:
                c.lose()
            self.tell(c, c.parser.gap, half, lost, True, ts)

    def _unpositioned(self, c: Connection) -> None:
        c.place = None
        if "unpositioned" not in c.doubts:
            c.doubts = (*c.doubts, "unpositioned")

    def _failed(self, c: Connection, error: Exception, half: int, n: int, ts: int) -> None:
        # The one place that knows what an error means. ProtocolError: the `n` bytes are refused and count as unseen.
        # Anything else is a bug of the parser or of its description; its text may hold payload, so it is not logged.
        out = self._out
        if not isinstance(error, ProtocolError):
            out.clear()
            self._n["parser_bugs"] += 1
            log.error("the %s parser failed on connection %d, which is left alone from here on", c.speech, c.id)
            self._stitcher.abandon(c)
            self.leave(c)
            return
        self.protocol_errors[c.speech] = self.protocol_errors.get(c.speech, 0) + 1
        self._n["protocol_errors"] += 1
        c.errors += 1
        if half == RESPONSES:
            c.lose()
        try:
            if c.parser is not None:
                c.parser.gap(half, n, True, ts, out)
            if out:
                self._stitcher.take(c, out, c.tgid, 0)
                out.clear()
        except Exception:  # noqa: BLE001 no protocol error is allowed here
            self._failed(c, RuntimeError(), half, 0, ts)
        if c.errors >= self._limits.protocol_errors and c.parser is not None:
            self._n["connections_given_up"] += 1
            self.leave(c)

    def _hand_over(self, c: Connection) -> None:
        # The connection speaks something else from here on. No parser takes over from another one yet.
        if c.parser is not None:
            self._n["handovers"] += 1
            self.leave(c, "upgraded")
