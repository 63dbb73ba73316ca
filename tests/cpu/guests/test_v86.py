"""Virtual-8086 mode with CR4.VME off (SDM vol. 3, chapter 20), and alignment checks."""

import pytest
from pellucid.cpu.state import (
    CR0_AM,
    DS,
    ES,
    EXIT_HLT,
    FS,
    GS,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_VM,
    SS,
)

from . import tables
from .machine import CONFORMING, DATA, DATA0, STACK3, STACK_TSS, TSS_AT, USER32, USER_DATA, Machine

IOPL3 = 0x3000
START = 0x1_2000
SEGMENTS = {"es": 0x2100, "cs": 0x1200, "ss": 0x800, "ds": 0x2000, "fs": 0x2200, "gs": 0x2300}


def v86(source: str, flags: int = IOPL3, paging: int = 0) -> Machine:
    """A machine that enters virtual-8086 mode by IRET and executes `source` at 1200:0000."""
    m = Machine()
    push = "".join(f"push {SEGMENTS[name]}\n" for name in ("gs", "fs", "ds", "es", "ss"))
    m.protected(push + f"push 0x100\npush {flags | RFLAGS_VM | 2}\npush {SEGMENTS['cs']}\npush 0\niretd", paging=paging)
    done = m.load(source, 0, 16)
    m.write_bytes(0, bytes(len(done.code)))
    m.write_bytes(START, done.code)
    return m


def frame(m: Machine, error: bool = False) -> list[int]:
    """EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS."""
    return m.stack(9 + error, 4)[error:]


def test_enter_and_leave() -> None:
    """The frame has all segments; the handler finds them null."""
    m = v86("mov ax, cs\nmov bx, [0]\nmov cx, ss\nmov dx, [fs:0]\nat: int 0x40\nback: nop")
    m.write(0x20000, 0x1111, 2)
    m.write(0x22000, 0x2222, 2)
    assert m.catch() == 0x40
    s = m.state
    assert [s.gpr[n] & 0xFFFF for n in (0, 3, 1, 2)] == [0x1200, 0x1111, 0x800, 0x2222]
    assert frame(m) == [m.labels["back"], 0x1200, IOPL3 | RFLAGS_VM | 2, 0x100, 0x800, 0x2100, 0x2000, 0x2200, 0x2300]
    assert s.gpr[4] == STACK_TSS - 36 and s.cpl == 0 and not m.rflags & RFLAGS_VM
    assert [s.seg_selector[n] for n in (DS, ES, FS, GS)] == [0] * 4 and s.seg_selector[SS] == DATA0


SENSITIVE = ["cli", "sti", "pushfw", "popfw", "int 0x40", "iretw"]


@pytest.mark.parametrize("source", SENSITIVE)
def test_iopl_sensitive(source: str) -> None:
    """#GP(0) with IOPL below 3; INT3 and INTO are not sensitive."""
    m = v86("nop\nfault: " + source, flags=0x2000)
    assert m.catch() == 13 and m.stack(2, 4) == [0, m.labels["fault"]]


def test_not_sensitive() -> None:
    m = v86("int3", flags=0)
    assert m.catch() == 3
    m = v86("mov ax, 0x7FFF\nadd ax, 1\ninto", flags=0)
    assert m.catch() == 4


def test_with_iopl_3() -> None:
    """IF, the flags and the stack are the guest's own; IOPL and VM cannot change."""
    m = v86("cli\npushfw\npop ax\npush 0x0ED7\npopfw\npushfd\npop ebx\nsti\nint 0x40", flags=IOPL3 | RFLAGS_IF)
    assert m.catch() == 0x40
    assert m.state.gpr[0] & 0xFFFF == IOPL3 | 2
    assert m.state.gpr[3] == IOPL3 | 0xED7, "PUSHFD shows neither VM nor RF"
    assert frame(m)[2] & ~0xED7 == IOPL3 | RFLAGS_VM


