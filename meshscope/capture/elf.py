"""What probe placement needs of an ELF file: symbols by hash, code by address, names behind the PLT.

Nothing here walks a symbol table from end to end, so a 100 MB executable answers as fast as a small library.
Source: System V ABI (gABI) chapters 4 and 5; the AMD64 psABI for relocation types.
"""

from __future__ import annotations

import struct
from functools import cached_property
from typing import BinaryIO, Final, NamedTuple

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.hash import ELFHashSection, GNUHashSection
from elftools.elf.sections import NoteSection, SymbolTableSection

X86_64: Final = "x64"
_RELA: Final = struct.Struct("<QQq")
_NAMED_SLOTS: Final = frozenset({6, 7})  # R_X86_64_GLOB_DAT, R_X86_64_JUMP_SLOT
_EXECUTABLE: Final = 1  # PF_X
# What the reader raises on a file that is cut or lies about itself.
_BROKEN: Final = (ELFError, struct.error, ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


class BadElf(Exception):  # noqa: N818 - reads as what it is at every raise
    """The file is no ELF image that can be probed; the text says why, in one line."""


class Symbol(NamedTuple):
    """A function: virtual address and size in bytes (0 when the file does not say)."""

    name: str
    address: int
    size: int


class Image:
    """One opened ELF file. The stream must stay open and is read at random.

    Raises BadElf when the file is not a 64-bit little-endian ELF object with section headers.
    """

    def __init__(self, stream: BinaryIO) -> None:
        try:
            self._elf = ELFFile(stream)
            self.machine: str = self._elf.get_machine_arch()
            if self._elf.elfclass != 64 or not self._elf.little_endian:
                raise BadElf("not a 64-bit little-endian ELF file")
            loads = [segment.header for segment in self._elf.iter_segments("PT_LOAD")]
            self._code = [(at["p_vaddr"], at["p_filesz"], at["p_offset"]) for at in loads if at["p_flags"] & _EXECUTABLE]
            self._sections = {section.name: section for section in self._elf.iter_sections()}
        except _BROKEN as error:
            raise BadElf(f"not an ELF file: {error}") from None
        self._stream = stream

    @cached_property
    def build_id(self) -> str:
        """The linker's fingerprint of the contents as hex, empty when the file has none."""
        section = self._sections.get(".note.gnu.build-id")
        if not isinstance(section, NoteSection):
            return ""
        try:
            return next((str(note["n_desc"]) for note in section.iter_notes() if note["n_type"] == "NT_GNU_BUILD_ID"), "")
        except _BROKEN:
            return ""

    def symbol(self, name: str) -> Symbol | None:
        """The exported function of that name, None when the file does not define it."""
        try:
            for table in map(self._sections.get, (".gnu.hash", ".hash", ".symtab")):
                if isinstance(table, GNUHashSection | ELFHashSection):
                    found = table.get_symbol(name)
                elif isinstance(table, SymbolTableSection):  # old static builds: read from end to end, once
                    found = next(iter(table.get_symbol_by_name(name) or ()), None)
                else:
                    continue
                if found is None or found["st_shndx"] == "SHN_UNDEF" or not found["st_value"]:
                    return None
                return Symbol(name, int(found["st_value"]), int(found["st_size"]))
        except _BROKEN as error:
            raise BadElf(f"broken symbol table: {error}") from None
        return None

    def file_offset(self, address: int) -> int:
        """Where in the file the code at a virtual address lies: what a uprobe is placed by. Raises BadElf outside code."""
        for start, size, offset in self._code:
            if start <= address < start + size:
                return int(address - start + offset)
        raise BadElf(f"address {address:#x} lies in no executable segment")

    def code(self, address: int, size: int) -> bytes:
        """Up to `size` bytes of code; fewer at the end of the file, none outside executable segments."""
        try:
            self._stream.seek(self.file_offset(address))
        except BadElf:
            return b""
        return self._stream.read(size)

    @cached_property
    def _plt(self) -> list[tuple[int, int]]:
        stubs = [section for name, section in self._sections.items() if name.startswith((".plt", ".iplt"))]
        return [(section["sh_addr"], section["sh_addr"] + section["sh_size"]) for section in stubs]

    def in_plt(self, address: int) -> bool:
        """The address is a linkage stub, not a function of this file."""
        return any(start <= address < end for start, end in self._plt)

    def plt_name(self, address: int) -> str:
        """The symbol that the stub at `address` jumps to, empty when it cannot be told.

        A stub is `[endbr64] [bnd] jmp *slot(%rip)`; the relocation of the slot carries the name.
        """
        stub = self.code(address, 16)
        at = stub.find(b"\xff\x25")
        if at < 0 or at + 6 > len(stub):
            return ""
        slot = address + at + 6 + int.from_bytes(stub[at + 2 : at + 6], "little", signed=True)
        try:
            return self._slot_name(slot)
        except _BROKEN:
            return ""

    def _slot_name(self, slot: int) -> str:
        for name in (".rela.plt", ".rela.dyn"):
            section = self._sections.get(name)
            if section is None:
                continue
            data = section.data()
            for offset, info, _ in _RELA.iter_unpack(data[: len(data) // _RELA.size * _RELA.size]):
                if offset == slot and info & 0xFFFFFFFF in _NAMED_SLOTS:
                    names = self._elf.get_section(section["sh_link"])
                    return str(names.get_symbol(info >> 32).name) if isinstance(names, SymbolTableSection) else ""
        return ""
