"""The registers of a remapping unit (11.4): where they are, and which of their bits a guest's write changes."""

from pellucid.records import dataclass

SIZE = 0x230

VERSION, CAPABILITY, EXTENDED_CAPABILITY = 0x00, 0x08, 0x10
GLOBAL_COMMAND, GLOBAL_STATUS, ROOT_TABLE, CONTEXT_COMMAND = 0x18, 0x1C, 0x20, 0x28
FAULT_STATUS, FAULT_CONTROL, FAULT_DATA, FAULT_ADDRESS, FAULT_UPPER_ADDRESS = 0x34, 0x38, 0x3C, 0x40, 0x44
QUEUE_HEAD, QUEUE_TAIL, QUEUE_ADDRESS = 0x80, 0x88, 0x90
DONE_STATUS, DONE_CONTROL, DONE_DATA, DONE_ADDRESS, DONE_UPPER_ADDRESS = 0x9C, 0xA0, 0xA4, 0xA8, 0xAC
"""The invalidation completion event's."""
INTERRUPT_TABLE = 0xB8
INVALIDATE_ADDRESS, IOTLB_COMMAND = 0xF0, 0xF8
FAULT_RECORD = 0x220

ENABLE_TRANSLATION, SET_ROOT_TABLE, ENABLE_QUEUE = 1 << 31, 1 << 30, 1 << 26
ENABLE_REMAPPING, SET_INTERRUPT_TABLE, COMPATIBILITY = 1 << 25, 1 << 24, 1 << 23
"""Of the global command and status registers alike."""

FAULT_OVERFLOW, FAULT_PENDING, QUEUE_ERROR = 1 << 0, 1 << 1, 1 << 4
FAULT_CAUSES = FAULT_OVERFLOW | FAULT_PENDING | QUEUE_ERROR
EVENT_MASKED, EVENT_PENDING = 1 << 31, 1 << 30
WAIT_COMPLETE = 1 << 0
RECORD_FAULT, RECORD_IS_READ = 1 << 63, 1 << 62
COMMAND_DUE = 1 << 63
"""Invalidate context cache, and invalidate IOTLB."""
EXTENDED_MODE = 1 << 11
"""Of the interrupt table's address: 32-bit APIC ids."""
MOST_ADDRESS_MASK = 18
"""2**18 pages by one page-selective invalidation."""


@dataclass(frozen=True)
class Features:
    """What the unit can do; `aw_bits` is 39 or 48."""

    aw_bits: int = 39
    remapping: bool = True
    extended: bool = False
    caching_mode: bool = False
    device_iotlb: bool = False
    pass_through: bool = True
    snoop_control: bool = False
    drain: bool = True
    translation: bool = True

    @property
    def capability(self) -> int:
        """The capability register (11.4.2): 64K domains, 2 MiB and 1 GiB pages, one fault record."""
        domains, super_pages, page_selective = 6, 3 << 34, 1 << 39
        widths = (2 if self.aw_bits == 39 else 6) if self.translation else 0
        found = domains | widths << 8 | (self.aw_bits - 1) << 16 | FAULT_RECORD >> 4 << 24
        found |= super_pages | page_selective | MOST_ADDRESS_MASK << 48
        return found | (1 << 7 if self.caching_mode else 0) | (3 << 54 if self.drain else 0)

    @property
    def extended_capability(self) -> int:
        """The extended capability register (11.4.3): queued invalidation, and what was chosen."""
        queue, most_handles = 1 << 1, 0xF << 20
        found = queue | INVALIDATE_ADDRESS >> 4 << 8
        found |= 1 << 3 | most_handles if self.remapping else 0
        found |= 1 << 4 if self.remapping and self.extended else 0
        found |= 1 << 2 if self.device_iotlb else 0
        return found | (1 << 6 if self.pass_through else 0) | (1 << 7 if self.snoop_control else 0)


