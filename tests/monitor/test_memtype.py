"""`info memtype`: the type of an address and why, on page tables and registers made by hand."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pellucid.cpu.state import CR0_CD, CR4_LA57, CR4_PAE, CR4_PCIDE, CR4_PSE, EFER_LMA
from pellucid.monitor.command import INFO_COMMANDS, QMP_COMMANDS
from pellucid.monitor.errors import CommandError
from pellucid.monitor.memtype import IA32_PAT, MSRS, Source, explain_linear, explain_physical, memtype_text
from pellucid.records import replace
from tests.monitor.controlled import controlled_pc, hmp
from tests.monitor.registers_at_reset import reset_registers
from tests.monitor.test_paging import PS, P, Tables, U, W, registers

TYPES = ("UC", "WC", "WT", "WP", "WB")
LINUX_PAT = 0x0407_0506_0007_0106
PWT, PCD, PAT4K, PATLARGE, G = 8, 0x10, 0x80, 1 << 12, 0x100
MTRRS = dict.fromkeys(MSRS, 0) | {
    IA32_PAT: LINUX_PAT,
    0x2FF: 0xC06,
    0x200: 0xC000_0000,
    0x201: 0xFF_C000_0800,
    0x250: 0x0606_0606_0606_0606,
    0x258: 0x0606_0606_0606_0606,
}


@pytest.fixture
def tables() -> Tables:
    """Four-level tables at 0x1000, a page of each size, and one in the PCI hole."""
    tables = Tables()
    tables.put(0x1000, 0, 0x2000 | P | W | U | PCD)
    tables.put(0x2000, 0, 0x3000 | P | W)
    tables.put(0x2000, 3, 0xC000_0000 | P | PS | PATLARGE)
    tables.put(0x2000, 4, 0x1_0000_0000 | P | PS | PCD | PWT)
    tables.put(0x3000, 0, 0x4000 | P | W)
    tables.put(0x3000, 1, 0x20_0000 | P | PS | PATLARGE | PWT)
    tables.put(0x4000, 0, 0x5000 | P)
    tables.put(0x4000, 1, 0x6000 | P | PWT)
    tables.put(0x4000, 2, 0xB_8000 | P | PAT4K | PCD | PWT)
    return tables


def source(tables: Tables, cr3: int = 0x1000, cr4: int = CR4_PAE, efer: int = EFER_LMA, cr0: int = 0) -> Source:
    sregs = registers(cr3, cr4, efer)
    sregs.cr0 = sregs.cr0 & ~CR0_CD | cr0
    return Source(sregs, MTRRS, tables.read, 40)


PAGES = [
    # linear, physical, PAT entry, PAT's type, MTRR's type, effective
    (0x123, 0x5123, 0, "WB", "WB", "WB"),
    (0x1123, 0x6123, 1, "WC", "WB", "WC"),
    (0x2123, 0xB_8123, 7, "WT", "UC", "UC"),
    (0x20_0123, 0x20_0123, 5, "WP", "WB", "WP"),
    (0xFEE0_0020, 0xFEE0_0020, 4, "WB", "UC", "UC"),
    (0x1_0000_0001, 0x1_0000_0001, 3, "UC", "WB", "UC"),
]


@pytest.mark.parametrize(("linear", "physical", "index", "pat", "mtrr", "effective"), PAGES)
def test_pages(
    tables: Tables, linear: int, physical: int, index: int, pat: str, mtrr: str, effective: str
) -> None:
    info = explain_linear(source(tables), linear)
    assert (info.physical, info.pat_index, info.pat, info.mtrr) == (physical, index, pat, mtrr)
    assert info.effective == info.combined == effective
    assert explain_physical(source(tables), physical).effective == mtrr
    disabled = explain_linear(source(tables, cr0=CR0_CD), linear)
    assert (disabled.effective, disabled.combined, disabled.cache_disabled) == ("UC", effective, True)


def test_every_step(tables: Tables) -> None:
    text = memtype_text(explain_linear(source(tables, cr3=0x1000 | PWT), 0x1123))
    assert text.splitlines() == [
        "0x1123 (physical 0x6123): WC",
        "  walk   CR3   0x0000000000001008 PCD=0 PWT=1",
        "  walk   PML4E 0x0000000000002017 at 0x1000 PCD=1 PWT=0, itself read as WC",
        "  walk   PDPTE 0x0000000000003003 at 0x2000 PCD=0 PWT=0, itself read as UC",
        "  walk   PDE   0x0000000000004003 at 0x3000 PCD=0 PWT=0, itself read as WB",
        "  walk   PTE   0x0000000000006009 at 0x4008 PAT=0 PCD=0 PWT=1, page of 4 KiB, itself read as WB",
        "  PAT    entry 1 of IA32_PAT 0x0407050600070106: WC",
        "  MTRR   IA32_MTRR_FIX64K_00000 0x0-0xffff: WB",
        "  MTRR   fixed ranges come first below 1 MiB: WB (IA32_MTRR_DEF_TYPE 0xc06: WB)",
        "  both   MTRR WB and PAT WC: WC (SDM vol. 3, table 12-7)",
        "  CR0.CD 0: WC",
    ]


def test_without_paging() -> None:
    sregs = reset_registers().sregs
    bare = Source(sregs, MTRRS, lambda address, size: None, 40)
    info = explain_linear(bare, 0x1_0000_1000)
    assert (info.physical, info.pat, info.pat_index, info.entries) == (0x1000, "WB", None, [])
    assert info.cache_disabled and info.effective == "UC", "caches are off at reset"
    closed = replace(bare, a20_mask=(1 << 64) - 1 - (1 << 20))
    assert explain_linear(closed, 0x10_0000).physical == 0


def test_a_pcid_is_no_cache_bit(tables: Tables) -> None:
    info = explain_linear(source(tables, cr3=0x1018, cr4=CR4_PAE | CR4_PCIDE), 0x123)
    assert info.entries[1].read_as == "WB" and not info.entries[0].pcd
    assert explain_linear(source(tables, cr3=0x1018), 0x123).entries[1].read_as == "UC"


def test_two_levels() -> None:
    tables = Tables()
    tables.put(0x1000, 0, 0x2000 | P | PCD, 4)
    tables.put(0x1000, 1, 0x00C0_0000 | 2 << 13 | P | PS | PATLARGE, 4)
    tables.put(0x2000, 1, 0x7000 | P | PAT4K | PWT, 4)
    here = source(tables, cr4=CR4_PSE, efer=0)
    small, large = explain_linear(here, 0x1000), explain_linear(here, 0x40_0010)
    assert (small.physical, small.pat_index, small.entries[2].read_as) == (0x7000, 5, "UC")
    assert (large.physical, large.pat_index, large.entries[1].page_size) == (0x2_00C0_0010, 4, 4 << 20)


def test_three_and_five_levels(tables: Tables) -> None:
    tables.put(0x8000, 0, 0x3000 | P)
    info = explain_linear(source(tables, cr3=0x8000, efer=0), 0x1123)
    assert info.physical == 0x6123 and [entry.level for entry in info.entries] == ["CR3", "PDPTE", "PDE", "PTE"]
    assert info.entries[1].read_as is None, "it was loaded with CR3"
    tables.put(0x9000, 0, 0x1000 | P)
    info = explain_linear(source(tables, cr3=0x9000, cr4=CR4_PAE | CR4_LA57), 0x1123)
    assert info.entries[1].level == "PML5E" and info.physical == 0x6123


@pytest.mark.parametrize(
    ("linear", "text"),
    [
        (0x3000, "0x3000 is not mapped: its PTE 0x0 at 0x4018 is not present"),
        (1 << 63, "0x8000000000000000 is not canonical"),
        (1 << 39, "0x8000000000 is not mapped: its PML4E 0x0 at 0x1008 is not present"),
    ],
)
def test_what_has_no_type(tables: Tables, linear: int, text: str) -> None:
    with pytest.raises(CommandError, match=text):
        explain_linear(source(tables), linear)


def test_errors_of_physical_addresses(tables: Tables) -> None:
    with pytest.raises(CommandError, match="wider than this CPU's 40 physical address bits"):
        explain_physical(source(tables), 1 << 40)
    with pytest.raises(CommandError, match="not in IA-32e mode"):
        explain_linear(source(tables, cr4=CR4_PAE, efer=0), 1 << 32)
    with pytest.raises(CommandError, match="at 0x50000000 is not in RAM"):
        explain_linear(source(tables, cr3=0x5000_0000), 0)


def test_tables_of_a_hostile_guest() -> None:
    """Any bytes as tables, any address: an answer or an error of the command."""
    chance = random.Random(7)
    for _ in range(200):
        tables = Tables()
        tables.memory[:] = chance.randbytes(len(tables.memory))
        for _ in range(64):
            tables.put(chance.randrange(16) << 12, chance.randrange(512), chance.getrandbits(64) & ~0xF_0000 | P)
        cr4 = chance.choice((0, CR4_PSE, CR4_PAE, CR4_PAE | CR4_LA57))
        here = source(tables, cr3=chance.randrange(16) << 12, cr4=cr4, efer=chance.choice((0, EFER_LMA)))
        for _ in range(20):
            try:
                info = explain_linear(here, chance.getrandbits(chance.choice((20, 32, 47))))
            except CommandError:
                continue
            assert info.effective in TYPES and memtype_text(info).count("\n") >= 5


def test_declared_for_people_and_programs() -> None:
    assert INFO_COMMANDS["memtype"] is QMP_COMMANDS["x-query-memtype"]
    assert {member.name: member.optional for member in QMP_COMMANDS["x-query-memtype"].members} == {
        "physical": True, "addr": False, "cpu-index": True,
    }  # fmt: skip


def test_at_reset(tmp_path: Path) -> None:
    """Nothing is cached, whoever asks: a person, -p or not, for an expression."""
    with controlled_pc(tmp_path) as control:
        linear = hmp(control, "info memtype 0xfffffff0 - 0x10")
        assert linear.startswith("0xffffffe0: UC\n") and "the MTRRs are off" in linear
        assert hmp(control, "info memtype -p 0xffffffe0") == linear
        assert "Try \"help info memtype\"" in hmp(control, "info memtype")
