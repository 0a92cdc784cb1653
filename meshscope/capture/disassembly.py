"""Reading x86-64 machine code far enough to place a probe: which arguments reach which call, what the kernel emulates.

A tiny symbolic execution of one function: every register holds an argument of the function, an address on its stack,
or something unknown. That tells a forwarding call from one that merely happens to be made.
Sources: System V AMD64 psABI 3.2.3 (argument registers); Linux arch/x86/kernel/uprobes.c, branch_setup_xol_ops and
push_setup_xol_ops (what is emulated).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from capstone import CS_ARCH_X86, CS_MODE_64, Cs
from capstone.x86_const import X86_OP_IMM, X86_OP_MEM, X86_OP_REG

from meshscope.capture.elf import Image, Symbol

ARGUMENTS: Final = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
STACK: Final = "stack"  # the value of a register that points into the function's own frame
_SCRATCH: Final = frozenset((*ARGUMENTS, "rax", "r10", "r11"))  # what a call may destroy
_COPIES: Final = frozenset({"mov", "movsxd", "movabs"})
_ENDBR64: Final = bytes.fromhex("f30f1efa")
_INSTRUCTIONS: Final = 600  # of one function; the wrappers have 10 to 40
_LONGEST: Final = 15  # bytes of one instruction
_LARGEST: Final = 1 << 16  # bytes of a function that is read whole; SSL_free has 500
_SHORT_JUMPS: Final = frozenset(bytes((low,)) for low in range(0x70, 0x80))
_NEAR_JUMPS: Final = frozenset(bytes((low,)) for low in range(0x80, 0x90))


def _whole_registers() -> dict[str, str]:
    """eax, ax, al -> rax, r8d -> r8 and so on."""
    whole: dict[str, str] = {}
    for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp"):
        low = name[0] + "l" if name.endswith("x") else name + "l"
        whole.update(dict.fromkeys(("r" + name, "e" + name, name, low), "r" + name))
    for number in range(8, 16):
        whole.update({f"r{number}{width}": f"r{number}" for width in ("", "d", "w", "b")})
    return whole


_WHOLE: Final = _whole_registers()

State = dict[str, str]  # register -> argument register it came from, or STACK; absent: unknown


class Call(NamedTuple):
    """A direct call, or a jump that leaves the function, and the values of the registers when it happens."""

    target: int
    values: State


def _disassembler() -> Any:  # noqa: ANN401 - capstone has no types
    engine = Cs(CS_ARCH_X86, CS_MODE_64)
    engine.detail = True
    return engine


def decode(code: bytes, address: int) -> Any | None:  # noqa: ANN401 - capstone has no types
    """The one instruction at the start of `code`, None when these bytes are none."""
    return next(_disassembler().disasm(code[:_LONGEST], address, 1), None)


def emulated(code: bytes) -> bool:
    """The kernel emulates this instruction at a uprobe: no single step, hence two to ten times cheaper.

    push of a register, one-byte nop, call and jmp relative. Conditional jumps are emulated too, but no function
    begins with one and one is met only on the way of an entry-only probe: see `conditional`.
    """
    opcode = code[1:2] if code[:1] == b"\x41" else code[:1]
    if opcode and 0x50 <= opcode[0] <= 0x57:
        return True
    return code[:1] in {b"\x90", b"\xe8", b"\xe9", b"\xeb"}


def conditional(code: bytes) -> bool:
    """A conditional jump, short or near: emulated as well."""
    return code[:1] in _SHORT_JUMPS or (code[:1] == b"\x0f" and code[1:2] in _NEAR_JUMPS)


def starts_with_endbr64(code: bytes) -> bool:
    """The function begins with the landing mark of indirect branch tracking, which touches no register."""
    return code.startswith(_ENDBR64)


def _after(instruction: Any, values: State) -> State:  # noqa: ANN401 - capstone has no types
    """What the registers hold behind one instruction that is no jump."""
    changed = dict(values)
    operands = instruction.operands
    _, written = instruction.regs_access()
    for register in written:
        changed.pop(_WHOLE.get(instruction.reg_name(register), ""), None)
    if instruction.mnemonic == "call":
        for name in _SCRATCH:
            changed.pop(name, None)
    changed["rsp"] = STACK
    if len(operands) == 2 and operands[0].type == X86_OP_REG:
        target = _WHOLE.get(instruction.reg_name(operands[0].reg))
        value = None
        if instruction.mnemonic in _COPIES and operands[1].type == X86_OP_REG:
            value = values.get(_WHOLE.get(instruction.reg_name(operands[1].reg), ""))
        elif instruction.mnemonic == "lea" and operands[1].type == X86_OP_MEM:
            base = _WHOLE.get(instruction.reg_name(operands[1].mem.base) or "", "")
            value = STACK if values.get(base) == STACK else None
        if target and value:
            changed[target] = value
    return changed


def calls(image: Image, function: Symbol) -> Iterator[Call]:
    """Every direct call and leaving jump of a function, by every path from its entry.

    A state is followed once per address, so loops end; the number of instructions is bounded.
    """
    start, end = function.address, function.address + (function.size or 4096)
    entry: State = {name: name for name in ARGUMENTS} | {"rsp": STACK}
    waiting = [(start, entry)]
    seen: set[tuple[int, frozenset[tuple[str, str]]]] = set()
    while waiting and len(seen) < _INSTRUCTIONS:
        address, values = waiting.pop()
        mark = (address, frozenset(values.items()))
        instruction = decode(image.code(address, _LONGEST), address)
        if instruction is None or mark in seen:
            continue
        seen.add(mark)
        following = address + instruction.size
        target = _direct_target(instruction)
        name = instruction.mnemonic.removeprefix("bnd ").removeprefix("notrack ")
        if name.startswith("j"):
            if target is not None and start <= target < end:
                waiting.append((target, values))
            elif target is not None:
                yield Call(target, values)
            if name != "jmp":
                waiting.append((following, values))
        elif name not in {"ret", "hlt", "ud2", "int3"} and following < end:
            if name == "call" and target is not None:
                yield Call(target, values)
            waiting.append((following, _after(instruction, values)))


def _direct_target(instruction: Any) -> int | None:  # noqa: ANN401 - capstone has no types
    operands = instruction.operands
    if len(operands) == 1 and operands[0].type == X86_OP_IMM:
        return int(operands[0].imm)
    return None


def cheap_entry(image: Image, function: Symbol, argument: str = ARGUMENTS[0]) -> int | None:
    """Where an entry-only probe costs least: the first emulated instruction, in straight line from the entry, before
    which `argument` is unchanged and nothing in the function jumps to. None when there is no such place.

    For a probe without return only: rsp may have moved on.
    """
    if function.size > _LARGEST:
        return None
    landings, straight, computed = set(), [], False
    address, moved_on = function.address, False
    code = image.code(function.address, function.size)
    for instruction in _disassembler().disasm(code, function.address):
        target = _direct_target(instruction)
        jump = instruction.mnemonic.startswith("j")
        if jump and target is not None:
            landings.add(target)
        computed = computed or (jump and target is None)
        if not moved_on:
            straight.append(instruction.address)
            written = {_WHOLE.get(instruction.reg_name(register)) for register in instruction.regs_access()[1]}
            moved_on = jump or instruction.mnemonic in {"call", "ret"} or argument in written
    for address in straight:
        if address in landings:
            return None  # a loop: behind this point it may run more than once a call
        head = code[address - function.address :][:_LONGEST]
        if emulated(head) or conditional(head):
            return None if computed and address != function.address else address
    return None
