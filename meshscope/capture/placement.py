"""Where probes on a TLS library cost least and can do no harm: an ELF file in, placements out.

A probe's price is decided by the instruction under it: the kernel emulates a few and single-steps the rest, two to
three times dearer on metal and over ten times in a virtual machine. A return probe may sit only where the stack pointer
still points at the return address, because the kernel overwrites what it points at. In this order:

1. the one function behind both public ones (SSL_read and SSL_read_ex; SSL_write and SSL_write_ex, from OpenSSL 3.3
   SSL_write_ex2), if its entry, or what follows its endbr64, is emulated. It is recognised by what it is handed: the
   caller's own (ssl, buf, num) and a place for the length, which is on SSL_read's stack and is SSL_read_ex's argument;
2. the public function, 4 bytes on, if it begins with endbr64 and the next instruction is emulated;
3. the public function itself.

A public function that only forwards to another one that is probed (LibreSSL's SSL_read_ex calls SSL_read) needs none.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum
from typing import BinaryIO, Final, NamedTuple

from meshscope.capture.disassembly import ARGUMENTS, STACK, Call, calls, cheap_entry, conditional, emulated, starts_with_endbr64
from meshscope.capture.elf import X86_64, BadElf, Image, Symbol

_ENDBR64_BYTES: Final = 4
_VERIFIED_BYTES: Final = 8  # of code, compared again just before attaching
_DONE: Final = {"rcx": 3, "r8": 4}  # registers that may carry the place for the length: index among the arguments


class Variant(IntFlag):
    """What a probed function is; the attach cookie (enum ms_ssl_call of kprobes/meshscope.h)."""

    READ = 0
    WRITE = 1
    DONE_4TH = 2
    DONE_5TH = 4


class Rule(StrEnum):
    """Why a probe sits where it sits."""

    TWIN = "function behind both"
    PAST_ENDBR64 = "symbol+4"
    SYMBOL = "symbol"
    ENTRY_ONLY = "entry only"


class Placement(NamedTuple):
    """One place for probes.

    function:  the public functions that this place sees, joined by "+".
    variant:   what the kernel program must know.
    offset:    in the file, as uprobes take it.
    rule:      which rule chose it.
    emulated:  the kernel emulates the instruction; else every hit costs a single step.
    returns:   a return probe belongs here too.
    code:      the bytes that must stand there, verified before attaching.
    """

    function: str
    variant: Variant
    offset: int
    rule: Rule
    emulated: bool
    returns: bool
    code: bytes

    @property
    def cost(self) -> str:
        """What a hit costs the target, in words: metal, and a virtual machine where it differs much."""
        return "emulated, about 0.5 us" if self.emulated else "single-stepped, about 1 us, 11 to 14 us in a virtual machine"


class Library(NamedTuple):
    """A TLS library: its build id (hex, may be empty) and where to probe it."""

    build_id: str
    placements: tuple[Placement, ...]


def place(stream: BinaryIO) -> Library:
    """Where to probe the library in `stream`. Raises BadElf (one line) when it is none or has no SSL_read and SSL_write."""
    image = Image(stream)
    reads = _direction(image, Variant.READ, "SSL_read", "SSL_read_ex")
    newer = "SSL_write_ex2" if image.symbol("SSL_write_ex2") else "SSL_write_ex"
    writes = _direction(image, Variant.WRITE, "SSL_write", newer)
    if not reads or not writes:
        raise BadElf("exports no SSL_read or no SSL_write")
    return Library(image.build_id, (*reads, *writes, *_free(image)))


def _direction(image: Image, direction: Variant, plain_name: str, extended_name: str) -> list[Placement]:
    """The probes of reading or of writing."""
    plain = image.symbol(plain_name)
    if plain is None:
        return []
    extended = image.symbol(extended_name)
    if extended is not None and image.machine == X86_64:
        twin = _twin(image, direction, plain, extended)
        if twin:
            return [twin]
    done = Variant.DONE_5TH if extended_name.endswith("2") else Variant.DONE_4TH
    public = [(plain, direction), (extended, direction | done)]
    if extended_name.endswith("2"):
        public.append((image.symbol(extended_name.removesuffix("2")), direction | Variant.DONE_4TH))
    functions = [(symbol, variant) for symbol, variant in public if symbol is not None]
    everyone = {symbol.name: symbol.address for symbol, _ in functions}
    return [_at_symbol(image, symbol, variant) for symbol, variant in functions if not _forwards(image, symbol, everyone)]


def _twin(image: Image, direction: Variant, plain: Symbol, extended: Symbol) -> Placement | None:
    """Rule 1, or None when there is no such function, more than one, or its entry is not emulated."""
    by_plain = _calls_by_target(image, plain)
    by_extended = _calls_by_target(image, extended)
    peeks: set[int] = set()
    for name in ("SSL_peek", "SSL_peek_ex"):
        peek = image.symbol(name)
        peeks |= _calls_by_target(image, peek).keys() if peek else set()
    found = []
    for target in by_plain.keys() & by_extended.keys():
        register = _length_register(by_plain[target], by_extended[target], direct=not extended.name.endswith("2"))
        if register and not image.in_plt(target) and target not in {plain.address, extended.address} | peeks:
            found.append((target, register))
    if len(found) != 1:
        return None
    target, register = found[0]
    if (register == "r8") != extended.name.endswith("2"):
        return None  # contradicts what the library's version says
    at, is_emulated, _ = _entry(image, target)
    if not is_emulated:
        return None
    variant = direction | (Variant.DONE_4TH if register == "rcx" else Variant.DONE_5TH)
    return _placement(image, f"{plain.name}+{extended.name}", variant, at, Rule.TWIN, True)


def _calls_by_target(image: Image, function: Symbol) -> dict[int, list[Call]]:
    targets: dict[int, list[Call]] = {}
    for call in calls(image, function):
        targets.setdefault(call.target, []).append(call)
    return targets


def _length_register(by_plain: list[Call], by_extended: list[Call], direct: bool) -> str:
    """Which register carries the place for the length in all of these calls, empty when they do not forward at all."""
    for register, index in _DONE.items():
        own = ARGUMENTS[3] if direct else ARGUMENTS[index]
        if all(_forwarded(call) and call.values.get(register) == STACK for call in by_plain) and all(
            _forwarded(call) and call.values.get(register) == own for call in by_extended
        ):
            return register
    return ""


def _forwarded(call: Call) -> bool:
    """(ssl, buf, num) are handed on as they came."""
    return all(call.values.get(register) == register for register in ARGUMENTS[:3])


def _forwards(image: Image, function: Symbol, everyone: dict[str, int]) -> bool:
    """The function hands its SSL object to another public one of its direction, directly or through the PLT."""
    if image.machine != X86_64:
        return False
    others = {name: address for name, address in everyone.items() if name != function.name}
    for call in calls(image, function):
        if call.values.get(ARGUMENTS[0]) == ARGUMENTS[0] and (
            call.target in others.values() or (image.in_plt(call.target) and image.plt_name(call.target) in others)
        ):
            return True
    return False


def _entry(image: Image, address: int) -> tuple[int, bool, Rule]:
    """Where at a function's entry a return probe may sit best, whether that is emulated, and by which rule."""
    head = image.code(address, 16)
    if image.machine == X86_64:
        if starts_with_endbr64(head) and emulated(head[_ENDBR64_BYTES:]):
            return address + _ENDBR64_BYTES, True, Rule.PAST_ENDBR64
        if emulated(head):
            return address, True, Rule.SYMBOL
    return address, False, Rule.SYMBOL


def _at_symbol(image: Image, symbol: Symbol, variant: Variant) -> Placement:
    """Rules 2 and 3."""
    at, is_emulated, rule = _entry(image, symbol.address)
    return _placement(image, symbol.name, variant, at, rule, is_emulated)


def _free(image: Image) -> list[Placement]:
    """The entry-only probe that tells when an SSL object's address may be used again."""
    symbol = image.symbol("SSL_free")
    if symbol is None:
        return []
    at = cheap_entry(image, symbol) if image.machine == X86_64 else None
    address = symbol.address if at is None else at
    code = image.code(address, _VERIFIED_BYTES)
    is_emulated = at is not None and (emulated(code) or conditional(code))
    offset = image.file_offset(address)
    return [Placement(symbol.name, Variant.READ, offset, Rule.ENTRY_ONLY, is_emulated, returns=False, code=code)]


def _placement(image: Image, function: str, variant: Variant, address: int, rule: Rule, is_emulated: bool) -> Placement:
    code = image.code(address, _VERIFIED_BYTES)
    return Placement(function, variant, image.file_offset(address), rule, is_emulated, returns=True, code=code)
