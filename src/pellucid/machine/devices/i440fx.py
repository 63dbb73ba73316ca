"""Intel 440FX host bridge (82441FX data sheet, 290549): configuration mechanism 1's first function, PAM and SMRAM.

SMRAM at 0xA0000: while it is closed, those addresses are the bus's (VGA), and RAM for a processor in SMM only, which
sees it through the `smram` region. Open, they are RAM for everybody. Locked, it stays closed until a reset.
"""

from pellucid.machine.devices.pam import PAM_REGISTERS, PamMap
from pellucid.machine.devices.smram import C_BASE_SEG, D_OPEN, G_SMRAME, SMRAM_BASE, SMRAM_SIZE, smram_written
from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.memory import MemoryRegion, MemoryTransaction

FOUR_GIB = 1 << 32
PAM = 0x59


class I440fx(PciFunction):
    """The function at 00.0. `system` is the processors' memory, `ram` the RAM block's region, `pci` the bus's."""

    kind = "i440FX"
    vendor_id, device_id, revision, class_code = 0x8086, 0x1237, 0x02, 0x060000
    hotpluggable = False

    dram_row_type = ConfigRegister(0x57, 1, reset=0x10, writable=0xFF)
    pam = ConfigRegister(PAM, PAM_REGISTERS, writable=(1 << 8 * PAM_REGISTERS) - 1, doc="programmable attribute map")
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
            self.pam_map = PamMap(system, ram, pci)
        self._smram_before = C_BASE_SEG
        super().__init__()

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._smram_before = self.smram_control
        super().config_write(offset, size, value)

    @pam.after_write
    def _update_pam(self) -> None:
        with MemoryTransaction():
            self.pam_map.update(self.config[PAM : PAM + PAM_REGISTERS])

    @smram_control.after_write
    def _write_smram(self) -> None:
        self.smram_control = smram_written(self._smram_before, self.smram_control)
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
