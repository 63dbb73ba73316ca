"""-d mmu's page faults, and what the end of a block is taken for."""

from __future__ import annotations

import logging
from typing import cast

import pytest

from pellucid.cpu.state import CR4_PAE, EFER_LMA
from pellucid.kvm.api import CodeBlock, Regs, Sregs, Vcpu
from pellucid.monitor.cpu_changes import CpuChanges, ending
from pellucid.monitor.page_tables import layout_of
from pellucid.monitor.page_walk import translate
from pellucid.records import dataclass
from tests.cpu.guests.asm import assemble
from tests.monitor.test_paging import PS, P, Tables, U, W, registers


@dataclass
class FakeVcpu:
    """The registers that the log looks at."""

    sregs: Sregs
    regs: Regs
    a20: bool = True

    def get_sregs(self) -> Sregs:
        return self.sregs

    def get_regs(self) -> Regs:
        return self.regs


@pytest.fixture
def tables() -> Tables:
    tables = Tables()
    tables.put(0x1000, 0, 0x2000 | P | W | U)
    tables.put(0x2000, 0, 0x3000 | P | W | U)
    tables.put(0x3000, 0, 0x4000 | P | W | U)
    tables.put(0x3000, 1, 0x80_0000 | P | PS)
    tables.put(0x3000, 2, 0x5000_0000 | P)
    tables.put(0x4000, 1, 0x6000 | P | U)
    return tables


def changes(tables: Tables, *items: str) -> tuple[CpuChanges, FakeVcpu]:
    vcpu = FakeVcpu(registers(0x1000, CR4_PAE, EFER_LMA), Regs(rip=0x1000))
    return CpuChanges(cast(Vcpu, vcpu), frozenset(items), tables.read), vcpu


FAULTS = [
    # CR2, error code, what is said
    (0x1004, 7, "protection, write, user): PML4E 0x2007 at 0x1000, PDPTE 0x3007 at 0x2000, PDE 0x4007 at 0x3000, "
     "PTE 0x6005 at 0x4008"),
    (0x2000, 0, "not present, read): PML4E 0x2007 at 0x1000, PDPTE 0x3007 at 0x2000, PDE 0x4007 at 0x3000, "
     "PTE 0x0 at 0x4010"),
    (0x20_0000, 0x11, "protection, fetch): PML4E 0x2007 at 0x1000, PDPTE 0x3007 at 0x2000, PDE 0x800081 at 0x3008"),
    (0x40_0000, 2, "not present, write): PML4E 0x2007 at 0x1000, PDPTE 0x3007 at 0x2000, PDE 0x50000001 at 0x3010, "
     "PTE (no RAM) at 0x50000000"),
]  # fmt: skip


@pytest.mark.parametrize(("address", "error", "said"), FAULTS)
def test_page_faults(
    tables: Tables, address: int, error: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    log, vcpu = changes(tables, "mmu")
    vcpu.sregs.cr2 = address
    with caplog.at_level(logging.DEBUG, "pellucid.cpu.mmu"):
        log.page_fault(error)
    assert [record.getMessage() for record in caplog.records] == [
        f"page fault: CR2={address:016x} e={error:04x} ({said}"
    ]


def test_a20(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    log, vcpu = changes(tables, "mmu")
    with caplog.at_level(logging.DEBUG, "pellucid.cpu.mmu"):
        log.settle()
        vcpu.a20 = False
        log.settle()
        log.settle()
    assert [record.getMessage() for record in caplog.records] == ["A20 update: a20=0"]


def test_what_faults_is_not_told_of(tables: Tables, caplog: pytest.LogCaptureFixture) -> None:
    """A MOV to CR3, alone, read through the page tables: once refused, once done."""
    log, vcpu = changes(tables, "mmu")
    code = assemble("mov cr3, rax", 0x1000, 64).code
    tables.memory[0x6000 : 0x6000 + len(code)] = code
    with caplog.at_level(logging.DEBUG, "pellucid.cpu.mmu"):
        log.block(CodeBlock(0x1000, 0, b"", 64, 0, 0))
        log.settle()
        assert not caplog.records
        log.block(CodeBlock(0x1000, 0, b"", 64, 0, 0))
        vcpu.regs.rip = 0x1003
        log.settle()
    assert [record.getMessage() for record in caplog.records] == ["CR3 update: CR3=0000000000001000"]


@pytest.mark.parametrize(
    ("source", "bits", "kind"),
    [
        ("nop\njmp 0x1200:0x10", 16, "ljmp"),
        ("call 8:0x1000", 32, "lcall"),
        ("add eax, ebx\nretf", 32, "lret"),
        ("iretq", 64, "iret"),
        ("mov cr0, eax", 32, "CR0"),
        ("lmsw ax", 16, "CR0"),
        ("mov cr3, rcx", 64, "CR3"),
        ("mov rax, cr3", 64, ""),
        ("mov cr4, rax", 64, ""),
        ("clts", 64, ""),
        ("ret", 64, ""),
    ],
)
def test_endings(source: str, bits: int, kind: str) -> None:
    code = assemble(source, 0, bits).code
    assert ending(code, bits)[0] == kind
    if "\n" in source:
        assert ending(code, bits)[1] > 0
    assert ending(b"", bits) == ("", 0) and ending(b"\xff\xff", bits)[0] == ""


def test_translation(tables: Tables) -> None:
    layout = layout_of(registers(0x1000, CR4_PAE, EFER_LMA))
    assert [translate(layout, tables.read, at) for at in (0x1234, 0x20_0001, 0x3000, 0x40_0000)] == [
        0x6234, 0x80_0001, None, None,
    ]  # fmt: skip
    assert translate(None, tables.read, 0x1234) == 0x1234
