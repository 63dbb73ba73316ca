"""The events of a vCPU and the order in which they enter the guest, in KVM's terms.

*Pending* means asked for, *injected* means its delivery was begun and then interrupted by an exit (a page walk that had
to leave the guest, say), so it must be delivered again before anything else. `choose_event` is the whole of the
decision, a pure function; the vCPU loop carries it out with the helpers of `PendingEvents`. Priorities: what was
injected, then a pending exception, SMI, NMI, external interrupt (Intel SDM vol. 3, 6.9; KVM's
kvm_check_and_inject_events).
"""

import threading
from enum import Enum, IntFlag

from pellucid.kvm.errors import StateError
from pellucid.kvm.regs import MpState
from pellucid.kvm.uapi import UapiStruct, array, u8, u32, u64
from pellucid.records import dataclass, field

NMI_VECTOR = 2
DF_VECTOR = 8
PF_VECTOR = 14
MC_VECTOR = 18

_CONTRIBUTORY = frozenset((0, 10, 11, 12, 13, 21))  # #DE #TS #NP #SS #GP #CP (SDM vol. 3, table 6-4)


class InterruptShadow(IntFlag):
    """Why the next instruction boundary takes no interrupt (KVM_X86_SHADOW_INT_*)."""

    NONE = 0
    MOV_SS = 1
    STI = 2


class EventKind(Enum):
    """What `choose_event` says to deliver."""

    EXCEPTION = "exception"
    SMI = "smi"
    NMI = "nmi"
    INTERRUPT = "interrupt"


@dataclass(frozen=True, slots=True)
class QueuedException:
    """An exception to deliver. `payload` is the faulting address of #PF (for CR2) or the DR6 bits of #DB."""

    vector: int
    error_code: int | None = None
    payload: int | None = None


@dataclass(frozen=True, slots=True)
class QueuedInterrupt:
    """An interrupt whose delivery was begun: already acknowledged, so it must not be lost. `soft` means INT n."""

    vector: int
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Interruptibility:
    """What the guest's processor would accept at this instruction boundary."""

    interrupt_flag: bool
    """RFLAGS.IF."""
    nmi_blocked: bool = False
    """An NMI handler has not executed IRET yet."""
    shadow: InterruptShadow = InterruptShadow.NONE
    in_smm: bool = False


@dataclass(frozen=True, slots=True)
class Injection:
    """What to deliver now, and what to be told of: a window is open when the guest can next take that kind."""

    event: EventKind | None = None
    reinject: bool = False
    """The event is one whose delivery was begun before; take it from the injected ones, acknowledge nothing."""
    smi_window: bool = False
    nmi_window: bool = False
    irq_window: bool = False


@dataclass(slots=True)
class PendingEvents:
    """A vCPU's events. One thread, the vCPU's, owns it; only `queue_nmi` and `queue_smi` may come from others."""

    exception_pending: QueuedException | None = None
    exception_injected: QueuedException | None = None
    interrupt_injected: QueuedInterrupt | None = None
    nmi_pending: int = 0
    """NMIs to deliver, at most 2: one can wait while another is being handled, further ones are lost."""
    nmi_injected: bool = False
    smi_pending: bool = False
    triple_fault: bool = False
    machine_check: bool = False
    """#MC is to be delivered: its registers are set (KVM_X86_SET_MCE)."""
    _nmi_queued: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def any_pending(self) -> bool:
        """Whether anything waits that RFLAGS.IF does not hold back."""
        return bool(self.nmi_pending or self.smi_pending or self.triple_fault or self.machine_check)

    def queue_nmi(self) -> None:
        """Add an NMI from any thread; it counts once the vCPU serves KVM_REQ_NMI with `process_nmi`."""
        with self._lock:
            self._nmi_queued = min(self._nmi_queued + 1, 2)

    def queue_smi(self) -> None:
        """Make an SMI pending, from any thread (KVM_REQ_SMI)."""
        self.smi_pending = True

    def process_nmi(self, nmi_blocked: bool) -> None:
        """Serve KVM_REQ_NMI: two NMIs may be held, or one while another is blocked in its handler or in delivery."""
        with self._lock:
            queued, self._nmi_queued = self._nmi_queued, 0
        limit = 1 if nmi_blocked or self.nmi_injected else 2
        self.nmi_pending = min(self.nmi_pending + queued, limit)

    def queue_exception(self, vector: int, error_code: int | None = None, payload: int | None = None) -> None:
        """Queue an exception, combined with the one in the way: #DF, then triple fault (SDM vol. 3, 6.15)."""
        earlier = self.exception_pending or self.exception_injected
        new = QueuedException(vector, error_code, payload)
        if earlier is None:
            self.exception_pending = new
            return
        self.exception_injected = None
        if earlier.vector == DF_VECTOR:
            self.exception_pending = None
            self.triple_fault = True
        elif _makes_double_fault(earlier.vector, vector):
            self.exception_pending = QueuedException(DF_VECTOR, 0)
        else:
            # Benign pairs are handled in turn; the instruction that raised the earlier one raises it again.
            self.exception_pending = new

    def begin(self, event: EventKind, vector: int = 0) -> None:
        """Carry out a fresh (not `reinject`) choice: the event moves from pending to injected.

        `vector` is the one acknowledged from the interrupt chips, for EventKind.INTERRUPT.
        """
        if event is EventKind.EXCEPTION:
            self.exception_injected, self.exception_pending = self.exception_pending, None
        elif event is EventKind.NMI:
            self.nmi_pending -= 1
            self.nmi_injected = True
        elif event is EventKind.SMI:
            self.smi_pending = False
        else:
            self.interrupt_injected = QueuedInterrupt(vector)

    def delivered(self, event: EventKind) -> None:
        """An injected event has reached the guest's handler whole; it need not be injected again."""
        if event is EventKind.EXCEPTION:
            self.exception_injected = None
        elif event is EventKind.NMI:
            self.nmi_injected = False
        elif event is EventKind.INTERRUPT:
            self.interrupt_injected = None

    def clear(self) -> None:
        """Forget every event, as INIT and power-up do."""
        self.exception_injected = self.exception_pending = None
        self.interrupt_injected = None
        self.nmi_injected = False
        self.nmi_pending = 0
        self.smi_pending = False
        self.triple_fault = self.machine_check = False
        with self._lock:
            self._nmi_queued = 0


