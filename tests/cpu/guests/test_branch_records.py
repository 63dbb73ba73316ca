"""Last-branch records: what is recorded, however it is executed (SDM vol. 3, 17.4 to 17.10)."""

from __future__ import annotations

import random

import iced_x86 as iced
import pytest

from pellucid.cpu.lbr import (
    INFO_ABORT,
    INFO_CYCLES,
    INFO_IN_TX,
    SELECT_CPL_EQ_0,
    SELECT_CPL_NEQ_0,
    SELECT_EN_CALLSTACK,
    SELECT_FAR_BRANCH,
    SELECT_JCC,
    SELECT_NEAR_IND_CALL,
    SELECT_NEAR_IND_JMP,
    SELECT_NEAR_REL_CALL,
    SELECT_NEAR_REL_JMP,
    SELECT_NEAR_RET,
)
from pellucid.cpu.state import (
    DEBUGCTL_LBR,
    EXIT_BUDGET,
    EXIT_HLT,
    MODE_LBR,
    RFLAGS_IF,
)
from tests.engine.code import compile_block
from tests.onlooker import OnLooker

from .machine import CODE, CODE64, DATA, HANDLERS, STACK3, USER64, USER_DATA, Machine

JCC, CALL, IND_CALL, RET, IND_JMP, JMP, FAR = (
    SELECT_JCC, SELECT_NEAR_REL_CALL, SELECT_NEAR_IND_CALL, SELECT_NEAR_RET, SELECT_NEAR_IND_JMP,
    SELECT_NEAR_REL_JMP, SELECT_FAR_BRANCH)
RETURN = HANDLERS + 0x800
WAYS = ("blocks", "regions", "counted", "three at a time", "looked on")


def start(m: Machine, depth: int = 32, select: int = 0, linear: bool = False) -> None:
    """Record from here on, into an empty stack whose first record will be entry 0."""
    s = m.state
    s.lbr_depth, s.lbr_select, s.lbr_tos, s.lbr_linear = depth, select, depth - 1, int(linear)
    for n in range(32):
        s.lbr_from[n] = s.lbr_to[n] = s.lbr_info[n] = 0
    s.debugctl |= DEBUGCTL_LBR
    m.processor.refresh_mode()


def execute(m: Machine, way: str = "blocks") -> None:
    """Run to a HLT."""
    if way == "looked on":
        m.processor.observe(OnLooker(blocks=True))
    if way not in ("counted", "three at a time"):
        assert m.run().reason == EXIT_HLT
        return
    m.processor.count_instructions(True)
    while True:
        m.processor.grant(3 if way == "three at a time" else 1 << 40)
        reason = m.run().reason
        if reason != EXIT_BUDGET:
            assert reason == EXIT_HLT
            return


def records(m: Machine) -> list[tuple[int, int]]:
    """From where to where, since `start`, of a stack that has not been filled."""
    s = m.state
    count = (s.lbr_tos + 1) % s.lbr_depth
    assert not any(s.lbr_to[n] for n in range(count, s.lbr_depth))
    return [(s.lbr_from[n], s.lbr_to[n]) for n in range(count)]


def named(m: Machine, pairs: list[tuple[str, str]]) -> list[tuple[int, int]]:
    return [(m.labels[a], m.labels[b]) for a, b in pairs]


def handler(m: Machine, vector: int, source: str = "iretq", **gate: int) -> int:
    """Where this handler of a vector stands."""
    at = RETURN + 0x40 * (vector & 15)
    m.load(source, at)
    m.gate(vector, offset=at, **gate)
    return at


EVERY_KIND = """
    xor eax, eax
a:  jz b
    nop
b:  jnz b2
b2: jz c
c:  jmp d
    nop
d:  call f
e:  mov ecx, 2
g:  loop g
h:  jrcxz i
    nop
i:  lea rdi, [k]
j:  jmp rdi
    nop
k:  lea rdi, [n]
l:  call rdi
o:  call p
p:  pop rdx
q:  int 0x60
r:  push CODE64
    lea rdi, [v]
    push rdi
u:  retfq
v:  lea rdi, [x]
    push rdi
w:  ret 8
x:  hlt
f:  ret
n:  cmp eax, 1
y:  jb z
    ud2
z:  ret
"""
RECORDED = [("a", "b", JCC), ("b2", "c", JCC), ("c", "d", JMP), ("d", "f", CALL), ("f", "e", RET), ("g", "g", JCC),
            ("h", "i", JCC), ("j", "k", IND_JMP), ("l", "n", IND_CALL), ("y", "z", JCC), ("z", "o", RET),
            ("o", "p", CALL), ("q", "int", FAR), ("int", "r", FAR), ("u", "v", FAR), ("w", "x", RET)]


