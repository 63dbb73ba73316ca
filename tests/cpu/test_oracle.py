"""The differential oracle itself: known results, determinism, recovery, and that it tells right from wrong."""

from __future__ import annotations

import random
import struct
from collections import Counter

import iced_x86
import pytest

from tests.cpu.oracle import (
    EXTRA,
    X86_64_V3,
    Case,
    Fault,
    HostCpu,
    Outcome,
    UserState,
    cases,
    diff,
    instructions,
    random_cases,
    run_cases,
    run_family,
    unavailable,
)
from tests.cpu.oracle import outcome as o
from tests.cpu.oracle.catalog import CODE_NAMES, EXCLUDED, MNEMONIC_NAMES, mnemonic_name
from tests.cpu.oracle.encoding import forms, variants
from tests.cpu.oracle.layout import CODE, CODE_SIZE, DATA, DATA_SIZE, HOLE, PAGE, READONLY, STACK, STACK_TOP, START
from tests.cpu.oracle.safety import is_inside
from tests.cpu.oracle.state import AC, AF, CF, OF, PF, RAX, RBX, RCX, RDI, RDX, RSI, RSP, SF, TF, ZF
from tests.cpu.oracle.trampoline import SHARED
from tests.cpu.oracle.undefined import FLAGS, shift_flags

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def start(**registers: int) -> UserState:
    state = UserState()
    for name, value in registers.items():
        setattr(state, name, value)
    return state


def with_gprs(values: dict[int, int]) -> UserState:
    state = UserState()
    for number, value in values.items():
        state.gpr[number] = value
    return state


def run(host: HostCpu, code: str, state: UserState | None = None, bits: int = 64) -> Outcome:
    return host.run(bytes.fromhex(code), state or UserState(), bits)


# Results of instructions that everybody knows.


def test_add_sets_flags_and_ends_at_the_filling(host: HostCpu) -> None:
    after = run(host, "01 d8", with_gprs({RAX: 0x7FFF_FFFF, RBX: 1}))  # add eax, ebx
    assert after.fault is None
    assert after.state.gpr[RAX] == 0x8000_0000
    assert after.state.rip == START + 2
    assert after.state.rflags & (CF | PF | AF | ZF | SF | OF) == OF | SF | AF | PF
    assert after.state.mem == {}


def test_every_register_goes_in_and_comes_out(host: HostCpu) -> None:
    state = UserState()
    state.gpr = [0x1111_1111_1111_1111 * n for n in range(16)]
    for index in range(16):
        state.set_ymm(index, (index + 1) << 200 | index)
    state.mxcsr, state.fcw, state.fsw, state.ftw = 0x7F80, 0x27F, 0x3800, 0x81
    for index in range(8):
        state.set_st(index, 0x4000_8000_0000_0000_0000 + index)
    state.fs_base, state.gs_base = DATA, DATA + 0x10
    state.rflags = 0x202 | 0x400 | CF
    after = host.run(b"\x90", state)
    assert after.state.gpr == state.gpr
    assert after.state.xsave == state.xsave
    assert (after.state.fs_base, after.state.gs_base, after.state.rflags) == (DATA, DATA + 0x10, 0x603)
    assert after.state.selectors == (0x2B, 0x33, 0x2B, 0x2B, 0, 0)


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("f7 f1", Fault(o.DE)),  # div ecx
        ("0f 0b", Fault(o.UD)),  # ud2
        ("f4", Fault(o.GP)),  # hlt
        ("cd 21", Fault(o.GP, 0x21 << 3 | 2)),  # int 0x21: its gate has DPL 0
        (f"8b 04 25 {HOLE.to_bytes(4, 'little').hex()}", Fault(o.PF, 4, HOLE)),
        (f"89 04 25 {HOLE.to_bytes(4, 'little').hex()}", Fault(o.PF, 6, HOLE)),
        (f"89 04 25 {READONLY.to_bytes(4, 'little').hex()}", Fault(o.PF, 7, READONLY)),
        (f"89 04 25 {CODE.to_bytes(4, 'little').hex()}", Fault(o.PF, 7, CODE)),
        (f"8b 04 25 {(DATA + DATA_SIZE - 2).to_bytes(4, 'little').hex()}", Fault(o.PF, 4, DATA + DATA_SIZE)),
        ("48 b8 00 00 00 00 00 00 00 80 8b 00", Fault(o.GP)),  # a load from an address that is not canonical
        ("48 bc 00 00 00 00 00 00 00 80 58", Fault(o.SS)),  # the same through RSP
        ("48 8b 04 25 f8 ff ff ff", Fault(o.PF, 4, 0xFFFF_FFFF_FFFF_FFF8)),
    ],
)  # fmt: skip
def test_faults(host: HostCpu, code: str, fault: Fault) -> None:
    assert run(host, code).fault == fault


