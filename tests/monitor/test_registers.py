"""`info registers` against text captured from QEMU 7.2 (`-M microvm`): at reset, and idle in a 64-bit Linux kernel."""


import pytest

from pellucid.kvm.regs import DebugRegs, DTable, Fpu, MpState, Regs, Segment, Sregs
from pellucid.monitor.guest_state import CpuRegisters
from pellucid.monitor.registers import descriptor_word, register_value, registers_text
from pellucid.records import replace
from tests.monitor.registers_at_reset import NULL, reset_registers

AT_RESET = """
CPU#0
EAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1
ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000
EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=0
ES =0000 00000000 0000ffff 00009300
CS =f000 ffff0000 0000ffff 00009b00
SS =0000 00000000 0000ffff 00009300
DS =0000 00000000 0000ffff 00009300
FS =0000 00000000 0000ffff 00009300
GS =0000 00000000 0000ffff 00009300
LDT=0000 00000000 0000ffff 00008200
TR =0000 00000000 0000ffff 00008b00
GDT=     00000000 0000ffff
IDT=     00000000 0000ffff
CR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000\x20
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000000
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
FPR2=0000000000000000 0000 FPR3=0000000000000000 0000
FPR4=0000000000000000 0000 FPR5=0000000000000000 0000
FPR6=0000000000000000 0000 FPR7=0000000000000000 0000
XMM00=0000000000000000 0000000000000000 XMM01=0000000000000000 0000000000000000
XMM02=0000000000000000 0000000000000000 XMM03=0000000000000000 0000000000000000
XMM04=0000000000000000 0000000000000000 XMM05=0000000000000000 0000000000000000
XMM06=0000000000000000 0000000000000000 XMM07=0000000000000000 0000000000000000
"""

IN_LINUX = """
CPU#0
RAX=000000000001ad40 RBX=0000000000000000 RCX=0000000000000000 RDX=4000000000000000
RSI=0000000000000000 RDI=0000000000001344 RBP=ffffffffb3e1aa40 RSP=ffffffffb3e03e98
R8 =0000000000000002 R9 =00000000314ddfb1 R10=00000000fffffffb R11=0000000000000000
R12=0000000000000000 R13=0000000000000000 R14=0000000000000000 R15=0000000000014790
RIP=ffffffffb2e17a0b RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1
ES =0000 0000000000000000 00000000 00000000
CS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]
SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]
DS =0000 0000000000000000 00000000 00000000
FS =0000 0000000000000000 00000000 00000000
GS =0000 ffff8e53cf800000 00000000 00000000
LDT=0000 0000000000000000 00000000 00008200 DPL=0 LDT
TR =0040 fffffe0000003000 00004087 00008900 DPL=0 TSS64-avl
GDT=     fffffe0000001000 0000007f
IDT=     fffffe0000000000 00000fff
CR0=80050033 CR2=00000000327c70a8 CR3=0000000002a36000 CR4=000006b0
DR0=0000000000000000 DR1=0000000000000000 DR2=0000000000000000 DR3=0000000000000000\x20
DR6=00000000ffff0ff0 DR7=0000000000000400
EFER=0000000000000d01
FCW=037f FSW=0000 [ST=0] FTW=00 MXCSR=00001f80
FPR0=0000000000000000 0000 FPR1=0000000000000000 0000
FPR2=0000000000000000 0000 FPR3=0000000000000000 0000
FPR4=0000000000000000 0000 FPR5=0000000000000000 0000
FPR6=0000000000000000 0000 FPR7=0000000000000000 0000
XMM00=00000000005e42a0 0000000000000000 XMM01=00000000005e22c0 000000000042ccc9
XMM02=0000000000000000 0000000000000000 XMM03=0000000000000000 0000000000000000
XMM04=0000000000000000 0000000000000000 XMM05=0000000000000000 0000000000000000
XMM06=0000000000000000 0000000000000000 XMM07=0000000000000000 0000000000000000
XMM08=0000000000000000 0000000000000000 XMM09=0000000000000000 0000000000000000
XMM10=0000000000000000 0000000000000000 XMM11=0000000000000000 0000000000000000
XMM12=0000000000000000 0000000000000000 XMM13=0000000000000000 0000000000000000
XMM14=0000000000000000 0000000000000000 XMM15=0000000000000000 0000000000000000
"""