def _makes_double_fault(first: int, second: int) -> bool:
    contributory = second in _CONTRIBUTORY
    if first in _CONTRIBUTORY:
        return contributory
    return first == PF_VECTOR and (contributory or second == PF_VECTOR)


def choose_event(guest: Interruptibility, pending: PendingEvents, has_interrupt: bool) -> Injection:
    """What to inject at this entry, and which windows to ask for. Changes nothing.

    `has_interrupt` says that the interrupt chips hold a vector above the processor priority (or an ExtINT).
    """
    needs_reinjection = bool(pending.exception_injected or pending.nmi_injected or pending.interrupt_injected)
    event: EventKind | None = None
    reinject = False
    if pending.exception_injected:
        event, reinject = EventKind.EXCEPTION, True
    elif pending.exception_pending:
        event = EventKind.EXCEPTION
    elif pending.nmi_injected:
        event, reinject = EventKind.NMI, True
    elif pending.interrupt_injected:
        event, reinject = EventKind.INTERRUPT, True
    can_inject = event is None and not needs_reinjection

    smis = int(pending.smi_pending)
    if smis and can_inject and not guest.in_smm:
        event, can_inject, smis = EventKind.SMI, False, 0
    nmis = pending.nmi_pending
    if nmis and can_inject and not guest.nmi_blocked and not guest.shadow:
        event, can_inject, nmis = EventKind.NMI, False, nmis - 1
    interrupt_waits = has_interrupt
    if has_interrupt and can_inject and guest.interrupt_flag and not guest.shadow:
        # More may wait behind this one; the handler's EOI or a lower TPR raises KVM_REQ_EVENT again for those.
        event, interrupt_waits = EventKind.INTERRUPT, False
    return Injection(event, reinject, bool(smis), bool(nmis), interrupt_waits)


@dataclass(frozen=True, slots=True)
class ApicEvents:
    """Outcome of the INIT and SIPI that a LAPIC holds. Both may happen at once: reset first, then start."""

    reset: bool
    """Reset the vCPU as INIT does."""
    start: bool
    """Set CS:IP from the SIPI vector and run."""
    mp_state: MpState
    keep_init: bool = False
    """INIT is latched (SMM): leave it pending in the LAPIC."""


def accept_apic_events(
    init: bool, sipi: bool, mp_state: MpState, is_bsp: bool, init_latched: bool = False
) -> ApicEvents:
    """What a vCPU does about INIT and SIPI (kvm_apic_accept_events; SDM vol. 3, 9.4.4).

    A SIPI counts only in the wait-for-SIPI state that INIT puts an application processor in; else it is dropped.
    While INIT is latched (in SMM), INIT stays pending and SIPIs are dropped.
    """
    if init_latched:
        return ApicEvents(False, False, mp_state, keep_init=init)
    if init:
        mp_state = MpState.RUNNABLE if is_bsp else MpState.INIT_RECEIVED
    start = sipi and mp_state is MpState.INIT_RECEIVED
    if start:
        mp_state = MpState.RUNNABLE
    return ApicEvents(init, start, mp_state)