def test_a_fault_leaves_the_state_as_before(host: HostCpu) -> None:
    state = with_gprs({RAX: 5, RDX: 7, RSP: STACK + 4})
    after = run(host, "50", state)  # push rax, over the edge of the stack
    assert after.fault == Fault(o.PF, 6, STACK - 4)
    assert (after.state.gpr, after.state.rip, after.state.mem) == (state.gpr, START, {})


def test_jumps_to_data_holes_and_out_of_the_code(host: HostCpu) -> None:
    assert run(host, "ff e0", with_gprs({RAX: DATA})).fault == Fault(o.PF, 0x15, DATA)
    assert run(host, "ff e0", with_gprs({RAX: HOLE})).fault == Fault(o.PF, 0x14, HOLE)
    after = run(host, "ff e0", with_gprs({RAX: CODE + 0x123}))
    assert (after.fault, after.state.rip) == (None, CODE + 0x123)
    end = start(rip=CODE + CODE_SIZE - 1)
    assert run(host, "0f", end).fault == Fault(o.PF, 0x14, CODE + CODE_SIZE)


def test_int3_under_test_is_a_trap_not_the_end(host: HostCpu) -> None:
    after = run(host, "cc 90")
    assert (after.fault, after.state.rip) == (Fault(o.BP), START + 1)


def test_single_step_and_alignment_check(host: HostCpu) -> None:
    stepped = run(host, "ff c0 ff c0", start(rflags=0x202 | TF))
    assert (stepped.fault, stepped.state.rip, stepped.state.gpr[RAX]) == (Fault(o.DB), START + 2, 1)
    odd = with_gprs({RBX: DATA + 1})
    assert run(host, "8b 03", odd).fault is None
    odd.rflags |= AC
    assert run(host, "8b 03", odd).fault == Fault(o.AC)


def test_floating_point_exceptions(host: HostCpu) -> None:
    divide = start(mxcsr=0x1F80 & ~(1 << 9))  # divide by zero unmasked
    divide.set_ymm(0, 0x3F80_0000)
    assert run(host, "f3 0f 5e c1", divide).fault == Fault(o.XM)  # divss xmm0, xmm1
    x87 = start(fcw=0x37F & ~4)
    waiting = run(host, "d9 e8 d9 ee de f9 9b", x87)  # fld1; fldz; fdivp; fwait
    assert (waiting.fault, waiting.state.rip) == (Fault(o.MF), START + 6)
    assert waiting.state.fsw & 0x84 == 0x84


def test_x87_mmx_and_avx_results(host: HostCpu) -> None:
    pi = run(host, "d9 eb").state  # fldpi
    assert (pi.st(0), pi.fsw >> 11 & 7, pi.ftw) == (0x4000_C90F_DAA2_2168_C235, 7, 0x80)
    mmx = run(host, "0f 6e c0", with_gprs({RAX: 0x1234})).state  # movd mm0, eax
    assert (mmx.mm(0), mmx.ftw, mmx.fsw >> 11 & 7) == (0x1234, 0xFF, 0)
    state = UserState()
    state.set_ymm(1, int.from_bytes(struct.pack("<4d", 1.0, 2.0, 3.0, 4.0), "little"))
    total = run(host, "c5 f5 58 c1", state).state.ymm(0)  # vaddpd ymm0, ymm1, ymm1
    assert struct.unpack("<4d", total.to_bytes(32, "little")) == (2.0, 4.0, 6.0, 8.0)


def test_thirty_two_bit_code(host: HostCpu) -> None:
    adjusted = run(host, "37", with_gprs({RAX: 0x0F}), 32)  # aaa
    assert adjusted.state.gpr[RAX] == 0x105
    pushed = run(host, "60", with_gprs({RAX: 1, RCX: 2}), 32)  # pusha
    assert pushed.state.gpr[RSP] == STACK_TOP - 32
    assert struct.unpack("<2I", pushed.state.read(STACK_TOP - 8, 8)) == (2, 1)
    state = with_gprs({RAX: 9, RBX: DATA})
    state.write(DATA, struct.pack("<2I", 1, 8))
    assert run(host, "62 03", state, 32).fault == Fault(o.BR)  # bound eax, [ebx]
    assert run(host, "37").fault == Fault(o.UD)


