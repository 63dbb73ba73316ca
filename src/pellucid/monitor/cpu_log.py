"""What -d tells of CPUs: new code, executed blocks, registers, events, resets; laid out as QEMU does.

QEMU's `CCO=` line names its lazy flags' state; here they are always told as computed, `EFLAGS`.
"""

import itertools
import logging
from collections.abc import Sequence

from pellucid.kvm.api import CodeBlock, Event, Vcpu
from pellucid.machine.log import AddressRange
from pellucid.monitor.cpu_changes import CpuChanges
from pellucid.monitor.disassembly import block_text
from pellucid.monitor.guest_state import read_registers
from pellucid.monitor.page_tables import ReadTable
from pellucid.monitor.registers import state_text

NO_EXCEPTION = 0xFFFF_FFFF
PAGE_FAULT = 14


def _tell(item: str, text: str, *values: object) -> None:
    logging.getLogger(f"pellucid.cpu.{item}").debug(text, *values)


def _no_memory(address: int, size: int) -> None:
    """Of a vCPU without a machine."""


class CpuLog:
    """Hears one vCPU (an `Observer`) and writes what `items` ask for. `ranges`: only code there; none: all."""

    def __init__(self, index: int, vcpu: Vcpu, items: frozenset[str], ranges: Sequence[AddressRange],
                 numbers: "itertools.count[int]", read: ReadTable = _no_memory) -> None:
        self._index, self._vcpu, self._items, self._ranges, self._numbers = index, vcpu, items, ranges, numbers
        self.new_blocks = "in_asm" in items
        self._changes = CpuChanges(vcpu, items, read)
        self.blocks = bool(items & {"exec", "cpu"}) or self._changes.wanted
        self.events = "int" in items or self._changes.wanted

    def block(self, block: CodeBlock, fresh: bool) -> None:
        """in_asm, exec, cpu; what the block before this one changed."""
        self._changes.block(block)
        if self._ranges and not any(first <= block.pc <= last for first, last in self._ranges):
            return
        if fresh and self.new_blocks and block.code:
            _tell("in_asm", "----------------\nIN: \n%s", block_text(block.pc, block.code, block.bits))
        if "exec" in self._items:
            _tell("exec", "Trace %d: 0x%x [%016x/%016x/%08x/00000000] ", self._index, block.host, block.cs_base,
                  block.pc, block.mode)
        if "cpu" in self._items:
            _tell("cpu", "%s", self._state(fpu="fpu" in self._items))

    def event(self, event: Event) -> None:
        """int, and what led to it."""
        self._changes.settle()
        if event.vector == PAGE_FAULT and not (event.external or event.software):
            self._changes.page_fault(event.error)
        if "int" in self._items:
            self._tell_event(event)

    def _tell_event(self, event: Event) -> None:
        if event.external:
            _tell("int", "Servicing hardware INT=0x%02x", event.vector)
        elif not event.software:
            old = NO_EXCEPTION if event.during is None else event.during
            _tell("int", "check_exception old: 0x%x new 0x%x", old, event.vector)
        state = read_registers(self._vcpu)
        if event.merged or not state.sregs.cr0 & 1:
            return
        regs, cs = state.regs, state.sregs.cs
        more = f"CR2={state.sregs.cr2:016x}" if event.vector == PAGE_FAULT else f"env->regs[R_EAX]={regs.rax:016x}"
        _tell("int", "%6d: v=%02x e=%04x i=%d cpl=%d IP=%04x:%016x pc=%016x SP=%04x:%016x %s\n%s", next(self._numbers),
                   event.vector, event.error, event.software, state.sregs.ss.dpl, cs.selector, regs.rip,
                   cs.base + regs.rip & (1 << 64) - 1, state.sregs.ss.selector, regs.rsp, more, self._state(fpu=False))

    def reset(self) -> None:
        """cpu_reset."""
        if "cpu_reset" in self._items:
            _tell("cpu_reset", "CPU Reset (CPU %d)\n%s", self._index, self._state(fpu=True))

    def _state(self, *, fpu: bool) -> str:
        return state_text(read_registers(self._vcpu), fpu=fpu, lazy_flags=True).rstrip("\n")
