"""Hardware task switches: JMP, CALL, IRET and events through TSSs and task gates (SDM vol. 3, chapter 7)."""

import pytest
from pellucid.cpu.state import CR0_TS, CS, DR6_FIXED, DS, EXIT_HLT, LDTR, RFLAGS_NT, RFLAGS_RF, RFLAGS_VM, SS, TR

from . import tables
from .machine import (
    CODE,
    CODE32,
    DATA,
    DATA0,
    DEVICE,
    LDT,
    LDT_AT,
    SPARE,
    STACK0,
    STACK3,
    TSS,
    TSS2_AT,
    TSS_AT,
    USER32,
    USER_DATA,
    Machine,
)

NEW = SPARE  # selector of the second TSS
GATE = SPARE + 8  # a task gate to it
TASK = 0x12000
NAMES = {"NEW": NEW, "GATE": GATE, "TSS": TSS, "DATA0": DATA0}


def tss32(
    m: Machine,
    at: int,
    *,
    ip: int = TASK,
    flags: int = 2,
    cs: int = CODE32,
    ss: int = DATA0,
    ds: int = DATA0,
    sp: int = 0x6000,
    cr3: int = 0,
    ldt: int = 0,
    trap: int = 0,
    link: int = 0,
) -> None:
    m.write_bytes(at, bytes(0x68))
    m.write(at, link, 4)
    m.write(at + 4, 0x9000, 4)
    m.write(at + 8, DATA0, 4)
    m.write(at + 0x1C, cr3, 4)
    m.write(at + 0x20, ip, 4)
    m.write(at + 0x24, flags, 4)
    for n in range(8):
        m.write(at + 0x28 + 4 * n, sp if n == 4 else 0x100 + n, 4)
    for n, selector in enumerate((ds, cs, ss, ds, ds, 0)):
        m.write(at + 0x48 + 4 * n, selector, 4)
    m.write(at + 0x60, ldt, 4)
    m.write(at + 0x64, trap | 0x68 << 16, 4)


def machine(source: str, cpl: int = 0, paging: int = 0, task: str = "hlt", dpl: int = 3, **fields: int) -> Machine:
    m = Machine()
    m.labels |= NAMES
    m.protected(source, cpl=cpl, paging=paging)
    tss32(m, TSS2_AT, **{**({"cr3": m.state.cr3} if paging else {}), **fields})
    m.write(TSS_AT + 0x1C, m.state.cr3, 4)
    m.describe(NEW, tables.system_segment(tables.TSS, TSS2_AT, 0x67, dpl=dpl))
    m.describe(GATE, tables.gate(tables.TASK_GATE, NEW, 0, dpl=dpl))
    m.load(task, TASK, 32)
    return m


def kinds(m: Machine) -> tuple[int, int]:
    """The types of the two TSS descriptors, old and new."""
    return m.descriptor(TSS) >> 40 & 15, m.descriptor(NEW) >> 40 & 15


