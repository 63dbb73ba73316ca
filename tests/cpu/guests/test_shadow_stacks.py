"""Shadow stacks of 64-bit and compatibility mode: near transfers, pages, instructions (SDM vol. 1, 17.2)."""

import random

import pytest
from pellucid.cpu.state import (
    CP_FAR_RET,
    CP_NEAR_RET,
    CP_RSTORSSP,
    CP_SETSSBSY,
    CR4_CET,
    EXIT_HLT,
    GP,
    PF,
    UD,
)

from . import tables
from .cet_guest import (
    ON,
    SHADOW,
    SHADOW_USER,
    TOP,
    TRACKS,
    USER_SHADOW,
    USER_TOP,
    WRITES,
    enforce,
    long,
    page_fault,
    violated,
)
from .machine import CODE, DATA, STACK3, USER32, Machine

PRESENT, WRITE, USER, SS = 1, 2, 4, 0x40


def test_call_and_return() -> None:
    m = long("call near\nback: int 0x30\nnear: rdsspq rbx\nret", cpl=3, user=ON)
    assert m.catch() == 0x30
    s = m.state
    assert s.gpr[3] == USER_TOP - 8 and m.read(USER_TOP - 8, 8) == m.labels["back"]
    assert s.pl_ssp[3] == USER_TOP and s.gpr[4] != 0


@pytest.mark.parametrize("call", ["call rax", "call [rsp-64]"])
def test_indirect_call(call: str) -> None:
    source = f"lea rax, [rel near]\nmov [rsp-64], rax\n{call}\nback: int 0x30\nnear: ret 8"
    m = long(source, cpl=3, user=ON)
    assert m.catch() == 0x30
    assert m.state.pl_ssp[3] == USER_TOP and m.read(USER_TOP - 8, 8) == m.labels["back"]


def test_off_costs_no_access() -> None:
    m = long("call near\nint 0x30\nnear: rdsspq rbx\nret", cpl=3, kernel=ON)
    m.state.gpr[3] = 7
    assert m.catch() == 0x30 and m.state.gpr[3] == 7 and m.read(USER_TOP - 8, 8) == 0


def test_call_to_the_next_instruction_is_no_call() -> None:
    m = long("call next\nnext: pop rax\nint 0x30", cpl=3, user=ON)
    assert m.catch() == 0x30 and m.state.pl_ssp[3] == USER_TOP and m.read(USER_TOP - 8, 8) == 0


def test_changed_return_address() -> None:
    m = long("call near\nnop\nint 0x30\nnear: inc qword [rsp]\nbad: ret", cpl=3, user=ON)
    m.state.pl_ssp[0] = 0
    violated(m, CP_NEAR_RET)
    assert m.read(m.state.gpr[4] + 8, 8) == m.labels["bad"]
    assert m.read(m.state.gpr[4] + 32, 8) == STACK3 - 8 and m.state.pl_ssp[3] == USER_TOP - 8


def test_compatibility_mode_pushes_four_bytes() -> None:
    m = long("call near\nback: int 0x30\nnear: rdsspd ebx\nret", cpl=3, user=ON, compat=True)
    assert m.catch() == 0x30
    assert m.state.gpr[3] == USER_TOP - 4 and m.read(USER_TOP - 4, 4) == m.labels["back"]
    assert m.state.pl_ssp[3] == USER_TOP


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (tables.P | tables.U | tables.A, PRESENT),  # clean
        (tables.P | tables.U | tables.A | tables.D | tables.W, PRESENT),  # writable
        (tables.P | tables.A | tables.D, PRESENT),  # a supervisor's
        (0, 0),
    ],
)
def test_pages_that_are_no_shadow_stack(flags: int, error: int) -> None:
    m = long("call near\nnear: int 0x30\nnop\ncall near", cpl=3, user=ON)
    assert m.pages is not None
    m.load("nop\ncall CODE", CODE, CODE=CODE + 0x100)
    m.pages.map(USER_SHADOW, USER_SHADOW, flags)
    m.refresh()
    page_fault(m, USER_TOP - 8, error | WRITE | USER | SS)
    assert m.state.pl_ssp[3] == USER_TOP and m.read(m.state.gpr[4] + 32, 8) == STACK3


