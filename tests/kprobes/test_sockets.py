"""The socket programs on real sockets: every way to move bytes, both ends, the life of connections, losses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from meshscope.capture import abi
from tests.kprobes.watch import Seen, child, decode, drain, go, source, until, watch

pytestmark = pytest.mark.live


def balanced(seen: Seen) -> None:
    c = seen.counters
    parts = ("copied", "skipped", "unreadable", "cut", "ciphertext", "lost")
    assert c["bytes_moved"] == sum(c[f"bytes_{part}"] for part in parts)
    assert c["records_attempted"] == c["records_reserved"] + c["records_reserve_failed"]
    assert c["records_reserved"] == len(seen.records)


WAYS = {
    "write and read": ("os.write(c.fileno(), b'x' * 700)", "exactly2 = os.read(s.fileno(), 700)"),
    "send and recv": ("c.send(b'x' * 700)", "exactly(s, 700)"),
    "sendmsg and recvmsg": ("c.sendmsg([b'x' * 100, b'', b'x' * 600])", "s.recvmsg(700)"),
    "sendmsg of one": ("c.sendmsg([b'x' * 700])", "s.recvmsg_into([bytearray(700)])"),
    "writev and readv": (
        "os.writev(c.fileno(), [b'x' * 300, b'x' * 400])",
        "os.readv(s.fileno(), [bytearray(1), bytearray(699)])",
    ),
    "recv_into": ("c.sendall(b'x' * 700)", "s.recv_into(bytearray(700))"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_move_bytes(way: str) -> None:
    out, into = WAYS[way]
    seen = watch(f"c, s = pair()\n{out}\n{into}\n")
    client, server = seen.conn(abi.ROLE_CLIENT), seen.conn(abi.ROLE_SERVER)
    assert seen.bytes(client, abi.TX) == seen.bytes(server, abi.RX) == b"x" * 700
    sent, got = seen.of(abi.DATA, client, abi.TX)[0].head, seen.of(abi.DATA, server, abi.RX)[0].head
    assert sent["pos"] == got["pos"], "both ends number the same byte alike"
    assert sent["tgid"] == got["tgid"] == seen.pid
    balanced(seen)


def test_ends_and_roles() -> None:
    seen = watch("c, s = pair('::1')\nc.sendall(b'hi')\nexactly(s, 2)\ns.sendall(b'ho')\nexactly(c, 2)\nc.close(); s.close()")
    client, server = (seen.of(abi.OPEN, seen.conn(role))[0].more for role in (abi.ROLE_CLIENT, abi.ROLE_SERVER))
    assert client["local_port"] == server["remote_port"]
    assert client["remote_port"] == server["local_port"]
    assert client["family"] == socket.AF_INET6
    assert client["local"] == client["remote"] == socket.inet_pton(socket.AF_INET6, "::1")
    assert client["netns"] == Path("/proc/self/ns/net").stat().st_ino
    assert client["started_ns"]
    closed = seen.of(abi.CLOSE)
    assert {told.head["conn"] for told in closed} == {seen.conn(abi.ROLE_CLIENT), seen.conn(abi.ROLE_SERVER)}
    assert all(told.more["moved_rx"] == told.more["moved_tx"] == 2 for told in closed)
    assert all(told.more["err"] == 0 for told in closed)


def test_first_positions() -> None:
    seen = watch("c, s = pair()\nc.sendall(b'hi')\nexactly(s, 2)\ns.sendall(b'ho')\nexactly(c, 2)\nc.close(); s.close()")
    for role in (abi.ROLE_CLIENT, abi.ROLE_SERVER):
        conn = seen.conn(role)
        opened, closed = seen.of(abi.OPEN, conn)[0], seen.of(abi.CLOSE, conn)[0]
        first = [seen.of(abi.DATA, conn, way)[0].head["pos"] for way in (abi.RX, abi.TX)]
        assert [opened.head["pos"], opened.more["object"]] == first
        assert [closed.head["pos"], closed.more["object"]] == [pos + 2 for pos in first]


def test_large_transfer_becomes_sixteen_records_and_a_rest() -> None:
    body = 200_000
    seen = watch(f"""
c, s = pair()
c.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
reader = threading.Thread(target=exactly, args=(s, {body}))
reader.start()
c.sendall(b"y" * {body})
reader.join()
""")
    client = seen.conn(abi.ROLE_CLIENT)
    seen.bytes(client, abi.TX)
    chunks = [told.head for told in seen.of(abi.DATA, client, abi.TX)]
    assert sum(head["len"] for head in chunks) == body
    assert any(head["flags"] & abi.CUT and head["copied"] == 0 for head in chunks)
    assert all(head["copied"] <= abi.RECORD_MAX - abi.CHUNK.size for head in chunks)
    balanced(seen)


def test_many_pieces_in_one_call() -> None:
    seen = watch("""
