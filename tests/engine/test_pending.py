"""The pending word: kicks reach the caller, samples do not, and neither loses the other."""

from __future__ import annotations

import threading

from pellucid.cpu.state import EXIT_HLT, EXIT_PENDING, PENDING_REQUEST, PENDING_SAMPLE

from .code import CODE, RAX, RCX, Compiled

COUNT = bytes.fromhex("48ffc0 4883e901 75f7 f4")    # loop: inc rax; sub rcx, 1; jne loop; hlt


def ready(turns: int) -> Compiled:
    machine = Compiled()
    machine.load(CODE, COUNT)
    s = machine.state
    s.gpr[RAX], s.gpr[RCX], s.rip = 0, turns, CODE
    return machine


def test_a_sample_stays_inside() -> None:
    machine = ready(50)
    machine.processor.run()
    machine.state.gpr[RAX], machine.state.gpr[RCX], machine.state.rip = 0, 50, CODE
    machine.processor.ask_for_sample()
    assert machine.state.pending == PENDING_SAMPLE
    assert machine.processor.run() == EXIT_HLT
    assert machine.state.gpr[RAX] == 50 and machine.state.pending == 0
    assert sum(machine.processor.hot.counts.values()) == 1, "one sample, one count"


def test_a_kick_comes_out_and_stays_set() -> None:
    machine = ready(50)
    machine.processor.kick()
    assert machine.processor.run() == EXIT_PENDING
    assert machine.state.pending == PENDING_REQUEST and machine.state.gpr[RAX] == 0
    machine.state.pending = 0
    assert machine.processor.run() == EXIT_HLT
    assert machine.state.gpr[RAX] == 50


def test_a_sample_does_not_take_a_kick_along() -> None:
    machine = ready(50)
    machine.processor.ask_for_sample()
    machine.processor.kick()
    assert machine.processor.run() == EXIT_PENDING
    assert machine.state.pending == PENDING_REQUEST


def run_until_kicked(machine: Compiled, seconds: float) -> None:
    """Run until a kick of another thread comes out. A sample asked for just then may come out too, before it."""
    processor = machine.processor
    threading.Timer(seconds, processor.kick).start()
    kicked = 0
    while not kicked:
        assert processor.run() == EXIT_PENDING
        kicked = machine.state.pending & PENDING_REQUEST
        processor.engine.drop_pending(processor.address, PENDING_SAMPLE | kicked)


def test_a_running_guest_is_sampled_and_kicked_from_other_threads() -> None:
    machine = ready(1 << 62)
    done = threading.Event()

    def sampler() -> None:
        while not done.wait(0.0005):
            machine.processor.ask_for_sample()

    helper = threading.Thread(target=sampler)
    helper.start()
    try:
        for _ in range(20):
            before = machine.state.gpr[RAX]
            run_until_kicked(machine, 0.002)
            assert machine.state.gpr[RAX] >= before
        while machine.state.gpr[RAX] == 0:  # every kick came before the first instruction
            run_until_kicked(machine, 0.01)
    finally:
        done.set()
        helper.join()


def test_bits_raised_and_dropped_at_the_same_time() -> None:
    """Two threads own one bit each; neither sees the other's changes of the word lost."""
    machine = ready(1)
    engine, address = machine.processor.engine, machine.processor.address
    wrong: list[int] = []

    def hammer(bit: int) -> None:
        for _ in range(5000):
            engine.raise_pending(address, bit)
            if not machine.state.pending & bit:
                wrong.append(bit)
            if engine.drop_pending(address, bit) & bit:
                wrong.append(bit)

    threads = [threading.Thread(target=hammer, args=(1 << 8 + n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and machine.state.pending == 0