WAYS = ["jmp NEW:0", "call NEW:0", "jmp GATE:0", "call GATE:0", "int 0x40", "irq"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cpl", [0, 3])
def test_switch(way: str, cpl: int) -> None:
    """The old task is saved, the new one loaded; CALL and events nest: back link, NT, both busy."""
    m = machine("nop\n" + ("here: jmp here" if way == "irq" else way) + "\nback: hlt", cpl)
    m.gate(0x40, kind=tables.TASK_GATE, selector=NEW, offset=0)
    s = m.state
    for n in (0, 1, 2, 3, 5, 6, 7):
        s.gpr[n] = 0x1000 + n
    m.rflags = 0x3AD7
    if way == "irq":
        s.rip = m.labels["here"]
        assert m.interrupt(0x40)
    assert m.run().reason == EXIT_HLT and s.rip == TASK + 1, m.history()
    nested = way not in ("jmp NEW:0", "jmp GATE:0")
    assert [s.gpr[n] for n in range(8)] == [0x6000 if n == 4 else 0x100 + n for n in range(8)]
    assert m.rflags == 2 | RFLAGS_NT * nested and s.cpl == 0 and s.cr0 & CR0_TS
    assert (s.seg_selector[CS], s.seg_selector[SS], s.seg_selector[DS], s.seg_selector[TR]) == (
        CODE32,
        DATA0,
        DATA0,
        NEW,
    )
    assert kinds(m) == (tables.TSS_BUSY if nested else tables.TSS, tables.TSS_BUSY)
    assert m.read(TSS2_AT, 2) == (TSS if nested else 0)
    back = m.labels["here"] if way == "irq" else m.labels["back"]
    assert m.words(TSS_AT + 0x20, 2, 4) == [back, 0x3AD7]
    assert m.words(TSS_AT + 0x28, 8, 4) == [(STACK3 if cpl else STACK0) if n == 4 else 0x1000 + n for n in range(8)]
    data, code = (USER_DATA, USER32) if cpl else (DATA0, CODE32)
    assert m.words(TSS_AT + 0x48, 6, 4) == [data, code, data, data, data, data]


def test_call_and_return() -> None:
    """IRET with NT goes back: the nested task becomes available, NT is cleared in what it saves."""
    m = machine(
        "mov eax, 5\ncall NEW:0\nback: inc eax\ncall NEW:0\nhlt", task="mov ecx, 7\niretd\nsecond: mov ecx, 9\niretd"
    )
    assert m.run().reason == EXIT_HLT
    s = m.state
    assert s.gpr[0] == 6 and s.seg_selector[TR] == TSS and kinds(m) == (tables.TSS_BUSY, tables.TSS)
    assert m.read(TSS2_AT + 0x24, 4) & RFLAGS_NT == 0
    assert m.read(TSS2_AT + 0x2C, 4) == 9, "entered again, a task goes on behind its IRET"
    assert not m.rflags & RFLAGS_NT


def test_page_fault_task() -> None:
    """A fault through a task gate: the error code is on the new stack, RF in the saved flags; IRET restarts it."""
    m = machine("mov ebx, 0x1F0000\nfault: mov eax, [ebx]\nhlt", paging=2)
    assert m.pages is not None
    leaf = m.pages.entries(0x1F_0000)[-1]
    m.load(f"pop eax\nmov [0x20000], eax\nmov dword [{leaf}], 0x1F0007\ninvlpg [0x1F0000]\niretd", TASK, 32)
    m.write(0x1F_0000, 0x4242, 4)
    m.pages.unmap(0x1F_0000)
    m.processor.flush_tlb()
    m.gate(14, kind=tables.TASK_GATE, selector=NEW, offset=0)
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] == 0x4242
    assert m.read(0x20000, 4) == 0 and m.read(TSS_AT + 0x24, 4) & RFLAGS_RF


def test_new_address_space_and_ldt() -> None:
    m = machine("jmp NEW:0", paging=2, task="mov eax, [0x1F0000]\nmov ecx, es\nhlt", ldt=LDT, ds=0xC)
    assert m.pages is not None
    m.describe(0xC, tables.segment(tables.DATA))
    other = tables.PageTables(2, m.read, m.write, m.allocate)
    other.identity(2 << 20)
    other.map(0x1F_0000, DATA)
    m.write(DATA, 0x99, 4)
    m.write(TSS2_AT + 0x1C, other.root, 4)
    assert m.run().reason == EXIT_HLT, m.history()
    s = m.state
    assert s.cr3 == other.root and s.gpr[0] == 0x99 and s.gpr[1] == 0xC
    assert (s.seg_selector[LDTR], s.seg_base[LDTR], s.seg_limit[LDTR]) == (LDT, LDT_AT, 0xFF)


def test_outer_task() -> None:
    m = machine("jmp NEW:0", cs=USER32, ss=USER_DATA, ds=USER_DATA, task="mov eax, cs\nint 0x30", flags=0x202)
    assert m.catch() == 0x30
    assert m.state.gpr[0] == USER32 and m.stack(5, 4)[1:] == [USER32, 0x202, 0x6000, USER_DATA]


def test_virtual_8086_task() -> None:
    m = machine("jmp NEW:0", cs=0x1200, ss=0x800, ds=0x2000, sp=0x100, ip=0, flags=RFLAGS_VM | 0x3002, task="hlt")
    m.load("mov al, [0]\nint 0x30", 0x12000, 16)
    m.write(0x20000, 0x5A, 1)
    assert m.catch() == 0x30
    assert m.state.gpr[0] & 0xFF == 0x5A
    assert m.stack(9, 4)[1:4] == [0x1200, RFLAGS_VM | 0x3002, 0x100]


