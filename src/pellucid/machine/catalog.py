"""The devices that `-device` can make: one declaration each.

A declaration names the device, the kind of bus that it goes on, the heading that `-device help` has it under, the class
whose properties the user can set, and how one is made from a `Plug`: the machine, the values of its properties, and the
name that its own bus is to have.
"""

from collections.abc import Callable
from typing import Any

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.chardev import Chardev
from pellucid.machine.device import Device
from pellucid.machine.devices import pc_testdev
from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.devices.debugcon import DebugCon
from pellucid.machine.devices.edu import Edu
from pellucid.machine.devices.fdc import Fdc
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.devices.intel_iommu import IntelIommu, chosen_features
from pellucid.machine.devices.isa_debug_exit import IsaDebugExit
from pellucid.machine.devices.pc_testdev import PcTestdev
from pellucid.machine.devices.pci_testdev import PciTestdev
from pellucid.machine.devices.pvpanic import Pvpanic, PvpanicPci
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.floppy.plug import plug_floppy
from pellucid.machine.ide.ahci_port import AhciPort
from pellucid.machine.ide.atapi import IdeCd
from pellucid.machine.ide.bus import IdeBus
from pellucid.machine.ide.disk import IdeHd
from pellucid.machine.ide.plug import plug_drive
from pellucid.machine.machine import Machine
from pellucid.machine.pci import Ioh3420, PciePciBridge, PcieRootPort, StandardPciBridge
from pellucid.memory import MemoryRegion
from pellucid.records import dataclass

PORT_SPACE = 0x1_0000
INTEL_IOMMU_BASE = 0xFED9_0000


@dataclass
class Plug:
    """What a device is made from. `values` has every own property, given or default."""

    machine: Machine
    values: dict[str, Any]
    given: dict[str, object]
    """Those properties that the user has set."""
    find_chardev: Callable[[str], Chardev | None]
    id: str = ""
    bus_name: str = ""
    """For the bus of a bridge."""
    place: object = None
    """What stands behind the bus that it goes on."""

    def chardev(self, kind: str) -> Chardev:
        """The backend that the property `chardev` names. Raises UserError."""
        name = self.values["chardev"]
        if not name:
            raise UserError("Can't create debugcon device, empty char device")
        found = self.find_chardev(name)
        if found is None:
            raise UserError(f"Property '{kind}.chardev' can't find value '{name}'")
        return found

    def map_ports(self, device: Device, region: int, base: int, size: int | None = None) -> None:
        """Put a region of an ISA device into port space. Raises UserError when it does not lie there."""
        made = device.regions[region].memory_region(device.ops(region))
        if size is not None:
            made.set_size(size)
        if base + made.size > PORT_SPACE:
            raise UserError(f"ports {base:#x} to {base + made.size - 1:#x} are beyond the last, 0xffff")
        self.machine.system_io.add_subregion_overlap(base, made, 0)

    def map_memory(self, device: Device, region: int, base: int) -> None:
        """Put a region into memory."""
        made: MemoryRegion = device.regions[region].memory_region(device.ops(region))
        self.machine.system_memory.add_subregion_overlap(base, made, 0)


@dataclass(frozen=True)
class DeviceClass:
    """One declaration."""

    name: str
    bus: str
    """`PCI`, `ISA`, `System`: the type of the bus, as QEMU says it."""
    category: str
    device: type[Device]
    make: Callable[[Plug], Device]
    description: str = ""
    alias: str = ""
    express_only: bool = False

    @property
    def help_line(self) -> str:
        """Its line in `-device help`."""
        text = f'name "{self.name}", bus {self.bus}'
        if self.alias:
            text += f', alias "{self.alias}"'
        return text + (f', desc "{self.description}"' if self.description else "")


BRIDGES, STORAGE, MISC = "Controller/Bridge/Hub", "Storage", "Misc"
CATEGORIES = (
    BRIDGES, "USB", STORAGE, "Network", "Input", "Display", "Sound", MISC, "CPU", "Watchdog", "Uncategorized",
)  # fmt: skip
"""In the order of `-device help`."""


def _isa_debug_exit(plug: Plug) -> Device:
    device = IsaDebugExit(plug.machine.exit)
    plug.map_ports(device, 0, plug.values["iobase"], plug.values["iosize"])
    return device


def _isa_debugcon(plug: Plug) -> Device:
    device = DebugCon(plug.chardev(DebugCon.kind))
    plug.map_ports(device, 0, plug.values["iobase"])
    return device


def _pc_testdev(plug: Plug) -> Device:
    device = PcTestdev([plug.machine.gsi(number) for number in range(pc_testdev.LINES)])
    for region, base in enumerate(pc_testdev.PORTS):
        plug.map_ports(device, region, base)
    plug.map_memory(device, pc_testdev.IOMEM, pc_testdev.IOMEM_BASE)
    return device


def _pvpanic(plug: Plug) -> Device:
    machine = plug.machine
    if any(isinstance(device, Pvpanic) for device in machine.devices):
        raise UserError("duplicate fw_cfg file name: etc/pvpanic-port")
    fw_cfg = next((device for device in machine.devices if isinstance(device, FwCfg)), None)
    if fw_cfg is not None:
        fw_cfg.add_file("etc/pvpanic-port", plug.values["ioport"].to_bytes(2, "little"))
    device = Pvpanic(machine.system.guest_panicked, machine.system.guest_crash_loaded)
    plug.map_ports(device, 0, plug.values["ioport"])
    return device


def _pci_testdev(plug: Plug) -> Device:
    size = plug.values["membar"]
    if size and (size & (size - 1) or size < 16):
        raise UserError(f"pci-testdev: membar={size}: it must be a power of two of at least 16")
    return PciTestdev(size)


