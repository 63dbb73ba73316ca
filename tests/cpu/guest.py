"""The oracle's cases on our own processor: a bare `Processor` at CPL 3 in the layout of `oracle.layout`.

`NativeGuest` runs compiled handlers as a guest does. `PythonGuest` runs the same functions as plain Python, one
instruction at a time: translation, handlers' wrappers and semantics, with `tail` followed by a driver here.
The third executor, compiled regions, is in `region_guest`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable
from typing import Any

from pellucid.cpu.faults import Stop
from pellucid.cpu.host import enter_guest_float, leave_guest_float
from pellucid.cpu.code_cache import Op
from pellucid.cpu.state import (
    ATTR_DB, ATTR_G, ATTR_L, ATTR_P, ATTR_S, ATTR_UNUSABLE, CR0_AM, CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_WP,
    CR4_FSGSBASE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, CR4_PAE, CR4_PGE, DB, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE,
    EXIT_EXCEPTION, EXIT_LOOKUP, EXIT_NONE, EXIT_PENDING, EXIT_SMC, EXIT_STEPPED, PENDING_REQUEST, PENDING_STEP,
    RFLAGS_TF, XMM_BYTES, CpuState, slot_of,
)
from pellucid.engine import handlers
from pellucid.engine.arrays import Array
from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine, Processor
from pellucid.engine.translate import step_block
from pellucid.native import TailCall, ptr, u64

from .oracle import layout
from .oracle.outcome import BP, GP, OF, Outcome, check_placement, classify
from .oracle.state import UserState

_PAGE = layout.PAGE
CODE_PAGES = range(layout.CODE, layout.CODE + layout.CODE_SIZE, _PAGE)
_RAM_PAGES = 64
_P, _W, _U, _A, _D, _NX = 1, 2, 4, 0x20, 0x40, 1 << 63
_SYSTEM = 0xFFFF_8000_0000_0000
_TSS, _TSS_SELECTOR, _TSS_LIMIT, _GDT_LIMIT = _SYSTEM + 0x800, 0x40, 0x67, 0x7F
_DPL3 = 3 << 5
_MAX_STEPS = 4096
_HANG_SECONDS = 5

_CODE64 = 0xB | ATTR_S | ATTR_P | _DPL3 | ATTR_L | ATTR_G
_CODE32 = 0xB | ATTR_S | ATTR_P | _DPL3 | ATTR_DB | ATTR_G
_DATA = 3 | ATTR_S | ATTR_P | _DPL3 | ATTR_DB | ATTR_G


def _descriptor(attributes: int) -> int:
    """A flat segment descriptor with these attributes (in the layout of VMX access rights)."""
    return 0xFFFF | (attributes & 0xFF) << 40 | 0xF << 48 | (attributes >> 12 & 0xF) << 52


class Space:
    """Guest memory: one RAM slot, 4-level page tables for the layout, and a supervisor page for GDT and TSS.

    The code area exists `copies` times, of which one is mapped (`select_code`).
    """

    def __init__(self, copies: int = 1) -> None:
        self.ram = Array((_RAM_PAGES + copies * len(CODE_PAGES)) * _PAGE)
        self.slots = SlotMemory()
        self.slots.set_slot(0, 0, self.ram.size, self.ram.address)
        self._free = 0
        self.root = self._page()
        self.physical: dict[int, int] = {}
        for start, size, bits in ((layout.CODE, layout.CODE_SIZE, _U), (layout.DATA, layout.DATA_SIZE, _U | _W | _NX),
                                  (layout.STACK, layout.STACK_SIZE, _U | _W | _NX),
                                  (layout.READONLY, layout.READONLY_SIZE, _U | _NX), (_SYSTEM, _PAGE, _W | _NX)):
            for address in range(start, start + size, _PAGE):
                self._map(address, bits)
        self._copies = [[self._page() for _ in CODE_PAGES] for _ in range(copies - 1)]
        self._copies.append([self.physical[page] for page in CODE_PAGES])

    def select_code(self, number: int) -> None:
        """Map this copy of the code area; the TLB is the caller's affair."""
        for linear, physical in zip(CODE_PAGES, self._copies[number], strict=True):
            self._map(linear, _U, physical)

    def _page(self) -> int:
        self._free += _PAGE
        return self._free

    def _word(self, physical: int) -> ctypes.c_uint64:
        return ctypes.c_uint64.from_address(self.ram.address + physical)

    def _map(self, linear: int, bits: int, physical: int | None = None) -> None:
        table = self.root
        for shift in (39, 30, 21):
            entry = self._word(table + (linear >> shift & 0x1FF) * 8)
            if not entry.value:
                entry.value = self._page() | _P | _W | _U | _A
            table = entry.value & ~0xFFF
        self.physical[linear] = self._page() if physical is None else physical
        self._word(table + (linear >> 12 & 0x1FF) * 8).value = self.physical[linear] | _P | _A | _D | bits

    def host(self, linear: int) -> int:
        """Where in our own process a byte of the layout is."""
        return self.ram.address + self.physical[linear & -_PAGE] + (linear & _PAGE - 1)

    def write(self, linear: int, data: bytes) -> None:
        """Put `data` within one page."""
        ctypes.memmove(self.host(linear), data, len(data))

    def read_page(self, linear: int) -> bytes:
        """The page at `linear`."""
        return ctypes.string_at(self.host(linear), _PAGE)


