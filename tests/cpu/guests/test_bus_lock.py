"""Bus locks: a #DB behind them outside CPL 0, or #GP(0) before those on memory that is not write-back.

SDM vol. 3, 9.1.2.3, 17.2.3 and 17.3.1.6; which memory is write-back: 12.11.4.1 and table 12-7.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pellucid.cpu.bus_lock import write_back_range
from pellucid.cpu.memtype import MTRR_TYPES, MemoryType
from pellucid.cpu.mtrr import FIXED, IA32_MTRR_DEF_TYPE, MTRR_MSRS, VARIABLE, mtrr_type
from pellucid.cpu.state import CR0_CD, DEBUGCTL_BUS_LOCK, FEATURE_BUS_LOCK, FEATURES_SYSTEM, CpuState
from pellucid.native import ptr, u64

from .machine import DATA, DEVICE, Machine
from .tables import RWU

PAT, PCD, PWT = 0x0007_0406_0007_0406, 1 << 4, 1 << 3
BLD, DR6 = 1 << 11, 0xFFFF_0FF0
WRITE_BACK_DEFAULT = 1 << 11 | 6


def machine(source: str, *, cpl: int = 3, uc_lock: int = 0, detect: bool = True) -> Machine:
    """All memory is write-back, and RBX points to data."""
    m = Machine()
    m.long(f"{source}\nafter: int 0x30", cpl=cpl)
    s = m.state
    s.pat, s.mtrr_def_type, s.uc_lock, s.gpr[3] = PAT, WRITE_BACK_DEFAULT, uc_lock, DATA
    s.debugctl, s.lock_types = DEBUGCTL_BUS_LOCK * detect, 1
    s.features[FEATURES_SYSTEM] |= FEATURE_BUS_LOCK
    m.processor.flush_tlb()
    return m


def by_page(m: Machine) -> None:
    assert m.pages is not None
    m.pages.map(DATA, DATA, RWU | PCD | PWT)


def by_pat(m: Machine) -> None:
    m.state.pat = PAT & ~0xFF | 4  # write-through


def by_default(m: Machine) -> None:
    m.state.mtrr_def_type = 1 << 11


def without_mtrrs(m: Machine) -> None:
    m.state.mtrr_def_type = 6


def by_fixed_range(m: Machine) -> None:
    m.state.mtrr_def_type |= 1 << 10
    m.state.mtrr_fixed[0] = 0x0606_0606_0600_0606


def by_variable_range(m: Machine) -> None:
    m.state.mtrr_variable[6], m.state.mtrr_variable[7] = DATA | 5, (1 << 40) - 0x1000 | 1 << 11


def by_cache_disable(m: Machine) -> None:
    m.state.cr0 |= CR0_CD


UNCACHED = [by_page, by_pat, by_default, without_mtrrs, by_fixed_range, by_variable_range, by_cache_disable]


@pytest.mark.parametrize(("source", "offset", "split"), [
    ("lock inc dword [rbx]", 60, False), ("lock inc dword [rbx]", 61, True), ("xchg [rbx], eax", 62, True),
    ("lock cmpxchg [rbx], rcx", 63, True), ("lock not byte [rbx]", 63, False), ("inc dword [rbx]", 62, False)])
@pytest.mark.parametrize("cpl", [0, 3])
def test_a_split_lock_is_one(source: str, offset: int, split: bool, cpl: int) -> None:
    m = machine(source, cpl=cpl)
    m.state.gpr[3] += offset
    trapped = split and cpl == 3
    assert m.catch() == (1 if trapped else 0x30)
    assert m.state.dr[6] == (DR6 & ~BLD if trapped else DR6)
    if trapped:
        assert m.stack(1, 8) == [m.labels["after"]]
        assert m.read(DATA + offset, 4) or source.startswith(("xchg", "lock cmp")), "the access is made"


@pytest.mark.parametrize("make", UNCACHED)
@pytest.mark.parametrize("hot", [False, True])
def test_one_on_memory_that_is_not_write_back(make: Callable[[Machine], None], hot: bool) -> None:
    """Also where the code before has made the page's stores fast, were it not for its type."""
    before = "mov ecx, 200\nagain: inc dword [rbx+8]\nloop again\n" if hot else ""
    m = machine(before + "lock inc dword [rbx]")
    make(m)
    m.processor.flush_tlb()
    assert m.catch() == 1 and m.state.dr[6] == DR6 & ~BLD
    assert m.read(DATA, 4) == 1 and m.stack(1, 8) == [m.labels["after"]]
    assert m.read(DATA + 8, 4) == 200 * hot