def _intel_iommu(plug: Plug) -> Device:
    machine = plug.machine
    if machine.pci is None or not machine.pci.express:
        raise NotBuiltError(f"intel-iommu on -machine {machine.config.board} is not built yet: use -machine q35")
    if machine.iommu is not None:
        raise UserError("QEMU does not support multiple vIOMMUs for x86 yet.")
    split = machine.config.kernel_irqchip == "split"
    features = chosen_features(plug.values, split=split)
    device = IntelIommu(features, machine.memory, machine.system_memory, machine.vm.signal_msi)
    if split:
        machine.vm.carry_ioapic_messages(device.signal_ioapic_msi)
    plug.map_memory(device, 0, INTEL_IOMMU_BASE)
    machine.iommu = device
    machine.pci.set_iommu(device)
    return device


def _standard_bridge(plug: Plug) -> Device:
    if not plug.values["chassis_nr"]:
        raise UserError(
            "Bridge chassis not specified. Each bridge is required to be assigned a unique chassis id > 0."
        )
    return StandardPciBridge(plug.bus_name, plug.given)


def _root_port(device: type[PcieRootPort] | type[Ioh3420]) -> Callable[[Plug], Device]:
    def make(plug: Plug) -> Device:
        place = (plug.values["chassis"], plug.values["slot"])
        if any((port.chassis, port.slot_number) == place for port in plug.machine.devices
               if isinstance(port, PcieRootPort | Ioh3420)):  # fmt: skip
            raise UserError("Can't add chassis slot, error -16")
        return device(plug.bus_name, plug.given)

    return make


def _drive(*, cd: bool) -> Callable[[Plug], Device]:
    def make(plug: Plug) -> Device:
        assert isinstance(plug.place, IdeBus | AhciPort)
        return plug_drive(plug.machine.drives, plug.place, plug.values, plug.given, cd=cd)

    return make


def _floppy(plug: Plug) -> Device:
    assert isinstance(plug.place, Fdc)
    return plug_floppy(plug.machine.drives, plug.place, plug.values, plug.given)


def _ahci(plug: Plug) -> Device:
    if plug.id:
        return Ich9Ahci(plug.id + ".{}")
    first = sum(
        place.name.startswith("ide.") for controller in plug.machine.drives.controllers for place in controller.places
    )
    return Ich9Ahci("ide.{}", first)


CATALOG = (
    DeviceClass("ioh3420", "PCI", BRIDGES, Ioh3420, _root_port(Ioh3420), "Intel IOH device id 3420 PCIE Root Port",
                express_only=True),
    DeviceClass("pci-bridge", "PCI", BRIDGES, StandardPciBridge, _standard_bridge, "Standard PCI Bridge"),
    DeviceClass("pcie-pci-bridge", "PCI", BRIDGES, PciePciBridge,
                lambda plug: PciePciBridge(plug.bus_name, plug.given), express_only=True),
    DeviceClass("pcie-root-port", "PCI", BRIDGES, PcieRootPort, _root_port(PcieRootPort), "PCI Express Root Port",
                express_only=True),
    DeviceClass("floppy", "floppy-bus", STORAGE, FloppyDrive, _floppy, "virtual floppy drive"),
    DeviceClass("ich9-ahci", "PCI", STORAGE, Ich9Ahci, _ahci, alias="ahci"),
    DeviceClass("ide-cd", "IDE", STORAGE, IdeCd, _drive(cd=True), "virtual IDE CD-ROM"),
    DeviceClass("ide-hd", "IDE", STORAGE, IdeHd, _drive(cd=False), "virtual IDE disk"),
    DeviceClass("edu", "PCI", MISC, Edu, lambda plug: Edu(plug.machine.device_clock, plug.values["dma_mask"])),
    DeviceClass("intel-iommu", "System", MISC, IntelIommu, _intel_iommu,
                "Intel IOMMU (VT-d) DMA Remapping device"),
    DeviceClass("isa-debug-exit", "ISA", MISC, IsaDebugExit, _isa_debug_exit),
    DeviceClass("isa-debugcon", "ISA", MISC, DebugCon, _isa_debugcon),
    DeviceClass("pc-testdev", "ISA", MISC, PcTestdev, _pc_testdev),
    DeviceClass("pci-testdev", "PCI", MISC, PciTestdev, _pci_testdev, "PCI Test Device"),
    DeviceClass("pvpanic", "ISA", MISC, Pvpanic, _pvpanic),
    DeviceClass("pvpanic-pci", "PCI", MISC, PvpanicPci, lambda plug: PvpanicPci(
        plug.machine.system.guest_panicked, plug.machine.system.guest_crash_loaded)),
)  # fmt: skip


def find_class(name: str) -> DeviceClass | None:
    """The declaration by name or alias."""
    return next((found for found in CATALOG if name in (found.name, found.alias)), None)


def catalog_help() -> str:
    """What `-device help` prints."""
    parts = []
    for category in CATEGORIES:
        lines = sorted(entry.help_line for entry in CATALOG if entry.category == category)
        if lines:
            parts.append("\n".join([f"{category} devices:", *lines]))
    return "\n\n".join(parts)


def class_help(entry: DeviceClass) -> str:
    """What `-device NAME,help` prints."""
    if not entry.device.properties:
        return f"There are no options for {entry.name}."
    lines = [f"{entry.name} options:"]
    for declared in sorted(entry.device.properties, key=lambda declared: declared.name):
        default = declared.kind.default_text(declared.default)
        line = f"  {f'{declared.name}=<{declared.kind.name}>':<22}"
        if declared.kind.hint or default is not None:
            line += " - " + declared.kind.hint + (f" (default: {default})" if default is not None else "")
        lines.append(line.rstrip())
    return "\n".join(lines)