class Guest:
    """What both executors share: the processor, and cases in and out of it."""

    def __init__(self, space: Space | None = None) -> None:
        self.space = space or Space()
        self.processor = Processor(Engine.get(), self.space.slots)
        self.state = self.processor.state
        self._control_registers()
        self._tables()
        for page, content in layout.BACKGROUND.items():
            self.space.write(page, content)
        for page in CODE_PAGES:
            self.space.write(page, bytes([layout.INT3]) * _PAGE)
        self._dirty: set[int] = set()
        self.cases = 0
        self._code: tuple[int, int] | None = None

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        """Run one case; see `oracle.outcome.Executor`."""
        check_placement(code, state)
        self.cases += 1
        self._enter(code, state, bits)
        reason = self.execute()
        return self._leave(code, state, bits, reason)

    def run_many(self, cases: Iterable[tuple[bytes, UserState, int]]) -> list[Outcome]:
        """Run cases in order."""
        return [self.run(*case) for case in cases]

    def execute(self) -> int:
        """Run until an exception; the exit reason."""
        raise TypeError("use NativeGuest or PythonGuest")

    # --- what does not change from case to case ----------------------------------------------------------

    def _control_registers(self) -> None:
        s = self.state
        s.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
        s.cr3 = self.space.root
        s.cr4 = CR4_PAE | CR4_PGE | CR4_OSFXSR | CR4_OSXMMEXCPT | CR4_OSXSAVE | CR4_FSGSBASE
        s.efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE
        s.xcr0 = 7
        s.trap_exceptions = 1
        s.gdt_base, s.gdt_limit = _SYSTEM, _GDT_LIMIT
        s.idt_base = s.idt_limit = 0
        s.seg_selector[7], s.seg_base[7], s.seg_limit[7], s.seg_attr[7] = _TSS_SELECTOR, _TSS, _TSS_LIMIT, 0x8B
        s.seg_selector[6], s.seg_attr[6] = 0, ATTR_UNUSABLE

    def _tables(self) -> None:
        """The GDT as Linux lays it out; the TSS denies every port by having no map."""
        supervisor = ~_DPL3
        table = {1: _CODE32 & supervisor, 2: _CODE64 & supervisor, 3: _DATA & supervisor, 4: _CODE32, 5: _DATA,
                 6: _CODE64}
        for index, attributes in table.items():
            self.space.write(_SYSTEM + 8 * index, _descriptor(attributes).to_bytes(8, "little"))
        low = _TSS_LIMIT | (_TSS & 0xFF_FFFF) << 16 | 0x8B << 40 | (_TSS >> 24 & 0xFF) << 56
        self.space.write(_SYSTEM + _TSS_SELECTOR, (low | (_TSS >> 32) << 64).to_bytes(16, "little"))
        self.space.write(_TSS + 0x66, (_TSS_LIMIT + 1).to_bytes(2, "little"))

    # --- a case --------------------------------------------------------------------------------------------

    def _enter(self, code: bytes, case: UserState, bits: int) -> None:
        s = self.state
        s.gpr[:] = case.gpr
        s.rip = case.rip
        s.cc_kind, s.cc_src = 0, case.rflags & 0x8D5
        s.flags = case.rflags & ~0x8D5 | 2
        self._segments(case, bits)
        self._load_float(case)
        s.step_once = s.replay_count = s.pending = s.shadow = 0
        s.dr[6] = 0xFFFF0FF0
        self._load_memory(case)
        self._place(case.rip, code)
        self.processor.refresh_mode()

    def _segments(self, case: UserState, bits: int) -> None:
        s = self.state
        for number, (selector, attributes) in enumerate((
                (layout.SS, _DATA), (layout.CS64, _CODE64) if bits == 64 else (layout.CS32, _CODE32),
                (layout.SS, _DATA), (layout.SS, _DATA), (0, ATTR_UNUSABLE), (0, ATTR_UNUSABLE))):
            s.seg_selector[number], s.seg_attr[number] = selector, attributes
            s.seg_base[number], s.seg_limit[number] = 0, 0xFFFF_FFFF if selector else 0
        s.seg_base[4], s.seg_base[5] = case.fs_base, case.gs_base
        s.cpl = 3

    def _load_float(self, case: UserState) -> None:
        s, image = self.state, case.xsave
        top = case.fsw >> 11 & 7
        s.fpu_cw, s.fpu_sw, s.fpu_top, s.fpu_tags = case.fcw, case.fsw & ~0x3800, top, case.ftw
        s.fpu_ip = s.fpu_dp = s.fpu_opcode = s.fpu_cs = s.fpu_ds = 0
        s.mxcsr = case.mxcsr
        base = self.processor.address
        for index in range(8):
            at = base + slot_of("st") + ((top + index) & 7) * 16
            ctypes.memmove(at, bytes(image[32 + 16 * index:48 + 16 * index]), 16)
        for index in range(16):
            low, high = image[160 + 16 * index:176 + 16 * index], image[576 + 16 * index:592 + 16 * index]
            ctypes.memmove(base + slot_of("xmm") + XMM_BYTES * index, bytes(low + high), 32)

    def _load_memory(self, case: UserState) -> None:
        for page in self._dirty - case.mem.keys():
            self.space.write(page, layout.BACKGROUND[page])
        for page, content in case.mem.items():
            self.space.write(page, content)
        self._dirty = set(case.mem)

    def _place(self, rip: int, code: bytes) -> None:
        """Put the code where the case begins, and INT3 back where the last one was."""
        if self._code is not None:
            at, size = self._code
            self._put_code(at, bytes([layout.INT3]) * size)
        self._put_code(rip, code)
        self._code = (rip, len(code))

    def _put_code(self, at: int, code: bytes) -> None:
        while code:
            part = code[:_PAGE - (at & _PAGE - 1)]
            physical = self.space.physical[at & -_PAGE] + (at & _PAGE - 1)
            self.processor.engine.forget_code(self.processor.address, physical, len(part))
            self.space.write(at, part)
            at, code = at + len(part), code[len(part):]

    def _leave(self, code: bytes, case: UserState, bits: int, reason: int) -> Outcome:
        s = self.state
        out = UserState(list(s.gpr), fs_base=s.seg_base[4], gs_base=s.seg_base[5])
        if not s.seg_attr[1] & ATTR_L:
            out.gpr[4] &= 0xFFFF_FFFF  # as an exception's frame would hold it
        if bits == 32:
            out.gpr[:8] = [value & 0xFFFF_FFFF for value in out.gpr[:8]]
            out.gpr[8:] = case.gpr[8:]
        out.rflags = self.processor.get_rflags()
        # The host's record is read after an IRET to CPL 3, which turns the null selectors 1 to 3 into 0.
        out.selectors = tuple(0 if selector < 4 else selector for selector in s.seg_selector[:6])
        self._store_float(out)
        self._store_memory(out)
        out.rip = s.rip
        if reason != EXIT_EXCEPTION:
            return Outcome(out, lost=f"left with exit reason {reason}")
        error = s.exc_error if s.exc_has_error else 0
        vector, rip = s.exc_vector, s.rip
        if s.exc_soft and vector not in (BP, OF):
            vector, error = GP, vector << 3 | 2  # the gate's DPL is 0
        elif s.exc_soft:
            rip += s.exc_length
        out.rip, fault = classify(code, case.rip, rip, vector, error, s.exc_address)
        return Outcome(out, fault)

    def _store_float(self, out: UserState) -> None:
        s, base, image = self.state, self.processor.address, out.xsave
        out.fcw, out.fsw, out.ftw = s.fpu_cw, s.fpu_sw & ~0x3800 | (s.fpu_top & 7) << 11, s.fpu_tags
        out.mxcsr = s.mxcsr
        stack = ctypes.string_at(base + slot_of("st"), 128)
        for index in range(8):
            at = ((s.fpu_top + index) & 7) * 16
            image[32 + 16 * index:42 + 16 * index] = stack[at:at + 10]
        vectors = ctypes.string_at(base + slot_of("xmm"), 16 * XMM_BYTES)
        for index in range(16):
            at = index * XMM_BYTES
            image[160 + 16 * index:176 + 16 * index] = vectors[at:at + 16]
            image[576 + 16 * index:592 + 16 * index] = vectors[at + 16:at + 32]

    def _store_memory(self, out: UserState) -> None:
        for page in layout.WRITABLE_PAGES:
            content = self.space.read_page(page)
            if content != layout.BACKGROUND[page]:
                out.mem[page] = content
        self._dirty |= out.mem.keys()


