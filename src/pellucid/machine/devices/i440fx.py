"""Intel 440FX host bridge (82441FX data sheet, 290549): configuration mechanism 1's first function, PAM and SMRAM.

Seven PAM registers redirect the 13 segments between 0xC0000 and 0xFFFFF: two bits each, bit 0 sends reads to RAM and
bit 1 writes. Both and neither are one alias each, of RAM or of the PCI bus; read-only RAM is an alias that drops
writes. In the fourth state, reads from PCI with writes to RAM, the segment shows PCI and writes go there: it would
need a range that one read executes from and whose every write exits, and QEMU has it so too.

SMRAM at 0xA0000: while it is closed, those addresses are the bus's (VGA), and RAM for a processor in SMM only, which
sees it through the `smram` region. Open, they are RAM for everybody. Locked, it stays closed until a reset.
"""

from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.memory import MemoryRegion, MemoryTransaction

FOUR_GIB = 1 << 32
PAM_REGISTERS = 7
READ_RAM, WRITE_RAM = 0b01, 0b10
BIOS_AREA, EXTENDED_BIOS, EXPANSION = 0xF_0000, 0xE_0000, 0xC_0000
SMRAM_BASE, SMRAM_SIZE = 0xA_0000, 0x2_0000
D_OPEN, D_CLS, D_LCK, G_SMRAME, C_BASE_SEG = 0x40, 0x20, 0x10, 0x08, 0x02
SMRAM_WRITABLE = D_OPEN | D_CLS | D_LCK | G_SMRAME


class Pam:
    """One segment: an alias for each state, of which one is enabled."""

    def __init__(self, system: MemoryRegion, ram: MemoryRegion, pci: MemoryRegion, start: int, size: int) -> None:
        self.start, self.size = start, size
        to_ram = MemoryRegion.new_alias("pam-ram", ram, start, size)
        read_only = MemoryRegion.new_alias("pam-rom", ram, start, size)
        read_only.set_readonly(True)
        write_only = MemoryRegion.new_alias("pam-pci", pci, start, size)
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


class I440fx(PciFunction):
    """The function at 00.0. `system` is the processors' memory, `ram` the RAM block's region, `pci` the bus's."""

    kind = "i440FX"
    vendor_id, device_id, revision, class_code = 0x8086, 0x1237, 0x02, 0x060000
    hotpluggable = False

    dram_row_type = ConfigRegister(0x57, 1, reset=0x10, writable=0xFF)
    pam = ConfigRegister(0x59, PAM_REGISTERS, writable=(1 << 8 * PAM_REGISTERS) - 1, doc="programmable attribute map")
    smram_control = ConfigRegister(0x72, 1, reset=C_BASE_SEG, writable=0xFF, doc="open, closed, locked, enabled")

    def __init__(self, system: MemoryRegion, ram: MemoryRegion, pci: MemoryRegion) -> None:
        with MemoryTransaction():
            self.smram_region = MemoryRegion.new_alias("smram-region", pci, SMRAM_BASE, SMRAM_SIZE)
            system.add_subregion_overlap(SMRAM_BASE, self.smram_region, 1)
            # What a processor in SMM sees before everything else.
            self.smram = MemoryRegion.new_container("smram", FOUR_GIB)
            self.smram.set_enabled(False)
            low = MemoryRegion.new_alias("smram-low", ram, SMRAM_BASE, SMRAM_SIZE)
            self.smram.add_subregion(SMRAM_BASE, low)
            self.pam_regions = [Pam(system, ram, pci, start, size) for start, size in pam_segments()]
        self._smram_before = C_BASE_SEG
        super().__init__()

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._smram_before = self.smram_control
        super().config_write(offset, size, value)

    @pam.after_write
    def _update_pam(self) -> None:
        with MemoryTransaction():
            for index, segment in enumerate(self.pam_regions):
                # Segment 0 has the high half of the first register; its low half is reserved.
                segment.set_state(self.config[0x59 + (index + 1) // 2] >> (0 if index % 2 else 4) & 3)

    @smram_control.after_write
    def _write_smram(self) -> None:
        value = self.smram_control & SMRAM_WRITABLE | C_BASE_SEG
        if self._smram_before & D_LCK:
            # Locked: these three keep what they have, and D_OPEN is 0.
            kept = D_OPEN | D_LCK | G_SMRAME
            value = value & ~kept | self._smram_before & kept
        if value & D_LCK:
            value &= ~D_OPEN
        self.smram_control = value
        self._update_smram()

    def _update_smram(self) -> None:
        with MemoryTransaction():
            self.smram_region.set_enabled(not self.smram_control & D_OPEN)
            self.smram.set_enabled(bool(self.smram_control & G_SMRAME))

    def reset(self) -> None:
        # The chip forgets the map, but then firmware in shadow RAM would be gone at a wake-up from S3 too. QEMU keeps
        # it at every reset, and SeaBIOS counts on that: to start anew it copies itself from the ROM.
        pam = self.pam
        super().reset()
        self.pam = pam
        self._update_pam()
        self._update_smram()

    def after_load(self) -> None:
        super().after_load()
        self._update_pam()
        self._update_smram()


def pam_segments() -> list[tuple[int, int]]:
    """(start, size) of the 13 segments in the order of their bits: the BIOS area first, then from 0xC0000 up."""
    return [(BIOS_AREA, 0x1_0000), *((EXPANSION + index * 0x4000, 0x4000) for index in range(12))]
