"""The user address space of a differential case: fixed, and the same on the host and in the guest.

Every case runs at CPL 3 in this layout. Whoever executes cases (the host runner here, an engine's adapter elsewhere)
maps

    CODE      2 pages   r-x   filled with INT3 (0xCC) around the code under test
    DATA      4 pages   rw-   operands; not executable
    STACK     1 page    rw-   RSP points here unless a case says otherwise; not executable
    READONLY  1 page    r--   stores here fault with error code 7; not executable

with a hole of at least one page before and after each area, so that every access over an edge faults. All of it lies
below 2 GiB, so absolute disp32, 32-bit addressing and 32-bit code reach it. `HOLE` is never mapped, and neither is
anything below 64 KiB (16-bit effective addresses land there) or in the upper half of the address space. Cases go
nowhere else (`safety`). A mapped page is present with A and D set.

Segment selectors are Linux's: CS 0x33 (64-bit) or 0x23 (32-bit), SS=DS=ES=0x2b, FS=GS=0 with the case's bases.
A guest needs these descriptors in its GDT, all DPL 3 and with the accessed bit set: index 4 flat 32-bit code (type 11,
DB=1, G=1), index 5 flat data (type 3, DB=1, G=1), index 6 64-bit code (type 11, L=1, G=1, limit 0xfffff); no LDT.
CR0.AM, CR0.NE, CR0.WP, CR4.OSFXSR, OSXMMEXCPT, OSXSAVE and FSGSBASE are set, CR4.TSD, UMIP and DE are clear, EFER.NXE
and SCE are set, XCR0 has x87, SSE and AVX; IOPL is 0 and the I/O permission map allows nothing. Gates 3 and 4 of the
IDT have DPL 3, all others DPL 0.

A case ends when the INT3 filling is executed: `rip` is then the address of that INT3 and there is no fault. An
exception at any other place is the case's outcome (`outcome.classify` decides, for every executor alike).
"""

from __future__ import annotations

import random

PAGE = 0x1000

CODE = 0x6000_0000
CODE_SIZE = 2 * PAGE
DATA = 0x6100_0000
DATA_SIZE = 4 * PAGE
STACK = 0x6200_0000
STACK_SIZE = PAGE
READONLY = 0x6300_0000
READONLY_SIZE = PAGE
HOLE = 0x6400_0000

WINDOW = (0x5F00_0000, 0x6500_0000)
"""Nothing but the areas above is mapped in this range of addresses."""

LOWEST_MAPPED = 0x1_0000
"""Below this address nothing is mapped either."""

MAX_CODE = 256
"""Longest code under test, bytes."""

INT3 = 0xCC

CS64 = 0x33
CS32 = 0x23
SS = 0x2B

START = CODE + 0x800
"""Where code under test begins unless a case says otherwise: far from both edges, so short branches stay inside."""

STACK_TOP = STACK + STACK_SIZE // 2
"""RSP at the start unless a case says otherwise."""

WRITABLE_PAGES: tuple[int, ...] = (
    *range(DATA, DATA + DATA_SIZE, PAGE),
    *range(STACK, STACK + STACK_SIZE, PAGE),
)
"""Pages whose content a case can set and change, in the order in which the host's records hold them."""

BACKGROUND: dict[int, bytes] = {
    page: random.Random(page).randbytes(PAGE)
    for page in (*WRITABLE_PAGES, *range(READONLY, READONLY + READONLY_SIZE, PAGE))
}
"""What each page holds when a case does not set it: fixed pseudo-random bytes, so a read at a wrong address is seen."""
