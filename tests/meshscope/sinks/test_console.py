from __future__ import annotations

import io
import json
import logging
import os
import re
import struct
import termios
from collections.abc import Iterator
from fcntl import F_SETPIPE_SZ, fcntl, ioctl
from typing import BinaryIO

import pytest

from meshscope.model import CLIENT, SERVER, Workload
from meshscope.sinks import console
from meshscope.sinks.console import Console, Layout, breadth, cut, duration, pad, size, wants_colour
from meshscope.stats import Stats
from tests.meshscope.exchanges import exchange

LONG = Workload("a-service-with-quite-a-long-name")


class Pipe:
    """A console writing into a pipe."""

    def __init__(self, format_: str) -> None:
        self.stats = Stats()
        self.stopped = 0
        self.reader, write = os.pipe()
        self.out: BinaryIO = os.fdopen(write, "wb")
        self.console = Console(self.out, self.stats, self.stop, format_)  # type: ignore[arg-type]

    def stop(self) -> None:
        self.stopped += 1

    def read(self) -> str:
        return os.read(self.reader, 65536).decode()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe("json")
    yield made
    made.out.close()


def test_json_lines_are_out_as_soon_as_they_are_emitted(pipe: Pipe) -> None:
    pipe.console.emit([exchange(), exchange(status=404)])
    assert [json.loads(text)["response"]["status"] for text in pipe.read().splitlines()] == [200, 404]
    os.close(pipe.reader)


def test_a_reader_that_went_away_ends_the_run_once_and_quietly(pipe: Pipe, caplog: pytest.LogCaptureFixture) -> None:
    os.close(pipe.reader)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            pipe.console.emit([exchange(), exchange()])
    assert pipe.stopped == 1
    assert pipe.stats.n["console_failed"] == 6
    assert caplog.records == []


def test_a_reader_that_takes_nothing_misses_whole_lines_and_reads_on(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_PATIENCE_MS", 10)
    room = fcntl(pipe.reader, F_SETPIPE_SZ, 4096)
    sent, got = 0, b""
    for i in range(60):
        if i in {20, 40}:  # it wakes up
            got += os.read(pipe.reader, room)
        pipe.console.emit([exchange(target=f"/{i}"), exchange(target=f"/{i}/b")])
        sent += 2
    while pipe.console._out._begun or not got.endswith(b"\n"):  # type: ignore[union-attr]
        got += os.read(pipe.reader, room)
        pipe.console.emit([exchange(target="/last")])
        sent += 1
    got += os.read(pipe.reader, 65536)
    targets = [json.loads(text)["request"]["target"] for text in got.splitlines()]
    assert pipe.stopped == 0
    assert targets[:2] == ["/0", "/0/b"]
    assert len(targets) + pipe.stats.n["console_dropped"] == sent
    assert pipe.stats.n["console_dropped"] > 50
    os.close(pipe.reader)


def test_a_line_longer_than_a_pipe_takes_at_once_is_whole(pipe: Pipe) -> None:
    target = "/" + "x" * 20_000
    pipe.console.emit([exchange(target=target)])
    assert json.loads(pipe.read())["request"]["target"] == target
    os.close(pipe.reader)


def test_a_full_disk_ends_the_run_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    class Full(io.BytesIO):
        def write(self, _data: object) -> int:
            raise OSError(28, "No space left on device")

    stats, stopped = Stats(), []
    console = Console(Full(), stats, lambda: stopped.append(1), "json")
    console.emit([exchange()])
    assert (stopped, stats.n["console_failed"]) == ([1], 1)
    assert "No space left" in caplog.text


def test_text_without_a_terminal_has_one_header_and_no_colour_and_is_not_cut() -> None:
    out = io.BytesIO()
    console = Console(out, Stats(), lambda: None)
    target = "/" + "x" * 300
    for _ in range(60):
        console.emit([exchange(target=target)])
    console.emit([])
    console.flush(0)
    console.close()
    text = out.getvalue().decode()
    assert text.count("REQUEST") == 1
    assert text.count(target) == 60
    assert "\x1b" not in text


def test_the_columns_of_a_row_stand_under_their_titles() -> None:
    layout = Layout(0, colour=False)
    header = layout.header()
    row = layout.row(exchange(SERVER, request={"size": 1500}, tls=True, flags=("late_join",)))
    assert header.split() == ["TIME", "CLIENT", "•→•", "SERVER", "STATUS", "DURATION", "SENT", "RECEIVED", "PROTOCOL", "REQUEST"]
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} ", row[:13])
    for title, value in (("SERVER", "shop"), ("STATUS", "200"), ("PROTOCOL", "http/1.1+tls"), ("REQUEST", "GET    /items/42")):
        assert row.startswith(value, header.index(title)), title
    for title, value in (("CLIENT", "curl"), ("DURATION", "1.50 ms"), ("SENT", "1.5 kB"), ("RECEIVED", "512 B")):
        assert row.endswith(value, 0, header.index(title) + len(title)), title
    assert row.endswith("/items/42?color=red  [late_join]")


