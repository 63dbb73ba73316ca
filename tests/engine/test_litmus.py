"""What x86's memory order forbids does not happen (SDM vol. 3, 9.2): litmus tests by their names in the literature.

Two to four processors execute a few accesses each, thousands of times, interpreted and as compiled regions. Each round
has memory of its own, so that what a round left is read afterwards. The names: SB store buffering, MP message passing,
LB load buffering, WRC write to read causality, IRIW independent reads of independent writes, CoRR coherence of reads.
Outcomes that are allowed, as SB's without a fence, may occur and need not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.cpu.state import EXIT_HLT
from pellucid.records import dataclass

from .code import RBP, RBX, RCX, RDI, RDX, RSI, RSP, Compiled
from .test_smp import CODE, STACKS, run_all

ROUNDS, STRIDE = 1000, 64
X, Y, RESULTS, TURN, COUNTER = 0x4_0000, 0x8_0000, 0xC_0000, 0xB000, 0xE000


@dataclass(frozen=True)
class Round:
    """What one round left: the processors' results (r8, r9), and the memory's."""

    read: tuple[tuple[int, int], ...]
    x: int
    y: int


@dataclass(frozen=True)
class Litmus:
    """A body for each processor, x at [rsi] and y at [rdi]; `forbidden` says what must not be."""

    bodies: tuple[str, ...]
    forbidden: Callable[[Round], bool]


def store(place: str, value: int = 1) -> str:
    return f"mov dword [{place}], {value}"


def exchange(place: str, value: int = 1) -> str:
    return f"mov eax, {value}\nxchg [{place}], eax"


def body(*parts: str) -> str:
    return "\n".join(parts)


LOAD_X, LOAD_Y = "mov r8d, [rsi]", "mov r8d, [rdi]"
THEN_X, THEN_Y = "mov r9d, [rsi]", "mov r9d, [rdi]"
FENCE, LOCKED = "mfence", "lock add dword [rsp], 0"

LITMUS = {
    "SB+mfences": Litmus((body(store("rsi"), FENCE, LOAD_Y), body(store("rdi"), FENCE, LOAD_X)),
                         lambda r: r.read[0][0] == r.read[1][0] == 0),
    "SB+locked": Litmus((body(store("rsi"), LOCKED, LOAD_Y), body(store("rdi"), LOCKED, LOAD_X)),
                        lambda r: r.read[0][0] == r.read[1][0] == 0),
    "SB+xchg": Litmus((body(exchange("rsi"), LOAD_Y), body(exchange("rdi"), LOAD_X)),
                      lambda r: r.read[0][0] == r.read[1][0] == 0),
    "SB+rfi": Litmus((body(store("rsi"), THEN_X, LOAD_Y), body(store("rdi"), THEN_Y, LOAD_X)),
                     lambda r: r.read[0][1] != 1 or r.read[1][1] != 1),
    "MP": Litmus((body(store("rsi"), store("rdi")), body(LOAD_Y, THEN_X)), lambda r: r.read[1] == (1, 0)),
    "MP+mfences": Litmus((body(store("rsi"), FENCE, store("rdi")), body(LOAD_Y, FENCE, THEN_X)),
                         lambda r: r.read[1] == (1, 0)),
    "LB": Litmus((body(LOAD_X, store("rdi")), body(LOAD_Y, store("rsi"))), lambda r: r.read[0][0] == r.read[1][0] == 1),
    "R+mfences": Litmus((body(store("rsi"), FENCE, store("rdi")), body(store("rdi", 2), FENCE, LOAD_X)),
                        lambda r: r.y == 2 and r.read[1][0] == 0),
    "R+locked": Litmus((body(store("rsi"), store("rdi")), body(exchange("rdi", 2), LOAD_X)),
                       lambda r: r.y == 2 and r.read[1][0] == 0),
    "S": Litmus((body(store("rsi", 2), store("rdi")), body(LOAD_Y, store("rsi"))),
                lambda r: r.read[1][0] == 1 and r.x == 2),
    "2+2W": Litmus((body(store("rsi"), store("rdi", 2)), body(store("rdi"), store("rsi", 2))),
                   lambda r: (r.x, r.y) == (1, 1)),
    "CoRR": Litmus((store("rsi"), body(LOAD_X, THEN_X)), lambda r: r.read[1] == (1, 0)),
    "CoRR+two writers": Litmus((body(store("rsi", 1), store("rsi", 2)), body(LOAD_X, THEN_X)),
                               lambda r: r.read[1][0] > r.read[1][1] or r.x != 2),
    "WRC": Litmus((store("rsi"), body(LOAD_X, "mov [rdi], r8d"), body(LOAD_Y, THEN_X)),
                  lambda r: r.read[1][0] == 1 and r.read[2] == (1, 0)),
    "IRIW": Litmus((store("rsi"), store("rdi"), body(LOAD_X, THEN_Y), body(LOAD_Y, THEN_X)),
                   lambda r: r.read[2] == r.read[3] == (1, 0)),
    "half words": Litmus((body("mov word [rsi], 1", "mov word [rsi+2], 1"), LOAD_X),
                         lambda r: r.read[1][0] == 0x1_0000),
}


def program(number: int, count: int, text: str) -> str:
    """ROUNDS rounds of `text`. The processors meet before each: the first time without end, later for a while."""
    others = [TURN + STRIDE * other for other in range(count) if other != number]
    meet = "\n".join(f"meet{n}:\ndec rdx\nje go\ncmp [{turn}], rbp\njb meet{n}" for n, turn in enumerate(others))
    return f"""