c, s = pair()
pieces = [bytes([65 + i]) * (i * 37 % 90) for i in range(40)]
c.sendmsg(pieces)
exactly(s, sum(map(len, pieces)))
""")
    whole = b"".join(bytes([65 + i]) * (i * 37 % 90) for i in range(40))
    client, server = seen.conn(abi.ROLE_CLIENT), seen.conn(abi.ROLE_SERVER)
    assert b"".join(told.data for told in seen.of(abi.DATA, server, abi.RX)) == whole
    sent = seen.bytes(client, abi.TX)
    assert whole.startswith(sent)
    assert sum(told.head["len"] for told in seen.of(abi.DATA, client, abi.TX)) == len(whole)
    balanced(seen)


def test_sendfile_is_a_length_or_an_exact_hole() -> None:
    seen = watch("""
import tempfile
c, s = pair()
f = tempfile.TemporaryFile(); f.write(b"z" * 50000); f.flush()
c.sendall(b"head")
assert os.sendfile(c.fileno(), f.fileno(), 0, 50000) == 50000
c.sendall(b"tail")
exactly(s, 50008)
""")
    chunks = [told.head for told in seen.of(abi.DATA, seen.conn(abi.ROLE_CLIENT), abi.TX)]
    assert chunks[-1]["pos"] - chunks[0]["pos"] == 50004
    bodies = chunks[1:-1]
    assert all(head["flags"] & abi.UNREADABLE and head["copied"] == 0 for head in bodies)
    if bodies:  # from 6.5 on; earlier it passes tcp_sendpage
        assert sum(head["len"] for head in bodies) == 50000
    balanced(seen)


def test_peek_is_no_transfer_and_truncated_reads_are_lengths() -> None:
    seen = watch("""
c, s = pair()
c.sendall(b"abcdef")
s.recv(6, socket.MSG_PEEK)
exactly(s, 3)
s.recv(3, socket.MSG_TRUNC)
""")
    server = seen.conn(abi.ROLE_SERVER)
    plain, truncated = seen.of(abi.DATA, server, abi.RX)
    assert plain.data == b"abc"
    assert (truncated.head["len"], truncated.head["copied"]) == (3, 0)
    assert truncated.head["flags"] & abi.UNREADABLE
    assert truncated.head["pos"] == plain.head["pos"] + 3
    assert seen.counters["peeks"] == 1
    balanced(seen)


def test_several_messages_in_one_call_are_lengths() -> None:
    seen = watch("""
import ctypes
class Iovec(ctypes.Structure): _fields_ = [("base", ctypes.c_char_p), ("len", ctypes.c_size_t)]
class Msghdr(ctypes.Structure):
    _fields_ = [("name", ctypes.c_void_p), ("namelen", ctypes.c_uint), ("iov", ctypes.POINTER(Iovec)),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p), ("controllen", ctypes.c_size_t),
                ("flags", ctypes.c_int)]
class Mmsghdr(ctypes.Structure): _fields_ = [("hdr", Msghdr), ("len", ctypes.c_uint)]
c, s = pair()
parts = (Iovec * 2)(Iovec(b"one", 3), Iovec(b"two", 3))
messages = (Mmsghdr * 2)()
for i in range(2):
    messages[i].hdr.iov = ctypes.pointer(parts[i]); messages[i].hdr.iovlen = 1
assert ctypes.CDLL(None).sendmmsg(c.fileno(), messages, 2, 0) == 2
exactly(s, 6)
""")
    sent = seen.of(abi.DATA, seen.conn(abi.ROLE_CLIENT), abi.TX)
    assert [(told.head["len"], told.head["copied"]) for told in sent] == [(3, 0), (3, 0)]
    assert sent[1].head["pos"] == sent[0].head["pos"] + 3
    assert seen.counters["bytes_unreadable"] == 6
    balanced(seen)


def test_end_of_stream_and_its_position() -> None:
    """The FIN counts as a byte of the sequence and must not move a position, read together with data or alone."""
    seen = watch("""
c, s = pair()
c.sendall(b"last words")
c.shutdown(socket.SHUT_WR)
import select
poll = select.poll(); poll.register(s, select.POLLRDHUP); poll.poll(5000)
exactly(s, 10)
assert s.recv(1) == b""
s.sendall(b"bye")
s.close()
exactly(c, 3)
assert c.recv(1) == b""
""")
    client, server = seen.conn(abi.ROLE_CLIENT), seen.conn(abi.ROLE_SERVER)
    for sender, reader, n in ((client, server, 10), (server, client, 3)):
        (sent,), (got,) = seen.of(abi.DATA, sender, abi.TX), seen.of(abi.DATA, reader, abi.RX)
        (fin,), (eof,) = seen.of(abi.SHUT, sender, abi.TX), seen.of(abi.SHUT, reader, abi.RX)
        assert got.head["pos"] == sent.head["pos"]
        assert fin.head["pos"] == eof.head["pos"] == sent.head["pos"] + n
    balanced(seen)


def test_asking_for_nothing_is_no_end() -> None:
    seen = watch("""
