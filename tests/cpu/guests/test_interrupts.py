"""Interrupts as the soft backend delivers them: shadows, windows, HLT, NMI blocking, priorities, timers."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import EXIT_PENDING, RFLAGS_IF, RFLAGS_TF
from pellucid.engine.arrays import Array
from pellucid.kvm.api import Exit, IoExit, MpState
from pellucid.kvm.backends.soft.system import SoftHypervisor
from pellucid.kvm.irqchip import apicdef
from tests.kvm.fakes import ManualClock

from .machine import CODE, DATA0, RAM, STACK0, STACK_IST, TSS_AT, Machine

VECTOR, SECOND, NMI = 0x50, 0x61, 2
LOG, SAY, DONE = 0x10, 0x11, 0x12
HANDLER = 0x12000


class Hosted(Machine):
    """A machine whose processor is a vCPU of the soft backend. OUT to SAY calls `on_say`; DONE ends the run."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.vm = SoftHypervisor(self.clock).create_vm()
        self.vm.create_irqchip()
        ram = Array(RAM)
        self.vm.set_user_memory_region(0, 0, RAM, ram.address)
        self.vcpu = self.vm.create_vcpu(0)
        super().__init__(ram=ram, processor=self.vcpu.processor)
        self.vcpu.lapic.mmio_write(apicdef.APIC_SPIV, 4, 0x1FF)
        self.said: list[int] = []
        self.log: list[int] = []

    def begin(self, source: str, flags: int = 2) -> None:
        """64-bit code; every vector's handler logs its vector and the return address, and acknowledges."""
        self.labels |= {"DONE": DONE, "SAY": SAY, "LOG": LOG, "DATA0": DATA0}
        self.long(source)
        for vector in (NMI, VECTOR, SECOND):
            at = HANDLER + 0x100 * vector
            self.load(
                f"push rax\nmov eax, {vector}\nout LOG, eax\nmov rax, [rsp + 8]\nout LOG, eax\npop rax\niretq", at
            )
            self.gate(vector, offset=at)
        self.rflags = flags

    def post(self, vector: int = VECTOR) -> None:
        self.vcpu.lapic.deliver(apicdef.DM_FIXED, vector)

    def events(self) -> list[tuple[int, int]]:
        """Run to DONE; (vector, return address) of what was handled."""
        while True:
            exit = self.vcpu.run()
            assert isinstance(exit, IoExit), exit
            value = exit.data or 0
            if exit.port == DONE:
                return list(zip(self.log[::2], self.log[1::2]))
            if exit.port == SAY:
                self.said.append(value)
                self.on_say(value)
            else:
                self.log.append(value)

    def on_say(self, value: int) -> None:
        """What happens when the guest says a number."""
        if value == 1:
            self.post()
        elif value == 2:
            self.post(SECOND)
        elif value == 3:
            self.vcpu.nmi()
        elif value == 9:
            self.vcpu.lapic.eoi()

    def close(self) -> None:
        self.vm.close()


@pytest.fixture
def m() -> Iterator[Hosted]:
    machine = Hosted()
    yield machine
    machine.close()


SAY_1 = "mov al, 1\nout SAY, al\n"
SAY_3 = "mov al, 3\nout SAY, al\n"
END = "\nout DONE, al"


