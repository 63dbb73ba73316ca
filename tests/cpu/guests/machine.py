"""A bare processor with 2 MiB of RAM, tables laid out in it, and devices that are Python callables.

    0x01000  GDT            0x02000  IDT          0x03000  TSS (0x03800 a second one)     0x04000  LDT
    0x05000  stacks: ring 0 up to 0x08000, of the TSS up to 0x09000, IST 1 up to 0x0A000, ring 3 up to 0x0C000
    0x10000  code           0x20000  data         0x40000 and on: page tables
    0x0F000  handlers: vector n's is HLT at 0x0F000 + n (`caught` says which one the processor stopped in)

Beyond RAM is device space.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pellucid.cpu.state import (
    ATTR_UNUSABLE,
    CR0_ET,
    CR0_NE,
    CR0_PE,
    CR0_PG,
    CR0_WP,
    CR4_LA57,
    CR4_OSFXSR,
    CR4_PAE,
    CR4_PSE,
    CS,
    EFER_LMA,
    EFER_LME,
    EFER_NXE,
    EFER_SCE,
    EXIT_EXCEPTION,
    EXIT_HLT,
    EXIT_IO,
    EXIT_MMIO,
    EXIT_MSR,
    EXIT_PENDING,
    EXIT_SHUTDOWN,
    LDTR,
    RFLAGS_STATUS,
    RFLAGS_VM,
    SS,
    TR,
)
from pellucid.engine.arrays import Array
from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine, Processor
from pellucid.records import dataclass

from . import tables
from .asm import Assembled, assemble
from .tables import PageTables

RAM = 2 << 20
GDT, IDT, TSS_AT, TSS2_AT, LDT_AT = 0x1000, 0x2000, 0x3000, 0x3800, 0x4000
STACK0, STACK_TSS, STACK_IST, STACK3 = 0x8000, 0x9000, 0xA000, 0xC000
HANDLERS, CODE, DATA, TABLES = 0xF000, 0x10000, 0x20000, 0x40000
DEVICE = 0xFED0_0000

# Selectors. Code and data of each privilege stand as SYSCALL and SYSRET want them.
CODE64, DATA0, CODE32, CODE16, DATA16 = 0x08, 0x10, 0x18, 0x20, 0x28
USER32, USER_DATA, USER64 = 0x33, 0x3B, 0x43
CONFORMING, TSS, LDT = 0x48, 0x50, 0x60
SPARE = 0x70  # and every eight bytes up to 0xF8
GDT_LIMIT, TSS_LIMIT = 0xFF, 0x67
CR4_ALLOWED = 0x17F_1FFF  # everything but VMX, SMX, CET, and what is beyond PKS
_HANG = 5.0  # seconds after which a guest that does not stop is stopped


@dataclass(frozen=True)
class Stop:
    """Why the guest stopped, with the vector whose handler it reached (or None)."""

    reason: int
    vector: int | None = None


class Untaught(Processor):
    """A processor that learns every instruction shape by itself: reading what others learned takes longer."""

    def _restore(self) -> None:
        self._saved = 1 << 32


class Machine:
    """See the module's text. `trace` collects device accesses: ("in" | "out" | "read" | "write", address, size)."""

    def __init__(self, *, maxphyaddr: int = 40, ram: Array | None = None, processor: Processor | None = None) -> None:
        """`processor` comes with memory that has `ram`, RAM bytes, at 0."""
        self.ram = ram or Array(RAM)
        if processor is None:
            self.memory = SlotMemory()
            self.memory.set_slot(0, 0, RAM, self.ram.address)
            processor = Untaught(Engine.get(), self.memory)
        self.processor = processor
        self.processor.hot.close()  # which code gets compiled would depend on time
        self.state = self.processor.state
        self.trace: list[tuple[str, int, int, int]] = []
        self.device: Callable[[int, int], int] = lambda address, size: 0
        self.msrs: dict[int, int] = {}
        self.pages: PageTables | None = None
        self._next_table = TABLES
        self.labels: dict[str, int] = {}
        s = self.state
        s.cr4_allowed, s.efer_allowed, s.xcr0_allowed, s.maxphyaddr = CR4_ALLOWED, 0xD01, 7, maxphyaddr
        s.dr[6], s.dr[7] = 0xFFFF_0FF0, 0x400
        s.fpu_cw = 0x37F
        self._descriptors()

    # --- memory -----------------------------------------------------------------------------------------

    def read(self, gpa: int, size: int) -> int:
        """A little-endian number in RAM."""
        return int.from_bytes(self.read_bytes(gpa, size), "little")

    def write(self, gpa: int, value: int, size: int) -> None:
        """Write a little-endian number as a device does: translated code there is forgotten."""
        self.write_bytes(gpa, value.to_bytes(size, "little"))

    def read_bytes(self, gpa: int, size: int) -> bytes:
        assert 0 <= gpa and gpa + size <= RAM
        return ctypes.string_at(self.ram.address + gpa, size)

    def write_bytes(self, gpa: int, content: bytes) -> None:
        assert 0 <= gpa and gpa + len(content) <= RAM
        ctypes.memmove(self.ram.address + gpa, content, len(content))
        self.processor.forget_code(gpa, len(content))

    def words(self, gpa: int, count: int, size: int) -> list[int]:
        """`count` numbers of `size` bytes from `gpa` on."""
        return [self.read(gpa + i * size, size) for i in range(count)]

    def load(self, source: str, at: int = CODE, bits: int = 64, **symbols: int) -> Assembled:
        """Assemble to `at`; its labels join `labels`."""
        done = assemble(source, at, bits, {**self.labels, **symbols})
        self.write_bytes(at, done.code)
        self.labels |= done.labels
        return done

    def allocate(self) -> int:
        """A zeroed page for page tables."""
        page = self._next_table
        self._next_table += 0x1000
        self.write_bytes(page, bytes(0x1000))
        return page

    # --- tables -----------------------------------------------------------------------------------------

    def _descriptors(self) -> None:
        for selector, descriptor in (
            (CODE64, tables.segment(tables.CODE, bits=64)),
            (DATA0, tables.segment(tables.DATA)),
            (CODE32, tables.segment(tables.CODE)),
            (CODE16, tables.segment(tables.CODE, limit=0xFFFF, bits=16)),
            (DATA16, tables.segment(tables.DATA, limit=0xFFFF, bits=16)),
            (USER32, tables.segment(tables.CODE, dpl=3)),
            (USER_DATA, tables.segment(tables.DATA, dpl=3)),
            (USER64, tables.segment(tables.CODE, dpl=3, bits=64)),
            (CONFORMING, tables.segment(tables.CONFORMING)),
        ):
            self.describe(selector, descriptor)
        self.describe(TSS, tables.system_segment(tables.TSS_BUSY, TSS_AT, TSS_LIMIT), 16)
        self.describe(LDT, tables.system_segment(tables.LDT, LDT_AT, 0xFF), 16)
        self.write_bytes(HANDLERS, b"\xf4" * 256)
        s = self.state
        s.gdt_base, s.gdt_limit, s.idt_base, s.idt_limit = GDT, GDT_LIMIT, IDT, 0xFFF
        s.seg_selector[TR], s.seg_base[TR], s.seg_limit[TR] = TSS, TSS_AT, TSS_LIMIT
        s.seg_attr[TR] = 0x8B
        s.seg_selector[LDTR], s.seg_base[LDTR], s.seg_limit[LDTR], s.seg_attr[LDTR] = 0, 0, 0, ATTR_UNUSABLE

    def describe(self, selector: int, descriptor: int, size: int = 8) -> None:
        """Put a descriptor into the GDT, or into the LDT where the selector says so."""
        table = LDT_AT if selector & 4 else GDT
        self.write(table + (selector & ~7), descriptor, size)

    def descriptor(self, selector: int) -> int:
        """The eight bytes that the table holds now."""
        return self.read((LDT_AT if selector & 4 else GDT) + (selector & ~7), 8)

    def gate(self, vector: int, **changes: Any) -> None:
        """Put a gate into the IDT: by default an interrupt gate of the mode, DPL 3, to the vector's handler."""
        long = bool(self.state.efer & EFER_LMA)
        fields = {"kind": tables.INT, "selector": CODE64 if long else CODE32, "offset": HANDLERS + vector, "dpl": 3}
        size = 16 if long else 8
        self.write(IDT + vector * size, tables.gate(**{**fields, **changes}), size)

    def gates(self, **changes: Any) -> None:
        """The same for every vector."""
        for vector in range(256 if not self.state.efer & EFER_LMA else 255):
            self.gate(vector, **changes)

    # --- modes ------------------------------------------------------------------------------------------

    def real(self, source: str = "hlt", *, cs: int = 0, sp: int = 0x7000) -> None:
        """Real mode at CS:label `start` or CODE; the vector table leads to the handlers."""
        s = self.state
        s.cr0, s.cr4, s.efer, s.cpl = CR0_ET, 0, 0, 0
        for n in range(6):
            s.seg_selector[n], s.seg_base[n], s.seg_limit[n], s.seg_attr[n] = 0, 0, 0xFFFF, 0x93
        s.seg_selector[CS], s.seg_base[CS], s.seg_attr[CS] = cs, cs << 4, 0x9B
        s.idt_base, s.idt_limit = 0, 0x3FF
        for vector in range(256):
            self.write(vector * 4, HANDLERS + vector, 4)
        self._start(source, 16, at=0xC000, base=cs << 4)
        s.gpr[4] = sp

    def protected(
        self, source: str = "hlt", *, bits: int = 32, cpl: int = 0, paging: int = 0, cr4: int = 0, gates: bool = True
    ) -> None:
        """Protected mode, flat segments (`bits` 16: CODE16 and DATA16); `paging`: 0, 2 or 3 (PAE) levels."""
        s = self.state
        s.cr0, s.cr4, s.efer = CR0_PE | CR0_ET | CR0_NE, cr4 | CR4_OSFXSR, 0
        code, data = (CODE32, DATA0) if bits == 32 else (CODE16, DATA16)
        if cpl == 3:
            assert bits == 32
            code, data = USER32, USER_DATA
        self._segments(code, data, cpl)
        self._tss32()
        if gates:
            self.gates()
        if paging:
            self._paging(paging)
        at = CODE if bits == 32 else 0xC000
        self._start(source, bits, at=at)
        s.gpr[4] = STACK0 if cpl == 0 else STACK3

    def long(self, source: str = "hlt", *, cpl: int = 0, compat: bool = False, levels: int = 4, cr4: int = 0) -> None:
        """64-bit or compatibility mode, identity-mapped as user pages."""
        s = self.state
        s.efer = EFER_LME | EFER_LMA | EFER_NXE | EFER_SCE
        s.cr0, s.cr4 = CR0_PE | CR0_ET | CR0_NE | CR0_WP, cr4 | CR4_PAE | CR4_OSFXSR | (CR4_LA57 if levels == 5 else 0)
        code = (USER32 if compat else USER64) if cpl == 3 else (CODE32 if compat else CODE64)
        self._segments(code, USER_DATA if cpl == 3 else DATA0, cpl)
        self._tss64()
        self.gates()
        self._paging(levels)
        s.star, s.lstar, s.sfmask = CODE64 << 32 | (USER32 & ~3) << 48, HANDLERS + 0xFF, 0x200
        self._start(source, 32 if compat else 64, at=CODE)
        s.gpr[4] = STACK0 if cpl == 0 else STACK3

    def _segments(self, code: int, data: int, cpl: int) -> None:
        s = self.state
        for n in range(6):
            self.set_segment(n, code if n == CS else data)
        s.cpl = cpl

    def set_segment(self, n: int, selector: int) -> None:
        """Load a segment register from its table, unchecked."""
        s, d = self.state, self.descriptor(selector)
        limit = d & 0xFFFF | d >> 32 & 0xF_0000
        s.seg_selector[n], s.seg_base[n] = selector, d >> 16 & 0xFF_FFFF | d >> 32 & 0xFF00_0000
        s.seg_limit[n] = limit << 12 | 0xFFF if d >> 55 & 1 else limit
        s.seg_attr[n] = d >> 40 & 0xF0FF

    def _tss32(self) -> None:
        self.write_bytes(TSS_AT, bytes(TSS_LIMIT + 1))
        self.write(TSS_AT + 4, STACK_TSS, 4)
        self.write(TSS_AT + 8, DATA0, 4)
        self.write(TSS_AT + 0x66, TSS_LIMIT + 1, 2)

    def _tss64(self) -> None:
        self.write_bytes(TSS_AT, bytes(TSS_LIMIT + 1))
        self.write(TSS_AT + 4, STACK_TSS, 8)
        self.write(TSS_AT + 36, STACK_IST, 8)
        self.write(TSS_AT + 0x66, TSS_LIMIT + 1, 2)

    def _paging(self, levels: int) -> None:
        self.pages = PageTables(levels, self.read, self.write, self.allocate)
        self.pages.identity(RAM)
        s = self.state
        s.cr3 = self.pages.root
        if levels == 2:
            s.cr4 |= CR4_PSE
        if levels == 3:
            s.cr4 |= CR4_PAE
            s.efer |= EFER_NXE
            self.load_pdptrs()
        s.cr0 |= CR0_PG

    def load_pdptrs(self) -> None:
        """PAE's four registers from the table at CR3."""
        for i in range(4):
            self.state.pdptr[i] = self.read(self.state.cr3 + 8 * i, 8)

    def _start(self, source: str, bits: int, at: int, base: int = 0) -> None:
        done = assemble(source, at, bits, self.labels)
        self.write_bytes(base + at, done.code)
        self.labels |= done.labels
        self.state.rip = done.labels.get("start", at)
        self.refresh()

    # --- running ----------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """After registers were changed from here."""
        self.processor.flush_tlb()
        self.processor.refresh_mode()

    def run(self) -> Stop:
        """Run until HLT, a triple fault or a request from outside; device accesses are answered by `device`."""
        with _watched(self):
            while True:
                reason = self.processor.run()
                if reason in (EXIT_IO, EXIT_MMIO):
                    self._device(reason == EXIT_IO)
                elif reason == EXIT_MSR:
                    self._msr()
                else:
                    return Stop(reason, self.caught if reason == EXIT_HLT else None)

    def catch(self) -> int:
        """Run; the vector whose handler was reached, which must be one."""
        stop = self.run()
        assert stop.vector is not None, self.explain(stop)
        return stop.vector

    @property
    def caught(self) -> int | None:
        """The vector in whose handler the processor just halted."""
        vector = self.state.rip + self.state.cs_base - HANDLERS - 1
        return vector if 0 <= vector < 256 else None

    def explain(self, stop: Stop) -> str:
        """For a failing test: where the processor is."""
        s = self.state
        names = {EXIT_HLT: "HLT", EXIT_SHUTDOWN: "shutdown", EXIT_PENDING: "pending", EXIT_EXCEPTION: "exception"}
        return (
            f"{names.get(stop.reason, stop.reason)} at {s.seg_selector[CS]:#x}:{s.rip:#x}, last exception "
            f"{s.exc_vector} error {s.exc_error:#x} address {s.exc_address:#x}, history {self.history()}"
        )

    def history(self) -> list[tuple[int, int, int]]:
        """The last exceptions, oldest first: vector, error, RIP."""
        s = self.state
        first = max(0, s.history_at - 16)
        entries = [(n & 15) * 4 for n in range(first, s.history_at)]
        return [(s.history[at] & 0xFFFF_FFFF, s.history[at] >> 32, s.history[at + 1]) for at in entries]

    def _device(self, port: bool) -> None:
        s = self.state
        address, size = s.io_address, s.io_size
        if s.io_write:
            self.trace.append(("out" if port else "write", address, size, s.io_data & (1 << size * 8) - 1))
            self.processor.complete(0)
        else:
            value = self.device(address, size) & (1 << size * 8) - 1
            self.trace.append(("in" if port else "read", address, size, value))
            self.processor.complete(value)

    def _msr(self) -> None:
        s = self.state
        if s.io_address not in self.msrs:
            self.processor.fail_msr()
        elif s.io_write:
            self.msrs[s.io_address] = s.io_data
            self.processor.complete(0)
        else:
            self.processor.complete(self.msrs[s.io_address])

    # --- what tests look at -----------------------------------------------------------------------------

    @property
    def rflags(self) -> int:
        return self.processor.get_rflags()

    @rflags.setter
    def rflags(self, value: int) -> None:
        s = self.state
        s.cc_kind, s.cc_src, s.flags = 0, value & RFLAGS_STATUS, value & ~RFLAGS_STATUS | 2
        if value & RFLAGS_VM:
            s.cpl = 3
        self.processor.refresh_mode()

    def stack(self, count: int, size: int) -> list[int]:
        """`count` numbers from the top of the stack."""
        s = self.state
        base = 0 if s.seg_attr[CS] & 1 << 13 and s.efer & EFER_LMA else s.seg_base[SS]
        return self.words(base + (s.gpr[4] & s.sp_mask), count, size)

    def interrupt(self, vector: int) -> bool:
        """An external interrupt between two instructions."""
        return self.processor.deliver_interrupt(vector)


class _Watch:
    """One thread that stops whichever guest runs for too long."""

    def __init__(self) -> None:
        self.machine: Machine | None = None
        self.turn = 0
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        tick = threading.Event()
        seen = -1
        while not tick.wait(_HANG):
            machine = self.machine
            if machine is not None and seen == self.turn:
                machine.state.pending |= 1
            seen = self.turn


_watch: _Watch | None = None


@contextlib.contextmanager
def _watched(machine: Machine) -> Iterator[None]:
    global _watch
    if _watch is None:
        _watch = _Watch()
    _watch.machine, _watch.turn = machine, _watch.turn + 1
    try:
        yield
    finally:
        _watch.machine = None
