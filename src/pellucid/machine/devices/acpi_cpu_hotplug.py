"""Which processors are there, for ACPI: QEMU's registers (docs/specs/acpi_cpu_hotplug), in both of their forms.

At first a bitmap of 256 bits, by APIC id, of the processors that are there. The DSDT writes 0 to its first byte, and
from then on until a reset it is the modern form: a selector, the selected processor's status, and a command with data.
No processor is ever added or taken out here yet, so no event is ever pending and an ejection does nothing.
"""

from collections.abc import Callable

from pellucid.cpu.models.topology import CpuTopology
from pellucid.machine.device import Device, Region, State
from pellucid.machine.state import BOOL, U8, U32

SELECTOR, STATUS, COMMAND, DATA, SIZE = 0, 4, 5, 8, 12
ENABLED = 0x01
NEXT_WITH_EVENT, OST_EVENT, OST_STATUS, GET_ARCH_ID = range(4)


class AcpiCpuHotplug(Device):
    """The selector goes by the places of `topology`. `raise_gpe` announces events."""

    kind = "acpi-cpu-hotplug"
    regions = (Region("acpi-cpu-hotplug", 32),)

    modern = State(BOOL, False, doc="the DSDT has switched the form")
    selector = State(U32, 0)
    command = State(U8, 0)
    data = State(U32, 0, doc="what was written for the OST commands")

    def __init__(self, topology: CpuTopology, raise_gpe: Callable[[int], None]) -> None:
        self._apic_ids, self._raise_gpe = topology.possible_apic_ids, raise_gpe
        self._there = topology.count
        self._bitmap = sum(1 << apic_id for apic_id in topology.apic_ids).to_bytes(32, "little")
        super().__init__()

    def region_read(self, region: int, offset: int, size: int) -> int:
        if not self.modern:
            return self._bitmap[offset]
        if offset == STATUS:
            return ENABLED if self.selector < self._there else 0
        if DATA <= offset < SIZE:
            return self._answer() >> 8 * (offset - DATA) & 0xFF
        return 0

    def _answer(self) -> int:
        if self.selector >= len(self._apic_ids):
            return 0
        if self.command == GET_ARCH_ID:
            return self._apic_ids[self.selector]
        return self.selector if self.command == NEXT_WITH_EVENT else 0

    def region_write(self, region: int, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        if not self.modern:
            self.modern = offset == 0 and value == 0
        elif offset < STATUS:
            shift = 8 * offset
            self.selector = self.selector & ~(0xFF << shift) | value << shift
        elif offset == COMMAND and value <= GET_ARCH_ID:
            self.command = value
        elif DATA <= offset < SIZE:
            shift = 8 * (offset - DATA)
            self.data = self.data & ~(0xFF << shift) | value << shift
