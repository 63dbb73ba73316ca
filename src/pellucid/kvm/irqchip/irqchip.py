"""The interrupt chips of a VM, wired together: what KVM_CREATE_IRQCHIP and KVM_CREATE_PIT2 make.

    gsi ── routing ──┬── PIC pair ── INTR ── LINT0 of each LAPIC (ExtINT)
                     ├── IOAPIC ────┐
                     └── MSI ───────┴── APIC bus ── LAPICs

A backend makes one `Irqchip` for a VM, a LAPIC for each vCPU, and asks it for port and MMIO accesses before it lets
them leave to the machine.
"""

import threading
from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.kvm.coalesced import CoalescedRing
from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.eventfd import IoeventfdRegistry, IrqfdManager
from pellucid.kvm.io_bus import BusRange, IoBus
from pellucid.kvm.irqchip.apic_bus import ApicBus
from pellucid.kvm.irqchip.ioapic import IOAPIC_VERSION_EOI, IOAPIC_VERSION_KVM, Ioapic
from pellucid.kvm.irqchip.lapic import Lapic
from pellucid.kvm.irqchip.lapic_hooks import Cell, LapicFeatures, LapicHooks
from pellucid.kvm.irqchip.pic import PIC_ELCR_BASE, PIC_MASTER_BASE, PIC_SLAVE_BASE, PicPair
from pellucid.kvm.irqchip.pit import PIT_BASE, PIT_SIZE, SPEAKER_PORT, Pit
from pellucid.kvm.irqchip.state import (
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    IoapicState,
    PicState,
)
from pellucid.kvm.routing import IrqRouting, IrqSource

PIT_GSI = 0


