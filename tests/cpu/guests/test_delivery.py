"""Faults of an exception's delivery: bad gates, segments, stacks, tables; faults in faults; tables on a device."""

import threading
from collections.abc import Callable

import pytest
from pellucid.cpu.state import (
    CR0_AM,
    CR4_LAM_SUP,
    CS,
    EXIT_MMIO,
    EXIT_PENDING,
    EXIT_SHUTDOWN,
    FEATURE_LAM,
    FEATURES_SYSTEM,
    RFLAGS_AC,
    SS,
    TR,
)

from . import tables
from .machine import (
    CODE,
    CODE32,
    CODE64,
    CONFORMING,
    DATA,
    DATA0,
    DATA16,
    DEVICE,
    GDT,
    HANDLERS,
    IDT,
    LDT_AT,
    SPARE,
    STACK0,
    STACK3,
    STACK_TSS,
    TSS,
    TSS_AT,
    USER32,
    USER64,
    USER_DATA,
    Machine,
)
from .test_exceptions import frame, start


def without_present(m: Machine) -> None:
    m.gate(0x40, present=False)


def with_dpl_0(m: Machine) -> None:
    m.gate(0x40, dpl=0)


def beyond_limit(m: Machine) -> None:
    m.state.idt_limit = 0x40 * (16 if m.state.efer & 0x400 else 8) + 6


def wrong_type(m: Machine) -> None:
    m.gate(0x40, kind=tables.CALL)


def null_selector(m: Machine) -> None:
    m.gate(0x40, selector=0)


def data_selector(m: Machine) -> None:
    m.gate(0x40, selector=DATA0)


def outer_selector(m: Machine) -> None:
    m.describe(SPARE, tables.segment(tables.CODE, dpl=3, bits=64 if m.state.efer & 0x400 else 32))
    m.state.cpl = m.state.cpl
    m.gate(0x40, selector=SPARE)


def absent_selector(m: Machine) -> None:
    m.describe(SPARE, tables.segment(tables.CODE, present=False, bits=64 if m.state.efer & 0x400 else 32))
    m.gate(0x40, selector=SPARE)


def narrow_code(m: Machine) -> None:
    m.gate(0x40, selector=CODE32)


def far_offset(m: Machine) -> None:
    if m.state.efer & 0x400:
        m.gate(0x40, offset=1 << 47)
    else:
        m.describe(SPARE, tables.segment(tables.CODE, limit=0xFFF))
        m.gate(0x40, selector=SPARE, offset=0x1000)


NAME = 0x40 * 8 + 2
# (what is wrong, vector, error code without EXT, modes)
DELIVERY: list[tuple[Callable[[Machine], None], int, int, tuple[str, ...]]] = [
    (without_present, 11, NAME, ("protected32", "user32", "long", "user64")),
    (with_dpl_0, 13, NAME, ("user32", "user64", "user_compat")),
    (beyond_limit, 13, NAME, ("protected32", "long", "user64")),
    (wrong_type, 13, NAME, ("protected32", "long")),
    (null_selector, 13, 0, ("protected32", "user64")),
    (data_selector, 13, DATA0, ("protected32", "user64")),
    (outer_selector, 13, SPARE, ("protected32", "long")),
    (absent_selector, 11, SPARE, ("protected32", "user64")),
    (narrow_code, 13, CODE32, ("long", "user64")),
    (far_offset, 13, 0, ("protected32", "long", "user64")),
]


@pytest.mark.parametrize(
    ("spoil", "vector", "error", "mode"), [(f, v, e, mode) for f, v, e, modes in DELIVERY for mode in modes]
)
def test_delivery_faults_of_int(spoil: Callable[[Machine], None], vector: int, error: int, mode: str) -> None:
    """INT 0x40 that cannot be delivered: the fault is the INT's own, without EXT, and nothing else has changed."""
    m = start(mode, "nop\nfault: int 0x40\nhlt")
    spoil(m)
    sp = m.state.gpr[4]
    assert m.catch() == vector
    got = frame(m, mode, True)
    assert got[:2] == [error, m.labels["fault"]]
    if len(got) > 4:
        assert got[4] == sp


