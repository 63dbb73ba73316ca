"""A vCPU's registers as the Hypervisor interface carries them, grouped as KVM groups them.

Values are unsigned integers of the architectural width. `Regs`, `Sregs` and `Fpu` are meant for the usual round trip
(get, change a field, set); `Segment` and `DTable` are values: replace them whole (`records.replace`).
"""

from enum import IntEnum

from pellucid.records import dataclass, field


@dataclass(slots=True)
class Regs:
    """General registers (struct kvm_regs), 64 bits each."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0
    rdi: int = 0
    rsp: int = 0
    rbp: int = 0
    r8: int = 0
    r9: int = 0
    r10: int = 0
    r11: int = 0
    r12: int = 0
    r13: int = 0
    r14: int = 0
    r15: int = 0
    rip: int = 0
    rflags: int = 2


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment register with its hidden part (struct kvm_segment).

    `limit` is in bytes, granularity already applied. `type` is the descriptor's 4-bit type; `s` is set for code and
    data, clear for TSS and LDT; `unusable` marks a null selector.
    """

    base: int = 0
    limit: int = 0xFFFF
    selector: int = 0
    type: int = 0
    present: bool = True
    dpl: int = 0
    db: bool = False
    s: bool = True
    l: bool = False  # noqa: E741 -- the descriptor's L bit, under KVM's name
    g: bool = False
    avl: bool = False
    unusable: bool = False


@dataclass(frozen=True, slots=True)
class DTable:
    """GDTR or IDTR: linear base address and limit (last valid byte)."""

    base: int = 0
    limit: int = 0xFFFF


@dataclass(slots=True)
class Sregs:
    """Segment, descriptor-table and control registers (struct kvm_sregs). cr8 is the 4-bit task priority class."""

    cs: Segment
    ds: Segment
    es: Segment
    fs: Segment
    gs: Segment
    ss: Segment
    tr: Segment
    ldt: Segment
    gdt: DTable
    idt: DTable
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    apic_base: int


@dataclass(slots=True)
class Fpu:
    """x87 and SSE state (struct kvm_fpu).

    `fpr` are the eight physical x87 registers R0..R7 as 80-bit integers, `xmm` sixteen 128-bit integers. `ftw` is the
    full 16-bit tag word. `last_opcode` is 11 bits.
    """

    fpr: list[int] = field(default_factory=lambda: [0] * 8)
    fcw: int = 0x37F
    fsw: int = 0
    ftw: int = 0xFFFF
    last_opcode: int = 0
    last_ip: int = 0
    last_dp: int = 0
    xmm: list[int] = field(default_factory=lambda: [0] * 16)
    mxcsr: int = 0x1F80


@dataclass(slots=True)
class DebugRegs:
    """Debug registers (struct kvm_debugregs): the four linear addresses, DR6 and DR7."""

    db: tuple[int, int, int, int] = (0, 0, 0, 0)
    dr6: int = 0xFFFF_0FF0
    dr7: int = 0x400


class MpState(IntEnum):
    """What a vCPU is doing as a member of the multiprocessor (KVM_MP_STATE_*)."""

    RUNNABLE = 0
    UNINITIALIZED = 1  # an application processor that has had no INIT yet
    INIT_RECEIVED = 2  # waits for a SIPI
    HALTED = 3
    SIPI_RECEIVED = 4


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One CPUID leaf (struct kvm_cpuid_entry2). `index` is the sub-leaf, or None where ECX does not matter."""

    function: int
    index: int | None = None
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0
