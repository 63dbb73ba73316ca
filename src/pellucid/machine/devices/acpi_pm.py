"""The ACPI registers that PIIX4 and ICH9 have alike (ACPI 6.3, 4.8.3): PM1 events and control, the PM timer, the SCI.

The block lies in port space where a configuration register puts it, while another enables it: PM1 status and enable at
0, PM1 control at 4, the PM timer at 8 (3.579545 MHz, 24 bits, its top bit's changes raise an interrupt).
"""

from collections.abc import Callable
from typing import ClassVar

from pellucid.kvm.clock import Clock, ClockValue
from pellucid.machine.device import Region, RegionOps, Register, State
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import PciFunction
from pellucid.machine.state import U64
from pellucid.memory import AccessSizes, ClockRegister, MemoryRegion, MemoryTransaction
from pellucid.runtime.requests import WakeReason

PM_TIMER_HZ = 3_579_545
NANOSECONDS = 1_000_000_000
TIMER_MASK, TIMER_TOP = 0xFF_FFFF, 0x80_0000
TIMER_VALUE = ClockValue(PM_TIMER_HZ, TIMER_MASK)
TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS = 0x0001, 0x0020, 0x0100, 0x0400, 0x8000
PM1_EVENTS = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS
WAKE_EVENTS = {WakeReason.OTHER: PWRBTN_STS, WakeReason.RTC: RTC_STS, WakeReason.PM_TIMER: TMR_STS}
SCI_EN, SLP_EN = 0x0001, 0x2000
SLEEP_S5, SLEEP_S3, SLEEP_S4 = 0, 1, 2
"""SLP_TYP values of these chips, as the DSDT gives them."""

EVENTS, CONTROL, TIMER = range(3)
ACPI_REGIONS: tuple[Region, ...] = (
    Region("acpi-evt", 4, valid=AccessSizes(1, 2), impl=AccessSizes(2, 2)),
    Region("acpi-cnt", 2, valid=AccessSizes(1, 2), impl=AccessSizes(2, 2)),
    Region("acpi-tmr", 4, impl=AccessSizes(4, 4)),
)


