"""-d mmu and -d pcall: what instructions did to control registers, A20 and far pointers, and why pages faulted.

A log of blocks hears what comes next, so a change is told of when the instruction that makes it, which ends its block,
has been executed: the next block, instruction or event finds the processor behind it. QEMU writes the same lines for
CR0, CR3 and A20; for far transfers (in protected mode) it has lines only where it was built to debug them.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import iced_x86 as iced

from pellucid.kvm.api import CodeBlock, Vcpu
from pellucid.monitor.page_tables import ReadTable, layout_of
from pellucid.monitor.page_walk import translate, walk
from pellucid.records import dataclass

CR0_PE, RFLAGS_VM = 1, 1 << 17
_MNEMONICS = {
    iced.Mnemonic.IRET: "iret", iced.Mnemonic.IRETD: "iret", iced.Mnemonic.IRETQ: "iret", iced.Mnemonic.RETF: "lret",
}  # fmt: skip
_FAULT_BITS = ("protection", "write", "user", "reserved bit", "fetch", "protection key", "shadow stack")
_LONGEST = 15


def ending(code: bytes, bits: int) -> tuple[str, int]:
    """What the last instruction of a block does, "" or "CR0", "CR3", "lcall", "ljmp", "lret", "iret"; its offset."""
    instructions = list(iced.Decoder(bits, code, ip=0))
    return (_kind(instructions[-1]), int(instructions[-1].ip)) if instructions else ("", 0)


_ending = functools.lru_cache(maxsize=1 << 12)(ending)


def _kind(instruction: Any) -> str:
    if instruction.mnemonic in _MNEMONICS:
        return _MNEMONICS[instruction.mnemonic]
    if instruction.is_call_far or instruction.is_call_far_indirect:
        return "lcall"
    if instruction.is_jmp_far or instruction.is_jmp_far_indirect:
        return "ljmp"
    if instruction.mnemonic == iced.Mnemonic.LMSW or instruction.op0_register == iced.Register.CR0:
        return "CR0" if instruction.mnemonic in (iced.Mnemonic.LMSW, iced.Mnemonic.MOV) else ""
    return "CR3" if instruction.op0_register == iced.Register.CR3 else ""


@dataclass(frozen=True)
class Place:
    """Where a processor is."""

    cs: int
    rip: int
    cpl: int


class CpuChanges:
    """The two items for one vCPU; `read` gives guest-physical memory."""

    def __init__(self, vcpu: Vcpu, items: frozenset[str], read: ReadTable) -> None:
        self._vcpu, self._read = vcpu, read
        self._mmu, self._pcall = "mmu" in items, "pcall" in items
        self._due: tuple[str, Place] | None = None
        self._a20 = vcpu.a20

    @property
    def wanted(self) -> bool:
        """Either of them is."""
        return self._mmu or self._pcall

    def block(self, block: CodeBlock) -> None:
        """`block` comes next."""
        self.settle()
        kind, offset = _ending(block.code or self._first(block), block.bits)
        if kind and (self._mmu if kind.startswith("CR") else self._pcall):
            here = self._place()
            self._due = kind, Place(here.cs, here.rip + offset, here.cpl)

    def settle(self) -> None:
        """Tell of what is done: the processor is behind the instruction, else it faulted there and goes on later."""
        if self._mmu and self._vcpu.a20 != self._a20:
            self._a20 = self._vcpu.a20
            self._tell("mmu", f"A20 update: a20={self._a20:d}")
        if self._due is None:
            return
        (kind, start), self._due = self._due, None
        here = self._place()
        if (here.cs, here.rip) != (start.cs, start.rip):
            self._tell_change(kind, start, here)

    def _tell_change(self, kind: str, start: Place, here: Place) -> None:
        sregs = self._vcpu.get_sregs()
        if kind == "CR0":
            self._tell("mmu", f"CR0 update: CR0=0x{sregs.cr0:08x}")
        elif kind == "CR3":
            self._tell("mmu", f"CR3 update: CR3={sregs.cr3:016x}")
        elif sregs.cr0 & CR0_PE:
            places = f"{start.cs:04x}:{start.rip:016x} -> {here.cs:04x}:{here.rip:016x}"
            v86 = " (virtual-8086)" if self._vcpu.get_regs().rflags & RFLAGS_VM else ""
            self._tell("pcall", f"{kind} {places} cpl={start.cpl} -> {here.cpl}{v86}")

    def page_fault(self, error: int) -> None:
        """A #PF is about to be delivered: the walk of CR2, and what it was refused for."""
        if not self._mmu:
            return
        sregs = self._vcpu.get_sregs()
        layout = layout_of(sregs)
        reasons = [name for bit, name in enumerate(_FAULT_BITS) if error >> bit & 1] or ["read"]
        if not error & 1:
            reasons.insert(0, "not present")
        steps = list(walk(layout, self._read, sregs.cr2)) if layout else []
        walked = ", ".join(f"{step.name} {_hex(step.value)} at 0x{step.address:x}" for step in steps)
        self._tell("mmu", f"page fault: CR2={sregs.cr2:016x} e={error:04x} ({', '.join(reasons)}): {walked}")

    def _place(self) -> Place:
        sregs = self._vcpu.get_sregs()
        return Place(sregs.cs.selector, self._vcpu.get_regs().rip, sregs.ss.dpl)

    def _first(self, block: CodeBlock) -> bytes:
        """The instruction that is executed alone, as far as it is mapped."""
        layout, code = layout_of(self._vcpu.get_sregs()), b""
        for linear in range(block.pc, block.pc + _LONGEST):
            physical = translate(layout, self._read, linear)
            piece = None if physical is None else self._read(physical, 1)
            if piece is None:
                break
            code += piece
        return code[: iced.Decoder(block.bits, code, ip=0).decode().len]

    _tell: Callable[[str, str], None] = staticmethod(
        lambda item, text: logging.getLogger(f"pellucid.cpu.{item}").debug("%s", text)
    )


def _hex(value: int | None) -> str:
    return "(no RAM)" if value is None else f"0x{value:x}"
