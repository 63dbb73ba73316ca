"""Performance counters under a vCPU: what is counted, exactly, however it is executed; overflow; RDPMC."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pellucid.cpu.models import resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.cpu.state import CR4_PCE, RFLAGS_IF
from pellucid.kvm.api import CpuidEntry, IoExit, MmioExit
from pellucid.kvm.irqchip import apicdef
from pellucid.kvm.pmu import FULL_WIDTH_WRITE, IA32_PERF_CAPABILITIES
from tests.engine.code import compile_block
from tests.onlooker import OnLooker

from .machine import CODE, DEVICE, STACK0, STACK3, USER64, USER_DATA
from .test_interrupts import DONE, HANDLER, NMI, SAY, VECTOR, Hosted

PMC0, EVTSEL0, GLOBAL_STATUS, GLOBAL_CTRL, DEBUGCTL = 0xC1, 0x186, 0x38E, 0x38F, 0x1D9
USR, OS, EDGE, INT, EN = 1 << 16, 1 << 17, 1 << 18, 1 << 20, 1 << 22
INSTRUCTIONS, BRANCHES, TICKS = 0xC0, 0xC4, 0x13C
BOTH = OS | USR | EN
FREEZE = 1 << 12
LIMIT = 1 << 48


class Counted(Hosted):
    """A vCPU with counters. `begin` goes through GLOBAL_CTRL: `on` and `off` are what guests do there."""

    def __init__(self) -> None:
        super().__init__()
        leaves = cpuid_leaves(resolve("max").model, 0, CpuTopology())
        self.vcpu.set_cpuid([CpuidEntry(e.function, e.index, e.eax, e.ebx, e.ecx, e.edx) for e in leaves])
        self.vcpu.set_msrs({IA32_PERF_CAPABILITIES: FULL_WIDTH_WRITE, GLOBAL_CTRL: 0})

    def select(self, *events: int) -> None:
        self.vcpu.set_msrs({EVTSEL0 + n: event for n, event in enumerate(events)})

    def counts(self, number: int) -> list[int]:
        return list(self.vcpu.get_msrs(range(PMC0, PMC0 + number)).values())

    def reset(self, number: int = 8) -> None:
        self.vcpu.set_msrs({PMC0 + n: 0 for n in range(number)})

    def again(self) -> None:
        """From the start once more."""
        self.state.rip = CODE
        self.state.gpr[4] = STACK0
        self.refresh()

    def measure(self, source: str, flags: int = 2) -> None:
        """Count from a WRMSR, which counts, up to another, which does not: three more instructions come before that."""
        self.begin(on(0xFF) + source + OFF, flags)
        assert self.pages is not None
        self.pages.map(DEVICE, DEVICE)

    def code(self, vector: int, source: str) -> None:
        """The handler of a vector."""
        at = HANDLER + 0x100 * vector
        self.load(source, at)
        self.gate(vector, offset=at)


def on(bits: int) -> str:
    return f"mov ecx, {GLOBAL_CTRL}\nxor edx, edx\nmov eax, {bits}\nwrmsr\n"


OFF = f"\nmov ecx, {GLOBAL_CTRL}\nxor edx, edx\nxor eax, eax\nwrmsr\nout DONE, al"
AROUND = 1 + 3


def counted() -> Iterator[Counted]:
    """A machine for one test."""
    machine = Counted()
    end = threading.Timer(30, machine.vcpu.kick)  # of a guest that hangs
    end.start()
    yield machine
    end.cancel()
    machine.close()


@pytest.fixture
def m() -> Iterator[Counted]:
    yield from counted()


PROGRAMS = [
    ("nop\nnop", 2, 0),
    ("mov ebx, 1000\na: inc rsi\ndec ebx\njnz a", 1 + 3000, 1000),
    ("mov ebx, 100\na: cmp ebx, 50\njb b\nnop\nb: dec ebx\njz c\njmp a\nc: nop", 1 + 51 + 100 * 4 + 99 + 1, 299),
    ("mov ecx, 300\na: mov [0x20000], ecx\nloop a", 1 + 600, 300),
    ("mov ebx, 20\na: call f\ndec ebx\njnz a\njmp c\nf: push rax\npop rdx\nret\nc: lea rdi, [d]\njmp rdi\nud2\nd: nop",
     1 + 20 * 6 + 1 + 2 + 1, 20 * 3 + 2),
    ("mov ecx, 40\nmov edi, 0x20000\nrep stosb", 3, 0),
    ("mov ebx, 5\na: int 0x60\ndec ebx\njnz a", 1 + 5 * 4, 5 * 3),
    ("mov ebx, 5\na: ud2\ndec ebx\njnz a", 1 + 5 * (2 + 2), 5 * 2),
    ("mov esi, 7\na: mov eax, 10\ncpuid\ndec esi\njnz a", 1 + 28, 7),
    ("mov ebx, 30\nmov al, 5\na: out SAY, al\nin al, 0x70\ndec ebx\njnz a", 2 + 30 * 4, 30),
    ("mov ebx, 30\na: mov eax, [0xFED00000]\ndec ebx\njnz a", 1 + 90, 30),
]


REGIONS = [PROGRAMS[n][0] for n in (1, 4, 6, 10)]


def handlers(m: Counted) -> None:
    m.code(0x60, "iretq")
    m.code(6, "add qword [rsp], 2\niretq")


def finish(m: Counted) -> None:
    """To DONE; whatever else the guest reads is 5."""
    for _ in range(10_000):
        exit = m.vcpu.run()
        assert isinstance(exit, IoExit | MmioExit), f"{exit} at {m.state.rip:x}"
        if isinstance(exit, IoExit) and exit.port == DONE:
            return
        if exit.data is None:
            m.vcpu.complete_read(5)
    raise AssertionError("the guest does not end")


@pytest.mark.parametrize(("source", "instructions", "branches"), PROGRAMS)
def test_exact_counts(m: Counted, source: str, instructions: int, branches: int,
                      monkeypatch: pytest.MonkeyPatch) -> None:
    m.measure(source)
    handlers(m)
    m.select(BOTH | INSTRUCTIONS, BOTH | BRANCHES, OS | EN | INSTRUCTIONS, USR | EN | INSTRUCTIONS)
    finish(m)
    expected = [instructions + AROUND, branches, instructions + AROUND, 0]
    assert m.counts(4) == expected
    assert not m.state.counted and m.vcpu.get_msrs([GLOBAL_CTRL]) == {GLOBAL_CTRL: 0}

    if source in REGIONS:  # the same as a compiled region
        m.processor.count_instructions(True)
        m.state.rip = m.labels["a"]
        compile_block(m.processor, m.processor.current_block())
        m.processor.count_instructions(False)
        m.reset()
        m.again()
        finish(m)
        assert m.counts(4) == expected

    # And three instructions at a time: most blocks are longer, and run one instruction alone.
    monkeypatch.setattr(m.vcpu.pmu, "_distance", lambda: 3)
    m.reset()
    m.again()
    finish(m)
    assert m.counts(4) == expected


def test_single_steps_count_too(m: Counted) -> None:
    """With TF set each instruction ends in #DB, whose handler counts by its own instructions."""
    m.measure("push 0x102\npopfq\nnop\na: jmp b\nnop\nb: nop\npush 2\npopfq\nc: nop")
    m.code(1, "iretq")
    m.select(BOTH | INSTRUCTIONS, BOTH | BRANCHES)
    finish(m)
    stepped = 5  # NOP, JMP, NOP, PUSH and the POPF that clears TF
    assert m.counts(2) == [2 + stepped + 1 + stepped + AROUND, 1 + stepped]