def test_iret_stays_inside() -> None:
    m = v86("push 0x7202 - 0x7000 + 0x4000\npush 0x1210\npush 0\niretw")
    m.load("int 0x40", START + 0x100, 16)
    assert m.catch() == 0x40
    ip, cs, flags, *_ = frame(m)
    assert (ip, cs) == (2, 0x1210) and flags == IOPL3 | RFLAGS_VM | RFLAGS_NT | RFLAGS_IF | 2


def test_privileged() -> None:
    for source in ("hlt", "mov eax, cr0", "mov cr0, eax", "lgdt [0]", "clts", "mov eax, dr0", "rdmsr", "invlpg [0]"):
        m = v86("fault: " + source)
        assert m.catch() == 13 and m.stack(2, 4) == [0, 0], source
    for source in ("sldt ax", "str ax", "lldt ax", "ltr ax", "lar ax, bx", "arpl ax, bx", "verr ax"):
        m = v86("fault: " + source)
        assert m.catch() == 6, source


def test_segments_are_real() -> None:
    """Loads are selector * 16 with 64 KiB; far transfers stay in the mode."""
    m = v86("mov ax, 0x2008\nmov ds, ax\nmov bl, [0]\njmp 0x1220:0x10")
    m.load("mov bh, [0xFFFF]\ncall 0x1230:0\nint 0x40", START + 0x210, 16)
    m.load("mov cx, cs\nretf", START + 0x300, 16)
    m.write(0x20080, 0x42, 1)
    m.write(0x3007F, 0x43, 1)
    assert m.catch() == 0x40
    assert m.state.gpr[3] & 0xFFFF == 0x4342 and m.state.gpr[1] & 0xFFFF == 0x1230
    m = v86("fault: mov ax, [0xFFFF]")
    assert m.catch() == 13
    m = v86("mov bp, 0xFFFF\nfault: mov ax, [bp]")
    assert m.catch() == 12
    m = v86("fault: o32 jmp 0x1200:0x10000")
    assert m.catch() == 13


def test_ports_go_by_the_bitmap() -> None:
    """IOPL does not open ports in this mode."""
    for allowed in (True, False):
        m = v86("in al, 0x60\nint 0x40")
        m.describe(0x50, tables.system_segment(tables.TSS_BUSY, TSS_AT, 0x200))
        m.write(TSS_AT + 0x66, 0x68, 2)
        m.write_bytes(TSS_AT + 0x68, bytes([0 if allowed else 0xFF]) * 0x40)
        m.state.seg_limit[7] = 0x200
        assert m.catch() == (0x40 if allowed else 13)
        assert bool(m.trace) == allowed


def test_page_faults_are_the_users() -> None:
    m = v86("mov al, [0]", paging=2)
    assert m.pages is not None
    m.pages.map(0x20000, 0x20000, tables.P | tables.W)
    m.processor.flush_tlb()
    assert m.catch() == 14 and m.stack(1, 4) == [5]


def test_gates_must_lead_to_level_0() -> None:
    for selector, error in ((USER32 & ~3, USER32 & ~3), (CONFORMING, CONFORMING)):
        m = v86("int 0x40")
        m.gate(0x40, selector=selector)
        assert m.catch() == 13 and m.stack(1, 4) == [error]
    m = v86("int 0x40")
    m.gate(0x40, dpl=0)
    assert m.catch() == 13 and m.stack(1, 4) == [0x40 * 8 + 2]


def test_external_interrupts() -> None:
    m = v86("here: jmp here", flags=0)
    m.processor.kick()
    m.run()
    m.state.pending = 0
    while not m.rflags & RFLAGS_VM:
        m.state.step_once = 1
        m.processor.kick()
        m.run()
        m.state.pending = 0
    assert m.interrupt(0x55)
    assert m.catch() == 0x55 and frame(m)[:3] == [0, 0x1200, RFLAGS_VM | 2]