import ctypes
nothing = lambda: ctypes.CDLL(None).recv(s.fileno(), ctypes.create_string_buffer(1), 0, 0)
c, s = pair()
c.sendall(b"ab")
exactly(s, 1)
assert nothing() == 0
c.shutdown(socket.SHUT_WR)
import select
poll = select.poll(); poll.register(s, select.POLLRDHUP); poll.poll(5000)
assert nothing() == 0
exactly(s, 1)
assert s.recv(1) == b""
""")
    server = seen.conn(abi.ROLE_SERVER)
    told = [one.head for one in seen.records if one.head["conn"] == server and one.head["kind"] in {abi.DATA, abi.SHUT}]
    assert [(head["kind"], head["pos"] - told[0]["pos"]) for head in told[:3]] == [(abi.DATA, 0), (abi.DATA, 1), (abi.SHUT, 2)]
    balanced(seen)


def test_shutting_the_reading_end_is_an_end() -> None:
    seen = watch("c, s = pair()\nc.sendall(b'ab'); exactly(s, 2)\ns.shutdown(socket.SHUT_RD)\nassert s.recv(1) == b''\n")
    server = seen.conn(abi.ROLE_SERVER)
    (got,), (end,) = seen.of(abi.DATA, server, abi.RX), seen.of(abi.SHUT, server, abi.RX)
    assert end.head["pos"] == got.head["pos"] + 2


def test_io_uring_moves_bytes_on_the_way_out_of_another_call() -> None:
    """The call that is running then has a buffer, too, but not the one of these bytes."""
    seen = watch("""
import ctypes, mmap
libc = ctypes.CDLL(None, use_errno=True)
c, s = pair()
params = bytearray(120)  # struct io_uring_params
ring = libc.syscall(425, 4, (ctypes.c_char * 120).from_buffer(params))
assert ring >= 0, os.strerror(ctypes.get_errno())
_, sq_tail, _, _, _, _, sq_array = struct.unpack_from("7I", params, 40)
_, cq_tail = struct.unpack_from("2I", params, 80)
rings, calls = mmap.mmap(ring, 4096), mmap.mmap(ring, 4096, offset=0x10000000)
into = ctypes.create_string_buffer(100)
struct.pack_into("BBHiQQI", calls, 0, 27, 0, 0, s.fileno(), 0, ctypes.addressof(into), 100)  # IORING_OP_RECV
struct.pack_into("I", rings, sq_array, 0)
struct.pack_into("I", rings, sq_tail, 1)
assert libc.syscall(426, ring, 1, 0, 0, None, 0) == 1
c.sendall(b"ten bytes!")
while not struct.unpack_from("I", rings, cq_tail)[0]:
    os.getppid()
assert into.value == b"ten bytes!"
""")
    (sent,) = seen.of(abi.DATA, seen.conn(abi.ROLE_CLIENT), abi.TX)
    (got,) = seen.of(abi.DATA, seen.conn(abi.ROLE_SERVER), abi.RX)
    assert sent.data == b"ten bytes!"
    assert (got.head["len"], got.head["copied"], got.head["flags"]) == (10, 0, abi.UNREADABLE)
    assert got.head["pos"] == sent.head["pos"]
    balanced(seen)


def test_reset_says_why() -> None:
    seen = watch("""