LOOP = "mov ebx, 4\na: inc rsi\nb: dec ebx\nc: jnz a\nd: nop\n" \
    "e: mov eax, [0x20000]\nf: call h\ng: nop\njmp i\nh: ret\ni: nop"


@pytest.mark.parametrize("count", range(1, 19))
def test_an_overflow_comes_behind_exactly_its_instruction(m: Counted, count: int) -> None:
    """The NMI returns to what would have come next; its own instructions do not count, by freezing."""
    m.measure(LOOP)
    m.select(BOTH | INT | INSTRUCTIONS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, apicdef.DM_NMI << 8)
    m.vcpu.set_msrs({PMC0: LIMIT - count, DEBUGCTL: FREEZE})
    events = m.events()
    # The WRMSR is the first, MOV EBX the second; then from a on.
    path = [None, None, *"abcabcabcabcdefhg"]
    if count < 2:
        assert [vector for vector, _ in events] == [NMI]
    else:
        assert events == [(NMI, m.labels[path[count]])]  # type: ignore[index]
    assert m.counts(1) == [0]
    assert m.vcpu.get_msrs([GLOBAL_STATUS, GLOBAL_CTRL]) == {GLOBAL_STATUS: 1, GLOBAL_CTRL: 0}
    assert m.vcpu.lapic.lvt[apicdef.PERF_ENTRY] & apicdef.LVT_MASKED


