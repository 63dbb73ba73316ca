"""Single-stepping, and the debug registers (SDM vol. 3, chapter 17)."""

import pytest
from pellucid.cpu.state import CR4_DE, CS, DR6_FIXED, EXIT_HLT, RFLAGS_RF, RFLAGS_TF

from .machine import CODE, CODE64, DATA, DATA0, DEVICE, STACK0, USER64, USER_DATA, Machine

B0, B1, B2, B3, BD, BS = 1, 2, 4, 8, 0x2000, 0x4000
EXECUTE, WRITES, PORT, ACCESSES = 0, 1, 2, 3
TRAP_LOG = 0x11000


def stepping(source: str, mode: str = "long", cpl: int = 0) -> Machine:
    """A machine with TF set whose #DB handler logs RIP and DR6, clears DR6, and returns."""
    m = Machine()
    m.labels |= {
        "CODE64": CODE64,
        "DATA0": DATA0,
        "DATA": DATA,
        "USER64": USER64,
        "USER_DATA": USER_DATA,
        "DEVICE": DEVICE,
    }
    if mode == "long":
        m.long(source, cpl=cpl)
        log(m)
    elif mode == "protected":
        m.protected(source, cpl=cpl)
        m.gate(1, offset=TRAP_LOG)
        m.load(
            "push eax\nmov eax, [esp + 4]\nout 0x80, eax\nmov eax, dr6\n"
            "out 0x84, eax\nxor eax, eax\nmov dr6, eax\npop eax\niretd",
            TRAP_LOG,
            32,
        )
    else:
        m.real(source)
        m.write(4, TRAP_LOG - 0x10000 | 0x1000_0000, 4)
        m.load(
            "push eax\npush bp\nmov bp, sp\nxor eax, eax\n"
            "mov ax, [bp + 6]\nout 0x80, eax\nmov eax, dr6\nout 0x84, eax\n"
            "xor eax, eax\nmov dr6, eax\npop bp\npop eax\niretw",
            TRAP_LOG,
            16,
        )
    m.rflags = m.rflags | RFLAGS_TF
    return m


def log(m: Machine) -> None:
    m.gate(1, offset=TRAP_LOG)
    m.load(
        "push rax\nmov rax, [rsp + 8]\nout 0x80, eax\nmov rax, dr6\n"
        "out 0x84, eax\nxor eax, eax\nmov dr6, rax\npop rax\niretq",
        TRAP_LOG,
    )


def traps(m: Machine, until: int = EXIT_HLT) -> list[tuple[int, int]]:
    """Run; (RIP, DR6 without its fixed bits) of every #DB."""
    stop = m.run()
    assert stop.reason == until, m.explain(stop)
    values = [value for how, _, _, value in m.trace if how == "out"]
    return [(ip, dr6 & ~DR6_FIXED) for ip, dr6 in zip(values[::2], values[1::2])]


@pytest.mark.parametrize("mode", ["long", "protected", "real"])
def test_every_instruction(mode: str) -> None:
    m = stepping("nop\na: mov ecx, 2\nb: dec cx\nc: jnz b\nd: nop\ne: ud2", mode)
    assert [ip for ip, dr6 in traps(m) if dr6 == BS] == [m.labels[x] for x in "abcbcde"]


def test_repeated_strings_trap_between_iterations() -> None:
    """Behind each element; RIP stays, and RF is set in the pushed flags until the last."""
    m = stepping("mov ecx, 3\nmov edi, DATA\na: rep stosb\nb: hlt")
    m.gate(1)
    seen = []
    m.state.rip = CODE
    while True:
        stop = m.run()
        if stop.vector is None:
            break
        ip, _, flags, sp, _ = m.stack(5, 8)
        seen.append((ip, flags & RFLAGS_RF, m.state.gpr[1]))
        resume(m, ip, flags & ~RFLAGS_RF, sp)
        if ip == m.labels["b"]:
            break
    a, b = m.labels["a"], m.labels["b"]
    assert seen[2:] == [(a, RFLAGS_RF, 2), (a, RFLAGS_RF, 1), (b, 0, 0)]


def resume(m: Machine, ip: int, flags: int, sp: int) -> None:
    """What IRET would do, from here."""
    m.state.rip, m.state.gpr[4] = ip, sp
    m.rflags = flags