def test_entry_faults() -> None:
    m = Machine()
    m.protected(
        f"push 0\npush 0\npush 0\npush 0\npush 0x800\n"
        f"push 0x100\npush {RFLAGS_VM | 2}\npush 0x1200\npush 0x10000\nfault: iretd"
    )
    assert m.catch() == 13 and m.stack(2, 4) == [0, m.labels["fault"]]
    m = Machine()
    m.protected(f"push {USER_DATA}\npush 0x9000\npush {RFLAGS_VM | 2}\npush {USER32}\npush 0x12000\niretd", cpl=3)
    m.load("pushfd\npop eax\nint 0x30", 0x12000, 32)
    m.catch()
    assert not m.stack(3, 4)[2] & RFLAGS_VM, "VM counts at CPL 0 only"


def test_flags_of_the_restarted_instruction() -> None:
    m = v86("fault: mov ax, [0xFFFF]")
    assert m.catch() == 13 and frame(m, True)[2] & RFLAGS_RF


# --- alignment ----------------------------------------------------------------------------------------------------

ALIGNED = [
    # access, offset, #AC
    ("mov ax, [rbx]", 1, True),
    ("mov ax, [rbx]", 2, False),
    ("mov eax, [rbx]", 2, True),
    ("mov rax, [rbx]", 4, True),
    ("mov rax, [rbx]", 8, False),
    ("mov al, [rbx]", 3, False),
    ("mov [rbx], eax", 1, True),
    ("add [rbx], ax", 1, True),
    ("lock inc dword [rbx]", 2, True),
    ("xchg [rbx], eax", 2, True),
    ("push qword [rbx]", 4, True),
    ("movups xmm0, [rbx]", 1, False),
    ("movq xmm0, [rbx]", 4, True),
    ("lodsd", 2, True),
    ("rep movsw", 1, True),
    ("stosq", 4, True),
    ("bt dword [rbx], 3", 2, True),
    ("lea rax, [rbx]", 1, False),
    ("prefetcht0 [rbx]", 1, False),
    ("cmpxchg8b [rbx]", 4, True),
]


@pytest.mark.parametrize(("source", "offset", "faults"), ALIGNED)
def test_alignment(source: str, offset: int, faults: bool) -> None:
    """#AC(0) at CPL 3 with CR0.AM and RFLAGS.AC, and not otherwise."""
    for am, ac, cpl in ((True, True, 3), (False, True, 3), (True, False, 3), (True, True, 0)):
        m = Machine()
        m.long("nop\nfault: " + source + "\nint 0x30", cpl=cpl)
        s = m.state
        s.cr0 = s.cr0 | CR0_AM if am else s.cr0 & ~CR0_AM
        for n in (3, 6, 7):
            s.gpr[n] = DATA + offset
        s.gpr[1] = 2
        m.refresh()
        m.rflags = 2 | RFLAGS_AC * ac
        expected = faults and am and ac and cpl == 3
        assert m.catch() == (17 if expected else 0x30), (am, ac, cpl)
        if expected:
            assert m.stack(2, 8) == [0, m.labels["fault"]]


def test_alignment_of_the_stack() -> None:
    m = Machine()
    m.long("push rax\nfault: ret", cpl=3)
    m.state.cr0 |= CR0_AM
    m.state.gpr[4] = STACK3 - 4
    m.refresh()
    m.rflags = 2 | RFLAGS_AC
    assert m.catch() == 17 and m.stack(5, 8)[4] == STACK3 - 4


def test_alignment_follows_popf_and_iret() -> None:
    m = Machine()
    m.long(f"mov rax, [rbx]\npushfq\nor dword [rsp], {RFLAGS_AC}\npopfq\nfault: mov rax, [rbx]", cpl=3)
    m.state.cr0 |= CR0_AM
    m.state.gpr[3] = DATA + 1
    m.refresh()
    assert m.catch() == 17 and m.stack(2, 8)[1] == m.labels["fault"]
    assert m.state.align_check == 0, "the handler is not checked"


def test_instructions_fetch_unaligned_under_alignment_check() -> None:
    m = Machine()
    m.long("nop\nmov rax, 0x1122334455667788\nnop\nint 0x30", cpl=3)
    m.state.cr0 |= CR0_AM
    m.refresh()
    m.rflags = 2 | RFLAGS_AC
    assert m.catch() == 0x30 and m.run().reason == EXIT_HLT
