"""Looking on: what an observer is told, in order, and that it changes nothing."""

from __future__ import annotations

from pellucid.cpu.observe import CodeBlock, Event
from pellucid.cpu.state import DF, EXIT_HLT, EXIT_SHUTDOWN, PF, UD
from tests.cpu.guests.machine import CODE, CODE64, HANDLERS, Machine

LOOP = "mov ecx, 3\nagain: dec ecx\njne short again\nhlt"


class Recorder:
    """Keeps what it hears."""

    def __init__(self, machine: Machine, *wanted: str) -> None:
        self.machine, self.heard = machine, list[tuple[object, ...]]()
        self.new_blocks, self.blocks, self.events = (word in wanted for word in ("new", "blocks", "events"))
        machine.processor.observe(self)

    def block(self, block: CodeBlock, fresh: bool) -> None:
        self.heard.append((block.pc, len(block.code), fresh))

    def event(self, event: Event) -> None:
        self.heard.append((event.vector, event.error, event.during, event.merged, self.machine.state.cr2))

    def reset(self) -> None:
        raise AssertionError("nobody resets")


def test_every_block_is_told_of_before_it_runs() -> None:
    m = Machine()
    m.long(LOOP)
    recorder = Recorder(m, "blocks")
    assert m.run().reason == EXIT_HLT
    again = m.labels["again"]
    assert [pc for pc, *_ in recorder.heard] == [CODE, again, again, again + 4]
    assert [fresh for *_, fresh in recorder.heard] == [True, True, False, True]
    m.processor.observe(None)
    m.state.rip = CODE
    assert m.run().reason == EXIT_HLT and len(recorder.heard) == 4


def test_new_code_is_told_of_once() -> None:
    m = Machine()
    m.long(LOOP)
    recorder = Recorder(m, "new")
    for _ in range(2):
        m.state.rip = CODE
        assert m.run().reason == EXIT_HLT
    again = m.labels["again"]
    assert recorder.heard == [(CODE, 9, True), (again, 4, True), (again + 4, 1, True)]


def test_a_single_step_is_told_of_as_an_instruction_alone() -> None:
    m = Machine()
    m.long("nop\nnop\nhlt")
    recorder = Recorder(m, "blocks")
    m.rflags = 0x102
    assert m.catch() == 1
    assert [entry[:2] for entry in recorder.heard] == [(CODE, 0), (HANDLERS + 1, 1)]


def test_events_and_those_that_their_delivery_raises() -> None:
    m = Machine()
    m.long("ud2")
    recorder = Recorder(m, "events")
    m.gate(UD)
    assert m.catch() == UD and recorder.heard == [(UD, 0, None, False, 0)]
    m = Machine()
    m.long("mov rax, [0x40000000]")
    m.gate(PF, selector=CODE64 ^ 0x18)   # DATA0: no code
    m.write(0x2000 + 16 * PF, 0, 8)      # not present either: #GP, and #DF of the two
    recorder = Recorder(m, "events")
    assert m.catch() == DF
    assert recorder.heard[0] == (PF, 0, None, False, 0x4000_0000)
    assert [entry[0] for entry in recorder.heard] == [PF, 13, DF]
    assert recorder.heard[1][2:4] == (PF, True) and recorder.heard[2][3] is False


def test_a_triple_fault_is_told_of() -> None:
    m = Machine()
    m.long("ud2")
    m.state.idt_limit = 0
    recorder = Recorder(m, "events")
    assert m.run().reason == EXIT_SHUTDOWN
    assert [entry[0] for entry in recorder.heard] == [UD, 13, 13, DF, 13], "#UD and #GP in turn, two #GP are #DF"


def test_an_interrupt_from_outside() -> None:
    m = Machine()
    m.long("nop\nhlt")
    recorder = Recorder(m, "events")
    assert m.interrupt(0x40)
    assert recorder.heard == [(0x40, 0, None, False, 0)]
