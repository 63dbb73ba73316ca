"""ICH9 LPC bridge, 1f.0 (Intel I/O Controller Hub 9 data sheet, 316972, chapters 10 and 13).

One function with the ISA bridge's duties and the power management:
- eight PIRQ lines A to H: each drives pin 16 to 23 of the I/O APIC, and where its routing register (0x60-0x63,
  0x68-0x6B) leads, an ISA interrupt as well. Which pin of which slot is on which line, the chipset configuration
  registers say for slots 25 to 31 (D31IR...), behind RCBA; the other slots rotate over E to H.
- the ACPI registers at PMBASE, 128 bytes: PM1, the PM timer, GPE0, SMI_EN and SMI_STS, the TCO watchdog
  (`ich9_tco.py`). ACPI_CNTL opens the block and says which interrupt the SCI is.
- the APM control port 0xB2, which raises an SMI.

`raise_smi` is None on a machine without system management mode: APMC_EN is then set and stays so, by which firmware
knows that there is nothing to set up (as QEMU does with `smm=off`).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from pellucid.kvm.clock import Clock
from pellucid.machine.device import Property, Region, Register, State
from pellucid.machine.devices.acpi_pm import ACPI_REGIONS, AcpiPm
from pellucid.machine.devices.pirq import PirqLines
from pellucid.machine.irq import SharedLine
from pellucid.machine.pci import ConfigRegister
from pellucid.machine.properties import BIT
from pellucid.machine.state import Memory
from pellucid.memory import AccessSizes, MemoryRegion, MemoryTransaction

GPE, SMI, APM, RCRB = range(3, 7)
GPE_OFFSET, SMI_OFFSET, TCO_OFFSET = 0x20, 0x30, 0x60
APM_BASE = 0xB2
ACPI_ENABLED, SCI_SELECT = 0x80, 0x07
SCI_GSI = {0: 9, 1: 10, 2: 11, 4: 20, 5: 21}
"""Global interrupt of the SCI by ACPI_CNTL's low bits; the other codes are reserved."""
SMI_LOCK = 0x0010
GBL_SMI_EN, APMC_EN, TCO_EN = 0x0001, 0x0020, 0x2000
APM_STS, TCO_STS = 0x0020, 0x2000
PIRQS = 8
FIRST_APIC_PIN = 16
RCRB_SIZE, RCBA_ADDRESS = 0x4000, 0xFFFF_C000
DEVICE_ROUTES = {31: 0x3140, 29: 0x3144, 28: 0x3146, 27: 0x3148, 26: 0x314C, 25: 0x3150}
"""Where D31IR to D25IR are: four bits for each pin, of which three say the PIRQ line."""
ROUTE_RESET = 0x3210
GCS, NO_REBOOT = 0x3410, 0x20
SMI_FEATURES = (
    ("smm-compat", "false"),
    ("x-smi-broadcast", "true"),
    ("x-smi-cpu-hotplug", "true"),
    ("x-smi-cpu-hotunplug", "true"),
)
"""What QEMU's firmware interface for SMIs has, as `info qtree` says it."""


def rcrb_reset() -> bytes:
    """The chipset configuration registers after a reset."""
    content = bytearray(RCRB_SIZE)
    for offset in DEVICE_ROUTES.values():
        content[offset : offset + 2] = ROUTE_RESET.to_bytes(2, "little")
    content[GCS] = NO_REBOOT
    return bytes(content)