def test_popf_and_iret() -> None:
    """An instruction that sets TF is not followed by a trap; the one after it is. One that clears it still is."""
    m = stepping(
        "pushfq\nand qword [rsp], -0x101\na: popfq\nb: nop\nc: pushfq\nor qword [rsp], 0x100\nd: popfq\ne: nop\nf: ud2"
    )
    got = [ip for ip, _ in traps(m)]
    label = m.labels
    assert got == [CODE + 1, label["a"], label["b"], label["f"]]
    m = stepping(
        "push DATA0\npush STACK\npush 0x102\npush CODE64\npush a\nhere: iretq\na: nop\nb: ud2".replace(
            "STACK", str(STACK0)
        )
    )
    m.rflags = 2
    assert [ip for ip, _ in traps(m)] == [m.labels["b"]]


def test_int_clears_tf() -> None:
    """No trap behind INT n in the handler; behind its IRET the stepping goes on."""
    m = stepping("int 0x40\na: nop\nb: ud2")
    m.gate(0x40, offset=0x12000)
    m.load("nop\nnop\niretq", 0x12000)
    assert [ip for ip, _ in traps(m)] == [m.labels["b"]]


def test_faults_come_before_the_trap() -> None:
    m = stepping("nop\nfault: ud2")
    m.gate(13, offset=0x12000)
    m.load("pop rax\nmov rax, [rsp + 16]\nadd qword [rsp], 2\niretq", 0x12000)
    m.load("nop\nfault: mov ds, ebx\na: nop\nb: ud2", CODE)
    m.state.gpr[3] = 0xFFF8
    got = [ip for ip, _ in traps(m)]
    assert got == [m.labels["fault"], m.labels["b"]], "the handler began with TF clear, and returned with it set"
    assert m.state.gpr[0] & (RFLAGS_TF | RFLAGS_RF) == RFLAGS_TF | RFLAGS_RF


def test_mov_ss_holds_the_trap() -> None:
    m = stepping("mov eax, DATA0\na: mov ss, eax\nb: nop\nc: push rax\nd: ud2")
    assert [ip for ip, _ in traps(m)] == [m.labels[x] for x in "acd"]
    m = stepping("push 0x10\npop ss\nb: nop\nc: ud2", "protected")
    assert [ip for ip, _ in traps(m)] == [CODE + 2, m.labels["c"]]
    m = stepping("lss esp, [pointer]\nb: nop\nc: ud2\npointer: dd 0x7000\ndw 0x10", "protected")
    assert [ip for ip, _ in traps(m)] == [m.labels["b"], m.labels["c"]], "LSS holds nothing"


def test_hlt_is_followed_by_the_trap() -> None:
    """A trap that waits wakes the processor before it sleeps."""
    m = stepping("hlt\na: nop\nb: ud2")
    m.gate(6)
    assert [ip for ip, _ in traps(m)] == [m.labels["a"], m.labels["b"]] and m.caught == 6


def test_step_over_device_accesses() -> None:
    """An instruction that leaves for a device traps once, when it is done."""
    m = stepping("mov ebx, DEVICE\na: add dword [rbx], 1\nb: in al, dx\nc: nop\nd: ud2")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.device = lambda address, size: 41
    m.state.gpr[2] = 0x60
    assert [ip for ip, _ in traps(m)] == [m.labels[x] for x in "abcd"]
    assert ("write", DEVICE, 4, 42) in m.trace and [e for e in m.trace if e[0] == "in"] == [("in", 0x60, 1, 41)]


def test_step_at_cpl_3() -> None:
    m = stepping("nop\na: nop\nint 0x30", cpl=3)
    m.gate(1)
    assert m.catch() == 1
    assert m.stack(3, 8)[:2] == [m.labels["a"], USER64] and m.stack(3, 8)[2] & RFLAGS_TF
    assert not m.rflags & RFLAGS_TF


def test_icebp_and_dr6() -> None:
    m = stepping("int1\na: hlt")
    m.rflags = 2
    assert traps(m) == [(m.labels["a"], 0)]


# --- debug registers ----------------------------------------------------------------------------------------------


def breakpoint_(n: int, kind: int, size: int = 1) -> int:
    """DR7's bits for breakpoint n, enabled locally."""
    return 1 << 2 * n | kind << 16 + 4 * n | {1: 0, 2: 1, 4: 3, 8: 2}[size] << 18 + 4 * n


