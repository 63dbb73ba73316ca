"""System-management mode: what SMI saves and sets, what RSM checks and loads (SDM vol. 3, chapter 31; AMD64 manual
vol. 2, chapter 10).

The state-save map is the last 512 bytes of the 64 KiB at SMBASE. A processor with long mode uses AMD's 64-bit layout
(AMD64 manual vol. 2, table 10-1; revision 0x20064), another one the 32-bit layout (SDM vol. 3, table 31-1; revision
0x20000): those that firmware and hypervisors agree on. Revision bit 17 says that SMBASE may be moved; bit 16 is clear,
so that the I/O restart fields mean nothing: they are saved as 0 and not read. x87 and SSE registers are not saved.

All of this is plain Python: an SMI costs two look-ups of guest memory and about a hundred field accesses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from pellucid.cpu.breakpoints import valid_dr6
from pellucid.cpu.flags import CC_EFLAGS
from pellucid.cpu.state import (
    ATTR_DB, ATTR_DPL_SHIFT, ATTR_L, ATTR_P, ATTR_UNUSABLE, CR0_CD, CR0_EM, CR0_ET, CR0_NW, CR0_PE, CR0_PG, CR0_TS,
    CR0_WP, CR4_CET, CR3_LAM_U48, CR3_LAM_U57, CR4_PAE, CR4_PCIDE, CS, DR7_FIXED, DS, EFER_LMA, EFER_LME,
    ES, FEATURES_SYSTEM, FEATURE_LAM, FS, GS, LDTR, RFLAGS_FIXED, RFLAGS_STATUS, RFLAGS_VM, SHADOW_MOV_SS,
    SHADOW_STI, SS, TR)
from pellucid.native import u64
from pellucid.records import dataclass

SMBASE_RESET = 0x3_0000
ENTRY_POINT, SAVE_MAP, SAVE_SIZE = 0x8000, 0xFE00, 0x200
"""From SMBASE."""
REVISION_64, REVISION_32 = 0x2_0064, 0x2_0000
CR0_DEFINED = 0xE005_003F
RFLAGS_DEFINED = 0x3F_7FD5
U32, U64 = (1 << 32) - 1, (1 << 64) - 1
# KVM's numbers for the interrupt shadow in the map (KVM_X86_SHADOW_INT_*) and the engine's.
_SHADOWS = {0: 0, 1: SHADOW_MOV_SS, 2: SHADOW_STI}

ReadMemory = Callable[[int, int], bytes]
"""Guest-physical bytes (address, size), as seen outside system-management mode."""


@dataclass(slots=True)
class SavedState:
    """What a state-save map holds, in one form for both layouts. Segments by number; an attribute word is that of
    `CpuState.seg_attr` without ATTR_UNUSABLE.
    """

    gpr: list[int]
    rip: int
    rflags: int
    cr0: int
    cr3: int
    cr4: int
    efer: int
    dr6: int
    dr7: int
    selectors: list[int]
    attributes: list[int]
    limits: list[int]
    bases: list[int]
    gdt: tuple[int, int]
    """(base, limit); likewise."""
    idt: tuple[int, int]
    smbase: int
    auto_halt: int = 0
    """The processor was in HLT: where the field is still set, RSM goes back there."""
    shadow: int = 0
    """KVM_X86_SHADOW_INT_*."""
    ssp: int = 0
    """The shadow-stack pointer, in the 64-bit layout only."""


def has_long_mode(s: Any) -> bool:
    """Whether the processor has the 64-bit layout."""
    return bool(s.efer_allowed & EFER_LME)


# --- the 64-bit layout -----------------------------------------------------------------------------------

_SEGMENTS_64 = {ES: 0xFE00, CS: 0xFE10, SS: 0xFE20, DS: 0xFE30, FS: 0xFE40, GS: 0xFE50, LDTR: 0xFE70, TR: 0xFE90}
_SEGMENT_64 = struct.Struct("<HHIQ")
_TABLE_64 = struct.Struct("<4xIQ")
_GDTR_64, _IDTR_64 = 0xFE60, 0xFE80
_FLAGS_64 = struct.Struct("<BBBB")         # I/O restart, auto-halt restart, NMI mask, interrupt shadow
_AT_FLAGS_64, _AT_EFER_64, _AT_SSP_64 = 0xFEC8, 0xFED0, 0xFF18
_BASE_64 = struct.Struct("<II")            # revision, SMBASE
_AT_REVISION = 0xFEFC
_REGISTERS_64 = struct.Struct("<23Q")      # CR4, CR3, CR0, DR7, DR6, RFLAGS, RIP, R15 to R8, RDI ... RAX
_AT_REGISTERS_64 = 0xFF48


def pack_64(state: SavedState) -> bytes:
    """The map in the 64-bit layout."""
    image = bytearray(SAVE_SIZE)
    for n, at in _SEGMENTS_64.items():
        _SEGMENT_64.pack_into(image, at - SAVE_MAP, state.selectors[n], state.attributes[n], state.limits[n],
                              state.bases[n])
    for at, (base, limit) in ((_GDTR_64, state.gdt), (_IDTR_64, state.idt)):
        _TABLE_64.pack_into(image, at - SAVE_MAP, limit, base)
    _FLAGS_64.pack_into(image, _AT_FLAGS_64 - SAVE_MAP, 0, state.auto_halt, 0, state.shadow)
    struct.pack_into("<Q", image, _AT_EFER_64 - SAVE_MAP, state.efer)
    struct.pack_into("<Q", image, _AT_SSP_64 - SAVE_MAP, state.ssp)
    _BASE_64.pack_into(image, _AT_REVISION - SAVE_MAP, REVISION_64, state.smbase)
    _REGISTERS_64.pack_into(image, _AT_REGISTERS_64 - SAVE_MAP, state.cr4, state.cr3, state.cr0, state.dr7, state.dr6,
                            state.rflags, state.rip, *reversed(state.gpr))
    return bytes(image)


def unpack_64(image: bytes) -> SavedState:
    """What a map in the 64-bit layout says."""
    cr4, cr3, cr0, dr7, dr6, rflags, rip, *gpr = _REGISTERS_64.unpack_from(image, _AT_REGISTERS_64 - SAVE_MAP)
    _, auto_halt, _, shadow = _FLAGS_64.unpack_from(image, _AT_FLAGS_64 - SAVE_MAP)
    _, smbase = _BASE_64.unpack_from(image, _AT_REVISION - SAVE_MAP)
    segments = [_SEGMENT_64.unpack_from(image, _SEGMENTS_64[n] - SAVE_MAP) for n in range(8)]
    selectors, attributes, limits, bases = (list(column) for column in zip(*segments, strict=True))
    gdt, idt = (_TABLE_64.unpack_from(image, at - SAVE_MAP)[::-1] for at in (_GDTR_64, _IDTR_64))
    (efer,) = struct.unpack_from("<Q", image, _AT_EFER_64 - SAVE_MAP)
    (ssp,) = struct.unpack_from("<Q", image, _AT_SSP_64 - SAVE_MAP)
    return SavedState(gpr[::-1], rip, rflags, cr0, cr3, cr4, efer, dr6, dr7, selectors, attributes, limits, bases,
                      gdt, idt, smbase, auto_halt & 1, shadow, ssp)


# --- the 32-bit layout -----------------------------------------------------------------------------------

_SEGMENTS_32 = {ES: 0xFF84, CS: 0xFF90, SS: 0xFF9C, DS: 0xFF2C, FS: 0xFF38, GS: 0xFF44, LDTR: 0xFF78, TR: 0xFF5C}
_SEGMENT_32 = struct.Struct("<III")        # attributes, limit, base
_SELECTORS_32 = {ES: 0xFFA8, CS: 0xFFAC, SS: 0xFFB0, DS: 0xFFB4, FS: 0xFFB8, GS: 0xFFBC, LDTR: 0xFFC0, TR: 0xFFC4}
_TABLE_32 = struct.Struct("<II")           # limit, base
_GDTR_32, _IDTR_32 = 0xFF70, 0xFF54
_AT_SMBASE_32, _AT_AUTO_HALT_32, _AT_CR4_32, _AT_SHADOW_32 = 0xFEF8, 0xFF02, 0xFF14, 0xFF1A
_REGISTERS_32 = struct.Struct("<14I")      # DR7, DR6, EAX ... EDI, EIP, EFLAGS, CR3, CR0
_AT_REGISTERS_32 = 0xFFC8


def pack_32(state: SavedState) -> bytes:
    """The map in the 32-bit layout."""
    image = bytearray(SAVE_SIZE)
    for n, at in _SEGMENTS_32.items():
        _SEGMENT_32.pack_into(image, at - SAVE_MAP, state.attributes[n], state.limits[n], state.bases[n] & U32)
        struct.pack_into("<I", image, _SELECTORS_32[n] - SAVE_MAP, state.selectors[n])
    for at, (base, limit) in ((_GDTR_32, state.gdt), (_IDTR_32, state.idt)):
        _TABLE_32.pack_into(image, at - SAVE_MAP, limit, base & U32)
    struct.pack_into("<II", image, _AT_SMBASE_32 - SAVE_MAP, state.smbase, REVISION_32)
    struct.pack_into("<H", image, _AT_AUTO_HALT_32 - SAVE_MAP, state.auto_halt)
    struct.pack_into("<I", image, _AT_CR4_32 - SAVE_MAP, state.cr4)
    image[_AT_SHADOW_32 - SAVE_MAP] = state.shadow
    words = (state.dr7, state.dr6, *state.gpr[:8], state.rip, state.rflags, state.cr3, state.cr0)
    _REGISTERS_32.pack_into(image, _AT_REGISTERS_32 - SAVE_MAP, *(word & U32 for word in words))
    return bytes(image)


def unpack_32(image: bytes) -> SavedState:
    """What a map in the 32-bit layout says."""
    dr7, dr6, *gpr, rip, rflags, cr3, cr0 = _REGISTERS_32.unpack_from(image, _AT_REGISTERS_32 - SAVE_MAP)
    attributes, limits, bases = (
        list(column) for column in zip(*(_SEGMENT_32.unpack_from(image, _SEGMENTS_32[n] - SAVE_MAP) for n in range(8)),
                                       strict=True))
    selectors = [struct.unpack_from("<H", image, _SELECTORS_32[n] - SAVE_MAP)[0] for n in range(8)]
    gdt, idt = (_TABLE_32.unpack_from(image, at - SAVE_MAP)[::-1] for at in (_GDTR_32, _IDTR_32))
    (smbase,) = struct.unpack_from("<I", image, _AT_SMBASE_32 - SAVE_MAP)
    (cr4,) = struct.unpack_from("<I", image, _AT_CR4_32 - SAVE_MAP)
    return SavedState([*gpr, *(0,) * 8], rip, rflags, cr0, cr3, cr4, 0, dr6, dr7, selectors,
                      [word & 0xFFFF for word in attributes], limits, bases, gdt, idt, smbase,
                      image[_AT_AUTO_HALT_32 - SAVE_MAP] & 1, image[_AT_SHADOW_32 - SAVE_MAP])


# --- SMI -------------------------------------------------------------------------------------------------


def capture(s: Any, rflags: int, halted: bool) -> bytes:
    """The state-save map of a processor (`s` is its CpuState, `rflags` with the status flags) at an SMI."""
    shadow = next(number for number, ours in _SHADOWS.items() if ours == s.shadow)
    state = SavedState(
        list(s.gpr), s.rip, rflags, s.cr0, s.cr3, s.cr4, s.efer, s.dr[6], s.dr[7], list(s.seg_selector),
        [attr & 0xF0FF if not attr & ATTR_UNUSABLE else attr & 0xF07F for attr in s.seg_attr], list(s.seg_limit),
        list(s.seg_base), (s.gdt_base, s.gdt_limit), (s.idt_base, s.idt_limit), s.smbase, int(halted), shadow, s.ssp)
    return pack_64(state) if has_long_mode(s) else pack_32(state)


def enter(s: Any) -> None:
    """Registers as the SMI handler finds them (SDM vol. 3, table 31-4). The caller switches address spaces.

    Real mode with limits of 4 GiB; the IDT's limit is 0, so that an exception before LIDT shuts the processor down.
    """
    s.smm, s.smi_due = 1, 0
    s.smm_inside_nmi, s.nmi_blocked = int(bool(s.nmi_blocked)), 1
    s.smm_db_pending, s.db_pending = s.db_pending, 0
    s.shadow = s.step_once = s.replay_count = s.irq_window = 0
    s.rip = ENTRY_POINT
    _set_flags(s, RFLAGS_FIXED)
    s.cr0 &= ~(CR0_PE | CR0_EM | CR0_TS | CR0_PG)
    s.cr4 = 0
    if has_long_mode(s):
        s.efer = 0
    s.dr[7] = DR7_FIXED
    s.idt_base = s.idt_limit = 0
    for n in (ES, CS, SS, DS, FS, GS):
        s.seg_selector[n], s.seg_base[n], s.seg_limit[n], s.seg_attr[n] = 0, 0, U32, 0x8093
    s.seg_selector[CS], s.seg_base[CS] = s.smbase >> 4 & 0xFFFF, s.smbase
    s.cpl = 0


def _set_flags(s: Any, rflags: int) -> None:
    s.cc_kind, s.cc_src = CC_EFLAGS, rflags & RFLAGS_STATUS
    s.flags = rflags & ~RFLAGS_STATUS | RFLAGS_FIXED


# --- RSM -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Resumed:
    """How RSM ended: `refused` says why the processor shuts down instead, None where it goes on; `halted`: in HLT."""

    refused: str | None = None
    halted: bool = False


def leave(s: Any, image: bytes, read_memory: ReadMemory) -> Resumed:
    """RSM with the state-save map `image`. Where it is refused, nothing has changed. The caller switches spaces."""
    if has_long_mode(s):
        state = unpack_64(image)
    else:
        state = unpack_32(image)
        state.efer = s.efer  # not in that layout, and left alone by SMI
    lma = bool(state.efer & EFER_LME and state.cr0 & CR0_PG)
    state.efer = state.efer & ~EFER_LMA | (EFER_LMA if lma else 0)
    refused = _check(s, state)
    pdptrs: list[int] = []
    if refused is None and state.cr0 & CR0_PG and state.cr4 & CR4_PAE and not lma:
        pdptrs = list(struct.unpack("<4Q", read_memory(state.cr3 & 0xFFFF_FFE0 & s.a20_mask, 32)))
        reserved = 0x1E6 | U64 << s.maxphyaddr & U64
        if any(entry & 1 and entry & reserved for entry in pdptrs):
            refused = "reserved bits in a page-directory-pointer entry"
    if refused is not None:
        return Resumed(f"RSM: {refused}")
    for i, entry in enumerate(pdptrs):
        s.pdptr[i] = entry
    _load(s, state)
    return Resumed(halted=bool(state.auto_halt))


def _check(s: Any, state: SavedState) -> str | None:
    """What no processor can go on with (SDM vol. 3, 31.5; AMD64 manual vol. 2, 10.4.3), or None."""
    cr0, cr4, efer = state.cr0, state.cr4, state.efer
    lma = efer & EFER_LMA
    rules = (
        (cr0 >> 32, "CR0 has bits above 31"),
        (cr0 & CR0_PG and not cr0 & CR0_PE, "CR0.PG without CR0.PE"),
        (cr0 & CR0_NW and not cr0 & CR0_CD, "CR0.NW without CR0.CD"),
        (cr4 & ~s.cr4_allowed, "CR4 has reserved bits"),
        (efer & ~(s.efer_allowed | EFER_LMA), "EFER has reserved bits"),
        (lma and not cr4 & CR4_PAE, "IA-32e mode without CR4.PAE"),
        (cr4 & CR4_CET and not cr0 & CR0_WP, "CR4.CET without CR0.WP"),
        (cr4 & CR4_PCIDE and not lma, "CR4.PCIDE outside IA-32e mode"),
        (lma and (state.cr3 & (U64 << s.maxphyaddr) & ~_lam_bits(s)), "CR3 has reserved bits"),
        (lma and state.attributes[CS] & ATTR_L and state.attributes[CS] & ATTR_DB, "CS.L and CS.D"),
        ((state.dr6 | state.dr7) >> 32, "DR6 or DR7 has bits above 31"),
    )
    return next((text for broken, text in rules if broken), None)


def _lam_bits(s: Any) -> int:
    """LAM_U57 and LAM_U48, where CPUID tells of them."""
    return CR3_LAM_U48 | CR3_LAM_U57 if s.features[FEATURES_SYSTEM] & FEATURE_LAM else 0


def _load(s: Any, state: SavedState) -> None:
    lma, protected = bool(state.efer & EFER_LMA), bool(state.cr0 & CR0_PE)
    s.smm = 0
    s.smbase = state.smbase
    if not s.smm_inside_nmi:
        s.nmi_blocked = 0
    s.db_pending, s.smm_db_pending, s.smm_inside_nmi = s.smm_db_pending, 0, 0
    s.shadow = _SHADOWS.get(state.shadow, 0)
    if has_long_mode(s):
        s.ssp = state.ssp & ~3
    s.step_once = s.replay_count = s.irq_window = 0
    for n, value in enumerate(state.gpr if has_long_mode(s) else state.gpr[:8]):
        s.gpr[n] = value
    s.cr0, s.cr4, s.efer = state.cr0 & CR0_DEFINED | CR0_ET, state.cr4, state.efer
    s.cr3 = state.cr3 if lma else state.cr3 & U32
    s.dr[6], s.dr[7] = int(valid_dr6(s, u64(state.dr6))), state.dr7 & 0xFFFF_23FF | DR7_FIXED
    _load_segments(s, state, lma)
    rflags = state.rflags & RFLAGS_DEFINED
    if lma or not protected:
        rflags &= ~RFLAGS_VM
    _set_flags(s, rflags)
    s.rip = state.rip if lma and state.attributes[CS] & ATTR_L else state.rip & U32
    s.cpl = 0 if not protected else 3 if rflags & RFLAGS_VM else state.attributes[SS] >> ATTR_DPL_SHIFT & 3


def _load_segments(s: Any, state: SavedState, lma: bool) -> None:
    """The hidden parts as they stand: RSM does not look into descriptor tables. Bases have 64 bits where IA-32e mode
    gives them so many.
    """
    for n in range(8):
        attr = state.attributes[n] & 0xF0FF
        wide = lma and n in (FS, GS, LDTR, TR)
        s.seg_selector[n], s.seg_limit[n] = state.selectors[n], state.limits[n]
        s.seg_base[n] = state.bases[n] if wide else state.bases[n] & U32
        s.seg_attr[n] = attr if attr & ATTR_P else attr | ATTR_UNUSABLE
    tables = [(base if lma else base & U32, limit & 0xFFFF) for base, limit in (state.gdt, state.idt)]
    (s.gdt_base, s.gdt_limit), (s.idt_base, s.idt_limit) = tables
