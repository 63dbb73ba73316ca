"""Configuration space: names of the standard registers, and how a function declares its own.

Sizes, offsets and bits are those of the PCI Local Bus Specification 3.0, chapter 6, and of the PCI-to-PCI Bridge
Architecture Specification 1.2, chapter 3.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from pellucid.machine.pci.function import PciFunction

VENDOR_ID, DEVICE_ID, COMMAND, STATUS, REVISION_ID, CLASS_CODE = 0x00, 0x02, 0x04, 0x06, 0x08, 0x09
CACHE_LINE_SIZE, LATENCY_TIMER, HEADER_TYPE = 0x0C, 0x0D, 0x0E
FIRST_BAR = 0x10
SUBSYSTEM_VENDOR_ID, SUBSYSTEM_ID, ROM_ADDRESS, CAPABILITY_LIST = 0x2C, 0x2E, 0x30, 0x34
INTERRUPT_LINE, INTERRUPT_PIN = 0x3C, 0x3D
HEADER_SIZE, CONFIG_SIZE, EXTENDED_CONFIG_SIZE = 0x40, 0x100, 0x1000

COMMAND_IO, COMMAND_MEMORY, COMMAND_MASTER = 0x001, 0x002, 0x004
COMMAND_PARITY, COMMAND_SERR, COMMAND_INTX_DISABLE = 0x040, 0x100, 0x400
STATUS_INTERRUPT, STATUS_CAPABILITIES, STATUS_FAST_BACK, STATUS_DEVSEL_MEDIUM = 0x008, 0x010, 0x080, 0x200
STATUS_ERRORS = 0xF900
"""Errors that the function has seen; each is cleared by writing 1 to it."""
HEADER_BRIDGE, HEADER_MULTIFUNCTION = 0x01, 0x80

CAP_POWER_MANAGEMENT, CAP_MSI, CAP_MSIX = 0x01, 0x05, 0x11

Behaviour = TypeVar("Behaviour", bound=Callable[..., None])


class ConfigRegister:
    """A declared register of configuration space: `size` bytes at `offset`, little-endian, read and set as an int.

    `writable` masks the bits that the guest's write changes, `write_clears` those that a written 1 clears. A `reset` of
    None leaves the register alone at a reset.
    """

    def __init__(
        self, offset: int, size: int = 1, *, reset: int = 0, writable: int = 0, write_clears: int = 0, doc: str = ""
    ) -> None:
        self.offset, self.size, self.reset, self.doc = offset, size, reset, doc
        self.writable, self.write_clears = writable, write_clears
        self.name = ""
        self.written_behaviour: Callable[[Any], None] | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, function: None, owner: type) -> "ConfigRegister": ...
    @overload
    def __get__(self, function: "PciFunction", owner: type) -> int: ...
    def __get__(self, function: "PciFunction | None", owner: type) -> "ConfigRegister | int":
        if function is None:
            return self
        return int.from_bytes(function.config[self.offset : self.offset + self.size], "little")

    def __set__(self, function: "PciFunction", value: int) -> None:
        masked = value & ((1 << 8 * self.size) - 1)
        function.config[self.offset : self.offset + self.size] = masked.to_bytes(self.size, "little")

    def after_write(self, behaviour: Behaviour) -> Behaviour:
        """Decorator: `behaviour(self)` runs after a guest's write that touches any byte of the register."""
        self.written_behaviour = behaviour
        return behaviour

    def overlaps(self, offset: int, size: int) -> bool:
        """Whether an access of `size` bytes at `offset` touches the register."""
        return offset < self.offset + self.size and self.offset < offset + size
