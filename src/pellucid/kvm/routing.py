"""Global system interrupts and where they lead: PIC pins, IOAPIC pins, or a message.

A gsi is what a board's wires are numbered by. Each may lead to one pin of each chip, or to one MSI. A pin can be driven
by several sources (the board, the PIT, a resampling irqfd): its level is the OR of theirs, so one source's release does
not drop another's request. Ack notifiers hear when the guest has ended the interrupt of a gsi; mask notifiers when its
pin is masked or unmasked.
"""

from collections.abc import Callable, Sequence
from enum import IntEnum

from pellucid.kvm.errors import InvalidRequestError
from pellucid.kvm.irqchip.apic_bus import ApicBus
from pellucid.kvm.irqchip.apicdef import ApicMessage, IrqchipLock
from pellucid.kvm.irqchip.state import (
    KVM_IOAPIC_NUM_PINS,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
)
from pellucid.kvm.msi import msi_message
from pellucid.records import dataclass

KVM_MAX_IRQ_ROUTES = 4096

_PINS = {KVM_IRQCHIP_PIC_MASTER: 8, KVM_IRQCHIP_PIC_SLAVE: 8, KVM_IRQCHIP_IOAPIC: KVM_IOAPIC_NUM_PINS}


class IrqSource(IntEnum):
    """Who drives a line (KVM's irq source ids)."""

    USERSPACE = 0
    IRQFD_RESAMPLE = 1
    PIT = 2


@dataclass(frozen=True, slots=True)
class IrqchipRoute:
    """`gsi` leads to pin `pin` of chip KVM_IRQCHIP_*."""

    gsi: int
    chip: int
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """`gsi` sends the message `data` to `address` each time it is raised."""

    gsi: int
    address: int
    data: int


RoutingEntry = IrqchipRoute | MsiRoute
Pin = tuple[int, int]
AckNotifier = Callable[[], None]
MaskNotifier = Callable[[bool], None]


def default_irq_routing() -> list[RoutingEntry]:
    """The PC's table: gsi 0 to PIC 0 and IOAPIC pin 2, gsi 1 and 3 to 15 to their pins on both, 16 to 23 to the IOAPIC.

    It is what QEMU gives KVM for its PC boards. KVM's own table before that sends gsi 0 to pin 0 and 2 to pin 2; the
    difference is the timer, which a PC's ACPI tables say is on pin 2.
    """
    routes: list[RoutingEntry] = []
    for irq in range(16):
        if irq != 2:  # the cascade of the two PICs
            chip = KVM_IRQCHIP_PIC_SLAVE if irq >= 8 else KVM_IRQCHIP_PIC_MASTER
            routes.append(IrqchipRoute(irq, chip, irq & 7))
    routes.append(IrqchipRoute(0, KVM_IRQCHIP_IOAPIC, 2))
    routes += [IrqchipRoute(pin, KVM_IRQCHIP_IOAPIC, pin) for pin in range(KVM_IOAPIC_NUM_PINS) if pin not in (0, 2)]
    return routes


@dataclass(frozen=True, slots=True)
class _Target:
    pins: tuple[Pin, ...]
    message: ApicMessage | None


