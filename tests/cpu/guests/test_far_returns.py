"""RETF and IRET to an outer level, in every mode, and the far transfers of real mode."""

import pytest
from pellucid.cpu.state import (
    ATTR_UNUSABLE,
    CS,
    DS,
    ES,
    EXIT_HLT,
    FS,
    GS,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
    SS,
)

from . import tables
from .machine import (
    CODE16,
    CODE32,
    CONFORMING,
    DATA0,
    SPARE,
    STACK0,
    STACK3,
    USER32,
    USER_DATA,
    Machine,
)
from .test_transfers import TARGET, long, protected, reached


OUTER_FAULTS = [
    # SS:ESP and CS:EIP on the stack, vector, error
    ((0, STACK3, USER32, TARGET), 13, 0),
    ((DATA0, STACK3, USER32, TARGET), 13, DATA0),
    ((USER32, STACK3, USER32, TARGET), 13, USER32 & ~3),
    ((SPARE + 3, STACK3, USER32, TARGET), 12, SPARE),
    ((USER_DATA, STACK3, SPARE + 8 + 3, TARGET), 11, SPARE + 8),
    ((USER_DATA, STACK3, CODE32 + 3, TARGET), 13, CODE32),
    ((USER_DATA, STACK3, 0, TARGET), 13, 0),
    ((USER_DATA, STACK3, USER_DATA, TARGET), 13, USER_DATA & ~3),
]


@pytest.mark.parametrize("how", ["retf", "iretd"])
@pytest.mark.parametrize(("frame", "vector", "error"), OUTER_FAULTS)
def test_outer_return_faults(how: str, frame: tuple[int, ...], vector: int, error: int) -> None:
    ss, sp, cs, ip = frame
    flags = "push 2\n" if how == "iretd" else ""
    m = protected(f"push {ss}\npush {sp}\n{flags}push {cs}\npush {ip}\nfault: {how}")
    m.describe(SPARE, tables.segment(tables.DATA, dpl=3, present=False))
    m.describe(SPARE + 8, tables.segment(tables.CODE, dpl=3, present=False))
    assert m.catch() == vector and m.stack(2, 4) == [error, m.labels["fault"]]
    assert m.state.seg_selector[SS] == DATA0


def test_outer_return() -> None:
    m = protected(
        "push USER_DATA\npush 0x9000\npush 0x55\npush USER32\npush TARGET\nretf 4",
        target="mov eax, esp\nmov ebx, ds\nint 0x30",
    )
    m.set_segment(ES, USER_DATA)
    assert m.catch() == 0x30
    s = m.state
    assert s.gpr[0] == 0x9000 + 4, "RETF n releases n bytes of the outer stack, too"
    assert s.gpr[3] == 0 and s.seg_selector[ES] == USER_DATA
    assert m.stack(5, 4)[1] == USER32


# --- IRET -------------------------------------------------------------------------------------------------------


def iret(flags: int, *, cs: int = CODE32, before: int = 2, cpl: int = 0, how: str = "iretd") -> Machine:
    m = protected(f"push {flags & 0xFFFFFFFF}\npush {cs}\npush TARGET\n{how}\n", cpl, "pushfd\npop eax\nint 0x30")
    if how == "iretw":
        m = protected(f"o16 push {flags & 0xFFFF}\no16 push {cs}\no16 push 0x2000\niretw\n", cpl, "")
        m.load("pushfd\npop eax\nint 0x30", 0x2000, 32)
        m.write_bytes(0x2000 - 0x40, b"")
    m.rflags = before
    return m


ALL_FLAGS = 0x24_7FD7 & ~RFLAGS_TF & ~RFLAGS_NT


def test_iret_flags_by_privilege() -> None:
    """IOPL changes at CPL 0 only, IF at or below IOPL; VM, RF, VIF and VIP have rules of their own."""
    for cpl, before, given, expected in (
        (0, 2, ALL_FLAGS, ALL_FLAGS),
        (3, 2, ALL_FLAGS, ALL_FLAGS & ~0x3200),
        (3, 0x3002, ALL_FLAGS, ALL_FLAGS),
        (3, 0x3202, 2, 0x3002),
        (3, 0x1202, 2, 0x1202),
        (0, 0x3202, 2, 2),
    ):
        m = iret(given, cs=USER32 if cpl else CODE32, before=before, cpl=cpl)
        assert m.catch() == 0x30
        assert m.state.gpr[0] == expected, (cpl, hex(before), hex(given))


def test_iret_with_16_bit_operands() -> None:
    """The upper half of EFLAGS stays."""
    m = protected("o16 push 0x0AD7\no16 push CODE16\no16 push 0\niretw")
    m.describe(CODE16, tables.segment(tables.CODE, base=TARGET, limit=0xFFFF, bits=16))
    m.load("hlt", TARGET, 16)
    m.rflags = RFLAGS_AC | 2
    assert reached(m) and m.rflags == RFLAGS_AC | 0xAD7


def test_iret_to_the_outer_level_and_back() -> None:
    m = protected(
        "push USER_DATA\npush 0x9000\npush 0x202\npush USER32\npush TARGET\niretd", target="mov eax, esp\nint 0x30"
    )
    assert m.catch() == 0x30
    assert m.state.gpr[0] == 0x9000 and m.stack(5, 4)[2] & RFLAGS_IF