def test_every_upper_entry_must_be_writable() -> None:
    m = Machine()
    m.labels["far"] = CODE + 0x100
    m.long("call far", cpl=3)
    enforce(m, ON)
    assert m.pages is not None
    m.pages.map(0x40_0000, USER_SHADOW, SHADOW_USER)
    entry = m.pages.entries(0x40_0000)[-2]
    m.write(entry, m.read(entry, 8) & ~tables.W, 8)
    m.state.ssp = 0x40_0800
    m.refresh()
    page_fault(m, 0x40_07F8, PRESENT | WRITE | USER | SS)


def test_supervisor_stack_is_not_in_user_pages() -> None:
    m = Machine()
    m.labels["far"] = CODE + 0x100
    m.long("call far", cpl=0)
    enforce(m, 0, ON)
    m.state.ssp = USER_TOP
    # The fault's own frame has no place either: a double fault, then no more.
    m.gate(PF, kind=tables.INT, ist=1)
    page_fault(m, USER_TOP - 8, PRESENT | WRITE | SS)


def test_ordinary_stores_do_not_reach_shadow_stacks() -> None:
    m = long(f"mov rax, [{USER_TOP}]\nmov [{USER_TOP}], rax", cpl=3, user=ON)
    page_fault(m, USER_TOP, PRESENT | WRITE | USER)
    m = long(f"mov rax, [{TOP}]\nmov [{TOP}], rax", kernel=0)
    page_fault(m, TOP, PRESENT | WRITE)


def test_protection_keys_guard_shadow_stacks() -> None:
    m = Machine()
    m.labels["far"] = CODE + 0x100
    m.long("call far", cpl=3)
    enforce(m, ON)
    assert m.pages is not None
    m.pages.map(USER_SHADOW, USER_SHADOW, SHADOW_USER | 1 << 59)
    m.state.cr4 |= 1 << 22
    m.state.pkru = 2 << 2
    m.refresh()
    page_fault(m, USER_TOP - 8, PRESENT | WRITE | USER | SS | 0x20)


# --- instructions ----------------------------------------------------------------------------------------


def test_incssp() -> None:
    m = long("mov eax, 0x103\nincsspq rax\nrdsspq rbx\nmov eax, 5\nincsspd eax\nint 0x30", cpl=3, user=ON)
    assert m.catch() == 0x30
    assert (m.state.gpr[3], m.state.pl_ssp[3]) == (USER_TOP + 24, USER_TOP + 44)


def test_incssp_reads_where_it_arrives() -> None:
    m = long("mov eax, 255\nincsspq rax", cpl=3, user=ON)
    m.state.ssp = USER_SHADOW + 0xFF8
    m.refresh()
    page_fault(m, USER_SHADOW + 0xFF8 + 254 * 8, PRESENT | USER | SS)


@pytest.mark.parametrize("wide", [True, False])
def test_wrss(wide: bool) -> None:
    name = "wrssq qword" if wide else "wrssd dword"
    register = "rax" if wide else "eax"
    source = f"mov rax, 0x1122334455667788\n{name} [{USER_SHADOW}], {register}\nint 0x30"
    m = long(source, cpl=3, user=ON | WRITES)
    assert m.catch() == 0x30
    assert m.read(USER_SHADOW, 8) == (0x1122334455667788 if wide else 0x55667788)
    assert long(source, cpl=3, user=ON).catch() == UD
    assert long(source.replace(f"{USER_SHADOW}", f"{USER_SHADOW + 2}"), cpl=3, user=ON | WRITES).catch() == GP


