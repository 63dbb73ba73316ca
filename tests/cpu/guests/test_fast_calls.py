"""SYSCALL, SYSRET, SYSENTER, SYSEXIT, SWAPGS and the segment-base instructions."""

import pytest
from pellucid.cpu.state import (
    CR4_FSGSBASE,
    CS,
    EFER_SCE,
    FEATURE_AMD,
    FEATURES_SYSTEM,
    FS,
    GS,
    RFLAGS_AC,
    RFLAGS_IF,
    RFLAGS_RF,
    RFLAGS_TF,
    RFLAGS_VM,
    SS,
)

from .machine import CODE, CODE64, DATA, STACK0, STACK3, USER32, USER64, USER_DATA, Machine

ENTRY = 0x12000


def machine(source: str, cpl: int, entry: str = "hlt", compat: bool = False) -> Machine:
    m = Machine()
    m.labels |= {"ENTRY": ENTRY, "DATA": DATA}
    m.long(source, cpl=cpl, compat=compat)
    m.load(entry, ENTRY)
    m.state.lstar = ENTRY
    return m


def test_syscall() -> None:
    m = machine("syscall\nback: nop", 3)
    m.rflags = 0x3AD7 | RFLAGS_AC | RFLAGS_IF
    m.state.sfmask = 0x4_0200
    flags = m.rflags
    assert m.run().reason == 5
    s = m.state
    assert (s.gpr[1], s.gpr[11]) == (m.labels["back"], flags)
    assert m.rflags == flags & ~0x4_0200 and s.cpl == 0 and s.gpr[4] == STACK3
    assert (s.seg_selector[CS], s.seg_selector[SS]) == (CODE64, CODE64 + 8)
    assert s.seg_attr[CS] == 0xA09B and s.seg_attr[SS] == 0xC093 and s.seg_limit[SS] == 0xFFFF_FFFF


def test_syscall_reads_no_descriptor() -> None:
    """The segments that SYSCALL loads are fixed, whatever the GDT holds; RPL bits of STAR are ignored."""
    m = machine("syscall", 3)
    m.state.star = 0xABCF << 32
    m.state.gdt_limit = 0
    assert m.run().reason == 5
    assert (m.state.seg_selector[CS], m.state.seg_selector[SS]) == (0xABCC, 0xABD4)


@pytest.mark.parametrize("wide", [True, False])
def test_sysret(wide: bool) -> None:
    m = machine("sysretq" if wide else "sysretd", 0)
    m.load("mov edx, ss\nint 0x30", ENTRY, 64 if wide else 32)
    s = m.state
    s.gpr[1], s.gpr[11] = ENTRY | (0 if wide else 0xFFFF_0000_0000_0000), 0x3AD7 | RFLAGS_RF | RFLAGS_VM | 1 << 63
    assert m.catch() == 0x30
    assert m.stack(5, 8)[:4] == [ENTRY + 4, USER64 if wide else USER32, 0x3AD7, STACK0] and s.gpr[2] == USER_DATA


def test_sysret_faults_at_the_inner_level() -> None:
    m = machine("fault: sysretq", 0)
    m.state.gpr[1] = 1 << 47
    assert m.catch() == 13 and m.stack(3, 8) == [0, CODE, CODE64]
    m = machine("sysretq", 3)
    assert m.catch() == 13


def test_undefined() -> None:
    for source in ("syscall", "sysretq"):
        m = machine(source, 0)
        m.state.efer &= ~EFER_SCE
        m.refresh()
        assert m.catch() == 6
    m = machine("syscall", 3, compat=True)
    assert m.catch() == 6, "compatibility mode has no SYSCALL on Intel's processors"
    m = Machine()
    m.protected("syscall")
    m.state.efer = EFER_SCE
    m.refresh()
    assert m.catch() == 6


@pytest.mark.parametrize("mode", ["long", "compat", "protected", "v86"])
def test_sysenter(mode: str) -> None:
    m = Machine()
    if mode in ("long", "compat"):
        m.long("sysenter", cpl=3, compat=mode == "compat")
        m.load("hlt", ENTRY, 64)
    else:
        m.protected("sysenter", cpl=3)
        m.load("hlt", ENTRY, 32)
    s = m.state
    s.sysenter_cs, s.sysenter_eip, s.sysenter_esp = CODE64 | 3, ENTRY, 0x9000
    m.rflags = RFLAGS_IF | 0x2 | (RFLAGS_VM if mode == "v86" else 0)
    if mode == "v86":
        for n in range(6):
            s.seg_selector[n], s.seg_base[n], s.seg_limit[n], s.seg_attr[n] = 0x1000, 0x10000, 0xFFFF, 0xF3
        s.rip = CODE - 0x10000
        m.refresh()
    assert m.run().reason == 5, m.history()
    assert s.rip == ENTRY + 1 and s.gpr[4] == 0x9000 and s.cpl == 0 and not m.rflags & (RFLAGS_IF | RFLAGS_VM)
    assert (s.seg_selector[CS], s.seg_selector[SS]) == (CODE64, CODE64 + 8)
    assert bool(s.seg_attr[CS] & 0x2000) == (mode in ("long", "compat"))