class NativeGuest(Guest):
    """Compiled handlers, as a guest runs them. A case that does not end is stopped after some seconds."""

    def __init__(self, space: Space | None = None) -> None:
        super().__init__(space)
        self._seen = -1
        self._hung = False
        self._stop = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def execute(self) -> int:
        self._hung = False
        while True:
            reason = self.processor.run()
            if reason != EXIT_PENDING or self._hung:
                return reason
            self.state.pending = 0  # the engine looked what is running

    def close(self) -> None:
        """End the watchdog; keep what was learned about shapes."""
        self._stop.set()
        self.processor.save()

    def _watch(self) -> None:
        while not self._stop.wait(_HANG_SECONDS):
            if self.cases == self._seen:
                self._hung = True
                self.state.pending |= PENDING_REQUEST
            self._seen = self.cases


class PythonGuest(Guest):
    """The reference executor: every function of translation and semantics as plain Python."""

    _roots: dict[int, tuple[Any, tuple[Any, ...]]] | None = None

    def __init__(self) -> None:
        super().__init__()
        if PythonGuest._roots is None:
            addresses = self.processor.engine.image.address
            PythonGuest._roots = {
                addresses[name]: (fn, tuple(p.value for p in params[2:]))
                for name, (fn, params) in handlers.roots().items() if fn.tail}
        self._by_address = PythonGuest._roots
        self.cpu = ptr[CpuState](self.processor.address)

    def execute(self) -> int:
        s = self.state
        for _ in range(_MAX_STEPS):
            reason = self._step()
            if reason == EXIT_EXCEPTION:
                return int(EXIT_EXCEPTION)
            if reason not in (EXIT_PENDING, EXIT_LOOKUP, EXIT_STEPPED, EXIT_SMC):
                return int(reason)
            s.pending = 0
        return int(EXIT_PENDING)

    def _step(self) -> int:
        """One instruction, as `engine.run.step` does it."""
        s = self.state
        traps = bool(s.flags & RFLAGS_TF)
        while True:
            try:
                ops = step_block(self.cpu, u64(s.rip + s.cs_base))
            except Stop:
                return int(s.exit_reason)
            if ops:
                break
            self.processor._teach()
        s.pending, s.exit_reason = PENDING_STEP, EXIT_NONE
        enter_guest_float(self.cpu)
        try:
            self._follow(ptr[Op](ops))
        finally:
            leave_guest_float(self.cpu)
        if traps and s.exit_reason in (EXIT_PENDING, EXIT_LOOKUP, EXIT_STEPPED):
            s.exc_vector, s.exc_has_error, s.exc_soft = DB, 0, 0
            return int(EXIT_EXCEPTION)
        return int(s.exit_reason)

    def _follow(self, op: Any) -> None:
        """Handlers from `op` on, each called as the Python function it was compiled from."""
        target, arguments = int(op.handler), (self.cpu, op)
        while True:
            fn, constants = self._by_address[target]
            try:
                fn(*arguments, *constants)
            except TailCall as call:
                target, arguments = call.target, call.args_
            else:
                return
