"""Small functions, assembled here, and what is read out of them."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import pytest

from meshscope.capture.disassembly import STACK, Call, calls, cheap_entry, conditional, decode, emulated, starts_with_endbr64
from meshscope.capture.elf import Image


def assembled(tmp_path: Path, body: str) -> Image:
    source = tmp_path / "f.s"
    source.write_text(
        "    .text\n    .globl f\n    .type f, @function\nf:\n" + body + "    .size f, . - f\n"
        "    .globl g\n    .hidden g\n    .type g, @function\ng: ret\n    .size g, . - g\n"
    )
    built = tmp_path / "f.so"
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", built, source], check=True)
    return Image(io.BytesIO(built.read_bytes()))


def calls_of(tmp_path: Path, body: str) -> list[Call]:
    image = assembled(tmp_path, body)
    symbol = image.symbol("f")
    assert symbol is not None
    return list(calls(image, symbol))


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("push %rbx", True),
        ("push %r13", True),
        ("nop", True),
        ("call .", True),
        ("jmp .+100", True),
        ("jmp .+1000", True),
        ("sub $8, %rsp", False),
        ("mov %rdi, %rax", False),
        ("pushq $1", False),
        ("endbr64", False),
        ("nopl (%rax)", False),
        ("pushq (%rdi)", False),
    ],
)
def test_what_the_kernel_emulates(tmp_path: Path, instruction: str, expected: bool) -> None:
    image = assembled(tmp_path, f"    {instruction}\n    ret\n")
    symbol = image.symbol("f")
    assert symbol is not None
    code = image.code(symbol.address, 15)
    assert emulated(code) is expected
    assert starts_with_endbr64(code) is (instruction == "endbr64")
    decoded = decode(code, symbol.address)
    assert decoded is not None
    assert not conditional(code)


def test_conditional_jumps() -> None:
    assert conditional(bytes.fromhex("7410"))
    assert conditional(bytes.fromhex("0f8497030000"))
    assert not conditional(bytes.fromhex("0f1f00"))
    assert not conditional(b"")


def test_arguments_are_followed_through_copies(tmp_path: Path) -> None:
    (call,) = calls_of(
        tmp_path,
        "    push %rbx\n    mov %rdi, %rbx\n    xor %edi, %edi\n    mov %rbx, %rdi\n    lea 8(%rsp), %rcx\n    call g\n    ret\n",
    )
    assert call.values["rdi"] == "rdi"
    assert call.values["rsi"] == "rsi"
    assert call.values["rcx"] == STACK


def test_a_narrow_write_spoils_the_whole_register(tmp_path: Path) -> None:
    (call,) = calls_of(tmp_path, "    mov $1, %dil\n    mov $2, %sil\n    mov (%rdx), %edx\n    call g\n    ret\n")
    assert not {"rdi", "rsi", "rdx"} & call.values.keys()


def test_a_call_spoils_what_it_may(tmp_path: Path) -> None:
    first, second = calls_of(tmp_path, "    mov %rdi, %rbx\n    call g\n    call g\n    ret\n")
    assert first.values["rdi"] == "rdi"
    assert "rdi" not in second.values
    assert second.values["rbx"] == "rdi"


def test_both_ways_of_a_branch_are_followed_and_loops_end(tmp_path: Path) -> None:
    body = "1:  test %edx, %edx\n    js 2f\n    call g\n    jmp 1b\n2:  xor %edi, %edi\n    jmp g\n"
    found = calls_of(tmp_path, body)
    assert {"rdi" in call.values for call in found} == {True, False}
    assert len(found) < 8


def test_an_indirect_call_is_nobody(tmp_path: Path) -> None:
    assert calls_of(tmp_path, "    call *(%rdi)\n    jmp *%rax\n") == []


def test_garbage_is_not_followed(tmp_path: Path) -> None:
    assert calls_of(tmp_path, "    .byte 0x06, 0x07\n    call g\n") == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("    push %rbx\n    pop %rbx\n    ret\n", 0),
        ("    test %rdi, %rdi\n    je 1f\n    nop\n1:  ret\n", 3),
        ("    mov %rdi, %rax\n    sub $8, %rsp\n    push %rbx\n    ret\n", 7),
        ("    xor %edi, %edi\n    push %rbx\n    ret\n", None),
        ("    test %rdi, %rdi\n1:  nop\n    jne 1b\n    ret\n", None),
        ("    test %rdi, %rdi\n    nop\n    jmp *%rax\n", None),
        ("    ret\n", None),
    ],
)
def test_where_an_entry_probe_is_cheap(tmp_path: Path, body: str, expected: int | None) -> None:
    image = assembled(tmp_path, body)
    symbol = image.symbol("f")
    assert symbol is not None
    found = cheap_entry(image, symbol)
    assert found == (None if expected is None else symbol.address + expected)
    assert cheap_entry(image, symbol._replace(size=1 << 40)) is None, "a size made to have us read for ever"
