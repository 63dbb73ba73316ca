"""The bus between local APICs, IOAPIC and MSI: who is meant by a message, and who hears of an EOI.

Destinations are resolved as KVM does (Intel SDM vol. 3, 11.6.2): physical ids by table, logical ids by asking each
APIC's LDR in its own mode, 0xff from the IOAPIC or MSI as broadcast whatever the mode of the targets, lowest priority
to the software-enabled target of the lowest task priority class, in turn among equals.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from pellucid.kvm.irqchip.apicdef import (
    DFR_FLAT,
    DM_LOWEST,
    X2APIC_BROADCAST,
    XAPIC_BROADCAST,
    ApicMessage,
    ApicMode,
    IrqchipLock,
    Shorthand,
)


class LocalApic(Protocol):
    """What the bus needs of a local APIC."""

    id: int
    """The id in the present mode: 8 bits and writable in xAPIC mode, 32 bits in x2APIC mode."""
    ldr: int
    dfr: int
    arb_prio: int
    """How many lowest-priority messages it got; breaks ties among equal priorities."""

    @property
    def mode(self) -> ApicMode:
        """How software reaches it, if at all."""
        ...

    @property
    def tpr(self) -> int:
        """The task priority, 8 bits."""
        ...

    @property
    def software_enabled(self) -> bool:
        """Enabled in the spurious-interrupt vector register."""
        ...

    def deliver(self, mode: int, vector: int, level: bool = False, asserted: bool = True) -> bool:
        """Take a message; False when it was not accepted."""
        ...


def _ignore_eoi(vector: int, level: bool) -> None:
    """No IOAPIC is attached: nobody waits for EOIs."""


def _ignore_change() -> None:
    """Nobody resolves destinations beside the bus."""


class ApicBus:
    """Carries messages to the local APICs of one VM, and their EOIs to the IOAPIC."""

    def __init__(self, lock: IrqchipLock) -> None:
        self._lock = lock
        self._lapics: tuple[LocalApic, ...] = ()
        self._present: tuple[LocalApic, ...] = ()
        self._physical: dict[int, tuple[LocalApic, ...]] = {}
        self._eoi_vectors = 0
        self.eoi_listener: Callable[[int, bool], None] = _ignore_eoi
        """Called as (vector, level) at the EOI of a level-triggered vector and of those in `eoi_vectors`."""
        self.changed: Callable[[], None] = _ignore_change
        """Called, with the lock held, when a destination may name other APICs, or `eoi_vectors` are others."""

    @property
    def eoi_vectors(self) -> int:
        """Vectors, a 256-bit set, whose EOI the IOAPIC wants even when edge-triggered: an ack notifier waits."""
        return self._eoi_vectors

    @eoi_vectors.setter
    def eoi_vectors(self, vectors: int) -> None:
        if vectors != self._eoi_vectors:
            self._eoi_vectors = vectors
            self.changed()

    @property
    def physical(self) -> Mapping[int, tuple[LocalApic, ...]]:
        """By id, the APICs that have it."""
        return self._physical

    @property
    def present(self) -> tuple[LocalApic, ...]:
        """The APICs that are on."""
        return self._present

    def attach(self, lapic: LocalApic) -> None:
        """Add a local APIC."""
        with self._lock:
            self._lapics = (*self._lapics, lapic)
            self.recalculate()

    def detach(self, lapic: LocalApic) -> None:
        """Remove a local APIC, its vCPU being destroyed."""
        with self._lock:
            self._lapics = tuple(other for other in self._lapics if other is not lapic)
            self.recalculate()

    def recalculate(self) -> None:
        """An APIC's mode or an id is another (kvm_recalculate_apic_map). Equal ids are legal: all of them are meant."""
        with self._lock:
            self._present = tuple(lapic for lapic in self._lapics if lapic.mode is not ApicMode.DISABLED)
            table: dict[int, tuple[LocalApic, ...]] = {}
            for lapic in self._present:
                table[lapic.id] = (*table.get(lapic.id, ()), lapic)
            self._physical = table
            self.changed()

    def deliver(self, message: ApicMessage, source: LocalApic | None = None) -> int:
        """Deliver `message`; the number of APICs that accepted it.

        `source` is the APIC whose ICR sent it; None for IOAPIC and MSI.
        """
        with self._lock:
            targets = self._targets(message, source)
            if message.delivery_mode == DM_LOWEST or message.redirection_hint:
                targets = self._lowest_priority(targets)
            accepted = 0
            for lapic in targets:
                if lapic.deliver(message.delivery_mode, message.vector, message.level, message.asserted):
                    accepted += 1
            return accepted

    def _targets(self, message: ApicMessage, source: LocalApic | None) -> tuple[LocalApic, ...]:
        if message.shorthand != Shorthand.NONE:
            if message.shorthand == Shorthand.SELF:
                return () if source is None else (source,)
            if message.shorthand == Shorthand.ALL_INCLUDING_SELF:
                return self._present
            return tuple(lapic for lapic in self._present if lapic is not source)
        dest = message.dest_id
        # An id of 255 in an x2APIC sender's ICR is the processor with that id, not everybody.
        from_x2apic = source is not None and source.mode is ApicMode.X2APIC
        if dest == (X2APIC_BROADCAST if from_x2apic else XAPIC_BROADCAST) or dest == X2APIC_BROADCAST:
            return self._present
        if not message.logical:
            return self._physical.get(dest, ())
        return tuple(lapic for lapic in self._present if matches_logical(lapic, dest))

    @staticmethod
    def _lowest_priority(targets: Iterable[LocalApic]) -> tuple[LocalApic, ...]:
        candidates = [lapic for lapic in targets if lapic.software_enabled]
        if not candidates:
            return ()
        chosen = min(candidates, key=lambda lapic: (lapic.tpr >> 4, lapic.arb_prio))
        chosen.arb_prio += 1
        return (chosen,)

    def deliver_to_one(self, apic_id: int, mode: int, vector: int) -> bool:
        """An edge-triggered message to a physical id; False where it is not one APIC's alone: `deliver` knows more."""
        targets = self._physical.get(apic_id, ())
        if len(targets) != 1:
            return False
        targets[0].deliver(mode, vector)
        return True

    def deliver_to(self, apic_ids: Iterable[int], mode: int, vector: int, *, level: bool, asserted: bool) -> int:
        """Deliver to the APICs with these ids, in their present mode; how many accepted it (KVM_HC_SEND_IPI)."""
        with self._lock:
            targets = [lapic for apic_id in apic_ids for lapic in self._physical.get(apic_id, ())]
            return sum(lapic.deliver(mode, vector, level, asserted) for lapic in targets)

    def eoi(self, vector: int, level: bool) -> None:
        """A local APIC ended `vector`. `level` is False for edge vectors and where the broadcast is suppressed."""
        self.eoi_listener(vector, level)


def matches_logical(lapic: LocalApic, dest: int) -> bool:
    """Whether the logical destination `dest` names this APIC (SDM vol. 3, 11.6.2.2 and 11.12.10)."""
    ldr = lapic.ldr
    if lapic.mode is ApicMode.X2APIC:
        return ldr >> 16 == dest >> 16 and bool(ldr & dest & 0xFFFF)
    logical_id = ldr >> 24
    if dest > 0xFF:
        return False
    if lapic.dfr == DFR_FLAT:
        return bool(logical_id & dest)
    if lapic.dfr >> 28 == 0:
        return logical_id >> 4 == dest >> 4 and bool(logical_id & dest & 0xF)
    return False  # the other models are reserved
