"""BARs that a guest has put over something else: nothing is wrong with the machine, and one line says what it did.

Who answers is the memory tree's affair: RAM wins over a BAR, and of two BARs the one that was mapped last.
"""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pellucid.machine.pci.bar import Bar
from pellucid.memory import UnassignedIoOps
from pellucid.memory.flat_view import UNASSIGNED, flat_view_of

if TYPE_CHECKING:
    from pellucid.machine.pci.bus import PciSpaces

guest_errors = logging.getLogger("pellucid.memory.invalid")


def report(kind: str, devfn: int, bar: Bar, spaces: "PciSpaces") -> None:
    """Trace what the BAR, which has just been mapped, lies over or under."""
    assert bar.address is not None
    last = bar.address + bar.region.size - 1
    for other in _others(bar, bar.address, last, spaces):
        where = "port" if bar.is_io else "memory"
        guest_errors.debug(
            "%s at %02x.%x: BAR %d, %s %#x to %#x, overlaps '%s'",
            kind, devfn >> 3, devfn & 7, bar.index, where, bar.address, last, other,
        )  # fmt: skip


def _others(bar: Bar, first: int, last: int, spaces: "PciSpaces") -> Iterator[str]:
    container = bar.region.container
    assert container is not None
    own = set(bar.region.descendants()) | {bar.region}
    beside = (other for other in container.subregions if other.enabled and other not in own)
    names = [other.name for other in beside if other.addr <= last and first < other.addr + other.size]
    for found in flat_view_of(spaces.io if bar.is_io else spaces.dma).ranges:
        region = found.region
        nothing = region is UNASSIGNED or isinstance(region.ops, UnassignedIoOps)
        if found.start <= last and first < found.end and not nothing and region not in own:
            names.append(region.name)
    yield from dict.fromkeys(names)
