"""One processor that runs one random case after another, and what must hold after each."""

from __future__ import annotations

import ctypes
import random
import threading
import time

from pellucid.cpu.state import (
    CR0_PE, CR0_PG, CS, EFER_LMA, EFER_LME, EXIT_FERR, EXIT_HLT, EXIT_HYPERCALL, EXIT_IO, EXIT_MMIO, EXIT_MSR,
    EXIT_PENDING, EXIT_SHUTDOWN, EXIT_WAIT,
    MODE_64, MODE_SIZE, PAGE, PENDING_REQUEST, REPLAY_SLOTS, RFLAGS_IF, RFLAGS_VM, CpuState)
from pellucid.cpu.undo_log import Transaction
from pellucid.engine.arrays import Array
from pellucid.engine.memory import SlotMemory
from pellucid.engine.processor import Engine, Processor
from pellucid.records import dataclass, field
from tests.cpu.guests.machine import Untaught

from .situation import HIGH, HIGH_SIZE, LOW, ROM, ROM_SIZE, UPPER, UPPER_SIZE, Situation

_EXITS = frozenset(
    (EXIT_PENDING, EXIT_MMIO, EXIT_IO, EXIT_HLT, EXIT_SHUTDOWN, EXIT_MSR, EXIT_FERR, EXIT_HYPERCALL, EXIT_WAIT))
_SLOTS = ((0, LOW, False), (ROM, ROM_SIZE, True), (UPPER, UPPER_SIZE, False), (HIGH, HIGH_SIZE, False))
_KICK_SECONDS = 0.02
_LONGEST_RUN = 400   # exits
_LONGEST_TRANSACTION = 60   # instructions, each of which takes plain Python milliseconds


class Broken(Exception):
    """Something that must hold did not."""


@dataclass
class Trace:
    """What a run did: exits with what they asked for, and whether it ended by itself."""

    exits: list[tuple[int, ...]] = field(default_factory=list)
    ended: bool = False


