"""NMIs between processors: sent and taken by native code where it can, else by the hypervisor, and none lost.

The guests are in real mode. The handler of vector 2 counts in [0x2000] and keeps the address that it returns to.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from pellucid.cpu.state import EXIT_HLT, EXIT_MMIO, EXIT_MSR, EXIT_PENDING, EXIT_WAKE
from pellucid.kvm.api import Event, Exit, IoExit, MpState
from pellucid.kvm.backends.soft.vcpu import SoftVcpu
from pellucid.records import replace
from tests.kvm.test_soft_smp import Guest

CODE, OTHER_CODE, HANDLER = 0x1000, 0x4000, 0x3000
COUNT_AND_IRET = "50 55 89e5 8b4604 a30220 ff060020 5d 58 cf"     # keep [bp+4] in [0x2002]; inc word [0x2000]; iret
APIC, NMI_TO, X2APIC_BASE = 0xFEE0_0000, 0x4400, 0xFEE0_0C00


@pytest.fixture
def guest() -> Iterator[Guest]:
    made = Guest(2)
    made.put(8, "0030 0000")
    made.put(HANDLER, COUNT_AND_IRET)
    made.clock.start()
    yield made
    made.close()
    made.clock.close()


def place(guest: Guest, number: int, code: str, at: int = CODE) -> SoftVcpu:
    """Have a vCPU execute `code` next; ES:0 is the local APIC's page."""
    vcpu = guest.vcpus[number]
    guest.put(at, code)
    vcpu.set_mp_state(MpState.RUNNABLE)
    sregs = vcpu.get_sregs()
    vcpu.set_sregs(replace(sregs, cs=replace(sregs.cs, base=0, selector=0), es=replace(sregs.es, base=APIC)))
    vcpu.set_regs(replace(vcpu.get_regs(), rip=at, rsp=0x8000 + 0x800 * number, rflags=2))
    return vcpu


def use_x2apic(vcpu: SoftVcpu) -> None:
    vcpu.set_apic_base(X2APIC_BASE | (0x100 if vcpu.apic_id == 0 else 0), host_initiated=True)


def exits_of(vcpu: SoftVcpu) -> Counter[int]:
    """Counts the exits to Python from here on."""
    counts: Counter[int] = Counter()
    for reason, handler in list(vcpu._handlers.items()):
        def counted(reason: int = reason, handler=handler) -> Exit | None:  # type: ignore[no-untyped-def]
            counts[reason] += 1
            return handler()  # type: ignore[no-any-return]

        vcpu._handlers[reason] = counted
    return counts


def word(guest: Guest, at: int) -> int:
    content = guest.vm.read_guest(at, 2)
    assert content is not None
    return int.from_bytes(content, "little")


def write_icr(low: int, destination: int, *, x2apic: bool) -> str:
    """mov ecx, 0x830; mov edx, destination; mov eax, low; wrmsr … or two stores to ES:0x310 and ES:0x300."""
    value = low.to_bytes(4, "little").hex()
    if x2apic:
        return f"66b930080000 66ba{destination.to_bytes(4, 'little').hex()} 66b8{value} 0f30"
    return f"26 66c7061003{(destination << 24).to_bytes(4, 'little').hex()} 26 66c7060003{value}"


WAIT_FOR_ONE = "833e002000 74f9 e699"      # until [0x2000] is not 0; out 0x99, al
OUT = "e699"


def run_both(guest: Guest) -> None:
    exits: list[Exit] = []
    threads = [threading.Thread(target=lambda v=v: exits.append(v.run())) for v in guest.vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(exits) == 2 and all(isinstance(exit, IoExit) and exit.port == 0x99 for exit in exits)


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
    told: list[Event] = []

    class OnLooker:
        new_blocks, blocks, events = False, False, True

        def block(self, block: object, fresh: bool) -> None: ...

        def event(self, event: Event) -> None:
            told.append(event)

        def reset(self) -> None: ...

    vcpu = place(guest, 0, write_icr(NMI_TO, 0, x2apic=True) + OUT)
    use_x2apic(vcpu)
    vcpu.set_log(OnLooker())
    vcpu.run()
    assert [event.vector for event in told] == [2] and word(guest, 0x2000) == 1


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
