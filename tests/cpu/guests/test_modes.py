"""Mode switches as system software makes them, each through the instructions that the manual asks for."""

import pytest
from pellucid.cpu.state import CR0_PE, CR0_PG, CR4_LA57, CR4_PAE, CS, DS, EFER_LMA, EFER_LME, EXIT_HLT, SS

from . import tables
from .machine import (
    CODE16,
    CODE32,
    CODE64,
    DATA0,
    DATA16,
    GDT,
    GDT_LIMIT,
    HANDLERS,
    IDT,
    STACK0,
    USER32,
    USER64,
    USER_DATA,
    Machine,
    Stop,
)

EFER = 0xC000_0080
TO_PROTECTED = """
bits 16
start:
    cli
    o32 lgdt [gdtr]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    jmp CODE32:protected
gdtr: dw GDT_LIMIT
    dd GDT
bits 32
protected:
    mov ax, DATA0
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov esp, STACK0
"""
NAMES = {
    "CODE32": CODE32,
    "CODE64": CODE64,
    "CODE16": CODE16,
    "DATA0": DATA0,
    "DATA16": DATA16,
    "GDT": GDT,
    "GDT_LIMIT": GDT_LIMIT,
    "IDT": IDT,
    "STACK0": STACK0,
    "USER32": USER32,
    "USER64": USER64,
    "USER_DATA": USER_DATA,
}


def machine(**more: int) -> Machine:
    m = Machine()
    m.labels |= NAMES | more
    m.msrs[EFER] = 0
    return m


def page_tables(m: Machine, levels: int) -> int:
    """Identity tables for all RAM; their root."""
    pages = tables.PageTables(levels, m.read, m.write, m.allocate)
    pages.identity(2 << 20)
    return pages.root


def halted(m: Machine) -> None:
    stop = m.run()
    assert stop == Stop(EXIT_HLT), m.explain(stop)


def test_real_to_32_bit_and_back() -> None:
    m = machine()
    m.real(
        TO_PROTECTED
        + """
    mov dword [0x20000], 0x12345678
    jmp CODE16:narrow
bits 16
narrow:
    mov ax, DATA16
    mov ds, ax
    mov ss, ax
    mov eax, cr0
    and al, 0xFE
    mov cr0, eax
    jmp 0x0C00:back - 0xC000
back:
    mov ax, 0x2000
    mov ds, ax
    mov ebx, [0]
    hlt
    """
    )
    halted(m)
    s = m.state
    assert s.gpr[3] == 0x12345678 and not s.cr0 & CR0_PE
    assert (s.seg_selector[CS], s.seg_base[CS], s.seg_base[DS]) == (0xC00, 0xC000, 0x20000)
    assert s.seg_attr[CS] & 0x4000 == 0 and s.cpl == 0


def test_16_bit_protected_mode() -> None:
    m = machine()
    m.real("""
    o32 lgdt [gdtr]
    smsw ax
    or al, 1
    lmsw ax
    jmp CODE16:protected
gdtr: dw GDT_LIMIT
    dd GDT
protected:
    mov ax, DATA16
    mov ss, ax
    mov sp, 0
    push 0x1234            # SP wraps to 0xFFFE
    o32 push 0x55667788
    mov bx, sp
    mov ecx, esp
    hlt
    """)
    m.state.gpr[4] = 0xABCD_7000
    halted(m)
    assert m.state.gpr[3] & 0xFFFF == 0xFFFA and m.state.gpr[1] == 0xABCD_FFFA
    assert m.read(0xFFFA, 4) == 0x55667788 and m.read(0xFFFE, 2) == 0x1234


def test_unreal_mode_keeps_limits() -> None:
    """Segment limits that protected mode loaded outlive it: real mode changes bases only."""
    m = machine()
    m.real("""
    o32 lgdt [gdtr]
    mov eax, cr0
    inc ax
    mov cr0, eax
    mov bx, DATA0
    mov ds, bx
    dec ax
    mov cr0, eax
    mov bx, 0x100
    mov ds, bx
    a32 mov dword [0x100000], 0x600DF00D
    xor bx, bx
    mov ds, bx
    hlt
gdtr: dw GDT_LIMIT
    dd GDT
    """)
    halted(m)
    assert m.read(0x101000, 4) == 0x600DF00D and m.state.seg_limit[DS] == 0xFFFF_FFFF
    assert m.state.seg_limit[SS] == 0xFFFF


