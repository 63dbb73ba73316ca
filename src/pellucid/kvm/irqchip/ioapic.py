"""The I/O APIC (82093AA): 24 pins, a redirection table, and level-triggered interrupts that wait for their EOI.

It behaves as KVM's does. A line's level means asserted or not; the polarity bit of an entry is kept and read back but
does not invert, because the board's wires and the guest's ACPI tables agree on polarity between themselves. An edge
that comes while its pin is masked is lost, as on the chip; a level that is still asserted counts when it is unmasked.

Version 0x11 is KVM's. Version 0x20 adds the EOI register, with which software ends a level-triggered interrupt itself
when the local APICs suppress their EOI broadcast.

With `send` the chip is outside the local APICs' bus, as in KVM's split irqchip: each interrupt is a message, made of
the entry's bits as the 82093AA's successors do (VT-d 5.1.5.1), which whoever carries it may translate.
"""

from collections.abc import Callable

from pellucid.kvm.errors import StateError
from pellucid.kvm.irqchip.apic_bus import ApicBus
from pellucid.kvm.irqchip.apicdef import BIT, ApicMessage, IrqchipLock
from pellucid.kvm.irqchip.state import KVM_IOAPIC_NUM_PINS, IoapicState
from pellucid.kvm.msi import MSI_ADDRESS_BASE

IOAPIC_DEFAULT_BASE = 0xFEC0_0000
IOAPIC_MMIO_SIZE = 0x1000
IOAPIC_VERSION_KVM = 0x11
IOAPIC_VERSION_EOI = 0x20

# Offsets in the page.
IOREGSEL = 0x00
IOWIN = 0x10
IOEOI = 0x40

# Indirect registers.
REG_ID = 0
REG_VERSION = 1
REG_ARBITRATION = 2
REG_REDIRECTION = 0x10

# Bits of a redirection entry.
RTE_LOGICAL = 1 << 11
RTE_DELIVERY_STATUS = 1 << 12
RTE_POLARITY = 1 << 13
RTE_REMOTE_IRR = 1 << 14
RTE_LEVEL = 1 << 15
RTE_MASKED = 1 << 16
_MSI_BIT_2, _MSI_ASSERT = 1 << 2, 1 << 14
_RTE_WRITABLE = 0xFF << 56 | 0x1_FFFF & ~(RTE_DELIVERY_STATUS | RTE_REMOTE_IRR)
_RTE_MESSAGE_WRITABLE = ((1 << 64) - 1) & ~(RTE_DELIVERY_STATUS | RTE_REMOTE_IRR)
"""As a message, an entry has meaning above its mask bit too: bits 63:48 are the address's bits 19:4."""


