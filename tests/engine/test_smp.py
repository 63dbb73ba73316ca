"""Several processors on one memory: code that one changes and another executes, and the order of memory accesses.

The processors run on host threads of their own. No test depends on how these are scheduled: a wait ends when what is
waited for has come, and what is asserted holds for every interleaving.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import pytest

from pellucid.cli.bench.asm import assemble
from pellucid.cpu.state import (
    EXIT_EXCEPTION, EXIT_HLT, MAIL_ENTRIES, PAGE, SLOT_READONLY, TLB_ENTRIES, TLB_INVALID, TLB_OFFSET, Mailbox,
    Slot, SlotTable, TlbEntry)
from tests.cpu.bare import Bare

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CODE = (0x1000, 0x2000, 0x3000, 0x4000)
FUNCTION = 0x9000
FLAG, ACK = 0xA000, 0xA040
STACKS = (0x10_0000, 0x11_0000, 0x12_0000, 0x13_0000)


def processors(count: int) -> list[Bare]:
    first = Bare(64)
    machines = [first, *(Bare(64, beside=first) for _ in range(count - 1))]
    for machine, stack in zip(machines, STACKS, strict=False):
        machine.state.gpr[RSP] = stack
    return machines


def run_all(machines: Sequence[Bare], starts: Sequence[int] = CODE) -> list[int]:
    """Run each on a thread of its own; the exit reasons."""
    ends = [-1] * len(machines)

    def run(number: int) -> None:
        ends[number] = machines[number].run(starts[number])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(machines))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def code_bits(machine: Bare, gpa: int) -> int:
    """The VM's code bits of a page, as this processor finds them."""
    table = SlotTable.view(machine.state.slot_table)
    for i in range(table.count):
        slot = Slot.view(machine.state.slot_table + SlotTable.fields["slots"].offset + i * Slot.size)
        if slot.gpa <= gpa < slot.gpa + slot.size:
            assert not slot.flags & SLOT_READONLY
            return int.from_bytes(_bytes(slot.code + (gpa - slot.gpa) // PAGE * 8, 8), "little")
    raise AssertionError(f"no slot at {gpa:#x}")


def _bytes(address: int, size: int) -> bytes:
    return ctypes.string_at(address, size)


def fast_stores(machine: Bare, gpa: int) -> bool:
    """Whether a TLB of this processor lets stores to the page through without the slow path."""
    found = False
    for number in range(3 * TLB_ENTRIES):
        if machine.state.tlb_host[number] == machine.ram.address + gpa:
            entry = TlbEntry.view(machine.processor.address + TLB_OFFSET + number * TlbEntry.size)
            found = found or entry.wtag != TLB_INVALID
    return found


def put(machine: Bare, at: int, text: str) -> None:
    machine.load(at, assemble(text, at).code)


# --- shared code bits ----------------------------------------------------------------------------------


def test_translating_a_page_takes_fast_stores_from_every_processor() -> None:
    first, second = processors(2)
    put(second, CODE[1], f"mov dword [{FUNCTION + 0x800}], 7\nhlt")
    assert second.run(CODE[1]) == EXIT_HLT
    assert fast_stores(second, FUNCTION) and not code_bits(first, FUNCTION)
    put(first, FUNCTION, "mov eax, 5\nhlt")
    assert first.run(FUNCTION) == EXIT_HLT
    assert code_bits(first, FUNCTION) == code_bits(second, FUNCTION) == 1
    assert not fast_stores(second, FUNCTION)


def test_a_processor_that_lost_its_fast_store_reports_the_page() -> None:
    """It may have been between its look at the tag and its store: what was translated meanwhile is dropped, once."""
    first, second = processors(2)
    put(second, CODE[1], f"mov dword [{FUNCTION + 0x800}], 7\nhlt")
    second.run(CODE[1])
    put(first, FUNCTION, "mov eax, 5\nhlt")
    first.run(FUNCTION)
    assert Mailbox.view(second.state.mail).posted
    translated = first.state.count_translated
    second.run(CODE[1])
    assert Mailbox.view(first.state.mail).posted
    first.run(FUNCTION)
    assert first.state.count_translated > translated
    assert not fast_stores(second, FUNCTION) and not Mailbox.view(second.state.mail).posted, "and not once more"


def test_pages_with_code_get_no_fast_stores_from_anybody() -> None:
    first, second = processors(2)
    put(first, FUNCTION, "mov eax, 5\nhlt")
    first.run(FUNCTION)
    put(second, CODE[1], f"mov dword [{FUNCTION + 0x800}], 7\nhlt")
    second.run(CODE[1])
    assert not fast_stores(second, FUNCTION)
    assert code_bits(first, FUNCTION) == 1, "other bytes of the page: the code stays"
    assert first.bytes(FUNCTION + 0x800, 4) == b"\7\0\0\0"


@pytest.mark.parametrize("store", [
    f"mov dword [{FUNCTION + 1}], 6", f"mov rdi, {FUNCTION + 1}\nmov eax, 6\nstosb",
    f"mov rdi, {FUNCTION + 1}\nmov eax, 6\nmov ecx, 1\nrep stosb", f"mov ecx, 6\nxchg [{FUNCTION + 1}], cl"])
def test_a_store_reaches_the_other_processors_translation(store: str) -> None:
    first, second = processors(2)
    put(first, FUNCTION, "mov eax, 5\nhlt")
    put(second, CODE[1], store + "\nhlt")
    for _ in range(2):
        first.load(FUNCTION + 1, b"\5")
        assert first.run(FUNCTION) == EXIT_HLT and first.state.gpr[RAX] == 5
        assert second.run(CODE[1]) == EXIT_HLT
        assert not code_bits(first, FUNCTION)
        assert first.run(FUNCTION) == EXIT_HLT and first.state.gpr[RAX] == 6


def test_an_instruction_across_two_pages_goes_with_either() -> None:
    first, second = processors(2)
    at = FUNCTION + PAGE - 2
    put(first, at, "mov eax, 5\nhlt")
    first.run(at)
    assert code_bits(first, FUNCTION) == 1 << 63 and code_bits(first, FUNCTION + PAGE) & 1
    put(second, CODE[1], f"mov byte [{at + 4}], 1\nhlt")
    second.run(CODE[1])
    first.run(at)
    assert first.state.gpr[RAX] == 0x0100_0005


def test_one_processor_that_drops_everything_leaves_the_others_alone() -> None:
    first, second = processors(2)
    put(first, FUNCTION, "mov eax, 5\nhlt")
    for machine in (first, second):
        machine.run(FUNCTION)
    first.processor.flush_code()
    assert code_bits(second, FUNCTION) == 1
    translated = second.state.count_translated
    second.run(FUNCTION)
    assert second.state.count_translated == translated
    put(second, CODE[1], f"mov byte [{FUNCTION + 1}], 6\nhlt")
    second.run(CODE[1])
    for machine in (first, second):
        machine.run(FUNCTION)
        assert machine.state.gpr[RAX] == 6


def test_more_changed_pages_than_a_mailbox_holds() -> None:
    first, second = processors(2)
    pages = [0x2_0000 + n * PAGE for n in range(MAIL_ENTRIES + 30)]
    for page in pages:
        put(first, page, "mov eax, 5\nhlt")
        assert second.run(page) == EXIT_HLT
    for page in pages:
        first.load(page + 1, b"\6")
    assert Mailbox.view(second.state.mail).overflow
    for page in pages:
        assert second.run(page) == EXIT_HLT
        assert second.state.gpr[RAX] == 6
    assert not Mailbox.view(second.state.mail).overflow


# --- on threads of their own ---------------------------------------------------------------------------

WRITER = f"""
next:
    mov [{FUNCTION + 1}], ecx
    mov [{FLAG}], ecx
wait:
    cmp [{ACK}], ecx
    jne wait
    inc ecx
    cmp ecx, edx
    jne next
    hlt
"""
READER = f"""
next:
    cmp [{FLAG}], ecx
    jne next
    call {FUNCTION}
    cmp eax, ecx
    jne bad
    mov [{ACK}], ecx
    inc ecx
    cmp ecx, edx
    jne next
    hlt
bad:
    ud2
"""


def test_code_that_another_processor_changes_is_seen_after_a_flag() -> None:
    """Cross-modifying code (SDM vol. 3, 9.1.3): patch, raise a flag; whoever sees the flag executes the patch."""
    writer, reader = processors(2)
    put(writer, FUNCTION, "mov eax, 0\nret")
    put(writer, CODE[0], WRITER)
    put(reader, CODE[1], READER)
    for machine in (writer, reader):
        machine.state.gpr[RCX], machine.state.gpr[RDX] = 1, 400
    assert run_all([writer, reader]) == [EXIT_HLT, EXIT_HLT]
    assert reader.state.gpr[RAX] == 399


def test_code_that_changes_from_outside_is_seen_by_running_processors() -> None:
    machines = processors(2)
    put(machines[0], FUNCTION, "mov eax, 0\nret")
    for machine, at in zip(machines, CODE, strict=False):
        put(machine, at, f"next:\ncall {FUNCTION}\ncmp eax, 50\njne next\nhlt")
    ends: list[list[int]] = []
    runner = threading.Thread(target=lambda: ends.append(run_all(machines)))
    runner.start()
    for value in range(1, 51):
        ctypes.memmove(machines[0].ram.address + FUNCTION + 1, bytes([value]), 1)
        machines[0].processor.memory_written([(machines[0].ram.address + FUNCTION + 1, 1)])
    runner.join()
    assert ends == [[EXIT_HLT, EXIT_HLT]]


# --- memory order --------------------------------------------------------------------------------------


def test_a_loop_that_waits_for_another_processor_ends() -> None:
    """Also once it is compiled: neither the load nor the look at `pending` leaves the loop."""
    waiter, setter = processors(2)
    put(waiter, CODE[0], f"wait:\ncmp dword [{FLAG}], 0\nje wait\nhlt")
    put(setter, CODE[1], f"next:\ndec rcx\njne next\nmov dword [{FLAG}], 1\nhlt")
    setter.state.gpr[RCX] = 50_000_000
    assert run_all([waiter, setter]) == [EXIT_HLT, EXIT_HLT]


def test_an_undefined_instruction_ends_only_its_own_processor() -> None:
    first, second = processors(2)
    put(first, CODE[0], "ud2")
    put(second, CODE[1], "mov eax, 3\nhlt")
    assert run_all([first, second]) == [EXIT_EXCEPTION, EXIT_HLT]
    assert second.state.gpr[RAX] == 3