class Ich9Lpc(AcpiPm):
    """`gsi` are the 24 interrupt inputs; `system` and `io` memory and port space, `tco` the watchdog's region."""

    kind = "ICH9-LPC"
    vendor_id, device_id, revision, class_code = 0x8086, 0x2918, 0x02, 0x060100
    is_multifunction = True
    hotpluggable = False
    block_name, block_size = "ich9-pm", 128
    acpi_enable, acpi_disable = 0x02, 0x03

    regions = (
        *ACPI_REGIONS,
        Region("acpi-gpe0", 16, impl=AccessSizes(1, 1)),
        Region("acpi-smi", 8, valid=AccessSizes(1, 4), impl=AccessSizes(4, 4)),
        Region("apm-io", 2),
        Region("lpc-rcrb-mmio", RCRB_SIZE, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),
    )

    gpios = (("out", "gsi", 24),)
    noreboot = Property(BIT, True, doc="a strap: NO_REBOOT is set for good")

    DECODES_SERIAL: ClassVar = (0x82, (0x01, 0x02))
    """Where the function says which serial ports there are, and the bits of each."""

    pm_base = ConfigRegister(0x40, 4, reset=1, writable=0xFF80, doc="PMBASE: base of the block of ACPI registers")
    acpi_control = ConfigRegister(0x44, 1, writable=0xFF, doc="bit 7 opens the block, bits 2-0 the SCI's interrupt")
    pirq_a_to_d = ConfigRegister(0x60, 4, reset=0x8080_8080, writable=0xFFFF_FFFF, doc="PIRQ[A:D]_ROUT")
    pirq_e_to_h = ConfigRegister(0x68, 4, reset=0x8080_8080, writable=0xFFFF_FFFF, doc="PIRQ[E:H]_ROUT")
    gen_pmcon_1 = ConfigRegister(0xA0, 2, writable=0xFFFF, doc="bit 4 SMI_LOCK: GBL_SMI_EN stays as it is")
    rcba = ConfigRegister(0xF0, 4, writable=0xFFFF_FFFF, doc="base of the chipset configuration registers; bit 0 opens")

    smi_enable = Register(0, size=4, region=SMI, doc="SMI_EN: bit 0 all of them, bit 5 APM port, bit 13 TCO")
    smi_status = Register(4, size=4, region=SMI, doc="SMI_STS; a written 1 clears")
    apm_control = Register(0, region=APM)
    apm_status = Register(1, region=APM)

    gpe = State(Memory(16), bytes(16), doc="GPE0_STS and GPE0_EN, eight bytes each")
    rcrb = State(Memory(RCRB_SIZE), rcrb_reset(), doc="chipset configuration registers")

    def __init__(
        self,
        gsi: Sequence[SharedLine],
        clock: Clock,
        system: MemoryRegion,
        io: MemoryRegion,
        tco: MemoryRegion,
        power_off: Callable[[], None],
        suspend: Callable[[], None],
        raise_smi: Callable[[], None] | None = None,
    ) -> None:
        self._system, self._raise_smi = system, raise_smi
        pirq_inputs = [line.input() for line in gsi]
        isa, apic = pirq_inputs[:FIRST_APIC_PIN], pirq_inputs[FIRST_APIC_PIN:]
        self._pirqs = PirqLines(PIRQS, self.pirq_of, self._routing, isa, apic)
        self._sci_inputs = {number: gsi[number].input() for number in SCI_GSI.values()}
        self._sci_level = False
        self._sci_gsi = SCI_GSI[0]
        self._smi_lock_before = 0
        self.acpi_only = self._raise_smi is None
        super().__init__(_Sci(self), clock, io, power_off, suspend)
        self._rcrb_region = self._region(RCRB)
        with MemoryTransaction():
            self._block.add_subregion(GPE_OFFSET, self._region(GPE))
            self._block.add_subregion(SMI_OFFSET, self._region(SMI))
            self._block.add_subregion(TCO_OFFSET, tco)
            io.add_subregion(APM_BASE, self._region(APM))
        self._without_smm()

    def describe(self) -> Iterator[tuple[str, str]]:
        for name, value in super().describe():
            yield name, value
            if name == "noreboot":
                yield from SMI_FEATURES

    # Configuration space.

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._smi_lock_before = self.gen_pmcon_1 & SMI_LOCK
        super().config_write(offset, size, value)

    @gen_pmcon_1.after_write
    def _keep_smi_lock(self) -> None:
        self.gen_pmcon_1 |= self._smi_lock_before

    @pm_base.after_write
    @acpi_control.after_write
    def place_block(self) -> None:
        self.put_block(self.pm_base & 0xFF80, bool(self.acpi_control & ACPI_ENABLED))
        self._move_sci()

    @rcba.after_write
    def _place_rcrb(self) -> None:
        region = self._rcrb_region
        with MemoryTransaction():
            if region.container is not None:
                self._system.del_subregion(region)
            if self.rcba & 1:
                self._system.add_subregion_overlap(self.rcba & RCBA_ADDRESS, region, 1)

    def reset(self) -> None:
        super().reset()
        self._without_smm()
        self._place_rcrb()
        self._pirqs.drive()

    def after_load(self) -> None:
        super().after_load()
        self._place_rcrb()
        self._pirqs.drive()

    # Interrupts.

    def route(self, slot: int, pin: int, level: bool) -> None:
        """A pin of a function on the root bus rose or fell."""
        self._pirqs.change(slot, pin, level)

    def pirq_of(self, slot: int, pin: int) -> int:
        """The PIRQ line of a pin (0 is INTA#) of a slot; 0 is PIRQA."""
        if slot == 30:  # the bridge to conventional PCI, whose four pins are fixed
            return 4 + pin
        if slot < 25:
            return 4 + (slot + pin) % 4
        at = DEVICE_ROUTES[slot]
        return int.from_bytes(self.rcrb[at : at + 2], "little") >> 4 * pin & 7

    def _routing(self, line: int) -> int:
        return self.config[(0x60 if line < 4 else 0x64) + line]

    @pirq_a_to_d.after_write
    @pirq_e_to_h.after_write
    def _drive(self) -> None:
        self._pirqs.drive()

    def sci_gsi(self) -> int:
        """The global interrupt that the SCI drives."""
        return SCI_GSI.get(self.acpi_control & SCI_SELECT, SCI_GSI[0])

    def drive_sci(self, level: bool) -> None:
        """The ACPI registers ask for the interrupt, or no longer."""
        self._sci_level = level
        self._move_sci()

    def _move_sci(self) -> None:
        gsi = self.sci_gsi()
        if gsi != self._sci_gsi:
            self._sci_inputs[self._sci_gsi].set(False)
            self._sci_gsi = gsi
        self._sci_inputs[gsi].set(self._sci_level)

    # GPE0, 16 bytes: eight of status, eight of enable bits.

    def region_read(self, region: int, offset: int, size: int) -> int:
        if region == GPE:
            return self.gpe[offset]
        if region == RCRB:
            return int.from_bytes(self.rcrb[offset : offset + size], "little")
        return super().region_read(region, offset, size)

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == GPE:
            self.gpe[offset] = self.gpe[offset] & ~value if offset < 8 else value & 0xFF
            self.update_sci()
        elif region == RCRB:
            end = min(offset + size, RCRB_SIZE)
            self.rcrb[offset:end] = value.to_bytes(8, "little")[: end - offset]
            if self.noreboot:
                self.rcrb[GCS] |= NO_REBOOT
            self._pirqs.drive()
        else:
            super().region_write(region, offset, size, value)

    def gpe_pending(self) -> bool:
        return any(self.gpe[at] & self.gpe[8 + at] for at in range(8))

    def raise_gpe(self, bit: int) -> None:
        self.gpe[0] |= 1 << bit
        self.update_sci()

    # System management interrupts.

    def _without_smm(self) -> None:
        if self._raise_smi is None:
            self.smi_enable |= APMC_EN

    @smi_enable.on_write
    def _write_smi_enable(self, value: int) -> None:
        if self.gen_pmcon_1 & SMI_LOCK:
            value = value & ~GBL_SMI_EN | self.smi_enable & GBL_SMI_EN
        self.smi_enable = value
        self._without_smm()

    @smi_status.on_write
    def _clear_smi_status(self, value: int) -> None:
        self.smi_status &= ~value

    @apm_control.after_write
    def _apm_written(self) -> None:
        if not self.apm_command(self.apm_control):
            self.signal_smi(APMC_EN, APM_STS)

    def signal_smi(self, enable: int, status: int) -> None:
        """An SMI source (`enable`: its bit of SMI_EN, `status`: its bit of SMI_STS) has something."""
        self.smi_status |= status
        if self._raise_smi is not None and self.smi_enable & GBL_SMI_EN and self.smi_enable & enable:
            self._raise_smi()

    def tco_smi(self) -> None:
        """The watchdog wants an SMI."""
        self.signal_smi(TCO_EN, TCO_STS)

    @property
    def may_reboot(self) -> bool:
        """Whether the watchdog may reset the machine when its timer runs out for the second time."""
        return not self.rcrb[GCS] & NO_REBOOT


class _Sci:
    """The SCI as the ACPI registers drive it."""

    def __init__(self, lpc: Ich9Lpc) -> None:
        self._lpc = lpc

    def set(self, level: bool) -> None:
        self._lpc.drive_sci(level)

    def pulse(self) -> None:
        self.set(True)
        self.set(False)