@dataclass(frozen=True)
class VcpuEvents(UapiStruct):
    """Saved events of a vCPU, with the layout of struct kvm_vcpu_events; bytes are flags unless named *_nr."""

    exception_injected: int = u8()
    exception_nr: int = u8()
    exception_has_error_code: int = u8()
    exception_pending: int = u8()
    exception_error_code: int = u32()
    interrupt_injected: int = u8()
    interrupt_nr: int = u8()
    interrupt_soft: int = u8()
    interrupt_shadow: int = u8()
    nmi_injected: int = u8()
    nmi_pending: int = u8()
    nmi_masked: int = u8()
    nmi_pad: int = u8()
    sipi_vector: int = u32()
    flags: int = u32()
    smi_smm: int = u8()
    smi_pending: int = u8()
    smi_smm_inside_nmi: int = u8()
    smi_latched_init: int = u8()
    triple_fault_pending: int = u8()
    reserved: tuple[int, ...] = array("B", 26)
    exception_has_payload: int = u8()
    exception_payload: int = u64()

    def __post_init__(self) -> None:
        super().__post_init__()
        raised = self.exception_injected or self.exception_pending
        if raised and (self.exception_nr > 31 or self.exception_nr == NMI_VECTOR):
            raise StateError(f"VcpuEvents.exception_nr: {self.exception_nr} is not an exception vector")
        if self.exception_injected and self.exception_pending:
            raise StateError("VcpuEvents: an exception cannot be both injected and pending")
        if self.interrupt_shadow & ~3:
            raise StateError(f"VcpuEvents.interrupt_shadow: {self.interrupt_shadow:#x} has unknown bits")
        if self.smi_smm_inside_nmi and not self.smi_smm:
            raise StateError("VcpuEvents: smm_inside_nmi is set outside SMM")

    def _is_machine_check(self) -> bool:
        return bool(self.exception_injected or self.exception_pending) and self.exception_nr == MC_VECTOR

    def _exception(self) -> QueuedException:
        return QueuedException(
            self.exception_nr,
            self.exception_error_code if self.exception_has_error_code else None,
            self.exception_payload if self.exception_has_payload else None,
        )

    def to_pending(self) -> PendingEvents:
        """The pending events that this state describes; shadow, NMI mask and SMM belong to the processor."""
        machine_check = self._is_machine_check()
        return PendingEvents(
            exception_pending=self._exception() if self.exception_pending and not machine_check else None,
            exception_injected=self._exception() if self.exception_injected and not machine_check else None,
            machine_check=machine_check,
            interrupt_injected=(
                QueuedInterrupt(self.interrupt_nr, bool(self.interrupt_soft)) if self.interrupt_injected else None
            ),
            nmi_pending=min(self.nmi_pending, 2),
            nmi_injected=bool(self.nmi_injected),
            smi_pending=bool(self.smi_pending),
            triple_fault=bool(self.triple_fault_pending),
        )


def save_events(pending: PendingEvents, guest: Interruptibility, sipi_vector: int = 0) -> VcpuEvents:
    """The saved form of `pending`, with the processor's shadow, NMI mask and SMM flag; serve KVM_REQ_NMI first.

    A machine check is saved as the exception that it becomes, as KVM has it. Another one that waits is not lost with
    it: its instruction raises it again behind the handler.
    """
    raised = pending.exception_injected or pending.exception_pending
    if pending.machine_check:
        raised = QueuedException(MC_VECTOR)
    interrupt = pending.interrupt_injected
    return VcpuEvents(
        exception_injected=int(pending.exception_injected is not None and not pending.machine_check),
        exception_pending=int(raised is not None and (pending.exception_injected is None or pending.machine_check)),
        exception_nr=raised.vector if raised else 0,
        exception_has_error_code=int(raised is not None and raised.error_code is not None),
        exception_error_code=(raised.error_code or 0) if raised else 0,
        exception_has_payload=int(raised is not None and raised.payload is not None),
        exception_payload=(raised.payload or 0) if raised else 0,
        interrupt_injected=int(interrupt is not None),
        interrupt_nr=interrupt.vector if interrupt else 0,
        interrupt_soft=int(interrupt is not None and interrupt.soft),
        interrupt_shadow=int(guest.shadow),
        nmi_injected=int(pending.nmi_injected),
        nmi_pending=pending.nmi_pending,
        nmi_masked=int(guest.nmi_blocked),
        sipi_vector=sipi_vector,
        smi_smm=int(guest.in_smm),
        smi_pending=int(pending.smi_pending),
        triple_fault_pending=int(pending.triple_fault),
    )