def every_kind(select: int = 0, way: str = "blocks") -> Machine:
    """EVERY_KIND is about to run, has run before where `way` compiles it."""
    m = Machine()
    m.labels["CODE64"] = CODE64
    m.long(EVERY_KIND)
    m.labels["int"] = handler(m, 0x60)
    start(m, select=select)
    if way == "regions":
        entry = (m.state.rip, m.state.gpr[4])
        execute(m)
        for label in ("CODE", "e", "g", "v", "n", "f"):
            m.state.rip = m.labels.get(label, CODE)
            compile_block(m.processor, m.processor.current_block())
        m.state.rip, m.state.gpr[4] = entry
        start(m, select=select)
    return m


@pytest.mark.parametrize("way", WAYS)
def test_every_branch_that_is_taken(way: str) -> None:
    """A conditional jump to the next instruction, too, where its condition holds."""
    m = every_kind(way=way)
    execute(m, way)
    assert records(m) == named(m, [(a, b) for a, b, _ in RECORDED])
    assert list(m.state.lbr_info)[:4] == [0] * 4 or way in ("counted", "three at a time")


@pytest.mark.parametrize("kind", [1 << n for n in range(2, 9)])
def test_filters_by_kind(kind: int) -> None:
    m = every_kind(select=kind)
    execute(m)
    assert records(m) == named(m, [(a, b) for a, b, its in RECORDED if its != kind])
    m = every_kind(select=0x1FC & ~kind)
    execute(m)
    assert records(m) == named(m, [(a, b) for a, b, its in RECORDED if its == kind])


def test_nothing_is_recorded_unless_asked_for() -> None:
    for debugctl, depth in ((0, 32), (DEBUGCTL_LBR, 0)):
        m = every_kind()
        m.state.debugctl, m.state.lbr_depth = debugctl, depth
        m.processor.refresh_mode()
        assert not m.state.mode & MODE_LBR
        execute(m)
        assert not any(m.state.lbr_to)


def test_the_stack_goes_round() -> None:
    m = Machine()
    m.long("mov ecx, 21\na: loop a\nb: jmp c\nc: hlt")
    start(m, depth=16)
    execute(m)
    s = m.state
    assert s.lbr_tos == 20 % 16
    assert (s.lbr_from[4], s.lbr_to[4]) == (m.labels["b"], m.labels["c"])
    assert all(s.lbr_from[n] == s.lbr_to[n] == m.labels["a"] for n in range(16) if n != 4)
    assert not any(s.lbr_from[n] for n in range(16, 32))


# --- events and levels ---------------------------------------------------------------------------------


def test_exceptions_and_what_was_before_them() -> None:
    """A fault comes from its instruction, a trap from the one that made it; their return leads where it leads."""
    m = Machine()
    m.long("a: jmp b\nnop\nb: ud2\nc: mov eax, [0x200000]\nd: int3\ne: hlt")
    at = [handler(m, vector, source) for vector, source in
          ((6, "add qword [rsp], 2\nf: iretq"), (14, "add rsp, 8\nadd qword [rsp], 6\nh: iretq"), (3, "iretq"))]
    start(m)
    execute(m)
    n = m.labels
    assert records(m) == [(n["a"], n["b"]), (n["b"], at[0]), (n["f"], n["c"]), (n["c"], at[1]), (n["h"], n["d"]),
                          (n["d"], at[2]), (at[2], n["e"])]
    assert (m.state.ler_from, m.state.ler_to) == (n["h"], n["d"]), "the last branch before the last exception"


def test_an_interrupt() -> None:
    m = Machine()
    m.long("nop\na: hlt")
    start(m)
    at = handler(m, 0x51, "iretq")
    assert m.interrupt(0x51)
    execute(m)
    assert records(m) == [(CODE, at), (at, CODE)]


def test_an_nmi_that_native_code_takes() -> None:
    m = Machine()
    m.long("nop\na: jmp b\nb: hlt")
    start(m)
    at = handler(m, 2)
    m.processor.send_nmi()
    execute(m)
    assert records(m) == [(CODE, at), (at, CODE), (m.labels["a"], m.labels["b"])]