@pytest.mark.parametrize(
    ("spoil", "vector", "error", "mode"),
    [(f, v, e, mode) for f, v, e, modes in DELIVERY if f is not with_dpl_0 for mode in modes],
)
def test_delivery_faults_of_interrupts(spoil: Callable[[Machine], None], vector: int, error: int, mode: str) -> None:
    """An external interrupt that cannot be delivered: EXT is set in the error code."""
    m = start(mode, "here: jmp here")
    spoil(m)
    assert m.interrupt(0x40)
    assert m.state.rip == HANDLERS + vector
    assert frame(m, mode, True)[0] == error | 1


def test_interrupts_ignore_the_gates_dpl() -> None:
    m = start("user64", "here: jmp here")
    m.gate(0x40, dpl=0)
    assert m.interrupt(0x40) and m.state.rip == HANDLERS + 0x40
    m = start("user64", "ud2")
    m.gate(6, dpl=0)
    assert m.catch() == 6
    m = start("user64", "int1")
    m.gate(1, dpl=0)
    assert m.catch() == 1
    m = start("user64", "int3")
    m.gate(3, dpl=0)
    assert m.catch() == 13 and m.stack(1, 8) == [3 * 8 + 2]


def test_stack_of_the_tss() -> None:
    """Faults of the stack that a change of level loads: #TS and #SS name the selector, or the TSS."""
    cases: list[tuple[Callable[[Machine], None], int, int]] = [
        (lambda m: m.write(TSS_AT + 8, 0, 4), 10, 0),
        (lambda m: m.write(TSS_AT + 8, USER_DATA, 4), 10, USER_DATA & ~3),
        (lambda m: m.write(TSS_AT + 8, CODE32, 4), 10, CODE32),
        (lambda m: m.write(TSS_AT + 8, SPARE, 4), 12, SPARE),
        (lambda m: m.write(TSS_AT + 8, SPARE + 8, 4), 12, SPARE + 8),
        (lambda m: m.write(TSS_AT + 8, 0x7F8, 4), 10, 0x7F8),
    ]
    for spoil, vector, error in cases:
        m = start("user32", "int 0x40")
        m.describe(SPARE, tables.segment(tables.DATA, present=False))
        m.describe(SPARE + 8, tables.segment(tables.DATA, limit=0xFFF))
        spoil(m)
        # The fault's own handler must not need the same stack.
        m.gate(vector, selector=CONFORMING, offset=0x11000)
        m.load("int 0x41", 0x11000, 32)
        m.gate(0x41, selector=CONFORMING, offset=0x11100)
        m.load("pop eax\nhere: jmp here", 0x11100, 32)
        m.processor.kick()
        assert m.state.cpl == 3
        m.state.pending = 0
        m.gate(0x41, selector=CONFORMING, offset=0x11100)
        m.load("mov eax, [esp + 12]\nud2", 0x11100, 32)
        m.state.trap_exceptions = 0
        stop = run_to_ud2(m)
        assert (stop, m.state.gpr[0]) == (vector, error)


def run_to_ud2(m: Machine) -> int:
    """Run until #UD, which leaves the engine; the vector delivered two exceptions before (INT 0x41 is between)."""
    m.gate(6, selector=CONFORMING, present=False)
    m.run()
    history = [entry[0] for entry in m.history()]
    return history[history.index(0x40) + 1]


def test_tss_limit() -> None:
    m = start("user64", "ud2")
    m.gate(10, ist=1)
    m.state.seg_limit[TR] = 10
    m.gate(10, selector=CODE64, ist=0)
    assert m.run().reason == EXIT_SHUTDOWN
    assert m.history()[:2] == [(6, 0, CODE), (10, TSS | 1, CODE)]


def test_non_canonical_stack() -> None:
    m = start("user64", "ud2")
    m.write(TSS_AT + 4, 1 << 47 | 0x100, 8)
    m.gate(12, ist=1)
    assert m.catch() == 12 and m.stack(1, 8) == [1]
    m = start("user64", "int 0x40")
    m.write(TSS_AT + 4, 1 << 47 | 0x100, 8)
    m.gate(12, ist=1)
    assert m.catch() == 12 and m.stack(1, 8) == [0]


def test_stack_limits() -> None:
    """Pushes beyond the limit of SS: #SS with EXT on the current stack, which then is a double fault here."""
    m = start("protected32", "int 0x40")
    m.describe(SPARE, tables.segment(tables.DATA, limit=0xFFF))
    m.set_segment(SS, SPARE)
    m.refresh()
    m.state.gpr[4] = 8
    m.gate(12, kind=tables.TASK_GATE, selector=0)
    assert m.run().reason == EXIT_SHUTDOWN
    assert m.history()[:2] == [(0x40, 0, CODE), (12, 0, CODE)]


