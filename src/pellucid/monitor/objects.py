"""The machine's objects under the paths and types that QEMU's object model (QOM) gives them.

    /machine                              the board
    /machine/unattached/device[N]         its processors, then its devices in the board's order
    /machine/peripheral[-anon]            what -device adds
    /chardevs/ID, /objects                the character devices; what -object adds

An object's properties are those that its class declares.
"""

from collections.abc import Iterator

from pellucid.machine.board import BOARDS
from pellucid.machine.device import Device, Property
from pellucid.machine.machine import Machine
from pellucid.machine.pci import PciFunction
from pellucid.machine.properties import PropertyType
from pellucid.machine.state import Boolean, Integer
from pellucid.machine.streams import Streams
from pellucid.monitor.cpu_object import cpu_properties
from pellucid.monitor.errors import DeviceNotFound
from pellucid.records import dataclass, field
from pellucid.runtime import VcpuThread

UNATTACHED, PERIPHERAL = "/machine/unattached", "/machine/peripheral"
CPU_TYPE = "-x86_64-cpu"
MACHINE_TYPE = "-machine"


@dataclass(frozen=True)
class QomProperty:
    """A property: its type in QOM's words, its value where it has one."""

    name: str
    type: str
    value: object = None


@dataclass(frozen=True)
class QomObject:
    """An object in the tree; `device` when it is one."""

    path: str
    type: str
    properties: tuple[QomProperty, ...] = ()
    children: dict[str, "QomObject"] = field(default_factory=dict)
    device: Device | None = None


@dataclass(frozen=True)
class QomType:
    """A type that objects can have."""

    name: str
    parent: str
    abstract: bool = False


def vcpu_path(thread: VcpuThread) -> str:
    """A processor's place in the tree."""
    return f"{UNATTACHED}/device[{thread.index}]"


def device_path(machine: Machine, device: Device) -> str:
    """A device's place in the tree."""
    anonymous = 0
    for ident, other in machine.peripherals:
        if other is device:
            return f"{PERIPHERAL}/{ident}" if ident else f"{PERIPHERAL}-anon/device[{anonymous}]"
        anonymous += not ident
    added = {id(other) for _, other in machine.peripherals}
    board = (other for other in machine.devices if id(other) not in added)
    index = next(index for index, other in enumerate(board) if other is device)
    return f"{UNATTACHED}/device[{len(machine.vcpus.threads) + index}]"


def tree(machine: Machine, streams: Streams) -> QomObject:
    """All objects, as they are now."""
    unattached: dict[str, QomObject] = {}
    children = {UNATTACHED: unattached, PERIPHERAL: {}, f"{PERIPHERAL}-anon": {}}
    cpu = tuple(QomProperty(*found) for found in cpu_properties(machine.config.cpu))
    for thread in machine.vcpus.threads:
        path = vcpu_path(thread)
        processor = QomObject(path, machine.config.cpu.model + CPU_TYPE, cpu)
        unattached[path.rpartition("/")[2]] = processor
    for device in machine.devices:
        path = device_path(machine, device)
        folder, _, name = path.rpartition("/")
        children[folder][name] = QomObject(path, device.kind, tuple(_properties(device)), device=device)
    places = {
        folder.rpartition("/")[2]: QomObject(folder, "container", children=found)
        for folder, found in children.items()
    }
    board = QomObject("/machine", machine.config.board + MACHINE_TYPE, tuple(_board_properties(machine)), places)
    chardevs = {label: QomObject(f"/chardevs/{label}", "chardev") for label in streams.named}
    return QomObject(
        "/",
        "container",
        children={
            "objects": QomObject("/objects", "container"),
            "machine": board,
            "chardevs": QomObject("/chardevs", "container", children=chardevs),
        },
    )


def find(machine: Machine, streams: Streams, path: str) -> QomObject:
    """The object at `path`, or the only one whose path ends in it. Raises DeviceNotFound."""
    root = tree(machine, streams)
    if path.startswith("/"):
        found: QomObject | None = root
        for name in filter(None, path.split("/")):
            found = found.children.get(name) if found else None
        if found is not None:
            return found
    else:
        matches = [node for node in _walk(root) if f"/{node.path.strip('/')}".endswith(f"/{path}")]
        if len(matches) == 1:
            return matches[0]
    raise DeviceNotFound(f"Device '{path}' not found")


def device_classes() -> dict[str, type[Device]]:
    """Every device class by its type name."""
    found: dict[str, type[Device]] = {}

    def add(kind: type[Device]) -> None:
        for below in kind.__subclasses__():
            if below.kind:
                found.setdefault(below.kind, below)
            add(below)

    add(Device)
    return found


def all_types() -> list[QomType]:
    """Every type there is, with what it is a kind of."""
    types = [
        QomType("object", "", abstract=True),
        QomType("container", "object"),
        QomType("device", "object", abstract=True),
        QomType("pci-device", "device", abstract=True),
        QomType("machine", "object", abstract=True),
    ]
    types += [QomType(name + MACHINE_TYPE, "machine") for name in BOARDS]
    for name, kind in device_classes().items():
        types.append(QomType(name, "pci-device" if issubclass(kind, PciFunction) else "device"))
    return types


def is_a(types: list[QomType], name: str, ancestor: str) -> bool:
    """Whether the type `name` is `ancestor` or a kind of it."""
    parents = {kind.name: kind.parent for kind in types}
    while name and name != ancestor:
        name = parents.get(name, "")
    return bool(name)


def property_type(declared: Property[object]) -> str:
    """A declared property's type in QOM's words."""
    kind = declared.kind
    if isinstance(kind, PropertyType):
        return kind.name
    if isinstance(kind, Boolean):
        return "bool"
    if isinstance(kind, Integer):
        bits = next((bits for bits in (8, 16, 32) if kind.high < 1 << bits), 64)
        return f"{'int' if kind.low < 0 else 'uint'}{bits}"
    return "str"


def _properties(device: Device) -> Iterator[QomProperty]:
    for declared in device.properties:
        value = declared.kind.save(declared.__get__(device, type(device)))
        yield QomProperty(declared.name.replace("_", "-"), property_type(declared), value)


def _board_properties(machine: Machine) -> Iterator[QomProperty]:
    config = machine.config
    yield QomProperty("kernel", "string", "" if config.kernel is None else str(config.kernel))
    yield QomProperty("initrd", "string", "" if config.initrd is None else str(config.initrd))
    yield QomProperty("append", "string", config.append)
    for name, value in config.board_options.items():
        yield QomProperty(name, "string", value)


def _walk(node: QomObject) -> Iterator[QomObject]:
    yield node
    for child in node.children.values():
        yield from _walk(child)
