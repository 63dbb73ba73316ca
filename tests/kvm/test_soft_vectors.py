"""Interrupt vectors between processors: sent, delivered and ended by native code where it can, and none lost.

The guests are in real mode. The handler of VECTOR counts in [0x2000], keeps the address that it returns to, and ends
the interrupt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import EXIT_HLT, EXIT_MMIO, EXIT_MSR, EXIT_PENDING, EXIT_WAKE, RFLAGS_IF
from pellucid.kvm.api import IoExit, LapicState, MpState
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.kvm.irqchip import apicdef as d
from tests.kvm.test_soft_smp import Guest, running_guest
from tests.kvm.two_processors import (
    CODE,
    OTHER_CODE,
    OUT,
    WAIT_FOR_ONE,
    exits_of,
    place,
    run_both,
    use_x2apic,
    word,
    write_icr,
)
from tests.onlooker import OnLooker

VECTOR, HANDLER = 0x61, 0x3000
COUNT = "50 55 89e5 8b4604 a30220 ff060020 5d 58"     # keep [bp+4] in [0x2002]; inc word [0x2000]
END = {True: "66 60 66b90b080000 6631c0 6631d2 0f30 66 61", False: "26 66c706b00000000000"}
IRET = "cf"
SELF, ALL, OTHERS, LOGICAL = 0x40000, 0x80000, 0xC0000, 0x800

xapic_and_x2apic = pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])


def handle(guest: Guest, vector: int, code: str, at: int = HANDLER) -> None:
    guest.put(4 * vector, at.to_bytes(4, "little").hex())
    guest.put(at, code)


def prepare(guest: Guest, *, x2apic: bool) -> None:
    """Every APIC on, with a logical id in the flat model, every vCPU ready to take VECTOR."""
    for number, vcpu in enumerate(guest.vcpus):
        if x2apic:
            use_x2apic(vcpu)
            vcpu.lapic.msr_write(0x80F, 0x1FF)
        else:
            vcpu.lapic.mmio_write(d.APIC_SPIV, 4, 0x1FF)
            vcpu.lapic.mmio_write(d.APIC_LDR, 4, 1 << 24 + number)
    handle(guest, VECTOR, COUNT + END[x2apic] + IRET)


def started(guest: Guest, number: int, code: str, *, interrupts: bool = True) -> SoftVcpu:
    vcpu = place(guest, number, code, OTHER_CODE if number else CODE)
    vcpu.state.flags |= RFLAGS_IF if interrupts else 0
    return vcpu


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest(2) as made:
        yield made


# --- sending, delivering, ending


@pytest.mark.parametrize("x2apic, kind, destination", [
    (False, 0, 1), (True, 0, 1), (False, LOGICAL, 2), (True, LOGICAL, 2), (False, OTHERS, 0), (True, OTHERS, 0)])
def test_one_processor_interrupts_another_within_native_code(
    guest: Guest, x2apic: bool, kind: int, destination: int
) -> None:
    sender = started(guest, 0, write_icr(0x4000 | kind | VECTOR, destination, x2apic=x2apic) + WAIT_FOR_ONE)
    target = started(guest, 1, WAIT_FOR_ONE)
    prepare(guest, x2apic=x2apic)
    exits = [exits_of(vcpu) for vcpu in (sender, target)]
    run_both(guest)
    assert word(guest, 0x2000) == 1 and OTHER_CODE <= word(guest, 0x2002) <= OTHER_CODE + 9
    for counts in exits:
        assert counts[EXIT_MSR] == counts[EXIT_MMIO] == 0
    assert target.lapic.isr == target.lapic.irr == target.lapic.ppr == 0


@xapic_and_x2apic
def test_a_processor_interrupts_itself(guest: Guest, x2apic: bool) -> None:
    send = write_icr(0x4000 | SELF | VECTOR, 0, x2apic=x2apic)
    # 10 times; each is taken right behind its command
    loop = f"be0a00 {send} 4e 75{-(len(bytes.fromhex(send)) + 3) & 0xFF:02x} {OUT}"
    vcpu = started(guest, 0, loop)
    prepare(guest, x2apic=x2apic)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2000) == 10 and word(guest, 0x2002) == CODE + 3 + len(bytes.fromhex(send))
    assert counts[EXIT_MSR] == counts[EXIT_MMIO] == 0


@xapic_and_x2apic
def test_everybody_is_interrupted_with_oneself(guest: Guest, x2apic: bool) -> None:
    sender = started(guest, 0, write_icr(0x4000 | ALL | VECTOR, 0, x2apic=x2apic) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=x2apic)
    sender.run()
    assert word(guest, 0x2000) == 1
    target.run()
    assert word(guest, 0x2000) == 2


def test_the_self_ipi_register(guest: Guest) -> None:
    """mov ecx, 0x83f; mov eax, VECTOR; xor edx, edx; wrmsr."""
    vcpu = started(guest, 0, f"66b93f080000 66b8{VECTOR:02x}000000 6631d2 0f30 {OUT}")
    prepare(guest, x2apic=True)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2000) == 1 and not counts[EXIT_MSR]


@pytest.mark.parametrize("low, destination, received", [
    (0x4000 | VECTOR, 0xFFFF_FFFF, 2),     # broadcast
    (0x4100 | VECTOR, 1, 1),               # lowest priority
    (0xC000 | VECTOR, 1, 1),               # a trigger mode, which means nothing here
    (0x4000 | VECTOR, 200, 0),             # nobody
    (0x4800 | VECTOR, 7, 2),               # three of cluster 0, one of which is nobody
])
def test_every_other_command_is_the_local_apics_to_carry_out(
    guest: Guest, low: int, destination: int, received: int
) -> None:
    sender, target = (
        started(guest, 0, write_icr(low, destination, x2apic=True) + OUT), started(guest, 1, OUT))
    prepare(guest, x2apic=True)
    counts = exits_of(sender)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == received and counts[EXIT_MSR] == 1


def test_an_id_that_two_have_means_both(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=False) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=False)
    sender.lapic.mmio_write(d.APIC_ID, 4, 1 << 24)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == 2


def test_a_logical_id_moves_with_its_register(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | LOGICAL | VECTOR, 0x80, x2apic=False) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=False)
    target.lapic.mmio_write(d.APIC_LDR, 4, 0x80 << 24)
    counts = exits_of(sender)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == 1 and not counts[EXIT_MMIO]


def test_an_apic_that_software_has_disabled_takes_nothing(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=True)
    target.lapic.msr_write(0x80F, 0xFF)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == 0 and target.lapic.irr == 0


@pytest.mark.parametrize("vector", [0, 15])
def test_a_vector_that_no_apic_takes_is_an_error(guest: Guest, vector: int) -> None:
    sender = started(guest, 0, write_icr(0x4000 | vector, 1, x2apic=True) + OUT)
    prepare(guest, x2apic=True)
    sender.run()
    assert sender.lapic.esr_pending == d.ESR_SEND_ILLEGAL_VECTOR and guest.vcpus[1].lapic.irr == 0


def test_the_end_of_a_level_triggered_vector_is_told(guest: Guest) -> None:
    ended: list[tuple[int, bool]] = []
    vcpu = started(guest, 0, OUT)
    prepare(guest, x2apic=True)
    guest.vm.chips().bus.eoi_listener = lambda vector, level: ended.append((vector, level))
    counts = exits_of(vcpu)
    vcpu.lapic.deliver(d.DM_FIXED, VECTOR, level=True)
    vcpu.run()
    assert ended == [(VECTOR, True)] and counts[EXIT_MSR] == 1 and vcpu.lapic.isr == 0


def test_an_end_that_somebody_waits_for_is_told(guest: Guest) -> None:
    ended: list[tuple[int, bool]] = []
    vcpu = started(guest, 0, OUT)
    prepare(guest, x2apic=True)
    bus = guest.vm.chips().bus
    bus.eoi_listener, bus.eoi_vectors = lambda vector, level: ended.append((vector, level)), 1 << VECTOR
    vcpu.lapic.deliver(d.DM_FIXED, VECTOR)
    vcpu.run()
    assert ended == [(VECTOR, False)]


def test_a_vector_that_was_level_triggered_becomes_edge_triggered(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=True)
    target.lapic.deliver(d.DM_FIXED, VECTOR, level=True)
    target.run()
    assert target.lapic.tmr == 1 << VECTOR
    sender.run()
    assert target.lapic.tmr == 0 and target.lapic.irr == 1 << VECTOR


# --- what holds a vector back


def test_none_comes_in_the_shadow_of_sti(guest: Guest) -> None:
    """sti; inc ax; inc ax; out."""
    target = started(guest, 1, "fb 40 40" + OUT, interrupts=False)
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    prepare(guest, x2apic=True)
    sender.run()
    counts = exits_of(target)
    target.run()
    assert word(guest, 0x2000) == 1 and word(guest, 0x2002) == OTHER_CODE + 2 and not counts[EXIT_PENDING]


@pytest.mark.parametrize("opening", ["9c 58 80cc02 50 9d", "fb 90"], ids=["popf", "sti"])
def test_it_comes_when_interrupts_are_let_through(guest: Guest, opening: str) -> None:
    send = write_icr(0x4000 | SELF | VECTOR, 0, x2apic=True)
    vcpu = started(guest, 0, send + "90 90" + opening + OUT, interrupts=False)
    prepare(guest, x2apic=True)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2002) == CODE + len(bytes.fromhex(send + "90 90" + opening))
    assert not counts[EXIT_PENDING] and not counts[EXIT_MSR]


@xapic_and_x2apic
def test_it_comes_when_the_task_priority_falls(guest: Guest, x2apic: bool) -> None:
    def priority(value: int) -> str:
        if x2apic:
            return f"66b908080000 66b8{value:02x}000000 6631d2 0f30"
        return f"26 66c7068000{value:02x}000000"

    send = write_icr(0x4000 | SELF | VECTOR, 0, x2apic=x2apic)
    vcpu = started(guest, 0, priority(0x6F) + send + "90 90" + priority(0x50) + OUT)
    prepare(guest, x2apic=x2apic)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2002) == CODE + len(bytes.fromhex(priority(0) * 2 + send + "90 90"))
    assert counts[EXIT_MSR] == counts[EXIT_MMIO] == 0 and vcpu.state.cr8 == 5 and vcpu.lapic.tpr == 0x50


def test_a_lower_one_waits_for_the_end_of_a_higher_one(guest: Guest) -> None:
    """The handler of 0x71 sends 0x61 to itself, and ends; 0x61 comes before the instruction behind the end."""
    send = write_icr(0x4000 | SELF | VECTOR, 0, x2apic=True)
    vcpu = started(guest, 0, write_icr(0x4000 | SELF | 0x71, 0, x2apic=True) + "90" + OUT)
    prepare(guest, x2apic=True)
    end = "66b90b080000 6631c0 6631d2 0f30"
    handle(guest, 0x71, "fb" + send + "90" + end + "90" + IRET, 0x3800)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2002) == 0x3800 + len(bytes.fromhex("fb" + send + "90" + end)) and not counts[EXIT_MSR]


def test_an_end_with_nothing_in_service_does_nothing(guest: Guest) -> None:
    vcpu = started(guest, 0, "66b90b080000 6631c0 6631d2 0f30" + OUT)
    prepare(guest, x2apic=True)
    vcpu.run()
    assert vcpu.lapic.isr == vcpu.lapic.irr == 0


def test_the_8259_comes_first(guest: Guest) -> None:
    """Both wait for IF. The 8259's vector 8 is handled at 0x3900: it counts in [0x2010] what [0x2000] has counted."""
    vcpu = started(guest, 0, "fb 90 90" + OUT, interrupts=False)
    prepare(guest, x2apic=False)
    handle(guest, 8, "a10020 40 a31020 b020 e620" + IRET, 0x3900)
    chips = guest.vm.chips()
    for port, value in ((0x20, 0x11), (0x21, 8), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
        chips.pio_bus.write(port, 1, value)
    vcpu.lapic.deliver(d.DM_FIXED, VECTOR)
    guest.vm.irq_line(0, True)
    vcpu.run()
    assert word(guest, 0x2010) == 1 and word(guest, 0x2000) == 1


# --- sleeping


@pytest.mark.parametrize("how", ["sleeps", "dozes", "looks"])
def test_a_halted_processor_is_woken(guest: Guest, how: str) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + WAIT_FOR_ONE)
    target = started(guest, 1, "fb f4" + OUT, interrupts=False)
    prepare(guest, x2apic=True)
    target.state.halt_poll = (1 << 60) if how == "looks" else 0
    target.state.halt_longest = 0 if how == "sleeps" else 1
    counts, target_counts = exits_of(sender), exits_of(target)
    thread = threading.Thread(target=target.run)
    thread.start()
    while how == "sleeps" and not target.state.asleep or how == "dozes" and not target.state.dozing:
        pass
    sender.run()
    thread.join(60)
    assert not thread.is_alive() and word(guest, 0x2002) == OTHER_CODE + 2
    if how == "sleeps":
        assert counts[EXIT_WAKE] == 1 and target_counts[EXIT_HLT] == 1