next:
    mov [{TURN + STRIDE * number}], rbp
{meet}
go:
{text}
    mov [rbx], r8d
    mov [rbx+4], r9d
    mov edx, 3000
    add rsi, {STRIDE}
    add rdi, {STRIDE}
    add rbx, {8 * count}
    inc rbp
    dec rcx
    jne next
    hlt
"""


def machines_for(texts: Sequence[str]) -> list[Compiled]:
    first = Compiled()
    machines = [first, *(Compiled(beside=first) for _ in texts[1:])]
    for number, (machine, text) in enumerate(zip(machines, texts, strict=True)):
        machine.load(CODE[number], with_locks(text, CODE[number]))
    return machines


def with_locks(text: str, origin: int) -> bytes:
    """Machine code of a text whose lines may begin with `lock`, a prefix that the assembler does not know."""
    count = text.count("lock ")
    for n in range(count):
        text = text.replace("lock ", f"prefix{n}:\nnop\n", 1)
    assembled = assemble(text, origin)
    code = bytearray(assembled.code)
    for n in range(count):
        code[assembled.labels[f"prefix{n}"] - origin] = 0xF0
    return bytes(code)


def rounds(machines: Sequence[Compiled]) -> list[Round]:
    """Run all of them once."""
    first, count = machines[0], len(machines)
    first.load(X, bytes(ROUNDS * STRIDE))
    first.load(Y, bytes(ROUNDS * STRIDE))
    first.load(TURN, bytes(STRIDE * count))
    for number, machine in enumerate(machines):
        gpr = machine.state.gpr
        gpr[RSI], gpr[RDI], gpr[RBX], gpr[RSP] = X, Y, RESULTS + number * 8, STACKS[number]
        gpr[RCX], gpr[RBP], gpr[RDX], gpr[8], gpr[9] = ROUNDS, 1, 1 << 62, 0, 0
    assert run_all(machines) == [EXIT_HLT] * count
    raw = memoryview(first.bytes(RESULTS, ROUNDS * 8 * count)).cast("I")
    x, y = (memoryview(first.bytes(at, ROUNDS * STRIDE)).cast("I") for at in (X, Y))
    width, line = 2 * count, STRIDE // 4
    return [Round(tuple((raw[n * width + 2 * p], raw[n * width + 2 * p + 1]) for p in range(count)),
                  x[n * line], y[n * line]) for n in range(ROUNDS)]


@pytest.mark.parametrize("name", LITMUS)
def test_forbidden_outcomes_do_not_occur(name: str) -> None:
    litmus = LITMUS[name]
    count = len(litmus.bodies)
    machines = machines_for([program(number, count, text) for number, text in enumerate(litmus.bodies)])
    assert not [r for r in rounds(machines) if litmus.forbidden(r)], "interpreted"
    for number, machine in enumerate(machines):
        machine.compile(CODE[number])
    assert not [r for r in rounds(machines) if litmus.forbidden(r)], "compiled"


def test_store_buffering_without_a_fence_is_allowed(record_property: Callable[[str, object], None]) -> None:
    """Both may read 0 (SDM vol. 3, 9.2.3.4), and nothing else but what was stored; how often is told, not judged."""
    bodies = (body(store("rsi"), LOAD_Y), body(store("rdi"), LOAD_X))
    machines = machines_for([program(number, 2, text) for number, text in enumerate(bodies)])
    for how in ("interpreted", "compiled"):
        seen = Counter((r.read[0][0], r.read[1][0]) for r in rounds(machines))
        assert seen.keys() <= {(0, 0), (0, 1), (1, 0), (1, 1)} and sum(seen.values()) == ROUNDS
        assert all(r.x == r.y == 1 for r in rounds(machines))
        record_property(f"both read 0, {how}, of {ROUNDS}", seen[0, 0])
        if how == "interpreted":
            for number, machine in enumerate(machines):
                machine.compile(CODE[number])


TURNS = 20_000
COUNTS = {
    "lock inc": "lock inc dword [rsi]",
    "lock xadd": "mov eax, 1\nlock xadd [rsi], eax",
    "lock cmpxchg": "mov eax, [rsi]\nretry:\nmov edx, eax\ninc edx\nlock cmpxchg [rsi], edx\njne retry",
    "lock add": "lock add dword [rsi], 1",
    "lock sub": "lock sub dword [rsi], -1",
}


@pytest.mark.parametrize("offset", [0, 62], ids=["aligned", "across two lines"])
@pytest.mark.parametrize("name", COUNTS)
def test_no_locked_count_is_lost(name: str, offset: int) -> None:
    machines = machines_for([f"next:\n{COUNTS[name]}\ndec rcx\njne next\nhlt"] * 2)
    for turn in (1, 2):
        for machine in machines:
            machine.state.gpr[RSI], machine.state.gpr[RCX] = COUNTER + offset, TURNS
        assert run_all(machines) == [EXIT_HLT] * 2
        assert int.from_bytes(machines[0].bytes(COUNTER + offset, 4), "little") == 2 * turn * TURNS
        if turn == 1:
            for number, machine in enumerate(machines):
                machine.compile(CODE[number])


def test_compiled_code_that_another_processor_changes() -> None:
    """Cross-modifying code (SDM vol. 3, 9.1.3): the loop is one region, and runs when its constant is changed."""
    reader = Compiled()
    writer = Compiled(beside=reader)
    loop = assemble("next:\nmov eax, 0\ninc rdx\ncmp eax, ebx\njne next\nhlt", CODE[0]).code
    reader.load(CODE[0], loop)
    patch = f"wait:\ndec rdx\njne wait\nmov [{CODE[0] + 1}], ecx\nhlt"
    writer.load(CODE[1], assemble(patch, CODE[1]).code)
    for value in range(1, 6):
        reader.state.gpr[RBX] = value - 1
        assert reader.run(CODE[0]) == EXIT_HLT
        reader.compile(CODE[0])
        reader.state.gpr[RBX], reader.state.gpr[RDX] = value, 0
        writer.state.gpr[RCX], writer.state.gpr[RDX] = value, 100_000_000
        assert run_all([reader, writer]) == [EXIT_HLT] * 2
        assert reader.state.gpr[RDX] > 1, "it ran before"
        assert reader.bytes(CODE[0] + 1, 1)[0] == value
