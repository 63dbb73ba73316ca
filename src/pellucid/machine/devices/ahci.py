"""ICH9 SATA controller in AHCI mode (Intel 316972, chapters 15 and 16; AHCI 1.3.1): six ports, MSI, index-data ports.

Its ports are IDE buses to the user (`ide.0` to `ide.5`), each with one unit.
"""

from collections.abc import Callable, Iterator
from functools import partial

from pellucid.machine.device import Device, Region, RegionOps, Register
from pellucid.machine.ide.ahci_port import AhciPort
from pellucid.machine.pci import Bar, BarKind, Msi, PciFunction
from pellucid.machine.pci.function import Capability
from pellucid.memory import AccessSizes

PORTS = 6
CAPABILITIES = 0xC014_1F05
"""64-bit addresses, queuing, 1.5 Gb/s, AHCI only, 32 slots, 6 ports."""
VERSION_1_0 = 0x0001_0000
GHC_RESET, GHC_INTERRUPTS, GHC_AHCI = 0x01, 0x02, 0x8000_0000
PORT_BASE, PORT_SIZE = 0x100, 0x80
MEMORY_SIZE, INDEX_DATA_SIZE = 0x1000, 32
INDEX_AT, DATA_AT = 0x10, 0x14
MSI_AT, SATA_AT = 0x80, 0xA8
MEMORY_BAR, INDEX_DATA_BAR = 5, 4
_WORDS = AccessSizes(4, 4)
_PORT_PLACES = frozenset(register.offset for register in AhciPort.registers)


class SataCapability(Capability):
    """Says where the index-data pair is: BAR 4, at 0x10 (SATA capability 1.0)."""

    id = 0x12


class Hba(Device):
    """The controller's own registers, and the way to those of its ports."""

    kind = "ahci"
    regions = (
        Region("ahci", MEMORY_SIZE, valid=AccessSizes(1, 4), impl=_WORDS),
        Region("ahci-idp", INDEX_DATA_SIZE, valid=AccessSizes(1, 4), impl=_WORDS),
    )

    capabilities = Register(0x00, size=4, reset=CAPABILITIES, writable=0)
    control = Register(0x04, size=4, reset=GHC_AHCI, doc="GHC")
    interrupt_status = Register(0x08, size=4, doc="IS: a bit for each port")
    ports_implemented = Register(0x0C, size=4, reset=(1 << PORTS) - 1, writable=0)
    ahci_version = Register(0x10, size=4, reset=VERSION_1_0, writable=0)
    reserved = Register(0x14, size=4, writable=0)
    index = Register(INDEX_AT, size=4, region=1, writable=MEMORY_SIZE - 4)
    data = Register(DATA_AT, size=4, region=1, stored=False)

    def __init__(self, ports: list[AhciPort], set_line: Callable[[bool, bool], None]) -> None:
        self.ports, self._set_line = ports, set_line
        super().__init__()

    def region_read(self, region: int, offset: int, size: int) -> int:
        if region == 0 and offset >= PORT_BASE:
            number, place = divmod(offset - PORT_BASE, PORT_SIZE)
            return self.ports[number].read(place, size) if number < PORTS and place in _PORT_PLACES else 0
        return super().region_read(region, offset, size) if (region, offset) in self._readers else 0

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        if region == 0 and offset >= PORT_BASE:
            number, place = divmod(offset - PORT_BASE, PORT_SIZE)
            if number < PORTS:
                self.ports[number].write(place, size, value)
        else:
            super().region_write(region, offset, size, value)

    @data.on_read
    def _read_data(self) -> int:
        return self.region_read(0, self.index, 4)

    @data.on_write
    def _write_data(self, value: int) -> None:
        self.region_write(0, self.index, 4, value)

    @control.on_write
    def _write_control(self, value: int) -> None:
        if value & GHC_RESET:
            self.controller_reset()
        else:
            self.control = value & GHC_INTERRUPTS | GHC_AHCI
            self.port_changed()

    @interrupt_status.on_write
    def _clear_status(self, value: int) -> None:
        self.interrupt_status &= ~value
        self.port_changed(cleared=True)

    def controller_reset(self) -> None:
        """GHC.HR: all ports and the interrupt state; the ports' addresses stay, as in QEMU."""
        self.control, self.interrupt_status = GHC_AHCI, 0
        for port in self.ports:
            port.interrupt_status = port.interrupt_enable = 0
            port.command = type(port).command.reset
            port.link_reset()
        self.port_changed()

    def port_changed(self, number: int | None = None, *, cleared: bool = False) -> None:
        """The interrupt status or mask of that port, or of any, may have changed.

        A message is sent for a new bit, and where the guest has `cleared` bits and some are left (AHCI 1.3.1, 10.7.2).
        """
        before = status = self.interrupt_status
        for bit in range(PORTS) if number is None else (number,):
            port = self.ports[bit]
            if port.interrupt_status & port.interrupt_enable:
                status |= 1 << bit
        self.interrupt_status = status
        level = bool(self.interrupt_status and self.control & GHC_INTERRUPTS)
        self._set_line(level, level and (cleared or self.interrupt_status != before))

    def reset(self) -> None:
        super().reset()
        self._set_line(False, False)


class Ich9Ahci(PciFunction):
    """The function at 1f.2 of the board q35, or one that the user adds.

    `names` has the ports' names, {} the number, from `first` on.
    """

    kind = "ich9-ahci"
    vendor_id, device_id, revision, class_code = 0x8086, 0x2922, 0x02, 0x010601
    is_multifunction = True
    interrupt_pin = 1

    def __init__(self, names: str = "ide.{}", first: int = 0) -> None:
        super().__init__()
        self.put_template(0x90, 1, 0x40, writable=0xFF)
        self.add_capability(SATA_AT, 8, SataCapability())
        self.put_template(SATA_AT + 2, 2, 0x0010)
        self.put_template(SATA_AT + 4, 4, INDEX_DATA_BAR + 4 | INDEX_AT // 4 << 4)
        # The capability added last heads the list, as QEMU's MSI does.
        self.msi = Msi(self, MSI_AT, maskable=False)
        self.ports = [AhciPort(names.format(first + n), self.dma, partial(self._port_changed, n)) for n in range(PORTS)]
        self.hba = Hba(self.ports, self._set_line)
        for number, region in ((MEMORY_BAR, 0), (INDEX_DATA_BAR, 1)):
            node = self.hba.regions[region].memory_region(RegionOps(self.hba, region))
            self.add_bar(Bar(number, node, BarKind.IO if region else BarKind.MEMORY_32))

    @property
    def places(self) -> list[AhciPort]:
        """Where drives can be."""
        return self.ports

    @property
    def parts(self) -> Iterator[Device]:
        """The devices inside, which the board resets and saves with the rest."""
        yield self.hba
        for port in self.ports:
            yield port
            if port.drive is not None:
                yield port.drive

    def _port_changed(self, number: int) -> None:
        self.hba.port_changed(number)

    def _set_line(self, level: bool, message: bool) -> None:
        if self.msi.enabled:
            self.set_intx(False)
            if level and message:
                self.msi.notify(0)
        else:
            self.set_intx(level)
