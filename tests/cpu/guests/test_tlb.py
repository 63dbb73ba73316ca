"""The TLB as guests see it: what drops an entry, and what keys, dirty bits and accesses across pages do to one."""

from __future__ import annotations


import pytest
from pellucid.cpu.state import (
    CR4_PAE,
    CR4_PGE,
    CR4_PKE,
    CR4_SMAP,
    RFLAGS_AC,
)

from .machine import CODE64, DATA, DATA0, STACK3, Machine
from .tables import A, D, G, P, U, W


def remap(m: Machine, linear: int, physical: int, flags: int = P | W | U) -> None:
    assert m.pages is not None
    m.pages.map(linear, physical, flags)


FLUSHES = [
    # what the guest does, whether a local and whether a global translation goes
    ("invlpg [rbx]", True, True),
    ("mov rax, cr3\nmov cr3, rax", True, False),
    ("mov rax, cr4\nbtc rax, 7\nmov cr4, rax", True, True),
    ("mov rax, cr4\nbtc rax, 20\nmov cr4, rax", True, True),
    ("mov rax, cr0\nbtc rax, 16\nmov cr0, rax", True, True),
    ("invlpg [rbx + 0x1000]", False, False),
]


@pytest.mark.parametrize(("source", "local", "everywhere"), FLUSHES)
def test_flushes(source: str, local: bool, everywhere: bool) -> None:
    """A translation stays in the TLB until the guest drops it; global ones outlive a load of CR3."""
    for flags, gone in ((P | W, local), (P | W | G, everywhere)):
        m = Machine()
        m.long(f"mov al, [rbx]\nout 0x10, al\n{source}\nmov al, [rbx]\nhlt", cr4=CR4_PGE)
        assert m.pages is not None
        for page in range(0, 2 << 20, 4096):
            m.pages.map(page, page, P | W)
        m.write(DATA, 1, 1)
        m.write(DATA + 0x1000, 2, 1)
        remap(m, 0x4000_0000, DATA, flags)
        m.state.gpr[3] = 0x4000_0000

        m._device = lambda port, m=m, flags=flags: (
            remap(m, 0x4000_0000, DATA + 0x1000, flags),
            m.processor.complete(0),
        )  # type: ignore
        assert m.run().vector is None
        if gone:
            assert m.state.gpr[0] & 0xFF == 2
        elif "invlpg" in source:
            assert m.state.gpr[0] & 0xFF == 1


def test_invlpg_drops_all_of_a_large_page() -> None:
    for levels, shift in ((2, 22), (3, 21), (4, 21), (4, 30)):
        m = Machine()
        names = "rbx rcx" if levels >= 4 else "ebx ecx"
        b, c = names.split()
        source = f"mov al, [{b}]\nmov ah, [{c}]\nout 0x10, al\ninvlpg [{b}]\nmov al, [{c}]\nhlt"
        if levels >= 4:
            m.long(source, levels=levels)
        else:
            m.protected(source, paging=levels)
        assert m.pages is not None
        leaf = m.pages.map(0x4000_0000, 0, P | W | U, shift=shift)
        m.load_pdptrs()
        m.write(DATA + 5, 7, 1)
        m.state.gpr[3], m.state.gpr[1] = 0x4000_0000, 0x4000_0000 + DATA + 5
        size = m.pages.entry_size

        def unmap(port: bool, m: Machine = m, leaf: int = leaf, size: int = size) -> None:
            m.write(leaf, 0, size)
            m.processor.complete(0)

        m._device = unmap  # type: ignore[method-assign]
        assert m.catch() == 14 and m.state.cr2 == 0x4000_0000 + DATA + 5
        assert m.state.gpr[0] >> 8 & 0xFF == 7


def test_wrpkru_takes_effect_at_once() -> None:
    m = Machine()
    m.long(
        "mov al, [rbx]\nxor ecx, ecx\nxor edx, edx\nmov eax, 4\nwrpkru\nrdpkru\nmov esi, eax\nmov al, [rbx]",
        cr4=CR4_PKE,
    )
    remap(m, 0x4000_0000, DATA, P | W | U | 1 << 59)
    m.state.gpr[3] = 0x4000_0000
    assert m.catch() == 14 and m.stack(1, 8) == [0x21] and m.state.gpr[6] == 4


def test_a_fetch_opens_nothing_to_reads() -> None:
    """Keys do not bind fetches; the translation that one leaves in the TLB serves no data access."""
    for pkru, ways in ((4, ("mov al, [rbx]", "mov [rbx], al")), (8, ("mov [rbx], al",))):
        for way in ways:
            m = Machine()
            m.long(f"call rbx\n{way}", cr4=CR4_PKE)
            remap(m, 0x4000_0000, DATA, P | W | U | A | D | 1 << 59)
            m.write(DATA, 0xC3, 1)
            m.state.gpr[3], m.state.pkru = 0x4000_0000, pkru
            assert m.catch() == 14 and m.stack(1, 8)[0] & 0x21 == 0x21, (pkru, way)


