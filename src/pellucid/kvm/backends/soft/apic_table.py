"""The VM's table of who is meant by an interrupt command, which native code sends by (`cpu.apic_access`)."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping

from pellucid.cpu.apic_access import APIC_IDS, FLAT_IDS, X2APIC, XAPIC, ApicTargets
from pellucid.engine.arrays import Array
from pellucid.kvm.irqchip.apic_bus import ApicBus, LocalApic
from pellucid.kvm.irqchip.apicdef import DFR_FLAT, ApicMode


class ApicTable:
    """Written under the irqchip lock, at `address` for native code. `places` gives CpuStates by their APICs' `id()`."""

    def __init__(self, places: Callable[[], Mapping[int, int]]) -> None:
        self._places = places
        self._memory = Array(ApicTargets.size)
        self.address = self._memory.address
        fields = ApicTargets.fields
        words = (ctypes.c_uint64 * (ApicTargets.size // 8)).from_address(self.address)
        self._words = memoryview(words).cast("B").cast("Q")
        self._at = {name: int(field.offset) // 8 for name, field in fields.items()}

    def refresh(self, bus: ApicBus) -> None:
        """Write what the bus knows."""
        places, at = self._places(), self._at
        for apic_id in range(APIC_IDS):
            self._put(at["states"] + apic_id, bus.physical.get(apic_id, ()), places)
        mode = _common_mode(bus.present)
        self._words[at["logical_mode"]] = 0
        for n in range(FLAT_IDS if mode == XAPIC else 0):
            self._put(at["flat"] + n, [lapic for lapic in bus.present if lapic.ldr >> 24 + n & 1], places)
        present = [places.get(id(lapic), 0) for lapic in bus.present]
        self._words[at["count"]] = 0
        for n, place in enumerate(present):
            self._words[at["present"] + n] = place
        self._words[at["count"]] = len(present) if all(present) else 0
        self._words[at["logical_mode"]] = mode
        for n in range(4):
            self._words[at["awaited"] + n] = bus.eoi_vectors >> 64 * n & (1 << 64) - 1

    def _put(self, word: int, lapics: tuple[LocalApic, ...] | list[LocalApic], places: Mapping[int, int]) -> None:
        """The one that is meant, or none."""
        self._words[word] = places.get(id(lapics[0]), 0) if len(lapics) == 1 else 0


def _common_mode(lapics: tuple[LocalApic, ...]) -> int:
    """The bits of IA32_APIC_BASE for the mode that all are in, xAPICs in the flat model; else 0."""
    modes = {lapic.mode for lapic in lapics}
    if modes == {ApicMode.X2APIC}:
        return X2APIC
    flat = all(lapic.dfr == DFR_FLAT for lapic in lapics)
    return XAPIC if modes == {ApicMode.XAPIC} and flat else 0
