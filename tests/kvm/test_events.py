"""Event priorities, the request word, and saved events."""

import itertools
import threading
from typing import Any

import pytest

from pellucid.kvm.errors import StateError
from pellucid.kvm.events import (
    EventKind,
    Injection,
    Interruptibility,
    InterruptShadow,
    PendingEvents,
    QueuedException,
    QueuedInterrupt,
    VcpuEvents,
    accept_apic_events,
    choose_event,
    save_events,
)
from pellucid.kvm.regs import MpState
from pellucid.kvm.vcpu_requests import (
    KVM_REQ_CLOCK_UPDATE,
    KVM_REQ_EVENT,
    KVM_REQ_NMI,
    KVM_REQ_TLB_FLUSH,
    VcpuRequests,
)

OPEN = Interruptibility(interrupt_flag=True)
CLOSED = Interruptibility(interrupt_flag=False)
GP, PF, DF, DB, UD = 13, 14, 8, 1, 6


def test_nothing_to_do() -> None:
    assert choose_event(OPEN, PendingEvents(), False) == Injection()


def test_order_of_fresh_events() -> None:
    pending = PendingEvents(nmi_pending=1, smi_pending=True)
    pending.queue_exception(GP, 0)
    order = []
    has_interrupt = True
    while (chosen := choose_event(OPEN, pending, has_interrupt)).event is not None:
        order.append(chosen.event)
        assert not chosen.reinject
        pending.begin(chosen.event, 0x30)
        pending.delivered(chosen.event)
        has_interrupt = has_interrupt and chosen.event is not EventKind.INTERRUPT
    assert order == [EventKind.EXCEPTION, EventKind.SMI, EventKind.NMI, EventKind.INTERRUPT]


def test_windows_are_asked_for_what_waits() -> None:
    pending = PendingEvents(nmi_pending=1, smi_pending=True, exception_pending=QueuedException(UD))
    assert choose_event(OPEN, pending, True) == Injection(EventKind.EXCEPTION, False, True, True, True)
    pending = PendingEvents(nmi_pending=2)
    assert choose_event(OPEN, pending, False) == Injection(EventKind.NMI, nmi_window=True), "one more NMI waits"
    assert choose_event(CLOSED, PendingEvents(), True) == Injection(irq_window=True)


@pytest.mark.parametrize(
    ("guest", "interrupt", "nmi", "smi"),
    [
        (OPEN, True, True, True),
        (CLOSED, False, True, True),
        (Interruptibility(True, shadow=InterruptShadow.STI), False, False, True),
        (Interruptibility(True, shadow=InterruptShadow.MOV_SS), False, False, True),
        (Interruptibility(True, nmi_blocked=True), True, False, True),
        (Interruptibility(True, in_smm=True), True, True, False),
    ],
)
def test_what_blocks_what(guest: Interruptibility, interrupt: bool, nmi: bool, smi: bool) -> None:
    assert (choose_event(guest, PendingEvents(), True).event is EventKind.INTERRUPT) == interrupt
    assert (choose_event(guest, PendingEvents(nmi_pending=1), False).event is EventKind.NMI) == nmi
    assert (choose_event(guest, PendingEvents(smi_pending=True), False).event is EventKind.SMI) == smi
    assert choose_event(guest, PendingEvents(exception_pending=QueuedException(PF)), True).event is EventKind.EXCEPTION


def test_half_delivered_events_go_first_and_again() -> None:
    for injected, kind in (
        ({"exception_injected": QueuedException(PF, 2)}, EventKind.EXCEPTION),
        ({"nmi_injected": True}, EventKind.NMI),
        ({"interrupt_injected": QueuedInterrupt(0x30)}, EventKind.INTERRUPT),
    ):
        pending = PendingEvents(nmi_pending=1, smi_pending=True, **injected)
        blocked = Interruptibility(False, nmi_blocked=True, shadow=InterruptShadow.STI)
        for guest in (OPEN, blocked):
            chosen = choose_event(guest, pending, True)
            assert chosen.event is kind and chosen.reinject
            assert chosen.smi_window and chosen.nmi_window and chosen.irq_window


def test_an_exception_raised_by_the_delivery_goes_before_the_interrupt_it_interrupted() -> None:
    pending = PendingEvents(interrupt_injected=QueuedInterrupt(0x30))
    pending.queue_exception(PF, 0, payload=0x1000)
    chosen = choose_event(OPEN, pending, True)
    assert chosen.event is EventKind.EXCEPTION and not chosen.reinject
    pending.begin(chosen.event)
    pending.delivered(chosen.event)
    again = choose_event(CLOSED, pending, False)
    assert again.event is EventKind.INTERRUPT and again.reinject, "an acknowledged interrupt is never lost"


CONTRIBUTORY = {0, 10, 11, 12, 13, 21}


def test_double_fault_matrix() -> None:
    vectors = (0, 1, 6, 10, 11, 12, 13, 14, 17, 21)
    for first, second in itertools.product(vectors, vectors):
        pending = PendingEvents(exception_injected=QueuedException(first, 0))
        pending.queue_exception(second, 0)
        expected = second
        if (first in CONTRIBUTORY and second in CONTRIBUTORY) or (first == PF and second in CONTRIBUTORY | {PF}):
            expected = DF
        assert pending.exception_pending is not None and pending.exception_injected is None
        assert pending.exception_pending.vector == expected, (first, second)
        assert not pending.triple_fault


def test_triple_fault() -> None:
    pending = PendingEvents()
    for vector in (GP, GP, GP):
        pending.queue_exception(vector, 0)
    assert pending.triple_fault and pending.exception_pending is None


