"""TLS programs on real OpenSSL.

Children are selected by pid; the system's library is used by others at the same time, so they are probed one by one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from meshscope.capture import abi, bpf
from tests.kprobes.watch import BOUND_S, PRELUDE, Seen, decode, drain, go, source
from tests.kprobes.watch_tls import balanced, probed, run, sessions, until, waiting

pytestmark = pytest.mark.live


# Both ends in one process, as blocking sockets in two threads; python calls the extended functions only.
BLOCKING = """
def contexts():
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*sys.argv[1:3])
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    return client, server
for_client, for_server = contexts()
def tls(c, s):
    box = []
    thread = threading.Thread(target=lambda: box.append(for_server.wrap_socket(s, server_side=True)))
    thread.start()
    c = for_client.wrap_socket(c)
    thread.join()
    return c, box[0]
"""


@pytest.fixture(scope="module")
def cert(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("cert")
    made = (str(folder / "cert.pem"), str(folder / "key.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", made[0], "-keyout", made[1]], check=True, capture_output=True)
    return made


@pytest.fixture(params=["together", "one by one"])
def either_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to attach, whatever this kernel prefers."""
    if request.param == "one by one":
        monkeypatch.setattr(bpf, "may_attach_together", lambda _: False)


def python(script: str, cert: tuple[str, str]) -> tuple[str, ...]:
    return (sys.executable, "-c", "import ssl\n" + PRELUDE + BLOCKING + script, *cert)


@pytest.mark.usefixtures("either_way")
def test_plaintext_of_blocking_sockets_on_their_connections(cert: tuple[str, str]) -> None:
    talk = """
c, s = tls(*pair())
for i in range(50):
    c.sendall(b"question %d" % i)
    assert s.recv(100) == b"question %d" % i
    s.sendall(b"answer %d" % i)
    assert c.recv(100) == b"answer %d" % i
c.close(); s.close()
"""
    seen = run(python(talk, cert))
    asked = b"".join(b"question %d" % i for i in range(50))
    answered = b"".join(b"answer %d" % i for i in range(50))
    client, server = sorted(sessions(seen), key=lambda one: one.sent != asked)
    assert (client.sent, client.received) == (asked, answered)
    assert (server.sent, server.received) == (answered, asked)
    assert client.conn == seen.conn(abi.ROLE_CLIENT)
    assert server.conn == seen.conn(abi.ROLE_SERVER)
    assert client.closed
    assert server.closed
    assert seen.counters["traps"] > 400
    assert seen.counters["bytes_ciphertext"] > 0, "ciphertext is counted, not copied"
    balanced(seen)


def test_large_writes_become_records_of_4_kib_and_the_rest_a_length(cert: tuple[str, str]) -> None:
    talk = """
c, s = tls(*pair())
sender = threading.Thread(target=c.sendall, args=(bytes(range(256)) * 1000,))
sender.start()
got = b""
while len(got) < 256000:
    got += s.recv(1 << 20)
sender.join()
"""
    seen = run(python(talk, cert))
    sent = [one for one in seen.of(abi.DATA, direction=abi.TX) if one.head["src"] == abi.TLS]
    assert sum(one.head["len"] for one in sent) == 256000
    assert len(sent) == abi.TRANSFER_RECORDS + 1
    whole = abi.TRANSFER_RECORDS * (abi.RECORD_MAX - abi.CHUNK.size)
    assert b"".join(one.data for one in sent) == (bytes(range(256)) * 1000)[:whole]
    assert sent[-1].head["flags"] & abi.CUT
    received = [one for one in seen.of(abi.DATA, direction=abi.RX) if one.head["src"] == abi.TLS]
    assert b"".join(one.data for one in received) == bytes(range(256)) * 1000
    balanced(seen)


ASYNCIO = """
import asyncio
async def serve(reader, writer):
    while data := await reader.read(100):
        writer.write(b">" + data)
        await writer.drain()
    writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=for_server)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2], ssl=for_client)
    for i in range(20):
        writer.write(b"hello %02d" % i)
        await writer.drain()
        assert await reader.readexactly(9) == b">hello %02d" % i
    print("talked", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    writer.close()
    server.close()
asyncio.run(main())
"""