def test_an_overflow_of_branches(m: Counted) -> None:
    m.measure("mov ebx, 1000\na: inc rsi\nb: dec ebx\nc: jnz a\nd: nop")
    m.select(BOTH | INT | BRANCHES, BOTH | BRANCHES)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, apicdef.DM_NMI << 8)
    m.vcpu.set_msrs({PMC0: LIMIT - 700, DEBUGCTL: FREEZE})
    assert m.events() == [(NMI, m.labels["a"])]
    assert m.counts(2) == [0, 700] and m.state.gpr[6] == 1000


def test_an_overflow_by_a_vector_waits_for_the_guest(m: Counted) -> None:
    m.measure("nop\nnop\nnop\nsti\nnop\na: nop")
    m.select(BOTH | INT | INSTRUCTIONS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, VECTOR)
    m.vcpu.set_msrs({PMC0: LIMIT - 2})
    assert m.events() == [(VECTOR, m.labels["a"])]
    assert m.vcpu.lapic.lvt[apicdef.PERF_ENTRY] & apicdef.LVT_MASKED


def test_a_masked_entry_delivers_nothing(m: Counted) -> None:
    m.measure("nop\nnop\nsti\nnop\nnop")
    m.select(BOTH | INT | INSTRUCTIONS)
    m.vcpu.set_msrs({PMC0: LIMIT - 2})
    assert m.events() == []
    assert m.vcpu.get_msrs([GLOBAL_STATUS]) == {GLOBAL_STATUS: 1}


def user(m: Counted, source: str, counters: str = on(0xFF)) -> None:
    """Enable in the kernel, go to user level by IRETQ, come back by INT 0x60."""
    frame = f"push {USER_DATA}\npush {STACK3}\npush {2 | RFLAGS_IF}\npush {USER64}\nlea rax, [u]\npush rax\niretq\n"
    m.begin(counters + frame + "u: " + source + "\nint 0x60")
    m.code(0x60, OFF)


def test_levels(m: Counted) -> None:
    user(m, "mov ebx, 100\na: dec ebx\njnz a")
    m.select(USR | EN | INSTRUCTIONS, OS | EN | INSTRUCTIONS, BOTH | INSTRUCTIONS, USR | EN | BRANCHES,
             OS | EN | BRANCHES)
    finish(m)
    kernel, below = 1 + 7 + 3, 1 + 200 + 1
    assert m.counts(5) == [below, kernel, kernel + below, 101, 1]


@pytest.mark.parametrize(("count", "at"), [(1, "a"), (2, "b"), (3, "a"), (200, "b"), (201, "c")])
def test_an_overflow_of_one_level(m: Counted, count: int, at: str) -> None:
    user(m, "mov ebx, 100\na: dec ebx\nb: jnz a\nc: nop")
    m.select(USR | EN | INT | INSTRUCTIONS, OS | EN | INSTRUCTIONS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, apicdef.DM_NMI << 8)
    m.vcpu.set_msrs({PMC0: LIMIT - count, DEBUGCTL: FREEZE})
    assert m.events() == [(NMI, m.labels[at])]
    assert m.counts(2) == [0, 8]


def test_system_calls(m: Counted) -> None:
    """SYSCALL counts at the level that it leaves, SYSRET likewise."""
    user(m, "mov ebx, 10\na: syscall\ndec ebx\njnz a")
    at = HANDLER + 0x7000
    m.load("nop\nsysretq", at)
    m.state.lstar = at
    m.select(USR | EN | INSTRUCTIONS, OS | EN | INSTRUCTIONS, USR | EN | BRANCHES, OS | EN | BRANCHES)
    finish(m)
    assert m.counts(4) == [1 + 30 + 1, 1 + 7 + 20 + 3, 10 + 10 + 1, 1 + 10]


def test_reference_cycles_are_ticks_of_the_tsc(m: Counted) -> None:
    m.measure("rdtsc\nmov esi, eax\nmov ebx, 300000\na: dec ebx\njnz a\nrdtsc\nsub eax, esi\nmov [0x20000], eax")
    m.select(BOTH | TICKS, USR | EN | TICKS)
    finish(m)
    ticks, seen = m.counts(1)[0], m.read(0x20000, 4)
    assert m.counts(2)[1] == 0
    assert 100_000 < ticks < 1.1 * seen, "what the hypervisor does meanwhile is not the guest's time"