c, s = pair()
c.sendall(b"x"); exactly(s, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.close()
try:
    c.recv(1)
except ConnectionResetError:
    pass
c.close()
""")
    (closed,) = seen.of(abi.CLOSE, seen.conn(abi.ROLE_CLIENT))
    assert closed.more["err"] == 104


def test_nobody_else_is_told() -> None:
    seen = watch("c, s = pair()\nc.sendall(b'secret')\nexactly(s, 6)\nc.close(); s.close()", select=False)
    assert seen.records == []
    assert not any(seen.counters.values())


def test_descendants_follow() -> None:
    seen = watch("""
import subprocess
grandchild = '''
import socket
l = socket.create_server(("127.0.0.1", 0))
socket.create_connection(l.getsockname()).sendall(b"kid")
'''
if os.fork() == 0:
    subprocess.run([sys.executable, "-c", grandchild], check=True)
    os._exit(0)
os.wait()
""")
    (told,) = seen.of(abi.DATA)
    assert told.data == b"kid"
    assert told.head["tgid"] != seen.pid
    events = [told.more["event"] for told in seen.of(abi.PROCESS)]
    assert events.count(abi.PROCESS_FORK) == 2
    assert events.count(abi.PROCESS_EXEC) == 1
    assert events.count(abi.PROCESS_EXIT) == 3


def test_connection_older_than_the_agent() -> None:
    script = """
c, s = pair()
c.sendall(b"before"); exactly(s, 6)
print("ready", flush=True)
sys.stdin.readline()
c.sendall(b"after"); exactly(s, 5)
"""
    with child(script) as process:
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with source() as opened:
            opened.select(process.pid)
            go(process)
            assert process.wait(20) == 0
            seen = Seen(decode(drain(opened)), opened.counters(), process.pid)
    opened_ = seen.of(abi.OPEN)
    assert [(told.more["role"], told.more["started_ns"]) for told in opened_] == [(abi.ROLE_UNKNOWN, 0)] * 2
    assert {told.data for told in seen.of(abi.DATA)} == {b"after"}


def test_verdicts() -> None:
    script = """
c, s = pair()
c.sendall(b"a" * 100); exactly(s, 100)
for _ in range(3):
    print("done", flush=True); sys.stdin.readline()
    c.sendall(b"b" * 100); exactly(s, 100)
"""
    batches: list[bytes] = []
    with source() as opened, child(script) as process:
        opened.select(process.pid)
        go(process)
        until(lambda records: sum(told.head["kind"] == abi.DATA for told in records) == 2, opened, batches)
        before = Seen(decode(batches), {}, process.pid)
        client, server = before.conn(abi.ROLE_CLIENT), before.conn(abi.ROLE_SERVER)
        base = before.of(abi.DATA, client, abi.TX)[0].head["pos"]
        opened.apply([(client, abi.EVERYTHING, 0, base + 150), (server, abi.IGNORE, 0, 0)])
        go(process)
        until(lambda records: sum(told.head["kind"] == abi.DATA for told in records) == 3, opened, batches)
        opened.apply([(client, abi.EVERYTHING, 0, base + 300)])
        go(process)
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(3)] == ["done\n"] * 3
        opened.apply([(client, -1, 0, 0), (server, -1, 0, 0)])
        go(process)
        assert process.wait(20) == 0
        seen = Seen(decode(batches + drain(opened)), opened.counters(), process.pid)
    told = [(t.head["pos"] - base, t.head["len"]) for t in seen.of(abi.DATA, client, abi.TX)]
    assert told == [(0, 100), (150, 50), (300, 100)]
    assert [t.head["pos"] - base for t in seen.of(abi.DATA, server, abi.RX)] == [0, 300]
    assert seen.counters["bytes_skipped"] == 50 + 100 + 200
    balanced(seen)


def test_full_ring_is_counted() -> None:
    seen = watch("c, s = pair()\nfor i in range(400):\n    c.sendall(b'%04d' % i * 100); exactly(s, 400)\n", ring_bytes=32768)
    c = seen.counters
    assert c["records_reserve_failed"] > 0
    assert c["bytes_lost"] > 0
    assert c["bytes_moved"] == 2 * 400 * 400
    balanced(seen)
    for told in seen.of(abi.DATA):
        assert len({told.data[i : i + 4] for i in range(0, 400, 4)}) == 1, "what did arrive is whole"


def test_shards_have_rings_of_their_own() -> None:
    script = "c, s = pair()\nc.sendall(b'x'); exactly(s, 1)"
    with source(rings=2, ring_bytes=65536) as opened, child(script) as first, child(script) as second:
        opened.select(first.pid, 0)
        opened.select(second.pid, 1)
        for process in (first, second):
            go(process)
            assert process.wait(20) == 0
        opened.stop()
        batches = [decode([batch]) for batch in opened.batches() if batch]
    assert [{(told.head["shard"], told.head["tgid"]) for told in batch} for batch in batches] == [
        {(0, first.pid)},
        {(1, second.pid)},
    ]


def test_entering_a_selected_cgroup_selects() -> None:
    mounts = Path("/proc/mounts").read_text(encoding="ascii").splitlines()
    mount = Path(next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2"))
    cgroup = mount / f"meshscope-test-{os.getpid()}"
    inner = cgroup / "inner"
    inner.mkdir(parents=True)
    try:
        with source() as opened, child("c, s = pair()\nc.sendall(b'in'); exactly(s, 2)") as process:
            opened.select_cgroup(cgroup.stat().st_ino)
            (inner / "cgroup.procs").write_text(str(process.pid))
            assert process.pid in opened.selected()
            go(process)
            assert process.wait(20) == 0
            seen = Seen(decode(drain(opened)), opened.counters(), process.pid)
        assert {told.data for told in seen.of(abi.DATA)} == {b"in"}
        assert seen.of(abi.PROCESS)[0].more["event"] == abi.PROCESS_ENTER
    finally:
        inner.rmdir()
        cgroup.rmdir()
