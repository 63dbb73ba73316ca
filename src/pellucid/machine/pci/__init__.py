"""PCI: configuration space, BARs, capabilities, buses and bridges, and the two ways to reach configuration space."""

from pellucid.machine.pci.bar import Bar, BarKind
from pellucid.machine.pci.bridge import PciBridge
from pellucid.machine.pci.bus import PciBus, PciSpaces, swizzle
from pellucid.machine.pci.config import ConfigRegister
from pellucid.machine.pci.conventional_bridges import PciePciBridge, StandardPciBridge
from pellucid.machine.pci.ecam import Ecam
from pellucid.machine.pci.function import PciFunction
from pellucid.machine.pci.mechanism1 import ConfigMechanism1
from pellucid.machine.pci.msi import Msi, MsiX
from pellucid.machine.pci.ports import Ioh3420, PcieRootPort

__all__ = [
    "Bar",
    "BarKind",
    "ConfigMechanism1",
    "ConfigRegister",
    "Ecam",
    "Ioh3420",
    "Msi",
    "MsiX",
    "PciBridge",
    "PciBus",
    "PciFunction",
    "PciSpaces",
    "PciePciBridge",
    "PcieRootPort",
    "StandardPciBridge",
    "swizzle",
]
