"""What a PC's board puts into fw_cfg beside sizes and maps: ACPI tables and SMBIOS structures.

The tables are described when firmware selects one of their files, once after every reset: by then it has placed the
BARs and the power management registers that the tables speak of.
"""

import struct
from collections.abc import Callable, Iterator, Sequence

from pellucid.machine.config import MachineConfig
from pellucid.machine.cpu_model import cpuid_entries
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.firmware import pc_acpi, smbios
from pellucid.machine.firmware.acpi_option import user_tables
from pellucid.machine.firmware.pc_acpi import PcTables
from pellucid.machine.firmware.pc_dsdt import Slot
from pellucid.machine.firmware.smbios_options import parse_smbios, parse_uuid
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus
from pellucid.machine.pci.function import PciFunction
from pellucid.memory import RamList

FOUR_GIB, GIB = 1 << 32, 1 << 30
IOAPIC = 0xFEC0_0000
FW_CFG_UUID, FW_CFG_ACPI_TABLES = 0x02, 0x8000
ISA_ORDER = ("i8042", "isa-fdc", "isa-serial", "isa-parallel", "mc146818rtc")
"""The order of ISA devices in the DSDT, by kind."""
CLASS_VGA = 0x0300


MOST = {pc_acpi.TABLES_FILE: 2 << 20, pc_acpi.LOADER_FILE: 64 << 10}
"""Bytes up to which a file may grow when it is made anew; the others keep their size."""


class FileBlock:
    """A file of fw_cfg that is made anew while the machine runs: its content is a RAM block, `/rom@NAME`."""

    def __init__(self, ram: RamList, name: str, content: bytes, most: int) -> None:
        self._block = ram.new(f"/rom@{name}", len(content), max(len(content), most))
        self.put(content)

    def put(self, content: bytes) -> memoryview:
        """Another content, of a length up to the block's most; what the guest reads."""
        self._block.resize(len(content))
        self._block.view[: len(content)] = content
        self._block.written(0, len(content))
        return self._block.view[: len(content)]


def offer_acpi(machine: Machine, fw_cfg: FwCfg, describe: Callable[[], PcTables]) -> None:
    """The three files; their contents, as described, whenever firmware first looks after a reset."""
    fresh = [True]

    def forget() -> None:
        fresh[0] = True

    def rebuild() -> None:
        if fresh[0]:
            fresh[0] = False
            put(pc_acpi.build_files(describe()))

    def put(files: pc_acpi.AcpiFiles) -> None:
        for name, content in _by_name(files):
            fw_cfg.add_file(name, blocks[name].put(content), rebuild)

    machine.system.on_reset.append(lambda cause: forget())
    first = pc_acpi.build_files(describe())
    blocks = {name: FileBlock(machine.ram, name, content, MOST.get(name, 0)) for name, content in _by_name(first)}
    put(first)


def _by_name(files: pc_acpi.AcpiFiles) -> list[tuple[str, bytes]]:
    """The files in the order in which QEMU makes their blocks."""
    return [
        (pc_acpi.TABLES_FILE, files.tables),
        (pc_acpi.LOADER_FILE, files.loader),
        (pc_acpi.RSDP_FILE, files.rsdp),
    ]


def offer_user_tables(fw_cfg: FwCfg, config: MachineConfig) -> list[bytes]:
    """-acpitable: the tables, also as the item from which firmware without a table loader takes them."""
    tables = user_tables(config.acpi_tables)
    if tables:
        content = b"".join(struct.pack("<H", len(table)) + table for table in tables)
        fw_cfg.add_item(FW_CFG_ACPI_TABLES, struct.pack("<H", len(tables)) + content)
    return tables


def offer_smbios(
    machine: Machine, fw_cfg: FwCfg, ram: Sequence[tuple[int, int]], product: str, version: str, entry_point_64: bool
) -> None:
    """-smbios and -uuid, and the structures of the machine itself. `ram`: (address, size) of its ranges."""
    config = machine.config
    uuid = parse_uuid("uuid", config.uuid)
    options = parse_smbios(config.smbios, uuid)
    topology = config.topology
    leaf = next((entry for entry in cpuid_entries(config.cpu, 0, topology, warn=False) if entry.function == 1), None)
    described = smbios.SmbiosMachine(
        product,
        version,
        topology.sockets,
        topology.cores,
        topology.threads,
        ram,
        (leaf.eax, leaf.edx) if leaf else (0, 0),
        entry_point_64=entry_point_64,
    )
    files = smbios.build_smbios(described, options)
    fw_cfg.add_item(FW_CFG_UUID, options.uuid)
    fw_cfg.add_file(smbios.TABLES_FILE, files.tables)
    fw_cfg.add_file(smbios.ANCHOR_FILE, files.anchor)


def port_of(parts: Sequence[Part], kind: str) -> int | None:
    """The first port of the device of that kind, None where the board has none."""
    return next((part.ports[0] for part in parts if part.device.kind == kind), None)


def isa_aml(parts: Sequence[Part]) -> bytes:
    """AML of the devices behind the ISA bridge, in the order that QEMU has."""
    found = [part for part in parts if part.device.kind in ISA_ORDER]
    found.sort(key=lambda part: ISA_ORDER.index(part.device.kind))
    return b"".join(part.device.acpi(part.resources) for part in found)


def bus_slots(bus: PciBus, isa_bridge: int) -> list[Slot]:
    """The functions of the root bus that the DSDT names, except the ISA bridge, which the boards' DSDTs add."""
    return [
        Slot(devfn, hotpluggable=function.hotpluggable, is_vga=function.class_code >> 8 == CLASS_VGA)
        for devfn, function in sorted(bus.functions.items())
        if isinstance(function, PciFunction) and (devfn & 7 == 0 or function.in_dsdt) and devfn != isa_bridge
    ]


def bus_windows(
    bus: PciBus, below_4g: int, above_4g: int, hole_64: int, ecam: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """What the root bridge gives to BARs: from RAM's end to the I/O APIC, less configuration space; one from 4 GiB on.

    The upper one begins at whole GiB above RAM, or where firmware has put the lowest BAR, and has at least `hole_64`
    bytes.
    """
    windows = [(below_4g, IOAPIC - 1)]
    if ecam is not None:
        windows = [(below_4g, ecam[0] - 1), (ecam[0] + ecam[1], IOAPIC - 1)]
    high = list(_high_bars(bus))
    start = min((first for first, _ in high), default=_round_up(FOUR_GIB + above_4g))
    end = max([_round_up(start + hole_64), *(last + 1 for _, last in high)])
    return [(first, last) for first, last in windows if first <= last] + [(start, end - 1)]


def _round_up(address: int) -> int:
    return -(-address // GIB) * GIB


def _high_bars(bus: PciBus) -> Iterator[tuple[int, int]]:
    """(first, last) of every BAR that lies above 4 GiB."""
    for function in bus.functions.values():
        if isinstance(function, PciFunction):
            for bar in function.bars:
                if bar.address is not None and bar.address >= FOUR_GIB:
                    yield bar.address, bar.address + bar.region.size - 1