class Guest:
    """Runs situations. `instructions`: how many, at most, when one steps."""

    def __init__(self) -> None:
        self.memory = SlotMemory()
        self.ram: dict[int, Array] = {}
        for number, (gpa, size, readonly) in enumerate(_SLOTS):
            self.ram[gpa] = self._array(size)
            self.memory.set_slot(number, gpa, size, self.ram[gpa].address, readonly)
        self.processor: Processor = Untaught(Engine.get(), self.memory)
        self.processor.hot.close()
        self.state = self.processor.state
        Transaction.view(self.state.transaction).longest = _LONGEST_TRANSACTION
        self._fresh = ctypes.string_at(self.processor.address, CpuState.size)

    @staticmethod
    def _array(size: int) -> Array:
        from pellucid.engine import memory

        return memory.Array(size)  # the guarded one, where guards are set

    # --- a case ---------------------------------------------------------------------------------------------

    def enter(self, case: Situation, *, keep: bool = False) -> None:
        """Put memory and every register where the case starts. `keep`: translations of unchanged bytes stay."""
        if keep:
            self.processor.flush_tlb()
            self._restore(case)
        else:
            self.processor.flush_code()
            code = [backed.backing.code for slots in self.memory._spaces for backed in slots.values()]
            for array in (*self.ram.values(), *code):
                array.discard()
            for at, content in case.memory.items():
                self.write(at, content)
        ctypes.memmove(self.processor.address, self._fresh, CpuState.size)
        s = self.state
        for name, value in case.state.items():
            if isinstance(value, list):
                getattr(s, name)[:] = value
            else:
                setattr(s, name, value)
        for n, (selector, base, limit, attributes) in case.segments.items():
            s.seg_selector[n], s.seg_base[n], s.seg_limit[n], s.seg_attr[n] = selector, base, limit, attributes
        self.processor.refresh_mode()

    def write(self, gpa: int, content: bytes) -> None:
        """Put bytes into a slot; nothing was translated from there yet."""
        for start, array in self.ram.items():
            if start <= gpa < start + array.size:
                assert gpa + len(content) <= start + array.size
                ctypes.memmove(array.address + gpa - start, content, len(content))
                return
        raise AssertionError(f"nothing at {gpa:#x}")

    def _restore(self, case: Situation) -> None:
        """Make memory what the case starts with, and have only pages that differ forgotten."""
        for start, array in self.ram.items():
            wanted = bytearray(array.size)
            for at, content in case.memory.items():
                if start <= at < start + array.size:
                    wanted[at - start:at - start + len(content)] = content
            for page in range(0, array.size, PAGE):
                content = bytes(wanted[page:page + PAGE])
                if ctypes.string_at(array.address + page, PAGE) != content:
                    ctypes.memmove(array.address + page, content, PAGE)
                    self.processor.forget_code(start + page, PAGE)

    def run(self, case: Situation, *, step: bool, events: bool, limit: int = _LONGEST_RUN) -> Trace:
        """Run the case. `step`: one instruction at a time; `events`: interrupts and NMIs come in between."""
        trace, rng = Trace(), random.Random(case.seed + "/run")
        s = self.state
        self.executed = 0
        while len(trace.exits) < limit and self.executed < limit:
            s.pending = PENDING_REQUEST if step else 0
            if step and not s.replay_count:
                s.step_once = 1
            with _watch(self.processor):
                reason = self.processor.run()
            self.check(reason)
            self.executed += 1
            if reason == EXIT_PENDING:
                if not step:
                    return trace    # it was kicked: a loop
            elif not self._answer(reason, trace, rng):
                return trace
            if events and rng.randrange(8) == 0 and not s.replay_count and not s.delivering and not self._event(rng):
                trace.exits.append((EXIT_SHUTDOWN,))
                trace.ended = True
                return trace
        return trace

    def _answer(self, reason: int, trace: Trace, rng: random.Random) -> bool:
        """Do what an exit asks for; whether the run goes on."""
        s = self.state
        if reason in (EXIT_IO, EXIT_MMIO, EXIT_MSR):
            value = rng.getrandbits(8 * s.io_size) if reason != EXIT_MSR else rng.getrandbits(64)
            written = s.io_data & (1 << 8 * min(s.io_size, 8)) - 1 if s.io_write and reason != EXIT_MSR else 0
            trace.exits.append((reason, s.io_address, s.io_size, s.io_write, written))
            if reason == EXIT_MSR and rng.randrange(2):
                self.processor.fail_msr()
            else:
                self.processor.complete(0 if s.io_write else value)
            return True
        if reason == EXIT_WAIT:
            trace.exits.append((reason, s.io_address, s.io_data, s.io_write))
            if not s.io_write or rng.randrange(4):   # MWAIT may have to wait on
                self.processor.complete(0)
            return True
        trace.exits.append((reason,))
        if reason == EXIT_HLT and s.flags & RFLAGS_IF and len(trace.exits) < 20:
            s.shadow = 0
            if self.processor.deliver_interrupt(rng.randrange(256)):
                return True
        trace.ended = True
        return False

    def _event(self, rng: random.Random) -> bool:
        """Something from outside; False is a triple fault."""
        s, kind = self.state, rng.randrange(5)
        if kind == 0 and s.flags & RFLAGS_IF and not s.shadow:
            return self.processor.deliver_interrupt(rng.randrange(256))
        if kind == 1 and not s.nmi_blocked and not s.shadow:
            s.nmi_blocked = 1
            return self.processor.deliver_interrupt(2)
        if kind == 2:
            self.processor.flush_tlb()
        elif kind == 3:
            self.processor.memory_written([(rng.randrange(LOW) & ~0xFFF, 1 << rng.randrange(13))])
        elif kind == 4:
            self.processor.translate(rng.getrandbits(rng.choice((16, 20, 48, 64))))
        return True

    # --- what must hold -------------------------------------------------------------------------------------

    def check(self, reason: int) -> None:
        """After an exit; raises Broken."""
        s = self.state
        for good, text in (
                (reason in _EXITS, f"exit reason {reason}"),
                (s.zero == 0, "the slot of absent registers is not 0"),
                (s.cpl in (0, 1, 2, 3), f"CPL {s.cpl}"),
                (not s.flags & 0x8D5, f"status flags in CpuState.flags: {s.flags:#x}"),
                (s.flags & 2 and not s.flags & ~0x3F_7702, f"RFLAGS {s.flags:#x}"),
                (not s.flags & RFLAGS_VM or s.cpl == 3 or not s.cr0 & CR0_PE, "virtual-8086 mode, but not CPL 3"),
                (s.cr0 & CR0_PE or s.cpl == 0, "real mode, but not CPL 0"),
                (s.cr0 & CR0_PE or not s.cr0 & CR0_PG, "paging without protection"),
                (bool(s.efer & EFER_LMA) == bool(s.efer & EFER_LME and s.cr0 & CR0_PG), "EFER.LMA, LME and CR0.PG"),
                ((s.mode & MODE_SIZE) == MODE_64 or s.rip <= 0xFFFF_FFFF, f"RIP {s.rip:#x} outside 64-bit mode"),
                (s.replay_count <= REPLAY_SLOTS, f"{s.replay_count} answers in the log"),
                (s.alone == 0, "CpuState.alone is left set"),
                (s.tx == 0, "a transaction is under way"),
                (s.fpu_top < 8 and s.fpu_tags < 256, f"x87 top {s.fpu_top}, tags {s.fpu_tags:#x}"),
                (not s.mxcsr & ~0x2_FFFF, f"MXCSR {s.mxcsr:#x}"),
                (s.seg_limit[CS] <= 0xFFFF_FFFF, "CS limit")):
            if not good:
                raise Broken(text)

    def snapshot(self) -> dict[str, object]:
        """Everything a guest can see: registers by name, and memory by slot."""
        s = self.state
        seen: dict[str, object] = {"rflags": self.processor.get_rflags()}
        for name in _VISIBLE:
            value = getattr(s, name)
            seen[name] = list(value) if isinstance(value, ctypes.Array) else value
        seen["st"] = [byte for n, byte in enumerate(s.st) if n % 16 < 10]  # the rest is padding
        for gpa, array in self.ram.items():
            seen[f"memory {gpa:#x}"] = ctypes.string_at(array.address, array.size)
        return seen


