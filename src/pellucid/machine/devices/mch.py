"""Q35 memory controller hub, the host bridge at 00.0 (Intel 3 Series Express Chipset data sheet, 316966, chapter 5).

PCIEXBAR puts the window on configuration space into memory: bit 0 opens it, bits 2-1 give 256, 128 or 64 buses. PAM is
440FX's, at 0x90. SMRAM at 0xA0000 is 440FX's too; ESMRAMC can move it to 0xFEDA0000 (H_SMRAME) and take the end of the
RAM below 4 GiB (TSEG) for a processor in SMM: everybody else sees nothing there.

Two registers are QEMU's own, for OVMF: 0x50 has a size of TSEG in MiB that ESMRAMC's third code stands for (a written
0xFFFF asks for the largest), and 0x9C locks 128 KiB at 0x30000, where processors begin their first SMM, away.
"""

from collections.abc import Mapping
from typing import ClassVar

from pellucid.machine.device import Property
from pellucid.machine.devices.pam import PAM_REGISTERS, PamMap
from pellucid.machine.devices.smram import C_BASE_SEG, D_LCK, D_OPEN, G_SMRAME, SMRAM_BASE, SMRAM_SIZE, smram_written
from pellucid.machine.pci import ConfigRegister, PciFunction
from pellucid.machine.properties import BOOL, UINT16
from pellucid.memory import MemoryRegion, MemoryTransaction

MiB, FOUR_GIB = 1 << 20, 1 << 32
EXT_TSEG, PCIEXBAR, PAM, SMBASE, SMRAM, ESMRAMC = 0x50, 0x60, 0x90, 0x9C, 0x9D, 0x9E
PCIEXBAR_ENABLE, PCIEXBAR_LENGTH = 0x1, 0x6
BUSES_MIB = {0: 256, 2: 128, 4: 64}
"""Size of the window, a MiB for each bus, by PCIEXBAR's length field. The fourth code is reserved: no window."""
PCIEXBAR_ADDRESS = 0xF_FC00_0000
T_EN, TSEG_SIZE, H_SMRAME, ESMRAMC_CACHE_BITS, ESMRAMC_WRITABLE = 0x01, 0x06, 0x80, 0x38, 0x87
HIGH_SMRAM = 0xFEDA_0000
TSEG_MIB = (1, 2, 8)
EXT_TSEG_QUERY, EXT_TSEG_MOST = 0xFFFF, 16
SMBASE_ADDRESS, SMBASE_SIZE = 0x3_0000, 0x2_0000
SMBASE_QUERY, SMBASE_IN_RAM, SMBASE_LOCKED = 0xFF, 0x01, 0x02


