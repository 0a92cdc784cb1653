"""Placement rules on the system's library and on libraries assembled here, one per shape that exists in the wild."""

from __future__ import annotations

import io
import random
import subprocess
import sys
from pathlib import Path

import pytest

from meshscope.capture import abi
from meshscope.capture.elf import BadElf
from meshscope.capture.placement import Placement, Rule, Variant, place

READ, WRITE = Variant.READ, Variant.WRITE

# The shapes of OpenSSL 1.1.1 to 3.2: the plain function puts the length on its stack, the extended one forwards.
PLAIN = """
    sub $0x18, %rsp
    test %edx, %edx
    js 1f
    mov %rsp, %rcx
    movslq %edx, %rdx
    call {internal}
    mov (%rsp), %eax
2:  add $0x18, %rsp
    ret
1:  call raise_error
    mov $-1, %eax
    jmp 2b
"""
EXTENDED = """
    sub $8, %rsp
    call {internal}
    xor %edx, %edx
    test %eax, %eax
    cmovs %edx, %eax
    add $8, %rsp
    ret
"""
PUSHES = "    push %rbx\n    mov %rdi, %rbx\n    pop %rbx\n    ret\n"
SUBTRACTS = "    sub $8, %rsp\n    add $8, %rsp\n    ret\n"
FREE = "    test %rdi, %rdi\n    je 1f\n    push %rbx\n    pop %rbx\n1:  ret\n"


def function(name: str, body: str, public: bool = True) -> str:
    visibility = f"    .globl {name}\n" if public else ""
    return f"{visibility}    .type {name}, @function\n{name}:\n{body}    .size {name}, . - {name}\n"


def library(tmp_path: Path, **bodies: str) -> Path:
    """A shared library: names that begin with SSL_ are exported, the rest is local."""
    everything = {"raise_error": PUSHES, "SSL_free": FREE} | bodies
    source = tmp_path / "tls.s"
    source.write_text("    .text\n" + "".join(function(n, b, n.startswith("SSL_")) for n, b in everything.items()))
    built = tmp_path / "libssl.so.9"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-Wl,--build-id", "-o", built, source], check=True)
    return built


def openssl(**bodies: str) -> dict[str, str]:
    """The usual shape, any function replaced by `bodies`."""
    usual = {
        "read_internal": PUSHES,
        "write_internal": PUSHES,
        "peek_internal": PUSHES,
        "SSL_read": PLAIN.format(internal="read_internal"),
        "SSL_read_ex": EXTENDED.format(internal="read_internal"),
        "SSL_write": PLAIN.format(internal="write_internal"),
        "SSL_write_ex": EXTENDED.format(internal="write_internal"),
        "SSL_peek": PLAIN.format(internal="peek_internal"),
        "SSL_peek_ex": EXTENDED.format(internal="peek_internal"),
    }
    return usual | bodies


def placed(path: Path) -> dict[str, Placement]:
    with path.open("rb") as stream:
        return {one.function: one for one in place(stream).placements}


def address_of(path: Path, name: str) -> int:
    """From nm, that is, not from the code under test. In these libraries file offset and address of code are equal."""
    listing = subprocess.run(["nm", path], check=True, capture_output=True, text=True).stdout
    return next(int(line.split()[0], 16) for line in listing.splitlines() if line.split()[-1] == name)


def system_library() -> Path:
    """The library that Debian's own programs use."""
    listing = subprocess.run(["ldconfig", "-p"], check=True, capture_output=True, text=True).stdout
    return Path(next(line.split(" => ")[1] for line in listing.splitlines() if "libssl.so.3 " in line))


def test_variants_are_the_kernel_programs_own() -> None:
    assert (Variant.WRITE, Variant.DONE_4TH, Variant.DONE_5TH) == (abi.SSL_WRITE, abi.SSL_DONE_4TH, abi.SSL_DONE_5TH)


def test_debians_library_is_probed_behind_both_functions() -> None:
    path = system_library()
    places = placed(path)
    assert set(places) == {"SSL_read+SSL_read_ex", "SSL_write+SSL_write_ex", "SSL_free"}
    for name in ("SSL_read+SSL_read_ex", "SSL_write+SSL_write_ex"):
        assert places[name].rule is Rule.TWIN
        assert places[name].emulated
        assert places[name].variant & Variant.DONE_4TH
        with path.open("rb") as file:
            file.seek(places[name].offset)
            assert file.read(8) == places[name].code
    assert not places["SSL_free"].returns


