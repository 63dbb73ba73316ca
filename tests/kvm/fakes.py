"""A hand-cranked clock, a VM's interrupt chips with vCPUs that only take notes, and guest memory in a dict's place."""

from collections.abc import Callable

from pellucid.kvm.irqchip import apicdef as d
from pellucid.kvm.irqchip.irqchip import Irqchip
from pellucid.kvm.irqchip.lapic import Lapic
from pellucid.kvm.irqchip.lapic_hooks import LapicFeatures, LapicHooks
from pellucid.records import dataclass, field


class ManualTimer:
    def __init__(self, clock: "ManualClock", callback: Callable[[], None]) -> None:
        self.clock, self.callback = clock, callback
        self.deadline: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self.deadline = deadline_ns

    def cancel(self) -> None:
        self.deadline = None


class ManualClock:
    """Time moves only by `advance`, which calls back every timer on the way, in order."""

    def __init__(self, now: int = 1_000_000_000) -> None:
        self.now = now
        self.timers: list[ManualTimer] = []
        self.callbacks = 0

    def now_ns(self) -> int:
        return self.now

    def timer(self, callback: Callable[[], None]) -> ManualTimer:
        self.timers.append(ManualTimer(self, callback))
        return self.timers[-1]

    def next_deadline(self) -> int | None:
        return min((timer.deadline for timer in self.timers if timer.deadline is not None), default=None)

    def advance(self, ns: int) -> None:
        end = self.now + ns
        while (deadline := self.next_deadline()) is not None and deadline <= end:
            self.now = max(self.now, deadline)
            due = next(timer for timer in self.timers if timer.deadline == deadline)
            due.deadline = None
            self.callbacks += 1
            due.callback()
        self.now = end


@dataclass
class FakeVcpu:
    """A vCPU that takes its interrupts when asked to, and counts what it was told."""

    chips: Irqchip
    lapic: Lapic = field(init=False)
    notified: int = 0
    nmis: int = 0
    smis: int = 0

    def notify(self) -> None:
        self.notified += 1

    def nmi(self) -> None:
        self.nmis += 1

    def smi(self) -> None:
        self.smis += 1

    def take(self) -> int | None:
        return self.chips.take_interrupt(self.lapic)

    def read(self, offset: int) -> int:
        if self.lapic.mode is d.ApicMode.X2APIC:
            return self.lapic.msr_read(d.X2APIC_MSR_FIRST + (offset >> 4))
        return self.lapic.mmio_read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        if self.lapic.mode is d.ApicMode.X2APIC:
            self.lapic.msr_write(d.X2APIC_MSR_FIRST + (offset >> 4), value)
        else:
            self.lapic.mmio_write(offset, 4, value)

    def requested(self) -> set[int]:
        return {vector for vector in range(256) if self.lapic.irr >> vector & 1}


class FakeVm:
    """Chips with `vcpus` vCPUs whose APICs are software-enabled, and masked PICs. The TSC counts 2 per nanosecond."""

    def __init__(self, vcpus: int = 1, *, split: bool = False, features: LapicFeatures | None = None) -> None:
        self.clock = ManualClock()
        self.chips = Irqchip(self.clock, split=split)
        self.vcpus = [FakeVcpu(self.chips) for _ in range(vcpus)]
        for index, vcpu in enumerate(self.vcpus):
            hooks = LapicHooks(vcpu.notify, vcpu.nmi, vcpu.smi)
            vcpu.lapic = self.chips.create_lapic(
                index, hooks, lambda tsc: tsc // 2, is_bsp=index == 0, features=features
            )
            vcpu.write(d.APIC_SPIV, 0x1FF)
            vcpu.notified = 0

        self.outb(0x21, 0xFF)
        self.outb(0xA1, 0xFF)

    @property
    def vcpu(self) -> FakeVcpu:
        return self.vcpus[0]

    def x2apic(self) -> None:
        for vcpu in self.vcpus:
            vcpu.lapic.set_apic_base(vcpu.lapic.apic_base | d.APIC_BASE_EXTD)

    def outb(self, port: int, value: int) -> None:
        assert self.chips.pio_bus.write(port, 1, value)

    def inb(self, port: int) -> int:
        value = self.chips.pio_bus.read(port, 1)
        assert value is not None
        return value

    def ioapic_read(self, register: int) -> int:
        self.chips.ioapic.mmio_write(0x00, 4, register)
        return self.chips.ioapic.mmio_read(0x10, 4)

    def ioapic_write(self, register: int, value: int) -> None:
        self.chips.ioapic.mmio_write(0x00, 4, register)
        self.chips.ioapic.mmio_write(0x10, 4, value)

    def redirect(self, pin: int, entry: int) -> None:
        """Write a redirection entry, upper half first, as Linux does."""
        self.ioapic_write(0x11 + 2 * pin, entry >> 32)
        self.ioapic_write(0x10 + 2 * pin, entry & 0xFFFF_FFFF)

    def init_pic(self) -> None:
        """What firmware does: vectors from 0x20 and 0x28, nothing masked."""
        for base, vector, icw3 in ((0x20, 0x20, 4), (0xA0, 0x28, 2)):
            self.outb(base, 0x11)
            for value in (vector, icw3, 0x01, 0x00):
                self.outb(base + 1, value)


class GuestMemory:
    """RAM from 0 to its size."""

    def __init__(self, size: int = 0x10000) -> None:
        self.data = bytearray(size)
        self.writes: list[tuple[int, bytes]] = []

    def write(self, gpa: int, data: bytes) -> bool:
        if gpa + len(data) > len(self.data):
            return False
        self.writes.append((gpa, data))
        self.data[gpa : gpa + len(data)] = data
        return True

    def exchange(self, gpa: int, value: int) -> int | None:
        if gpa >= len(self.data):
            return None
        old, self.data[gpa] = self.data[gpa], value
        return old

    def read(self, gpa: int, length: int) -> bytes | None:
        return bytes(self.data[gpa : gpa + length]) if gpa + length <= len(self.data) else None
