"""TLS programs on a library of OpenSSL's shape that does what a test needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from meshscope.capture import abi
from meshscope.capture.placement import place
from tests.kprobes.watch import BOUND_S, Seen, decode, drain, go, source
from tests.kprobes.watch_tls import balanced, run, sessions, waiting

pytestmark = pytest.mark.live

HERE = Path(__file__).parent / "tls"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The driver, linked with the library in two shapes; each has a folder of its own."""
    built = {}
    for name, flags in (("usual", []), ("forwarding", ["-DFORWARDING"])):
        folder = tmp_path_factory.mktemp(name)
        library = folder / "libssl.so.9"
        gcc = ["gcc", "-O2", "-g0", f"-I{HERE}"]
        subprocess.run(
            [*gcc, "-shared", "-fPIC", "-fno-omit-frame-pointer", *flags, "-o", library, HERE / "library.c"], check=True
        )
        subprocess.run([*gcc, "-w", "-o", folder / "driver", HERE / "driver.c", library, f"-Wl,-rpath,{folder}"], check=True)
        built[name] = folder
    return built


def drive(folder: Path, scenario: str) -> Seen:
    return run((folder / "driver", scenario))


@pytest.mark.parametrize("shape", ["usual", "forwarding"])
def test_plain_and_extended_functions_in_either_shape(shapes: dict[str, Path], shape: str) -> None:
    seen = drive(shapes[shape], "plain")
    (session,) = sessions(seen)
    assert (session.sent, session.received) == (b"onetwo", b"three")
    balanced(seen)


def test_a_call_inside_a_call_on_the_same_object_tells_once(shapes: dict[str, Path]) -> None:
    """Both functions of a forwarding library are probed here, which placement would not do."""
    folder = shapes["forwarding"]
    path = str(folder / "libssl.so.9")
    names = {"SSL_read": 0, "SSL_read_ex": abi.SSL_DONE_4TH, "SSL_write": abi.SSL_WRITE}
    listing = subprocess.run(["nm", "-D", path], check=True, capture_output=True, text=True).stdout
    address = {line.split()[2]: int(line.split()[0], 16) for line in listing.splitlines() if len(line.split()) == 3}
    names["SSL_write_ex"] = abi.SSL_WRITE | abi.SSL_DONE_4TH
    places = [(address[name], cookie) for name, cookie in names.items()]
    with source() as opened, waiting(folder / "driver", "plain") as process:
        opened.select(process.pid)
        links = opened.attach_uprobe("ssl_return", process.pid, path, places, retprobe=True)
        links += opened.attach_uprobe("ssl_enter", process.pid, path, places, retprobe=False)
        go(process)
        assert process.wait(BOUND_S) == 0
        seen = Seen(decode(drain(opened)), opened.counters(), process.pid)
        for link in links:
            link.close()
    (session,) = sessions(seen)
    assert (session.sent, session.received) == (b"onetwo", b"three")
    assert seen.counters["traps"] == 12
    balanced(seen)


def test_two_attachments_of_the_same_place_tell_once(shapes: dict[str, Path]) -> None:
    """As while the probes of a file take over from those of a process, or the other way round."""
    path = shapes["usual"] / "libssl.so.9"
    with path.open("rb") as stream:
        places = [(one.offset, int(one.variant)) for one in place(stream).placements if one.returns]
    with source() as opened, waiting(shapes["usual"] / "driver", "plain") as process:
        opened.select(process.pid)
        links = []
        for pid, mark in ((process.pid, 0), (-1, abi.SSL_ATTACHMENT)):
            marked = [(offset, variant | mark) for offset, variant in places]
            links += opened.attach_uprobe("ssl_return", pid, str(path), marked, retprobe=True)
            links += opened.attach_uprobe("ssl_enter", pid, str(path), marked, retprobe=False)
        go(process)
        assert process.wait(BOUND_S) == 0
        seen = Seen(decode(drain(opened)), opened.counters(), process.pid)
        for link in links:
            link.close()
    (session,) = sessions(seen)
    assert (session.sent, session.received) == (b"onetwo", b"three")
    balanced(seen)


def test_tls_in_tls_tells_both(shapes: dict[str, Path]) -> None:
    seen = drive(shapes["usual"], "inside")
    outer, inner = sessions(seen)
    assert outer.sent == inner.sent == b"deep"
    assert outer.conn in {one.head["conn"] for one in seen.of(abi.OPEN) if one.head["src"] == abi.SOCKET}
    assert inner.conn == 0, "its bytes are not on a socket of their own"
    balanced(seen)


def test_another_socket_inside_the_call_begins_a_session(shapes: dict[str, Path]) -> None:
    seen = drive(shapes["usual"], "rebind")
    first, second = sessions(seen)
    assert (first.sent, second.sent) == (b"one", b"two")
    assert first.closed
    assert len({first.conn, second.conn, 0}) == 3
    assert seen.counters["rebinds"] == 1


def test_a_call_left_without_a_return_ends_the_session(shapes: dict[str, Path]) -> None:
    """What it moved is not known, so nothing may be told as if it followed on."""
    seen = drive(shapes["usual"], "leave")
    first, second = sessions(seen)
    assert (first.sent, first.received) == (b"one", b"")
    assert first.closed
    assert second.received == b"seen"
    assert seen.counters["calls_stale"] == 1


def test_an_address_used_again_is_another_session(shapes: dict[str, Path]) -> None:
    seen = drive(shapes["usual"], "free")
    first, second = sessions(seen)
    assert (first.sent, second.sent) == (b"one", b"two")
    assert first.closed
    assert not second.closed
    assert seen.counters["rebinds"] == 0


def test_a_call_that_fails_tells_nothing_but_the_connection(shapes: dict[str, Path]) -> None:
    seen = drive(shapes["usual"], "fails")
    assert [one for one in seen.of(abi.DATA) if one.head["src"] == abi.TLS] == []
    assert seen.counters["calls_stale"] == 0
