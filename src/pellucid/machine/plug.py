"""`-device` and `-global`: from the option's text to a device on its bus, with QEMU's words for what does not fit."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from pellucid.errors import UserError
from pellucid.machine.catalog import DeviceClass, Plug, find_class
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import DeviceOption, GlobalOption
from pellucid.machine.device import Device, Property
from pellucid.machine.devices.ahci import Ich9Ahci
from pellucid.machine.drives import add_controller
from pellucid.machine.floppy.drive import FloppyDrive
from pellucid.machine.ide.drive import AtaDrive
from pellucid.machine.kvm_pit import KVM_PIT, set_pit_global
from pellucid.machine.machine import Machine
from pellucid.machine.part import Part
from pellucid.machine.pci import PciBus, PciFunction
from pellucid.machine.pci.ports import RootPort
from pellucid.machine.qdev import QdevBus

IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")
BUS_KINDS = {
    "PCI": ("PCI", "PCIE"), "ISA": ("ISA",), "IDE": ("IDE",), "floppy-bus": ("floppy-bus",), "System": ("System",),
}  # fmt: skip
"""Types of bus on which a device for one finds its place."""
PLACED_BY_BUS = ("addr", "multifunction")
NOT_BUILT_VALUES = {"romfile": "an expansion ROM from a file", "failover_pair_id": "fail-over"}


class DevicePlugger:
    """Makes the devices that the user asks for, one after the other, on a board that stands.

    `chardev(name)` gives a stream that a property names, None when there is none.
    """

    def __init__(
        self, machine: Machine, globals: Iterable[GlobalOption], chardev: Callable[[str], Chardev | None]
    ) -> None:
        self._machine, self._globals, self._chardev = machine, tuple(globals), chardev
        self._ids: set[str] = set()
        self._automatic = {"PCI": 0, "PCIE": 0}

    def set_board_globals(self) -> list[str]:
        """Apply -global to the board's own devices; the warnings for drivers that nobody knows.

        Raises UserError for a property that such a device does not have, or that cannot be set yet.
        """
        warnings = []
        known = {node.type for bus in self._machine.qdev.walk() for node in bus.nodes}
        for chosen in self._globals:
            if chosen.driver == KVM_PIT:
                set_pit_global(self._machine.vm if self._machine.has_pit else None, chosen)
                continue
            found = [device for device in self._machine.devices if device.kind == chosen.driver]
            for device in found:
                self._set_board_global(device, chosen)
            if not found and find_class(chosen.driver) is None:
                if chosen.driver in known:
                    raise UserError(f"-global {chosen}: not built yet: leave it out")
                warnings.append(f"warning: global {chosen.driver}.{chosen.property} has invalid class name")
        return warnings

    @staticmethod
    def _set_board_global(device: Device, chosen: GlobalOption) -> None:
        declared = {found.name: found for found in type(device).properties}.get(chosen.property)
        if declared is None or isinstance(device, PciFunction) and declared in PciFunction.properties:
            raise UserError(f"-global {chosen}: this property of the board's {device.kind} cannot be set yet")
        device.set_properties({declared.name: parse_value(device.kind, declared, chosen.value)})

    def plug(self, option: DeviceOption) -> Device:
        """Make one. Raises UserError, with the option in front."""
        try:
            return self._plug(option)
        except UserError as error:
            raise UserError(f"-{option.option} {option.text}: {error}") from None

    def _plug(self, option: DeviceOption) -> Device:
        items = dict(option.items)
        driver = items.pop("driver", "")
        if not driver:
            raise UserError("Parameter 'driver' is missing")
        entry = find_class(driver)
        if entry is None:
            board = {node.type for bus in self._machine.qdev.walk() for node in bus.nodes}
            if driver in board:
                raise UserError("Parameter 'driver' expects a pluggable device type")
            raise UserError(f"'{driver}' is not a valid device model name")
        bus = self._find_bus(entry, items.pop("bus", None))
        ident = self._take_id(items.pop("id", ""))
        given = self._global_values(entry)
        for name, text in items.items():
            given[name] = parse_value(entry.name, find_property(entry, name), text)
        return self._make(entry, bus, ident, given)

    def _global_values(self, entry: DeviceClass) -> dict[str, object]:
        values: dict[str, object] = {}
        for chosen in self._globals:
            if chosen.driver == entry.name:
                try:
                    declared = find_property(entry, chosen.property)
                    values[declared.name] = parse_value(entry.name, declared, chosen.value)
                except UserError as error:
                    raise UserError(f"can't apply global {chosen}: {error}") from None
        return values

    def _take_id(self, ident: str) -> str:
        if ident and not IDENTIFIER.fullmatch(ident):
            raise UserError(
                "Parameter 'id' expects an identifier\n"
                "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter."
            )
        if ident in self._ids:
            raise UserError(f"Duplicate ID '{ident}' for device")
        if ident:
            self._ids.add(ident)
        return ident

    def _find_bus(self, entry: DeviceClass, name: str | None) -> QdevBus:
        kinds = BUS_KINDS[entry.bus]
        if name is None:
            for bus in self._machine.qdev.walk_newest_first():
                if bus.kind in kinds:
                    return bus
            raise UserError(f"No '{entry.bus}' bus found for device '{entry.name}'")
        for bus in self._machine.qdev.walk():
            if bus.name == name:
                if bus.kind not in kinds:
                    raise UserError(f"Device '{entry.name}' can't go on {bus.kind} bus")
                return bus
        raise UserError(f"Bus '{name}' not found")

    def _make(self, entry: DeviceClass, bus: QdevBus, ident: str, given: dict[str, object]) -> Device:
        placed = {name: given.pop(name) for name in PLACED_BY_BUS if name in given}
        for name, what in NOT_BUILT_VALUES.items():
            if given.get(name):
                raise UserError(f"{name}={given[name]}: {what} is not built yet: leave it out")
        values: dict[str, Any] = {declared.name: declared.default for declared in entry.device.properties} | given
        pci = bus.host if isinstance(bus.host, PciBus) else None
        if pci is not None:
            if entry.express_only and not pci.express:
                raise UserError(f"{entry.name} needs a PCI Express bus, and {bus.name} is a conventional one")
            devfn = free_place(pci, entry.name, int(str(placed.get("addr", -1))), bool(placed.get("multifunction")))
        plug = Plug(self._machine, values, dict(given), self._chardev, ident, ident)
        behind = getattr(entry.device, "express_behind", None)
        if behind is not None and not ident:
            kind = "PCIE" if behind else "PCI"
            plug.bus_name = f"{kind.lower()}.{self._automatic[kind]}"
            self._automatic[kind] += 1
        plug.place = bus.host
        device = entry.make(plug)
        # What is to be chosen automatically has been chosen by now.
        device.set_properties({name: value for name, value in given.items() if value != "auto"})
        if pci is not None:
            assert isinstance(device, PciFunction)
            device.set_multifunction(bool(placed.get("multifunction")))
            pci.add(devfn >> 3, devfn & 7, device, ident)
            if isinstance(pci.bridge, RootPort):
                pci.bridge.card_added(announce=False)
        else:
            bus.plug(device.qdev_node(ident))
        self._machine.parts.append(Part(device))
        self._machine.peripherals.append((ident, device))
        self._plugged(device)
        return device

    def _plugged(self, device: Device) -> None:
        """What is more to do for a disk controller, and for a drive."""
        drives = self._machine.drives
        if isinstance(device, Ich9Ahci):
            bus = device.bus
            assert bus is not None
            add_controller(drives, bus.node(device), device, device.places)
            self._machine.parts += [Part(part) for part in device.parts]
        elif isinstance(device, AtaDrive | FloppyDrive):
            for tell in drives.on_plugged:
                tell()


def find_property(entry: DeviceClass, name: str) -> Property[Any]:
    """The declared property. Raises UserError."""
    for declared in entry.device.properties:
        if declared.name == name:
            return declared
    raise UserError(f"Property '{entry.name}.{name}' not found")


def parse_value(driver: str, declared: Property[Any], text: str) -> object:
    """The value that `text` gives a property. Raises UserError."""
    try:
        return declared.kind.parse(declared.name, text)
    except ValueError:
        raise UserError(f"Property '{driver}.{declared.name}' doesn't take value '{text}'") from None


def free_place(bus: PciBus, name: str, devfn: int, multifunction: bool) -> int:
    """Where a function goes: at `devfn`, or in the first free slot for -1. Raises UserError when it cannot."""
    if devfn < 0:
        free = [slot for slot in range(32) if slot << 3 not in bus.functions]
        if not free:
            raise UserError(f"PCI: no slot/function available for {name}, all in use or reserved")
        return free[0] << 3
    slot, function = devfn >> 3, devfn & 7
    if devfn in bus.functions:
        node = bus.nodes[devfn]
        raise UserError(
            f"PCI: slot {slot} function {function} not available for {name}, "
            f"in use by {node.type},id={node.id or '(null)'}"
        )
    first = bus.functions.get(slot << 3)
    if function and isinstance(first, PciFunction) and not first.multifunction:
        raise UserError(f"PCI: single function device can't be populated in function {slot:x}.{function}")
    if not function and not multifunction:
        other = next((other for other in range(1, 8) if slot << 3 | other in bus.functions), None)
        if other is not None:
            raise UserError(
                f"PCI: {slot:x}.0 indicates single function, but {slot:x}.{other:x} is already populated."
            )
    return devfn

