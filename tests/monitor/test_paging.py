"""`info tlb` and `info mem` on page tables made by hand; the layout is QEMU 7.2's."""

import random
import struct

import pytest

from pellucid.kvm.regs import Sregs
from pellucid.monitor.page_tables import (
    CR0_PG,
    CR4_LA57,
    CR4_PAE,
    CR4_PSE,
    EFER_LMA,
    LEFT_OUT,
    MOST_LINES,
    NO_EXECUTE,
    Layout,
    ReadTable,
    layout_of,
    mem_text,
    tlb_text,
)
from tests.monitor.registers_at_reset import reset_registers

P, W, U, A, D, PS, G = 1, 2, 4, 0x20, 0x40, 0x80, 0x100


class Tables:
    """Physical memory that holds page tables."""

    def __init__(self, size: int = 1 << 16) -> None:
        self.memory = bytearray(size)

    def put(self, table: int, index: int, entry: int, width: int = 8) -> None:
        struct.pack_into("<Q" if width == 8 else "<I", self.memory, table + index * width, entry)

    def read(self, address: int, size: int) -> bytes | None:
        content = bytes(self.memory[address : address + size])
        return content if len(content) == size else None


def registers(cr3: int, cr4: int, efer: int = 0) -> Sregs:
    sregs = reset_registers().sregs
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = sregs.cr0 | CR0_PG, cr3, cr4, efer
    return sregs


def texts(sregs: Sregs, read: ReadTable) -> tuple[str, str]:
    layout = layout_of(sregs)
    assert isinstance(layout, Layout)
    return tlb_text(layout, read), mem_text(layout, read)


def test_no_paging() -> None:
    assert layout_of(reset_registers().sregs) is None


def test_four_levels() -> None:
    tables = Tables()
    tables.put(0x1000, 0, 0x2000 | P | W | U | A)
    tables.put(0x1000, 511, 0x2000 | P | W)
    tables.put(0x2000, 0, 0x3000 | P | W | U | A)
    tables.put(0x2000, 1, 0x4000_0000 | P | PS | G)
    tables.put(0x3000, 0, 0x4000 | P | U | A)
    tables.put(0x3000, 1, 0x20_0000 | P | W | U | PS | A | D)
    tables.put(0x4000, 1, 0x9000 | P | W | U | NO_EXECUTE)
    tables.put(0x4000, 2, 0xA000 | P | W | U | A | D)
    tlb, mem = texts(registers(0x1000, CR4_PAE, EFER_LMA), tables.read)
    assert tlb.splitlines()[:4] == [
        "0000000000001000: 0000000000009000 X------UW",
        "0000000000002000: 000000000000a000 ---DA--UW",
        "0000000000200000: 0000000000200000 --PDA--UW",
        "0000000040000000: 0000000040000000 -GP------",
    ]
    assert mem.splitlines() == [
        "0000000000001000-0000000000003000 0000000000002000 ur-",
        "0000000000200000-0000000000400000 0000000000200000 urw",
        "0000000040000000-0000000080000000 0000000040000000 -r-",
        "ffffff8000001000-ffffff8000003000 0000000000002000 -r-",
        "ffffff8000200000-ffffff8000400000 0000000000200000 -rw",
        "ffffff8040000000-ffffff8080000000 0000000040000000 -r-",
    ]


def test_five_levels() -> None:
    tables = Tables()
    tables.put(0x1000, 256, 0x2000 | P | W)
    tables.put(0x2000, 0, 0x3000 | P | W)
    tables.put(0x3000, 0, 0 | P | W | PS)
    tlb, _ = texts(registers(0x1000, CR4_PAE | CR4_LA57, EFER_LMA), tables.read)
    assert tlb == "ff00000000000000: 0000000000000000 --P-----W\n"


def test_thirty_two_bits_with_and_without_pae() -> None:
    tables = Tables()
    tables.put(0x1000, 3, 0xC0_0000 | P | W | U | PS, 4)
    tables.put(0x1000, 768, 0x2000 | P | W, 4)
    tables.put(0x2000, 5, 0x7000 | P | U, 4)
    tlb, mem = texts(registers(0x1000, CR4_PSE), tables.read)
    assert tlb == (
        "0000000000c00000: 0000000000c00000 --P----UW\n"  #
        "00000000c0005000: 0000000000007000 -------U-\n"
    )
    assert mem == "00c00000-01000000 00400000 urw\nc0005000-c0006000 00001000 -r-\n"
    tables = Tables()
    tables.put(0x1020, 1, 0x2000 | P)
    tables.put(0x2000, 0, 0x20_0000 | P | W | U | PS)
    assert texts(registers(0x1020, CR4_PAE), tables.read)[1] == "40000000-40200000 00200000 urw\n"


def test_tables_within_each_other_end() -> None:
    """Every entry of every table leads to the same table: 2**36 pages, of which a bounded part is shown."""
    tables = Tables()
    for index in range(512):
        tables.put(0x1000, index, 0x1000 | P | W)
    tlb, mem = texts(registers(0x1000, CR4_PAE, EFER_LMA), tables.read)
    assert tlb.count("\n") == MOST_LINES + 1 and tlb.endswith(LEFT_OUT)
    assert mem.count("\n") == 2 and mem.endswith(LEFT_OUT)


def test_tables_within_each_other_without_a_page_end_too() -> None:
    tables = Tables()
    for index in range(512):
        for level in (0x1000, 0x2000, 0x3000):
            tables.put(level, index, level + 0x1000 | P)
    assert texts(registers(0x1000, CR4_PAE, EFER_LMA), tables.read) == (LEFT_OUT, LEFT_OUT)


@pytest.mark.parametrize("cr4", [0, CR4_PSE, CR4_PAE, CR4_PAE | CR4_LA57])
def test_fuzz(cr4: int) -> None:
    rng = random.Random(3)
    tables = Tables()
    for place in range(0, len(tables.memory), 8):
        if rng.random() < 0.02:
            struct.pack_into("<Q", tables.memory, place, rng.getrandbits(17) | rng.getrandbits(1))
    for efer in (0, EFER_LMA):
        for text in texts(registers(0x3000, cr4, efer), tables.read):
            assert text == "" or text.endswith("\n")
