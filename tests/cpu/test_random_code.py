"""Random bytes as guest code at CPL 0, one instruction at a time, in every mode: nothing but exits come of it."""

from __future__ import annotations

import random

import pytest
from pellucid.cpu.state import (
    EXIT_EXCEPTION, EXIT_HLT, EXIT_IO, EXIT_MMIO, EXIT_MSR, EXIT_PENDING, EXIT_SHUTDOWN, PENDING_REQUEST)
from tests.cpu.bare import RAM, Bare

CODE, PROGRAMS, STEPS = 0x1000, 400, 120
ENDS = {EXIT_EXCEPTION, EXIT_HLT, EXIT_SHUTDOWN, EXIT_MSR}


def reset(machine: Bare, rng: random.Random) -> None:
    """Every register that a program may have changed, and its memory."""
    s = machine.state
    machine.load(0, bytes(RAM))
    machine.processor.flush_code()
    for name in ("cr3", "cr4", "efer", "replay_count", "shadow", "nmi_blocked", "cpl"):
        setattr(s, name, 0)
    for number in range(8):
        s.seg_base[number] = s.seg_selector[number] = 0
    machine.reset_mode()
    for number in range(16):
        s.gpr[number] = rng.choice((rng.getrandbits(64), rng.randrange(RAM), rng.randrange(1 << 16), rng.randrange(64)))
    s.flags, s.rip = 2, CODE
    machine.load(CODE, rng.randbytes(4 * STEPS))
    machine.processor.refresh_mode()


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_random_bytes_end_in_an_exit(bits: int) -> None:
    rng = random.Random(bits)
    machine = Bare(bits)
    s = machine.state
    executed = 0
    for _ in range(PROGRAMS):
        reset(machine, rng)
        for _ in range(STEPS):
            s.step_once, s.pending = 1, PENDING_REQUEST
            reason = machine.processor.run()
            if reason in (EXIT_IO, EXIT_MMIO):
                machine.processor.complete(rng.getrandbits(8 * s.io_size))
                continue
            executed += 1
            if reason in ENDS:
                break
            assert reason == EXIT_PENDING
        assert s.zero == 0  # the slot of every absent register
    assert executed > PROGRAMS