class IrqRouting:
    """The routing table of one VM, at first `default_irq_routing`. `connect` gives it the chips."""

    def __init__(self, lock: IrqchipLock, bus: ApicBus) -> None:
        self._lock = lock
        self._bus = bus
        self._chips: dict[int, Callable[[int, bool], None]] = {}
        self._targets: dict[int, _Target] = {}
        self._gsis_of: dict[Pin, tuple[int, ...]] = {}
        self._sources: dict[Pin, int] = {}
        self.raised: dict[Pin, int] = {}
        """How often each pin rose, for `info irq`."""
        self.intercept: Callable[[int, bool], None] | None = None
        """Gets every change of a gsi's level in place of the chips, for tests of devices; not for an MSI's."""
        self._ack_notifiers: dict[int, tuple[AckNotifier, ...]] = {}
        self._mask_notifiers: dict[int, tuple[MaskNotifier, ...]] = {}
        self.changed: Callable[[], None] = _nothing
        """Called when it may have changed which pins have an ack notifier."""
        self.set_routes(default_irq_routing())

    def connect(self, chip: int, set_pin: Callable[[int, bool], None]) -> None:
        """Give chip KVM_IRQCHIP_* its pins' levels through `set_pin(pin, level)`; once for each chip, at the start."""
        self._chips[chip] = set_pin

    # ---- table

    def set_routes(self, entries: Sequence[RoutingEntry]) -> None:
        """Replace the table; `InvalidRequestError` names the first bad entry, and the old table stays."""
        if len(entries) > KVM_MAX_IRQ_ROUTES:
            raise InvalidRequestError(f"{len(entries)} interrupt routes given, {KVM_MAX_IRQ_ROUTES} is the limit")
        targets: dict[int, _Target] = {}
        for entry in entries:
            _check_entry(entry, targets.get(entry.gsi))
            old = targets.get(entry.gsi)
            if isinstance(entry, MsiRoute):
                targets[entry.gsi] = _Target((), msi_message(entry.address, entry.data))
            else:
                targets[entry.gsi] = _Target((*(old.pins if old else ()), (entry.chip, entry.pin)), None)
        gsis_of: dict[Pin, tuple[int, ...]] = {}
        for gsi, target in targets.items():
            for pin in target.pins:
                gsis_of[pin] = (*gsis_of.get(pin, ()), gsi)
        with self._lock:
            self._targets, self._gsis_of = targets, gsis_of
            self.changed()

    def set_irq(self, gsi: int, level: bool, source: int = IrqSource.USERSPACE) -> int:
        """Set the level that `source` drives `gsi` at. For an MSI route a rise sends the message.

        Returns how many APICs took the message; 0 for pins and for a gsi that leads nowhere.
        """
        target = self._targets.get(gsi)
        if target is None:
            return 0
        if self.intercept is not None and target.pins:
            self.intercept(gsi, level)
            if not level:
                # Nobody else will end the interrupt, which a PIT waits for before its next one.
                for notifier in self._ack_notifiers.get(gsi, ()):
                    notifier()
            return 0
        with self._lock:
            for pin in target.pins:
                old = self._sources.get(pin, 0)
                new = old | 1 << source if level else old & ~(1 << source)
                self._sources[pin] = new
                if new and not old:
                    self.raised[pin] = self.raised.get(pin, 0) + 1
                self._chips[pin[0]](pin[1], new != 0)
            return self._bus.deliver(target.message) if target.message is not None and level else 0

    def signal_msi(self, address: int, data: int) -> int:
        """Send a message (KVM_SIGNAL_MSI); the number of APICs that took it."""
        return self._bus.deliver(msi_message(address, data))

    def lines(self, chip: int) -> list[int]:
        """The pins of `chip` that some source asserts now."""
        with self._lock:
            return [pin for (owner, pin), sources in self._sources.items() if owner == chip and sources]

    # ---- notifiers

    def add_ack_notifier(self, gsi: int, notifier: AckNotifier) -> None:
        """Call `notifier` each time the guest ends the interrupt of `gsi`; with the irqchip lock held."""
        with self._lock:
            self._ack_notifiers[gsi] = (*self._ack_notifiers.get(gsi, ()), notifier)
            self.changed()

    def remove_ack_notifier(self, gsi: int, notifier: AckNotifier) -> None:
        """Stop calling `notifier`."""
        with self._lock:
            left = tuple(other for other in self._ack_notifiers.get(gsi, ()) if other != notifier)
            if left:
                self._ack_notifiers[gsi] = left
            else:
                self._ack_notifiers.pop(gsi, None)
            self.changed()

    def has_ack_notifier(self, chip: int, pin: int) -> bool:
        """Whether anybody waits for the end of this pin's interrupt."""
        return any(gsi in self._ack_notifiers for gsi in self._gsis_of.get((chip, pin), ()))

    def acked(self, chip: int, pin: int) -> None:
        """The guest ended this pin's interrupt: the chips call it (kvm_notify_acked_irq)."""
        for gsi in self._gsis_of.get((chip, pin), ()):
            for notifier in self._ack_notifiers.get(gsi, ()):
                notifier()

    def add_mask_notifier(self, gsi: int, notifier: MaskNotifier) -> None:
        """Call `notifier(masked)` each time a pin that `gsi` leads to is masked or unmasked; with the lock held."""
        with self._lock:
            self._mask_notifiers[gsi] = (*self._mask_notifiers.get(gsi, ()), notifier)

    def mask_changed(self, chip: int, pin: int, masked: bool) -> None:
        """A pin was masked or unmasked: the chips call it."""
        for gsi in self._gsis_of.get((chip, pin), ()):
            for notifier in self._mask_notifiers.get(gsi, ()):
                notifier(masked)


def _nothing() -> None:
    """Nobody cares."""


def _check_entry(entry: RoutingEntry, old: _Target | None) -> None:
    if not 0 <= entry.gsi < KVM_MAX_IRQ_ROUTES:
        raise InvalidRequestError(f"{entry}: gsi must be below {KVM_MAX_IRQ_ROUTES}")
    if isinstance(entry, MsiRoute):
        if old is not None:
            raise InvalidRequestError(f"{entry}: gsi {entry.gsi} is routed already; an MSI stands alone")
        return
    if entry.chip not in _PINS:
        raise InvalidRequestError(f"{entry}: there is no chip {entry.chip}")
    if not 0 <= entry.pin < _PINS[entry.chip]:
        raise InvalidRequestError(f"{entry}: chip {entry.chip} has {_PINS[entry.chip]} pins")
    if old is not None and (old.message is not None or any(chip == entry.chip for chip, _ in old.pins)):
        raise InvalidRequestError(f"{entry}: gsi {entry.gsi} is routed to this chip, or to an MSI, already")
