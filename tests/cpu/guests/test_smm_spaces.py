"""System-management mode has an address space of its own; and save maps of any content."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import EXIT_IO, EXIT_MMIO, EXIT_MSR, EXIT_PENDING

from .machine import TABLES
from .smm_guest import SMRAM, Smm
from .test_smm import END, SAY_SMI, U32


@pytest.fixture
def m() -> Iterator[Smm]:
    machine = Smm()
    yield machine
    machine.close()


def test_the_same_address_holds_other_code_inside(m: Smm) -> None:
    """A function at SMRAM is called inside and outside, in turns, by code that stays translated."""
    m.load("mov eax, 1\nret", SMRAM + 0x100)
    source = f"mov ebp, 40\nagain: mov rbx, {SMRAM + 0x100}\ncall rbx\nadd edi, eax\n" + SAY_SMI
    m.begin(source + "dec ebp\njne again" + END)
    m.handler("mov ax, 2\nret", 0x100)
    m.labels["other"] = 0x100
    m.handler("mov sp, 0x7000\ncall other\nmov al, al\nmov [cs:0x200], ax\nmov al, 7\nout SAY, al\nrsm\n")
    values: list[int] = []
    m.inside = lambda: values.append(m.saved(0x200, 2))  # type: ignore[method-assign]
    m.state.gpr[7] = 0
    m.finish()
    assert values == [2] * 40 and m.state.gpr[7] == 40
    translated = m.state.count_translated
    m.vcpu.processor.flush_tlb()
    assert m.state.count_translated == translated < 40, "neither side's code was thrown away on the way"


def test_outside_sees_none_of_what_inside_writes(m: Smm) -> None:
    m.write(SMRAM + 0x300, 0x1234, 4)
    m.handler("mov dword [cs:0x300], 0x5678\nmov eax, 0x9ABC\nmov [0x24000], eax\nmov al, 7\nout SAY, al\nrsm")
    m.begin(f"mov rbx, {SMRAM + 0x300}\n" + SAY_SMI + "mov ecx, [rbx]\nmov edx, [0x24000]" + END)
    m.state.gpr[2] = 0
    m.finish()
    assert (m.state.gpr[1], m.saved(0x300, 4), m.state.gpr[2]) == (0x1234, 0x5678, 0x9ABC)


def test_the_tlb_does_not_mix_the_spaces(m: Smm) -> None:
    """An entry filled inside (paging off) must not serve outside, global or not, and the other way round."""
    m.write(SMRAM + 0x300, 0x11, 4)
    m.put_smram(0x300, b"\x22\0\0\0")
    m.handler("mov edx, [cs:0x300]\nmov eax, edx\nout LOG, eax\nmov al, 7\nout SAY, al\nrsm")
    look = "mov eax, [rbx]\nout LOG, eax\n"
    m.begin(f"mov rbx, {SMRAM + 0x300}\n" + look + SAY_SMI + look + END)
    m.finish()
    assert m.log == [0x11, 0x22, 0x11]


def test_code_shared_by_both_spaces_is_dropped_when_it_changes(m: Smm) -> None:
    """The handler changes the code that runs outside; the code outside changes what the handler calls."""
    shared = 0x1_4000
    m.load("mov eax, 1\nret", shared)
    m.load("bits 16\nmov ax, 1\nretf", 0x1_5000, 16)
    m.handler(
        "mov ax, 0x1000\nmov ds, ax\nadd byte [0x4001], 2\nmov sp, 0x7000\ncall 0x1000:0x5000\nmov [cs:0x200], ax\n"
        "mov al, 7\nout SAY, al\nrsm"
    )
    values: list[int] = []
    m.inside = lambda: values.append(m.saved(0x200, 2))  # type: ignore[method-assign]
    m.begin(f"mov rbx, {shared}\nmov ebp, 3\nagain: call rbx\nout LOG, eax\n" + SAY_SMI
            + "add byte [0x15001], 3\ndec ebp\njne again" + END)
    m.finish()
    assert m.log == [1, 3, 5] and values == [1, 4, 7]


def test_devices_are_told_from_where_an_access_comes(m: Smm) -> None:
    m.device = lambda address, size: 0x5A
    m.handler("mov ebx, 0xFED00000\nmov al, [ebx]\nmov al, 7\nout SAY, al\nrsm")
    m.real("mov ebx, 0x500000\nmov al, 4\nout SAY, al\nnop\nout DONE, al")
    m.finish()
    assert [entry[:2] for entry in m.trace] == [("smm", 0xFED0_0000)]


# --- random maps -----------------------------------------------------------------------------------------


def test_random_maps(m: Smm) -> None:
    """RSM with whatever a handler wrote: a shutdown or a guest that runs on somehow; the engine is not harmed."""
    rng = random.Random(int(os.environ.get("PELLUCID_SEED", "7")))
    m.begin("a: nop\njmp a")
    m.vcpu.processor.enter_smm(halted=False)
    good = m.save_map
    outcomes: Counter[str] = Counter()
    for _ in range(400):
        image = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            at = rng.choice(FIELDS)
            image[at : at + 2] = rng.choice((b"\0\0", b"\xff\xff", rng.randbytes(2)))
        if rng.random() < 0.1:
            image = bytearray(rng.randbytes(512))
        outcomes[run_map(m, bytes(image))] += 1
    assert outcomes["runs"] > 50 and outcomes["refused"] > 50, outcomes


FIELDS = (*range(0, 0xA0, 2), 0xC8, 0xCA, *range(0xD0, 0xD8, 2), *range(0xFC, 0x104, 2), *range(0x148, 0x200, 2))


def run_map(m: Smm, image: bytes) -> str:
    """RSM with this map, and twenty instructions of what follows."""
    s, cpu = m.state, m.vcpu.processor
    m._next_table = TABLES
    m.begin("a: nop\njmp a")
    s.smbase, s.delivering, s.db_pending, s.nmi_blocked = SMRAM, 0, 0, 0
    cpu.set_smm(True)
    m.save_map = image
    if cpu.leave_smm().refused is not None:
        return "refused"
    for _ in range(20):
        s.step_once, s.pending = 1, 1
        reason = cpu.run()
        if reason in (EXIT_IO, EXIT_MMIO):
            cpu.complete(answer(s.io_address))
        elif reason == EXIT_MSR:
            cpu.fail_msr()
        elif reason != EXIT_PENDING:
            return "stopped"
    return "runs"


def answer(address: int) -> int:
    """What devices read as: something that depends on the address."""
    return address * 0x9E37_79B9 & U32
