"""What CPUID says of sockets, dies, cores and threads: QEMU 7.2's numbers, and the manuals' where those are not.

QEMU 7.2 leaves the dies out of three counts of a package's threads: leaf 1, EBX; the last level of leaf 0xB; leaf
0x80000008, ECX. The counts of the manuals (SDM vol. 2, table 3-8; APM vol. 3, appendix E.4) have them.
"""

from __future__ import annotations


import pytest

from pellucid.cpu.models import find_model, resolve
from pellucid.cpu.models.leaves import CpuidLeaf, cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.machine.config import CpuConfig
from pellucid.machine.cpu_model import cpuid_entries
from pellucid.records import replace

PLAIN = CpuTopology(cores=3, threads=2)
WITH_DIES = CpuTopology(sockets=2, dies=2, cores=3, threads=2)
Registers = tuple[int, int, int, int]


def answers(model: str, topology: CpuTopology, apic_id: int = 0, **changes: int) -> dict[tuple[int, int], Registers]:
    shown = replace(resolve(model).model, **changes)  # type: ignore[arg-type]
    return {(e.function, e.index or 0): (e.eax, e.ebx, e.ecx, e.edx) for e in cpuid_leaves(shown, apic_id, topology)}


def test_without_dies() -> None:
    """As QEMU answers with -smp 6,cores=3,threads=2."""
    intel, amd = answers("Nehalem", PLAIN), answers("EPYC", PLAIN)
    assert intel[1, 0][1] == 0x0006_0800 and amd[0x8000_0008, 0][2] == 0x3005
    assert [intel[0xB, n] for n in range(3)] == [(1, 2, 0x100, 0), (3, 6, 0x201, 0), (0, 0, 2, 0)]
    assert intel[4, 2][0] >> 14 & 0xFFF == 1 and intel[4, 3][0] >> 14 & 0xFFF == 7
    assert [amd[0x8000_001D, n][0] >> 14 for n in range(4)] == [1, 1, 1, 5]
    assert amd[0x8000_001E, 0] == (0, 0x100, 0, 0)
    assert (0x1F, 0) not in intel
    alone = answers("Nehalem", CpuTopology())
    assert alone[1, 0][1] == 0x800 and not alone[1, 0][3] >> 28 & 1 and alone[0xB, 1][:2] == (0, 1)


def test_dies() -> None:
    """As QEMU answers with -smp 12,dies=2,cores=3,threads=2, but for the counts named above."""
    intel, amd = answers("Nehalem", WITH_DIES, level=0x1F), answers("EPYC", WITH_DIES, apic_id=0b1_1_10_1)
    assert [intel[0x1F, n] for n in range(4)] == [(1, 2, 0x100, 0), (3, 6, 0x201, 0), (4, 12, 0x502, 0), (0, 0, 3, 0)]
    assert [intel[0xB, n] for n in range(3)] == [(1, 2, 0x100, 0), (4, 12, 0x201, 0), (0, 0, 2, 0)]
    assert intel[4, 3][0] >> 14 & 0xFFF == 7, "the last cache is a die's"
    assert intel[4, 3][0] >> 26 == 7, "cores of the package: ids, less one"
    assert [amd[0x8000_001D, n][0] >> 14 for n in range(4)] == [1, 1, 1, 5]
    assert amd[0x8000_001E, 0] == (0b1_1_10_1, 0x102, 0x103, 0)
    assert intel[1, 0][1] == 0x000C_0800 and amd[0x8000_0008, 0][2] == 0x400B


@pytest.mark.parametrize(("cpu", "level"), [
    (CpuConfig("Nehalem"), 0x1F), (CpuConfig("486"), 0x1F), (CpuConfig("EPYC"), 0xD),
    (CpuConfig("Nehalem", {}, {"level": "11"}), 0xB), (CpuConfig("Nehalem", {}, {"vendor": "AuthenticAMD"}), 0xB),
    (CpuConfig("Nehalem", {}, {"full-cpuid-auto-level": "off"}), 0xB),
])
def test_dies_raise_the_highest_leaf_of_intel_s(cpu: CpuConfig, level: int) -> None:
    def highest(topology: CpuTopology) -> int:
        return next(e.eax for e in cpuid_entries(cpu, 0, topology) if e.function == 0)

    assert highest(WITH_DIES) == level
    assert highest(PLAIN) == find_model(cpu.model).level


@pytest.mark.parametrize("topology", [PLAIN, WITH_DIES, CpuTopology(4, 5, 1, 3)])
def test_shifted_apic_ids_number_the_groups(topology: CpuTopology) -> None:
    def group(apic_id: int, level: int) -> int:
        found: dict[int, CpuidLeaf] = {
            e.index or 0: e for e in cpuid_leaves(replace(find_model("Nehalem"), level=0x1F), apic_id, topology)
            if e.function == (0x1F if topology.dies > 1 else 0xB)}
        return found[level].edx >> found[level].eax

    for level in range(3 if topology.dies > 1 else 2):
        groups = {group(apic_id, level) for apic_id in topology.possible_apic_ids}
        sizes = (topology.threads, topology.die_threads, topology.package_threads)
        assert len(groups) == topology.places // sizes[level]
