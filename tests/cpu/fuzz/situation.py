"""A random machine for a random program: mode, privilege, paging, descriptor tables, registers, memory.

Everything starts as a kernel would have set it up, then some of it is spoilt: a guest of pure noise dies at its first
fetch and shows nothing. Physical memory:

    0x00000  vectors of real mode    0x01000 GDT    0x02000 IDT    0x03000 TSS with its I/O map    0x04000 LDT
    0x05000  stacks, the last page a shadow stack     0x0A000  handlers: random code too
    0x10000  code                    0x20000  data                 0x40000  page tables and spare pages
    0xC0000  a device                0xE0000  ROM                  0xF0000  RAM of another slot; more at 4 GiB
"""

from __future__ import annotations

import random

from pellucid.cpu.state import (
    ATTR_UNUSABLE, CR0_AM, CR0_EM, CR0_ET, CR0_MP, CR0_NE, CR0_PE, CR0_PG, CR0_TS, CR0_WP, CR3_LAM_U48, CR3_LAM_U57,
    CR4_CET, CR4_DE, CR4_FSGSBASE, CR4_LA57, CR4_LAM_SUP, CR4_MCE, CR4_OSFXSR, CR4_OSXMMEXCPT, CR4_OSXSAVE, CR4_PAE,
    CR4_PCE, CR4_PCIDE, CR4_PGE, CR4_PKE, CR4_PSE, CR4_PVI, CR4_SMAP, CR4_SMEP, CR4_TSD, CR4_UMIP, CR4_VME, CS,
    EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, FEATURE_ERROR_POINTERS, FEATURE_LAM, FEATURE_PDPE1GB, FEATURE_PSE36,
    LDTR, MISC_ENABLE_MONITOR, RFLAGS_IF, RFLAGS_IOPL, RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, SS, TR)
from pellucid.isa.features import EVERYTHING, words
from pellucid.records import dataclass, field
from tests.cpu.guests import tables

from .code import Coder, repeatable
from .pages import SHADOW, TABLES_END, build_tables

LOW, ROM, ROM_SIZE, UPPER, UPPER_SIZE = 0xC0000, 0xE0000, 0x10000, 0xF0000, 0x10000
HIGH, HIGH_SIZE = 1 << 32, 0x10000
"""RAM below LOW, ROM, RAM behind it, and RAM at 4 GiB; what is between them is a device."""

GDT, IDT, TSS, LDT, STACKS, HANDLERS, CODE, DATA, TABLES = (
    0x1000, 0x2000, 0x3000, 0x4000, 0x5000, 0xA000, 0x10000, 0x20000, 0x40000)
GDT_LIMIT, LDT_LIMIT, TSS_LIMIT = 0x1FF, 0xFF, 0x6F
DEVICE = 0xC8000
MODES = ("real", "v86", "protected 16", "protected 32", "compatibility", "64-bit")

# Selectors, placed as SYSCALL and SYSRET want them.
CODE64, DATA0, CODE32, CODE16, DATA16, USER32, USER_DATA, USER64 = 0x08, 0x10, 0x18, 0x20, 0x28, 0x33, 0x3B, 0x43
USER16, USER_DATA16, TASK, LOCAL, SPARE = 0x4B, 0x53, 0x60, 0x70, 0x80
CR4_ALLOWED = CR4_LAM_SUP | 0xFF_1FFF
CET_ALLOWED = (1 << 64) - 1 - 0x3C0
FEATURES = FEATURE_PDPE1GB | FEATURE_PSE36 | FEATURE_ERROR_POINTERS | FEATURE_LAM
_CODE_BYTES, _HANDLER_BYTES = 0x400, 0x200
_PLACES = (DATA + 0x100, DATA + 0xFF8, DATA + 0x1000, CODE + 0x40, STACKS + 0x800, TABLES, DEVICE, GDT + 0x40,
           HANDLERS, ROM + 0x10, UPPER, LOW - 4)


@dataclass
class Situation:
    """Where a case starts: contents of memory, and fields of CpuState by name (arrays as lists)."""

    name: str
    bits: int
    memory: dict[int, bytes]
    state: dict[str, int | list[int]]
    seed: str
    rng: random.Random
    code: bytes = b""
    segments: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    """Segment register: selector, base, limit, attributes."""


