"""The port by which QEMU's option ROM `kvmvapic.bin` makes itself known.

The ROM holds code for guests whose accesses to the local APIC's task priority are costly: QEMU patches calls to it into
32-bit Windows. Here such an access stays within the hypervisor, and nothing is patched. What is left is what the ROM
itself asks for: a 16-bit write says that it has been copied to RAM, at the writer's code segment, with its variables at
the offset written; from then on that RAM can be written whatever the chipset says of the area.
"""

from collections.abc import Callable

from pellucid.kvm.api import Vcpu
from pellucid.machine.device import Device, Region, State
from pellucid.machine.state import Integer
from pellucid.memory import AccessSizes, AddressSpace, MemoryRegion, MemoryTransaction

VARIABLES = b"kvm aPiC"
ROM_MARK = b"\x55\xaa"
ROM_UNIT, PAGE = 512, 4096
ROM_AREA, AREA_END = 0xC_0000, 0x10_0000
PRIORITY = 1000


class KvmVapic(Device):
    """`asking` gives the processor whose OUT is being served; `ram` is what is shown over `system` where the ROM is."""

    kind = "kvmvapic"
    regions = (Region("kvmvapic", 2, valid=AccessSizes(1, 4), impl=AccessSizes(1, 4)),)

    start = State(Integer(0, AREA_END), 0, doc="where the writable RAM is; 0 while there is none")
    size = State(Integer(0, AREA_END - ROM_AREA), 0)

    def __init__(
        self, asking: Callable[[], Vcpu | None], memory: AddressSpace, system: MemoryRegion, ram: MemoryRegion
    ) -> None:
        self._asking, self._memory, self._system, self._ram = asking, memory, system, ram
        self._shown: MemoryRegion | None = None
        super().__init__()

    def reset(self) -> None:
        super().reset()
        self._show()

    def after_load(self) -> None:
        if not ROM_AREA <= self.start <= AREA_END - self.size or self.start % PAGE or self.size % PAGE:
            self.start = self.size = 0
        self._show()

    def region_read(self, region: int, offset: int, size: int) -> int:
        return (1 << 8 * size) - 1

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        vcpu = self._asking()
        if size != 2 or offset or vcpu is None:
            return
        start = vcpu.get_sregs().cs.base
        header = self._memory.read_bytes(start, 3) if ROM_AREA <= start < AREA_END else b""
        if header[:2] != ROM_MARK or self._memory.read_bytes(start + value, len(VARIABLES)) != VARIABLES:
            return
        first, end = start & -PAGE, -(-(start + header[2] * ROM_UNIT) // PAGE) * PAGE
        if end <= AREA_END:
            self.start, self.size = first, end - first
            self._show()

    def _show(self) -> None:
        with MemoryTransaction():
            if self._shown is not None:
                self._system.del_subregion(self._shown)
                self._shown = None
            if self.size:
                self._shown = MemoryRegion.new_alias("kvmvapic-rom", self._ram, self.start, self.size)
                self._system.add_subregion_overlap(self.start, self._shown, PRIORITY)
