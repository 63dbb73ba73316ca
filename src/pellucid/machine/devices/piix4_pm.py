"""PIIX4 power management function (Intel 82371AB data sheet, 290562, chapter 7): ACPI registers and the APM ports.

The block of ACPI registers lies where PMBA says, while PMREGMISC enables it. GPE0 and the APM control and status ports
have places of their own. The SMBus controller (`pm_smbus.py`, a device of its own) lies where the register at 0x90 puts
it while that at 0xD2 enables it.

A write to the APM control port raises an SMI while APMC_EN is set, but for the values that switch ACPI mode on and off:
those act at once. Without system-management mode (`smm=off`) APMC_EN comes up set, which tells firmware that there is
nothing for it to set up.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Region, Register
from pellucid.machine.devices.acpi_pm import ACPI_REGIONS, AcpiPm
from pellucid.machine.irq import IrqLine
from pellucid.machine.pci import ConfigRegister
from pellucid.machine.pci import config as cfg
from pellucid.memory import AccessSizes, MemoryRegion, MemoryTransaction

APMC_ENABLE = 0x0200_0000
"""Bit 25 of the device activity register at 0x58: the APM control port raises an SMI."""

GPE, APM = range(3, 5)


class Piix4Pm(AcpiPm):
    """The function at 01.3. `io` is port space; GPE0 and APM lie where the constructor puts them.

    `smi` raises SMI#; it is None where the processors have no system-management mode.
    """

    kind = "PIIX4_PM"
    vendor_id, device_id, revision, class_code = 0x8086, 0x7113, 0x03, 0x068000
    interrupt_pin = 1
    status_reset = cfg.STATUS_FAST_BACK | cfg.STATUS_DEVSEL_MEDIUM
    hotpluggable = False
    block_name, block_size = "piix4-pm", 64
    acpi_enable, acpi_disable = 0xF1, 0xF0

    regions = (*ACPI_REGIONS, Region("acpi-gpe0", 4, impl=AccessSizes(1, 1)), Region("apm-io", 2))

    gpios = (("out", "smi-irq", 1), ("out", "", 1))
    fixed_properties = (
        ("smb_io_base", "45312 (0xb100)"),
        ("disable_s3", "0 (0x0)"),
        ("disable_s4", "0 (0x0)"),
        ("s4_val", "2 (0x2)"),
        ("acpi-pci-hotplug-with-bridge-support", "true"),
        ("acpi-root-pci-hotplug", "true"),
        ("memory-hotplug-support", "true"),
        ("smm-compat", "false"),
        ("x-not-migrate-acpi-index", "false"),
    )

    DECODES_SERIAL: ClassVar = (0x67, (0x08, 0x90))
    """Where the function says which serial ports there are, and the bits of each."""

    pm_base = ConfigRegister(0x40, 4, reset=1, writable=0xFFC0, doc="PMBA: base of the block of ACPI registers")
    count_b = ConfigRegister(0x58, 4, writable=0xFFFF_FFFF, doc="device activity B: bit 25 is APMC_EN")
    serial_ports = ConfigRegister(0x5C, 4, reset=0x1000_0000, writable=0xFFFF_FFFF)
    serial_port_2 = ConfigRegister(0x60, 4, reset=0x6000_0000, writable=0xFFFF_FFFF)
    pm_misc = ConfigRegister(0x80, 1, writable=0xFF, doc="bit 0 enables the block")
    smbus_base = ConfigRegister(0x90, 4, reset=0xB101, writable=0xFFFF_FFFF)
    smbus_config = ConfigRegister(0xD2, 1, reset=0x09, writable=0xFF)

    gpe_status_low = Register(0, region=GPE)
    gpe_status_high = Register(1, region=GPE)
    gpe_enable_low = Register(2, region=GPE)
    gpe_enable_high = Register(3, region=GPE)
    apm_control = Register(0, region=APM)
    apm_status = Register(1, region=APM)

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
        smbus: MemoryRegion | None = None,
    ) -> None:
        self._smbus, self._smi = smbus, smi
        self.acpi_only = smi is None
        super().__init__(sci, clock, io, power_off, suspend)
        self._reset_apm()
        with MemoryTransaction():
            io.add_subregion(gpe_base, self._region(GPE))
            io.add_subregion(apm_base, self._region(APM))
            if smbus is not None:
                io.add_subregion_overlap(self.smbus_base & 0xFFC0, smbus, 0)
            self.show_block()

    @pm_base.after_write
    @pm_misc.after_write
    def place_block(self) -> None:
        self.put_block(self.pm_base & 0xFFC0, bool(self.pm_misc & 1))

    @smbus_base.after_write
    @smbus_config.after_write
    def _place_smbus(self) -> None:
        if self._smbus is not None:
            with MemoryTransaction():
                self._smbus.set_address(self.smbus_base & 0xFFC0)
                self._smbus.set_enabled(bool(self.smbus_config & 1))

    def reset(self) -> None:
        super().reset()
        self._reset_apm()
        self._place_smbus()

    def after_load(self) -> None:
        super().after_load()
        self._place_smbus()

    # GPE0.

    def gpe_pending(self) -> bool:
        return bool(self.gpe_status_low & self.gpe_enable_low | self.gpe_status_high & self.gpe_enable_high)

    def raise_gpe(self, bit: int) -> None:
        self.gpe_status_low |= 1 << bit
        self.update_sci()

    @gpe_enable_low.after_write
    @gpe_enable_high.after_write
    def _gpe_enabled(self) -> None:
        self.update_sci()

    @gpe_status_low.on_write
    def _clear_gpe_low(self, value: int) -> None:
        self.gpe_status_low &= ~value
        self.update_sci()

    @gpe_status_high.on_write
    def _clear_gpe_high(self, value: int) -> None:
        self.gpe_status_high &= ~value
        self.update_sci()

    @apm_control.after_write
    def _apm_written(self) -> None:
        if not self.apm_command(self.apm_control) and self.count_b & APMC_ENABLE and self._smi is not None:
            self._smi()

    def _reset_apm(self) -> None:
        if self._smi is None:
            self.count_b = APMC_ENABLE

    def describe(self) -> Iterator[tuple[str, str]]:
        for name, value in super().describe():
            if name == "x-not-migrate-acpi-index":
                yield "smm-enabled", "false" if self._smi is None else "true"
            yield name, value