def test_asyncio_is_not_bound_by_the_kernel_but_its_objects_hold_the_server_random(cert: tuple[str, str]) -> None:
    with source() as opened, waiting(*python(ASYNCIO, cert)) as process, probed(opened, process.pid):
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "talked\n"
        seen = Seen(decode([opened_batch for opened_batch in drain(opened) if opened_batch]), opened.counters(), process.pid)
        client, server = sorted(sessions(seen), key=lambda one: b">" in one.sent)
        assert client.sent == server.received == b"".join(b"hello %02d" % i for i in range(20))
        assert server.sent == client.received == b"".join(b">hello %02d" % i for i in range(20))
        assert client.conn == server.conn == 0
        hello = seen.of(abi.DATA, seen.conn(abi.ROLE_CLIENT), abi.RX)[0].data  # RFC 8446 4.1.3: record 5, handshake 4, version 2
        assert hello[0] == 22
        random = hello[11:43]
        for one in seen.of(abi.OPEN):
            if one.head["src"] == abi.TLS:
                assert opened.bind(one.head["tls"], process.pid, int(one.more["object"]), [b"\1" * 32, random]) == random
                assert opened.bind(one.head["tls"], process.pid, int(one.more["object"]), [b"\1" * 32]) is None
        go(process)
        assert process.wait(BOUND_S) == 0


def test_verdicts_by_session(cert: tuple[str, str]) -> None:
    """The server's first session is ignored from its second transfer on, the client passes over what it need not see."""
    talk = """
c, s = tls(*pair())
c.sendall(b"first")
s.recv(100)
print("first", flush=True)
sys.stdin.readline()
c.sendall(b"0123456789")
s.recv(100)
"""
    with source() as opened, waiting(*python(talk, cert)) as process, probed(opened, process.pid):
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        batches: list[bytes] = []
        for batch in opened.batches():
            batches.append(batch)
            data = [one for one in decode(batches) if one.head["src"] == abi.TLS and one.head["kind"] == abi.DATA]
            if len(data) == 2:
                break
        (client,) = [one.head["tls"] for one in data if one.head["dir"] == abi.TX]
        (server,) = [one.head["tls"] for one in data if one.head["dir"] == abi.RX]
        opened.apply([(client, abi.EVERYTHING, 0, 9), (server, abi.IGNORE, 0, 0)])
        go(process)
        assert process.wait(BOUND_S) == 0
        rest = [one for one in decode(drain(opened)) if one.head["src"] == abi.TLS and one.head["kind"] == abi.DATA]
        assert [(one.head["pos"], one.data) for one in rest] == [(9, b"456789")]
        assert opened.counters()["bytes_skipped"] == 14


def test_who_is_not_selected_takes_no_trap(cert: tuple[str, str]) -> None:
    talk = "c, s = tls(*pair())\nfor _ in range(100):\n    c.sendall(b'x'); s.recv(1)\n"
    with waiting(*python(talk, cert)) as other, waiting(*python(talk, cert)) as chosen, source() as opened:
        with probed(opened, chosen.pid):
            go(other)
            assert other.wait(BOUND_S) == 0
            assert opened.counters()["traps"] == 0
            go(chosen)
            assert chosen.wait(BOUND_S) == 0
        assert opened.counters()["traps"] >= 400


def test_a_busy_process_survives_attaching_and_detaching(cert: tuple[str, str]) -> None:
    talk = """
pairs = [tls(*pair()) for _ in range(4)]
stop = []
def serve(s):
    while data := s.recv(1000):
        s.sendall(data)
def ask(c):
    n = 0
    while not stop:
        c.sendall(b"number %d" % n); assert c.recv(1000) == b"number %d" % n; n += 1
    c.close()
threads = [threading.Thread(target=f, args=(end,)) for ends in pairs for f, end in zip((ask, serve), ends)]
for t in threads: t.start()
print("busy", flush=True)
sys.stdin.readline()
stop.append(1)
for t in threads: t.join()
print("well", flush=True)
"""
    with source() as opened, waiting(*python(talk, cert)) as process:
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "busy\n"
        before = 0
        for _ in range(3 if "MESHSCOPE_VM" in os.environ else 20):
            with probed(opened, process.pid) as targets:
                assert targets.probed == {process.pid}
                until(lambda floor=before: opened.counters()["traps"] > floor + 20)  # type: ignore[misc]
            before = opened.counters()["traps"]
            assert opened.counters()["traps"] == before, "nothing is left in the process"
            assert process.poll() is None
        go(process)
        assert process.stdout.readline() == "well\n"
        assert process.wait(BOUND_S) == 0