def test_an_overflow_of_ticks(m: Counted) -> None:
    m.measure("sti\na: inc rsi\njmp a")
    m.load("mov byte [0x20000], 1\nout DONE, al", HANDLER + 0x100 * VECTOR)
    m.select(BOTH | INT | TICKS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, VECTOR)
    m.vcpu.set_msrs({PMC0: LIMIT - 1000})
    m.on_say = lambda value: m.clock.advance(10**9)  # type: ignore[method-assign]
    m.load(on(0xFF) + "mov ebx, 20000\nb: dec ebx\njnz b\nmov al, 5\nout SAY, al\nsti\na: inc rsi\njmp a", CODE)
    finish_say(m)
    assert m.read(0x20000, 1) == 1 and m.vcpu.get_msrs([GLOBAL_STATUS]) == {GLOBAL_STATUS: 1}


RUNS = [("nop\njmp b\nb: nop", 1), ("jmp b\nb: jmp c\nc: jmp d\nd: nop\njmp e\ne: nop", 2),
        ("mov ebx, 10\na: dec ebx\njnz a", 10), ("mov ebp, 5\nmov ecx, 4\na: loop a\nb: dec ebp\njnz b", 6),
        ("mov ebx, 3\na: call f\ndec ebx\njnz a\njmp g\nf: ret\ng: nop", 4),
        ("mov ebx, 3\na: ud2\njmp b\nb: dec ebx\njnz a", 6), ("mov ebx, 3\na: int 0x60\njmp b\nb: dec ebx\njnz a", 4),
        ("mov ebx, 3\na: out SAY, al\njmp b\nb: jmp c\nc: dec ebx\njnz a", 6)]


