"""LOCK across two cache lines: #AC(0) where MSR_MEMORY_CTRL says so (SDM vol. 3, 9.1.2.3)."""

import pytest

from .machine import DATA, Machine

LOCKED = [
    # access, offset in the cache line, #AC
    ("lock inc dword [rbx]", 60, False),
    ("lock inc dword [rbx]", 61, True),
    ("lock add [rbx], ax", 62, False),
    ("lock add [rbx], ax", 63, True),
    ("lock not byte [rbx]", 63, False),
    ("lock xadd [rbx], rax", 57, True),
    ("xchg [rbx], eax", 62, True),
    ("xchg [rbx], eax", 59, False),
    ("lock cmpxchg [rbx], rcx", 63, True),
    ("lock cmpxchg8b [rbx]", 60, True),
    ("lock bts dword [rbx], 3", 62, True),
    ("lock btc [rbx], rdx", 60, True),
    ("inc dword [rbx]", 62, False),
    ("mov [rbx], rax", 60, False),
    ("cmpxchg [rbx], rcx", 60, False),
    ("lock dec qword [rbx]", 4092, True),
]


@pytest.mark.parametrize(("source", "offset", "faults"), LOCKED)
@pytest.mark.parametrize("cpl", [0, 3])
def test_split_locks(source: str, offset: int, faults: bool, cpl: int) -> None:
    """At any CPL, whatever CR0.AM and RFLAGS.AC say; without the bit the access is made."""
    for on in (False, True):
        m = Machine()
        m.long(f"nop\nfault: {source}\nint 0x30", cpl=cpl)
        m.state.gpr[3], m.state.gpr[2] = DATA + offset, 0
        m.write_bytes(DATA + offset, bytes(8))
        m.state.split_lock = int(on)
        expected = faults and on
        assert m.catch() == (17 if expected else 0x30)
        if expected:
            assert m.stack(2, 8) == [0, m.labels["fault"]] and m.read(DATA + offset, 8) == 0


def test_a_non_canonical_address_comes_first() -> None:
    m = Machine()
    m.long("lock inc dword [rbx]")
    m.state.gpr[3], m.state.split_lock = (1 << 60) + 62, 1
    assert m.catch() == 13


def test_a_loop_that_is_hot() -> None:
    """The first split faults in the middle of a run of accesses that do not."""
    m = Machine()
    m.long("again: lock inc dword [rbx]\nadd rbx, 6\njmp again")
    m.state.gpr[3], m.state.split_lock = DATA, 1
    assert m.catch() == 17
    assert m.state.gpr[3] == DATA + 126 and m.read(DATA + 120, 4) == 1 and m.read(DATA + 126, 4) == 0
