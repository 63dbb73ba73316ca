"""x87 exceptions with CR0.NE clear: FERR#, the interrupt that it is wired to, and IGNNE# (SDM vol. 1, 8.7 and D.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pellucid.cpu.state import CR0_NE, RFLAGS_IF, RFLAGS_TF
from pellucid.kvm.api import Exit, FerrExit, IntrExit, IoExit, MpState

from .smm_guest import Smm
from .test_interrupts import DONE, LOG, SAY, VECTOR

IGNORE = 5
FAULT = "fninit\nfldcw [control]\nfld1\nfldz\nfdivp st1, st0\n"
END = "\nout DONE, al\ncontrol: dw 0x37B"
HANDLER = 0x1_4000


@pytest.fixture
def m() -> Iterator[Smm]:
    machine = Smm()
    yield machine
    machine.close()


def begin(m: Smm, source: str, flags: int = RFLAGS_IF | 2) -> None:
    m.begin(source, flags)
    m.state.cr0 &= ~CR0_NE
    m.refresh()


def play(m: Smm) -> list[str]:
    """Run to DONE; what came: FERR# (which raises the interrupt), and IGNNE# when the handler asks."""
    seen: list[str] = []
    while len(seen) < 20:
        exit: Exit = m.vcpu.run()
        if isinstance(exit, FerrExit):
            seen.append(f"ferr {m.state.rip - m.labels['a']}")
            m.post()
        elif isinstance(exit, IoExit) and exit.port == SAY and exit.data == IGNORE:
            seen.append("ignne")
            m.vcpu.ignore_numeric_error()
        elif isinstance(exit, IoExit) and exit.port == LOG:
            m.log.append(exit.data or 0)
        elif isinstance(exit, IoExit) and exit.port == SAY:
            m.on_say(exit.data or 0)
        else:
            assert isinstance(exit, IoExit) and exit.port == DONE, exit
            return seen
    raise AssertionError(seen)


def handler(m: Smm, body: str) -> None:
    m.load(f"push rax\n{body}\nmov al, 9\nout SAY, al\npop rax\niretq", HANDLER)
    m.gate(VECTOR, offset=HANDLER)


WRITE_F0 = f"mov al, {IGNORE}\nout SAY, al"


@pytest.mark.parametrize("waiting", ["wait", "fld1", "fnop", "emms"])
def test_the_next_waiting_instruction_waits_for_the_interrupt(m: Smm, waiting: str) -> None:
    begin(m, FAULT + f"a: {waiting}" + END)
    handler(m, WRITE_F0 + "\nfnclex")
    assert play(m) == ["ferr 0", "ignne"]


def test_ignne_lets_it_execute_with_the_exception_still_there(m: Smm) -> None:
    begin(m, FAULT + "a: fld1\nfld1\nfnstsw ax\nmov ebx, eax" + END)
    handler(m, WRITE_F0)
    assert play(m) == ["ferr 0", "ignne"] and m.state.gpr[3] & 0x84 == 0x84 and m.state.fpu_top == 4


def test_without_ignne_it_comes_again(m: Smm) -> None:
    begin(m, FAULT + "xor ebx, ebx\na: wait" + END)
    handler(m, f"inc ebx\ncmp ebx, 3\njne no\n{WRITE_F0}\nno: nop")
    assert play(m) == ["ferr 0"] * 3 + ["ignne"]


def test_ignne_ends_with_the_exception(m: Smm) -> None:
    begin(m, FAULT + "a: wait\nfnclex\nfld1\nfldz\nfdivp st1, st0\nb: wait" + END)
    handler(m, WRITE_F0)
    b = "ferr " + str(m.labels["b"] - m.labels["a"])
    assert play(m) == ["ferr 0", "ignne", b, "ignne"]


def test_non_waiting_instructions_do_not_wait(m: Smm) -> None:
    begin(m, FAULT + "a: fnstsw ax\nfnstcw [0x20000]\nfnclex\nwait\nfnop" + END)
    assert play(m) == []


def test_it_waits_with_interrupts_off_and_answers_kicks(m: Smm) -> None:
    begin(m, FAULT + "a: wait\nb: nop" + END, 2)
    assert m.vcpu.run() == FerrExit()
    m.post()
    for _ in range(3):
        m.vcpu.kick()
        assert m.vcpu.run() == IntrExit() and m.state.rip == m.labels["a"]
    assert m.vcpu.get_mp_state() is MpState.RUNNABLE
    m.vcpu.nmi()
    m.vcpu.ignore_numeric_error()
    play(m)
    assert m.log == [2, m.labels["a"]]


def test_an_smi_ends_the_wait_and_rsm_comes_back_to_it(m: Smm) -> None:
    begin(m, FAULT + "a: wait" + END)
    handler(m, WRITE_F0)
    assert m.vcpu.run() == FerrExit()
    m.vcpu.smi()
    assert play(m) == ["ferr 0", "ignne"] and m.entries == 1


def test_single_step_across_the_wait(m: Smm) -> None:
    begin(m, FAULT + "push 0x302\npopfq\na: wait\nb: nop" + END)
    handler(m, WRITE_F0 + "\nfnclex")
    at = HANDLER + 0x100
    m.load("push rax\nmov rax, [rsp + 8]\nout LOG, eax\nand dword [rsp + 24], 0xFFFFFEFF\npop rax\niretq", at)
    m.gate(1, offset=at)
    assert play(m) == ["ferr 0", "ignne"] and m.log == [m.labels["b"]] and not m.rflags & RFLAGS_TF