def test_real_mode_limit() -> None:
    """An access beyond 64 KiB is #GP, through SS #SS (vectors 13 and 12, no error code pushed)."""
    for source, vector in (("mov ax, [0xFFFF]", 13), ("mov bp, 0xFFFF\nmov ax, [bp]", 12), ("a32 mov al, [eax]", 13)):
        m = machine()
        m.real(source + "\nhlt")
        m.state.gpr[0] = 0x10000
        assert m.catch() == vector
        assert len({m.state.gpr[4]}) and m.state.gpr[4] == 0x7000 - 6


LONG = (
    TO_PROTECTED
    + """
    mov eax, cr4
    or eax, PAGING
    mov cr4, eax
    mov eax, ROOT
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
compat:
    mov ebx, 0x11111111
    jmp CODE64:long
bits 64
long:
    mov rbx, 0x123456789ABCDEF0
"""
)


class LongMachine(Machine):
    """IA32_EFER is the hypervisor's: writes of LME arrive here."""

    def _msr(self) -> None:
        s = self.state
        if s.io_address == EFER:
            if s.io_write:
                s.efer = s.io_data & ~EFER_LMA | s.efer & EFER_LMA
                self.processor.refresh_mode()
                self.processor.complete(0)
            else:
                self.processor.complete(s.efer)
            return
        super()._msr()


def long_machine(levels: int) -> LongMachine:
    m = LongMachine()
    cr4 = CR4_PAE | (CR4_LA57 if levels == 5 else 0)
    m.labels |= NAMES | {"ROOT": page_tables(m, levels), "PAGING": cr4}
    return m


@pytest.mark.parametrize("levels", [4, 5])
def test_to_long_mode_and_back_to_real(levels: int) -> None:
    m = long_machine(levels)
    m.real(
        LONG
        + """
    mov rsp, STACK0
    push rbx
    lea rax, [rel compat2]
    push CODE32
    push rax
    retfq
bits 32
compat2:
    mov ecx, [0x20000]
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax          # leaves IA-32e mode
    mov ecx, 0xC0000080
    rdmsr
    mov edi, eax
    and eax, 0xFFFFFEFF
    wrmsr
    mov eax, cr4
    mov esi, eax
    jmp CODE16:narrow
bits 16
narrow:
    mov eax, cr0
    and al, 0xFE
    mov cr0, eax
    jmp 0:back
back: hlt
    """
    )
    halted(m)
    s = m.state
    assert m.read(STACK0 - 8, 8) == 0x123456789ABCDEF0
    assert s.gpr[7] == EFER_LME, "LMA is clear as soon as paging is off"
    assert s.efer == 0 and s.cr0 & (CR0_PE | CR0_PG) == 0 and s.gpr[6] & CR4_PAE


@pytest.mark.parametrize("levels", [2, 3])
def test_paging_on_and_off(levels: int) -> None:
    m = machine()
    root = page_tables(m, levels)
    m.labels |= {"ROOT": root, "PAGING": CR4_PAE if levels == 3 else 0}
    m.real(
        TO_PROTECTED
        + """
    mov eax, PAGING
    mov cr4, eax
    mov eax, ROOT
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    jmp on
on: mov ebx, [0x300000]
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov ecx, [0x300000]
    hlt
    """
    )
    pages = tables.PageTables(levels, m.read, m.write, m.allocate)
    pages.root = root
    pages.map(0x30_0000, 0x2_0000)
    m.write(0x20000, 0xCAFE, 4)
    halted(m)
    assert m.state.gpr[3] == 0xCAFE
    assert m.trace == [("read", 0x300000, 4, 0)], "without paging the address is the device's"


def test_five_levels_reach_further() -> None:
    """Bits 56:48 count with LA57: the same address is not canonical without it."""
    for levels, vector in ((5, None), (4, 13)):
        m = Machine()
        m.long("mov rax, [rbx]\nhlt", levels=levels)
        assert m.pages is not None
        m.state.gpr[3] = 0x00FF_0000_0000_0000
        if levels == 5:
            m.pages.map(0x00FF_0000_0000_0000, 0x20000)
            m.write(0x20000, 77, 8)
        stop = m.run()
        assert stop.vector == vector and (vector or m.state.gpr[0] == 77), m.explain(stop)


