"""Linking LLVM's object images into code that runs at any address (System V ABI, AMD64 supplement, chapter 4).

The target machine makes position-independent code of the small model, so that all there is to resolve are distances.
Calls out of the image go through a jump to a slot beside the code, which is filled when the code is mapped.
"""

from __future__ import annotations

import io
import struct

from pellucid.native.code import Layout
from pellucid.native.errors import NativeError
from pellucid.records import dataclass, field

_SYMBOL, _RELOCATION = struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
_WORD, _SLOT = struct.Struct("<i"), struct.Struct("<Q")
_ALLOCATED, _LOCAL, _SECTION = 2, 0, 3
R_X86_64_PC32, R_X86_64_PLT32 = 2, 4
_JUMP = b"\xff\x25\x02\x00\x00\x00\x66\x90"
"""JMP [RIP+2] and padding: a jump by way of the eight bytes that follow it."""


@dataclass
class _Section:
    """An allocated section and where it was put."""

    at: int
    relocations: bytes = b""


@dataclass
class _Object:
    """One object image: its allocated sections by number, its symbols, their names."""

    sections: dict[int, _Section] = field(default_factory=dict)
    symbols: list[tuple[int, ...]] = field(default_factory=list)
    names: bytes = b""

    def name(self, symbol: tuple[int, ...]) -> str:
        start = symbol[0]
        return self.names[start:self.names.index(b"\0", start)].decode()


def lay_out(images: list[bytes]) -> Layout:
    """Link object images. Raises NativeError for a relocation that the target machine should not make."""
    code = bytearray()
    objects = [_read(image, code) for image in images]
    symbols = {item.name(symbol): item.sections[symbol[3]].at + symbol[4]
               for item in objects for symbol in item.symbols
               if symbol[1] >> 4 != _LOCAL and symbol[3] in item.sections}
    linked = _Linked(code, symbols)
    for item in objects:
        for section in item.sections.values():
            linked.relocate(item, section)
    return Layout(bytes(code), symbols, linked.imports)


def _read(image: bytes, code: bytearray) -> _Object:
    """Append the allocated sections of an object image to the code."""
    result, relocations = _Object(), []
    from elftools.elf.elffile import ELFFile  # not needed where everything comes out of the cache

    for number, section in enumerate(ELFFile(io.BytesIO(image)).iter_sections()):
        kind, size = section["sh_type"], section["sh_size"]
        if kind == "SHT_RELA":
            relocations.append(section)
        elif kind == "SHT_SYMTAB":
            result.symbols = list(_SYMBOL.iter_unpack(section.data()))
        elif kind == "SHT_STRTAB":
            result.names = section.data()
        elif section["sh_flags"] & _ALLOCATED and size:
            code += bytes(-len(code) % section["sh_addralign"])
            result.sections[number] = _Section(len(code))
            code += section.data()
    for section in relocations:
        if section["sh_info"] in result.sections:
            result.sections[section["sh_info"]].relocations = section.data()
    return result


class _Linked:
    """The code while it is relocated, with the jumps to the outside that it turns out to need."""

    def __init__(self, code: bytearray, symbols: dict[str, int]) -> None:
        self.code, self.symbols = code, symbols
        self.imports: dict[str, int] = {}

    def relocate(self, item: _Object, section: _Section) -> None:
        for offset, info, addend in _RELOCATION.iter_unpack(section.relocations):
            if info & 0xFFFF_FFFF not in (R_X86_64_PC32, R_X86_64_PLT32):
                raise NativeError(f"an object image has a relocation of type {info & 0xFFFF_FFFF}: only distances "
                                  "are linked; declare every symbol dso_local")
            place = section.at + offset
            _WORD.pack_into(self.code, place, self._target(item, item.symbols[info >> 32]) + addend - place)

    def _target(self, item: _Object, symbol: tuple[int, ...]) -> int:
        if symbol[3] in item.sections:
            return item.sections[symbol[3]].at + symbol[4]
        name = item.name(symbol)
        return self.symbols[name] if name in self.symbols else self._jump(name)

    def _jump(self, name: str) -> int:
        """The jump to an outside name."""
        if name not in self.imports:
            self.code += bytes(-len(self.code) % 16) + _JUMP + bytes(_SLOT.size)
            self.imports[name] = len(self.code) - _SLOT.size
        return self.imports[name] - len(_JUMP)