def test_a_vector_posted_before_the_thread_sleeps_keeps_it_awake(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=True)
    target.set_mp_state(MpState.HALTED)
    sender.run()
    assert isinstance(target.run(), IoExit) and word(guest, 0x2000) == 1


def test_a_halt_with_interrupts_off_is_not_ended(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, "f4" + OUT, interrupts=False)
    prepare(guest, x2apic=True)
    thread = threading.Thread(target=target.run)
    thread.start()
    while not target.state.asleep:
        pass
    sender.run()
    time.sleep(0.02)
    assert target.get_mp_state() is MpState.HALTED and target.lapic.irr == 1 << VECTOR
    target.kick()
    thread.join(60)
    assert not thread.is_alive() and word(guest, 0x2000) == 0


def test_a_kick_ends_the_poll_of_a_halt(guest: Guest) -> None:
    target = started(guest, 1, "f4", interrupts=False)
    target.state.halt_poll = 1 << 60
    thread = threading.Thread(target=target.run)
    thread.start()
    while target.state.rip != OTHER_CODE + 1:
        pass
    target.kick()
    thread.join(60)
    assert not thread.is_alive()


def test_short_halts_make_polls_longer_and_long_ones_end_them(guest: Guest) -> None:
    """The guest halts again and again; this thread wakes it, at once or late."""
    target = started(guest, 1, "f4 ebfd")
    prepare(guest, x2apic=True)
    longest = target.state.halt_longest
    assert longest > 0 and target.state.halt_poll == 0
    thread = threading.Thread(target=target.run)
    thread.start()
    while not target.state.asleep:
        pass
    assert target.state.halt_poll == 0 and target.state.dozed_ns >= 500_000
    seen, deadline = set(), time.monotonic() + 20
    while not seen & {longest // 8, longest // 4} and time.monotonic() < deadline:
        if target.state.dozing or target.state.asleep:
            target.lapic.deliver(d.DM_FIXED, VECTOR)
        seen.add(target.state.halt_poll)
    assert seen & {longest // 8, longest // 4}
    while not target.state.asleep:
        pass
    assert target.state.halt_poll == 0
    target.kick()
    thread.join(30)
    assert not thread.is_alive()


def test_none_is_lost_between_two_that_interrupt_each_other(guest: Guest) -> None:
    """Each sends when its turn comes, which the other's vector makes, and half of the times halts until then.

    Not the last time: nobody sends any more.
    """
    rounds = 3000
    for number in range(2):
        send = write_icr(0x4000 | VECTOR, 1 - number, x2apic=True)
        # again: mov ax, [0x2000]; cmp ax, rounds; jae out; mov bx, ax; and ax, 1; cmp ax, NUMBER; jne again
        #        send; wait: cli; cmp [0x2000], bx; jne go; test bl, 2; jnz spin; sti; hlt; jmp wait; spin: sti; nop;
        #        jmp wait; go: sti; jmp again
        head = f"a10020 3d{rounds.to_bytes(2, 'little').hex()}"
        body = f"89c3 83e001 83f8{number:02x}"
        wait = "fa 391e0020 750d f6c302 7504 fb f4 ebf0 fb 90 ebec fb"
        size = len(bytes.fromhex(send + wait))
        turn = 2 + len(bytes.fromhex(head + body)) + 2
        code = (head + f"73{turn - 8 + size + 2:02x}" + body + f"75{-turn & 0xFF:02x}" + send + wait
                + f"eb{-(turn + size + 2) & 0xFF:02x}" + OUT)
        started(guest, number, code)
    prepare(guest, x2apic=True)
    for vcpu in guest.vcpus:
        vcpu.state.halt_poll = 50_000 * vcpu.apic_id
    run_both(guest)
    assert word(guest, 0x2000) == rounds


# --- who else has to know


def test_who_looks_on_is_told(guest: Guest) -> None:
    vcpu = started(guest, 0, write_icr(0x4000 | SELF | VECTOR, 0, x2apic=True) + OUT)
    prepare(guest, x2apic=True)
    onlooker = OnLooker()
    vcpu.set_log(onlooker)
    vcpu.run()
    assert [event.vector for event in onlooker.told] == [VECTOR] and word(guest, 0x2000) == 1


def test_an_offer_to_end_in_memory_is_looked_at_before_the_next_vector(guest: Guest) -> None:
    """The handler leaves (a read of the 8259), so the offer is made; it takes it, and the other's vector comes. Where
    that vector was there before the handler looked, the offer is gone, and it ends by the register.
    """
    target = started(guest, 1, "833e002000 74f9" + OUT)
    prepare(guest, x2apic=True)
    end = END[True]
    handle(guest, 0x71, f"e420 0fba36003400 72{len(bytes.fromhex(end)):02x} {end} fb 833e002000 74f9" + IRET, 0x3800)
    target.set_msrs({0x4B56_4D04: 0x3401})
    target.lapic.deliver(d.DM_FIXED, 0x71)
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + WAIT_FOR_ONE)
    thread = threading.Thread(target=target.run)
    thread.start()
    while not target.state.eoi_offered:
        pass
    sender.run()
    thread.join(60)
    assert not thread.is_alive() and word(guest, 0x2000) == 1 and target.lapic.isr == 0


def test_saved_state_has_what_was_posted(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=True)
    sender.run()
    saved = target.get_lapic()
    assert saved.register(d.APIC_IRR + 0x30) == 1 << VECTOR - 96
    target.set_lapic(LapicState(saved.pack()[:d.APIC_IRR] + bytes(0x80) + saved.pack()[d.APIC_IRR + 0x80:]))
    assert target.lapic.irr == 0
    target.run()
    assert word(guest, 0x2000) == 0
    target.set_lapic(saved)
    started(guest, 1, OUT)
    target.run()
    assert word(guest, 0x2000) == 1


def test_init_forgets_what_was_posted(guest: Guest) -> None:
    sender = started(guest, 0, write_icr(0x4000 | VECTOR, 1, x2apic=True) + OUT)
    target = started(guest, 1, OUT)
    prepare(guest, x2apic=True)
    sender.run()
    target.lapic.init_reset()
    assert target.lapic.irr == target.lapic.isr == 0 and not target.processor.posted()
    assert not target.lapic.software_enabled and target.state.apic_enabled == 0
