"""NMIs between processors: sent and taken by native code where it can, else by the hypervisor, and none lost.

The guests are in real mode. The handler of vector 2 counts in [0x2000] and keeps the address that it returns to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import EXIT_HLT, EXIT_MMIO, EXIT_MSR, EXIT_PENDING, EXIT_WAKE
from pellucid.kvm.api import IoExit, MpState
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

HANDLER = 0x3000
COUNT_AND_IRET = "50 55 89e5 8b4604 a30220 ff060020 5d 58 cf"     # keep [bp+4] in [0x2002]; inc word [0x2000]; iret
NMI_TO = 0x4400


@pytest.fixture
def guest() -> Iterator[Guest]:
    with running_guest(2) as made:
        made.put(8, "0030 0000")
        made.put(HANDLER, COUNT_AND_IRET)
        yield made


@pytest.mark.parametrize("x2apic", [False, True], ids=["xapic", "x2apic"])
def test_one_processor_interrupts_another_within_native_code(guest: Guest, x2apic: bool) -> None:
    sender = place(guest, 0, write_icr(NMI_TO, 1, x2apic=x2apic) + WAIT_FOR_ONE)
    target = place(guest, 1, WAIT_FOR_ONE, OTHER_CODE)
    if x2apic:
        use_x2apic(sender)
        use_x2apic(target)
    counts = exits_of(sender)
    target_counts = exits_of(target)
    run_both(guest)
    assert word(guest, 0x2000) == 1 and OTHER_CODE <= word(guest, 0x2002) <= OTHER_CODE + 9
    assert counts[EXIT_MSR] == counts[EXIT_MMIO] == 0
    assert target_counts[EXIT_MSR] == target_counts[EXIT_MMIO] == 0
    assert sender.lapic.icr == (1 << 32 if x2apic else 1 << 56) | NMI_TO


def test_the_xapics_command_register_reads_back(guest: Guest) -> None:
    """mov eax, es:[0x300]; mov [0x2010], eax; mov eax, es:[0x310]; mov [0x2014], eax."""
    read_back = "26 66a10003 66a31020 26 66a11003 66a31420"
    vcpu = place(guest, 0, write_icr(NMI_TO, 200, x2apic=False) + read_back + OUT)
    counts = exits_of(vcpu)
    vcpu.run()
    assert guest.vm.read_guest(0x2010, 8) == (200 << 56 | NMI_TO).to_bytes(8, "little")
    assert counts[EXIT_MMIO] == 1      # nobody is there: what to do about it is the local APIC's to know
    assert vcpu.lapic.icr == 200 << 56 | NMI_TO and vcpu.lapic.mmio_read(0x310, 4) == 200 << 24


def test_further_nmis_while_one_is_handled_become_one(guest: Guest) -> None:
    """The first handler sends itself ten; one of them is delivered behind its IRET (SDM vol. 3, 6.7.1)."""
    send = write_icr(NMI_TO, 0, x2apic=True)
    guest.put(HANDLER, "ff060020 833e002001 7505 " + "e80500" + "cf" + "9090" + "90" + "cf"
              + "b90a00 51 " + send + " 59 e2" + f"{-(len(bytes.fromhex(send)) + 4) & 0xFF:02x}" + "c3")
    vcpu = place(guest, 0, send + "833e002002 72f9 90 90 90 e699")
    use_x2apic(vcpu)
    counts = exits_of(vcpu)
    assert vcpu.run() == IoExit(0x99, 1, True, vcpu.get_regs().rax & 0xFF)
    assert word(guest, 0x2000) == 2 and not counts[EXIT_MSR]
    assert vcpu.get_vcpu_events().nmi_pending == vcpu.get_vcpu_events().nmi_masked == 0


def test_a_halted_processor_is_woken(guest: Guest) -> None:
    sender = place(guest, 0, write_icr(NMI_TO, 1, x2apic=True) + WAIT_FOR_ONE)
    target = place(guest, 1, "f4 e699", OTHER_CODE)
    for vcpu in guest.vcpus:
        use_x2apic(vcpu)
    counts, target_counts = exits_of(sender), exits_of(target)
    thread = threading.Thread(target=target.run)
    thread.start()
    while not target.state.asleep:
        pass
    sender.run()
    thread.join(60)
    assert not thread.is_alive() and word(guest, 0x2000) == 1 and word(guest, 0x2002) == OTHER_CODE + 1
    assert counts[EXIT_WAKE] == 1 and target_counts[EXIT_HLT] == 1


def test_an_nmi_posted_before_the_thread_sleeps_keeps_it_awake(guest: Guest) -> None:
    target = place(guest, 0, OUT)
    target.set_mp_state(MpState.HALTED)
    target.processor.send_nmi()
    assert target.run() == IoExit(0x99, 1, True, target.get_regs().rax & 0xFF)
    assert word(guest, 0x2000) == 1


def test_none_comes_in_the_shadow_of_sti(guest: Guest) -> None:
    vcpu = place(guest, 0, "40 40 e699")
    vcpu.state.shadow = 1
    vcpu.processor.send_nmi()
    vcpu.run()
    assert word(guest, 0x2000) == 1 and word(guest, 0x2002) == CODE + 1


def test_who_looks_on_is_told(guest: Guest) -> None:
    vcpu = place(guest, 0, write_icr(NMI_TO, 0, x2apic=True) + OUT)
    use_x2apic(vcpu)
    onlooker = OnLooker()
    vcpu.set_log(onlooker)
    vcpu.run()
    assert [event.vector for event in onlooker.told] == [2] and word(guest, 0x2000) == 1


@pytest.mark.parametrize("low, destination, received", [
    (0x84400, 0, 2),            # shorthand: all
    (0xC4400, 0, 1),            # all but itself
    (NMI_TO, 0xFFFF_FFFF, 2),   # broadcast
    (0x4C00, 3, 2),             # logical: APICs 0 and 1 of cluster 0
    (NMI_TO, 200, 0),           # nobody
])
def test_every_other_destination_is_the_local_apics_to_find(
    guest: Guest, low: int, destination: int, received: int
) -> None:
    sender, target = place(guest, 0, write_icr(low, destination, x2apic=True) + OUT), place(guest, 1, OUT, OTHER_CODE)
    use_x2apic(sender)
    use_x2apic(target)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == received


def test_an_id_that_two_have_means_both(guest: Guest) -> None:
    sender, target = place(guest, 0, write_icr(NMI_TO, 1, x2apic=False) + OUT), place(guest, 1, OUT, OTHER_CODE)
    sender.lapic.mmio_write(0x20, 4, 1 << 24)
    sender.run()
    target.run()
    assert word(guest, 0x2000) == 2


def test_none_is_lost_between_two_that_interrupt_each_other(guest: Guest) -> None:
    """Each sends when its turn comes, which the other's NMI makes: a lost one would stop both."""
    rounds = 1500
    # again: mov ax, [0x2000]; cmp ax, rounds; jae out; mov bx, ax; and ax, 1; cmp ax, NUMBER; jne again; send; wait
    for number in range(2):
        send = write_icr(NMI_TO, 1 - number, x2apic=True)
        wait = "a10020 39d8 74f9"                             # until [0x2000] is not bx
        size = len(bytes.fromhex(send + wait))
        head = f"a10020 3d{rounds.to_bytes(2, 'little').hex()}"
        body = f"89c3 83e001 83f8{number:02x}"
        before, length = 6, 6 + 2 + 8 + 2 + size + 2
        code = (head + f"73{length - before - 2:02x}" + body + f"75{-(before + 2 + 8 + 2) & 0xFF:02x}" + send + wait
                + f"eb{-length & 0xFF:02x}" + OUT)
        use_x2apic(place(guest, number, code, OTHER_CODE if number else CODE))
    run_both(guest)
    assert word(guest, 0x2000) == rounds


def test_an_nmi_to_itself_makes_no_exit(guest: Guest) -> None:
    send = write_icr(NMI_TO, 0, x2apic=True)
    loop = f"be e803 {send} 4e 75{-(len(bytes.fromhex(send)) + 3) & 0xFF:02x} e699"
    vcpu = place(guest, 0, loop)
    use_x2apic(vcpu)
    counts = exits_of(vcpu)
    vcpu.run()
    assert word(guest, 0x2000) == 1000
    assert counts[EXIT_MSR] == 0 and counts[EXIT_PENDING] < 100
