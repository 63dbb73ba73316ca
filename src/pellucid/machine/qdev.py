"""Who is plugged in where: the tree of buses and devices that `info qtree` shows and `-device bus=` names.

Every device of a board has a node, those that the hypervisor emulates too. A node shows what its device declares:
GPIO lines and properties, and what its bus says of it.
"""

from collections.abc import Callable, Iterator

from pellucid.records import dataclass, field

Lines = Callable[[], Iterator[str]]
Gpios = tuple[tuple[str, str, int], ...]
"""(`in` or `out`, name, number of lines) of each group of unnamed wires, in QEMU's order."""


def nothing() -> Iterator[str]:
    """No lines."""
    yield from ()


@dataclass(eq=False)
class QdevNode:
    """A device: its type, the user's id, and its lines: `properties` as `name = value`, `details` from its bus."""

    type: str
    id: str = ""
    gpios: Gpios = ()
    properties: Lines = nothing
    details: Lines = nothing
    bus: "QdevBus | None" = None
    buses: "list[QdevBus]" = field(default_factory=list)

    def add_bus(self, name: str, kind: str) -> "QdevBus":
        """A bus that the device offers."""
        bus = QdevBus(name, kind, self)
        self.buses.append(bus)
        return bus


@dataclass(eq=False)
class QdevBus:
    """A bus: `name` as users say it in `bus=`, `kind` as QEMU calls its type."""

    name: str
    kind: str
    parent: QdevNode | None = None
    nodes: list[QdevNode] = field(default_factory=list)
    host: object = None
    """What stands behind the bus (a `PciBus`), for whoever plugs devices in."""

    def plug(self, node: QdevNode) -> QdevNode:
        """Put a device on the bus."""
        node.bus = self
        self.nodes.append(node)
        return node

    def unplug(self, node: QdevNode) -> None:
        """Take it away."""
        self.nodes.remove(node)
        node.bus = None

    def walk(self) -> "Iterator[QdevBus]":
        """The bus and all behind it."""
        yield self
        for node in self.nodes:
            for bus in node.buses:
                yield from bus.walk()

    def walk_newest_first(self) -> "Iterator[QdevBus]":
        """The same in the order in which QEMU looks for a bus that nobody has named."""
        yield self
        for node in reversed(self.nodes):
            for bus in reversed(node.buses):
                yield from bus.walk_newest_first()


def fixed(*properties: tuple[str, str]) -> Lines:
    """Properties that do not change, for devices that the hypervisor emulates."""

    def lines() -> Iterator[str]:
        for name, value in properties:
            yield f"{name} = {value}"

    return lines


def qtree_text(root: QdevBus) -> str:
    """What `info qtree` prints. The newest device of a bus comes first."""
    return "\n".join(_bus_lines(root, "")) + "\n"


def _bus_lines(bus: QdevBus, indent: str) -> Iterator[str]:
    yield f"{indent}bus: {bus.name}"
    yield f"{indent}  type {bus.kind}"
    for node in reversed(bus.nodes):
        yield f'{indent}  dev: {node.type}, id "{node.id}"'
        for direction, name, count in node.gpios:
            yield f'{indent}    gpio-{direction} "{name}" {count}'
        for line in (*node.properties(), *node.details()):
            yield f"{indent}    {line}"
        for behind in reversed(node.buses):
            yield from _bus_lines(behind, indent + "    ")