def linux_registers() -> CpuRegisters:
    flat = {"limit": 0xFFFFFFFF, "g": True}
    regs = Regs(
        rax=0x1AD40, rdx=0x4000000000000000, rdi=0x1344, rbp=0xFFFFFFFFB3E1AA40, rsp=0xFFFFFFFFB3E03E98,
        r8=2, r9=0x314DDFB1, r10=0xFFFFFFFB, r15=0x14790, rip=0xFFFFFFFFB2E17A0B, rflags=0x246,
    )  # fmt: skip
    sregs = Sregs(
        cs=Segment(selector=0x10, type=11, l=True, **flat),
        ss=Segment(selector=0x18, type=3, db=True, **flat),
        ds=NULL, es=NULL, fs=NULL, gs=replace(NULL, base=0xFFFF8E53CF800000),
        tr=Segment(base=0xFFFFFE0000003000, limit=0x4087, selector=0x40, type=9, s=False),
        ldt=Segment(limit=0, type=2, s=False),
        gdt=DTable(0xFFFFFE0000001000, 0x7F), idt=DTable(0xFFFFFE0000000000, 0xFFF),
        cr0=0x80050033, cr2=0x327C70A8, cr3=0x2A36000, cr4=0x6B0, cr8=0, efer=0xD01, apic_base=0xFEE00900,
    )  # fmt: skip
    xmm = [0x5E42A0 << 64, 0x5E22C0 << 64 | 0x42CCC9, *[0] * 14]
    return CpuRegisters(regs, sregs, Fpu(xmm=xmm), DebugRegs(), MpState.HALTED)


def test_at_reset() -> None:
    assert registers_text(0, reset_registers()) == AT_RESET


def test_in_a_64_bit_kernel() -> None:
    assert registers_text(0, linux_registers()) == IN_LINUX


def test_flag_letters() -> None:
    state = reset_registers()
    flagged = replace(state, regs=replace(state.regs, rflags=0xCD7), interrupt_shadow=True, smm=True)
    assert "EFL=00000cd7 [DOSZAPC] CPL=0 II=1 A20=1 SMM=1 HLT=0" in registers_text(0, flagged)


@pytest.mark.parametrize(
    ("segment", "word", "text"),
    [
        (Segment(type=11, db=True, g=True, limit=0xFFFFFFFF), 0x00CF9B00, "CS32 [-RA]"),
        (Segment(type=14, dpl=3), 0x0000FE00, "CS16 [CR-]"),
        (Segment(type=2), 0x00009200, "DS16 [-W-]"),
        (Segment(type=5, db=True, avl=True), 0x00509500, "DS   [E-A]"),
        (Segment(type=11, s=False), 0x00008B00, "TSS32-busy"),
    ],
)
def test_segment_kinds_in_protected_mode(segment: Segment, word: int, text: str) -> None:
    state = reset_registers()
    protected = replace(state, sregs=replace(state.sregs, cr0=0x11, ds=segment))
    line = registers_text(0, protected).splitlines()[8]
    assert line.startswith("DS =0000 00000000") and line.endswith(f" {word:08x} DPL={segment.dpl} {text}")


def test_an_unusable_segment_has_no_attributes() -> None:
    assert descriptor_word(NULL) == 0


def test_fpu_top_and_tags() -> None:
    state = replace(reset_registers(), fpu=Fpu(fpr=[0x3FFF8000000000000000, *[0] * 7], fsw=0x3800, ftw=0xFFFC))
    text = registers_text(0, state)
    assert "FSW=3800 [ST=7] FTW=01" in text
    assert "FPR0=8000000000000000 3fff FPR1=0000000000000000 0000" in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pc", 0xFFFFFFF0), ("eip", 0xFFF0), ("rip", 0xFFF0), ("cs", 0xF000), ("cs.base", 0xFFFF0000), ("edx", 0x60FB1),
        ("RDX", 0x60FB1), ("cr0", 0x60000010), ("eflags", 2), ("r15", 0), ("nonsense", None), ("rax.base", None),
    ],
)  # fmt: skip
def test_register_names(name: str, value: int | None) -> None:
    assert register_value(reset_registers(), name) == value


def test_pc_in_64_bit_mode_has_no_base() -> None:
    assert register_value(linux_registers(), "pc") == 0xFFFFFFFFB2E17A0B
    assert register_value(linux_registers(), "ebp") == 0xB3E1AA40