def situation(seed: str, *, tame: bool = False) -> Situation:
    """The random case of this name. `tame`: nothing whose outcome depends on when a TLB entry goes."""
    return _Builder(seed, tame).build()


class _Builder:
    def __init__(self, seed: str, tame: bool) -> None:
        self.rng = rng = random.Random(seed)
        self.seed, self.tame = seed, tame
        self.mode = rng.choice(MODES)
        self.long = self.mode in ("compatibility", "64-bit")
        self.cpl = 0 if self.mode == "real" else 3 if self.mode == "v86" else rng.choice((0, 0, 3))
        self.bits = {"real": 16, "v86": 16, "protected 16": 16, "64-bit": 64}.get(self.mode, 32)
        if self.long:
            self.paging = rng.choice((4, 4, 5))
        else:
            self.paging = 0 if self.mode == "real" else rng.choice((0, 2, 3))
        self.memory: dict[int, bytes] = {}
        self.user_pages = self.cpl == 3 or rng.randrange(2) == 0
        self.odds = rng.choice((0, 0.02, 0.1, 0.3))  # of something being spoilt

    def spoilt(self) -> bool:
        return self.rng.random() < self.odds

    def build(self) -> Situation:
        self._fill()
        if self.tame:
            for at in (CODE, HANDLERS):
                self.memory[at] = repeatable(self.memory[at])
        state: dict[str, int | list[int]] = {}
        self._control(state)
        self._registers(state)
        self._debug(state)
        self._float(state)
        name = f"{self.mode}, CPL {self.cpl}, paging {self.paging or 'off'}"
        made = Situation(name, self.bits, self.memory, state, self.seed, self.rng, self.memory[CODE],
                         self._segments())
        made.state["rip"] = CODE if self.bits != 16 else 0x40
        if self.paging:
            state["cr3"], state["pdptr"] = build_tables(self.rng, self.memory, self.paging, self.user_pages, self.odds,
                                                        wild=not self.tame)
            state["cr3"] |= self._cr3_bits()
        return made

    def _cr3_bits(self) -> int:
        """What CR3 has beside the table's address; with LAM's bits, registers get addresses with metadata."""
        bits = self.rng.choice((0, 0, 8, 0x10)) if not self.tame else 0
        return bits | (self.rng.choice((0, 0, CR3_LAM_U57, CR3_LAM_U48)) if self.long else 0)

    # --- memory -------------------------------------------------------------------------------------------

    def _fill(self) -> None:
        rng = self.rng
        addresses = (DATA, DATA + 0x800, CODE + 0x80, STACKS + 0x400, SHADOW + 0x700, SHADOW + 0xFF8)
        if self.bits == 16:
            addresses = (0x100, 0x800, 0x2000)
        coder = Coder(rng, self.bits, addresses if self.tame else (*addresses, DEVICE, TABLES, GDT))
        self.memory[CODE] = coder.program(_CODE_BYTES, rng.choice((0, 0.1, 0.3)))
        if rng.randrange(8) == 0:
            self._begin_transaction()
        bits = 64 if self.long else self.bits
        self.memory[HANDLERS] = Coder(rng, bits, addresses).program(_HANDLER_BYTES)
        self.memory[DATA] = rng.randbytes(0x400) + bytes(0x800) + rng.randbytes(0x400)
        self.memory[DATA + 0x1000] = rng.randbytes(0x100)
        self.memory[ROM] = rng.randbytes(0x200)
        self.memory[UPPER] = self.memory[HIGH] = rng.randbytes(0x100)
        for at in (STACKS + 0x800, STACKS + 0x1800, STACKS + 0x2800, STACKS + 0x3800):
            self.memory[at] = b"".join(self._word() for _ in range(32))
        self.memory[0] = b"".join(self._vector() for _ in range(256))
        self._descriptors()
        self._gates()
        self._task()

    def _begin_transaction(self) -> None:
        """Have the program begin with XBEGIN; its fallback is a few instructions further."""
        at, distance = (0x40, b"\x20\0") if self.bits == 16 else (0, b"\x20\0\0\0")
        code = bytearray(self.memory[CODE])
        code[at:at + 2 + len(distance)] = b"\xc7\xf8" + distance
        self.memory[CODE] = bytes(code)

    def _word(self) -> bytes:
        """Something that a RET, an IRET or a POP may find."""
        rng = self.rng
        value = rng.choice((self._address(), rng.choice((CODE64, CODE32, CODE16, DATA0, USER32, USER_DATA, USER64)),
                            rng.getrandbits(12), 0x202))
        return value.to_bytes(8, "little")

    def _vector(self) -> bytes:
        rng = self.rng
        offset = rng.randrange(_HANDLER_BYTES) if not self.spoilt() else rng.getrandbits(16)
        return (offset | HANDLERS >> 4 << 16).to_bytes(4, "little")

    def _address(self) -> int:
        rng = self.rng
        return rng.choice((CODE, HANDLERS)) + rng.randrange(0x100)

    def _descriptors(self) -> None:
        s, rng = tables.segment, self.rng
        table = {
            CODE64: s(tables.CODE, bits=64), DATA0: s(tables.DATA), CODE32: s(tables.CODE),
            CODE16: s(tables.CODE, limit=0xFFFF, bits=16, base=CODE), DATA16: s(tables.DATA, limit=0xFFFF, bits=16),
            USER32: s(tables.CODE, dpl=3), USER_DATA: s(tables.DATA, dpl=3), USER64: s(tables.CODE, dpl=3, bits=64),
            USER16: s(tables.CODE, limit=0xFFFF, bits=16, base=CODE, dpl=3),
            USER_DATA16: s(tables.DATA, limit=0xFFFF, bits=16, dpl=3),
        }
        words = [0] * 64
        for selector, descriptor in table.items():
            words[selector >> 3] = descriptor ^ (1 << rng.randrange(64) if self.spoilt() else 0)
        task = tables.system_segment(tables.TSS_BUSY, TSS, TSS_LIMIT)
        local = tables.system_segment(tables.LDT, LDT, LDT_LIMIT)
        for selector, descriptor in ((TASK, task), (LOCAL, local)):
            words[selector >> 3], words[(selector >> 3) + 1] = descriptor & (1 << 64) - 1, descriptor >> 64
        for n in range(SPARE >> 3, 64):
            words[n] = self._descriptor()
        self.memory[GDT] = b"".join(word.to_bytes(8, "little") for word in words)
        self.memory[LDT] = b"".join(self._descriptor().to_bytes(8, "little") for _ in range((LDT_LIMIT + 1) // 8))

    def _descriptor(self) -> int:
        """A descriptor of any kind: segment, gate, task, or noise."""
        rng, choice = self.rng, self.rng.randrange(8)
        if choice == 0:
            return rng.getrandbits(64)
        if choice == 1:
            return self._gate(rng.choice((tables.CALL, tables.CALL16, tables.TASK_GATE))) & (1 << 64) - 1
        if choice == 2:
            kind = rng.choice((tables.TSS, tables.TSS16, tables.TSS_BUSY, tables.LDT, tables.TSS16_BUSY))
            return tables.system_segment(kind, rng.choice((TSS, LDT, DATA)), rng.choice((0x67, 0x2B, 0xFF, 5)),
                                         dpl=rng.choice((0, 3))) & (1 << 64) - 1
        limit = rng.choice((0xFFFF_FFFF, 0xFFFF, 0x7FF, 0, 0xF_FFFF))
        return tables.segment(rng.randrange(16), base=rng.choice((0, 0, CODE, DATA, DATA + 0xFF9)), limit=limit,
                              dpl=rng.choice((0, 0, 3, rng.randrange(4))), bits=rng.choice((16, 32, 64)),
                              present=rng.randrange(8) != 0)

    def _gate(self, kind: int) -> int:
        rng = self.rng
        code = CODE64 if self.long else rng.choice((CODE32, CODE32, CODE16)) if self.bits == 32 else CODE16
        offset = self._address() - (CODE if code == CODE16 else 0)
        if code == CODE16:
            offset = rng.randrange(_CODE_BYTES)
        if self.spoilt():
            code, offset = rng.choice((rng.getrandbits(16), SPARE, LOCAL, TASK, 0)), rng.getrandbits(64)
        offset &= (1 << 64) - 1 if self.long else 0xFFFF_FFFF
        return tables.gate(kind, code, offset, dpl=rng.choice((0, 3, 3)), present=rng.randrange(16) != 0,
                           ist=rng.choice((0, 0, 0, 1, 7)))

    def _gates(self) -> None:
        rng, out = self.rng, bytearray()
        for _ in range(256):
            kind = rng.choice((tables.INT, tables.TRAP, tables.INT))
            if self.spoilt():
                kind = rng.choice((tables.INT16, tables.TRAP16, tables.TASK_GATE, rng.randrange(16)))
            out += self._gate(kind).to_bytes(16, "little")[:16 if self.long else 8]
        self.memory[IDT] = bytes(out)

    def _task(self) -> None:
        """One TSS that serves as 32-bit and 64-bit one, whatever refers to it."""
        rng, raw = self.rng, bytearray(0x80 + 0x400)
        for at in range(0, 0x68, 4):
            raw[at:at + 4] = rng.choice((CODE, STACKS + 0xF00, 0x202, 0)).to_bytes(4, "little")
        for n in range(3):
            if self.long:
                raw[4 + 8 * n:12 + 8 * n] = (STACKS + 0x1000 * n + 0xFF0).to_bytes(8, "little")
            else:
                raw[4 + 8 * n:12 + 8 * n] = (STACKS + 0x1000 * n + 0xFF0 | DATA0 << 32).to_bytes(8, "little")
        if self.long:
            for n in range(7):
                raw[0x24 + 8 * n:0x2C + 8 * n] = (STACKS + 0x500 * n + 0x300).to_bytes(8, "little")
        else:
            for n, selector in enumerate((DATA0, CODE32, DATA0, DATA0, 0, 0, LOCAL)):
                raw[0x48 + 4 * n:0x4C + 4 * n] = selector.to_bytes(4, "little")
        raw[0x66:0x68] = rng.choice((0x80, 0x68, 0xFFFF)).to_bytes(2, "little")
        raw[0x80:] = bytes(rng.choice((0, 0xFF)) for _ in range(0x400))
        self.memory[TSS] = bytes(raw)

    # --- registers ----------------------------------------------------------------------------------------

    def _control(self, state: dict[str, int | list[int]]) -> None:
        rng = self.rng

        def some(chance: float, *bits: int) -> int:
            return sum(bit for bit in bits if rng.random() < chance)

        cr0 = CR0_ET | some(0.8, CR0_NE, CR0_WP, CR0_MP) | some(0.05, CR0_TS, CR0_EM) | some(0.3, CR0_AM)
        cr4 = some(0.9, CR4_OSFXSR, CR4_OSXSAVE) | some(0.5, CR4_DE, CR4_PGE, CR4_OSXMMEXCPT, CR4_FSGSBASE, CR4_PSE)
        cr4 |= some(0.15, CR4_VME, CR4_PVI, CR4_TSD, CR4_MCE, CR4_PCE, CR4_UMIP, CR4_PKE)
        if not self.user_pages or self.cpl == 3:
            cr4 |= some(0.3, CR4_SMEP, CR4_SMAP)
        efer = some(0.7, EFER_SCE, EFER_NXE)
        if self.mode != "real":
            cr0 |= CR0_PE
        if self.paging:
            cr0 |= CR0_PG
        if self.paging >= 3:
            cr4 |= CR4_PAE
        if self.long:
            efer |= EFER_LME | EFER_LMA
            cr4 |= some(0.3, CR4_LAM_SUP)
            cr4 |= (CR4_LA57 if self.paging == 5 else 0) | (some(0.2, CR4_PCIDE) if not self.tame else 0)
        state.update(cr0=cr0, cr3=0, cr4=cr4, efer=efer, xcr0=rng.choice((7, 7, 7, 3, 1)), cpl=self.cpl,
                     cr4_allowed=CR4_ALLOWED, efer_allowed=0xD01, xcr0_allowed=7, cr2=rng.getrandbits(32),
                     pkru=rng.choice((0, 0, rng.getrandbits(32))), maxphyaddr=rng.choice((36, 40, 46, 52)),
                     features=[FEATURES, *words(EVERYTHING)], misc_enable=rng.choice((0, MISC_ENABLE_MONITOR)),
                     tsc_scale=0, tsc_offset=rng.getrandbits(60), cr8=rng.choice((0, 0, rng.randrange(16))))
        self._enforcement(state)
        if rng.randrange(20) == 0:
            state["a20_mask"] = ~(1 << 20) & (1 << 64) - 1

    def _enforcement(self, state: dict[str, int | list[int]]) -> None:
        """Shadow stacks and branch tracking: on for one or both privileges, or reachable by an instruction."""
        rng = self.rng
        state["cet_allowed"] = CET_ALLOWED
        if rng.randrange(4):
            return
        state["cr0"] |= CR0_WP
        state["cr4"] |= CR4_CET
        legacy = rng.choice((0, 0, 8 | DATA, 8 | DEVICE & ~0xFFF))
        state["u_cet"], state["s_cet"] = (
            rng.choice((0, 1, 3, 4, 5, 0x37)) | legacy | rng.choice((0, 0, 0, 0x400, 0x800)) for _ in range(2))
        top = SHADOW + 0xFF8
        state["ssp"] = rng.choice((SHADOW + 0x800, SHADOW + 0x804, SHADOW + 0xF00, SHADOW, self._value()))
        state["pl_ssp"] = [rng.choice((top, top - 0x20, SHADOW + 0x700)) for _ in range(4)]
        state["ssp_table"] = SHADOW + 0x600
        words = [rng.choice((top, self._address(), CODE64, USER64, SHADOW + 0x800)) for _ in range(512)]
        for at in (top, top - 0x20):
            words[at - SHADOW >> 3] = at | rng.choice((0, 0, 0, 1))
        self.memory[SHADOW] = b"".join(word.to_bytes(8, "little") for word in words)

    def _registers(self, state: dict[str, int | list[int]]) -> None:
        rng = self.rng
        state["gpr"] = [self._value() ^ self._metadata() for _ in range(16)]
        state["gpr"][4] = rng.choice((STACKS + 0x2900, STACKS + 0x3880, STACKS + 0x1000)) if self.bits != 16 else 0x880
        if self.spoilt():
            state["gpr"][4] = self._value()
        flags = rng.getrandbits(22) & 0x24_4600 | 2
        flags |= RFLAGS_IF if rng.randrange(2) else 0
        flags |= rng.choice((0, 0, RFLAGS_IOPL, rng.getrandbits(14) & RFLAGS_IOPL))
        if rng.randrange(16) == 0:
            flags |= rng.choice((RFLAGS_TF, RFLAGS_RF, 1 << 18, 1 << 19, 1 << 20))
        if self.mode == "v86":
            flags |= RFLAGS_VM
        state.update(flags=flags & ~0x8D5, cc_kind=0, cc_src=rng.getrandbits(12) & 0x8D5)
        state.update(gdt_base=GDT, gdt_limit=GDT_LIMIT, idt_base=0 if self.mode == "real" else IDT,
                     idt_limit=0x3FF if self.mode == "real" else 0xFFF if self.long else 0x7FF)
        for name, value in (("gdt_limit", 0x2F), ("idt_limit", 0x4F), ("idt_base", DEVICE), ("gdt_base", GDT + 0x101)):
            if self.spoilt() and rng.randrange(4) == 0:
                state[name] = value
        state.update(star=CODE64 << 32 | (USER32 & ~3) << 48, lstar=self._address(), cstar=self._address(),
                     sfmask=rng.getrandbits(20), sysenter_cs=rng.choice((CODE64, CODE32, 0)),
                     sysenter_esp=STACKS + 0x2F00, sysenter_eip=self._address(), kernel_gs_base=DATA)

    def _metadata(self) -> int:
        """Bits that LAM ignores, or one that it does not."""
        rng = self.rng
        if self.bits != 64 or rng.randrange(4):
            return 0
        return rng.choice((rng.getrandbits(6) << 57, rng.getrandbits(15) << 48, rng.getrandbits(17) << 47, 1 << 63))

    def _value(self) -> int:
        rng = self.rng
        choice = rng.randrange(10)
        if self.bits == 16 and choice < 7:
            return rng.randrange(0x1000)
        if choice < 5:
            return rng.choice(_PLACES[:5] if self.tame else _PLACES) + rng.randrange(-16, 16)
        if choice < 7:
            return rng.randrange(0x100)
        if choice == 7:
            return rng.choice((0x7FFF_FFFF_FFF0, 0xFFFF_FFFF_FFFF_FFF0, 1 << 63, 0xFFFF_FFF0, HIGH + 0x20))
        return rng.getrandbits(rng.choice((8, 32, 64)))

    def _debug(self, state: dict[str, int | list[int]]) -> None:
        rng = self.rng
        dr = [0] * 8
        dr[6], dr[7] = 0xFFFF_0FF0, 0x400
        if rng.randrange(6) == 0:
            for n in range(4):
                dr[n] = rng.choice((CODE + rng.randrange(64), DATA + rng.randrange(0x400), DATA & ~7, 0x80))
            dr[7] = 0x400 | rng.getrandbits(8) | rng.getrandbits(16) << 16 | (rng.randrange(8) == 0) << 13
        state["dr"] = dr

    def _float(self, state: dict[str, int | list[int]]) -> None:
        rng = self.rng
        strict = rng.randrange(8) == 0
        state.update(fpu_cw=0x37F if not strict else rng.getrandbits(13) & 0x1F7F | 0x40, fpu_sw=0,
                     fpu_top=rng.randrange(8), fpu_tags=rng.getrandbits(8),
                     mxcsr=0x1F80 if not strict else rng.getrandbits(16))
        state["st"] = list(rng.randbytes(128))
        state["xmm"] = list(rng.randbytes(16) + bytes(48)) * 16 + [0] * 1024

    def _segments(self) -> dict[int, tuple[int, int, int, int]]:
        rng, user = self.rng, self.cpl == 3
        found = dict.fromkeys(range(8), (0, 0, 0, ATTR_UNUSABLE))
        if self.mode in ("real", "v86"):
            for n in range(6):
                selector = rng.choice((DATA >> 4, DATA >> 4, STACKS >> 4)) if n != SS else STACKS >> 4
                if n == CS:
                    selector = CODE >> 4
                found[n] = (selector, selector << 4, 0xFFFF, 0xF3 if self.mode == "v86" else 0x9B if n == CS else 0x93)
            if self.mode == "real" and self.spoilt():
                found[3] = (0, 0, 0xFFFF_FFFF, 0xC093)
        else:
            code = {"protected 16": (CODE16, USER16), "64-bit": (CODE64, USER64)}.get(self.mode, (CODE32, USER32))[user]
            data = USER_DATA if user else DATA0
            for n in range(6):
                found[n] = self._load(code if n == CS else data)
            if rng.randrange(4) == 0:
                n = rng.choice((0, 3, 4, 5))
                found[n] = rng.choice((self._load(USER_DATA16 if user else DATA16), (0, 0, 0, ATTR_UNUSABLE),
                                       (data, DATA, 0x7FF, 0x40F3), (data, 0, 0xFFF, 0x40F7)))
            if self.mode == "64-bit":
                found[5] = (0, rng.choice((0, DATA, 0xFFFF_8000_0000_0000)), 0, ATTR_UNUSABLE)
        found[TR] = (TASK, TSS, TSS_LIMIT if self.odds else 0x47F, 0x8B)
        if rng.randrange(2):
            found[LDTR] = (LOCAL, LDT, LDT_LIMIT, 0x82)
        return found

    def _load(self, selector: int) -> tuple[int, int, int, int]:
        """A segment register as loading it from the table, spoilt or not, would leave it."""
        at = selector & ~7
        d = int.from_bytes(self.memory[GDT][at:at + 8], "little")
        limit = d & 0xFFFF | d >> 32 & 0xF_0000
        base = d >> 16 & 0xFF_FFFF | d >> 32 & 0xFF00_0000
        attributes = d >> 40 & 0xF0FF
        if not attributes & 0x10 or not attributes & 0x80:
            return (selector, 0, 0xFFFF_FFFF, 0xC0F3 if self.cpl == 3 else 0xC093)
        return (selector, base, limit << 12 | 0xFFF if d >> 55 & 1 else limit, attributes)


assert TABLES_END <= LOW
