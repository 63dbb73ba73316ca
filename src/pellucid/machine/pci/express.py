"""PCI Express functions: 4 KiB of configuration space, the PCI Express capability, AER and ACS (PCIe 5.0, chapter 7).

The first 256 bytes are as on a conventional bus; extended capabilities begin at 0x100 and link themselves: each has a
header of 16 bits of id, four of version, and twelve of the next one's offset.
"""


from pellucid.machine.device import State
from pellucid.machine.pci import config as cfg
from pellucid.machine.pci.function import Capability, PciFunction
from pellucid.machine.state import Memory
from pellucid.records import dataclass

CAP_EXPRESS, CAP_SUBSYSTEM, CAP_SLOT_ID = 0x10, 0x0D, 0x04
EXT_CAP_AER, EXT_CAP_ACS = 0x0001, 0x000D
EXPRESS_SIZE, AER_SIZE, ACS_SIZE = 0x3C, 0x48, 0x08
TYPE_ROOT_PORT, TYPE_TO_PCI_BRIDGE = 4, 7
SLOT_IMPLEMENTED = 0x0100
FIRST_EXTENDED = 0x100

AER_SEVERITY, AER_SEVERITY_WRITABLE = 0x0046_2030, 0x03FF_F030
AER_CORRECTABLE_MASK, AER_CORRECTABLE_WRITABLE = 0xE000, 0xF1C1
AER_ECRC = 0x00A0
AER_CONTROL_WRITABLE = 0x0140
AER_MULTI_HEADER, AER_MULTI_HEADER_ENABLE = 0x0200, 0x0400


class ExpressFunction(PciFunction):
    """The base of functions with extended configuration space."""

    config_size = cfg.EXTENDED_CONFIG_SIZE

    config = State(
        Memory(cfg.EXTENDED_CONFIG_SIZE),
        bytes(cfg.EXTENDED_CONFIG_SIZE),
        survives_reset=True,
        doc="configuration space",
    )

    def add_extended(self, offset: int, size: int, ident: int, version: int = 1) -> None:
        """Put an extended capability at `offset`, at the end of the list. From constructors only."""
        self.put_template(offset, size, ident | version << 16)
        last = getattr(self, "_last_extended", None)
        if last is not None:
            header = int.from_bytes(self._template[last : last + 4], "little") | offset << 20
            self.put_template(last, 4, header)
        self._last_extended = offset


@dataclass(frozen=True)
class Link:
    """A link's speed (1 for 2.5 GT/s, 4 for 16 GT/s) and width in lanes."""

    speed: int = 1
    width: int = 1

    @property
    def bits(self) -> int:
        """As capability and status registers have it."""
        return self.width << 4 | self.speed


class PcieCapability(Capability):
    """Version 2 of the capability, without its slot registers: those are `slot.py`'s."""

    id = CAP_EXPRESS

    def __init__(
        self, function: PciFunction, offset: int, port_type: int, link: Link, *, port: int = 0, slot: bool = False
    ) -> None:
        self.offset, self.link = offset, link
        function.add_capability(offset, EXPRESS_SIZE, self)
        put = function.put_template
        put(offset + 0x02, 2, 0x0002 | port_type << 4 | (SLOT_IMPLEMENTED if slot else 0))
        role_based_errors = 0x8000
        put(offset + 0x04, 4, role_based_errors)
        put(offset + 0x08, 2, 0, writable=0x000F)
        aspm_l0s, dll_active_reporting = 0x0400, 0x0030_0000
        fast = link.speed > 1
        put(offset + 0x0C, 4, port << 24 | aspm_l0s | link.bits | (dll_active_reporting if fast else 0))
        put(offset + 0x12, 2, link.bits)
        ari_forwarding_and_prefixes = 0x0030_0020
        put(offset + 0x24, 4, ari_forwarding_and_prefixes)
        put(offset + 0x28, 2, 0, writable=0x8020)
        if fast:
            put(offset + 0x2C, 4, (1 << link.speed + 1) - 2)
            put(offset + 0x30, 2, link.speed)


def add_aer(function: ExpressFunction, offset: int, *, root: bool) -> None:
    """Advanced error reporting: the registers. No error ever happens on these buses; a root has its command too."""
    function.add_extended(offset, AER_SIZE, EXT_CAP_AER, 2)
    put = function.put_template
    put(offset + 0x0C, 4, AER_SEVERITY, writable=AER_SEVERITY_WRITABLE)
    put(offset + 0x14, 4, AER_CORRECTABLE_MASK, writable=AER_CORRECTABLE_WRITABLE)
    capable = AER_ECRC | (AER_MULTI_HEADER if root else 0)
    put(offset + 0x18, 4, capable, writable=AER_CONTROL_WRITABLE | (AER_MULTI_HEADER_ENABLE if root else 0))
    if root:
        put(offset + 0x2C, 4, 0, writable=0x7)


def add_acs(function: ExpressFunction, offset: int) -> None:
    """Access control services: what may pass between functions. All of it passes or is not there; bits are kept."""
    function.add_extended(offset, ACS_SIZE, EXT_CAP_ACS)
    function.put_template(offset + 4, 2, 0x005F)
    function.put_template(offset + 6, 2, 0, writable=0x005F)


class SubsystemIds(Capability):
    """A bridge's subsystem vendor and subsystem id."""

    id = CAP_SUBSYSTEM

    def __init__(self, function: PciFunction, offset: int, vendor: int, device: int = 0) -> None:
        function.add_capability(offset, 8, self)
        function.put_template(offset + 4, 4, vendor | device << 16)