def test_a_process_that_dies_inside_a_call_harms_nobody(cert: tuple[str, str]) -> None:
    talk = "c, s = tls(*pair())\nthreading.Thread(target=lambda: (print('in', flush=True), c.recv(1))).start()\ns.recv(1)\n"
    with source() as opened, waiting(*python(talk, cert)) as process, probed(opened, process.pid) as targets:
        go(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        until(lambda: opened.selected().get(process.pid, 0) >= 2)
        process.kill()
        process.wait()
        until(lambda: targets.probed == set())
        assert opened.selected() == {}


def test_curl_with_a_library_of_its_own_is_seen_by_probes_set_ahead(cert: tuple[str, str], tmp_path: Path) -> None:
    """The file is probed because a selected process maps it; curl comes later, is short-lived and seen whole."""
    listing = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    for name in ("libssl.so.3", "libcrypto.so.3"):
        shutil.copy(next(line.split(" => ")[1] for line in listing.splitlines() if f"{name} " in line), tmp_path)
    holder = """
import subprocess
listener = socket.create_server(("127.0.0.1", 0))
port = listener.getsockname()[1]
def serve():
    s = for_server.wrap_socket(listener.accept()[0], server_side=True)
    s.recv(10000)
    s.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 5\\r\\n\\r\\nhello")
    s.close()
threading.Thread(target=serve).start()
answer = subprocess.run(["curl", "-sk", "https://127.0.0.1:%d/from-curl" % port], check=True, capture_output=True).stdout
assert answer == b"hello", answer
"""
    seen = run(python(holder, cert), LD_LIBRARY_PATH=str(tmp_path), PATH="/usr/bin:/bin")
    by_process = {one.head["tgid"] for one in seen.records if one.head["src"] == abi.TLS}
    assert len(by_process) == 2
    asked = [one for one in sessions(seen) if one.sent.startswith(b"GET /from-curl ")]
    assert len(asked) == 1
    assert asked[0].received.endswith(b"\r\n\r\nhello")
    assert asked[0].conn == seen.conn(abi.ROLE_CLIENT)


def test_one_file_under_two_overlay_mounts(cert: tuple[str, str], tmp_path: Path) -> None:
    """Containers of one image: two files by their mappings, one to the kernel. Calls are told once, a stranger takes no trap."""
    layer, empty = tmp_path / "layer", tmp_path / "empty"
    for folder in (layer, empty, tmp_path / "1", tmp_path / "2"):
        folder.mkdir()
    (libssl,) = Path("/usr/lib").glob("*/libssl.so.3")
    shutil.copy(libssl, layer)
    talk = "c, s = tls(*pair())\nfor _ in range(10):\n    c.sendall(b'x'); s.recv(1)\n"

    def inside(name: str) -> tuple[str, ...]:
        root = str(tmp_path / name)
        script = f'mount -t overlay overlay -o lowerdir={empty}:{layer} {root} && LD_LIBRARY_PATH={root} exec "$@"'
        return ("unshare", "-m", "sh", "-c", script, "sh", *python(talk, cert))

    with source() as opened, waiting(*inside("1")) as one, waiting(*inside("2")) as other:
        with probed(opened, one.pid):
            go(other)
            assert other.wait(BOUND_S) == 0
            assert opened.counters()["traps"] == 0
            go(one)
            assert one.wait(BOUND_S) == 0
        seen = Seen(decode(drain(opened)), opened.counters(), one.pid)
    assert sorted((s.sent, s.received) for s in sessions(seen)) == [(b"", b"x" * 10), (b"x" * 10, b"")]
    balanced(seen)