def test_the_function_behind_both(tmp_path: Path) -> None:
    path = library(tmp_path, **openssl())
    places = placed(path)
    assert places["SSL_read+SSL_read_ex"][1:6] == (
        READ | Variant.DONE_4TH,
        address_of(path, "read_internal"),
        Rule.TWIN,
        True,
        True,
    )
    assert places["SSL_write+SSL_write_ex"].offset == address_of(path, "write_internal")
    assert places["SSL_write+SSL_write_ex"].variant == WRITE | Variant.DONE_4TH


def test_a_jump_forwards_as_a_call_does(tmp_path: Path) -> None:
    path = library(tmp_path, **openssl(SSL_read_ex="    jmp read_internal\n"))
    assert placed(path)["SSL_read+SSL_read_ex"].offset == address_of(path, "read_internal")


def test_an_internal_function_behind_endbr64_is_probed_past_it(tmp_path: Path) -> None:
    path = library(tmp_path, **openssl(read_internal="    endbr64\n" + PUSHES))
    place_of_read = placed(path)["SSL_read+SSL_read_ex"]
    assert place_of_read.offset == address_of(path, "read_internal") + 4
    assert place_of_read.emulated


@pytest.mark.parametrize(
    "entry", ["    sub $8, %rsp\n", "    endbr64\n    sub $8, %rsp\n", "    mov %rdi, %rax\n", "    pushq $1\n"]
)
def test_an_internal_function_whose_entry_is_single_stepped_is_left_alone(tmp_path: Path, entry: str) -> None:
    path = library(tmp_path, **openssl(read_internal=entry + "    pop %rcx\n    ret\n"))
    places = placed(path)
    assert places["SSL_read"].rule is Rule.SYMBOL
    assert not places["SSL_read"].emulated
    assert places["SSL_read"].offset == address_of(path, "SSL_read")
    assert places["SSL_read_ex"].variant == READ | Variant.DONE_4TH
    assert places["SSL_write+SSL_write_ex"].rule is Rule.TWIN


def test_public_functions_behind_endbr64_are_probed_past_it(tmp_path: Path) -> None:
    bodies = dict.fromkeys(("SSL_read", "SSL_read_ex", "SSL_write"), "    endbr64\n" + PUSHES)
    path = library(tmp_path, **bodies)
    for name, place_of in placed(path).items():
        if name != "SSL_free":
            assert (place_of.rule, place_of.offset) == (Rule.PAST_ENDBR64, address_of(path, name) + 4)


def test_a_push_after_the_entry_is_no_place_for_a_return_probe(tmp_path: Path) -> None:
    """sub, then push: emulated, but the stack pointer has left the return address."""
    path = library(tmp_path, SSL_read=SUBTRACTS + PUSHES, SSL_write="    endbr64\n    mov %rdi, %rax\n" + PUSHES)
    assert placed(path)["SSL_read"].offset == address_of(path, "SSL_read")
    assert placed(path)["SSL_write"].offset == address_of(path, "SSL_write")


def test_an_error_function_that_both_call_is_not_taken_for_it(tmp_path: Path) -> None:
    """Both report errors with the caller's arguments still in their registers."""
    raises = "    sub $8, %rsp\n    call raise_error\n    add $8, %rsp\n    ret\n"
    path = library(tmp_path, **openssl(SSL_read=raises, SSL_read_ex=raises))
    assert "SSL_read+SSL_read_ex" not in placed(path)


def test_one_internal_function_for_reading_and_peeking_is_not_used(tmp_path: Path) -> None:
    path = library(tmp_path, **openssl(SSL_peek=PLAIN.format(internal="read_internal")))
    assert {"SSL_read", "SSL_read_ex"} <= placed(path).keys()


def test_libressl_needs_one_probe_a_direction(tmp_path: Path) -> None:
    """Its extended functions call the plain ones; here once directly and once through the PLT."""
    local = function("SSL_read", PUSHES)
    path = library(
        tmp_path,
        SSL_read=PUSHES,
        SSL_read_ex=EXTENDED.format(internal="SSL_read@PLT"),
        SSL_write=PUSHES + "plain_write:\n" + PUSHES,
        SSL_write_ex=EXTENDED.format(internal="SSL_write@PLT"),
    )
    assert ".globl SSL_read" in local
    assert set(placed(path)) == {"SSL_read", "SSL_write", "SSL_free"}
    bound = tmp_path / "bound.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-Wl,-Bsymbolic", "-o", bound, tmp_path / "tls.s"], check=True)
    assert set(placed(bound)) == {"SSL_read", "SSL_write", "SSL_free"}


