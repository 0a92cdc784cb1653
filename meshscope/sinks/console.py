"""Exchanges on standard output: aligned columns for people, JSON lines for programs.

Each batch is written as it comes (the loop hands one over at least every 200 ms while there is any), so nothing waits here. A
slow reader slows us down by its own wish; one that takes nothing for five seconds misses lines, which are counted, until it
reads again; one that went away ends the run.
"""

from __future__ import annotations

import io
import logging
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO, Final, Literal
from unicodedata import east_asian_width

from meshscope.model import CLIENT, Endpoint, Exchange
from meshscope.sinks.conventions import UNKNOWN_TARGET, clean
from meshscope.sinks.document import line
from meshscope.stats import Stats

Format = Literal["text", "json"]

logger = logging.getLogger(__name__)

_RESET: Final = "\x1b[0m"
_BOLD: Final = "\x1b[1m"
_DIM: Final = "\x1b[2m"
_RED: Final = "\x1b[31m"
_GREEN: Final = "\x1b[32m"
_YELLOW: Final = "\x1b[33m"
_CYAN: Final = "\x1b[36m"
_MAGENTA: Final = "\x1b[35m"
_OUTCOMES: Final = {"ok": _GREEN, "client_error": _YELLOW, "server_error": _BOLD + _RED, "aborted": _MAGENTA, "unknown": _DIM}
_WORDS: Final = {"unknown": "?", "aborted": "aborted"}  # where the code would not tell what happened
_SLOW_NS: Final = ((10**9, _RED), (10**8, _YELLOW))  # where a duration is worth a colour

_PATIENCE_MS: Final = 5000  # with a reader that takes nothing
_PIECE: Final = 4096  # PIPE_BUF: so much fits when a pipe says that it is writable

_PLAIN_COLUMNS: Final = 160  # layout where there is no terminal to ask


def wants_colour(stream: BinaryIO, environ: Mapping[str, str]) -> bool:
    """Colour is for terminals that can show it, and for those who do not refuse it (no-color.org)."""
    return stream.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


class Layout:
    """Which columns fit. ``columns`` is the terminal's width, at least 74; 0: not a terminal, nothing is cut off."""

    def __init__(self, columns: int, *, colour: bool) -> None:
        self.columns = columns
        self._colour = colour
        room = columns or _PLAIN_COLUMNS
        self._name = 20 if room >= 140 else 14 if room >= 100 else 11
        self._clock = 12 if room >= 90 else 8
        self._sizes = room >= 120
        self._protocol = room >= 140
        self._second = -1
        self._text = ""  # of that second

    def header(self) -> str:
        """Column titles. The dot beside the arrow is at the end that reports."""
        parts = [pad("TIME", self._clock), f"{'CLIENT':>{self._name}} •→• {'SERVER':<{self._name}}", "STATUS ", " DURATION"]
        if self._sizes:
            parts += ["     SENT", " RECEIVED"]
        if self._protocol:
            parts.append("PROTOCOL    ")
        titles = "  ".join([*parts, "REQUEST"])
        return self._paint(_DIM, cut(titles, self.columns) if self.columns else titles)

    def row(self, exchange: Exchange) -> str:
        """One exchange, as one line without its end."""
        about, response = exchange.about, exchange.response
        took = exchange.end_ns - exchange.start_ns
        status = _WORDS.get(about.outcome) or about.detail_code or about.code
        parts = [
            self._paint(_DIM, self._time(exchange)),
            self._ends(exchange),
            self._paint(_OUTCOMES.get(about.outcome, ""), pad(clean(status), 7)),
            self._paint(next((colour for least, colour in _SLOW_NS if took >= least), ""), f"{duration(took):>9}"),
        ]
        used = self._clock + 2 * self._name + 5 + 7 + 9 + 4 * 2
        if self._sizes:
            parts += [f"{size(exchange.request.size):>9}", f"{size(response.size if response is not None else 0):>9}"]
            used += 2 * (9 + 2)
        if self._protocol:
            parts.append(self._paint(_DIM, pad(clean(exchange.protocol) + ("+tls" if exchange.tls else ""), 12)))
            used += 12 + 2
        return "  ".join([*parts, self._request(exchange, self.columns - used)])

    def _request(self, exchange: Exchange, room: int) -> str:
        """Method, target and doubts, in ``room`` columns (any number if there is no terminal)."""
        request = exchange.request
        flags = f"  [{' '.join(exchange.flags)}]" if exchange.flags else ""
        verb = pad(clean(request.verb or exchange.about.name), 6)
        target = UNKNOWN_TARGET if request.target is None else clean(request.target)
        if self.columns:
            room -= len(verb) + 1
            target = cut(target, max(8, room - len(flags)))
            flags = cut(flags, max(0, room - breadth(target)))
        return f"{self._paint(_BOLD, verb)} {target}{self._paint(_YELLOW, flags)}"

    def _ends(self, exchange: Exchange) -> str:
        client = cut(_name(exchange.client), self._name)
        client = " " * (self._name - breadth(client)) + client
        server = pad(_name(exchange.server), self._name)
        if exchange.role == CLIENT:
            return f"{self._paint(_BOLD, client)} {self._paint(_CYAN, '•→')}  {server}"
        return f"{client}  {self._paint(_CYAN, '→•')} {self._paint(_BOLD, server)}"

    def _time(self, exchange: Exchange) -> str:
        """Local time of the request's first byte."""
        second, ns = divmod(exchange.start_ns + exchange.wall_offset_ns, 10**9)
        if second != self._second:
            self._second = second
            self._text = time.strftime("%H:%M:%S", time.localtime(second))
        return f"{self._text}.{ns // 10**6:03}" if self._clock > 8 else self._text

    def _paint(self, colour: str, text: str) -> str:
        return f"{colour}{text}{_RESET}" if self._colour and colour and text else text