class Nothing:
    """What a processor outside SMM finds where SMM has its memory: reads are all ones, writes are dropped."""

    def read(self, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """Dropped."""


class Mch(PciFunction):
    """`system` is the processors' memory, `ram` the RAM block's region, `below_4g` what of it lies below 4 GiB.

    `mmconfig` is the window on configuration space, not mapped yet. `smram` is what a processor in SMM sees first.
    """

    kind: ClassVar[str] = "mch"
    vendor_id, device_id, class_code = 0x8086, 0x29C0, 0x060000

    hotpluggable = False
    extended_tseg_mbytes = Property(UINT16, EXT_TSEG_MOST, name="extended-tseg-mbytes", doc="TSEG's third size")
    smbase_smram = Property(BOOL, True, name="smbase-smram", doc="whether register 0x9C is there")

    ext_tseg = ConfigRegister(EXT_TSEG, 2, reset=EXT_TSEG_MOST, writable=0xFFFF, doc="TSEG's third size, in MiB")
    pciexbar = ConfigRegister(PCIEXBAR, 8, reset=0xB000_0000, writable=(1 << 64) - 1, doc="bit 0 open, 2-1 length")
    pam = ConfigRegister(PAM, PAM_REGISTERS, writable=(1 << 8 * PAM_REGISTERS) - 1, doc="programmable attribute map")
    smbase = ConfigRegister(SMBASE, 1, writable=0xFF)
    smram_control = ConfigRegister(SMRAM, 1, reset=C_BASE_SEG, writable=0xFF, doc="open, closed, locked, enabled")
    esmramc = ConfigRegister(ESMRAMC, 1, reset=ESMRAMC_CACHE_BITS, writable=0xFF, doc="high SMRAM, TSEG")

    def __init__(
        self, system: MemoryRegion, ram: MemoryRegion, pci: MemoryRegion, below_4g: int, mmconfig: MemoryRegion
    ) -> None:
        self._system, self._below_4g, self._mmconfig = system, below_4g, mmconfig
        with MemoryTransaction():
            # What a processor in SMM sees before everything else; its parts come and go.
            self.smram = MemoryRegion.new_container("smram", FOUR_GIB)
            self.smram_region = self._alias(system, "smram-region", pci, SMRAM_BASE, SMRAM_BASE, 1)
            self._open_high = self._alias(system, "smram-open-high", ram, SMRAM_BASE, HIGH_SMRAM, 1)
            self._low = self._alias(self.smram, "smram-low", ram, SMRAM_BASE, SMRAM_BASE, 0)
            self._high = self._alias(self.smram, "smram-high", ram, SMRAM_BASE, HIGH_SMRAM, 0)
            self._tseg_hole = MemoryRegion.new_io("tseg-blackhole", 0, Nothing())
            self._tseg_window = MemoryRegion.new_alias("tseg-window", ram, below_4g, 0)
            self._smbase_hole = MemoryRegion.new_io("smbase-blackhole", SMBASE_SIZE, Nothing())
            self._smbase_window = MemoryRegion.new_alias("smbase-window", ram, SMBASE_ADDRESS, SMBASE_SIZE)
            for hole, window, at in (
                (self._tseg_hole, self._tseg_window, below_4g),
                (self._smbase_hole, self._smbase_window, SMBASE_ADDRESS),
            ):
                hole.set_enabled(False)
                window.set_enabled(False)
                system.add_subregion_overlap(at, hole, 1)
                self.smram.add_subregion_overlap(at, window, 0)
            self.smram_region.set_enabled(True)
            self.pam_map = PamMap(system, ram, pci)
        self._before = (0, C_BASE_SEG, ESMRAMC_CACHE_BITS)
        super().__init__()

    @staticmethod
    def _alias(
        container: MemoryRegion, name: str, target: MemoryRegion, offset: int, at: int, priority: int
    ) -> MemoryRegion:
        region = MemoryRegion.new_alias(name, target, offset, SMRAM_SIZE)
        region.set_enabled(False)
        container.add_subregion_overlap(at, region, priority)
        return region

    def set_properties(self, values: Mapping[str, object]) -> None:
        super().set_properties(values)
        self.ext_tseg = self.extended_tseg_mbytes

    def config_write(self, offset: int, size: int, value: int) -> None:
        self._before = (self.smbase, self.smram_control, self.esmramc)
        super().config_write(offset, size, value)

    @ext_tseg.after_write
    def _write_ext_tseg(self) -> None:
        if self.ext_tseg == EXT_TSEG_QUERY:
            self.ext_tseg = self.extended_tseg_mbytes
        self._update_smram()

    @pam.after_write
    def _update_pam(self) -> None:
        with MemoryTransaction():
            self.pam_map.update(self.config[PAM : PAM + PAM_REGISTERS])

    @pciexbar.after_write
    def _update_mmconfig(self) -> None:
        base, mib = self.mmconfig_window()
        with MemoryTransaction():
            if self._mmconfig.container is not None:
                self._system.del_subregion(self._mmconfig)
            if mib:
                self._mmconfig.set_size(mib * MiB)
                self._system.add_subregion_overlap(base, self._mmconfig, 0)

    def mmconfig_window(self) -> tuple[int, int]:
        """(base, MiB, that is buses) of the window as PCIEXBAR has it; 0 MiB while it is closed."""
        register = self.pciexbar
        mib = BUSES_MIB.get(register & PCIEXBAR_LENGTH, 0) if register & PCIEXBAR_ENABLE else 0
        return register & PCIEXBAR_ADDRESS & -(max(mib, 1) * MiB), mib

    @smbase.after_write
    def _write_smbase(self) -> None:
        before, written = self._before[0], self.smbase
        if not self.smbase_smram:
            self.smbase = 0
            return
        if self._before[1] & D_LCK or before == SMBASE_LOCKED:
            self.smbase = before
        elif before == SMBASE_IN_RAM:
            self.smbase = SMBASE_LOCKED if written & SMBASE_LOCKED else before
        else:
            self.smbase = SMBASE_IN_RAM if written == SMBASE_QUERY else before
        self._update_smram()

    @smram_control.after_write
    @esmramc.after_write
    def _write_smram(self) -> None:
        _, smram, esmramc = self._before
        self.smram_control = smram_written(smram, self.smram_control)
        written = self.esmramc & ESMRAMC_WRITABLE | ESMRAMC_CACHE_BITS
        self.esmramc = esmramc if smram & D_LCK else written
        self._update_smram()

    def tseg_size(self) -> int:
        """Bytes of TSEG now."""
        if not (self.smram_control & G_SMRAME and self.esmramc & T_EN):
            return 0
        code = (self.esmramc & TSEG_SIZE) >> 1
        mib = TSEG_MIB[code] if code < len(TSEG_MIB) else self.ext_tseg
        return min(mib * MiB, self._below_4g)

    def _update_smram(self) -> None:
        is_open, enabled = bool(self.smram_control & D_OPEN), bool(self.smram_control & G_SMRAME)
        high = bool(self.esmramc & H_SMRAME)
        tseg = self.tseg_size()
        with MemoryTransaction():
            self.smram_region.set_enabled(high or not is_open)
            self._open_high.set_enabled(is_open and high)
            self._low.set_enabled(enabled and not high)
            self._high.set_enabled(enabled and high)
            for region in (self._tseg_hole, self._tseg_window):
                region.set_enabled(bool(tseg))
                region.set_size(tseg)
                region.set_address(self._below_4g - tseg)
            self._tseg_window.set_alias_offset(self._below_4g - tseg)
            for region in (self._smbase_hole, self._smbase_window):
                region.set_enabled(self.smbase == SMBASE_LOCKED)

    def _update_all(self) -> None:
        with MemoryTransaction():
            self._update_pam()
            self._update_mmconfig()
            self._update_smram()

    def reset(self) -> None:
        # The map is kept, as 440FX's is here and in QEMU: firmware in shadow RAM outlives a sleep.
        pam = self.pam
        super().reset()
        self.pam, self.ext_tseg = pam, self.extended_tseg_mbytes
        self._update_all()

    def after_load(self) -> None:
        super().after_load()
        self._update_all()