def test_real_mode_vector_table() -> None:
    """IDTR moves and limits the vector table in real mode; a vector beyond it ends in a triple fault."""
    m = Machine()
    m.real("o32 lidt [table]\nint 0x10\ntable: dw 0x47\ndd 0x3000")
    m.write(0x3000 + 0x40, HANDLERS + 0x99, 4)
    assert m.catch() == 0x99
    for limit, vector in ((0x40, 13), (0x30, 8), (0, None)):
        m = Machine()
        m.real("int 0x10")
        m.state.idt_limit = limit
        stop = m.run()
        assert stop.vector == vector and (vector or stop.reason == EXIT_SHUTDOWN)
    m = Machine()
    m.real("int 0x10", sp=1)
    assert m.run().reason == EXIT_SHUTDOWN, "a push at SP = 1 reaches beyond the limit"


# --- faults in faults -----------------------------------------------------------------------------------------


def test_double_fault_table() -> None:
    """Contributory in contributory, and either in a page fault, are #DF; the rest are delivered one after another."""
    absent = {"present": False}
    for first, spoilt, last in (
        ("mov ds, ax", 13, 8),
        ("ud2", 6, 11),
        ("mov al, [0x500000]", 14, 8),
        ("int 0x40", 0x40, 11),
        ("xor ecx, ecx\ndiv ecx", 0, 8),
        ("int3", 3, 11),
        ("int 13", 13, 11),
        ("int 14", 14, 11),
    ):
        m = start("pae", "mov eax, 0xFFF8\n" + first)
        m.gate(spoilt, **absent)
        if spoilt == 13 and last == 8:
            m.gate(11, **absent)
        assert m.catch() == last, first
        assert m.stack(1, 4) == [0 if last == 8 else spoilt * 8 + 2 + (first == "ud2")]


def test_page_fault_within_delivery() -> None:
    """A page fault on the handler's stack while #GP is delivered comes after it; while #PF is, it is #DF."""
    for source, vector in (("mov ds, bx", 14), ("mov al, [0x500000]", 8)):
        m = start("user32", source)
        assert m.pages is not None
        m.state.gpr[3] = 0xFFF8
        m.pages.unmap(STACK_TSS - 0x1000)
        # The second stack comes by a task gate in 32-bit mode; see the tests of tasks. Here the IDT's page goes.
        m.pages.map(STACK_TSS - 0x1000, STACK_TSS - 0x1000)
        m.pages.unmap(IDT)
        m.processor.flush_tlb()
        assert m.run().reason == EXIT_SHUTDOWN
        first = 13 if vector == 14 else 14
        assert [entry[0] for entry in m.history()][:3] == [first, 14, 14 if first == 13 else 8]


def test_page_fault_of_the_stack_by_ist() -> None:
    m = start("user64", "mov ds, bx")
    assert m.pages is not None
    m.state.gpr[3] = 0xFFF8
    m.pages.unmap(STACK_TSS - 0x1000)
    m.gate(14, ist=1)
    assert m.catch() == 14
    assert m.stack(2, 8) == [2, CODE] and m.state.cr2 == STACK_TSS - 8
    m = start("user64", "mov al, [rbx]")
    assert m.pages is not None
    m.state.gpr[3] = 0x500000
    m.pages.unmap(STACK_TSS - 0x1000)
    m.gate(8, ist=1)
    assert m.catch() == 8
    assert m.stack(5, 8)[:3] == [0, CODE, USER64] and m.state.cr2 == STACK_TSS - 8


def test_nested_page_fault_in_tables() -> None:
    """The tables are read with supervisor rights: user mode may not be able to see them."""
    m = start("user64", "ud2")
    assert m.pages is not None
    for page in (GDT, IDT, TSS_AT, STACK_TSS - 0x1000, HANDLERS & ~0xFFF):
        m.pages.map(page, page, tables.P | tables.W)
    assert m.catch() == 6


def test_triple_fault_tells_its_history() -> None:
    m = start("long", "nop\nud2")
    m.state.idt_limit = 0
    stop = m.run()
    assert stop.reason == EXIT_SHUTDOWN
    at = CODE + 1
    assert m.history() == [(6, 0, at), (13, 6 * 8 + 3, at), (8, 0, at), (13, 8 * 8 + 3, at)][:0] + m.history()
    assert [entry[0] for entry in m.history()][:2] == [6, 13] and m.history()[-2][0] == 8
    assert m.state.rip == at and m.state.gpr[4] == STACK0, "the state is that of the instruction"


