"""ELF look-ups against what binutils say of the same files."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshscope.capture.elf import X86_64, BadElf, Image

SOURCE = """
extern int puts(const char *);
int first(int x) { return x + 1; }
int second(int x) { return puts("x") + first(x); }
static int hidden(int x) { return x; }
int (*keep)(int) = hidden;
"""


def build(tmp_path: Path, *flags: str) -> Path:
    source = tmp_path / "a.c"
    source.write_text(SOURCE)
    built = tmp_path / "a.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-Wl,--build-id", *flags, "-o", built, source], check=True)
    return built


@pytest.fixture(params=["-Wl,--hash-style=gnu", "-Wl,--hash-style=sysv"])
def built(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[Path, Image]]:
    path = build(tmp_path, request.param)
    with path.open("rb") as stream:
        yield path, Image(stream)


def readelf(option: str, path: Path) -> str:
    return subprocess.run(["readelf", "-W", option, path], check=True, capture_output=True, text=True).stdout


def test_symbols_by_either_hash(built: tuple[Path, Image]) -> None:
    path, image = built
    assert image.machine == X86_64
    for line in readelf("--dyn-syms", path).splitlines():
        if line.endswith((" first", " second")):
            _, value, size, *_, name = line.split()
            symbol = image.symbol(name)
            assert symbol is not None
            assert (symbol.address, symbol.size) == (int(value, 16), int(size))
    assert image.symbol("hidden") is None
    assert image.symbol("puts") is None
    assert image.symbol("absent") is None


def test_without_a_hash_the_full_table_answers(tmp_path: Path) -> None:
    build(tmp_path)
    relocatable = tmp_path / "a.o"
    subprocess.run(["gcc", "-O1", "-c", "-fPIC", "-o", relocatable, tmp_path / "a.c"], check=True)
    with relocatable.open("rb") as stream:
        image = Image(stream)
        assert image.symbol("second") is not None
        assert image.symbol("puts") is None


def test_build_id_and_code(built: tuple[Path, Image]) -> None:
    path, image = built
    assert f"Build ID: {image.build_id}" in readelf("-n", path)
    symbol = image.symbol("first")
    assert symbol is not None
    whole = path.read_bytes()
    assert image.code(symbol.address, symbol.size) == whole[image.file_offset(symbol.address) :][: symbol.size]
    assert image.code(1 << 40, 8) == b""
    with pytest.raises(BadElf, match="no executable segment"):
        image.file_offset(1 << 40)


@pytest.mark.parametrize("binding", ["-Wl,-z,lazy", "-Wl,-z,now", "-fno-plt"])
def test_a_linkage_stub_tells_its_name(tmp_path: Path, binding: str) -> None:
    path = build(tmp_path, binding)
    listing = subprocess.run(["objdump", "-d", path], check=True, capture_output=True, text=True).stdout
    stubs = {line.split()[1][1:-6]: int(line.split()[0], 16) for line in listing.splitlines() if line.endswith("@plt>:")}
    with path.open("rb") as stream:
        image = Image(stream)
        for name, address in stubs.items():
            assert image.in_plt(address)
            assert image.plt_name(address) == name
        symbol = image.symbol("second")
        assert symbol is not None
        assert not image.in_plt(symbol.address)
        assert image.plt_name(symbol.address) == ""


def test_no_build_id_is_no_error(tmp_path: Path) -> None:
    with build(tmp_path, "-Wl,--build-id=none").open("rb") as stream:
        assert Image(stream).build_id == ""


def test_other_files_are_refused(tmp_path: Path) -> None:
    whole = build(tmp_path).read_bytes()
    for broken in (b"", b"hello", whole[:20], whole[:4] + b"\x01" + whole[5:]):
        with pytest.raises(BadElf):
            Image(io.BytesIO(broken))