class Ioapic:
    """One I/O APIC.

    `acked(pin)` is called when a pin's interrupt has been ended, `mask_changed(pin, masked)` when its mask bit changes,
    both with the lock held; `has_ack_notifier(pin)` says whether anybody waits for the former.
    """

    def __init__(
        self,
        bus: ApicBus,
        lock: IrqchipLock,
        *,
        version: int = IOAPIC_VERSION_KVM,
        send: Callable[[int, int], int] | None = None,
        acked: Callable[[int], None] = lambda pin: None,
        mask_changed: Callable[[int, bool], None] = lambda pin, masked: None,
        has_ack_notifier: Callable[[int], bool] = lambda pin: False,
    ) -> None:
        self._bus = bus
        self._lock = lock
        self._acked = acked
        self._mask_changed = mask_changed
        self._has_ack_notifier = has_ack_notifier
        self.version = version
        self._send = send
        self._writable = _RTE_WRITABLE if send is None else _RTE_MESSAGE_WRITABLE
        self.base_address = IOAPIC_DEFAULT_BASE
        self._ioregsel = 0
        self._id = 0
        self._irr = 0
        self._redirtbl = [RTE_MASKED] * KVM_IOAPIC_NUM_PINS
        self._messages: list[ApicMessage] = [_message(RTE_MASKED)] * KVM_IOAPIC_NUM_PINS
        self._pins_of: dict[int, tuple[int, ...]] = {}
        bus.eoi_listener = self.eoi
        self.rescan()

    def reset(self) -> None:
        """As after power-up: every pin masked, id 0. Lines keep their level: they belong to the devices."""
        with self._lock:
            self._ioregsel = self._id = 0
            self._redirtbl[:] = [RTE_MASKED] * KVM_IOAPIC_NUM_PINS
            self.rescan()

    # ---- pins and EOIs

    def set_irq(self, pin: int, level: bool) -> None:
        """The level of a pin. For an edge-triggered entry its rise is the request."""
        bit = 1 << pin
        with self._lock:
            was = self._irr
            if not level:
                self._irr = was & ~bit
                return
            self._irr = was | bit
            if self._redirtbl[pin] & RTE_LEVEL or not was & bit:
                self._service(pin)

    def _service(self, pin: int) -> None:
        """Send a pin's interrupt, unless it is masked or, level-triggered, not ended yet."""
        entry = self._redirtbl[pin]
        if entry & (RTE_MASKED | RTE_REMOTE_IRR):
            return
        if self._deliver(pin, entry) and entry & RTE_LEVEL:
            self._redirtbl[pin] |= RTE_REMOTE_IRR

    def _deliver(self, pin: int, entry: int) -> int:
        return self._bus.deliver(self._messages[pin]) if self._send is None else self._send(*msi_of_entry(entry))

    def eoi(self, vector: int, level: bool) -> None:
        """A local APIC ended `vector`; `level` unless it was edge-triggered or the broadcast is suppressed.

        A level-triggered pin that is still asserted is sent again.
        """
        with self._lock:
            for pin in self._pins_of.get(vector, ()):
                self._acked(pin)
                if level:
                    self._end(pin, vector)

    def _end(self, pin: int, vector: int) -> None:
        # The ack notifier may have rewritten nothing, but it may have dropped or raised the line: look at both anew.
        entry = self._redirtbl[pin]
        if entry & RTE_LEVEL and entry & 0xFF == vector and entry & RTE_REMOTE_IRR:
            self._redirtbl[pin] = entry & ~RTE_REMOTE_IRR
            if self._irr >> pin & 1:
                self._service(pin)

    def rescan(self) -> None:
        """Recompute what is derived from the table: messages, pins by vector, the vectors whose edge EOIs matter."""
        with self._lock:
            pins_of: dict[int, tuple[int, ...]] = {}
            wanted = 0
            for pin, entry in enumerate(self._redirtbl):
                self._messages[pin] = _message(entry)
                vector = entry & 0xFF
                pins_of[vector] = (*pins_of.get(vector, ()), pin)
                if self._has_ack_notifier(pin):
                    wanted |= BIT[vector]
            self._pins_of = pins_of
            self._bus.eoi_vectors = wanted

    # ---- registers

    def mmio_in_range(self, gpa: int) -> bool:
        """Whether `gpa` is in the register page."""
        return gpa & ~(IOAPIC_MMIO_SIZE - 1) == self.base_address

    def mmio_read(self, offset: int, size: int) -> int:
        """Load from the page: the index, the indirect register, else 0."""
        with self._lock:
            value = self._ioregsel if offset == IOREGSEL else self._read_indirect() if offset == IOWIN else 0
        return value & (1 << 8 * min(size, 4)) - 1

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """Store to the page; narrow stores write the register with zeros above."""
        value &= (1 << 8 * min(size, 4)) - 1
        with self._lock:
            if offset == IOREGSEL:
                self._ioregsel = value & 0xFF
            elif offset == IOWIN:
                self._write_indirect(value)
            elif offset == IOEOI and self.version >= IOAPIC_VERSION_EOI:
                self._eoi_register(value & 0xFF)

    def _eoi_register(self, vector: int) -> None:
        for pin in self._pins_of.get(vector, ()):
            self._end(pin, vector)

    def _read_indirect(self) -> int:
        index = self._ioregsel
        if index in (REG_ID, REG_ARBITRATION):
            return self._id << 24
        if index == REG_VERSION:
            return (KVM_IOAPIC_NUM_PINS - 1) << 16 | self.version
        pin, high = divmod(index - REG_REDIRECTION, 2)
        if not 0 <= pin < KVM_IOAPIC_NUM_PINS:
            return 0
        return self._redirtbl[pin] >> (32 if high else 0) & 0xFFFF_FFFF

    def _write_indirect(self, value: int) -> None:
        index = self._ioregsel
        if index == REG_ID:
            self._id = value >> 24 & 0xF
            return
        pin, high = divmod(index - REG_REDIRECTION, 2)
        if 0 <= pin < KVM_IOAPIC_NUM_PINS:
            self._write_entry(pin, bool(high), value)

    def _write_entry(self, pin: int, high: bool, value: int) -> None:
        old = self._redirtbl[pin]
        merged = value << 32 | old & 0xFFFF_FFFF if high else old >> 32 << 32 | value
        entry = merged & self._writable
        if entry & RTE_LEVEL:
            # Remote IRR is read-only; an edge entry has none, which is how software clears it without an EOI register.
            entry |= old & RTE_REMOTE_IRR
        self._redirtbl[pin] = entry
        if (entry ^ old) & ~RTE_MASKED:
            self.rescan()
        if (entry ^ old) & RTE_MASKED:
            self._mask_changed(pin, bool(entry & RTE_MASKED))
        if entry & RTE_LEVEL and self._irr >> pin & 1:
            self._service(pin)

    # ---- saved state

    def get_state(self) -> IoapicState:
        """State as KVM_GET_IRQCHIP gives it."""
        with self._lock:
            return IoapicState(
                base_address=self.base_address,
                ioregsel=self._ioregsel,
                id=self._id,
                irr=self._irr,
                redirtbl=tuple(self._redirtbl),
            )

    def set_state(self, state: IoapicState) -> None:
        """Take over saved state; pins whose line is asserted are looked at anew. Unknown bits are dropped."""
        if state.base_address & (IOAPIC_MMIO_SIZE - 1) or state.base_address >> 52:
            raise StateError(f"IoapicState.base_address: {state.base_address:#x} is no page address")
        if state.irr >> KVM_IOAPIC_NUM_PINS:
            raise StateError(f"IoapicState.irr: {state.irr:#x} names pins beyond {KVM_IOAPIC_NUM_PINS}")
        with self._lock:
            self.base_address = state.base_address
            self._ioregsel = state.ioregsel & 0xFF
            self._id = state.id & 0xF
            self._redirtbl[:] = [self._valid_entry(entry) for entry in state.redirtbl]
            self._irr = state.irr
            self.rescan()
            # An asserted edge pin was sent before the state was saved, or lost to its mask; a level asks again.
            for pin, entry in enumerate(self._redirtbl):
                if entry & RTE_LEVEL and self._irr >> pin & 1:
                    self._service(pin)

    def _valid_entry(self, entry: int) -> int:
        entry &= self._writable | RTE_REMOTE_IRR
        return entry if entry & RTE_LEVEL else entry & ~RTE_REMOTE_IRR


def msi_of_entry(entry: int) -> tuple[int, int]:
    """(address, data) of the message that an entry means (VT-d 5.1.5.1; SDM vol. 3, 11.11 for what is not remapped).

    Bits 63:48 become the address's bits 19:4, and bit 11 its bit 2: destination and mode, or handle and format.
    """
    address = MSI_ADDRESS_BASE | entry >> 48 << 4 | (_MSI_BIT_2 if entry & RTE_LOGICAL else 0)
    return address, entry & 0x7FF | entry & RTE_LEVEL | _MSI_ASSERT


def _message(entry: int) -> ApicMessage:
    return ApicMessage(
        vector=entry & 0xFF,
        delivery_mode=entry >> 8 & 7,
        dest_id=entry >> 56,
        logical=bool(entry & RTE_LOGICAL),
        level=bool(entry & RTE_LEVEL),
    )
