"""The local APIC, xAPIC and x2APIC (Intel SDM vol. 3, ch. 11), behaving as KVM's does.

Life of an interrupt: `deliver` (from an IOAPIC pin, an MSI, another APIC's ICR, or an own LVT entry) sets the IRR bit
and notifies the vCPU; before entering the guest the vCPU loop asks `get_interrupt` and, if the guest is interruptible,
`accept`s the vector, which moves it to the ISR; the guest writes EOI, which ends the highest vector in service and,
for level-triggered ones, tells the IOAPIC. Native code does the same by itself where nobody else has to know
(`pellucid.cpu.vectors`, `apic_access`).

The state is in public attributes named after the registers; the register window over it (offsets, MSRs, reserved
bits) is `lapic_registers.py`. Everything that another thread may call takes the irqchip lock.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.apic_bus import ApicBus
from pellucid.kvm.irqchip.apicdef import (
    BIT,
    ERROR_ENTRY,
    LINT0_ENTRY,
    LINT1_ENTRY,
    NR_LVT_ENTRIES,
    PERF_ENTRY,
    TIMER_ENTRY,
    ApicMessage,
    ApicMode,
    IrqchipLock,
)
from pellucid.kvm.irqchip.lapic_hooks import Cell, LapicFeatures, LapicHooks
from pellucid.kvm.irqchip.lapic_registers import RegisterWindow
from pellucid.kvm.irqchip.lapic_timer import LapicTimer
from pellucid.kvm.irqchip.lapic_vectors import ApicVectors
from pellucid.kvm.irqchip.state import LapicState


class Lapic(ApicVectors):
    """The local APIC of one vCPU.

    `apic_id` is the initial (x2APIC) id; `tsc_to_ns(tsc)` gives the clock's time at which the guest's TSC reads `tsc`;
    `icr` and `vectors` are where the interrupt command register and the part of `ApicVectors` are kept, for a processor
    that has native code.
    """

    __slots__ = (
        "_apic_base", "_bus", "_hooks", "_icr", "_initial_id", "_lint0", "_notify", "_window", "arb_prio", "dfr", "esr",
        "esr_pending", "features", "id", "init_pending", "is_bsp", "ldr", "lock", "lvt", "sipi_pending",
        "sipi_vector", "timer", "_spiv",
    )  # fmt: skip

    def __init__(
        self,
        apic_id: int,
        bus: ApicBus,
        clock: Clock,
        lock: IrqchipLock,
        hooks: LapicHooks,
        tsc_to_ns: Callable[[int], int],
        *,
        is_bsp: bool = False,
        features: LapicFeatures | None = None,
        icr: Cell | None = None,
        vectors: memoryview | None = None,
    ) -> None:
        super().__init__(vectors, hooks.collect)
        self._icr: Cell = [0] if icr is None else icr
        self.lock = lock
        self._bus = bus
        self._hooks = hooks
        self._notify = hooks.notify
        self._initial_id = apic_id
        self.features = features or LapicFeatures()
        self.is_bsp = is_bsp
        self.timer = LapicTimer(clock, lock, tsc_to_ns, self._timer_expired)
        self.lvt = [0] * NR_LVT_ENTRIES
        self._window = RegisterWindow(self)
        self.mode = ApicMode.XAPIC
        self.id = apic_id & 0xFF
        self.ldr = self.icr = self.arb_prio = 0
        self.dfr = d.DFR_FLAT
        self._lint0 = False
        self.reset()
        bus.attach(self)

    # ---- reset, mode and base address

    def reset(self) -> None:
        """As after power-up or RESET: xAPIC mode at the default address, software-disabled (SDM vol. 3, 11.4.7.1)."""
        with self.lock:
            base = d.APIC_DEFAULT_PHYS_BASE | d.APIC_BASE_ENABLE
            self._apic_base = base | (d.APIC_BASE_BSP if self.is_bsp else 0)
            self.mode = ApicMode.XAPIC
            self.id = self._initial_id & 0xFF
            self.init_pending = self.sipi_pending = False
            self.sipi_vector = 0
            self.init_reset()

    def init_reset(self) -> None:
        """As after INIT: registers as after power-up, but id, mode and base address stay (SDM vol. 3, 11.4.7.3).

        The bootstrap processor's LINT0 comes up as unmasked ExtINT, as KVM leaves it (KVM_X86_QUIRK_LINT0_REENABLED):
        a guest started without firmware gets the 8259's interrupts.
        """
        with self.lock:
            self.timer.reset()
            self.spiv = 0xFF  # before the vectors go: native code of other processors sends no more
            self.clear_vectors()
            self.lvt[:] = [d.LVT_MASKED] * NR_LVT_ENTRIES
            if self.is_bsp:
                self.lvt[LINT0_ENTRY] = d.DM_EXTINT << 8
            self.dfr = d.DFR_FLAT
            self.esr = self.esr_pending = 0
            self.arb_prio = 0
            if self.mode is not ApicMode.X2APIC:
                self.ldr = 0
            self.icr = 0
            self._bus.recalculate()

    def close(self) -> None:
        """The vCPU is destroyed: stop the timer and leave the bus."""
        with self.lock:
            self.timer.close()
            self._bus.detach(self)

    @property
    def icr(self) -> int:
        """The interrupt command register, 64 bits."""
        return self._icr[0]

    @icr.setter
    def icr(self, value: int) -> None:
        self._icr[0] = value

    @property
    def initial_id(self) -> int:
        """The id that CPUID reports, whatever software made of the xAPIC one."""
        return self._initial_id

    def set_features(self, features: LapicFeatures) -> None:
        """CPUID was set: it decides which modes and bits exist."""
        with self.lock:
            self.features = features
            self._window.features_changed()

    def recalculate(self) -> None:
        """An id was written: tell the bus."""
        self._bus.recalculate()

    def state_restored(self) -> None:
        """Registers were set from saved state: recompute what follows from them, and look for interrupts."""
        self._bus.recalculate()
        self._notify()

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self._apic_base

    def set_apic_base(self, value: int, host_initiated: bool = False) -> None:
        """Write IA32_APIC_BASE; `MsrAccessError` for reserved bits and illegal transitions (SDM vol. 3, 11.12.5).

        With `host_initiated` (restoring state) any valid mode may follow any other.
        """
        reserved = 0x2FF | (-1 << self.features.maxphyaddr) & (1 << 64) - 1
        if not self.features.x2apic:
            reserved |= d.APIC_BASE_EXTD
        enable, extended = value & d.APIC_BASE_ENABLE, value & d.APIC_BASE_EXTD
        if value & reserved or (extended and not enable):
            raise MsrAccessError(d.MSR_IA32_APICBASE, value)
        new = ApicMode.DISABLED if not enable else ApicMode.X2APIC if extended else ApicMode.XAPIC
        old = self.mode
        illegal = (ApicMode.X2APIC, ApicMode.XAPIC), (ApicMode.DISABLED, ApicMode.X2APIC)
        if not host_initiated and (old, new) in illegal:
            raise MsrAccessError(d.MSR_IA32_APICBASE, value)
        with self.lock:
            self._apic_base = value
            if new is not old:
                self._change_mode(old, new)

    def _change_mode(self, old: ApicMode, new: ApicMode) -> None:
        self.mode = new
        if new is ApicMode.X2APIC:
            self.id = self._initial_id
            self.ldr = (self.id >> 4) << 16 | 1 << (self.id & 0xF)
        elif new is ApicMode.XAPIC:
            self.id = self._initial_id & 0xFF
        if old is ApicMode.X2APIC:
            self.ldr = 0
            self.icr &= 0xFF00_0000_FFFF_FFFF
        self._bus.recalculate()
        self._notify_if_deliverable()
        self._notify_if_extint()

    @property
    def hw_enabled(self) -> bool:
        """IA32_APIC_BASE bit 11, which CPUID.1:EDX.APIC mirrors."""
        return self.mode is not ApicMode.DISABLED

    @property
    def spiv(self) -> int:
        """The spurious-interrupt vector register."""
        return self._spiv

    @spiv.setter
    def spiv(self, value: int) -> None:
        self._spiv = value
        self.show_enabled(bool(value & d.SPIV_ENABLE))

    @property
    def software_enabled(self) -> bool:
        """Enabled in the spurious-interrupt vector register."""
        return bool(self.spiv & d.SPIV_ENABLE)

    def tell_enabled(self) -> None:
        """Software, or a saved state, has set the spurious-interrupt vector register."""
        if self.software_enabled:
            self._hooks.enabled()

    # ---- the vCPU's side: what to inject

    def get_interrupt(self) -> int | None:
        """The vector to inject next: highest in IRR whose class is above PPR's; None when there is none."""
        with self.lock:
            self.collect()
            return self.highest_request() if self.is_due else None

    def accept(self, vector: int) -> None:
        """The processor takes `vector`, as `get_interrupt` named it: from IRR to ISR."""
        with self.lock:
            self.acknowledge(vector)

    def accepts_pic_interrupts(self) -> bool:
        """Whether the 8259's INTR reaches this processor (kvm_apic_accept_pic_intr): APIC off, or LINT0 as ExtINT."""
        lint0 = self.lvt[LINT0_ENTRY]
        extint = lint0 & (d.LVT_MASKED | d.LVT_MODE) == d.DM_EXTINT << 8
        return extint or self.mode is ApicMode.DISABLED

    def take_init(self) -> bool:
        """Whether an INIT is pending; clears it. The caller resets the vCPU and calls `init_reset`."""
        with self.lock:
            pending, self.init_pending = self.init_pending, False
            return pending

    def take_sipi(self) -> int | None:
        """The vector of a pending SIPI (the processor starts at vector << 12), or None; clears it."""
        with self.lock:
            pending, self.sipi_pending = self.sipi_pending, False
            return self.sipi_vector if pending else None

    @property
    def cr8(self) -> int:
        """The task priority class, 4 bits, as CR8 shows it."""
        return self.tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.set_tpr((value & 0xF) << 4)

    def set_tpr(self, value: int) -> None:
        """Write the task priority, 8 bits; notifies when a waiting interrupt may come now."""
        with self.lock:
            self.write_tpr(value)
            self._notify_if_deliverable()

    def eoi(self) -> None:
        """End of the highest vector in service."""
        with self.lock:
            isr = self.isr
            if not isr:
                return
            vector = isr.bit_length() - 1
            bit = BIT[vector]
            self.end(vector)
            if (self.tmr | self._bus.eoi_vectors) & bit:
                self._broadcast_eoi(vector, bool(self.tmr & bit))
            self._notify_if_deliverable()

    def eoi_is_awaited(self) -> bool:
        """Whether somebody waits for the EOI of the highest vector in service: the IOAPIC, or a notifier."""
        vector = self.isr.bit_length() - 1
        return bool((self.tmr | self._bus.eoi_vectors) >> vector & 1)

    def _broadcast_eoi(self, vector: int, level: bool) -> None:
        lint0 = self.lvt[LINT0_ENTRY]
        if level and lint0 & d.LVT_REMOTE_IRR and lint0 & d.LVT_VECTOR == vector:
            self.lvt[LINT0_ENTRY] = lint0 & ~d.LVT_REMOTE_IRR
            self._lint0_service()
        # With broadcasts suppressed software ends the interrupt in the IOAPIC itself; ack notifiers still want to know.
        self._bus.eoi(vector, level and not self.spiv & d.SPIV_DIRECTED_EOI)

    def _notify_if_deliverable(self) -> None:
        if self.highest_request() is not None:
            self._notify()

    # ---- the bus's side: messages

    def deliver(self, mode: int, vector: int, level: bool = False, asserted: bool = True) -> bool:
        """Take a message of delivery mode `mode`; True when it was accepted (__apic_accept_irq).

        `level` is the trigger mode; a level de-assert is accepted by nobody.
        """
        if mode <= d.DM_LOWEST:
            return (asserted or not level) and self._request(vector, level)
        if mode == d.DM_EXTINT or mode == d.DM_REMRD or (level and not asserted):
            # ExtINT is polled through `accepts_pic_interrupts`; remote reads left the architecture with the P6.
            return False
        if mode == d.DM_NMI:
            self._hooks.nmi()
        elif mode == d.DM_SMI:
            self._hooks.smi()
        else:
            with self.lock:
                if mode == d.DM_INIT:
                    self.init_pending, self.sipi_pending = True, False
                else:
                    self.sipi_pending, self.sipi_vector = True, vector
                self._notify()
        return True

    def _request(self, vector: int, level: bool) -> bool:
        with self.lock:
            if not self._spiv & d.SPIV_ENABLE:
                return False
            if vector < 16:
                self.raise_error(d.ESR_RECEIVE_ILLEGAL_VECTOR)
                return False
            if self.request(vector, level):
                self._notify()
            return True

    def send_ipi(self) -> None:
        """Send what the ICR says (SDM vol. 3, 11.6.1)."""
        icr = self.icr
        mode, vector = icr >> 8 & 7, icr & 0xFF
        if mode <= d.DM_LOWEST and vector < 16:
            self.raise_error(d.ESR_SEND_ILLEGAL_VECTOR)
            return
        if not icr & (d.ICR_LOGICAL | d.ICR_LEVEL | 3 << d.ICR_SHORTHAND_SHIFT) and mode != d.DM_LOWEST:
            dest = icr >> 32 if self.mode is ApicMode.X2APIC else icr >> 56
            if dest & 0xFF != d.XAPIC_BROADCAST and self._bus.deliver_to_one(dest, mode, vector):
                return
        # Trigger mode and level mean something for INIT only: its level de-assert, ignored since the Pentium 4.
        level = bool(icr & d.ICR_LEVEL) and mode == d.DM_INIT
        dest = icr >> 32 if self.mode is ApicMode.X2APIC else icr >> 56
        message = ApicMessage(
            vector, mode, dest, bool(icr & d.ICR_LOGICAL), level, bool(icr & d.ICR_ASSERT),
            icr >> d.ICR_SHORTHAND_SHIFT & 3,
        )  # fmt: skip
        self._bus.deliver(message, self)

    def send_self_ipi(self, vector: int) -> None:
        """Write the x2APIC SELF IPI register: a fixed, edge-triggered interrupt to this APIC."""
        if vector < 16:
            self.raise_error(d.ESR_SEND_ILLEGAL_VECTOR)
        else:
            self._request(vector, False)

    # ---- own sources: local vector table, pins, errors

    def local_deliver(self, index: int) -> bool:
        """Deliver by local vector table entry `index` (TIMER_ENTRY …), unless it is masked."""
        with self.lock:
            entry = self.lvt[index]
            if entry & d.LVT_MASKED or self.mode is ApicMode.DISABLED:
                return False
            if index == PERF_ENTRY:
                # Hardware masks this entry when it fires; the handler unmasks it (SDM vol. 3, 11.5.1).
                self.lvt[index] = entry | d.LVT_MASKED
            return self.deliver(entry >> 8 & 7, entry & d.LVT_VECTOR)

    def _timer_expired(self) -> None:
        entry = self.lvt[TIMER_ENTRY]
        if not entry & d.LVT_MASKED and self.mode is not ApicMode.DISABLED:
            self._request(entry & d.LVT_VECTOR, False)

    def set_lint0(self, asserted: bool) -> None:
        """The level of LINT0, where the 8259's INTR arrives. ExtINT is asked for, not pushed: see the vCPU's side."""
        with self.lock:
            rising = asserted and not self._lint0
            self._lint0 = asserted
            self._notify_if_extint()
            entry = self.lvt[LINT0_ENTRY]
            if entry & (d.LVT_LEVEL | d.LVT_MODE) == d.LVT_LEVEL | d.DM_FIXED << 8:
                self._lint0_service()
            elif rising:
                self.local_deliver(LINT0_ENTRY)

    def lint0_changed(self) -> None:
        """LINT0's entry was written: an asserted level counts at once; an edge entry has no remote IRR."""
        entry = self.lvt[LINT0_ENTRY]
        if not entry & d.LVT_LEVEL:
            self.lvt[LINT0_ENTRY] = entry & ~d.LVT_REMOTE_IRR
        self._lint0_service()
        self._notify_if_extint()

    def _notify_if_extint(self) -> None:
        if self._lint0 and self.accepts_pic_interrupts():
            self._notify()

    def _lint0_service(self) -> None:
        """A level-sensitive fixed LINT0: request once for each EOI while the pin is asserted."""
        entry = self.lvt[LINT0_ENTRY]
        quiet = entry & (d.LVT_MASKED | d.LVT_REMOTE_IRR | d.LVT_MODE) or not entry & d.LVT_LEVEL
        if self._lint0 and not quiet and self.hw_enabled and self._request(entry & d.LVT_VECTOR, True):
            self.lvt[LINT0_ENTRY] = entry | d.LVT_REMOTE_IRR

    def pulse_lint1(self) -> bool:
        """An edge at LINT1, where boards put the NMI button; False when the guest has it masked."""
        return self.local_deliver(LINT1_ENTRY)

    def raise_error(self, bit: int) -> None:
        """Record an error for the ESR; a new one is delivered through the error entry (SDM vol. 3, 11.5.3)."""
        with self.lock:
            if not self.esr_pending & bit:
                self.esr_pending |= bit
                self.local_deliver(ERROR_ENTRY)

    # ---- the guest's side: registers

    def mmio_in_range(self, gpa: int) -> bool:
        """Whether `gpa` is in the page that IA32_APIC_BASE names, whatever the mode."""
        return gpa & ~0xFFF == self._apic_base & ~0xFFF

    def mmio_read(self, offset: int, size: int) -> int:
        """Load `size` bytes at `offset` of the register page; the caller has asked `mmio_in_range`.

        Outside xAPIC mode nothing answers there: all ones (KVM_X86_QUIRK_LAPIC_MMIO_HOLE).
        """
        if self.mode is not ApicMode.XAPIC:
            return (1 << 8 * size) - 1
        return self._window.mmio_read(offset, size)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to the register page; only aligned 32-bit stores in xAPIC mode have an effect, as in KVM."""
        if self.mode is not ApicMode.XAPIC:
            return
        if offset == d.APIC_EOI and size == 4:
            self.eoi()
        else:
            self._window.mmio_write(offset, size, value)

    def msr_read(self, index: int) -> int:
        """RDMSR of an x2APIC register (0x800 to 0x8ff); `MsrAccessError` where the guest gets #GP(0)."""
        return self._window.msr_read(index)

    def msr_write(self, index: int, value: int) -> None:
        """WRMSR of an x2APIC register; `MsrAccessError` where the guest gets #GP(0)."""
        if index == 0x80B and not value and self.mode is ApicMode.X2APIC:
            self.eoi()
        else:
            self._window.msr_write(index, value)

    @property
    def tsc_deadline(self) -> int:
        """IA32_TSC_DEADLINE: 0 once it has expired, when disarmed, and in the other timer modes."""
        with self.lock:
            self.timer.poll()
            return self.timer.tsc_deadline

    def set_tsc_deadline(self, tsc: int) -> None:
        """Write IA32_TSC_DEADLINE. CPUID says whether the register exists: the caller checks."""
        with self.lock:
            self.timer.set_tsc_deadline(tsc)

    def tsc_changed(self) -> None:
        """The guest's TSC or its scale was changed: the armed deadline moves."""
        with self.lock:
            self.timer.tsc_changed()

    # ---- saved state

    def get_state(self) -> LapicState:
        """The register page as KVM_GET_LAPIC gives it. IA32_APIC_BASE and IA32_TSC_DEADLINE are saved as MSRs."""
        return self._window.get_state()

    def set_state(self, state: LapicState) -> None:
        """Take over a saved register page; set IA32_APIC_BASE before it and IA32_TSC_DEADLINE after it."""
        self._window.set_state(state)
