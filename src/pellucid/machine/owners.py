"""Whose a memory region is, in QEMU's words: what `info mtree -o` shows.

QEMU names an owner by its id, where the user gave one, else by its path in the object tree. Devices that nobody named
are `/machine/unattached/device[N]` there, numbered in the order in which the board makes them: so that order, QEMU's
and not ours, is written down here for each board. What belongs to the machine itself has a parent in place of an owner.
"""

from collections.abc import Container, Iterator, Mapping, Sequence

from pellucid.memory import AddressSpace, MemoryRegion
from pellucid.records import dataclass, field

_UNATTACHED = "/machine/unattached"
_CPUS, _SERIALS, _FLOPPIES, _DISKS = "(processors)", "(serial ports)", "(floppy drives)", "(IDE drives)"
SERIAL_PORTS = (0x3F8, 0x2F8, 0x3E8, 0x2E8)
"""In the order in which they are numbered."""


@dataclass(frozen=True)
class _Board:
    """`order`: the devices without a name of their own. `paths`: those with one. `regions`: whose each region is.

    `spaces` are the devices that the address spaces of bus masters are of.
    """

    order: tuple[str, ...]
    paths: dict[str, str]
    regions: dict[str, str] = field(default_factory=dict)
    spaces: dict[str, str] = field(default_factory=dict)


_PARTS = {
    "fwcfg": "fw_cfg",
    "fwcfg.dma": "fw_cfg",
    "apic-msi": "lapic",
    **{name: name for name in ("ioapic", "hpet", "kvmvapic", "pcspk", "pit", "port92", "vmport", "fdc")},
    "kvmvapic-rom": "kvmvapic",
    "rtc": "rtc",
    "rtc-index": "rtc",
    "i8042-data": "i8042",
    "i8042-cmd": "i8042",
    "smram": "host",
    "smram-low": "host",
    "smram-region": "host",
    "pci-conf-idx": "bridge",
    "pci-conf-data": "bridge",
    "pcie-mmcfg-mmio": "bridge",
}
_PLACES = {
    ("dma-chan", 0x00): "dma",
    ("dma-cont", 0x08): "dma",
    ("dma-page", 0x81): "dma",
    ("dma-page", 0x87): "dma",
    ("dma-chan", 0xC0): "dma-wide",
    ("dma-cont", 0xD0): "dma-wide",
    ("dma-page", 0x89): "dma-wide",
    ("dma-page", 0x8F): "dma-wide",
    ("pic", 0x20): "pic",
    ("elcr", 0x4D0): "pic",
    ("pic", 0xA0): "pic-slave",
    ("elcr", 0x4D1): "pic-slave",
}
"""Regions of one name that have several owners, by their port."""

_POWER = ("acpi-evt", "acpi-cnt", "acpi-tmr", "acpi-gpe0", "acpi-pci-hotplug", "acpi-cpu-hotplug", "apm-io")
_OF_THE_MACHINE = frozenset(
    ("io", "system", "pci", "pc.bios", "pc.rom", "isa-bios", "ioport80", "ioportF0", "ide")
    + ("ram-below-4g", "ram-above-4g")
)
_ISA = ("dma", "dma-wide", "pic", "pic-slave", "hpet", "rtc", "pit", "pcspk", _SERIALS, "fdc", _FLOPPIES)
_INPUT = ("i8042", "vmport", "vmmouse", "port92")