def test_iretq() -> None:
    """64-bit mode pops SS:RSP always; a null SS serves inner levels; compatibility mode gets 32-bit registers."""
    m = long("push 0\npush 0x9000\npush 2\npush CODE64\npush TARGET\niretq")
    assert reached(m) and m.state.gpr[4] == 0x9000 and m.state.seg_selector[SS] == 0
    m = long(
        "push USER_DATA\npush 0x9000\npush 0x202\npush USER64\npush TARGET\niretq", target="mov rax, rsp\nint 0x30"
    )
    assert m.catch() == 0x30 and m.state.gpr[0] == 0x9000
    m = long(
        "push USER_DATA\npush 0x9000\npush 2\npush USER32\npush TARGET\niretq",
        target="mov eax, esp\nint 0x30",
        target_bits=32,
    )
    assert m.catch() == 0x30 and m.state.gpr[0] == 0x9000 and m.stack(2, 8)[1] == USER32
    m = long("push 0\npush 0x9000\npush 2\npush USER64\npush TARGET\nfault: iretq")
    assert m.catch() == 13 and m.stack(2, 8) == [0, m.labels["fault"]], "a null SS does not serve CPL 3"
    m = long("push 3\npush 0x9000\npush 2\npush CODE64\npush TARGET\niretq")
    assert reached(m)


def test_iretq_faults() -> None:
    m = long("mov rax, 0x800000000000\npush DATA0\npush 0x9000\npush 2\npush CODE64\npush rax\nfault: iretq")
    assert m.catch() == 13 and m.stack(2, 8) == [0, m.labels["fault"]]
    m = long("push DATA0\npush 0x9000\npush 0x4002\npopfq\npush 2\npush CODE64\npush TARGET\nfault: iretq")
    assert m.catch() == 13 and m.stack(2, 8) == [0, m.labels["fault"]], "NT in IA-32e mode"
    m = long("push DATA0\npush 0x9000\npush 2\npush SPARE\npush TARGET\niretq")
    m.describe(SPARE, tables.segment(tables.CODE, bits=64) | 1 << 54)
    assert m.catch() == 13 and m.stack(1, 8) == [SPARE]


def test_iret_to_a_16_bit_stack_keeps_the_upper_half() -> None:
    m = long(
        "mov rax, 0xFFFF800012345678\npush SPARE + 3\npush rax\npush 2\npush USER32\npush TARGET\niretq",
        target_bits=32,
        target="mov eax, esp\nint 0x30",
    )
    m.describe(SPARE, tables.segment(tables.DATA, dpl=3, limit=0xFFFF, bits=16))
    assert m.catch() == 0x30
    assert m.state.gpr[0] == (STACK0 - 40 & 0xFFFF0000 | 0x5678)


def test_data_segments_at_the_outer_level() -> None:
    """Selectors of segments above the new privilege become null; conforming code and outer data stay."""
    m = protected(
        "push USER_DATA\npush 0x9000\npush 2\npush USER32\npush TARGET\niretd",
        target="mov eax, ds\nmov ebx, es\nmov ecx, fs\nmov edx, gs\nint 0x30",
    )
    for register, selector in ((DS, DATA0), (ES, USER_DATA), (FS, CONFORMING), (GS, CODE32)):
        m.set_segment(register, selector)
    m.refresh()
    assert m.catch() == 0x30
    assert [m.state.gpr[i] & 0xFFFF for i in (0, 3, 1, 2)] == [0, USER_DATA, CONFORMING, 0]
    assert m.state.seg_attr[GS] & ATTR_UNUSABLE


def test_iret_sets_rf_for_one_instruction() -> None:
    m = protected(f"push {RFLAGS_RF | 2}\npush CODE32\npush TARGET\niretd", target="nop\nint 0x30")
    assert m.catch() == 0x30 and m.stack(3, 4)[2] == 2


def test_iret_unblocks_nmi_even_when_it_faults() -> None:
    for source in ("push 2\npush CODE32\npush TARGET\niretd", "push 2\npush 0\npush TARGET\niretd"):
        m = protected(source)
        m.state.nmi_blocked = 1
        m.run()
        if not m.state.nmi_blocked:
            m.state.pending = 0
            m.run()
        assert m.state.nmi_blocked == 0


# --- real mode ----------------------------------------------------------------------------------------------------


def test_real_mode_far() -> None:
    m = Machine()
    m.real("call 0x1200:0x10\nback: hlt")
    m.load("mov bx, cs\nretf 2", 0x12010, 16)
    m.state.gpr[4] = 0x7000
    assert m.run().reason == EXIT_HLT
    s = m.state
    assert s.gpr[3] & 0xFFFF == 0x1200 and s.rip == m.labels["back"] + 1 and s.gpr[4] == 0x7002
    m = Machine()
    m.real("mov bx, pointer\no32 jmp far [bx]\npointer: dd 0x10\ndw 0x1200")
    m.load("hlt", 0x12010, 16)
    assert m.run().reason == EXIT_HLT and m.state.seg_base[CS] == 0x12000
    m = Machine()
    m.real("fault: o32 call 0x1200:0x10010")
    assert m.catch() == 13 and m.stack(1, 2) == [m.labels["fault"]]


def test_real_mode_iret() -> None:
    m = Machine()
    m.real("push 0x7FD7\npush 0x1200\npush 0x10\niretw")
    m.load("hlt", 0x12010, 16)
    m.rflags = RFLAGS_AC | 2
    m.state.trap_exceptions = 1
    m.run()
    assert m.rflags & ~RFLAGS_TF == (RFLAGS_AC | 0x7FD7) & ~RFLAGS_TF and m.state.seg_selector[CS] == 0x1200
    m = Machine()
    m.real("o32 push 0x247FD7 - 0x100\no32 push 0x1200\no32 push 0x10\niretd")
    m.load("hlt", 0x12010, 16)
    assert m.run().reason == EXIT_HLT and m.rflags == 0x247FD7 - 0x100 and not m.rflags & RFLAGS_VM
    m = Machine()
    m.real("o32 push 2\no32 push 0x1200\no32 push 0x10000\nfault: iretd")
    assert m.catch() == 13 and m.stack(1, 2) == [m.labels["fault"]]
