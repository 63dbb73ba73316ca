"""What `Vcpu.run` returns: one class for each reason to leave the guest, KVM_EXIT_* in KVM's terms.

Exits are values, which nobody changes. The vCPU thread maps each to an outcome, and tests feed it fabricated ones.
Accesses, nearly all of them, are no frozen dataclasses, since those take three times as long to make.
"""

from enum import Enum

from pellucid.records import dataclass


@dataclass(slots=True)
class IoExit:
    """KVM_EXIT_IO: IN or OUT of `size` bytes (1, 2 or 4) at `port`.

    `data` is the value written, or None for IN, which the caller answers with `Vcpu.complete_read` before the next
    run. String forms exit once for each element, but INS to RAM may exit for up to `count` elements at once, answered
    with `Vcpu.complete_read_string`; a caller that reads one only answers with that one.
    """

    port: int
    size: int
    is_write: bool
    data: int | None
    count: int = 1


@dataclass(slots=True)
class MmioExit:
    """KVM_EXIT_MMIO: a load or store of `size` bytes (1 to 8) at guest-physical `gpa` that no memory slot backs.

    `data` is the value stored, or None for a load, which the caller answers with `Vcpu.complete_read` before the
    next run. `smm`: made in system-management mode, so the memory of address space 1 answers (KVM_RUN_X86_SMM).
    """

    gpa: int
    size: int
    is_write: bool
    data: int | None
    smm: bool = False


@dataclass(frozen=True, slots=True)
class ExclusiveExit:
    """An instruction with LOCK meets a device (no KVM_EXIT_*: KVM's is not atomic there).

    Nothing of it is done yet: the caller holds the other vCPUs out, and has `Vcpu.run_exclusive` execute it.
    """


@dataclass(frozen=True, slots=True)
class HltExit:
    """KVM_EXIT_HLT: the guest halted, and nothing in the hypervisor will wake it (no in-kernel irqchip)."""


@dataclass(frozen=True, slots=True)
class FerrExit:
    """The processor asserts FERR#: an x87 exception with CR0.NE clear (no KVM_EXIT_*: KVM has no such line).

    It waits before the instruction until an interrupt comes, or `Vcpu.ignore_numeric_error`.
    """


@dataclass(frozen=True, slots=True)
class IntrExit:
    """KVM_EXIT_INTR: `Vcpu.kick` was called; run again when the reason for the kick has been served."""


@dataclass(frozen=True, slots=True)
class ShutdownExit:
    """KVM_EXIT_SHUTDOWN: a triple fault. `reason` tells what led to it, for people; it may have several lines."""

    reason: str


@dataclass(frozen=True, slots=True)
class DebugExit:
    """KVM_EXIT_DEBUG: a breakpoint or single step that a debugger, not the guest, asked for.

    `exception` is 1 (#DB) or 3 (#BP); `pc` the linear address; `dr6` and `dr7` as KVM reports them.
    """

    exception: int
    pc: int
    dr6: int
    dr7: int


class SystemEvent(Enum):
    """KVM_SYSTEM_EVENT_*: what the guest asked the whole machine to do."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5


@dataclass(frozen=True, slots=True)
class SystemEventExit:
    """KVM_EXIT_SYSTEM_EVENT: the guest asked for a machine-wide event of this kind."""

    kind: SystemEvent


@dataclass(frozen=True, slots=True)
class FailEntryExit:
    """KVM_EXIT_FAIL_ENTRY: the processor refused to enter the guest; `reason` names the failed check."""

    reason: str


@dataclass(frozen=True, slots=True)
class InternalErrorExit:
    """KVM_EXIT_INTERNAL_ERROR: the hypervisor met what it cannot carry out; `text` names it."""

    text: str


Exit = (
    IoExit
    | MmioExit
    | ExclusiveExit
    | HltExit
    | FerrExit
    | IntrExit
    | ShutdownExit
    | DebugExit
    | SystemEventExit
    | FailEntryExit
    | InternalErrorExit
)
