"""One processor: its state, its translated code, and `run`.

Everything here is the engine's own; what an exit means is for the KVM floor to decide.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import Any

from pellucid.cpu import smm
from pellucid.cpu.exceptions import NEXT
from pellucid.cpu.observe import Observer
from pellucid.cpu.code_cache import (
    JUMP_SETS, JUMP_WAYS, MAX_TEMPLATE_OPS, MAX_TEMPLATES, TRIE_EDGES, Block, CodeCache, JumpEntry, Op, Template,
    TrieEdge,
)
from pellucid.cpu.state import (
    EXIT_COLD, EXIT_PENDING, EXIT_TRANSLATE, FEATURE_ERROR_POINTERS, FEATURE_PDPE1GB, FEATURE_PSE36, FEATURES_ISA,
    FEATURES_SYSTEM, PENDING_REQUEST, PENDING_SAMPLE, PF, REPLAY_SLOTS, SOFT_NONE, SPACE_NORMAL, SPACE_SMM,
    STATE_BYTES, TALLY_BRANCHES, TALLY_INSTRUCTIONS, TALLY_RUNS, TLBS, TLB_BYTES, TLB_INVALID, TLB_OFFSET, TSC_FRACTION,
    CpuState, TlbEntry, slot_of,
)
from pellucid.cpu.undo_log import LONGEST, Transaction
from pellucid.engine import image as handler_image
from pellucid.engine.arrays import Array
from pellucid.engine.hot import HotCode, RegionCompiler
from pellucid.engine.learn import MAX_LENGTH, Learner, NeedMoreBytes
from pellucid.engine.memory import SlotMemory
from pellucid.engine.trace import Trace
from pellucid.isa import features
from pellucid.native import cache as disk
from pellucid.native.image import Image

log = logging.getLogger("pellucid.translate")
ARENA_BYTES = 96 << 20
U64 = (1 << 64) - 1


class Engine:
    """The handler image, linked once in a process."""

    _only: Engine | None = None
    _lock = threading.Lock()

    def __init__(self, image: Image) -> None:
        self.image = image
        self.numbers = handler_image.numbers(image)
        self.table = (ctypes.c_uint64 * len(self.numbers))(*image.address.values())
        self.fused = (ctypes.c_uint32 * len(self.numbers))(*handler_image.fused_table(self.numbers))
        s = ctypes.c_void_p
        self.run = image.function("run", ctypes.c_uint32, s)
        self.run_traced = image.function("run_traced", ctypes.c_uint32, s)
        self.deliver = image.function("deliver", ctypes.c_uint32, s)
        self.flush_all = image.function("flush_all", None, s)
        self.flush_one = image.function("flush_one", None, s, ctypes.c_uint64)
        self.refresh_mode = image.function("refresh_mode", None, s)
        self.forget_code = image.function("forget_code", None, s, ctypes.c_uint64, ctypes.c_uint64)
        self.memory_written = image.function("memory_written", None, s, ctypes.c_uint64, ctypes.c_uint64)
        self.pieces_written = image.function("pieces_written", None, s, s, ctypes.c_uint64)
        self.raise_pending = image.function("raise_pending", None, s, ctypes.c_uint64)
        self.drop_pending = image.function("drop_pending", ctypes.c_uint64, s, ctypes.c_uint64)
        self.exchange_byte = image.function("exchange_byte", ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
        self.send_nmi = image.function("send_nmi_to", None, s)
        self.take_posted = image.function("take_posted", None, s)
        self.go_to_sleep = image.function("go_to_sleep", ctypes.c_uint64, s)
        self.posted = image.function("posted", ctypes.c_uint64, s)
        self.current_block = image.function("current_block", ctypes.c_uint64, s)
        self._regions: RegionCompiler | None = None
        self.guest_tsc = image.function("read_guest_tsc", ctypes.c_uint64, s)
        self.read_tsc = image.function("read_tsc", ctypes.c_uint64)
        self.get_rflags = image.function("read_rflags", ctypes.c_uint64, s)
        self.deliver_interrupt = image.function("interrupt", ctypes.c_uint32, s, ctypes.c_uint32)
        self.translate_address = image.function("translate_address", ctypes.c_uint64, s, ctypes.c_uint64,
                                                ctypes.c_uint64)

    @classmethod
    def get(cls, progress: Any = None) -> Engine:
        """The engine of this process; compiles the image where the cache has none."""
        with cls._lock:
            if cls._only is None:
                cls._only = cls(handler_image.load(progress))
            return cls._only

    def regions(self) -> RegionCompiler:
        """The region compiler, started on first use."""
        if self._regions is None:
            self._regions = RegionCompiler(self)
        return self._regions


class Processor:
    """A guest CPU. `state` is a view of the bytes that native code works on."""

    def __init__(self, engine: Engine, memory: SlotMemory) -> None:
        self.engine, self.memory = engine, memory
        self._state = Array(STATE_BYTES)
        self.address = self._state.address
        self.table = memory.join(self._state)
        self.state = CpuState.view(self.address)
        # The same bytes as state.replay, which makes an object at each use.
        replay = (ctypes.c_uint64 * REPLAY_SLOTS).from_address(self.address + slot_of("replay"))
        self._replay = memoryview(replay).cast("B").cast("Q")
        self._jumps = Array(JUMP_SETS * JUMP_WAYS * JumpEntry.size)
        self._code = Array(CodeCache.size)
        self._arena = Array(ARENA_BYTES)
        self._trie = Array(TRIE_EDGES * TrieEdge.size)
        self._templates = Array(MAX_TEMPLATES * Template.size)
        self._template_ops = Array(MAX_TEMPLATE_OPS * Op.size)
        self._scratch = Array(Block.size + 64 * Op.size)
        self._fetch = Array(64)
        self._transaction = Array(Transaction.size)
        self._connect()
        self.learner = Learner(self._code.address, engine.numbers)
        self.trace: Trace | None = None
        self._restore()
        self.hot = HotCode(self, engine.regions())

    def _connect(self) -> None:
        state, code = self.state, CodeCache.view(self._code.address)
        state.code, state.jumps = self._code.address, self._jumps.address
        state.transaction = self._transaction.address
        Transaction.view(state.transaction).longest = LONGEST
        state.flags = 2
        state.a20_mask = (1 << 64) - 1
        state.maxphyaddr = 40
        state.features[FEATURES_SYSTEM] = FEATURE_PDPE1GB | FEATURE_PSE36 | FEATURE_ERROR_POINTERS
        state.features[FEATURES_ISA:] = features.words(features.EVERYTHING)
        state.mxcsr = 0x1F80
        state.tsc_scale = 1 << TSC_FRACTION
        state.smbase = smm.SMBASE_RESET
        empty = b"".join((0 if name == "addend" else TLB_INVALID).to_bytes(8, "little") for name in TlbEntry.fields)
        ctypes.memmove(self.address + TLB_OFFSET, empty * (TLBS * TLB_BYTES // TlbEntry.size), TLBS * TLB_BYTES)
        code.arena, code.arena_size = self._arena.address, ARENA_BYTES
        code.handlers = ctypes.addressof(self.engine.table)
        code.trie, code.templates, code.template_ops = (
            self._trie.address, self._templates.address, self._template_ops.address)
        code.fused = ctypes.addressof(self.engine.fused)
        code.scratch, code.fetch = self._scratch.address, self._fetch.address
        numbers = self.engine.numbers
        code.ud_handler, code.long_handler = numbers["undefined_op:-_0_"], numbers["too_long:-_0_"]
        code.endbranch_handler = numbers["missing_endbranch:-_0_"]
        code.limit_handler, code.counted_handler = numbers["within_limit"], numbers["counted"]
        code.record_handler = numbers["recorded"]
        code.next_handler, code.leave_handler, code.dead_handler = numbers["next"], numbers["stepped"], numbers["dead"]
        assert numbers["next_legacy"] == numbers["next"] + 1
        self.code = code

    # --- translation cache on disk -----------------------------------------------------------------------

    def _restore(self) -> None:
        raw = disk.get("translations", handler_image.key())
        if raw is not None and not self.learner.restore(raw):
            log.warning("the saved translations are damaged; starting without")
        self._saved = self.learner.templates

    def save(self) -> None:
        """Keep what was learned for the next run."""
        if self.learner.templates > self._saved:
            disk.put("translations", handler_image.key(), self.learner.save(), bound=64 << 20)
            self._saved = self.learner.templates

    # --- running -----------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until something outside the engine is needed; the exit reason (state.EXIT_*)."""
        run, address, hot = self.engine.run if self.trace is None else self.trace.run, self.address, self.hot
        while True:
            hot.running = True
            if hot.compiler.asleep:
                hot.compiler.wake()
            reason = run(address)
            hot.running = False
            if hot.wanted:
                hot.sample()
            if reason == EXIT_PENDING:
                # A sample's bit may come after its flag was served: it never leaves this loop by itself.
                if not self.engine.drop_pending(address, PENDING_SAMPLE) and not self.state.irq_window:
                    continue
            if reason == EXIT_TRANSLATE:
                self._teach()
            elif reason == EXIT_COLD:
                self._execute_cold()
            else:
                return int(reason)

    def _execute_cold(self) -> None:
        row = handler_image.table().rows[self.state.cold_row]
        self.state.budget -= self.state.counted
        self.state.in_run = 0
        row.fn(self, Op.view(self.state.cold_op))

    def _teach(self) -> None:
        code = self.code
        if code.flush_wanted:
            self.flush_code()
            return
        where = code.want
        raw = ctypes.string_at(where, min(code.want_count, 512))
        try:
            known = self.learner.learn(raw, code.want_mode)
        except NeedMoreBytes:
            code.short_at = where
            return
        if not known:
            self._remember_invalid(where, raw)

    def _remember_invalid(self, where: int, raw: bytes) -> None:
        """Tell the translator that these bytes are no instruction; it asks again should they have changed."""
        code, size = self.code, min(len(raw), MAX_LENGTH)
        code.invalid_at, code.invalid_count = where, size
        code.invalid_bytes[:size] = raw[:size]
        code.invalid_long = int(self.learner.too_long(raw, code.want_mode))

    def flush_code(self) -> None:
        """Throw away every translation of this processor (its arena is full, or memory was exchanged)."""
        self.table.forget_code()
        self._jumps.discard()
        self.hot.flush()
        self.code.arena_used = self.code.cross = self.code.flush_wanted = 0
        self.engine.flush_all(self.address)

    def show_features(self, bits: int) -> None:
        """What CPUID shows of `isa.features`: the encodings of all others raise #UD from here on."""
        words = features.words(bits)
        if words != tuple(self.state.features[FEATURES_ISA:]):
            self.state.features[FEATURES_ISA:] = words
            self.flush_code()

    def flush_tlb(self) -> None:
        """Drop every cached address translation."""
        self.engine.flush_all(self.address)

    def ask_for_sample(self) -> None:
        """Make `run` look at where it is; from any thread."""
        self.hot.wanted = True
        self.engine.raise_pending(self.address, PENDING_SAMPLE)

    def kick(self) -> None:
        """Make `run` return EXIT_PENDING soon; from any thread."""
        self.engine.raise_pending(self.address, PENDING_REQUEST)

    def send_nmi(self) -> None:
        """Send it an NMI; from any thread. A thread that sleeps is not woken."""
        self.engine.send_nmi(self.address)

    def take_posted(self) -> None:
        """What was posted to it waits now: NMIs in CpuState.nmi_pending, vectors in apic_irr; on its own thread."""
        self.engine.take_posted(self.address)

    def posted(self) -> int:
        """POSTED_* of what it has not looked at; from any thread."""
        return int(self.engine.posted(self.address))

    def sleep(self, wait: Callable[[], object]) -> int:
        """Call `wait`, during which other processors leave native code to wake this one; not where something was
        posted to it, POSTED_*.
        """
        posted = int(self.engine.go_to_sleep(self.address))
        if not posted:
            wait()
        self.state.asleep = 0
        return posted

    def current_block(self) -> int:
        """The first op of the translated block at RIP, or 0."""
        return int(self.engine.current_block(self.address))

    def close(self) -> None:
        """The processor does not run any more: save what was learned, stop sampling."""
        self.save()
        self.hot.close()

    def complete(self, value: int) -> None:
        """The access that left (port, device, MSR) is done; `value` is what it read, cut to its size."""
        state = self.state
        if state.io_count:
            self.complete_string(value.to_bytes(state.io_size, "little"))
        else:
            count = state.replay_count
            self._replay[count] = value
            state.replay_count = count + 1

    def complete_string(self, data: bytes) -> None:
        """The INS that left with a count is done for as many elements as `data` has: they are stored here."""
        # SAFETY: the instruction has left with the host address of writable RAM, and with how many elements fit there.
        state = self.state
        count = min(len(data) // state.io_size, state.io_count)
        host, length = state.io_data, count * state.io_size
        ctypes.memmove(host, data, length)
        self.memory_written([(host, length)])
        self._replay[state.replay_count] = count
        state.replay_count += 1

    def fail_msr(self) -> None:
        """The MSR access that left raises #GP(0): the instruction is executed again, before anything else."""
        self.complete(0)
        self.state.msr_fault = 1

    def observe(self, observer: Observer | None) -> None:
        """Have someone look on from the next `run` on, or nobody; on this processor's thread."""
        self.state.trace = self.state.announced = 0
        self.trace = None if observer is None else Trace(self, observer)

    def deliver_interrupt(self, vector: int) -> bool:
        """Deliver an external interrupt or NMI; False is a triple fault."""
        if self.trace is not None:
            self.trace.interrupt(vector)
        return bool(self.engine.deliver_interrupt(self.address, vector))

    def raise_page_fault(self, address: int) -> None:
        """Have a #PF without error bits, with this address, come next; between two instructions."""
        state = self.state
        state.exc_vector, state.exc_error, state.exc_has_error, state.exc_soft = PF, 0, 1, SOFT_NONE
        state.exc_address, state.delivering, state.step_once = address, NEXT, 0
        if self.trace is not None:
            self.trace.page_fault(address)

    # --- counted execution -------------------------------------------------------------------------------

    def count_instructions(self, on: bool) -> None:
        """Count retired instructions from here on, or do not; on this processor's thread, while nothing runs.

        `run` leaves with EXIT_BUDGET behind exactly as many as `grant` allows.
        """
        self.state.counted = int(on)
        self.state.spent_ahead = self.state.branch_ahead = 0
        self.grant(0)
        self.refresh_mode()

    def grant(self, budget: int) -> None:
        """How many instructions may retire from here on. Outside `run`; `CpuState.budget` says what is left."""
        state = self.state
        state.retired_end = state.retired_end + budget - state.budget & U64
        state.budget, state.short = budget, 0

    def meter(self, on: bool) -> None:
        """Tally what happens from here on, or do not (CpuState.tally): where instructions are counted."""
        state = self.state
        state.metered = int(on)
        state.level = int(state.cpl != 0)
        state.tally_from[TALLY_INSTRUCTIONS] = state.retired_end - state.budget & U64
        state.tally_from[TALLY_BRANCHES] = state.branches
        state.tally_from[TALLY_RUNS], state.in_run = state.branch_runs, 0

    def get_rflags(self) -> int:
        """RFLAGS with its lazy status flags."""
        return int(self.engine.get_rflags(self.address))

    def translate(self, linear: int) -> int | None:
        """The guest-physical address of a linear address as a read with the current privilege sees it."""
        state = self.state
        kept = (state.exit_reason, state.exc_vector, state.exc_error, state.exc_has_error, state.exc_soft,
                state.exc_address)
        found = self.engine.translate_address(self.address, linear & (1 << 64) - 1, 1)
        (state.exit_reason, state.exc_vector, state.exc_error, state.exc_has_error, state.exc_soft,
         state.exc_address) = kept
        return int(state.mmio_gpa) if found else None

    def host_of(self, linear: int) -> int | None:
        """The host address of a linear address; None where unmapped or a device."""
        gpa = self.translate(linear)
        return None if gpa is None else self.memory.host_address(gpa, smm=bool(self.state.smm))

    def forget_code(self, gpa: int, size: int) -> None:
        """Guest memory changed from outside native code; on this processor's thread, which drops what it had."""
        self.engine.forget_code(self.address, gpa, size)

    def memory_written(self, pieces: Sequence[tuple[int, int]]) -> None:
        """Likewise from any thread, by (host address, size): every processor of the VM drops what it translated before
        it executes on.
        """
        if len(pieces) == 1:
            self.engine.memory_written(self.address, *pieces[0])
        else:
            flat = array("Q", itertools.chain.from_iterable(pieces))
            self.engine.pieces_written(self.address, flat.buffer_info()[0], len(pieces))

    # --- system-management mode --------------------------------------------------------------------------

    def enter_smm(self, *, halted: bool) -> None:
        """Take an SMI, between two instructions; `halted`: the processor was in HLT."""
        state = self.state
        image = smm.capture(state, self.get_rflags(), halted)
        smm.enter(state)
        self.memory_written(self.memory.write(self._save_map, image, smm=True))
        self._switch_space()

    def leave_smm(self) -> smm.Resumed:
        """Carry out an RSM (EXIT_RSM). Where it is refused, the processor has shut down, still in SMM."""
        resumed = smm.leave(self.state, self.memory.read(self._save_map, smm.SAVE_SIZE, smm=True), self.memory.read)
        if resumed.refused is None:
            self._switch_space()
        return resumed

    def set_smm(self, on: bool) -> None:
        """Be in system-management mode or not, and leave every other register alone."""
        if bool(self.state.smm) != on:
            self.state.smm = int(on)
            self._switch_space()

    @property
    def _save_map(self) -> int:
        """The guest-physical address of the state-save map."""
        return int(self.state.smbase + smm.SAVE_MAP) & 0xFFFF_FFFF

    def _switch_space(self) -> None:
        """See the address space that CpuState.smm says. Translated code stays: it goes by host page."""
        self.state.slot_table = self.table.table(SPACE_SMM if self.state.smm else SPACE_NORMAL)
        self.flush_tlb()
        self.refresh_mode()

    def refresh_mode(self) -> None:
        """After Python changed control registers, segments or flags."""
        self.engine.refresh_mode(self.address)
