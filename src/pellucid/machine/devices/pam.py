"""The programmable attribute map that 440FX and Q35 have alike: who answers at 0xC0000 to 0xFFFFF.

Seven PAM registers redirect the 13 segments: two bits each, bit 0 sends reads to RAM and bit 1 writes. Both and neither
are one alias each, of RAM or of the PCI bus; read-only RAM is an alias that drops writes. In the fourth state, reads
from PCI with writes to RAM, the segment shows RAM for both, as in QEMU: the rest would need a range that one read
executes from and whose every write exits. So a BIOS that copies itself in place finds zeros; one that reads from
somewhere else does well.
"""

from pellucid.memory import MemoryRegion

PAM_REGISTERS = 7
READ_RAM, WRITE_RAM = 0b01, 0b10
BIOS_AREA, EXPANSION = 0xF_0000, 0xC_0000


class Pam:
    """One segment: an alias for each state, of which one is enabled."""

    def __init__(self, system: MemoryRegion, ram: MemoryRegion, pci: MemoryRegion, start: int, size: int) -> None:
        self.start, self.size = start, size
        to_ram = MemoryRegion.new_alias("pam-ram", ram, start, size)
        read_only = MemoryRegion.new_alias("pam-rom", ram, start, size)
        read_only.set_readonly(True)
        write_only = MemoryRegion.new_alias("pam-pci", ram, start, size)
        to_pci = MemoryRegion.new_alias("pam-pci", pci, start, size)
        self.states = (to_pci, read_only, write_only, to_ram)
        self.state = 0
        for state, region in enumerate(self.states):
            region.set_enabled(state == 0)
            system.add_subregion_overlap(start, region, 1)

    def set_state(self, state: int) -> None:
        """READ_RAM and WRITE_RAM bits."""
        if state != self.state:
            self.states[self.state].set_enabled(False)
            self.states[state].set_enabled(True)
            self.state = state


class PamMap:
    """All segments, and how the seven registers choose their states."""

    def __init__(self, system: MemoryRegion, ram: MemoryRegion, pci: MemoryRegion) -> None:
        self.segments = [Pam(system, ram, pci, start, size) for start, size in pam_segments()]

    def update(self, registers: bytes | bytearray) -> None:
        """Take over the values of the seven registers."""
        for index, segment in enumerate(self.segments):
            # Segment 0 has the high half of the first register; its low half is reserved.
            segment.set_state(registers[(index + 1) // 2] >> (0 if index % 2 else 4) & 3)


def pam_segments() -> list[tuple[int, int]]:
    """(start, size) of the 13 segments in the order of their bits: the BIOS area first, then from 0xC0000 up."""
    return [(BIOS_AREA, 0x1_0000), *((EXPANSION + index * 0x4000, 0x4000) for index in range(12))]