def test_wruss() -> None:
    source = f"mov eax, 77\nwrussq qword [{USER_SHADOW}], rax\nint 0x30"
    m = long(source)
    assert m.catch() == 0x30 and m.read(USER_SHADOW, 8) == 77
    page_fault(long(source.replace(f"{USER_SHADOW}", f"{SHADOW}")), SHADOW, PRESENT | WRITE | USER | SS)
    assert long(source, cpl=3, user=ON | WRITES).catch() == GP
    m = long(source)
    m.state.cr4 &= ~CR4_CET
    m.refresh()
    assert m.catch() == UD


def test_switch_and_back() -> None:
    """RSTORSSP takes the token of another stack and SAVEPREVSSP leaves one on the first (SDM vol. 1, 17.2.3)."""
    token = USER_SHADOW + 0x100
    source = f"rstorssp qword [{token}]\nsetc bl\nsaveprevssp\nrdsspq rcx\nrstorssp qword [{USER_TOP - 8}]\nint 0x30"
    m = long(source, cpl=3, user=ON)
    m.write(token, token + 8 | 1, 8)
    assert m.catch() == 0x30
    s = m.state
    assert s.gpr[3] & 0xFF == 0 and s.gpr[1] == token + 8 and s.pl_ssp[3] == USER_TOP - 8
    assert m.read(USER_TOP - 8, 8) == token + 8 | 3 and m.read(token, 8) == USER_TOP | 3


@pytest.mark.parametrize("value", [0, 0x10_1108, 0x10_1108 | 3, 0x10_1110 | 1, 0x10_1100 | 1])
def test_restore_tokens_that_do_not_fit(value: int) -> None:
    token = USER_SHADOW + 0x100
    m = long(f"rstorssp qword [{token}]", cpl=3, user=ON)
    m.write(token, value, 8)
    violated(m, CP_RSTORSSP)
    assert m.read(token, 8) == value and m.state.pl_ssp[3] == USER_TOP


def test_restore_token_with_a_hole() -> None:
    token = USER_SHADOW + 0x100
    m = long(f"rstorssp qword [{token}]\nsetc bl\nint 0x30", cpl=3, user=ON)
    m.write(token, token + 12 | 1, 8)
    assert m.catch() == 0x30 and m.state.gpr[3] & 0xFF == 1


def test_setssbsy_and_clrssbsy() -> None:
    m = long(f"setssbsy\nrdsspq rbx\nclrssbsy qword [{TOP}]\nsetc cl\nclrssbsy qword [{TOP}]\nsetc dl\nhlt", kernel=ON)
    assert m.run().reason == EXIT_HLT
    s = m.state
    assert (s.gpr[3], s.ssp, s.gpr[1] & 255, s.gpr[2] & 255) == (TOP, 0, 0, 1) and m.read(TOP, 8) == TOP
    m = long("setssbsy", kernel=ON)
    m.write(TOP, TOP | 1, 8)
    m.gate(21, kind=tables.INT)
    violated(m, CP_SETSSBSY)


@pytest.mark.parametrize(
    "source",
    [
        "incsspq rax", "saveprevssp", "rstorssp qword [DATA]", "wrssq qword [DATA], rax", "setssbsy",
        "clrssbsy qword [DATA]",
    ],
)
def test_undefined_while_off(source: str) -> None:
    m = Machine()
    m.labels["DATA"] = DATA
    m.long(source)
    enforce(m, ON, TRACKS)
    m.state.s_cet = 0
    m.refresh()
    assert m.catch() == UD


def test_control_registers() -> None:
    for source in ("mov rax, cr0\nbtr eax, 16\nmov cr0, rax",):
        assert long(source).catch() == GP
    m = Machine()
    m.long("mov rax, cr4\nbts eax, 23\nmov cr4, rax\nhlt")
    m.state.cr4_allowed |= CR4_CET
    m.state.cr0 &= ~(1 << 16)
    m.refresh()
    assert m.catch() == GP
    m.state.cr0 |= 1 << 16


