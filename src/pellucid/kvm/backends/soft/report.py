"""What the backend tells people: a triple fault's history, MSRs that were refused."""

from __future__ import annotations

import ctypes
import logging
from typing import TYPE_CHECKING

import iced_x86 as iced

from pellucid.cpu.state import MODE_SIZE
from pellucid.kvm.errors import MsrAccessError

if TYPE_CHECKING:
    from pellucid.kvm.backends.soft.vcpu import SoftVcpu

_log = logging.getLogger("pellucid.kvm.msr")
VECTORS = ("#DE", "#DB", "NMI", "#BP", "#OF", "#BR", "#UD", "#NM", "#DF", "coprocessor overrun", "#TS", "#NP", "#SS",
           "#GP", "#PF", "15", "#MF", "#AC", "#MC", "#XM", "#VE", "#CP")
_seen: set[int] = set()


def refused_msr(error: MsrAccessError) -> None:
    """Log an MSR access that raised #GP(0), once for each MSR."""
    if error.index not in _seen:
        _seen.add(error.index)
        _log.info("%s", error)


def vector_name(vector: int) -> str:
    """#PF for 14, and so on."""
    return VECTORS[vector] if vector < len(VECTORS) else f"vector {vector:#x}"


def triple_fault(vcpu: SoftVcpu) -> str:
    """The last exceptions, registers and code bytes, oldest first."""
    state = vcpu.state
    lines = ["last exceptions:"]
    count = min(state.history_at, 8)
    for n in range(state.history_at - count, state.history_at):
        at = (n & 15) * 4
        what, rip, address, where = (state.history[at + i] for i in range(4))
        vector = what & 0xFFFF_FFFF
        text = f"  {vector_name(vector)} error={what >> 32:#x} at {where & 0xFFFF:04x}:{rip:016x} CPL={where >> 32}"
        lines.append(text + (f" CR2={address:016x}" if vector == 14 else ""))
    regs = vcpu.get_regs()
    names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
    for i in range(0, 16, 4):
        lines.append(" ".join(f"{name.upper():>3}={getattr(regs, name):016x}" for name in names[i:i + 4]))
    lines.append(f"RIP={regs.rip:016x} RFL={regs.rflags:08x} CR0={state.cr0:08x} CR2={state.cr2:016x} "
                 f"CR3={state.cr3:016x} CR4={state.cr4:08x} EFER={state.efer:x}")
    lines.append("code: " + _code(vcpu))
    return "\n".join(lines)


def _code(vcpu: SoftVcpu) -> str:
    """The bytes at RIP and their instruction."""
    linear = vcpu.state.rip + vcpu.state.cs_base
    host = vcpu.processor.host_of(linear)
    if host is None:
        return f"{linear:#x} is not mapped"
    raw = ctypes.string_at(host, min(15, 4096 - (host & 0xFFF)))
    bits = (16, 32, 64, 64)[vcpu.state.mode & MODE_SIZE]
    instruction = iced.Decoder(bits, raw, ip=vcpu.state.rip).decode()
    return f"{raw.hex(' ')}  {instruction}"