def test_software_interrupt_8_is_no_double_fault() -> None:
    m = start("long", "int 8")
    m.gate(8, present=False)
    assert m.catch() == 11 and m.stack(1, 8) == [8 * 8 + 2]


def test_accessed_bits_of_the_handlers_segments() -> None:
    m = start("user32", "int 0x40")
    m.describe(SPARE, tables.segment(tables.CODE & ~1))
    m.describe(SPARE + 8, tables.segment(tables.DATA & ~1))
    m.gate(0x40, selector=SPARE)
    m.write(TSS_AT + 8, SPARE + 8, 4)
    assert m.catch() == 0x40
    assert m.descriptor(SPARE) >> 40 & 1 and m.descriptor(SPARE + 8) >> 40 & 1


def test_handlers_in_the_ldt() -> None:
    m = start("protected32", "mov ax, 0x60\nlldt ax\nint 0x40")
    m.describe(0x14, tables.segment(tables.CODE))
    m.gate(0x40, selector=0x14)
    assert m.catch() == 0x40 and m.state.seg_selector[CS] == 0x14
    assert m.state.seg_base[6] == LDT_AT


# --- tables and stacks on a device -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["protected32", "long", "user64", "real"])
def test_delivery_through_device_memory(mode: str) -> None:
    """IDT, GDT, TSS and stack may lie on a device: each access reaches it once, and the delivery completes."""
    m = start(mode, "fault: ud2")
    backing = m.read_bytes(0, 0x10000)
    if m.pages is not None:
        for page in range(0, 0x10000, 0x1000):
            m.pages.map(DEVICE + page, DEVICE + page)
    s = m.state
    writes: dict[int, int] = {}

    def device(address: int, size: int) -> int:
        return int.from_bytes(backing[address - DEVICE : address - DEVICE + size], "little")

    m.device = device
    s.idt_base += DEVICE
    if mode != "real":
        s.gdt_base += DEVICE
    if mode == "user64":
        s.seg_base[TR] += DEVICE
        backing = backing[: TSS_AT + 4] + (DEVICE + 0x7000).to_bytes(8, "little") + backing[TSS_AT + 12 :]
    elif mode != "real":
        s.gpr[4] += DEVICE
    m.refresh()
    assert m.catch() == 6
    for how, address, _, value in m.trace:
        if how == "write":
            assert address not in writes, "once each"
            writes[address] = value
    if mode != "real":
        top = DEVICE + 0x7000 if mode == "user64" else DEVICE + STACK0
        assert len(writes) == (5 if mode != "protected32" else 3) and max(writes) == top - (
            8 if mode != "protected32" else 4
        )
        assert s.gpr[4] == min(writes)
    reads = [entry for entry in m.trace if entry[0] == "read"]
    assert len(reads) == len(set(reads)) > 0
    assert s.replay_count == 0 and s.delivering == 0


def test_nested_fault_after_device_answered() -> None:
    """The IDT lies on a device; the gate it gives is not present, and #NP's own is."""
    m = start("long", "fault: ud2")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.gate(6, present=False)
    backing = m.read_bytes(IDT, 0x1000)
    m.device = lambda address, size: int.from_bytes(backing[address - DEVICE : address - DEVICE + size], "little")
    m.state.idt_base = DEVICE
    m.refresh()
    assert m.catch() == 11 and m.stack(2, 8) == [6 * 8 + 3, m.labels["fault"]]
    assert [entry[1] for entry in m.trace] == [DEVICE + 0x60, DEVICE + 0x68, DEVICE + 0xB0, DEVICE + 0xB8]


def test_interrupt_waits_for_the_device() -> None:
    m = start("long", "here: jmp here")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    backing = m.read_bytes(IDT, 0x1000)
    m.device = lambda address, size: int.from_bytes(backing[address - DEVICE : address - DEVICE + size], "little")
    m.state.idt_base = DEVICE
    m.refresh()
    assert m.interrupt(0x44) and m.state.delivering and m.state.exit_reason == EXIT_MMIO
    assert m.catch() == 0x44 and m.state.history_at == 1