def test_debug_exceptions_end_the_recording_and_are_not_recorded() -> None:
    m = Machine()
    m.long("a: jmp b\nb: push 0x102\npopfq\nc: nop\nd: jmp e\ne: hlt")
    handler(m, 1, "and dword [rsp + 16], -257\niretq")
    start(m)
    execute(m)
    assert records(m) == named(m, [("a", "b")])
    assert not m.state.debugctl & DEBUGCTL_LBR and not m.state.mode & MODE_LBR
    assert m.state.ler_to == 0, "nor do they change the last-exception record"
    m.long("a: jmp b\nb: int 1\nc: hlt")  # not one of them
    at = handler(m, 1, "iretq")
    start(m)
    execute(m)
    assert records(m) == [(m.labels["a"], m.labels["b"]), (m.labels["b"], at), (at, m.labels["c"])]


LEVELS = f"""
    push {USER_DATA}
    push {STACK3}
    push {2 | RFLAGS_IF}
    push {USER64}
    lea rax, [u]
    push rax
a:  iretq
u:  jmp v
v:  syscall
w:  int 0x61
"""
LEVEL_RECORDS = [("a", "u", 3), ("u", "v", 3), ("v", "s", 0), ("t", "w", 3), ("w", "end", 0)]


@pytest.mark.parametrize(("select", "levels"), [(0, (0, 3)), (SELECT_CPL_EQ_0, (3,)), (SELECT_CPL_NEQ_0, (0,)),
                                                (SELECT_CPL_EQ_0 | SELECT_CPL_NEQ_0, ())])
def test_filters_by_the_level_that_a_branch_leads_to(select: int, levels: tuple[int, ...]) -> None:
    m = Machine()
    m.long(LEVELS)
    m.state.lstar = RETURN + 0x200
    m.load("s: nop\nt: sysretq", RETURN + 0x200)
    m.labels["end"] = handler(m, 0x61, "hlt", dpl=3)
    start(m, select=select)
    execute(m)
    assert records(m) == named(m, [(a, b) for a, b, level in LEVEL_RECORDS if level in levels])


# --- call stack ------------------------------------------------------------------------------------------

CALLS = """
a:  call f
b:  call g
    hlt
f:  call h
i:  call h
j:  ret
h:  call k
k:  pop rdx
    ret
g:  lea rdi, [l]
n:  call rdi
    ud2
l:  call stop
    ud2
stop: cmp ecx, ecx
    jz p
    nop
p:  hlt
"""
STACK_MODE = SELECT_EN_CALLSTACK | JCC | IND_JMP | JMP | FAR


@pytest.mark.parametrize("way", ["blocks", "three at a time"])
def test_a_call_stack(way: str) -> None:
    """A return takes the call that it ends away. A call to the next instruction is none."""
    m = Machine()
    m.long(CALLS)
    start(m, select=STACK_MODE)
    execute(m, way)
    assert records(m) == named(m, [("b", "g"), ("n", "l"), ("l", "stop")])


def test_returns_from_an_empty_call_stack() -> None:
    m = Machine()
    m.long("lea rdi, [b]\npush rdi\na: ret\nb: call c\nc: call d\nud2\nd: hlt")
    start(m, select=STACK_MODE)
    execute(m)
    assert records(m) == named(m, [("c", "d")])


# --- modes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linear", [False, True])
def test_offsets_and_linear_addresses(linear: bool) -> None:
    """Outside 64-bit mode an offset is not an address, and has 32 bits."""
    m = Machine()
    m.real("a: jmp b\nnop\nb: jmp 0x1010:0xBF09\nc: jmp d\nd: hlt", cs=0x1000)
    start(m, linear=linear)
    execute(m)
    n = m.labels
    assert n["c"] == 0xC009, "the far jump leads to c, in a segment that begins 0x100 later"
    expected = [(n["a"], n["b"], 0, 0), (n["b"], 0xBF09, 0, 0x100), (0xBF09, n["d"] - 0x100, 0x100, 0x100)]
    assert records(m) == [(source + (0x10000 + first) * linear, to + (0x10000 + second) * linear)
                          for source, to, first, second in expected]


def test_compatibility_mode() -> None:
    m = Machine()
    m.long("a: jmp b\nnop\nb: call c\nd: hlt\nc: ret", compat=True)
    start(m)
    execute(m)
    assert records(m) == named(m, [("a", "b"), ("b", "c"), ("c", "d")])


def test_a_branch_that_faults_is_none() -> None:
    """A call whose push faults, a jump to what is no address: only the exception is recorded."""
    m = Machine()
    m.long("mov rdi, 0x800000000000\nb: jmp rdi\nc: mov rsp, 0x300000\ne: call f\nf: hlt")
    gp = handler(m, 13, "add rsp, 8\nadd qword [rsp], 2\ng: iretq")
    pf = handler(m, 14, "hlt", ist=1)
    start(m)
    execute(m)
    n = m.labels
    assert records(m) == [(n["b"], gp), (n["g"], n["c"]), (n["e"], pf)]