def test_a_virtual_8086_task_that_faults_at_once() -> None:
    """It has CPL 3 from the start, whatever the low bits of its CS are: its LDT is loaded before its segments."""
    m = machine("jmp NEW:0", cs=0x1200, ss=0x800, ds=0x2000, ip=0, flags=RFLAGS_VM | 2, ldt=LDT)
    m.describe(LDT, tables.segment(tables.DATA))
    m.state.trap_exceptions = 1
    m.run()
    s = m.state
    assert (s.exc_vector, s.exc_error, s.cpl) == (10, LDT, 3) and s.flags & RFLAGS_VM


def test_16_bit_tss() -> None:
    m = machine("mov eax, 0x12345678\ncall NEW:0\nback: hlt", task="hlt")
    m.describe(NEW, tables.system_segment(tables.TSS16, TSS2_AT, 0x2B))
    m.write_bytes(TSS2_AT, bytes(0x2C))
    for n, value in enumerate((0x2000, 2, *range(0x10, 0x18), DATA0, CODE32, DATA0, DATA0, 0)):
        m.write(TSS2_AT + 0x0E + 2 * n, value, 2)
    m.load("mov ax, 0x4444\niretd", 0x2000, 32)
    m.load("mov ax, 0x4444\niretd", 0x2600, 32)
    m.write(TSS2_AT + 0x0E, 0x2600, 2)
    m.state.idt_limit = 0x5FF
    assert m.run().reason == EXIT_HLT, m.history()
    assert m.state.gpr[0] == 0x12345678 and m.read(TSS2_AT + 0x12, 2) == 0x4444
    assert m.state.rip == m.labels["back"] + 1


FAULTS = [
    # spoil the new TSS or its descriptor, vector, error code, whether the switch has happened
    ("busy", 13, NEW, False),
    ("absent", 11, NEW, False),
    ("short", 10, NEW, False),
    ("data", 13, NEW, False),
    ("dpl", 13, NEW, False),
    ("ldt type", 10, LDT, True),
    ("ldt local", 10, 0xC, True),
    ("null ss", 10, 0, True),
    ("ss level", 10, USER_DATA & ~3, True),
    ("ss absent", 12, SPARE + 16, True),
    ("ss code", 10, CODE32, True),
    ("null cs", 10, 0, True),
    ("cs data", 10, DATA0, True),
    ("cs absent", 11, SPARE + 24, True),
    ("cs level", 10, USER32 & ~3, True),
    ("ds system", 10, TSS, True),
    ("ds absent", 11, SPARE + 16, True),
    ("ip", 13, 0, True),
]
SPOILT_FIELDS = {
    "ldt type": {"ldt": LDT},
    "ldt local": {"ldt": 0xC},
    "null ss": {"ss": 0},
    "ss level": {"ss": USER_DATA},
    "ss absent": {"ss": SPARE + 16},
    "ss code": {"ss": CODE32},
    "null cs": {"cs": 0},
    "cs data": {"cs": DATA0},
    "cs absent": {"cs": SPARE + 24},
    "cs level": {"cs": USER32 & ~3},
    "ds system": {"ds": TSS},
    "ds absent": {"ds": SPARE + 16},
    "ip": {"cs": SPARE + 32},
}
"""What is wrong in the new task, by the names of FAULTS."""


@pytest.mark.parametrize(("what", "vector", "error", "switched"), FAULTS)
@pytest.mark.parametrize("way", ["jmp NEW:0", "call NEW:0"])
def test_faults(way: str, what: str, vector: int, error: int, switched: bool) -> None:
    """Faults of the new task's segments are raised in the new task, at its first instruction."""
    m = machine("nop\nfault: " + way, cpl=3 if what == "dpl" else 0)
    fields = SPOILT_FIELDS.get(what, {})
    tss32(m, TSS2_AT, **fields)
    if what == "ldt type":
        m.describe(LDT, tables.segment(tables.DATA))
    kind = {"busy": tables.TSS_BUSY}.get(what, tables.TSS)
    m.describe(
        NEW,
        tables.system_segment(
            kind, TSS2_AT, 0x66 if what == "short" else 0x67, dpl=0 if what == "dpl" else 3, present=what != "absent"
        ),
    )
    if what == "data":
        m.describe(NEW, tables.segment(tables.TSS & ~1, system=True, dpl=3))
    m.describe(SPARE + 16, tables.segment(tables.DATA, present=False))
    m.describe(SPARE + 24, tables.segment(tables.CODE, present=False))
    m.describe(SPARE + 32, tables.segment(tables.CODE, limit=0xFFF))
    s = m.state
    s.trap_exceptions = 1
    m.run()
    assert (s.exc_vector, s.exc_error) == (vector, error)
    assert s.rip == (TASK if switched else m.labels["fault"])
    assert s.seg_selector[TR] == (NEW if switched else TSS)
    if switched:
        assert s.gpr[0] == 0x100 and kinds(m)[1] == tables.TSS_BUSY