def bad_cr(source: str, **state: int) -> Machine:
    """A machine in 64-bit mode at a MOV to a control register that must raise #GP(0)."""
    m = Machine()
    m.long(source + "\nhlt")
    for name, value in state.items():
        setattr(m.state, name, value)
    m.refresh()
    return m


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("mov rax, 0x80000010\nmov cr0, rax", "PG without PE"),
        ("mov rax, cr0\nbts rax, 29\nbtr rax, 30\nmov cr0, rax", "NW without CD"),
        ("mov rax, cr0\nbts rax, 32\nmov cr0, rax", "reserved upper half of CR0"),
        ("mov rax, cr0\nbtr rax, 31\nmov cr0, rax", "PG off in 64-bit mode"),
        ("mov rax, cr4\nbtr rax, 5\nmov cr4, rax", "PAE off in IA-32e mode"),
        ("mov rax, cr4\nbts rax, 12\nmov cr4, rax", "LA57 on in IA-32e mode"),
        ("mov rax, cr4\nbts rax, 31\nmov cr4, rax", "a bit of CR4 that CPUID does not have"),
        ("mov rax, cr4\nbts rax, 13\nmov cr4, rax", "VMXE"),
        ("mov rax, cr3\nbts rax, 40\nmov cr3, rax", "CR3 beyond the physical address width"),
        ("mov eax, 16\nmov cr8, rax", "CR8 above 15"),
        ("mov rax, cr3\nor rax, 8\nmov cr3, rax\nmov rax, cr4\nbts rax, 17\nmov cr4, rax", "PCIDE with CR3[11:0] set"),
    ],
)
def test_control_register_faults(source: str, what: str) -> None:
    m = bad_cr(source)
    before = (m.state.cr0, m.state.cr4)
    assert m.catch() == 13 and m.stack(1, 8) == [0], what
    assert (m.state.cr0, m.state.cr4) == before


def test_undefined_control_registers() -> None:
    for source in ("db 0x0F, 0x20, 0xC8", "db 0x44, 0x0F, 0x22, 0xC8", "db 0x0F, 0x22, 0xE8"):
        m = Machine()
        m.long(source)
        assert m.catch() == 6


def test_long_mode_is_refused() -> None:
    """Paging with LME set needs PAE, a CS without L, and a TSS that is not 16-bit."""
    for change in ("pae", "long cs", "tss"):
        m = Machine()
        m.protected("mov eax, cr0\nbts eax, 31\nmov cr0, eax\nhlt")
        s = m.state
        s.efer, s.cr4, s.cr3 = EFER_LME, s.cr4 | CR4_PAE, page_tables(m, 4)
        if change == "pae":
            s.cr4 &= ~CR4_PAE
        if change == "long cs":
            s.seg_attr[CS] |= 0x2000
        if change == "tss":
            s.seg_attr[7] = 0x83
        m.refresh()
        assert m.catch() == 13 and not s.cr0 & CR0_PG and not s.efer & EFER_LMA, change


def test_pae_pointers_are_checked() -> None:
    """MOV to CR3 loads PAE's four pointers; a reserved bit in one is #GP(0), and CR3 stays."""
    m = Machine()
    m.protected("mov eax, ebx\nmov cr3, eax\nhlt", paging=3)
    root = page_tables(m, 3)
    m.write(root + 24, 1 << 5 | 1, 8)
    m.state.gpr[3], before = root, m.state.cr3
    assert m.catch() == 13 and m.state.cr3 == before
    m.write(root + 24, 1 << 5, 8)  # not present: not checked
    m.state.rip = 0x10000
    assert m.run() == Stop(EXIT_HLT) and m.state.cr3 == root


def test_pae_pointers_are_registers() -> None:
    """A pointer changed in memory counts only from the next load of CR3 on."""
    m = Machine()
    m.protected("mov eax, [0x300000]\nmov ecx, cr3\nmov cr3, ecx\nmov ebx, [0x300000]\nhlt", paging=3)
    assert m.pages is not None
    m.pages.map(0x30_0000, 0x20000)
    m.write(0x20000, 5, 4)
    other = tables.PageTables(3, m.read, m.write, m.allocate)
    other.identity(2 << 20)
    m.write(m.state.cr3, m.read(other.root, 8), 8)
    m.processor.flush_tlb()
    assert m.catch() == 14
    assert m.state.gpr[0] == 5 and m.state.cr2 == 0x300000


def test_compatibility_mode_stack_and_addresses_are_32_bit() -> None:
    m = Machine()
    m.long("push 5\nmov eax, [ebx + 0x7FFFFFFF]\nhlt", compat=True)
    m.state.gpr[4] = 0xFFFF_FFFF_0000_8000
    m.state.gpr[3] = 0x8002_0001
    m.write(0x20000, 99, 4)
    halted(m)
    assert m.state.gpr[0] == 99 and m.read(0x7FFC, 4) == 5 and m.state.gpr[4] & 0xFFFF_FFFF == 0x7FFC


def test_handlers_offset() -> None:
    assert HANDLERS + 256 <= 0x10000