def test_boringssl_has_only_the_plain_functions(tmp_path: Path) -> None:
    path = library(tmp_path, SSL_read=PUSHES, SSL_write=SUBTRACTS)
    places = placed(path)
    assert places["SSL_read"].emulated
    assert not places["SSL_write"].emulated
    assert (places["SSL_read"].variant, places["SSL_write"].variant) == (READ, WRITE)


NEWER_PLAIN = PLAIN.replace("mov %rsp, %rcx", "mov %rsp, %r8\n    xor %ecx, %ecx")
NEWER_EXTENDED = "    mov %rcx, %r8\n    xor %ecx, %ecx\n    jmp SSL_write_ex2@PLT\n"


def test_openssl_3_3_writes_with_flags_before_the_length(tmp_path: Path) -> None:
    bodies = openssl(
        SSL_write=NEWER_PLAIN.format(internal="write_internal"),
        SSL_write_ex=NEWER_EXTENDED,
        SSL_write_ex2=EXTENDED.format(internal="write_internal"),
    )
    path = library(tmp_path, **bodies)
    places = placed(path)
    assert places["SSL_write+SSL_write_ex2"].offset == address_of(path, "write_internal")
    assert places["SSL_write+SSL_write_ex2"].variant == WRITE | Variant.DONE_5TH
    assert places["SSL_read+SSL_read_ex"].variant == READ | Variant.DONE_4TH
    single_stepped = library(tmp_path, **(bodies | {"write_internal": SUBTRACTS}))
    places = placed(single_stepped)
    assert places["SSL_write_ex2"].variant == WRITE | Variant.DONE_5TH
    assert {"SSL_write", "SSL_write_ex"} & places.keys() == {"SSL_write"}


def test_arguments_that_do_not_fit_the_version_are_not_believed(tmp_path: Path) -> None:
    """SSL_write_ex2 exists, yet the fourth argument carries the length."""
    path = library(tmp_path, **openssl(SSL_write_ex2=EXTENDED.format(internal="write_internal"), SSL_write_ex=NEWER_EXTENDED))
    assert {"SSL_write", "SSL_write_ex2"} <= placed(path).keys()


def test_the_free_probe_moves_on_to_an_emulated_instruction_but_never_onto_a_jump_target(tmp_path: Path) -> None:
    plain = {"SSL_read": PUSHES, "SSL_write": PUSHES}
    path = library(tmp_path, **plain)
    assert placed(path)["SSL_free"].offset == address_of(path, "SSL_free") + 3
    looping = "    test %rdi, %rdi\n1:  push %rbx\n    pop %rbx\n    jne 1b\n    ret\n"
    path = library(tmp_path, **plain, SSL_free=looping)
    assert (placed(path)["SSL_free"].offset, placed(path)["SSL_free"].emulated) == (address_of(path, "SSL_free"), False)
    overwriting = "    mov $0, %edi\n    push %rbx\n    pop %rbx\n    ret\n"
    path = library(tmp_path, **plain, SSL_free=overwriting)
    assert placed(path)["SSL_free"].offset == address_of(path, "SSL_free")


def test_what_is_no_tls_library_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadElf, match="exports no SSL_read"), Path(sys.executable).resolve().open("rb") as stream:
        place(stream)
    whole = library(tmp_path, **openssl()).read_bytes()
    for broken in (b"", b"#!/bin/sh\n", whole[:40], whole[: len(whole) // 2]):
        with pytest.raises(BadElf):
            place(io.BytesIO(broken))


def test_a_mutated_library_raises_nothing_else(tmp_path: Path) -> None:
    whole = library(tmp_path, **openssl()).read_bytes()
    chance = random.Random(7)
    for _ in range(150):
        mutated = bytearray(whole)
        for _ in range(chance.randrange(1, 20)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        try:
            places = place(io.BytesIO(mutated)).placements
        except BadElf:
            continue
        assert all(0 <= one.offset < 1 << 63 for one in places)
