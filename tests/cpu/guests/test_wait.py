"""WAITPKG (TPAUSE, UMONITOR, UMWAIT), MONITOR and MWAIT, SERIALIZE: faults, flags, what ends a wait."""

import pytest
from pellucid.cpu.cpuid import CpuidEntry, leaf_hash
from pellucid.cpu.state import CR4_TSD, EXIT_HLT, EXIT_WAIT, MISC_ENABLE_MONITOR
from pellucid.engine.arrays import Array
from pellucid.native import u32

from .machine import DATA, DEVICE, Machine

CF, STATUS = 1, 0x8D5
FAR = 1 << 62
MONITOR = "umonitor rsi\n"


def machine(source: str, *, deadline: int = FAR, operand: int = 0, **how: int) -> Machine:
    m = Machine()
    m.labels["DATA"] = DATA
    m.long(source + "\nhlt", **how)
    s = m.state
    s.misc_enable = MISC_ENABLE_MONITOR
    s.gpr[0], s.gpr[2], s.gpr[1], s.gpr[6] = deadline & 0xFFFF_FFFF, deadline >> 32, operand, DATA + 0x48
    return m


def wait(m: Machine) -> int:
    """Run into the wait; the address that it leaves with."""
    assert m.run().reason == EXIT_WAIT, m.history()
    return int(m.state.io_address)


def end(m: Machine) -> int:
    """Answer the wait and run to the end; the status flags."""
    m.processor.complete(0)
    assert m.run().reason == EXIT_HLT
    return m.rflags & STATUS


@pytest.mark.parametrize("source", ["tpause ecx", "umonitor rsi\numwait ecx"])
def test_a_wait_leaves_once_and_ends_when_answered(source: str) -> None:
    m = machine(source)
    at = wait(m)
    assert at == (0 if "tpause" in source else (DATA + 0x40) | 1)
    assert m.state.io_data == FAR
    assert end(m) == 0, "every status flag is clear"
    assert m.state.monitor_gpa == 0


def test_a_deadline_that_has_passed_is_no_wait() -> None:
    m = machine("tpause ecx\nlahf", deadline=1)
    assert m.run().reason == EXIT_HLT and m.state.gpr[0] >> 8 & 0xFF == 2


def test_the_systems_limit_sets_carry() -> None:
    m = machine("tpause ecx")
    m.state.umwait_control = 0x10_0000
    wait(m)
    assert m.state.io_data < FAR
    while m.state.tsc_offset + m.processor.engine.read_tsc() <= m.state.io_data:
        pass
    assert end(m) == CF
    m = machine("tpause ecx")
    m.state.umwait_control = 0x1000
    assert m.run().reason == EXIT_HLT and m.rflags & STATUS == CF, "a short wait is over without leaving"
    m = machine("tpause ecx")
    m.state.umwait_control = 0xFFFF_FFFC
    wait(m)
    assert end(m) == 0, "answered before the limit"


@pytest.mark.parametrize("source", ["tpause ecx", "umwait ecx"])
@pytest.mark.parametrize("operand", [2, 3, 1 << 31])
def test_reserved_operands(source: str, operand: int) -> None:
    assert machine(source, operand=operand).catch() == 13


@pytest.mark.parametrize("source", ["tpause ecx", "umwait ecx"])
def test_time_stamps_may_be_disabled(source: str) -> None:
    assert machine(source, cpl=3, cr4=CR4_TSD).catch() == 13
    m = machine("tpause ecx", cr4=CR4_TSD)
    wait(m)
    assert end(m) == 0


def test_umwait_without_a_monitor_ends_at_once() -> None:
    assert machine("umwait ecx").run().reason == EXIT_HLT
    m = machine(MONITOR + "umwait ecx\numwait ecx")
    wait(m)
    assert end(m) == 0, "a wait takes the monitor away"


@pytest.mark.parametrize(("at", "waits"), [(0x40, False), (0x7F, False), (0x3F, True), (0x80, True)])
def test_a_store_to_the_line_ends_the_wait(at: int, waits: bool) -> None:
    m = machine(MONITOR + f"inc byte [DATA + {at}]\numwait ecx")
    assert m.run().reason == (EXIT_WAIT if waits else EXIT_HLT)


def test_umonitor_faults_as_a_load() -> None:
    m = machine(MONITOR)
    m.state.gpr[6] = 1 << 40
    assert m.catch() == 14 and m.state.cr2 == 1 << 40
    m = machine(MONITOR)
    m.state.gpr[6] = 1 << 60
    assert m.catch() == 13
    m = machine("umonitor esi\numwait ecx")
    m.state.gpr[6] = 1 << 32 | DATA
    assert wait(m) == DATA | 1, "the address has the register's width"