def test_memory_is_set_and_captured_and_does_not_leak(host: HostCpu) -> None:
    state = with_gprs({RSI: DATA + 0xFFC, RDI: DATA + 0x1FFC})
    state.write(DATA + 0xFFC, b"abcdefgh")
    after = run(host, "48 a5", state).state  # movsq, over page boundaries
    assert after.read(DATA + 0x1FFC, 8) == b"abcdefgh"
    assert sorted(after.mem) == [DATA, DATA + PAGE, DATA + 2 * PAGE]
    assert run(host, "90").state.mem == {}
    assert run(host, "8b 03", with_gprs({RBX: DATA + 0x1FFC})).state.gpr[RAX] == int.from_bytes(
        UserState().read(DATA + 0x1FFC, 4), "little"
    )


def test_code_of_one_case_does_not_stay_for_the_next(host: HostCpu) -> None:
    run(host, "ff c0 ff c0 ff c0")
    after = run(host, "ff c0")
    assert (after.state.gpr[RAX], after.state.rip) == (1, START + 2)


def test_segment_bases(host: HostCpu) -> None:
    state = start(fs_base=DATA + 8)
    state.write(DATA + 8, b"\x2a\0\0\0")
    assert run(host, "64 8b 04 25 00 00 00 00", state).state.gpr[RAX] == 42


def test_code_that_does_not_fit_is_refused(host: HostCpu) -> None:
    with pytest.raises(ValueError, match="do not fit the code area"):
        run(host, "90 90", start(rip=CODE + CODE_SIZE - 1))


# Recovery.


def test_system_calls_do_not_reach_the_kernel(host: HostCpu) -> None:
    starts = host.starts
    exit_group = with_gprs({RAX: 231})
    after = run(host, "0f 05", exit_group)
    assert after.lost is not None
    assert run(host, "ff c0").state.gpr[RAX] == 1
    assert host.starts == starts + (not host.traps_system_calls)


def test_a_destroyed_child_is_replaced_and_only_its_case_lost() -> None:
    wreck = bytes.fromhex(f"48 c7 04 25 {SHARED.to_bytes(4, 'little').hex()} 00 00 00 00")  # the runner's CURRENT = 0
    with HostCpu() as cpu:
        good = (b"\xff\xc0", UserState(), 64)
        outcomes = cpu.run_many([good, (wreck, UserState(), 64), good])
        assert [outcome.lost is None for outcome in outcomes] == [True, False, True]
        assert "killed the host process" in str(outcomes[1].lost)
        assert outcomes[2].state.gpr[RAX] == 1
        assert cpu.starts == 2


def test_a_hanging_case_is_given_up() -> None:
    with HostCpu(hang_seconds=0.05) as cpu:
        outcomes = cpu.run_many([(b"\xeb\xfe", UserState(), 64), (b"\xff\xc0", UserState(), 64)])
        assert "did not end" in str(outcomes[0].lost)
        assert outcomes[1].state.gpr[RAX] == 1


# Generation.


@pytest.mark.parametrize("bits", [64, 32])
def test_every_instruction_can_be_encoded(bits: int) -> None:
    rng = random.Random(1)
    codes = instructions(features=X86_64_V3 | EXTRA, bits=bits) + instructions(bits=bits, privileged=True)
    assert len(codes) > 1700
    strange = Counter(
        CODE_NAMES[code]
        for code in codes
        for variant in variants(code, 6, rng, bits)
        if variant.decoded.code not in (code, 0)
    )
    # Some operands make it another instruction: XCHG AX with itself is NOP, MOV to CS does not exist.
    assert {name.split("_")[0] for name in strange} <= {"XCHG"}


def test_all_forms_are_made() -> None:
    (code,) = (code for code in instructions(mnemonics=["add"]) if CODE_NAMES[code] == "ADD_RM32_R32")
    made = list(variants(code, 400, random.Random(0)))
    decoded = [variant.decoded for variant in made]
    assert {"reg", "absolute", "rip", "sib8", "basea32"} <= set(forms(code, 64))
    assert any(ins.op0_kind == iced_x86.OpKind.REGISTER for ins in decoded)
    assert any(ins.memory_base == iced_x86.Register.RIP for ins in decoded)
    assert any(ins.segment_prefix == iced_x86.Register.FS for ins in decoded)
    assert any(ins.has_lock_prefix for ins in decoded)
    assert {1, 2, 4, 8} <= {ins.memory_index_scale for ins in decoded}
    assert any(not variant.valid for variant in made)
    (byte,) = (code for code in instructions(mnemonics=["mov"]) if CODE_NAMES[code] == "MOV_R8_RM8")
    registers = {variant.decoded.op0_register for variant in variants(byte, 400, random.Random(0))}
    names = ("AL", "AH", "BH", "SPL", "DIL", "R15L")
    assert {getattr(iced_x86.Register, name) for name in names} <= registers


