"""PIIX4 power management function (Intel 82371AB data sheet, 290562, chapter 7): ACPI registers and the APM ports.

The block of ACPI registers lies in port space where PMBA says, while PMREGMISC enables it: PM1 status and enable at 0,
PM1 control at 4, the PM timer at 8 (3.579545 MHz, 24 bits, its top bit's changes raise an interrupt). GPE0 and the APM
control and status ports have places of their own.

A write to the APM control port raises an SMI while APMC_EN is set, but for the values that switch ACPI mode on and off:
those act at once. Without system-management mode (`smm=off`) APMC_EN comes up set, which tells firmware that there is
nothing for it to set up.
"""

from collections.abc import Callable

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Region, RegionOps, Register, State
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.machine.pci import config as cfg
from pellucid.machine.state import U64
from pellucid.memory import AccessSizes, MemoryRegion, MemoryTransaction
from pellucid.runtime.requests import WakeReason

PM_TIMER_HZ = 3_579_545
NANOSECONDS = 1_000_000_000
TIMER_MASK, TIMER_TOP = 0xFF_FFFF, 0x80_0000
PM_BLOCK_SIZE = 64
TMR_STS, GBL_STS, PWRBTN_STS, RTC_STS, WAK_STS = 0x0001, 0x0020, 0x0100, 0x0400, 0x8000
PM1_EVENTS = TMR_STS | GBL_STS | PWRBTN_STS | RTC_STS
WAKE_EVENTS = {WakeReason.OTHER: PWRBTN_STS, WakeReason.RTC: RTC_STS}
SCI_EN, SLP_EN = 0x0001, 0x2000
SLEEP_S5, SLEEP_S3, SLEEP_S4 = 0, 1, 2
"""SLP_TYP values of this chip, as the DSDT gives them."""
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0
APMC_ENABLE = 0x0200_0000
"""Bit 25 of the device activity register at 0x58: the APM control port raises an SMI."""

EVENTS, CONTROL, TIMER, GPE, APM = range(5)