def watched(source: str, *points: tuple[int, int, int], mode: str = "long", cr4: int = 0, dr7: int = 0) -> Machine:
    """A machine with breakpoints (address, kind, size) in DR0 and on. Addresses may be labels' names."""
    m = stepping(source, mode)
    m.rflags = 2
    s = m.state
    s.cr4 |= cr4
    for n, (address, kind, size) in enumerate(points):
        s.dr[n] = address
        dr7 |= breakpoint_(n, kind, size)
    s.dr[7] = dr7 | 0x400
    m.refresh()
    return m


def at_label(m: Machine, n: int, label: str) -> Machine:
    m.state.dr[n] = m.labels[label]
    m.refresh()
    return m


@pytest.mark.parametrize("mode", ["long", "protected", "real"])
def test_instruction_breakpoint(mode: str) -> None:
    """A fault in front of the instruction, with RF clear in the pushed flags; RF set by IRET lets it execute."""
    m = watched("nop\na: inc ebx\nb: hlt", (0, EXECUTE, 1), mode=mode)
    at_label(m, 0, "a")
    m.gate(1) if mode != "real" else m.write(4, 0xF001, 4)
    assert m.catch() == 1
    size = {"long": 8, "protected": 4, "real": 2}[mode]
    frame = m.stack(3, size)
    assert frame[0] == m.labels["a"] and m.state.gpr[3] == 0 and m.state.dr[6] & 0xF == B0
    assert not frame[2] & RFLAGS_RF
    resume(m, frame[0], frame[2] | RFLAGS_RF, m.state.gpr[4] + 3 * size)
    assert m.run().vector is None and m.state.gpr[3] == 1


@pytest.mark.parametrize("beyond", ["limit", "page"])
def test_breakpoint_comes_before_faults_of_the_fetch(beyond: str) -> None:
    """SDM vol. 3, table 6-2: a code breakpoint has priority over the code segment's limit and page faults."""
    m = watched("nop", (CODE + 1, EXECUTE, 1), mode="protected" if beyond == "limit" else "long")
    m.gate(1)
    if beyond == "limit":
        m.state.seg_limit[CS] = CODE
    else:
        target = 0x7000_0000
        m.load(f"mov eax, {target}\njmp rax")
        m.state.dr[0] = target
    m.refresh()
    m.state.trap_exceptions = 1
    m.run()
    assert (m.state.exc_vector, m.state.dr[6] & 0xF) == (1, B0)


def test_breakpoint_comes_back() -> None:
    """In a loop it is met each time; code that was translated before the breakpoint was set is no way round it."""
    m = watched("mov ecx, 4\na: nop\nb: dec ecx\njnz a\nhlt")
    assert m.run().vector is None
    m.state.rip, m.state.dr[0], m.state.dr[7] = CODE, m.labels["b"], 1 | 0x400
    m.refresh()
    m.load("push rax\nmov rax, dr6\nout 0x84, eax\nor qword [rsp + 24], 0x10000\npop rax\niretq", TRAP_LOG)
    assert m.run().vector is None
    assert [value & 0xF for how, _, _, value in m.trace if how == "out"] == [B0] * 4


def test_set_by_the_guest() -> None:
    m = watched("mov rax, a\nmov dr0, rax\nmov eax, 1\nmov dr7, rax\nnop\na: nop\nhlt")
    m.gate(1)
    assert m.catch() == 1 and m.stack(1, 8) == [m.labels["a"]]
    assert m.state.dr[7] == 0x401 and m.state.watch_code == 1


def test_page_crossing_instruction_breakpoint() -> None:
    m = watched("jmp 0x11FFE - 0x11000 + 0x11000")
    m.load("mov eax, 0x12345678\nhlt", 0x12FFE)
    m.load("jmp 0x12FFE", CODE)
    m.state.dr[0], m.state.dr[7] = 0x12FFE, 0x401
    m.gate(1)
    m.refresh()
    assert m.catch() == 1 and m.stack(1, 8) == [0x12FFE]


