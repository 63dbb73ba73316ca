"""Single instructions at CPL 0 in real, protected and 64-bit mode, interpreted and as compiled regions.

What the oracle's host cannot be asked for: privileged instructions, 16-bit code and segments with limits. Both
executors start from the very same bytes of state and memory, and everything that a guest can see must end the same.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator

import iced_x86

from pellucid.cpu.code_cache import Block, Op
from pellucid.cpu.state import (
    CET_SHADOW, CET_TRACK, CET_WRITE_SHADOW, CR0_TS, CR0_WP, CR4_CET, CR4_OSFXSR, CR4_OSXSAVE, EXIT_EXCEPTION,
    MODE_SIZE, PAGE, RFLAGS_STATUS, CpuState, slot_of,
)
from pellucid.isa import forms
from pellucid.isa.all import TABLE
from pellucid.isa.table import BRANCH, PLAIN
from pellucid.native.program import Program
from pellucid.records import dataclass

from .bare import RAM, Bare
from .oracle.catalog import mnemonic_name, op_info
from .oracle.encoding import variants
from .region_guest import Compiled

CODE, SPACING, PROGRAMS, LONGEST = 0x1000, 64, 96, 15
LOW = 0x8_0000
"""What is restored and compared of memory: as far as a base and a scaled index reach."""
DATA, STACK, SHADOW = 0x8000, 0xF000, 0x6_0000
HLT = 0xF4
_VISIBLE = (
    "gpr rip flags mode cpl mxcsr shadow seg_base seg_limit seg_attr seg_selector cr0 cr2 cr3 cr4 cr8 efer xcr0 "
    "gdt_base idt_base gdt_limit idt_limit dr st fpu_cw fpu_sw fpu_top fpu_tags xmm ssp s_cet").split()
_EXCEPTION = "exc_vector exc_error exc_has_error exc_address exc_soft".split()
_UNBUILT = "VEX_KNC_"
UNREPEATABLE = ("rdtsc", "rdtscp", "rdrand")
"""Rows whose results differ from one time to the next."""


@dataclass(frozen=True)
class Single:
    """Machine code at `at`, and the instruction that it begins with."""

    at: int
    code: bytes
    row: str
    text: str


class Modes(Bare):
    """A processor that runs programs of one instruction, each at a place of its own."""

    def __init__(self, bits: int) -> None:
        super().__init__(bits, read=lambda address, size: int.from_bytes(bytes([HLT]) * size, "little"))
        self.processor.hot.close()
        end = CODE + SPACING * PROGRAMS + PAGE - 1 & -PAGE
        self.memory.set_slot(0, 0, CODE, self.ram.address)
        self.memory.set_slot(1, CODE, end - CODE, self.ram.address + CODE, readonly=True)  # no program kills another
        self.memory.set_slot(2, end, RAM - end, self.ram.address + end)
        self.code = self.processor.engine.image.code
        self.names = list(self.processor.engine.numbers)
        self.program = Program()
        self.reached: set[int] = set()
        self.state.cr4 |= CR4_OSFXSR | CR4_OSXSAVE
        self.state.xcr0, self.state.cr4_allowed, self.state.fpu_cw = 7, self.state.cr4, 0x37F
        tables = ctypes.string_at(self.ram.address + RAM - 4 * PAGE, 4 * PAGE)
        ctypes.memset(self.ram.address, HLT, RAM - 4 * PAGE)
        assert ctypes.string_at(self.ram.address + RAM - 4 * PAGE, 4 * PAGE) == tables
        self._keep()
        self._ram_before = ctypes.string_at(self.ram.address, LOW)

    def _keep(self) -> None:
        """Start every program from the state as it is now."""
        self.processor.refresh_mode()
        self._state_before = ctypes.string_at(self.processor.address, CpuState.size)

    def trap_fpu(self) -> None:
        """Set CR0.TS."""
        self.state.cr0 |= CR0_TS
        self._keep()

    def enforce_control_flow(self) -> None:
        """Shadow stack and branch tracking at CPL 0; in 64-bit mode the shadow stack lies in a page of its kind."""
        s = self.state
        s.cr0, s.cr4 = s.cr0 | CR0_WP, s.cr4 | CR4_CET
        s.cet_allowed = s.s_cet = CET_SHADOW | CET_WRITE_SHADOW | CET_TRACK
        s.ssp = SHADOW
        if self.bits == 64:
            self._word(RAM - 0x2000 + 8, 0xE1)  # 2 to 4 MiB is memory from 0 again: dirty, not writable
            s.ssp += RAM
        self._keep()

    # --- programs ----------------------------------------------------------------------------------------

    def programs(self, wanted: set[int], rng: random.Random) -> Iterator[list[Single]]:
        """For each wanted handler one program that begins with it, where this mode has one; a batch at a time."""
        batch: list[Single] = []
        for code, name in forms.CODE_NAMES.items():
            found, info = TABLE.find(mnemonic_name(code), name), op_info(code)
            exists = info.mode64 if self.bits == 64 else info.mode32
            if found is None or found[1].ends not in (PLAIN, BRANCH) or not exists or name.startswith(_UNBUILT):
                continue
            every = [variant.data for variant in variants(code, 26, rng, 64 if self.bits == 64 else 32)]
            if "repne" in found[1].rep:
                every += [b"\xf2" + data for data in every]
            if found[1].asize:
                every += [b"\x67" + data for data in every]
            for data in every:
                made = self._program(data, CODE + SPACING * len(batch), wanted)
                if made is not None:
                    batch.append(made)
                if len(batch) == PROGRAMS:
                    yield batch
                    batch = []
        if batch:
            yield batch

    def _program(self, data: bytes, at: int, wanted: set[int]) -> Single | None:
        """The program, if it begins with a wanted handler, which is then not wanted any more."""
        decoder = iced_x86.Decoder(self.bits, data.ljust(LONGEST, bytes([HLT])), ip=at)
        instruction = decoder.decode()
        if instruction.is_invalid or instruction.code == 0:
            return None
        if instruction.near_branch_target and CODE <= instruction.near_branch_target <= at:
            return None  # a loop, perhaps for ever
        found = TABLE.find(mnemonic_name(instruction.code), forms.CODE_NAMES[instruction.code])
        if found is None:
            return None
        ops, _, _ = self.processor.learner._ops(instruction, decoder.get_constant_offsets(instruction), self.state.mode)
        number = ops[-1]["handler"]
        address = self.processor.engine.image.address[self.names[number]]
        if address not in wanted:
            return None
        wanted.discard(address)
        code = data.ljust(LONGEST, bytes([HLT]))[:instruction.len]
        return Single(at, code, found[1].name, f"{instruction}  [{code.hex()}]")

    def single(self, number: int, code: bytes) -> Single:
        """The program of that number in its batch, from its code."""
        return Single(CODE + SPACING * number, code, "", code.hex())

    # --- running -----------------------------------------------------------------------------------------

    def differences(self, batch: list[Single], rng: random.Random) -> list[str]:
        """Run each program in a few states, both ways; what differs."""
        for program in batch:
            self.load(program.at, program.code + bytes([HLT]))
        self._ram_before = ctypes.string_at(self.ram.address, LOW)
        starts = [(program, rng.getrandbits(64)) for program in batch for _ in range(3)]
        interpreted = [self._run(program, seed) for program, seed in starts]
        compiled = self._compile(batch)
        found = []
        for (program, seed), expected in zip(starts, interpreted, strict=True):
            number = (program.at - CODE) // SPACING
            before = compiled.entered(number)
            got = self._run(program, seed)
            if compiled.entered(number) == before:
                found.append(f"{program.text}: its region was not executed")
            elif program.row not in UNREPEATABLE:
                found += [f"{program.text}: {name} interpreted {expected[name]!r} compiled {got.get(name)!r}"
                          for name in expected if expected[name] != got.get(name)]
        for program in batch:
            self.load(program.at, bytes([HLT]) * SPACING)
        self.processor.flush_code()
        return found

    def _compile(self, batch: list[Single]) -> Compiled:
        source, hot = self.processor.hot.source, self.processor.hot
        code, blocks = self.processor.code, {}
        at = code.arena
        while at < code.arena + code.arena_used:
            header = Block.view(at)
            if not header.dead and not header.host2 and (header.mode ^ self.state.mode) & MODE_SIZE == 0:
                blocks[header.gpa] = header.ops
            at += Block.size + header.count * Op.size
        regions = {}
        for program in batch:
            pieces = source.region(blocks[program.at]) if program.at in blocks else []
            if pieces:
                regions[(program.at - CODE) // SPACING] = pieces
        compiled = Compiled(self.program, regions, self.code)
        for number, pieces in regions.items():
            hot._install(hot.generation, pieces, compiled.entries[number])  # type: ignore[arg-type]
            self.reached.update(step.handler for piece in pieces for step in piece.steps)
        return compiled

    def _run(self, program: Single, seed: int) -> dict[str, object]:
        self._set_up(seed)
        reason = self.run(program.at)
        result: dict[str, object] = {"reason": reason, "accesses": list(self.accesses)}
        names = _VISIBLE + (_EXCEPTION if reason == EXIT_EXCEPTION else [])
        for name in names:
            field = CpuState.fields[name]
            result[name] = ctypes.string_at(self.processor.address + field.offset, field.type.size)
        result["rflags"] = self.processor.get_rflags()
        ram = ctypes.string_at(self.ram.address, LOW)
        result["memory"] = ram
        return result

    def _set_up(self, seed: int) -> None:
        """Registers and memory as they are before the program that `seed` belongs to."""
        rng, s = random.Random(seed), self.state
        self.processor.flush_tlb()
        self.accesses.clear()
        pending = bytes(self._state_before)
        ctypes.memmove(self.processor.address, pending, len(pending))
        ctypes.memmove(self.ram.address, self._ram_before, LOW)
        for number in range(16):
            s.gpr[number] = rng.choice((DATA + 16 * rng.randrange(0x600), rng.randrange(6), rng.getrandbits(64)))
        s.gpr[1], s.gpr[4] = rng.randrange(6), STACK
        s.cc_kind, s.cc_src = 0, rng.getrandbits(12) & RFLAGS_STATUS
        s.fpu_tags = rng.choice((0, 0xFF))
        ctypes.memmove(self.processor.address + slot_of("xmm"), rng.randbytes(1024), 1024)
        self.processor.refresh_mode()
