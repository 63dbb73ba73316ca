"""What the backend tells people: a triple fault's history, MSRs that were refused."""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING

import iced_x86 as iced

from pellucid.cpu.state import CR0_PE, EFER_LMA, MODE_SIZE, TLB_SUPERVISOR
from pellucid.kvm.backends.soft.fault_story import Raised, Table, tell
from pellucid.kvm.errors import MsrAccessError

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu_state import VcpuState

_log = logging.getLogger("pellucid.kvm.msr")
_seen: set[int] = set()


def refused_msr(error: MsrAccessError) -> None:
    """Log an MSR access that raised #GP(0), once for each MSR."""
    if error.index not in _seen:
        _seen.add(error.index)
        _log.info("%s", error)


def statistics(vcpu: VcpuState) -> dict[str, int]:
    """Counters by name."""
    code, hot = vcpu.processor.code, vcpu.processor.hot
    return {"blocks translated": code.blocks, "arena bytes used": code.arena_used, "arena bytes": code.arena_size,
            "regions compiled": len(hot.installed), "flushes": hot.generation,
            "pages told to be out": vcpu.async_pf.sent, "pages waited for": vcpu.async_pf.waited}


def triple_fault(vcpu: VcpuState) -> str:
    """The last exceptions, registers and code bytes, oldest first."""
    state = vcpu.state
    count = min(state.history_at, 8)
    places = [(n & 15) * 4 for n in range(state.history_at - count, state.history_at)]
    words = [(state.history[at], state.history[at + 1], state.history[at + 2], state.history[at + 3]) for at in places]
    entry = 4 if not state.cr0 & CR0_PE else 16 if state.efer & EFER_LMA else 8
    table = Table(state.idt_base, state.idt_limit, entry, lambda linear, size: _read(vcpu, linear, size))
    lines = ["last exceptions:", *tell([Raised.of(word) for word in words], table)]
    regs = vcpu.get_regs()
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    for i in range(0, 16, 4):
        lines.append(" ".join(f"{name.upper():>3}={getattr(regs, name):016x}" for name in names[i:i + 4]))
    lines.append(f"RIP={regs.rip:016x} RFL={regs.rflags:08x} CR0={state.cr0:08x} CR2={state.cr2:016x} "
                 f"CR3={state.cr3:016x} CR4={state.cr4:08x} EFER={state.efer:x}")
    lines.append("code: " + _code(vcpu))
    return "\n".join(lines)


def _read(vcpu: VcpuState, linear: int, size: int) -> bytes | None:
    """Bytes that the supervisor's tables hold; None where they are not in RAM, or cross a page."""
    state = vcpu.state
    own, state.tlb_index = state.tlb_index, TLB_SUPERVISOR
    host = vcpu.processor.host_of(linear)
    state.tlb_index = own
    return None if host is None or (host & 0xFFF) + size > 4096 else ctypes.string_at(host, size)


def _code(vcpu: VcpuState) -> str:
    """The bytes at RIP and their instruction."""
    linear = vcpu.state.rip + vcpu.state.cs_base
    host = vcpu.processor.host_of(linear)
    if host is None:
        return f"{linear:#x} is not mapped"
    raw = ctypes.string_at(host, min(15, 4096 - (host & 0xFFF)))
    bits = (16, 32, 64, 64)[vcpu.state.mode & MODE_SIZE]
    instruction = iced.Decoder(bits, raw, ip=vcpu.state.rip).decode()
    return f"{raw.hex(' ')}  {instruction}"