def test_protection_keys_need_pke() -> None:
    for source in ("rdpkru", "wrpkru"):
        m = Machine()
        m.long(source)
        assert m.catch() == 6
        m = Machine()
        m.long("mov ecx, 1\n" + source, cr4=CR4_PKE)
        assert m.catch() == 13


def test_dirty_bit_comes_with_the_first_write() -> None:
    """A page first read is in the TLB; the write after it still sets D."""
    m = Machine()
    m.long("mov al, [rbx]\nmov rcx, [rdx]\nmov [rbx], al\nmov rdi, [rdx]\nhlt")
    assert m.pages is not None
    leaf = m.pages.map(0x4000_0000, DATA)
    m.state.gpr[3], m.state.gpr[2] = 0x4000_0000, leaf
    assert m.run().vector is None
    assert (m.state.gpr[1] & (A | D), m.state.gpr[7] & (A | D)) == (A, A | D)


def test_read_modify_write_faults_as_a_write() -> None:
    """An instruction that reads and writes reports the write, and has not read."""
    for source in (
        "add dword [rbx], 1",
        "lock inc dword [rbx]",
        "xchg [rbx], eax",
        "bts dword [rbx], 3",
        "lock cmpxchg [rbx], ecx",
        "neg qword [rbx]",
    ):
        m = Machine()
        m.long(source, cpl=3)
        remap(m, 0x4000_0000, DATA, P | U)
        m.state.gpr[3] = 0x4000_0000
        assert m.catch() == 14 and m.stack(1, 8) == [7], source
        m = Machine()
        m.long(source, cpl=3)
        m.state.gpr[3] = 0x4000_0000
        assert m.catch() == 14 and m.stack(1, 8) == [6], source


@pytest.mark.parametrize(
    "source",
    [
        "mov rax, [rbx]",
        "mov [rbx], rax",
        "add [rbx], rax",
        "push qword [rbx]",
        "pop qword [rbx]",
        "movups xmm0, [rbx]",
        "movups [rbx], xmm0",
        "lock xadd [rbx], rax",
    ],
)
@pytest.mark.parametrize("second", [False, True])
def test_access_across_pages(source: str, second: bool) -> None:
    """CR2 is the first byte of the page that faults; nothing of the other page changes."""
    m = Machine()
    m.long(source, cpl=3)
    remap(m, 0x4000_0000, DATA, P | W | U if second else 0)
    remap(m, 0x4000_1000, DATA + 0x1000, 0 if second else P | W | U)
    m.write(DATA + 0xFF8, 0x1111_1111_1111_1111, 8)
    m.write(DATA + 0x1000, 0x2222_2222_2222_2222, 8)
    m.state.gpr[3], m.state.gpr[0] = 0x4000_0FFC, 0x5555
    assert m.catch() == 14
    assert m.state.cr2 == (0x4000_1000 if second else 0x4000_0FFC)
    assert m.words(DATA + 0xFF8, 2, 8) == [0x1111_1111_1111_1111, 0x2222_2222_2222_2222]
    assert m.stack(6, 8)[4] == STACK3, "the stack pointer is as before"


def test_smap_of_implicit_accesses() -> None:
    """The processor's own accesses to its tables are refused on user pages, whatever AC says (SDM vol. 3, 4.6)."""
    m = Machine()
    m.long("mov ds, cx\nhlt", cr4=CR4_SMAP)
    assert m.pages is not None
    for page in range(0, 2 << 20, 4096):
        m.pages.map(page, page, P | W)
    m.pages.map(0x4000_0000, 0x1000, P | W | U)
    m.state.gdt_base, m.state.gpr[1] = 0x4000_0000, DATA0
    m.gate(14, selector=CODE64)
    m.refresh()
    m.rflags = 2 | RFLAGS_AC
    stop = m.run()
    # The handler's own code segment comes from that table too: this is a triple fault.
    assert stop.vector is None and [entry[:2] for entry in m.history()][:1] == [(14, 1)]


def test_pae_upper_half_of_entries() -> None:
    """Bits 62:52 of PAE entries are reserved, and address bits beyond 4 GiB count."""
    m = Machine()
    m.protected("mov al, [ebx]\nhlt", paging=3)
    assert m.pages is not None
    m.pages.map(0x4000_0000, 5 << 32)
    m.load_pdptrs()
    m.state.gpr[3] = 0x4000_0001
    m.processor.flush_tlb()
    assert m.run().vector is None and m.trace == [("read", (5 << 32) + 1, 1, 0)]
    assert m.state.cr4 & CR4_PAE