_BOARDS = {
    "pc": _Board(
        order=(_CPUS, "host", "piix3", *_ISA, *_INPUT, "ide", _DISKS, "power"),
        paths={"bridge": "/machine/i440fx", "ioapic": "/machine/i440fx/ioapic"},
        regions={
            **dict.fromkeys((*_POWER, "piix4-pm", "pm-smbus"), "power"),
            **dict.fromkeys(("piix-bmdma-container", "piix-bmdma", "bmdma"), "ide"),
            **dict.fromkeys(("pam-ram", "pam-rom", "pam-pci"), "bridge"),
            "piix3-reset-control": "piix3",
        },
        spaces={"i440FX": "host", "PIIX3": "piix3", "piix3-ide": "ide", "PIIX4_PM": "power"},
    ),
    "q35": _Board(
        order=(_CPUS, "lpc", *_ISA, *_INPUT, "ahci", _DISKS, "smbus"),
        paths={"bridge": "/machine/q35", "host": "/machine/q35/mch", "ioapic": "/machine/q35/ioapic"},
        regions={
            **dict.fromkeys((*_POWER, "ich9-pm", "acpi-smi", "sm-tco", "lpc-rcrb-mmio", "lpc-reset-control"), "lpc"),
            **dict.fromkeys(("ahci", "ahci-idp"), "ahci"),
            **dict.fromkeys(("pam-ram", "pam-rom", "pam-pci"), "host"),
            **dict.fromkeys(("tseg-window", "tseg-blackhole", "smbase-window", "smbase-blackhole"), "host"),
            **dict.fromkeys(("smram-high", "smram-open-high"), "host"),
            "pm-smbus": "smbus",
        },
        spaces={"mch": "host", "ICH9-LPC": "lpc", "ich9-ahci": "ahci", "ICH9-SMB": "smbus"},
    ),
}


def name_owners(board: str, spaces: Sequence[AddressSpace], cpu_count: int, floppies: int = 0, disks: int = 0) -> None:
    """Set `owner` or `parent` of every region of `spaces` whose owner is known; an id that is there is kept.

    floppies, disks: how many drives the board has on its floppy and its IDE or AHCI controller.
    """
    names = _BOARDS.get(board)
    if names is None:
        return
    regions = {region for space in spaces for region in space.root.descendants()}
    paths = _device_paths(names, regions, {_CPUS: cpu_count, _FLOPPIES: floppies, _DISKS: disks})
    for region in regions:
        _name(region, names, paths)
    for space in spaces:
        key = names.spaces.get(space.name)
        if space.name.startswith("cpu-smm-"):
            key = f"cpu{space.name.removeprefix('cpu-smm-')}"
        if key is not None:
            for region in (space.root, *space.root.subregions):
                region.owner = f"dev path={paths[key]}"


def _name(region: MemoryRegion, names: _Board, paths: dict[str, str]) -> None:
    if region.owner is not None and not region.owner.startswith("dev path="):
        return
    key = names.regions.get(region.name) or _PARTS.get(region.name) or _PLACES.get((region.name, region.addr))
    if region.name == "serial":
        key = f"serial@{region.addr:x}"
    if key in paths:
        region.owner = f"dev path={paths[key]}"
    elif region.name == "pc.ram":
        region.owner = "obj path=/objects/pc.ram"
    elif region.name in _OF_THE_MACHINE:
        region.parent = f"obj path={_UNATTACHED}"


def _device_paths(names: _Board, regions: set[MemoryRegion], counts: Mapping[str, int]) -> dict[str, str]:
    """The path of each device, by its name in the tables."""
    there = {region.name for region in regions}
    serials = {region.addr for region in regions if region.name == "serial"}
    paths = {"fw_cfg": "/machine/fw_cfg", **names.paths}
    absent = {name for name in ("hpet", "fdc") if name not in there}
    for number, key in enumerate(_in_order(names.order, serials, counts, absent)):
        paths[key] = f"{_UNATTACHED}/device[{number}]"
    paths["lapic"] = f"{paths['cpu0']}/lapic"
    return paths


def _in_order(
    order: Sequence[str], serials: set[int], counts: Mapping[str, int], absent: Container[str]
) -> Iterator[str]:
    for key in order:
        if key == _CPUS:
            yield from ("cpu0", "kvmvapic", *(f"cpu{cpu}" for cpu in range(1, counts[_CPUS])))
        elif key == _SERIALS:
            yield from (f"serial@{port:x}" for port in SERIAL_PORTS if port in serials)
        elif key in counts:
            yield from (f"{key} {number}" for number in range(counts[key]))
        elif key not in absent:
            yield key