def test_the_dot_is_at_the_end_that_reports() -> None:
    layout = Layout(0, colour=False)
    assert " curl •→  shop " in layout.row(exchange(CLIENT))
    assert " curl  →• shop " in layout.row(exchange(SERVER))


def test_an_end_without_a_name_is_an_address() -> None:
    row = Layout(0, colour=False).row(exchange(client=None))
    assert "127.0.0.1:45678" in row
    x = exchange(client=None)
    x.client.address = "fe80::1"
    assert "[fe80::1]:45678" in Layout(0, colour=False).row(x)


@pytest.mark.parametrize(
    ("status", "outcome", "word"),
    [(503, "", "503"), (None, "aborted", "aborted"), (200, "aborted", "aborted"), (200, "unknown", "?")],
)
def test_the_status_says_what_happened(status: int | None, outcome: str, word: str) -> None:
    layout = Layout(0, colour=False)
    row = layout.row(exchange(status=status, outcome=outcome, target=None, response={"size": 0} if status else None))
    assert row[layout.header().index("STATUS") :].split()[0] == word
    assert row.endswith("GET    ?")


@pytest.mark.parametrize("columns", [74, 80, 99, 100, 119, 120, 139, 140, 200])
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    layout = Layout(columns, colour=False)
    rows = [
        layout.row(exchange(role, client=LONG, server=LONG, target="/日本/" + "x" * 300, flags=("late_join", "bytes_lost")))
        for role in (CLIENT, SERVER)
    ]
    assert breadth(layout.header()) <= columns
    assert max(map(breadth, rows)) <= columns
    assert all("\n" not in row for row in rows)


def test_colour_changes_nothing_but_colour() -> None:
    plain, painted = Layout(150, colour=False), Layout(150, colour=True)
    for x in (
        exchange(status=500, duration_ns=2 * 10**9),
        exchange(CLIENT, status=None, flags=("late_join",)),
        exchange(status=404),
    ):
        found = painted.row(x)
        assert "\x1b[" in found
        assert re.sub(r"\x1b\[\d+m", "", found) == plain.row(x)
        assert found.count("\x1b[0m") <= len(re.findall(r"\x1b\[[1-9]", found))


def test_what_came_from_the_wire_cannot_reach_the_terminal() -> None:
    x = exchange(target="/\x1b]0;title\x07\n\u202e", client=Workload("evil\x1b[2J\n"))
    x.request.verb = "GE\rT"
    x.about.code = "2\x1b00"
    assert Layout(0, colour=False).row(x).isprintable()


def test_a_terminal_is_asked_for_its_size_and_gets_its_header_again() -> None:
    primary, secondary = os.openpty()
    ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 14, 100, 0, 0))
    with os.fdopen(secondary, "wb") as out:
        console = Console(out, Stats(), lambda: None)
        for i in range(30):
            console.emit([exchange(target="/" + "x" * 300)])
            text = os.read(primary, 65536).decode()
            assert all(breadth(text) <= 100 for text in text.splitlines())
            assert text.count("REQUEST") == (1 if i % 12 == 0 else 0)
        ioctl(out.fileno(), termios.TIOCSWINSZ, struct.pack("HHHH", 14, 150, 0, 0))
        console.emit([exchange()])
        assert "PROTOCOL" in os.read(primary, 65536).decode()
    os.close(primary)


def test_who_wants_colour() -> None:
    primary, secondary = os.openpty()
    with os.fdopen(secondary, "wb") as terminal:
        assert wants_colour(terminal, {"TERM": "xterm"})
        assert not wants_colour(terminal, {"TERM": "xterm", "NO_COLOR": "1"})
        assert not wants_colour(terminal, {"TERM": "dumb"})
        assert not wants_colour(io.BytesIO(), {"TERM": "xterm"})
    os.close(primary)


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0.00 µs"),
        (1_234, "1.23 µs"),
        (9_996, "10.0 µs"),
        (99_960, "100 µs"),
        (999_499, "999 µs"),
        (999_500, "1.00 ms"),
        (45_678_000, "45.7 ms"),
        (1_500_000_000, "1.50 s"),
        (3_600_000_000_000, "3600 s"),
    ],
)
def test_durations_have_three_digits_that_matter(ns: int, text: str) -> None:
    assert duration(ns) == text


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "-"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (999_500, "1.0 MB"),
        (5 * 10**9, "5.0 GB"),
        (10**13, "10.0 TB"),
    ],
)
def test_sizes(n: int, text: str) -> None:
    assert size(n) == text


def test_text_is_cut_and_padded_by_what_it_takes_on_a_terminal() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("abcd", 3) == "ab…"
    assert cut("日本語", 5) == "日本…"
    assert cut("日本語", 4) == "日…"
    assert cut("abc", 0) == ""
    assert [pad(text, 5) for text in ("", "abc", "日本", "日本語x")] == ["     ", "abc  ", "日本 ", "日本…"]