def test_random_shadow_stack_code() -> None:
    """Whatever a guest does with these instructions, it stops, and the processor's own state stays sound."""
    rng = random.Random(7)
    pieces = [
        "call next{n}\nnext{n}: nop", "push rax\nret", "incsspd eax", "rdsspq rax", "saveprevssp", "setssbsy",
        f"rstorssp qword [{USER_SHADOW + 0x100}]", f"clrssbsy qword [{TOP}]", f"wrssq qword [{USER_TOP - 8}], rcx",
        f"wrussq qword [{USER_TOP - 16}], rcx", "lea rbx, [rel next{n}]\ncall rbx\nnext{n}: endbr64", "mov eax, {r}",
    ]  # fmt: skip
    for _ in range(40):
        lines = [rng.choice(pieces).format(n=n, r=rng.randrange(300)) for n in range(12)]
        source = "\n".join(lines) + "\nint 0x30"
        m = long(source, cpl=rng.choice((0, 3)), user=rng.randrange(64), kernel=rng.randrange(64))
        m.write(USER_SHADOW + 0x100, rng.choice((USER_SHADOW + 0x108 | 1, rng.getrandbits(64))), 8)
        m.write(TOP, TOP | rng.randrange(2), 8)
        m.state.gpr[1] = rng.getrandbits(64)
        m.run()
        assert m.state.cpl in (0, 3)


def test_far_return_with_another_address() -> None:
    source = "call far [rel pointer]\nnop\nint 0x30\npointer: dd inner\ndw USER64\ninner: inc dword [rsp]\nretfd"
    m = Machine()
    m.labels["USER64"] = 0x43
    m.long(source, cpl=3)
    enforce(m, ON)
    violated(m, CP_FAR_RET)
    m = Machine()
    m.labels["USER64"] = 0x43
    m.long(source.replace("inc dword [rsp]", "nop").replace("call far", "back0: call far"), cpl=3)
    enforce(m, ON)
    m.state.ssp = USER_TOP + 4
    assert m.catch() == 0x30
    frame = USER_TOP - 24
    assert m.words(frame, 3, 8) == [USER_TOP + 4, m.labels["back0"] + 6, 0x43] and m.state.pl_ssp[3] == USER_TOP + 4


def test_far_return_to_compatibility_mode_and_back() -> None:
    source = f"push {USER32}\npush inner\nretfq\nbits 32\ninner: int 0x30"
    m = long(source, cpl=3, user=ON)
    m.write(USER_TOP - 24, USER_TOP, 8)
    m.write(USER_TOP - 8, USER32, 8)
    m.write(USER_TOP - 16, m.labels["inner"], 8)
    m.state.ssp = USER_TOP - 24
    m.refresh()
    assert m.catch() == 0x30 and m.state.pl_ssp[3] == USER_TOP


# --- state that is saved ---------------------------------------------------------------------------------


def test_xsaves_keeps_the_registers() -> None:
    """Components 11 and 12 of IA32_XSS (SDM vol. 1, 13.4.3)."""
    m = Machine()
    m.labels["DATA"] = DATA
    registers = "mov ebx, DATA\nmov eax, 0x1800\nxor edx, edx\n"
    m.long(registers + "xsaves [rbx]\nxrstors [rbx + 1024]\nxrstors [rbx]\nhlt", cr4=1 << 18)
    enforce(m, ON | TRACKS, 0)
    s = m.state
    s.xcr0, s.xss = 3, 0x1800
    m.write(DATA + 1024 + 520, 1 << 63 | 0x1800, 8)
    m.refresh()
    assert m.run().reason == EXIT_HLT
    assert m.words(DATA + 576, 5, 8) == [ON | TRACKS, USER_TOP, TOP, 0, 0]
    assert (s.u_cet, s.pl_ssp[3], s.pl_ssp[0]) == (ON | TRACKS, USER_TOP, TOP)
    m.write(DATA + 584, USER_TOP | 1, 8)
    s.rip = CODE
    m.load(registers + "xrstors [rbx]", CODE)
    m.refresh()
    assert m.catch() == GP and s.pl_ssp[3] == USER_TOP