@pytest.mark.parametrize(
    ("source", "selectors"), [("sysexitd", (0x18 | 3, 0x20 | 3)), ("sysexitq", (0x28 | 3, 0x30 | 3))]
)
def test_sysexit(source: str, selectors: tuple[int, int]) -> None:
    m = machine(source, 0)
    m.load("int 0x30", ENTRY, 64 if source == "sysexitq" else 32)
    s = m.state
    s.sysenter_cs, s.gpr[2], s.gpr[1] = 0x08, ENTRY, 0x9000
    if source == "sysexitd":
        s.gpr[2] |= 5 << 32
    assert m.catch() == 0x30
    ip, cs, _, sp, ss = m.stack(5, 8)
    assert (ip, sp, (cs, ss)) == (ENTRY + 2, 0x9000, selectors)


def test_sysenter_and_sysexit_faults() -> None:
    for source, cpl, cs in (("sysenter", 3, 0), ("sysenter", 3, 3), ("sysexitd", 0, 0), ("sysexitq", 3, 8)):
        m = machine(source, cpl)
        m.state.sysenter_cs = cs
        assert m.catch() == 13 and m.stack(1, 8) == [0]
    for register in (1, 2):
        m = machine("sysexitq", 0)
        m.state.sysenter_cs, m.state.gpr[register] = 8, 1 << 47
        assert m.catch() == 13 and m.state.cpl == 0
    for source in ("sysenter", "sysexitd"):
        m = Machine()
        m.real(source)
        m.state.sysenter_cs = 8
        assert m.catch() == 13


def test_swapgs() -> None:
    m = machine("swapgs\nmov rax, [gs:0]\nhlt", 0)
    m.state.seg_base[GS], m.state.kernel_gs_base = 1, DATA
    m.write(DATA, 0x77, 8)
    assert m.run().reason == 5 and m.state.gpr[0] == 0x77 and m.state.kernel_gs_base == 1
    m = machine("swapgs", 3)
    assert m.catch() == 13
    m = machine("db 0x0F, 0x01, 0xF8", 0, compat=True)
    assert m.catch() == 6


def test_segment_bases() -> None:
    m = machine("rdfsbase rax\nwrfsbase rbx\nrdgsbase ecx\nwrgsbase edx\nhlt", 3)
    s = m.state
    s.cr4 |= CR4_FSGSBASE
    s.seg_base[FS], s.seg_base[GS], s.gpr[3], s.gpr[2] = (
        0x1234_5678_9ABC,
        0xFFFF_8000_8765_4321,
        0xFFFF_8000_0000_1111,
        ~0 & (1 << 64) - 1,
    )
    assert m.catch() == 13
    assert (s.gpr[0], s.gpr[1], s.seg_base[FS], s.seg_base[GS]) == (
        0x1234_5678_9ABC,
        0x8765_4321,
        0xFFFF_8000_0000_1111,
        0xFFFF_FFFF,
    )
    for source in ("rdfsbase rax", "wrgsbase rax"):
        m = machine(source, 3)
        assert m.catch() == 6
    m = machine("wrfsbase rax", 3)
    m.state.cr4 |= CR4_FSGSBASE
    m.state.gpr[0] = 1 << 47
    assert m.catch() == 13


def test_syscall_and_tf() -> None:
    """SYSCALL traps behind itself unless FMASK clears TF; a SYSRET that sets TF is followed by the trap at once."""
    for mask, expected in ((0, 1), (RFLAGS_TF, None)):
        m = machine("syscall", 3, "mov eax, 5\nhlt")
        m.rflags = RFLAGS_TF | 2
        m.state.sfmask = mask
        stop = m.run()
        assert stop.vector == expected
        if expected:
            assert m.stack(2, 8) == [ENTRY, CODE64] and m.state.dr[6] & 0x4000
    m = machine("sysretq", 0)
    m.load("nop\nnop\nint 0x30", ENTRY)
    m.state.gpr[1], m.state.gpr[11] = ENTRY, RFLAGS_TF | 2
    assert m.catch() == 1 and m.stack(2, 8) == [ENTRY, USER64]


# --- AMD's processors (APM vol. 3: SYSCALL, SYSRET, SYSENTER, SYSEXIT) ----------------------------------------------


def amd(m: Machine) -> Machine:
    m.state.features[FEATURES_SYSTEM] |= FEATURE_AMD
    return m