_VISIBLE = (
    "gpr", "rip", "cpl", "mxcsr", "shadow", "nmi_blocked", "seg_base", "seg_limit", "seg_attr", "seg_selector", "cr0",
    "cr2", "cr3", "cr4", "cr8", "efer", "xcr0", "gdt_base", "gdt_limit", "idt_base", "idt_limit", "dr", "star", "lstar",
    "cstar", "sfmask", "kernel_gs_base", "sysenter_cs", "sysenter_esp", "sysenter_eip", "tsc_aux", "pat", "pkru",
    "pdptr", "fpu_cw", "fpu_sw", "fpu_top", "fpu_tags", "xmm", "delivering", "db_pending", "flags")


class _Watch:
    """Kicks a processor that runs for long: one thread for all."""

    def __init__(self) -> None:
        self.running: Processor | None = None
        self.since = 0.0
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            time.sleep(_KICK_SECONDS / 2)
            running = self.running
            if running is not None and time.monotonic() - self.since > _KICK_SECONDS:
                running.kick()


class _watch:
    only: _Watch | None = None

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __enter__(self) -> None:
        if _watch.only is None:
            _watch.only = _Watch()
        _watch.only.since = time.monotonic()
        _watch.only.running = self.processor

    def __exit__(self, *_: object) -> None:
        assert _watch.only is not None
        _watch.only.running = None