def test_stack_in_a_page_with_code() -> None:
    """The frame overwrites code that was translated: it is delivered all the same, and the new code is seen."""
    m = start(
        "long",
        "jmp 0x7F00",
    )
    m.load("mov eax, 1\nmov [rel flag], eax\nud2\nflag: dd 0", 0x7F00)
    m.state.gpr[4] = 0x7FF0
    assert m.catch() == 6
    m = start("long", "mov rsp, 0x7F38\ncall 0x7F08\nmov rsp, 0x7F40\nud2")
    m.load("nop\nnop\nnop\nret", 0x7F08)
    assert m.catch() == 6 and m.state.count_smc >= 1


def test_user_stack_data16(data: int = DATA16) -> None:
    """A 16-bit stack wraps at 64 KiB while a 32-bit handler's frame is pushed."""
    m = start("protected32", "ud2")
    m.describe(data, tables.segment(tables.DATA, limit=0xFFFF, bits=16))
    m.set_segment(SS, data)
    m.refresh()
    m.state.gpr[4] = 0xABCD_0004
    assert m.run().reason == EXIT_SHUTDOWN or m.state.gpr[4] >> 16 == 0xABCD


def test_events_that_raise_each_other_for_ever_can_be_interrupted() -> None:
    """#AC's gate is absent: #NP; its handler's frame on the user's misaligned stack: #AC; and so on."""
    m = Machine()
    m.protected("mov eax, [ebx]", cpl=3)
    m.state.cr0 |= CR0_AM
    m.state.gpr[3], m.state.gpr[4] = DATA + 1, STACK3 - 2
    m.rflags = 2 | RFLAGS_AC
    m.gate(17, present=False)
    m.gate(11, selector=USER32)
    kick = threading.Timer(0.05, m.processor.kick)
    kick.start()
    while not m.state.count_exceptions:  # a kick may come before the first instruction
        assert m.run().reason == EXIT_PENDING
        m.state.pending = 0
    kick.join()
    assert m.state.delivering and m.state.count_exceptions > 8 and m.state.exc_vector in (11, 17)
    m.gate(17)
    assert m.catch() == 17


@pytest.mark.parametrize("below", range(0, 64, 16))
@pytest.mark.parametrize("error", [False, True])
def test_a_frame_across_two_pages(below: int, error: bool) -> None:
    """IA-32e mode: the frame is the same wherever the stack ends, be its page cached or not."""
    m = start("long", "mov eax, [rsp - 8]\nfault: " + ("mov ds, cx" if error else "ud2"))
    m.state.gpr[1] = SPARE
    m.state.gpr[4] = top = STACK0 - 0x1000 + below
    assert m.catch() == (13 if error else 6)
    frame = m.words(top - 40, 5, 8)
    assert frame[0] == m.labels["fault"] and frame[1] == CODE64 and frame[3:] == [top, DATA0]
    assert m.state.gpr[4] == top - 40 - 8 * error
    if error:
        assert m.read(top - 48, 8) == SPARE


@pytest.mark.parametrize("warm", [False, True])
def test_a_frame_whose_second_page_is_absent(warm: bool) -> None:
    """Five words fit the page, the error code does not: a double fault, from the interrupt stack."""
    m = start("long", "mov eax, [rsp - 8]\nmov ds, cx" if warm else "mov ds, cx")
    assert m.pages is not None
    m.state.gpr[1] = SPARE
    m.pages.map(STACK0 - 0x2000, STACK0 - 0x2000, 0)
    m.gate(8, ist=1)
    m.state.gpr[4] = STACK0 - 0x1000 + 0x20
    m.refresh()
    assert m.catch() == 8
    assert m.state.cr2 == STACK0 - 0x1000 - 8


def test_a_masked_stack_pointer_is_not_canonical_for_a_frame() -> None:
    """LAM masks data accesses; the frame of an event goes to the address as it stands (SDM vol. 3, 4.4)."""
    m = start("long", "mov [rsp - 8], eax\nmov [rsp - 48], eax\nud2")
    m.state.cr4_allowed |= CR4_LAM_SUP
    m.state.features[FEATURES_SYSTEM] |= FEATURE_LAM
    m.state.cr4 |= CR4_LAM_SUP
    assert m.pages is not None
    m.pages.map(0xFFFF_9000_0000_0000, DATA, 3)
    m.state.gpr[4] = (0xFFFF_9000_0000_0000 ^ 1 << 62) + 0x800
    m.gate(8, ist=1)
    m.gate(12, ist=1)
    m.refresh()
    assert m.catch() == 12