class Piix4Pm(PciFunction):
    """The function at 01.3. `power_off` and `suspend` are what the guest can ask for; `smi` raises SMI#, None: no SMM.

    `io` is port space. Regions 0 to 2 lie in the block that the guest places; GPE0 and APM where the constructor puts
    them.
    """

    kind = "PIIX4_PM"
    vendor_id, device_id, revision, class_code = 0x8086, 0x7113, 0x03, 0x068000
    interrupt_pin = 1
    status_reset = cfg.STATUS_FAST_BACK | cfg.STATUS_DEVSEL_MEDIUM

    regions = (
        Region("acpi-evt", 4, valid=AccessSizes(1, 2), impl=AccessSizes(2, 2)),
        Region("acpi-cnt", 2, valid=AccessSizes(1, 2), impl=AccessSizes(2, 2)),
        Region("acpi-tmr", 4, impl=AccessSizes(4, 4)),
        Region("acpi-gpe0", 4, impl=AccessSizes(1, 1)),
        Region("apm-io", 2),
    )

    pm_base = ConfigRegister(0x40, 4, reset=1, writable=0xFFC0, doc="PMBA: base of the block of ACPI registers")
    count_b = ConfigRegister(0x58, 4, writable=0xFFFF_FFFF, doc="device activity B: bit 25 is APMC_EN")
    serial_ports = ConfigRegister(0x5C, 4, reset=0x1000_0000, writable=0xFFFF_FFFF)
    serial_port_2 = ConfigRegister(0x60, 4, reset=0x6000_0000, writable=0xFFFF_FFFF)
    pm_misc = ConfigRegister(0x80, 1, writable=0xFF, doc="bit 0 enables the block")
    smbus_base = ConfigRegister(0x90, 4, reset=0xB101, writable=0xFFFF_FFFF)
    smbus_config = ConfigRegister(0xD2, 1, reset=0x09, writable=0xFF)

    pm1_status = Register(0, size=2, doc="PM1 status; a written 1 clears")
    pm1_enable = Register(2, size=2, doc="PM1 enable")
    pm1_control = Register(0, size=2, region=CONTROL, doc="bit 0 SCI_EN, bits 12-10 SLP_TYP, bit 13 SLP_EN")
    timer = Register(0, size=4, region=TIMER, access="ro", stored=False)
    gpe_status_low = Register(0, region=GPE)
    gpe_status_high = Register(1, region=GPE)
    gpe_enable_low = Register(2, region=GPE)
    gpe_enable_high = Register(3, region=GPE)
    apm_control = Register(0, region=APM)
    apm_status = Register(1, region=APM)

    overflow_seen = State(U64, 0, doc="PM timer's count when its status bit was last brought up to date")

    def __init__(
        self,
        sci: IrqLine,
        clock: Clock,
        io: MemoryRegion,
        power_off: Callable[[], None],
        suspend: Callable[[], None],
        smi: Callable[[], None] | None,
        *,
        gpe_base: int,
        apm_base: int,
    ) -> None:
        self._sci, self._clock = sci, clock
        self._power_off, self._suspend, self._smi = power_off, suspend, smi
        self._timer_due = clock.timer(self._timer_overflowed)
        self._block = MemoryRegion.new_container("piix4-pm", PM_BLOCK_SIZE)
        self._block.set_enabled(False)
        super().__init__()
        self._reset_apm()
        with MemoryTransaction():
            for index, offset in ((EVENTS, 0), (CONTROL, 4), (TIMER, 8)):
                self._block.add_subregion(offset, self._region(index))
            io.add_subregion_overlap(0, self._block, 0)
            io.add_subregion(gpe_base, self._region(GPE))
            io.add_subregion(apm_base, self._region(APM))

    def _region(self, index: int) -> MemoryRegion:
        return self.regions[index].memory_region(RegionOps(self, index))

    @pm_base.after_write
    @pm_misc.after_write
    def _place_block(self) -> None:
        with MemoryTransaction():
            self._block.set_address(self.pm_base & 0xFFC0)
            self._block.set_enabled(bool(self.pm_misc & 1))

    def reset(self) -> None:
        super().reset()
        self._reset_apm()
        self._timer_due.cancel()
        self.overflow_seen = self.count()
        self._place_block()
        self._update_sci()

    def after_load(self) -> None:
        super().after_load()
        self._place_block()
        self._update_sci()

    def press_power_button(self) -> None:
        """Tell the guest (`system_powerdown`)."""
        self.pm1_status |= PWRBTN_STS
        self._update_sci()

    def wake(self, reason: WakeReason) -> None:
        """The machine comes out of S3: say why. What has no event of its own passes for the power button."""
        self.pm1_status |= WAK_STS | WAKE_EVENTS[reason]
        self._update_sci()

    def wakes(self, reason: WakeReason) -> bool:
        """Whether the guest lets this event end its sleep (PM1 enable); the power button always does."""
        return reason is WakeReason.OTHER or bool(self.pm1_enable & WAKE_EVENTS[reason])

    # The PM timer.

    def count(self) -> int:
        """Ticks since the guest's time began."""
        return self._clock.now_ns() * PM_TIMER_HZ // NANOSECONDS

    @timer.on_read
    def _read_timer(self) -> int:
        return self.count() & TIMER_MASK

    def _look_at_timer(self) -> None:
        """Set TMR_STS when the counter's top bit has changed since the last look."""
        now = self.count()
        if now // TIMER_TOP != self.overflow_seen // TIMER_TOP:
            self.pm1_status |= TMR_STS
        self.overflow_seen = now

    def _timer_overflowed(self) -> None:
        self._update_sci()

    def _arm_timer(self) -> None:
        if self.pm1_enable & TMR_STS and not self.pm1_status & TMR_STS:
            next_change = (self.count() // TIMER_TOP + 1) * TIMER_TOP
            self._timer_due.arm(-(-next_change * NANOSECONDS // PM_TIMER_HZ))
        else:
            self._timer_due.cancel()

    # PM1 and GPE0.

    @pm1_status.on_read
    def _read_pm1_status(self) -> int:
        self._look_at_timer()
        return self.pm1_status

    @pm1_status.on_write
    def _write_pm1_status(self, value: int) -> None:
        self._look_at_timer()
        self.pm1_status &= ~value
        self._update_sci()

    @pm1_enable.after_write
    @gpe_enable_low.after_write
    @gpe_enable_high.after_write
    def _update_sci(self) -> None:
        self._look_at_timer()
        gpe = self.gpe_status_low & self.gpe_enable_low | self.gpe_status_high & self.gpe_enable_high
        pending = self.pm1_status & self.pm1_enable & PM1_EVENTS
        self._sci.set(bool(pending or gpe) and bool(self.pm1_control & SCI_EN))
        self._arm_timer()

    @pm1_control.on_write
    def _write_pm1_control(self, value: int) -> None:
        self.pm1_control = value & ~SLP_EN
        self._update_sci()
        if value & SLP_EN:
            sleep_type = value >> 10 & 7
            if sleep_type == SLEEP_S3:
                self._suspend()
            elif sleep_type in (SLEEP_S5, SLEEP_S4):
                # S4 is the operating system's own affair: it has written its image, the machine powers off.
                self._power_off()

    @gpe_status_low.on_write
    def _clear_gpe_low(self, value: int) -> None:
        self.gpe_status_low &= ~value
        self._update_sci()

    @gpe_status_high.on_write
    def _clear_gpe_high(self, value: int) -> None:
        self.gpe_status_high &= ~value
        self._update_sci()

    # The APM ports.

    def _reset_apm(self) -> None:
        if self._smi is None:
            self.count_b = APMC_ENABLE

    @apm_control.after_write
    def _apm_command(self) -> None:
        if self.apm_control == ACPI_ENABLE:
            self.pm1_control |= SCI_EN
        elif self.apm_control == ACPI_DISABLE:
            self.pm1_control &= ~SCI_EN
        elif self.count_b & APMC_ENABLE and self._smi is not None:
            self._smi()
        self._update_sci()