def test_an_interrupt_comes_at_the_next_boundary(m: Hosted) -> None:
    m.begin(SAY_1 + "a: nop" + END, RFLAGS_IF | 2)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_sti_shadow(m: Hosted) -> None:
    """STI that sets IF lets one more instruction execute; one that finds IF set delays nothing."""
    m.begin(SAY_1 + "nop\nsti\ninc ebx\na: inc ecx" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_sti_cli_opens_no_window(m: Hosted) -> None:
    m.begin(SAY_1 + "sti\ncli\nnop\nnop\nsti\nnop\na: nop" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_sti_with_if_set(m: Hosted) -> None:
    m.begin("sti\nnop\n" + SAY_1 + "a: sti\nnop" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_mov_ss_shadow(m: Hosted) -> None:
    """The shadow of STI covers MOV SS, whose own covers the instruction behind it."""
    m.begin(SAY_1 + "mov edx, DATA0\nsti\nmov ss, edx\ninc ebx\na: inc ecx" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_sti_hlt(m: Hosted) -> None:
    """The interrupt that was waiting wakes HLT: it returns behind it."""
    m.begin(SAY_1 + "sti\nhlt\na: nop" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_windows(m: Hosted) -> None:
    """POPF and IRET open a window at once."""
    m.begin(SAY_1 + "push 0x202\npopfq\na: nop" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]
    other = Hosted()
    other.begin(SAY_1 + "push DATA0\npush 0x8000\npush 0x202\npush 8\npush a\niretq\na: nop" + END)
    assert other.events() == [(VECTOR, other.labels["a"])]
    other.close()


def test_window_in_a_tight_loop(m: Hosted) -> None:
    """No exit ever happens between the request and the window: the window itself must be noticed."""
    m.begin(SAY_1 + "mov ecx, 1000\nb: dec ecx\njnz b\npush 0x202\npopfq\na: jmp c\nc: nop" + END)
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_hlt_waits_for_an_interrupt(m: Hosted) -> None:
    m.begin("sti\nhlt\na: nop" + END)
    found: list[list[tuple[int, int]]] = []
    thread = threading.Thread(target=lambda: found.append(m.events()))
    thread.start()
    while m.vcpu.get_mp_state() is not MpState.HALTED:
        thread.join(0.001)
    m.post()
    thread.join()
    assert found == [[(VECTOR, m.labels["a"])]]


def test_hlt_with_if_clear_wakes_for_nmi_only(m: Hosted) -> None:
    m.begin("hlt\na: nop" + END)
    found: list[list[tuple[int, int]]] = []
    thread = threading.Thread(target=lambda: found.append(m.events()))
    thread.start()
    while m.vcpu.get_mp_state() is not MpState.HALTED:
        thread.join(0.001)
    m.post()
    thread.join(0.05)
    assert thread.is_alive() and m.state.rip == m.labels["a"]
    m.vcpu.nmi()
    thread.join()
    assert found == [[(NMI, m.labels["a"])]], "the interrupt stays pending behind it"


def test_nmi_ignores_if(m: Hosted) -> None:
    m.begin(SAY_3 + "a: nop" + END)
    assert m.events() == [(NMI, m.labels["a"])]


def test_nmi_is_blocked_until_iret(m: Hosted) -> None:
    """A second NMI waits for the IRET of the first one's handler, a third is lost."""
    m.begin(SAY_3 + "a: nop" + END)
    m.load(
        "push rax\nmov al, [count]\ninc byte [count]\nout LOG, eax\ncmp al, 0\n"
        "jne last\nmov al, 3\nout SAY, al\nout SAY, al\nnop\n"
        "last: mov rax, [rsp + 8]\nout LOG, eax\npop rax\niretq\ncount: db 0",
        HANDLER + 0x100 * NMI,
    )
    events = m.events()
    assert [count & 0xFF for count, _ in events] == [0, 1] and [ip for _, ip in events] == [m.labels["a"]] * 2
    assert not m.state.nmi_blocked


def test_nmi_comes_before_interrupts(m: Hosted) -> None:
    m.begin("mov al, 4\nout SAY, al\na: nop" + END, RFLAGS_IF | 2)

    def both(value: int) -> None:
        m.post()
        m.vcpu.nmi()

    m.on_say = both  # type: ignore[method-assign]
    events = m.events()
    # The NMI's handler is entered with IF clear; the interrupt follows its IRET.
    assert events == [(NMI, m.labels["a"]), (VECTOR, m.labels["a"])]


def test_priorities_and_eoi(m: Hosted) -> None:
    """The higher class first; the lower one stays in IRR until EOI."""
    m.begin("mov al, 4\nout SAY, al\na: nop\nmov al, 9\nout SAY, al\nb: nop" + END, RFLAGS_IF | 2)

    def say(value: int) -> None:
        if value == 4:
            m.post(VECTOR)
            m.post(SECOND)
        else:
            m.vcpu.lapic.eoi()

    m.on_say = say  # type: ignore[method-assign]
    assert m.events() == [(SECOND, m.labels["a"]), (VECTOR, m.labels["b"])]


def test_task_priority(m: Hosted) -> None:
    """CR8 holds back interrupts of its class and below, and lets them through when it sinks."""
    m.begin(
        "mov edx, 6\nmov cr8, rdx\nmov al, 1\nout SAY, al\nnop\nnop\n"
        "mov edx, 5\nmov cr8, rdx\nnop\nmov edx, 4\nmov cr8, rdx\na: nop" + END,
        RFLAGS_IF | 2,
    )
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_only_a_priority_below_the_threshold_leaves_native_code(m: Hosted) -> None:
    m.begin(
        "mov edx, 6\nmov cr8, rdx\nmov al, 1\nout SAY, al\nmov ecx, 300\n"
        "again: mov edx, 9\nmov cr8, rdx\nmov edx, 5\nmov cr8, rdx\ndec ecx\njnz again\n"
        "mov edx, 4\nmov cr8, rdx\na: nop" + END,
        RFLAGS_IF | 2,
    )
    left, handler = 0, m.vcpu._handlers[EXIT_PENDING]

    def pending() -> Exit | None:
        nonlocal left
        left += 1
        return handler()

    m.vcpu._handlers[EXIT_PENDING] = pending
    assert m.events() == [(VECTOR, m.labels["a"])]
    assert left < 20


def test_pic(m: Hosted) -> None:
    """An 8259 interrupt while the local APIC is off: INTR by the programmed base."""
    m.vcpu.set_apic_base(0xFEE0_0000, host_initiated=True)
    m.begin(
        "mov al, 0x11\nout 0x20, al\nmov al, 0x50\nout 0x21, al\nmov al, 4\nout 0x21, al\nmov al, 1\nout 0x21, al\n"
        "mov al, 0xFE\nout 0x21, al\nmov al, 1\nout SAY, al\na: nop" + END,
        RFLAGS_IF | 2,
    )
    m.on_say = lambda value: m.vm.irq_line(0, True)  # type: ignore[method-assign]
    assert m.events() == [(VECTOR, m.labels["a"])]


def test_lapic_timer(m: Hosted) -> None:
    """One-shot: HLT, time passes, the vector comes once."""
    m.begin("mov al, 1\nout SAY, al\nsti\nhlt\na: nop" + END)

    def program(value: int) -> None:
        lapic = m.vcpu.lapic
        lapic.mmio_write(apicdef.APIC_TDCR, 4, 0xB)
        lapic.mmio_write(apicdef.APIC_LVTT, 4, VECTOR)
        lapic.mmio_write(apicdef.APIC_TMICT, 4, 1000)

    m.on_say = program  # type: ignore[method-assign]
    found: list[list[tuple[int, int]]] = []
    thread = threading.Thread(target=lambda: found.append(m.events()))
    thread.start()
    while m.vcpu.get_mp_state() is not MpState.HALTED:
        thread.join(0.001)
    m.clock.advance(10**9)
    thread.join()
    assert found == [[(VECTOR, m.labels["a"])]]


def test_single_step_comes_before_the_interrupt(m: Hosted) -> None:
    """Both wait behind one instruction: #DB first, whose handler the interrupt then interrupts or follows."""
    m.begin("mov al, 1\nout SAY, al\na: nop\nb: nop" + END, RFLAGS_IF | RFLAGS_TF | 2)
    m.load(
        "push rax\nmov eax, 1\nout LOG, eax\nmov rax, [rsp + 8]\n"
        "out LOG, eax\nand qword [rsp + 24], -0x101\npop rax\niretq",
        HANDLER + 0x100,
    )
    m.gate(1, offset=HANDLER + 0x100)
    m.rflags = RFLAGS_IF | 2
    m.load("mov al, 1\npush 0x302\npopfq\nout SAY, al\na: nop\nb: nop" + END, CODE)
    assert m.events() == [(1, m.labels["a"]), (VECTOR, m.labels["a"])]


def test_interrupts_between_iterations_of_rep(m: Hosted) -> None:
    """A repeated string instruction is interrupted, and goes on where it was; RF is set in the saved flags."""
    m.begin("mov dx, 0x13\nmov rsi, 0x20000\nmov ecx, 5\na: rep outsb\nnop" + END, RFLAGS_IF | 2)
    saved: list[int] = []
    m.load(
        "push rax\nmov eax, 0x50\nout LOG, eax\nmov rax, [rsp + 8]\n"
        "out LOG, eax\nmov rax, [rsp + 24]\nout 0x14, eax\npop rax\niretq",
        HANDLER + 0x100 * VECTOR,
    )
    sent: list[int] = []
    events: list[tuple[int, int]] = []
    while True:
        exit = m.vcpu.run()
        assert isinstance(exit, IoExit)
        if exit.port == DONE:
            break
        if exit.port == 0x13:
            sent.append(exit.data or 0)
            if len(sent) == 3:
                m.post()
        elif exit.port == 0x14:
            saved.append(exit.data or 0)
        else:
            m.log.append(exit.data or 0)
    events = list(zip(m.log[::2], m.log[1::2]))
    assert events == [(VECTOR, m.labels["a"])] and len(sent) == 5
    assert saved[0] & 0x1_0000


def test_interrupt_on_its_own_stack(m: Hosted) -> None:
    m.begin("sti\nnop\n" + SAY_1 + "a: nop" + END)
    m.gate(VECTOR, offset=HANDLER + 0x100 * VECTOR, ist=1)
    m.write(TSS_AT + 36, STACK_IST, 8)
    assert m.events() == [(VECTOR, m.labels["a"])]
    assert m.read(STACK_IST - 16, 8) == STACK0