def test_amd_syscall_in_compatibility_mode() -> None:
    """To CSTAR, in 64-bit mode, and back to 32 bits; of SS only the selector changes."""
    m = amd(machine("syscall\nback: mov edx, ss\nint 0x30", 3, compat=True))
    m.load("mov rsi, rcx\nmov rdi, r11\nsysretd", ENTRY)
    s = m.state
    s.cstar, s.lstar, s.sfmask = ENTRY, 0, RFLAGS_IF
    m.rflags = RFLAGS_IF | 0x2 | 1
    assert m.catch() == 0x30, m.history()
    assert s.gpr[6] == m.labels["back"] and s.gpr[7] == RFLAGS_IF | 3 and s.gpr[2] == USER_DATA
    assert m.stack(3, 8)[1] == USER32
    m = machine("syscall", 3, compat=True)
    assert m.catch() == 6, "Intel's have none there"


def test_amd_sysret_leaves_the_stack_segment() -> None:
    m = amd(machine("sysretq", 0))
    s = m.state
    s.gpr[1], s.gpr[11], s.seg_limit[SS] = ENTRY, 2, 0x1234
    m.load("mov eax, 1\nint 0x30", ENTRY)
    s.trap_exceptions = 1
    m.run()
    assert s.exc_vector == 0x30 and s.seg_selector[SS] == USER_DATA and s.seg_limit[SS] == 0x1234


def test_amd_sysret_faults_at_the_outer_level() -> None:
    """An address that is not canonical faults when the user's code is fetched, not in SYSRET."""
    m = amd(machine("sysretq", 0))
    m.state.gpr[1], m.state.gpr[11] = 1 << 47, 2
    assert m.catch() == 13 and m.stack(3, 8) == [0, 1 << 47, USER64]


def test_amd_syscall_in_legacy_mode() -> None:
    m = amd(Machine())
    m.protected("syscall\nback: nop\nint 0x30", cpl=3)
    s = m.state
    s.efer, s.star, s.sfmask = EFER_SCE, (USER32 & ~3) << 48 | CODE64 << 32 | ENTRY, 0x4000
    m.load("mov edi, ecx\npushfd\npop esi\nmov esp, 0\nsysretd", ENTRY, 32)
    s.gpr[1] = 1 << 63
    m.rflags = 0x4003 | RFLAGS_IF
    m.refresh()
    assert m.catch() == 0x30, m.history()
    assert (s.gpr[7], s.gpr[6]) == (m.labels["back"], 0x4003), "IF is off and FMASK does not count"
    assert m.stack(3, 4)[1:] == [USER32, 0x4003 | RFLAGS_IF], "SYSRET sets IF"
    for mode in ("real", "v86"):
        m = amd(Machine())
        m.real("syscall") if mode == "real" else m.protected("syscall", cpl=3)
        m.state.efer = EFER_SCE
        if mode == "v86":
            m.rflags = RFLAGS_VM | 2
            m.set_segment(CS, USER32)
        m.refresh()
        m.state.trap_exceptions = 1
        m.run()
        assert m.state.exc_vector == 6, mode


def test_amd_has_no_sysenter_in_long_mode() -> None:
    for source in ("sysenter", "sysexitd", "sysexitq"):
        m = amd(machine(source, 0))
        m.state.sysenter_cs = 8
        assert m.catch() == 6, source
    m = amd(machine("sysenter", 3, compat=True))
    m.state.sysenter_cs = 8
    assert m.catch() == 6
    m = amd(Machine())
    m.protected("sysenter", cpl=3)
    m.load("hlt", ENTRY, 32)
    m.state.sysenter_cs, m.state.sysenter_eip = CODE64, ENTRY
    assert m.run().reason == 5


def test_amd_null_selectors_keep_the_base() -> None:
    for vendor, base in ((amd, DATA), (lambda m: m, 0)):
        m = vendor(machine("mov ecx, 0\nmov gs, ecx\nrdgsbase rax\nhlt", 0))
        m.state.cr4 |= CR4_FSGSBASE
        m.state.seg_base[GS] = DATA
        assert m.run().reason == 5 and m.state.gpr[0] == base


@pytest.mark.parametrize("source", ["iretq", "retfq"])
def test_a_segment_made_null_by_a_return_keeps_its_base(source: str) -> None:
    """An outer level may not use the segment, but in 64-bit mode its base remains (SDM vol. 2, IRET and RET)."""
    m = machine(source, 0)
    m.load("mov rax, [gs:8]\nmov edx, gs\nint 0x30", ENTRY)
    s = m.state
    s.seg_base[GS] = DATA
    m.write(DATA + 8, 0x1234_5678, 8)
    flags = (2,) if source == "iretq" else ()
    for at, value in enumerate((ENTRY, USER64, *flags, STACK3, USER_DATA)):
        m.write(STACK0 - 64 + at * 8, value, 8)
    s.gpr[4] = STACK0 - 64
    assert m.catch() == 0x30, m.history()
    assert (s.gpr[0], s.gpr[2]) == (0x1234_5678, 0)