def test_umonitor_of_a_device_monitors_nothing() -> None:
    m = machine(MONITOR + "umwait ecx")
    assert m.pages is not None
    m.pages.map(DEVICE, DEVICE, 7)
    m.state.gpr[6] = DEVICE
    assert m.run().reason == EXIT_HLT and m.trace


def test_umonitor_uses_the_segment() -> None:
    m = Machine()
    m.protected("umonitor esi\numwait ecx\nhlt")
    s = m.state
    s.seg_base[3], s.gpr[6], s.gpr[0], s.gpr[2], s.gpr[1] = 0x1000, DATA, 0, 1 << 30, 0
    m.refresh()
    assert wait(m) == (DATA + 0x1000) | 1
    m = Machine()
    m.protected("umonitor esi\nhlt")
    m.state.seg_limit[3], m.state.gpr[6] = 0xFFF, 0x1000
    m.refresh()
    assert m.catch() == 13


def test_serialize_does_nothing_visible() -> None:
    m = machine("serialize\nmov ebx, 7")
    assert m.run().reason == EXIT_HLT and m.state.gpr[3] == 7


# --- MONITOR and MWAIT ---------------------------------------------------------------------------------

MONITOR_MWAIT = "mov rax, rsi\nxor edx, edx\nmonitor\nmwait"


def test_mwait_leaves_until_it_is_answered() -> None:
    m = machine(MONITOR_MWAIT + "\nmov ebx, 7")
    for _ in range(3):
        assert wait(m) == (DATA + 0x40) | 1 and m.state.io_write
        assert m.state.gpr[3] != 7, "it is executed anew"
    end(m)
    assert m.state.gpr[3] == 7 and m.state.monitor_gpa == 0


@pytest.mark.parametrize(("at", "waits"), [(0x40, False), (0x7F, False), (0x3F, True), (0x80, True)])
def test_a_store_between_monitor_and_mwait(at: int, waits: bool) -> None:
    m = machine(f"mov rax, rsi\nmonitor\ninc byte [DATA + {at}]\nmwait")
    assert m.run().reason == (EXIT_WAIT if waits else EXIT_HLT)


def test_mwait_without_a_monitor_does_nothing() -> None:
    assert machine("mwait").run().reason == EXIT_HLT
    m = machine(MONITOR_MWAIT + "\nmwait")
    wait(m)
    end(m)


@pytest.mark.parametrize(("source", "rcx", "vector"), [
    ("monitor", 1, 13), ("monitor", 1 << 32, 13), ("mwait", 2, 13), ("mwait", 1 << 32, 13), ("mwait", 1, None)])
def test_extensions(source: str, rcx: int, vector: int | None) -> None:
    m = machine(f"mov rax, rsi\nnop\n{source}", operand=rcx)
    if vector is None:
        assert m.run().reason == EXIT_HLT
    else:
        assert m.catch() == vector


@pytest.mark.parametrize("source", ["monitor", "mwait"])
def test_monitor_is_of_level_0_and_may_be_switched_off(source: str) -> None:
    assert machine(source, cpl=3).catch() == 6
    m = machine(source)
    m.state.misc_enable &= ~MISC_ENABLE_MONITOR
    assert m.catch() == 6


@pytest.mark.parametrize(("enabled", "shown"), [(True, 8), (False, 0)])
def test_cpuid_follows_the_switch(enabled: bool, shown: int) -> None:
    m = machine("mov eax, 1\ncpuid")
    table = Array(CpuidEntry.size)
    entry = CpuidEntry.view(table.address)
    entry.leaf, entry.ecx = 1, 8
    m.state.cpuid, place = table.address, int(leaf_hash(u32(1)))
    for n in range(place + 1, len(m.state.cpuid_first)):
        m.state.cpuid_first[n] = 1
    m.state.misc_enable = MISC_ENABLE_MONITOR * enabled
    assert m.run().reason == EXIT_HLT and m.state.gpr[1] == shown


def test_monitor_faults_as_a_load_through_its_segment() -> None:
    m = machine(MONITOR_MWAIT)
    m.state.gpr[6] = 1 << 40
    assert m.catch() == 14 and m.state.cr2 == 1 << 40
    m = machine("mov rax, rsi\ndb 0x64\nmonitor\nmwait")
    m.state.seg_base[4] = 0x1000
    assert wait(m) == (DATA + 0x1040) | 1