class Irqchip:
    """PIC pair, IOAPIC, APIC bus, routing, the in-kernel buses, irqfds, and the PIT when asked for.

    `lock` is shared by all chips and by nobody who waits for anything else while holding it. `split` is what KVM calls
    a split irqchip: the IOAPIC's interrupts are messages that `carry_message` takes, with the lock held.
    """

    def __init__(self, clock: Clock, coalesced: CoalescedRing | None = None, *, split: bool = False) -> None:
        self._clock = clock
        self.lock = threading.RLock()
        self.bus = ApicBus(self.lock)
        self.routing = IrqRouting(self.lock, self.bus)
        self._split = split
        self.carry_message: Callable[[int, int], int] = self.routing.signal_msi
        """Takes (address, data) of a split IOAPIC's message; the number of APICs that accepted it."""
        self.pic = PicPair(
            self.lock,
            output_changed=self._pic_output_changed,
            acked=lambda pin: self.routing.acked(*_pic_pin(pin)),
            mask_changed=lambda pin, masked: self.routing.mask_changed(*_pic_pin(pin), masked),
        )
        self.ioapic = Ioapic(
            self.bus,
            self.lock,
            version=IOAPIC_VERSION_EOI if split else IOAPIC_VERSION_KVM,
            send=(lambda address, data: self.carry_message(address, data)) if split else None,
            acked=lambda pin: self.routing.acked(KVM_IRQCHIP_IOAPIC, pin),
            mask_changed=lambda pin, masked: self.routing.mask_changed(KVM_IRQCHIP_IOAPIC, pin, masked),
            has_ack_notifier=lambda pin: self.routing.has_ack_notifier(KVM_IRQCHIP_IOAPIC, pin),
        )
        self.routing.connect(KVM_IRQCHIP_PIC_MASTER, self.pic.set_irq)
        self.routing.connect(KVM_IRQCHIP_PIC_SLAVE, lambda pin, level: self.pic.set_irq(pin + 8, level))
        self.routing.connect(KVM_IRQCHIP_IOAPIC, self.ioapic.set_irq)
        self.routing.changed = self.ioapic.rescan
        self.irqfds = IrqfdManager(self.routing)
        self.pio_ioeventfds = IoeventfdRegistry()
        self.mmio_ioeventfds = IoeventfdRegistry()
        self.pio_bus = IoBus(self.pio_ioeventfds, coalesced, pio=True)
        self.mmio_bus = IoBus(self.mmio_ioeventfds, coalesced, pio=False)
        self._register_pic()
        self.pit: Pit | None = None
        self._lapics: tuple[Lapic, ...] = ()

    def _register_pic(self) -> None:
        for chip, base in enumerate((PIC_MASTER_BASE, PIC_SLAVE_BASE)):
            self.pio_bus.register(BusRange(base, 2, _pic_reader(self.pic, chip), _pic_writer(self.pic, chip)))
        self.pio_bus.register(
            BusRange(
                PIC_ELCR_BASE,
                2,
                lambda offset, size: self.pic.read_elcr(offset),
                lambda offset, size, value: self.pic.write_elcr(offset, value & 0xFF),
            )
        )

    def create_pit(self) -> Pit:
        """Add the PIT with its speaker port, ticking on gsi 0."""
        if self.pit is not None:
            raise InvalidRequestError("the VM has a PIT already")
        pit = Pit(self._clock, self.lock, lambda level: _discard(self.routing.set_irq(PIT_GSI, level, IrqSource.PIT)))
        self.routing.add_ack_notifier(PIT_GSI, pit.irq_acked)
        self.routing.add_mask_notifier(PIT_GSI, pit.irq_mask_changed)
        self.pio_bus.register(BusRange(PIT_BASE, PIT_SIZE, pit.read, pit.write))
        self.pio_bus.register(BusRange(SPEAKER_PORT, 1, pit.speaker_read, pit.speaker_write))
        if self._split:
            # Where somebody translates the message, the vector that ends is not the pin's: no tick waits for its end.
            pit.set_reinject(False)
        self.pit = pit
        return pit

    def reinject_control(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL: what the PIT does with lost ticks."""
        if self.pit is None:
            raise InvalidRequestError("the VM has no PIT: call create_pit first")
        self.pit.set_reinject(reinject)

    def create_lapic(
        self,
        apic_id: int,
        hooks: LapicHooks,
        tsc_to_ns: Callable[[int], int],
        *,
        is_bsp: bool = False,
        features: LapicFeatures | None = None,
        icr: Cell | None = None,
        vectors: memoryview | None = None,
    ) -> Lapic:
        """A local APIC for a new vCPU; `Lapic` says what the arguments mean."""
        if any(lapic.initial_id == apic_id for lapic in self._lapics):
            raise InvalidRequestError(f"there is a vCPU with APIC id {apic_id} already")
        lapic = Lapic(apic_id, self.bus, self._clock, self.lock, hooks, tsc_to_ns, is_bsp=is_bsp, features=features,
                      icr=icr, vectors=vectors)
        with self.lock:
            self._lapics = (*self._lapics, lapic)
            lapic.set_lint0(self.pic.output)
        return lapic

    def destroy_lapic(self, lapic: Lapic) -> None:
        """Take a vCPU's local APIC away."""
        with self.lock:
            self._lapics = tuple(other for other in self._lapics if other is not lapic)
            lapic.close()

    def reset(self) -> None:
        """Reset PIC pair, IOAPIC and PIT; the LAPICs are reset with their vCPUs."""
        with self.lock:
            self.pic.reset()
            self.ioapic.reset()
            if self.pit is not None:
                self.pit.reset()

    def close(self) -> None:
        """Stop the irqfd thread and every timer."""
        self.irqfds.close()
        for lapic in self._lapics:
            self.destroy_lapic(lapic)
        if self.pit is not None:
            self.pit.reset()

    # ---- what a vCPU asks

    def _pic_output_changed(self, level: bool) -> None:
        for lapic in self._lapics:
            lapic.set_lint0(level)

    def has_interrupt(self, lapic: Lapic) -> bool:
        """Whether there is an interrupt for this vCPU to take (kvm_cpu_has_injectable_intr)."""
        return lapic.get_interrupt() is not None or self.has_extint(lapic)

    def has_extint(self, lapic: Lapic) -> bool:
        """Whether the 8259 has one for it, which native code does not know of (kvm_cpu_has_extint)."""
        return self.pic.output and lapic.accepts_pic_interrupts()

    def take_interrupt(self, lapic: Lapic) -> int | None:
        """Acknowledge the interrupt to inject; its vector (kvm_cpu_get_interrupt). The 8259's ExtINT goes first."""
        with self.lock:
            if self.has_extint(lapic):
                vector: int | None = self.pic.read_irq()
                if self.pic.output:
                    # INTR did not fall (automatic EOI): no edge will tell of the next one.
                    lapic.set_lint0(True)
                return vector
            vector = lapic.get_interrupt()
            if vector is not None:
                lapic.accept(vector)
            return vector

    def mmio_read(self, lapic: Lapic, gpa: int, size: int) -> int | None:
        """A load by the vCPU of `lapic` from LAPIC, IOAPIC or another in-kernel device; None when none is there."""
        if lapic.mmio_in_range(gpa):
            return lapic.mmio_read(gpa & 0xFFF, size)
        if self.ioapic.mmio_in_range(gpa):
            return self.ioapic.mmio_read(gpa & 0xFFF, size)
        return self.mmio_bus.read(gpa, size)

    def mmio_write(self, lapic: Lapic, gpa: int, size: int, value: int) -> bool:
        """A store by the vCPU of `lapic`; False when no in-kernel device took it."""
        if lapic.mmio_in_range(gpa):
            lapic.mmio_write(gpa & 0xFFF, size, value)
        elif self.ioapic.mmio_in_range(gpa):
            self.ioapic.mmio_write(gpa & 0xFFF, size, value)
        else:
            return self.mmio_bus.write(gpa, size, value)
        return True

    # ---- what the machine asks

    def answers(self, address: int, size: int, *, pio: bool) -> bool:
        """Whether a chip other than the local APICs takes a read there."""
        if not pio and self.ioapic.mmio_in_range(address):
            return True
        return (self.pio_bus if pio else self.mmio_bus).answers(address, size)

    def chip_read(self, address: int, size: int, *, pio: bool) -> int | None:
        """A read by somebody who is no vCPU, of every chip but the local APICs."""
        if not pio and self.ioapic.mmio_in_range(address):
            return self.ioapic.mmio_read(address & 0xFFF, size)
        return (self.pio_bus if pio else self.mmio_bus).read(address, size)

    def chip_write(self, address: int, size: int, value: int, *, pio: bool) -> bool:
        """A write; whether a chip took it."""
        if not pio and self.ioapic.mmio_in_range(address):
            self.ioapic.mmio_write(address & 0xFFF, size, value)
            return True
        return (self.pio_bus if pio else self.mmio_bus).write_now(address, size, value)

    # ---- saved state

    def get_irqchip(self, chip: int) -> PicState | IoapicState:
        """State of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        if chip == KVM_IRQCHIP_IOAPIC:
            return self.ioapic.get_state()
        _check_chip(chip)
        return self.pic.get_state(chip)

    def set_irqchip(self, chip: int, state: PicState | IoapicState) -> None:
        """Set it; `StateError` when the chip could not be in this state."""
        if chip == KVM_IRQCHIP_IOAPIC and isinstance(state, IoapicState):
            self.ioapic.set_state(state)
        elif isinstance(state, PicState):
            _check_chip(chip)
            self.pic.set_state(chip, state)
        else:
            raise InvalidRequestError(f"{type(state).__name__} is not the state of chip {chip}")


def _check_chip(chip: int) -> None:
    if chip not in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE):
        raise InvalidRequestError(f"there is no 8259 numbered {chip}")


def _pic_pin(pin: int) -> tuple[int, int]:
    return KVM_IRQCHIP_PIC_SLAVE if pin >= 8 else KVM_IRQCHIP_PIC_MASTER, pin & 7


def _pic_reader(pic: PicPair, chip: int) -> Callable[[int, int], int]:
    return lambda offset, size: pic.read(chip, offset)


def _pic_writer(pic: PicPair, chip: int) -> Callable[[int, int, int], None]:
    return lambda offset, size, value: pic.write(chip, offset, value)


def _discard(_: int) -> None:
    """The number of deliveries does not matter here."""