def test_nmi_limits() -> None:
    pending = PendingEvents()
    for _ in range(10):
        pending.queue_nmi()
    pending.process_nmi(nmi_blocked=False)
    assert pending.nmi_pending == 2
    pending.nmi_pending = 0
    for _ in range(10):
        pending.queue_nmi()
    pending.process_nmi(nmi_blocked=True)
    assert pending.nmi_pending == 1
    pending.process_nmi(nmi_blocked=False)
    assert pending.nmi_pending == 1, "each NMI counts once"
    pending.clear()
    assert pending == PendingEvents()


def test_init_and_sipi() -> None:
    waiting, running = MpState.INIT_RECEIVED, MpState.RUNNABLE
    init = accept_apic_events(True, False, running, is_bsp=False)
    assert (init.reset, init.start, init.mp_state) == (True, False, waiting)
    assert accept_apic_events(True, False, running, is_bsp=True).mp_state is running
    start = accept_apic_events(False, True, waiting, is_bsp=False)
    assert (start.reset, start.start, start.mp_state) == (False, True, running)
    assert not accept_apic_events(False, True, running, is_bsp=False).start, "a SIPI to a running processor"
    assert not accept_apic_events(False, True, MpState.UNINITIALIZED, is_bsp=False).start
    both = accept_apic_events(True, True, MpState.UNINITIALIZED, is_bsp=False)
    assert both.reset and both.start and both.mp_state is running
    latched = accept_apic_events(True, True, running, is_bsp=False, init_latched=True)
    assert not latched.reset and not latched.start and latched.keep_init


def test_saved_events_round_trip() -> None:
    pending = PendingEvents(
        exception_pending=QueuedException(PF, 7, 0xDEAD_0000),
        interrupt_injected=QueuedInterrupt(0x80, soft=True),
        nmi_pending=2,
        nmi_injected=True,
        smi_pending=True,
        triple_fault=True,
    )
    guest = Interruptibility(True, nmi_blocked=True, shadow=InterruptShadow.MOV_SS, in_smm=True)
    saved = save_events(pending, guest, sipi_vector=0x9A)
    assert len(saved.pack()) == 64 and VcpuEvents.unpack(saved.pack()) == saved
    assert saved.to_pending() == pending
    assert (saved.interrupt_shadow, saved.nmi_masked, saved.smi_smm, saved.sipi_vector) == (1, 1, 1, 0x9A)
    assert save_events(PendingEvents(), CLOSED) == VcpuEvents()


def test_a_machine_check_is_saved_as_its_exception() -> None:
    saved = save_events(PendingEvents(machine_check=True), CLOSED)
    assert (saved.exception_pending, saved.exception_nr, saved.exception_has_error_code) == (1, 18, 0)
    assert saved.to_pending() == PendingEvents(machine_check=True)
    both = save_events(PendingEvents(machine_check=True, exception_injected=QueuedException(PF, 7, 0xDEAD)), CLOSED)
    assert (both.exception_pending, both.exception_injected, both.exception_nr) == (1, 0, 18)
    assert VcpuEvents(exception_injected=1, exception_nr=18).to_pending().machine_check


@pytest.mark.parametrize(
    "bad",
    [
        {"exception_pending": 1, "exception_nr": 2}, {"exception_injected": 1, "exception_nr": 32},
        {"exception_injected": 1, "exception_pending": 1}, {"interrupt_shadow": 4}, {"smi_smm_inside_nmi": 1},
        {"exception_nr": 256}, {"exception_nr": -1}, {"sipi_vector": 1 << 32}, {"reserved": (0,) * 27},
    ],
)  # fmt: skip
def test_hostile_events(bad: dict[str, Any]) -> None:
    with pytest.raises(StateError):
        VcpuEvents(**bad)


def test_requests() -> None:
    requests = VcpuRequests()
    assert not requests.pending() and not requests.check(KVM_REQ_EVENT)
    assert requests.make(KVM_REQ_EVENT) and not requests.make(KVM_REQ_EVENT)
    requests.make(KVM_REQ_CLOCK_UPDATE)
    assert requests.pending() and requests.test(KVM_REQ_EVENT)
    assert requests.names() == ["KVM_REQ_CLOCK_UPDATE", "KVM_REQ_EVENT"]
    assert requests.check(KVM_REQ_EVENT) and not requests.check(KVM_REQ_EVENT)
    requests.make(KVM_REQ_TLB_FLUSH)
    assert requests.take() == 1 << KVM_REQ_CLOCK_UPDATE | 1 << KVM_REQ_TLB_FLUSH and requests.take() == 0
    requests.make(KVM_REQ_NMI)
    requests.clear(KVM_REQ_NMI)
    assert not requests.pending()


def test_requests_are_not_lost_between_threads() -> None:
    """Every request that was newly made is served exactly once, whoever made others meanwhile."""
    requests = VcpuRequests()
    bits = (3, 9, 20)
    made = dict.fromkeys(bits, 0)
    served = dict.fromkeys(bits, 0)

    def make(bit: int) -> None:
        for _ in range(20_000):
            made[bit] += requests.make(bit)

    threads = [threading.Thread(target=make, args=(bit,)) for bit in bits]
    for thread in threads:
        thread.start()
    for _ in range(20_000):
        for bit in bits:
            served[bit] += requests.check(bit)
    for thread in threads:
        thread.join()
    for bit in bits:
        served[bit] += requests.check(bit)
    assert served == made and not requests.pending()