def test_code_that_changes_itself() -> None:
    """A call whose push hits its own block is executed again, alone; it is recorded once."""
    m = Machine()
    m.long("a: nop\nmov rsp, b + 8\nnop\nc: call d\nnop\nb: dq 0x9090909090909090\nd: hlt")
    start(m)
    execute(m)
    assert records(m) == named(m, [("c", "d")])


def test_transactions() -> None:
    """A record knows that it was made inside one; an abort is a branch to the fallback."""
    m = Machine()
    m.labels["DATA"] = DATA
    m.long("a: xbegin f\nb: jmp c\nc: mov [DATA], rax\nd: xabort 5\nf: jmp g\ng: hlt")
    start(m)
    execute(m)
    n = m.labels
    assert records(m) == [(n["b"], n["c"]), (n["d"], n["f"]), (n["f"], n["g"])]
    assert list(m.state.lbr_info)[:3] == [INFO_IN_TX, INFO_IN_TX | INFO_ABORT, 0]


def test_cycles() -> None:
    """Instructions since the last record, where they are counted; no more than fit."""
    m = Machine()
    m.long("nop\nnop\na: jmp b\nb: jmp c\nc: mov ecx, 70000\nd: loop d\ne: jmp f\nf: hlt")
    start(m, select=JCC)
    execute(m, "counted")
    assert [info & INFO_CYCLES for info in m.state.lbr_info][:3] == [3, 1, 0xFFFF]


# --- at random -------------------------------------------------------------------------------------------


def scattered(chance: random.Random) -> tuple[str, int]:
    """A program of branches that ends, and how many instructions it may take."""
    lines, blocks = ["mov ecx, 40", "mov ebx, 0x1234567"], 12
    for n in range(blocks):
        target, other = (f"l{chance.randrange(blocks)}" for _ in range(2))
        lines.append(f"l{n}: dec ecx\njz end\nror ebx, {chance.randrange(1, 31)}")
        lines.append(chance.choice((
            f"test ebx, {1 << chance.randrange(31)}\njnz {target}", f"jmp {target}", f"js {target}\njmp {other}",
            f"lea rdi, [{target}]\njmp rdi", f"call s{n}", f"lea rdi, [s{n}]\ncall rdi", f"jc t{n}\nt{n}: nop",
            f"push rcx\nmov ecx, 3\nu{n}: loop u{n}\npop rcx", f"int 0x60\njmp {target}")))
    lines.append("jmp l0\nend: hlt")
    lines += [f"s{n}: ret" for n in range(blocks)]
    return "\n".join(lines), 2000


def taken(m: Machine, most: int) -> list[tuple[int, int]]:
    """Every branch that a processor without records takes, seen one instruction at a time: by the flags, by the kind of
    the instruction, by where it leads.
    """
    conditions = {iced.ConditionCode.B: (1, 1), iced.ConditionCode.NE: (0x40, 0), iced.ConditionCode.E: (0x40, 0x40),
                  iced.ConditionCode.S: (0x80, 0x80)}
    found = []
    m.processor.count_instructions(True)
    for _ in range(most):
        rip, flags = m.state.rip, m.rflags
        instr = iced.Decoder(64, m.read_bytes(rip, 15), ip=rip).decode()
        m.processor.grant(1)
        reason = m.run().reason
        if reason == EXIT_HLT:
            return found
        assert reason == EXIT_BUDGET
        goes_on = m.state.rip == instr.next_ip
        if instr.is_jcc_short_or_near:
            bit, wanted = conditions[instr.condition_code]
            assert (flags & bit == wanted) == (m.state.rip == instr.near_branch_target) or goes_on
            goes_on = flags & bit != wanted
        if not goes_on or instr.is_jmp_short_or_near or instr.is_call_near or instr.is_jmp_near_indirect:
            found.append((rip, m.state.rip))
    raise AssertionError("it does not end")


@pytest.mark.parametrize("seed", range(6))
def test_random_branches(seed: int) -> None:
    """The latest 32 of what a processor is seen to do, step by step, are what it records."""
    source, most = scattered(random.Random(seed))
    seen = Machine()
    seen.long(source)
    handler(seen, 0x60)
    expected = taken(seen, most)
    for way in ("blocks", "three at a time"):
        m = Machine()
        m.long(source)
        handler(m, 0x60)
        start(m)
        execute(m, way)
        s = m.state
        newest = [((s.lbr_tos - n) % 32) for n in range(32)]
        assert [(s.lbr_from[n], s.lbr_to[n]) for n in newest if s.lbr_to[n]] == expected[::-1][:32]
