"""A bare processor for single tests: no firmware, no devices; memory from 0, what lies above it is a device.

    machine = Bare(64)
    machine.load(0x1000, bytes.fromhex("f3aa f4"))
    machine.state.gpr[RCX] = 5
    assert machine.run(0x1000) == EXIT_HLT
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from pellucid.cpu.state import (
    CR0_ET, CR0_NE, CR0_PE, CR0_PG, CR4_OSFXSR, CR4_PAE, EFER_LMA, EFER_LME, EXIT_IO, EXIT_MMIO, EXIT_PENDING, PAGE, TR)
from pellucid.engine.arrays import Array
from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine, Processor
from pellucid.records import dataclass

RAM = 0x20_0000
MMIO = 0x40_0000
"""An address that no memory slot holds."""

_CODE = {16: 0x009B, 32: 0xC09B, 64: 0xA09B}
_TABLES = RAM - 0x4000


@dataclass(frozen=True)
class Access:
    """One access that left the engine."""

    address: int
    size: int
    value: int | None    # None for a read


class Bare:
    """A processor in real mode (16), flat 32-bit protected mode without paging (32), or 64-bit mode (64), at CPL 0.

    In 64-bit mode memory is mapped one to one by pages of 2 MiB, for user and supervisor. Exceptions end the run.
    `read` gives what ports and devices answer, by address and size. `beside` is another one to share memory with.
    """

    def __init__(self, bits: int, read: Callable[[int, int], int] = lambda address, size: 0,
                 beside: Bare | None = None) -> None:
        self.bits, self.read = bits, read
        self.ram: Array = Array(RAM) if beside is None else beside.ram
        self.memory: SlotMemory = SlotMemory() if beside is None else beside.memory
        if beside is None:
            self.memory.set_slot(0, 0, RAM, self.ram.address)
        self.processor = Processor(Engine.get(), self.memory)
        self.state = self.processor.state
        self.accesses: list[Access] = []
        self.reset_mode()

    def reset_mode(self) -> None:
        """Control registers and segments as they are at the start, and the page tables with them."""
        s = self.state
        s.trap_exceptions = 1
        s.cr0 = CR0_ET | CR0_NE | (0 if self.bits == 16 else CR0_PE)
        for number in range(6):
            s.seg_attr[number] = 0xC093 if self.bits != 16 else 0x93
            s.seg_limit[number] = 0xFFFF_FFFF if self.bits != 16 else 0xFFFF
        s.seg_attr[1] = _CODE[self.bits]
        s.seg_attr[TR], s.seg_limit[TR] = 0x8B, 0x67
        s.gpr[4] = 0x8000
        if self.bits == 64:
            s.cr0 |= CR0_PG
            s.cr3, s.cr4, s.efer = _TABLES, CR4_PAE | CR4_OSFXSR, EFER_LME | EFER_LMA
            self._word(_TABLES, _TABLES + 0x1000 | 7)
            self._word(_TABLES + 0x1000, _TABLES + 0x2000 | 7)
            for index in range(8):
                self._word(_TABLES + 0x2000 + 8 * index, index << 21 | 0x87)
        self.processor.refresh_mode()

    def _word(self, at: int, value: int) -> None:
        self.load(at, value.to_bytes(8, "little"))

    def load(self, at: int, data: bytes) -> None:
        """Put bytes into memory from outside, as a device does: code that was translated there is forgotten."""
        ctypes.memmove(self.ram.address + at, data, len(data))
        for page in range(at & -PAGE, at + len(data), PAGE):
            self.processor.engine.forget_code(self.processor.address, page, PAGE)

    def bytes(self, at: int, size: int) -> bytes:
        """`size` bytes of memory."""
        return ctypes.string_at(self.ram.address + at, size)

    def run(self, rip: int | None = None) -> int:
        """Run, answering ports and devices, until anything else happens: the exit reason."""
        if rip is not None:
            self.state.rip = rip
        while True:
            reason = self.processor.run()
            if reason in (EXIT_IO, EXIT_MMIO):
                self._access()
            elif reason == EXIT_PENDING:
                self.state.pending = 0
            else:
                return reason

    def _access(self) -> None:
        s = self.state
        mask = (1 << 8 * s.io_size) - 1
        value = s.io_data & mask if s.io_write else None
        self.accesses.append(Access(s.io_address, s.io_size, value))
        self.processor.complete(0 if s.io_write else self.read(s.io_address, s.io_size) & mask)