PLAIN = (
    (ROOT_TABLE, 8, 0xFFFF_FFFF_FFFF_FC00), (FAULT_CONTROL, 4, EVENT_MASKED), (FAULT_DATA, 4, 0xFFFF),
    (FAULT_ADDRESS, 4, 0xFFFF_FFFC), (QUEUE_TAIL, 8, 0x7_FFF0), (QUEUE_ADDRESS, 8, 0xFFFF_FFFF_FFFF_F007),
    (DONE_CONTROL, 4, EVENT_MASKED), (DONE_DATA, 4, 0xFFFF_FFFF), (DONE_ADDRESS, 4, 0xFFFF_FFFC),
    (INTERRUPT_TABLE, 8, 0xFFFF_FFFF_FFFF_F80F),
    (CONTEXT_COMMAND, 8, 0xE000_0003_FFFF_FFFF), (IOTLB_COMMAND, 8, 0xB003_FFFF_0000_0000),
    (GLOBAL_COMMAND, 4, 0xFF80_0000), (INVALIDATE_ADDRESS, 8, 0xFFFF_FFFF_FFFF_F07F),
)  # fmt: skip
"""(offset, bytes, writable bits)."""
UPPER_ADDRESSES = (FAULT_UPPER_ADDRESS, DONE_UPPER_ADDRESS)
"""Reserved in a unit without 32-bit APIC ids."""
CLEARED_BY_ONE = (
    (FAULT_STATUS, 4, FAULT_OVERFLOW | QUEUE_ERROR), (DONE_STATUS, 4, WAIT_COMPLETE),
    (FAULT_RECORD + 8, 8, RECORD_FAULT),
)  # fmt: skip
WRITE_ONLY = ((GLOBAL_COMMAND, 4, 0xFFFF_FFFF), (INVALIDATE_ADDRESS, 8, (1 << 64) - 1),
              (CONTEXT_COMMAND, 8, 0x3_FFFF_0000))  # fmt: skip


class RegisterFile:
    """The bytes, little-endian, and the masks of a guest's accesses."""

    def __init__(self, features: Features) -> None:
        self._writable, self._clears, self._hidden = bytearray(SIZE), bytearray(SIZE), bytearray(SIZE)
        upper = [(offset, 4, 0xFFFF_FFFF) for offset in UPPER_ADDRESSES] if features.extended else []
        for masks, declared in (
            (self._writable, (*PLAIN, *upper)), (self._clears, CLEARED_BY_ONE), (self._hidden, WRITE_ONLY)
        ):  # fmt: skip
            for offset, size, bits in declared:
                masks[offset : offset + size] = bits.to_bytes(size, "little")
        self._reset = bytearray(SIZE)
        for offset, size, value in (
            (VERSION, 4, 0x10), (CAPABILITY, 8, features.capability),
            (EXTENDED_CAPABILITY, 8, features.extended_capability),
            (FAULT_CONTROL, 4, EVENT_MASKED), (DONE_CONTROL, 4, EVENT_MASKED),
        ):  # fmt: skip
            self._reset[offset : offset + size] = value.to_bytes(size, "little")
        self.content = bytearray(self._reset)

    def reset(self) -> None:
        """As after power-up."""
        self.content[:] = self._reset

    def load(self, saved: bytes | bytearray) -> None:
        """Take over saved bytes; what the guest cannot read as anything else keeps its reset value."""
        self.content[:] = saved
        fixed = (VERSION, CAPABILITY, EXTENDED_CAPABILITY)
        for offset in fixed:
            self.content[offset : offset + 8] = self._reset[offset : offset + 8]

    def get(self, offset: int, size: int = 4) -> int:
        """What a register holds."""
        return int.from_bytes(self.content[offset : offset + size], "little")

    def put(self, offset: int, value: int, size: int = 4) -> None:
        """Set a register, whatever a guest may."""
        self.content[offset : offset + size] = value.to_bytes(size, "little")

    def change(self, offset: int, clear: int, set_: int, size: int = 4) -> int:
        """Clear and set bits; what the register holds then."""
        value = self.get(offset, size) & ~clear | set_
        self.put(offset, value, size)
        return value

    def read(self, offset: int, size: int) -> int:
        """A guest's read."""
        hidden = int.from_bytes(self._hidden[offset : offset + size], "little")
        return self.get(offset, size) & ~hidden

    def write(self, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        writable = int.from_bytes(self._writable[offset : offset + size], "little")
        clears = int.from_bytes(self._clears[offset : offset + size], "little")
        old = self.get(offset, size)
        self.put(offset, (old & ~writable | value & writable) & ~(value & clears), size)
