"""The processor states that kernels ask to be entered in, with the tables in memory that go with them.

The GDT has Linux's __BOOT_CS 0x10, __BOOT_DS 0x18 and __BOOT_TSS 0x20 (Documentation/x86/boot); PVH asks for flat
segments and a TSS without saying which selectors, so one table serves both.
"""

import struct

from pellucid.kvm.api import DTable, Regs, Segment, Sregs
from pellucid.machine.boot.plan import GDT_ADDRESS, PAGE_SIZE, PAGE_TABLES_ADDRESS

BOOT_CS, BOOT_DS, BOOT_TSS = 0x10, 0x18, 0x20
CR0_PE, CR0_ET, CR0_PG = 1 << 0, 1 << 4, 1 << 31
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10
APIC_BASE = 0xFEE0_0000 | 1 << 11 | 1 << 8
"""Address, enabled, bootstrap processor: the power-on value."""
PTE_PRESENT, PTE_WRITE, PTE_LARGE = 1 << 0, 1 << 1, 1 << 7
IDENTITY_GIB = 4
"""GiB that are identity-mapped for a 64-bit entry."""

CODE_READ_ACCESSED, DATA_WRITE_ACCESSED = 0b1011, 0b0011
BUSY_TSS = 0b1011
"""Also the type of a busy 64-bit TSS: which one is meant follows from EFER.LMA."""
TSS_LIMIT = 0x67

_DATA = Segment(0, 0xFFFF_FFFF, BOOT_DS, DATA_WRITE_ACCESSED, db=True, g=True)
_TSS = Segment(0, TSS_LIMIT, BOOT_TSS, BUSY_TSS, s=False)
_LDT = Segment(0, 0, 0, 0b0010, present=False, s=False, unusable=True)


def _code(long: bool) -> Segment:
    return Segment(0, 0xFFFF_FFFF, BOOT_CS, CODE_READ_ACCESSED, db=not long, l=long, g=True)


def descriptor(segment: Segment) -> int:
    """The 8-byte descriptor of a segment (SDM vol. 3, 3.4.5)."""
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    return (
        limit & 0xFFFF
        | (segment.base & 0xFF_FFFF) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (segment.base >> 24 & 0xFF) << 56
    )


def _gdt(long: bool) -> bytes:
    """Two null descriptors, code, data, and a TSS that in long mode takes two slots."""
    return struct.pack("<6Q", 0, 0, descriptor(_code(long)), descriptor(_DATA), descriptor(_TSS), 0)


def identity_page_tables(address: int) -> bytes:
    """Four-level tables at `address` that map the first 4 GiB to themselves with 2 MiB pages, writable."""
    table = PTE_PRESENT | PTE_WRITE
    directories = [address + (2 + index) * PAGE_SIZE for index in range(IDENTITY_GIB)]
    pml4 = struct.pack("<512Q", (address + PAGE_SIZE) | table, *[0] * 511)
    pdpt = struct.pack("<512Q", *(directory | table for directory in directories), *[0] * (512 - IDENTITY_GIB))
    pages = struct.pack(f"<{512 * IDENTITY_GIB}Q", *(n << 21 | table | PTE_LARGE for n in range(512 * IDENTITY_GIB)))
    return pml4 + pdpt + pages


def _sregs(long: bool) -> Sregs:
    return Sregs(
        cs=_code(long),
        ds=_DATA,
        es=_DATA,
        fs=_DATA,
        gs=_DATA,
        ss=_DATA,
        tr=_TSS,
        ldt=_LDT,
        gdt=DTable(GDT_ADDRESS, len(_gdt(long)) - 1),
        idt=DTable(0, 0),
        cr0=CR0_PE | CR0_ET | (CR0_PG if long else 0),
        cr2=0,
        cr3=PAGE_TABLES_ADDRESS if long else 0,
        cr4=CR4_PAE if long else 0,
        cr8=0,
        efer=EFER_LME | EFER_LMA if long else 0,
        apic_base=APIC_BASE,
    )


def long_mode(entry: int, boot_params: int) -> tuple[list[tuple[int, bytes]], Regs, Sregs]:
    """64-bit mode with paging on and interrupts off; RSI points at the boot parameters."""
    segments = [(GDT_ADDRESS, _gdt(True)), (PAGE_TABLES_ADDRESS, identity_page_tables(PAGE_TABLES_ADDRESS))]
    return segments, Regs(rip=entry, rsi=boot_params), _sregs(True)


def protected_mode(entry: int, *, rsi: int = 0, rbx: int = 0) -> tuple[list[tuple[int, bytes]], Regs, Sregs]:
    """32-bit protected mode with paging and interrupts off; Linux wants ESI, PVH wants EBX to point at its data."""
    return [(GDT_ADDRESS, _gdt(False))], Regs(rip=entry, rsi=rsi, rbx=rbx), _sregs(False)