class AcpiPm(PciFunction):
    """A function with the ACPI registers. `power_off` and `suspend` are what the guest can ask for.

    A subclass gives `gpe_pending`, places `block` and drives `sci` where its registers lead it.
    """

    block_name: ClassVar[str] = ""
    block_size: ClassVar[int] = 0
    acpi_enable: ClassVar[int]
    acpi_disable: ClassVar[int]
    """What firmware's tables have the guest write to the APM control port; the switch acts at once here."""
    acpi_only: bool = False
    """There is no system-management mode to hand the hardware over: SCI_EN always stands, and tables name no switch."""
    regions = ACPI_REGIONS

    pm1_status = Register(0, size=2, doc="PM1 status; a written 1 clears")
    pm1_enable = Register(2, size=2, doc="PM1 enable")
    pm1_control = Register(0, size=2, region=CONTROL, doc="bit 0 SCI_EN, bits 12-10 SLP_TYP, bit 13 SLP_EN")
    timer = Register(0, size=4, region=TIMER, access="ro", stored=False)

    overflow_seen = State(U64, 0, doc="PM timer's count when its status bit was last brought up to date")

    def __init__(
        self, sci: IrqLine, clock: Clock, io: MemoryRegion, power_off: Callable[[], None], suspend: Callable[[], None]
    ) -> None:
        self._sci, self._clock = sci, clock
        self._power_off, self._suspend = power_off, suspend
        self._timer_due = clock.timer(self._timer_overflowed)
        self.on_overflow: list[Callable[[], None]] = []
        """Called when the PM timer's interrupt is due: it may wake the machine."""
        self._block = MemoryRegion.new_container(self.block_name, self.block_size)
        self._block.set_enabled(False)
        super().__init__()
        with MemoryTransaction():
            for index, offset in ((EVENTS, 0), (CONTROL, 4), (TIMER, 8)):
                region = self._region(index)
                if index == TIMER:
                    region.set_clock_registers((ClockRegister(0, 4, TIMER_VALUE),))
                self._block.add_subregion(offset, region)
        self._io = io

    def show_block(self) -> None:
        """Put the block into port space, in front of what is there already: called when all else is."""
        self._io.add_subregion_overlap(0, self._block, 0)
        self.place_block()

    def _region(self, index: int) -> MemoryRegion:
        return self.regions[index].memory_region(RegionOps(self, index))

    def gpe_pending(self) -> bool:
        """Whether a general-purpose event asks for the interrupt."""
        raise NotImplementedError

    def raise_gpe(self, bit: int) -> None:
        """Set a general-purpose event's status bit (0 to 7): a hot-plug controller has news."""
        raise NotImplementedError

    def place_block(self) -> None:
        """Put the block where the registers say, or nowhere."""
        raise NotImplementedError

    def put_block(self, address: int, enabled: bool) -> None:
        """For place_block()."""
        with MemoryTransaction():
            self._block.set_address(address)
            self._block.set_enabled(enabled)

    def reset(self) -> None:
        super().reset()
        self.pm1_control |= SCI_EN * self.acpi_only
        self._timer_due.cancel()
        self.overflow_seen = self.count()
        self.place_block()
        self.update_sci()

    def after_load(self) -> None:
        super().after_load()
        self.place_block()
        self.update_sci()

    def press_power_button(self) -> None:
        """Tell the guest (`system_powerdown`), if it wants to know: else nothing is left of it, as in QEMU."""
        if self.pm1_enable & PWRBTN_STS:
            self.pm1_status |= PWRBTN_STS
            self.update_sci()

    def wake(self, reason: WakeReason) -> None:
        """The machine comes out of S3: say why. What has no event of its own passes for the power button."""
        self.pm1_status |= WAK_STS | WAKE_EVENTS[reason]
        self.update_sci()

    def wakes(self, reason: WakeReason) -> bool:
        """Whether the guest lets this event end its sleep (PM1 enable); a key and the monitor always do."""
        return reason is WakeReason.OTHER or bool(self.pm1_enable & WAKE_EVENTS[reason])

    @property
    def switches(self) -> tuple[int, int]:
        """`acpi_enable` and `acpi_disable` as the tables tell of them; 0 for none."""
        return (0, 0) if self.acpi_only else (self.acpi_enable, self.acpi_disable)

    def apm_command(self, value: int) -> bool:
        """What a write to the APM control port does without firmware's help; whether it did something."""
        if value == self.acpi_enable:
            self.pm1_control |= SCI_EN
        elif value == self.acpi_disable and not self.acpi_only:
            self.pm1_control &= ~SCI_EN
        self.update_sci()
        return value in (self.acpi_enable, self.acpi_disable)

    # The PM timer.

    def count(self) -> int:
        """Ticks since the guest's time began."""
        return self._clock.now_ns() * PM_TIMER_HZ // NANOSECONDS

    @timer.on_read
    def _read_timer(self) -> int:
        return TIMER_VALUE.at(self._clock.now_ns())

    def _look_at_timer(self) -> None:
        """Set TMR_STS when the counter's top bit has changed since the last look."""
        now = self.count()
        if now // TIMER_TOP != self.overflow_seen // TIMER_TOP:
            self.pm1_status |= TMR_STS
        self.overflow_seen = now

    def _timer_overflowed(self) -> None:
        for action in self.on_overflow:
            action()
        self.update_sci()

    def _arm_timer(self) -> None:
        if self.pm1_enable & TMR_STS and not self.pm1_status & TMR_STS:
            next_change = (self.count() // TIMER_TOP + 1) * TIMER_TOP
            self._timer_due.arm(-(-next_change * NANOSECONDS // PM_TIMER_HZ))
        else:
            self._timer_due.cancel()

    # PM1.

    @pm1_status.on_read
    def _read_pm1_status(self) -> int:
        self._look_at_timer()
        return self.pm1_status

    @pm1_status.on_write
    def _write_pm1_status(self, value: int) -> None:
        self._look_at_timer()
        self.pm1_status &= ~value
        self.update_sci()

    @pm1_enable.after_write
    def update_sci(self) -> None:
        """Drive the interrupt as status and enable bits have it."""
        self._look_at_timer()
        pending = self.pm1_status & self.pm1_enable & PM1_EVENTS
        self._sci.set((bool(pending) or self.gpe_pending()) and bool(self.pm1_control & SCI_EN))
        self._arm_timer()

    @pm1_control.on_write
    def _write_pm1_control(self, value: int) -> None:
        self.pm1_control = value & ~SLP_EN | SCI_EN * self.acpi_only
        self.update_sci()
        if value & SLP_EN:
            sleep_type = value >> 10 & 7
            if sleep_type == SLEEP_S3:
                self._suspend()
            elif sleep_type in (SLEEP_S5, SLEEP_S4):
                # S4 is the operating system's own affair: it has written its image, the machine powers off.
                self._power_off()