class Descriptor:
    """Whole lines to a descriptor that others share, so it stays blocking; never waits long for its reader."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._begun = b""  # the rest of a line that was written in part
        self._patience_ms = _PATIENCE_MS

    def write(self, lines: bytes) -> int:
        """Write what fits; returns how many lines are lost. Raises OSError."""
        data = memoryview(self._begun + lines)
        done = 0
        whole = not self._begun
        while done < len(data):
            if not self._poll.poll(self._patience_ms):
                self._patience_ms = 0  # until it moves
                break
            done += os.write(self._fd, data[done : done + _PIECE])
            whole = data[done - 1] == ord("\n")
            self._patience_ms = _PATIENCE_MS
        left = bytes(data[done:])
        self._begun = b"" if whole else left[: left.index(b"\n") + 1]
        return left.count(b"\n", len(self._begun))


class Console:
    """Prints exchanges to ``stream``; what is written is UTF-8 in any locale.

    stop: called once when the reader is gone or writing fails; from then on exchanges are only counted.
    """

    def __init__(
        self,
        stream: BinaryIO,
        stats: Stats,
        stop: Callable[[], None],
        format: Format = "text",  # noqa: A002 - what the flag is about
        *,
        colour: bool = False,
    ) -> None:
        try:
            stream.flush()
            self._out: Descriptor | BinaryIO = Descriptor(stream.fileno())
        except io.UnsupportedOperation:
            self._out = stream
        self._stats = stats
        self._stop = stop
        self._format = format
        self._colour = colour
        self._terminal = stream.fileno() if stream.isatty() else -1
        self._layout = Layout(0, colour=colour)
        self._until_header = 0
        self._gone = False

    def emit(self, exchanges: Sequence[Exchange]) -> None:
        if not exchanges:
            return
        if self._gone:
            self._stats.n["console_failed"] += len(exchanges)
            return
        try:
            data = b"".join(map(line, exchanges)) if self._format == "json" else self._text(exchanges).encode()
            if isinstance(self._out, Descriptor):
                self._stats.n["console_dropped"] += self._out.write(data)
            else:
                self._out.write(data)
        except OSError as error:
            self._stats.n["console_failed"] += len(exchanges)
            self._give_up(error)

    def flush(self, now_ns: int) -> None:
        """Every batch is flushed when it comes."""

    def close(self) -> None:
        """Nothing is held."""

    def _text(self, exchanges: Sequence[Exchange]) -> str:
        lines = []
        height = 0
        if self._terminal >= 0:
            columns, height = os.get_terminal_size(self._terminal)
            if columns != self._layout.columns:
                self._layout = Layout(columns, colour=self._colour)
                self._until_header = 0
        for exchange in exchanges:
            if self._until_header == 0:
                lines.append(self._layout.header())
                self._until_header = max(height - 2, 10) if height else -1  # -1: once is enough
            self._until_header -= self._until_header > 0
            lines.append(self._layout.row(exchange))
        return "\n".join([*lines, ""])

    def _give_up(self, error: OSError) -> None:
        self._gone = True
        if not isinstance(error, BrokenPipeError):
            logger.error("printing exchanges ends: %s", error.strerror)
        self._stop()


def _name(end: Endpoint) -> str:
    if end.workload is not None:
        return clean(end.workload.name)
    return f"[{end.address}]:{end.port}" if ":" in end.address else f"{end.address}:{end.port}"


def breadth(text: str) -> int:
    """Terminal columns a printable text takes."""
    return len(text) if text.isascii() else sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def cut(text: str, columns: int) -> str:
    """At most ``columns`` wide, with an ellipsis where something is missing."""
    if breadth(text) <= columns:
        return text
    text = text[: max(columns - 1, 0)]
    while text and breadth(text) >= columns:
        text = text[:-1]
    return text + "…" if columns > 0 else ""


def pad(text: str, columns: int) -> str:
    """Exactly ``columns`` wide."""
    text = cut(text, columns)
    return text + " " * (columns - breadth(text))


def duration(ns: int) -> str:
    """Three digits that matter, with their unit."""
    for unit, scale in (("µs", 10**3), ("ms", 10**6), ("s", 10**9)):
        value = ns / scale
        if value < 999.5 or unit == "s":
            return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
    raise AssertionError(ns)


def size(n: int) -> str:
    """Bytes in powers of 1000; no body is a dash."""
    if n < 1000:
        return f"{n} B" if n else "-"
    value = n / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.1f} {unit}" if value < 99.95 else f"{value:.0f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"