@pytest.mark.parametrize("make", UNCACHED)
@pytest.mark.parametrize("cpl", [0, 3])
def test_it_may_be_forbidden(make: Callable[[Machine], None], cpl: int) -> None:
    """At any CPL, before the access; other accesses, and other memory, are none of its business."""
    m = machine("inc dword [rbx]\nlock inc dword [rsi]\nfault: lock inc dword [rbx]", cpl=cpl, uc_lock=1, detect=False)
    make(m)
    m.state.gpr[6] = DATA + 0x2000
    m.processor.flush_tlb()
    elsewhere = make in (by_page, by_variable_range)
    assert m.catch() == 13 and m.read(DATA, 4) == 1
    assert m.stack(2, 8)[0] == 0 and (m.stack(2, 8)[1] == m.labels["fault"]) == elsewhere
    m = machine("lock inc dword [rbx]", cpl=cpl, uc_lock=1, detect=False)
    assert m.catch() == 0x30 and m.read(DATA, 4) == 1


def test_a_device_is_never_write_back_where_the_registers_say_so() -> None:
    m = machine("lock inc dword [rbx]")
    m.state.mtrr_variable[0], m.state.mtrr_variable[1] = DEVICE & -0x1000, (1 << 40) - 0x1000 | 1 << 11
    assert m.pages is not None
    m.pages.map(0x5000_0000, DEVICE)
    m.state.gpr[3], m.device = 0x5000_0000, lambda address, size: 7
    assert m.catch() == 1 and [(kind, size) for kind, _, size, *_ in m.trace] == [("read", 4), ("write", 4)]


def test_other_debug_exceptions_leave_the_flag() -> None:
    """Software sets it again; without the feature it cannot be cleared."""
    m = machine("int1")
    m.state.dr[6] &= ~BLD
    assert m.catch() == 1 and not m.state.dr[6] & BLD
    for feature in (FEATURE_BUS_LOCK, 0):
        m = machine("xor eax, eax\nmov dr6, rax", cpl=0)
        m.state.features[FEATURES_SYSTEM] = feature
        assert m.catch() == 0x30 and bool(m.state.dr[6] & BLD) == (not feature)


def test_a_fault_takes_the_trap_s_place() -> None:
    m = machine("lock inc dword [rbx]")
    assert m.pages is not None
    m.pages.unmap(DATA + 0x1000)
    m.state.gpr[3] = DATA + 0xFFE
    m.processor.flush_tlb()
    assert m.catch() == 14 and m.state.dr[6] == DR6 and m.state.db_pending == 0


def test_native_code_and_the_tables_agree() -> None:
    """`write_back_range` against `mtrr_type`, which `info memtype` goes by."""
    m = Machine()
    s, cpu = m.state, ptr[CpuState](m.processor.address)
    msrs = dict.fromkeys(MTRR_MSRS, 0)
    msrs[VARIABLE[0]], msrs[VARIABLE[1]] = 6, (1 << 40) - (1 << 31) | 1 << 11
    msrs[VARIABLE[2]], msrs[VARIABLE[3]] = 0x4000_0000, (1 << 40) - (1 << 20) | 1 << 11
    msrs[VARIABLE[4]], msrs[VARIABLE[5]] = 0x5000_0004, (1 << 40) - (1 << 20) | 1 << 11
    types = sorted(MTRR_TYPES)
    for place, index in enumerate(FIXED):
        msrs[index] = sum(types[(place + n) % len(types)] << 8 * n for n in range(8))
    for control in (0, 1 << 11, 1 << 11 | 6, 3 << 10, 3 << 10 | 6):
        msrs[IA32_MTRR_DEF_TYPE] = s.mtrr_def_type = control
        for n, index in enumerate(VARIABLE):
            s.mtrr_variable[n] = msrs[index]
        for n, index in enumerate(FIXED):
            s.mtrr_fixed[n] = msrs[index]
        for gpa in (*range(0, 1 << 20, 0x1000), 1 << 20, 0x4000_0000, 0x5000_0000, 0x5010_0000, 0x8000_0000, 1 << 39):
            expected = mtrr_type(msrs, gpa, s.maxphyaddr).type is MemoryType.WB
            assert bool(write_back_range(cpu, u64(gpa))) == expected, hex(gpa)