@pytest.mark.parametrize(("source", "runs"), RUNS)
def test_edges_of_branches_are_their_runs(m: Counted, source: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """UD2's handler ends in IRETQ, as INT's does, which is nothing else."""
    m.measure(source)
    handlers(m)
    m.select(BOTH | EDGE | BRANCHES, OS | EN | EDGE | BRANCHES, USR | EN | EDGE | BRANCHES)
    finish(m)
    assert m.counts(3) == [runs, runs, 0]
    monkeypatch.setattr(m.vcpu.pmu, "_distance", lambda: 3)
    m.reset()
    m.again()
    finish(m)
    assert m.counts(3) == [runs, runs, 0]


def test_edges_of_cycles_are_entries_of_a_level(m: Counted) -> None:
    """IRETQ to user level, three system calls; INT back. A run of branches ends with the level."""
    user(m, "mov ebx, 3\na: syscall\ndec ebx\njnz a")
    at = HANDLER + 0x7000
    m.load("jmp n\nn: sysretq", at)
    m.state.lstar = at
    edge = EN | EDGE
    m.select(OS | edge | INSTRUCTIONS, USR | edge | TICKS, OS | USR | edge | INSTRUCTIONS, OS | edge | BRANCHES,
             USR | edge | BRANCHES)
    finish(m)
    assert m.counts(5) == [4, 4, 0, 1 + 3, 1 + 3]


HALTS = "mov ebx, 3\na: cli\nmov al, 1\nout SAY, al\nsti\nhlt\ndec ebx\njnz a\ncli"
ACKNOWLEDGE = "mov al, 9\nout SAY, al\niretq"


def test_edges_of_cycles_are_ends_of_halts(m: Counted) -> None:
    m.measure(HALTS)
    m.load(ACKNOWLEDGE, HANDLER + 0x100 * VECTOR)
    m.select(BOTH | EDGE | INSTRUCTIONS, OS | EN | EDGE | INSTRUCTIONS, USR | EN | EDGE | INSTRUCTIONS)
    finish_say(m)
    assert m.counts(3) == [3, 3, 0] and m.state.gpr[3] == 0


def test_an_overflow_by_the_end_of_a_halt(m: Counted) -> None:
    """It does not end the halt: the interrupt is there once something else has."""
    m.measure(HALTS)
    m.load("n: " + ACKNOWLEDGE, HANDLER + 0x100 * VECTOR)
    m.select(BOTH | EDGE | INT | INSTRUCTIONS)
    m.vcpu.lapic.mmio_write(apicdef.APIC_LVTPC, 4, apicdef.DM_NMI << 8)
    m.vcpu.set_msrs({PMC0: LIMIT - 2, DEBUGCTL: FREEZE})
    assert m.events() == [(NMI, m.labels["n"])] and m.said == [1, 9, 1, 9, 1, 9]


def finish_say(m: Counted) -> None:
    while True:
        exit = m.vcpu.run()
        assert isinstance(exit, IoExit)
        if exit.port == DONE:
            return
        assert exit.port == SAY
        m.on_say(exit.data or 0)


RDPMC = "mov ecx, {}\nrdpmc\nshl rdx, 32\nor rax, rdx\nmov [0x20000], rax\nout DONE, al"


def test_rdpmc(m: Counted) -> None:
    """A counter that runs says what has retired before the RDPMC."""
    m.begin(on(0xFF) + "nop\nnop\n" + RDPMC.format(0))
    m.select(BOTH | INSTRUCTIONS)
    m.vcpu.set_msrs({PMC0: 0x1234_0000_0000})
    finish(m)
    assert m.read(0x20000, 8) == 0x1234_0000_0004


@pytest.mark.parametrize(("cpl", "pce", "number", "fine"), [
    (0, False, 0, True), (3, False, 0, False), (3, True, 0, True), (3, True, 7, True), (3, True, 8, False),
    (0, False, 1 << 30, True), (0, False, 1 << 30 | 3, False), (0, False, 1 << 31, False), (0, False, 64, False)])
def test_who_may_rdpmc_what(m: Counted, cpl: int, pce: bool, number: int, fine: bool) -> None:
    if cpl:
        user(m, f"mov ecx, {number}\nrdpmc", counters="")
    else:
        m.begin(f"mov ecx, {number}\nrdpmc\nout DONE, al")
    m.code(13, "mov byte [0x20000], 13\nout DONE, al")
    m.state.cr4 |= CR4_PCE if pce else 0
    m.refresh()
    finish(m)
    assert m.read(0x20000, 1) == (0 if fine else 13)


def test_without_a_unit_rdpmc_faults(m: Counted) -> None:
    leaves = cpuid_leaves(resolve("qemu64").model, 0, CpuTopology())
    m.vcpu.set_cpuid([CpuidEntry(e.function, e.index, e.eax, e.ebx, e.ecx, e.edx) for e in leaves])
    m.begin("xor ecx, ecx\nrdpmc\nout DONE, al")
    m.code(13, "mov byte [0x20000], 13\nout DONE, al")
    finish(m)
    assert m.read(0x20000, 1) == 13


def test_nothing_is_counted_when_no_counter_is_on(m: Counted) -> None:
    m.begin("mov ebx, 10\na: dec ebx\njnz a\nout DONE, al")
    m.select(BOTH | INSTRUCTIONS)
    finish(m)
    assert m.counts(1) == [0] and not m.state.counted and not m.vcpu.measured


def test_someone_looks_on(m: Counted) -> None:
    """Looking on (-d) makes no difference."""
    source, instructions, branches = PROGRAMS[4]
    m.measure(source)
    m.select(BOTH | INSTRUCTIONS, BOTH | BRANCHES)
    m.vcpu.set_log(OnLooker(blocks=True))
    finish(m)
    assert m.counts(2) == [instructions + AROUND, branches]


def test_branch_trace_by_single_step(m: Counted) -> None:
    """With BTF only a branch that is taken traps; the handler sets it again, since #DB cleared it."""
    m.begin("push 0x102\npopfq\nnop\njz x\na: jmp c\nx: nop\nc: xor ebx, ebx\njz d\nnop\nd: nop\n"
            "call e\ne: loop e\nf: and dword [rsp], 0\npush 2\npopfq\ng: nop\nout DONE, al")
    m.code(1, "push rax\npush rcx\npush rdx\nmov eax, [rsp + 24]\nout LOG, eax\nxor edx, edx\n"
              f"mov ecx, {DEBUGCTL}\nrdmsr\nout LOG, eax\nmov eax, 2\nwrmsr\npop rdx\npop rcx\npop rax\niretq")
    m.vcpu.set_msrs({DEBUGCTL: 2})
    m.state.gpr[1] = 3
    seen = [(ip, left) for ip, left in m.events()]
    # CALL to the next instruction is taken; LOOP twice; the last time it falls through.
    assert seen == [(m.labels[x], 0) for x in "cdeee"]


@pytest.mark.parametrize(("flags", "at"), [(0x142, "a"), (0x102, "b")])
def test_branch_trace_of_a_jump_to_the_next_instruction(m: Counted, flags: int, at: str) -> None:
    """It is taken where its condition holds."""
    m.begin(f"push {flags}\npopfq\njz a\na: jnz b\nb: nop\nout DONE, al")
    m.code(1, "push rax\nmov eax, [rsp + 8]\nout LOG, eax\nout LOG, eax\npop rax\nand dword [rsp + 16], -257\niretq")
    m.vcpu.set_msrs({DEBUGCTL: 2})
    assert [ip for ip, _ in m.events()] == [m.labels[at]]
