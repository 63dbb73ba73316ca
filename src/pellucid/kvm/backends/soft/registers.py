"""Register groups of the interface to and from the processor's native state."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from pellucid.cpu.cpuid import CpuidEntry
from pellucid.cpu.flags import CC_EFLAGS
from pellucid.cpu.state import (
    ATTR_DPL_SHIFT, ATTR_UNUSABLE, CR0_CD, CR0_ET, CR0_NW, CS,
    DS, ES, FS, GS, LDTR, RFLAGS_STATUS, RFLAGS_VM, SS, TR, XMM_BYTES, slot_of)
from pellucid.engine.processor import Processor
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.regs import DebugRegs, DTable, Fpu, Regs, Segment, Sregs

_GPRS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
_SEGMENTS = {"es": ES, "cs": CS, "ss": SS, "ds": DS, "fs": FS, "gs": GS, "ldt": LDTR, "tr": TR}
_ST, _XMM = slot_of("st"), slot_of("xmm")
XSAVE_BYTES = 4096
"""Size of an XSAVE image (struct kvm_xsave)."""
XFEATURE_X87, XFEATURE_SSE, XFEATURE_AVX, XFEATURE_PKRU = 1, 2, 4, 1 << 9
_XSTATE_BV, _YMM_HIGH, _PKRU = 512, 576, 2688   # where they stand in the image
CR0_CACHE = CR0_CD | CR0_NW


def get_regs(cpu: Processor) -> Regs:
    gpr = cpu.state.gpr
    values = {name: gpr[i] for i, name in enumerate(_GPRS)}
    return Regs(**values, rip=cpu.state.rip, rflags=cpu.get_rflags())


def set_regs(cpu: Processor, regs: Regs) -> None:
    state = cpu.state
    for i, name in enumerate(_GPRS):
        state.gpr[i] = getattr(regs, name)
    state.rip = regs.rip
    set_rflags(cpu, regs.rflags)
    cpu.refresh_mode()


def set_rflags(cpu: Processor, value: int) -> None:
    """Replace RFLAGS; the caller refreshes the mode."""
    cpu.state.cc_kind, cpu.state.cc_src = CC_EFLAGS, value & RFLAGS_STATUS
    cpu.state.flags = value & ~RFLAGS_STATUS | 2


def _get_segment(state: Any, n: int) -> Segment:
    attr = state.seg_attr[n]
    return Segment(
        base=state.seg_base[n], limit=state.seg_limit[n], selector=state.seg_selector[n], type=attr & 15,
        s=bool(attr >> 4 & 1), dpl=attr >> ATTR_DPL_SHIFT & 3, present=bool(attr >> 7 & 1), avl=bool(attr >> 12 & 1),
        l=bool(attr >> 13 & 1), db=bool(attr >> 14 & 1), g=bool(attr >> 15 & 1), unusable=bool(attr & ATTR_UNUSABLE))


def _set_segment(state: Any, n: int, segment: Segment) -> None:
    state.seg_base[n], state.seg_limit[n], state.seg_selector[n] = segment.base, segment.limit, segment.selector
    state.seg_attr[n] = (segment.type | segment.s << 4 | segment.dpl << ATTR_DPL_SHIFT | segment.present << 7
                         | segment.avl << 12 | segment.l << 13 | segment.db << 14 | segment.g << 15
                         | (ATTR_UNUSABLE if segment.unusable else 0))


def get_sregs(cpu: Processor, apic_base: int, cr8: int) -> Sregs:
    s = cpu.state
    segments = {name: _get_segment(s, n) for name, n in _SEGMENTS.items()}
    return Sregs(**segments, gdt=DTable(s.gdt_base, s.gdt_limit), idt=DTable(s.idt_base, s.idt_limit), cr0=s.cr0,
                 cr2=s.cr2, cr3=s.cr3, cr4=s.cr4, cr8=cr8, efer=s.efer, apic_base=apic_base)


def set_sregs(cpu: Processor, sregs: Sregs) -> None:
    s = cpu.state
    for name, n in _SEGMENTS.items():
        _set_segment(s, n, getattr(sregs, name))
    s.gdt_base, s.gdt_limit = sregs.gdt.base, sregs.gdt.limit
    s.idt_base, s.idt_limit = sregs.idt.base, sregs.idt.limit
    s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer = (
        sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer)
    s.cpl = 3 if s.flags & RFLAGS_VM else sregs.ss.dpl if sregs.cr0 & 1 else 0
    cpu.flush_tlb()
    cpu.refresh_mode()


def get_fpu(cpu: Processor) -> Fpu:
    s, base = cpu.state, cpu.address
    tags = 0
    for i in range(8):
        raw = ctypes.string_at(base + _ST + i * 16, 10)
        tags |= (_tag(raw) if s.fpu_tags >> i & 1 else 3) << (i * 2)
    return Fpu(
        fpr=[int.from_bytes(ctypes.string_at(base + _ST + i * 16, 10), "little") for i in range(8)],
        fcw=s.fpu_cw, fsw=s.fpu_sw & ~0x3800 | s.fpu_top << 11, ftw=tags, last_opcode=s.fpu_opcode, last_ip=s.fpu_ip,
        last_dp=s.fpu_dp,
        xmm=[int.from_bytes(ctypes.string_at(base + _XMM + i * XMM_BYTES, 16), "little") for i in range(16)],
        mxcsr=s.mxcsr)


def _tag(raw: bytes) -> int:
    """The two-bit tag of a register in use: 0 valid, 1 zero, 2 special (SDM vol. 1, 8.1.7)."""
    exponent, significand = int.from_bytes(raw[8:], "little") & 0x7FFF, int.from_bytes(raw[:8], "little")
    if exponent == 0 and significand == 0:
        return 1
    return 0 if 0 < exponent < 0x7FFF and significand >> 63 else 2


def set_fpu(cpu: Processor, fpu: Fpu) -> None:
    s, base = cpu.state, cpu.address
    for i, value in enumerate(fpu.fpr):
        ctypes.memmove(base + _ST + i * 16, value.to_bytes(10, "little"), 10)
    for i, value in enumerate(fpu.xmm):
        ctypes.memmove(base + _XMM + i * XMM_BYTES, value.to_bytes(16, "little"), 16)
    s.fpu_cw, s.fpu_sw, s.fpu_top = fpu.fcw & 0x1F7F | 0x40, fpu.fsw & ~0x3800, fpu.fsw >> 11 & 7
    s.fpu_tags = sum(1 << i for i in range(8) if fpu.ftw >> (i * 2) & 3 != 3)
    s.fpu_opcode, s.fpu_ip, s.fpu_dp = fpu.last_opcode & 0x7FF, fpu.last_ip, fpu.last_dp
    s.mxcsr = fpu.mxcsr & 0xFFFF
    cpu.refresh_mode()


def get_debugregs(cpu: Processor) -> DebugRegs:
    dr = cpu.state.dr
    return DebugRegs((dr[0], dr[1], dr[2], dr[3]), dr[6], dr[7])


def set_debugregs(cpu: Processor, value: DebugRegs) -> None:
    dr = cpu.state.dr
    dr[0], dr[1], dr[2], dr[3] = value.db
    dr[6], dr[7] = value.dr6, value.dr7
    cpu.refresh_mode()


def get_xsave(cpu: Processor) -> bytes:
    """All of x87, SSE, AVX and PKRU in the standard format of XSAVE, XSAVE_BYTES long (SDM vol. 1, 13.4)."""
    s, fpu = cpu.state, get_fpu(cpu)
    image = bytearray(XSAVE_BYTES)
    struct.pack_into("<HHBxHQQII", image, 0, fpu.fcw, fpu.fsw, s.fpu_tags, fpu.last_opcode, fpu.last_ip, fpu.last_dp,
                     fpu.mxcsr, 0xFFFF)
    for i in range(8):
        image[32 + 16 * i:42 + 16 * i] = fpu.fpr[s.fpu_top + i & 7].to_bytes(10, "little")
    for i in range(16):
        low = cpu.address + _XMM + i * XMM_BYTES
        image[160 + 16 * i:176 + 16 * i] = ctypes.string_at(low, 16)
        image[_YMM_HIGH + 16 * i:_YMM_HIGH + 16 + 16 * i] = ctypes.string_at(low + 16, 16)
    struct.pack_into("<Q", image, _XSTATE_BV, XFEATURE_X87 | XFEATURE_SSE | XFEATURE_AVX | XFEATURE_PKRU)
    struct.pack_into("<I", image, _PKRU, s.pkru)
    return bytes(image)


def set_xsave(cpu: Processor, image: bytes) -> None:
    """Set all of it; a component that XSTATE_BV leaves out takes its initial value. Raises InvalidRequestError."""
    if len(image) != XSAVE_BYTES:
        raise InvalidRequestError(f"an XSAVE image of {len(image)} bytes, not {XSAVE_BYTES}")
    present, = struct.unpack_from("<Q", image, _XSTATE_BV)
    fpu = Fpu()
    mxcsr, = struct.unpack_from("<I", image, 24)
    tags = 0
    if present & XFEATURE_X87:
        fpu.fcw, fpu.fsw, tags, fpu.last_opcode, fpu.last_ip, fpu.last_dp = struct.unpack_from("<HHBxHQQ", image)
        for i in range(8):
            fpu.fpr[(fpu.fsw >> 11) + i & 7] = int.from_bytes(image[32 + 16 * i:42 + 16 * i], "little")
    if present & (XFEATURE_SSE | XFEATURE_AVX):
        fpu.mxcsr = mxcsr
    if present & XFEATURE_SSE:
        fpu.xmm = [int.from_bytes(image[160 + 16 * i:176 + 16 * i], "little") for i in range(16)]
    set_fpu(cpu, fpu)
    cpu.state.fpu_tags = tags
    for i in range(16):
        at = _YMM_HIGH + 16 * i
        high = image[at:at + 16] if present & XFEATURE_AVX else bytes(16)
        ctypes.memmove(cpu.address + _XMM + i * XMM_BYTES + 16, high, 16)
    cpu.state.pkru = struct.unpack_from("<I", image, _PKRU)[0] if present & XFEATURE_PKRU else 0
    cpu.flush_tlb()


def set_xcr0(cpu: Processor, value: int) -> None:
    """Set XCR0; raises InvalidRequestError for a value that XSETBV would refuse."""
    refused = value & ~cpu.state.xcr0_allowed or not value & XFEATURE_X87
    if value != 1 and (refused or value & (XFEATURE_SSE | XFEATURE_AVX) == XFEATURE_AVX):
        raise InvalidRequestError(f"XCR0 cannot be {value:#x}")
    cpu.state.xcr0 = value
    cpu.refresh_mode()


def reset(cpu: Processor, *, init: bool = False) -> None:
    """Registers after RESET or, with `init`, INIT, which leaves floating-point and vector state, XCR0, PKRU and the
    MSRs, and CR0.CD and NW, as they were (SDM vol. 3, table 10-1). The x87 unit is as FNINIT leaves it, as KVM's and
    QEMU's guests find it: what the manual says of it, full registers and every exception unmasked, stops a guest that
    relies on them at its second load.
    """
    s = cpu.state
    cr0 = s.cr0 & CR0_CACHE | CR0_ET if init else CR0_CACHE | CR0_ET
    segment = Segment(base=0, limit=0xFFFF, selector=0, type=3)
    code = Segment(base=0xFFFF_0000, limit=0xFFFF, selector=0xF000, type=11)
    system = Segment(base=0, limit=0xFFFF, selector=0, type=11, s=False)
    # What the interrupted instruction or event had begun is forgotten.
    s.replay_count = s.step_once = s.delivering = s.shadow = s.nmi_blocked = s.irq_window = s.msr_fault = 0
    s.db_pending = s.announced = 0
    set_rflags(cpu, 0)
    set_sregs(cpu, Sregs(cs=code, ds=segment, es=segment, fs=segment, gs=segment, ss=segment, tr=system,
                         ldt=Segment(limit=0xFFFF, type=2, s=False), gdt=DTable(), idt=DTable(), cr0=cr0,
                         cr2=0, cr3=0, cr4=0, cr8=0, efer=0, apic_base=0))
    set_regs(cpu, Regs(rip=0xFFF0, rdx=signature(cpu)))
    set_debugregs(cpu, DebugRegs())
    if not init:
        s.xcr0, s.xss = 1, 0
        s.u_cet = s.s_cet = s.ssp = s.ssp_table = 0
        for level in range(4):
            s.pl_ssp[level] = 0
        s.pat = 0x0007_0406_0007_0406
        s.pkru = s.pkrs = 0
        ctypes.memset(cpu.address + _XMM, 0, 16 * XMM_BYTES)
        set_fpu(cpu, Fpu(fcw=0x37F, ftw=0xFFFF))
    cpu.refresh_mode()


def signature(cpu: Processor) -> int:
    """CPUID leaf 1, EAX, which a reset leaves in EDX: family, model and stepping."""
    for n in range(cpu.state.cpuid_count):
        entry = CpuidEntry.view(cpu.state.cpuid + n * CpuidEntry.size)
        if entry.leaf == 1:
            return int(entry.eax)
    return 0x600