def test_event_faults_carry_ext() -> None:
    for what, vector in (("busy", 13), ("absent", 11), ("local", 13)):
        m = machine("here: jmp here")
        m.describe(
            NEW,
            tables.system_segment(
                tables.TSS_BUSY if what == "busy" else tables.TSS, TSS2_AT, 0x67, present=what != "absent"
            ),
        )
        selector = 0xC if what == "local" else NEW
        m.gate(0x40, kind=tables.TASK_GATE, selector=selector, offset=0)
        assert m.interrupt(0x40) and m.state.rip == 0xF000 + vector
        assert m.stack(1, 4) == [selector & ~3 | 1]


def test_iret_with_bad_links() -> None:
    for link, error in ((0xC, 0xC), (NEW, NEW), (DATA0, DATA0), (0x7F8, 0x7F8)):
        m = machine("fault: iretd")
        m.write(TSS_AT, link, 4)
        m.rflags = RFLAGS_NT | 2
        assert m.catch() == 10 and m.stack(2, 4) == [error, CODE]


def test_debug_trap_of_a_task() -> None:
    """The T bit: #DB in front of the new task's first instruction."""
    m = machine("jmp NEW:0", trap=1)
    m.state.dr[7] = 0x400 | 0x155 | 2
    assert m.catch() == 1
    assert m.stack(2, 4) == [TASK, CODE32] and m.state.dr[6] == DR6_FIXED | 0x8000
    assert m.state.dr[7] == 0x402, "local breakpoints go off"


def test_double_fault_task() -> None:
    """What 32-bit kernels use tasks for: a fault whose stack is gone."""
    m = machine("mov esp, 0x1F0008\npush eax\npush eax\npush eax\n", paging=2, task="pop eax\nhlt")
    assert m.pages is not None
    m.pages.unmap(0x1EF000)
    m.processor.flush_tlb()
    m.gate(8, kind=tables.TASK_GATE, selector=NEW, offset=0)
    assert m.run().reason == EXIT_HLT and m.state.rip == TASK + 2, m.history()
    assert m.state.gpr[0] == 0 and m.state.cr2 == 0x1EFFFC
    assert m.read(TSS_AT + 0x38, 4) == 0x1F0000


def test_tss_must_be_writable_before_anything_changes() -> None:
    m = machine("fault: jmp NEW:0", paging=2)
    assert m.pages is not None
    m.state.cr0 |= 1 << 16
    m.pages.map(TSS_AT, TSS_AT, tables.P)
    m.processor.flush_tlb()
    before = m.read_bytes(TSS_AT, 0x1000)
    m.gate(14, offset=0xF00E)
    assert m.catch() == 14 and m.stack(2, 4) == [3, m.labels["fault"]]
    assert m.read_bytes(TSS_AT, 0x1000) == before and kinds(m) == (tables.TSS_BUSY, tables.TSS)


def test_tss_on_a_device() -> None:
    """Each field reaches the device once."""
    m = machine("jmp NEW:0")
    m.describe(NEW, tables.system_segment(tables.TSS, DEVICE, 0x67))
    image = m.read_bytes(TSS2_AT, 0x68)
    m.device = lambda address, size: int.from_bytes(image[address - DEVICE : address - DEVICE + size], "little")
    assert m.run().reason == EXIT_HLT and m.state.rip == TASK + 1
    assert len(m.trace) == len(set(m.trace)) and {entry[0] for entry in m.trace} == {"read"}
    assert m.state.gpr[0] == 0x100 and m.state.seg_base[TR] == DEVICE