def test_cases_depend_on_the_seed_alone() -> None:
    codes = instructions(mnemonics=["adc", "mulps", "fadd"])
    alone = list(cases(codes[-2:], 8, seed=3))
    among = list(cases(codes, 8, seed=3))[-len(alone) :]
    other = list(cases(codes[-2:], 8, seed=4))
    assert [(case.data, case.state) for case in alone] == [(case.data, case.state) for case in among]
    assert [(case.data, case.state) for case in alone] != [(case.data, case.state) for case in other]


def test_selection_by_feature_and_mnemonic() -> None:
    assert {mnemonic_name(code) for code in instructions(mnemonics=["AND", "or"])} == {"AND", "OR"}
    assert not {mnemonic_name(code) for code in instructions(features=X86_64_V3 | EXTRA)} & set(EXCLUDED)
    assert set(EXCLUDED) <= set(MNEMONIC_NAMES.values())
    assert not instructions(features=[])
    with pytest.raises(ValueError, match="no such mnemonic: FROB"):
        instructions(mnemonics=["FROB"])


@pytest.mark.parametrize("bits", [64, 32])
def test_all_instructions_run_and_repeat(host: HostCpu, bits: int) -> None:
    codes = instructions(features=X86_64_V3 | EXTRA, bits=bits)
    report = run_family(host, host, codes, per_code=2, seed=2, bits=bits)
    assert report.ok, report
    assert report.cases > 1.9 * len(codes)


def test_privileged_instructions_fault(host: HostCpu) -> None:
    for case in cases(instructions(privileged=True), 2):
        after = host.run(case.data, case.state, case.bits)
        assert after.fault is not None, case


def test_cases_meet_every_kind_of_fault(host: HostCpu) -> None:
    names = ["add", "div", "divps", "fdiv", "movaps", "pop", "push"]
    seen = Counter(
        after.fault.vector if after.fault else None
        for case in cases(instructions(mnemonics=names), 104, seed=1)
        for after in [host.run(case.data, case.state, case.bits)]
    )
    assert {None, o.DE, o.DB, o.UD, o.GP, o.PF, o.MF, o.AC, o.XM} <= set(seen)
    assert seen[None] > 0.6 * seen.total()


@pytest.mark.parametrize("bits", [64, 32])
def test_random_bytes(host: HostCpu, bits: int) -> None:
    generated = list(random_cases(1500, seed=1, bits=bits))
    for case, after in zip(generated, host.run_many((c.data, c.state, c.bits) for c in generated), strict=True):
        assert after.lost is None, case
        if not case.valid:
            assert after.fault == Fault(o.UD), case


def test_what_counts_as_inside() -> None:
    assert is_inside(DATA, 64)
    assert is_inside(1 << 63)
    assert is_inside(0x1234)
    assert not is_inside(SHARED)
    assert not is_inside(0x5555_5555_0000)
    assert not is_inside(DATA - (1 << 28), 1 << 29)


# Undefined results and comparison.


def test_flag_table_agrees_with_the_decoders() -> None:
    bits = iced_x86.RflagsBits
    flags = {bits.CF: CF, bits.PF: PF, bits.AF: AF, bits.ZF: ZF, bits.SF: SF, bits.OF: OF}
    conditional = {"ROL", "ROR", "RCL", "RCR", "SHL", "SAL", "SHR", "SAR", "SHLD", "SHRD"}
    for case in [*cases(instructions(), 1), *cases(instructions(bits=32), 1, bits=32)]:
        name = mnemonic_name(case.code)
        if name in conditional or not case.valid:
            continue
        told = sum(ours for theirs, ours in flags.items() if case.instruction.rflags_undefined & theirs)
        assert FLAGS.get(name, 0) == told, case