DATA_POINTS = [
    # access, breakpoint (offset in DATA, kind, size), hit
    ("mov [rbx], al", (0, WRITES, 1), True),
    ("mov al, [rbx]", (0, WRITES, 1), False),
    ("mov al, [rbx]", (0, ACCESSES, 1), True),
    ("mov [rbx], eax", (3, WRITES, 1), True),
    ("mov [rbx], eax", (4, WRITES, 1), False),
    ("mov [rbx + 7], al", (0, WRITES, 8), True),
    ("mov [rbx + 8], al", (0, WRITES, 8), False),
    ("mov [rbx + 3], al", (2, WRITES, 2), True),
    ("mov [rbx + 1], al", (2, WRITES, 2), False),
    ("add [rbx], eax", (0, WRITES, 4), True),
    ("lock inc dword [rbx]", (0, WRITES, 4), True),
    ("xchg [rbx], eax", (0, ACCESSES, 4), True),
    ("movups [rbx], xmm0", (12, WRITES, 4), True),
    ("movups xmm0, [rbx]", (12, ACCESSES, 4), True),
    ("push qword [rbx]", (4, ACCESSES, 4), True),
    ("lea rax, [rbx]", (0, ACCESSES, 4), False),
    ("cmp dword [rbx], 5", (0, ACCESSES, 1), True),
    ("mov [rbx - 4], rax", (0, WRITES, 1), True),
]


@pytest.mark.parametrize(("source", "point", "hit"), DATA_POINTS)
def test_data_breakpoints(source: str, point: tuple[int, int, int], hit: bool) -> None:
    """A trap behind the instruction, which is done."""
    m = watched(f"mov ebx, DATA + 0x40\nnop\n{source}\nb: nop\nhlt", (DATA + 0x40 + point[0], *point[1:]))
    m.state.gpr[0] = 0x77
    assert traps(m) == ([(m.labels["b"], B0)] if hit else [])
    if hit and source.startswith("mov [rbx], eax"):
        assert m.read(DATA + 0x40, 4) == 0x77


def test_stack_breakpoints() -> None:
    m = watched("push rax\na: pop rcx\nb: call c\nnop\nc: hlt", (STACK0 - 8, WRITES, 8))
    assert traps(m) == [(m.labels["a"], B0), (m.labels["c"], B0)]


def test_two_breakpoints_at_once() -> None:
    m = watched(
        "mov ebx, DATA\nmov [rbx], rax\na: hlt", (DATA, WRITES, 1), (DATA + 7, ACCESSES, 1), (DATA + 8, WRITES, 1)
    )
    assert traps(m) == [(m.labels["a"], B0 | B1)]


def test_data_breakpoint_and_single_step() -> None:
    m = watched("mov ebx, DATA\na: mov [rbx], rax\nb: ud2", (DATA, WRITES, 1))
    m.rflags = RFLAGS_TF | 2
    assert traps(m) == [(m.labels["a"], BS), (m.labels["b"], BS | B0)]


def test_string_instruction_stops_at_the_element() -> None:
    m = watched("mov edi, DATA\nmov ecx, 8\na: rep stosd\nb: hlt", (DATA + 12, WRITES, 4))
    m.gate(1)
    assert m.catch() == 1
    assert m.stack(3, 8)[0] == m.labels["a"] and m.state.gpr[1] == 4 and m.stack(3, 8)[2] & RFLAGS_RF
    m = watched("mov esi, DATA\nmov ecx, 8\na: rep lodsd\nb: hlt", (DATA + 28, ACCESSES, 4))
    assert traps(m) == [(m.labels["b"], B0)]


def test_mov_ss_holds_data_breakpoints() -> None:
    m = watched("mov ebx, DATA\nmov ss, [rbx]\na: nop\nb: hlt", (DATA, ACCESSES, 2))
    m.write(DATA, DATA0, 2)
    assert traps(m) == [(m.labels["b"], B0)]


def test_int1_behind_mov_ss() -> None:
    """INT1 raises the one #DB; what MOV SS held back does not follow it. INT 1 is another event: the trap follows."""
    source = "mov ebx, DATA\nmov ss, [rbx]\n{}\na: hlt"
    m = watched(source.format("int1"), (DATA, ACCESSES, 2))
    m.write(DATA, DATA0, 2)
    assert traps(m) == [(m.labels["a"], 0)] and m.state.db_pending == 0
    m = watched(source.format("int 1"), (DATA, ACCESSES, 2))
    m.write(DATA, DATA0, 2)
    handler, a = TRAP_LOG, m.labels["a"]
    assert traps(m) == [(handler, 1), (a, 0)], "in front of the handler's first instruction"


