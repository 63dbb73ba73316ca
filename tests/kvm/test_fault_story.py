"""How a triple fault is explained: error codes, gates, and who came while whom was delivered."""

import pytest

from pellucid.cpu.exceptions import RAISED_IN_DELIVERY
from pellucid.kvm.backends.soft.fault_story import Raised, Table, error_text, gate_text, tell, vector_name
from tests.cpu.guests import tables

ERRORS = [
    (14, 0, "not present, read"),
    (14, 2, "not present, write"),
    (14, 5, "protection, user, read"),
    (14, 0x15, "protection, user, fetch"),
    (14, 0xB, "protection, write, reserved bit"),
    (14, 0x27, "protection, write, user, protection key"),
    (13, 0, ""),
    (13, 0x6A, "IDT entry 13"),
    (13, 0x33, "IDT entry 6"),
    (11, 0x28, "GDT selector 0x28"),
    (11, 0x2D, "LDT selector 0x2c"),
    (6, 0xFF, ""),
]


@pytest.mark.parametrize(("vector", "error", "said"), ERRORS)
def test_error_codes(vector: int, error: int, said: str) -> None:
    assert error_text(vector, error) == said


def table(entry: int, gates: dict[int, int], limit: int = 0xFF) -> Table:
    def read(linear: int, size: int) -> bytes | None:
        vector = (linear - 0x1000) // entry
        return gates[vector].to_bytes(size, "little") if vector in gates else None

    return Table(0x1000, limit, entry, read)


def test_gates() -> None:
    good = tables.gate(tables.INT, 8, 0x1234)
    short = {0: good & (1 << 64) - 1, 1: 0, 2: good & ~(1 << 47) & (1 << 64) - 1, 3: tables.gate(tables.INT, 3, 5)}
    here = table(8, short)
    assert gate_text(0, here) == ""
    assert gate_text(1, here) == "IDT entry 1 is 0x0000000000000000, no gate"
    assert gate_text(2, here) == "IDT entry 2 is not present"
    assert gate_text(3, here) == "IDT entry 3 leads to selector 0x3"
    assert gate_text(4, here) == "IDT entry 4 at 0x1020 is not mapped"
    assert gate_text(32, here) == "IDT entry 32 lies beyond the limit 0xff"
    assert gate_text(0, table(16, {0: good})) == "" and gate_text(16, table(16, {})).endswith("limit 0xff")
    assert gate_text(0, table(4, {0: 0})) == "", "any real-mode vector leads somewhere"


def raised(vector: int, error: int = 0, during: bool = False) -> Raised:
    return Raised.of((vector | error << 32, 0x1000, 0xDEAD, 8 | 3 << 32 | RAISED_IN_DELIVERY * during))


def test_a_story() -> None:
    history = [raised(3), raised(14, 2), raised(13, 0x72, True), raised(8, 0, True), raised(13, 0x42, True)]
    assert tell(history, table(8, {14: 0}, limit=0x77)) == [
        "  #BP error=0x0 at 0008:0000000000001000 CPL=3",
        "  #PF error=0x2 at 0008:0000000000001000 CPL=3 CR2=000000000000dead (not present, write)",
        "  #GP error=0x72 at 0008:0000000000001000 CPL=3 (IDT entry 14), while #PF was delivered: "
        "IDT entry 14 is 0x0000000000000000, no gate",
        "  #DF error=0x0 at 0008:0000000000001000 CPL=3: #PF and #GP together",
        "  #GP error=0x42 at 0008:0000000000001000 CPL=3 (IDT entry 8), while #DF was delivered: "
        "IDT entry 8 at 0x1040 is not mapped",
    ]
    assert vector_name(0x80) == "vector 0x80" and tell([], table(8, {})) == []