@pytest.mark.parametrize(
    ("name", "width", "count", "flags"),
    [
        ("SHL", 32, 0, 0), ("SHL", 32, 32, 0), ("SHL", 32, 1, AF), ("SHL", 64, 33, AF | OF),
        ("SHR", 8, 8, AF | OF | CF),
        ("SAR", 8, 9, AF | OF), ("ROL", 16, 1, 0), ("ROR", 16, 2, OF), ("RCL", 8, 64, 0), ("SHLD", 16, 17, 0x8D5),
        ("SHRD", 16, 1, AF), ("SHLD", 64, 64, 0),
    ],
)  # fmt: skip
def test_shift_flags(name: str, width: int, count: int, flags: int) -> None:
    assert shift_flags(name, width, count) == flags


class Mutant:
    """The host, with one thing changed in what it hands back."""

    def __init__(self, host: HostCpu, change: str) -> None:
        self.host = host
        self.change = change

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        after = self.host.run(code, state, bits)
        match self.change:
            case "carry":
                after.state.rflags ^= CF
            case "adjust":
                after.state.rflags ^= AF
            case "register":
                after.state.gpr[RDI] ^= 1 << 63
            case "vector":
                after.state.set_ymm(9, after.state.ymm(9) ^ 1 << 255)
            case "memory":
                after.state.write(DATA + 5, b"\x5a")
            case "fault":
                after.fault = Fault(o.GP) if after.fault is None else None
            case "pointers":
                after.state.xsave[8] ^= 1
        return after


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("carry", "rflags: before"),
        ("register", "rdi: before"),
        ("vector", "ymm9: before"),
        ("memory", f"[{DATA + 5:#x}] 1 bytes"),
        ("fault", "guest: raises #GP(0x0)"),
    ],
)
def test_wrong_results_are_reported(host: HostCpu, change: str, told: str) -> None:
    report = run_family(Mutant(host, change), host, instructions(mnemonics=["and"]), per_code=2, seed=5)
    assert len(report.failures) == report.cases > 0
    assert any(told in failure.text for failure in report.failures)
    assert "inputs: rflags=" in str(report)


def test_undefined_results_are_not_reported(host: HostCpu) -> None:
    generated = list(cases(instructions(mnemonics=["and"]), 6, seed=5))
    assert run_cases(Mutant(host, "pointers"), host, generated).ok
    # AND leaves AF undefined, but not where it faults: there it is as before.
    report = run_cases(Mutant(host, "adjust"), host, generated)
    assert 0 < len(report.failures) < report.cases / 2
    assert all(host.run(f.case.data, f.case.state, f.case.bits).fault is not None for f in report.failures)


def test_a_lost_guest_is_a_failure(host: HostCpu) -> None:
    case: Case = next(iter(cases(instructions(mnemonics=["nop"]), 1)))
    expected = host.run(case.data, case.state, case.bits)
    text = diff(case, expected, Outcome(case.state, lost="stopped in the middle"))
    assert text is not None
    assert "stopped in the middle" in text
    assert diff(case, expected, expected) is None


def test_state_reads_and_writes_over_pages() -> None:
    state = UserState()
    state.write(DATA + PAGE - 2, b"wxyz")
    assert state.read(DATA + PAGE - 2, 4) == b"wxyz"
    state.write(DATA + DATA_SIZE - 1, b"ab")
    assert state.read(DATA + DATA_SIZE - 1, 1) == b"a"
    assert sorted(state.mem) == [DATA, DATA + PAGE, DATA + DATA_SIZE - PAGE]
    with pytest.raises(KeyError):
        state.read(HOLE, 1)
    other = state.copy()
    other.set_ymm(3, 1 << 255 | 1)
    other.gpr[RAX] = 1
    assert (state.ymm(3), state.gpr[RAX]) == (0, 0)
    assert other.xmm(3) == 1


@pytest.mark.parametrize("mnemonic", ["xsave", "fxsave", "fnstenv"])
def test_pointers_in_saved_images_are_not_compared(host: HostCpu, mnemonic: str) -> None:
    """FIP lies at 8 in an FXSAVE image and at 12 in a 28-byte environment; neighbours are state."""
    pointer, neighbour = (12, 8) if mnemonic == "fnstenv" else (8, 2)
    seen = 0
    for case in cases(instructions(mnemonics=[mnemonic]), 52, seed=1):
        expected = host.run(case.data, case.state, case.bits)
        if expected.fault is not None or not case.memory or case.memory[0].size == 14:
            continue
        for offset, reported in ((pointer, False), (neighbour, True)):
            actual = Outcome(expected.state.copy())
            place = case.memory[0].address + offset
            actual.state.write(place, bytes([actual.state.read(place, 1)[0] ^ 1]))
            assert (diff(case, expected, actual) is not None) == reported, case
        seen += 1
    assert seen > 10