def test_fault_forgets_the_hit() -> None:
    """An instruction that touches a breakpoint and then faults reports the fault alone."""
    m = watched("mov ebx, DATA\nmov edx, 0x500000\na: push qword [rdx]\nhlt", (DATA, ACCESSES, 8))
    m.load("mov ebx, DATA\nmov esp, 0x500000\na: push qword [rbx]\nhlt".replace("DATA", str(DATA)), CODE)
    m.gate(14, ist=1)
    assert m.catch() == 14 and m.state.db_pending == 0 and m.state.dr[6] & 0xF == 0


def test_breakpoint_behind_a_device_access() -> None:
    m = watched("mov ebx, DEVICE\nmov al, [rbx]\na: hlt", (DEVICE, ACCESSES, 1))
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE)
    m.device = lambda address, size: 9
    assert traps(m) == [(m.labels["a"], B0)] and m.state.gpr[0] & 0xFF == 9


def test_port_breakpoints() -> None:
    """I/O breakpoints need CR4.DE."""
    for de in (True, False):
        m = watched(
            "mov al, 1\nout 0x21, al\na: in al, 0x20\nb: in ax, 0x20\nc: hlt", (0x21, PORT, 1), cr4=CR4_DE if de else 0
        )
        m.gate(1)
        stop = m.run()
        assert (stop.vector == 1) == de
        if de:
            assert m.stack(1, 8) == [m.labels["a"]] and m.trace == [("out", 0x21, 1, 1)]
            resume(m, m.labels["a"], 2, STACK0)
            assert m.catch() == 1 and m.stack(1, 8) == [m.labels["c"]]


def test_general_detect() -> None:
    """DR7.GD: the next access to a debug register is #DB in front of it; GD goes off for the handler."""
    m = watched("mov eax, 0x2000\nmov dr7, rax\nnop\na: mov rcx, dr0\nhlt")
    m.gate(1)
    assert m.catch() == 1
    ip, _, flags, *_ = m.stack(5, 8)
    assert ip == m.labels["a"] and flags & RFLAGS_RF and m.state.dr[6] & ~DR6_FIXED == BD and not m.state.dr[7] & 0x2000


def test_dr6_keeps_what_software_left() -> None:
    """A #DB replaces the breakpoint bits and adds the others."""
    m = watched("mov ebx, DATA\nmov [rbx], al\nhlt", (0, EXECUTE, 1), (DATA, WRITES, 1))
    m.state.dr[6] = DR6_FIXED | BS | B2
    m.gate(1)
    assert m.catch() == 1 and m.state.dr[6] == DR6_FIXED | BS | B1


def test_debug_register_access() -> None:
    for source, vector in (("mov rax, dr4", None), ("mov dr5, rax", None), ("mov rax, dr8", 6)):
        m = Machine()
        m.long(("db 0x44, 0x0F, 0x21, 0xC0" if "dr8" in source else source) + "\nhlt")
        assert m.run().vector == vector, source
    m = Machine()
    m.long("mov rax, dr4", cr4=CR4_DE)
    assert m.catch() == 6
    m = Machine()
    m.long("mov rax, dr0", cpl=3)
    assert m.catch() == 13 and m.stack(1, 8) == [0]
    m = Machine()
    m.long("mov rax, 0x100000000\nmov dr7, rax")
    assert m.catch() == 13
    m = Machine()
    m.long("mov eax, 0xFFFFFFFF\nmov dr6, rax\nmov dr7, rcx\nmov rbx, dr6\nmov rcx, dr7\nhlt")
    m.run()
    assert (m.state.gpr[3], m.state.gpr[1]) == (0xFFFF_EFFF, 0x400)


def test_breakpoints_cost_nothing_elsewhere() -> None:
    """Pages without a breakpoint stay in the TLB, and their code in blocks."""
    m = watched("mov ecx, 100000\na: mov [rbx], rcx\ndec ecx\njnz a\nhlt", (DATA, WRITES, 1))
    m.state.gpr[3] = DATA + 0x1000
    m.run()
    assert m.state.count_walks < 100 and m.state.count_translated < 10


def test_delivery_onto_a_watched_stack() -> None:
    """A breakpoint that the pushes of an event touch is reported when the event has been delivered."""
    m = watched("int 0x40\na: hlt", (STACK0 - 8, WRITES, 8))
    m.gate(0x40, offset=0x12000)
    m.load("nop\niretq", 0x12000)
    assert traps(m) == [(0x12000, B0)]
