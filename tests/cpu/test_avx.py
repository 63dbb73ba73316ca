"""AVX, AVX2, FMA, F16C, BMI, ADX, MOVBE, AES, PCLMULQDQ, SHA: every encoding against the host CPU, and their gates."""

import os

import pytest
from pellucid.cpu.host_sse import HOST
from pellucid.cpu.state import (
    CR0_EM, CR0_MP, CR0_PE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, DB, EXIT_MMIO, GP, MODE_AVX_UD, MODE_VEX_UD, NM, PF,
    RFLAGS_RF, RFLAGS_TF, RFLAGS_VM, UD, XMM_BYTES, slot_of)
from pellucid.isa import forms
from pellucid.isa.all import TABLE

from .guest import Guest, NativeGuest, PythonGuest
from .oracle import (
    Case, Fault, HostCpu, Outcome, UserState, catalog, cases, instructions, layout, run_cases, unavailable)
from .test_sse import ExceptForOverflow, vector_of

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

FEATURES = frozenset(getattr(catalog.FEATURE, name) for name in (
    "AVX", "AVX2", "BMI1", "BMI2", "F16C", "FMA", "LZCNT", "MOVBE", "ADX", "AES", "PCLMULQDQ", "SHA"))

VADDPS, VADDPS_YMM, VMOVAPS_LOAD, VMOVUPS_LOAD, VPXOR, ANDN, VZEROUPPER, VPGATHERDD = (bytes.fromhex(code) for code in (
    "c5f058c2", "c5f458c2", "c5fc2806", "c5fc1006", "c5f1efc2", "c4e270f2c2", "c5f877", "c4e269900486"))


def codes(bits: int) -> list[int]:
    """The encodings that need one of our features, and none that is not ours (GFNI)."""
    return [code for code in instructions(features=FEATURES | catalog.X86_64_V2, bits=bits)
            if catalog.features_of(code) & FEATURES]


def is_lax_sha(case: Case) -> bool:
    """A misaligned operand of SHA: #GP(0) by the manual (SDM vol. 2, table 2-21), which AMD's processors permit."""
    memory = str(case).startswith("SHA") and "[" in case.text
    return memory and (not case.memory or any(operand.address % 16 for operand in case.memory))


def compare(guest: Guest, host: HostCpu, bits: int, per_code: int) -> None:
    seed = int(os.environ.get("PELLUCID_SEED", "12"))
    made = (case for case in cases(codes(bits), per_code=per_code, seed=seed, bits=bits) if not is_lax_sha(case))
    report = run_cases(ExceptForOverflow(guest, host), host, made)
    assert report.ok, f"seed {seed}\n{report}"


@pytest.mark.parametrize("bits", [64, 32])
def test_every_encoding_is_built(bits: int) -> None:
    names = [(catalog.mnemonic_name(code), forms.CODE_NAMES[code]) for code in codes(bits)]
    assert len(names) > 600
    assert not [code for mnemonic, code in names if TABLE.find(mnemonic, code) is None]


@pytest.mark.parametrize("bits", [64, 32])
def test_native_agrees_with_the_host(native: NativeGuest, host: HostCpu, bits: int) -> None:
    compare(native, host, bits, 12)


@pytest.mark.parametrize("bits", [64, 32])
def test_plain_python_agrees_with_the_host(host: HostCpu, bits: int) -> None:
    compare(PythonGuest(), host, bits, 1)


@pytest.mark.parametrize(("cr0", "cr4", "xcr0", "vector"), [
    (0, CR4_OSXSAVE, 7, None), (0, 0, 7, UD), (0, CR4_OSXSAVE, 3, UD), (0, CR4_OSXSAVE, 1, UD),
    (CR0_TS, CR4_OSXSAVE, 7, NM), (CR0_TS, 0, 7, UD), (CR0_EM, CR4_OSXSAVE, 7, None)])
def test_control_registers_gate_avx(bare: NativeGuest, cr0: int, cr4: int, xcr0: int, vector: int | None) -> None:
    """SDM vol. 1, 14.8 and vol. 2, 2.8: neither CR0.EM nor CR4.OSFXSR counts; BMI is not gated at all."""
    state = bare.state
    state.cr0 = state.cr0 & ~(CR0_EM | CR0_TS) | CR0_MP | cr0
    state.cr4 = state.cr4 & ~(CR4_OSFXSR | CR4_OSXSAVE) | cr4
    state.xcr0 = xcr0
    assert [vector_of(bare, code) for code in (VADDPS, VADDPS_YMM, VPXOR, VZEROUPPER)] == [vector] * 4
    assert vector_of(bare, ANDN) is None


def test_no_vex_in_real_and_virtual_8086_mode(bare: NativeGuest) -> None:
    """Also where SSE and AVX are on, and for instructions on general registers."""
    state, processor = bare.state, bare.processor
    processor.refresh_mode()
    assert not state.mode & (MODE_VEX_UD | MODE_AVX_UD)
    state.flags |= RFLAGS_VM
    processor.refresh_mode()
    assert state.mode & MODE_VEX_UD
    state.flags &= ~RFLAGS_VM
    state.cr0 &= ~CR0_PE
    processor.refresh_mode()
    assert state.mode & MODE_VEX_UD


def test_only_aligned_moves_check_alignment(native: NativeGuest) -> None:
    state = UserState()
    for offset, vector in ((0, None), (16, GP), (1, GP)):
        state.gpr[6] = layout.DATA + offset
        assert vector_of(native, VMOVAPS_LOAD, state) == vector
        assert vector_of(native, VMOVUPS_LOAD, state) is None


def set_ymm(state: UserState, number: int, value: int) -> None:
    raw = value.to_bytes(32, "little")
    state.xsave[160 + 16 * number:176 + 16 * number] = raw[:16]
    state.xsave[576 + 16 * number:592 + 16 * number] = raw[16:]


def gather_state(base: int, indices: list[int], mask: int) -> UserState:
    """For GATHER: RSI, the four indices, and the mask; the destination is all ones."""
    state = UserState()
    state.gpr[6] = base
    set_ymm(state, 0, (1 << 256) - 1)
    set_ymm(state, 1, sum((index & 0xFFFF_FFFF) << 32 * i for i, index in enumerate(indices)))
    set_ymm(state, 2, mask | 0x55 << 128)
    state.write(layout.DATA, bytes(range(64)))
    return state


GATHER = bytes.fromhex("c4e26990048e")   # vpgatherdd xmm0, [rsi + xmm1 * 4], xmm2
ALL = (1 << 128) - 1


def test_gather_needs_three_registers(native: NativeGuest) -> None:
    state = gather_state(layout.DATA, [0, 1, 2, 3], ALL)
    assert vector_of(native, GATHER, state) is None
    assert vector_of(native, VPGATHERDD, state) == UD                      # index and destination are xmm0
    assert vector_of(native, bytes.fromhex("c4e27190048e"), state) == UD   # mask and index are xmm1
    assert vector_of(native, bytes.fromhex("c4e27990048e"), state) == UD   # mask and destination are xmm0


def test_gather_that_faults_keeps_what_it_has(native: NativeGuest) -> None:
    """The lanes before the fault are in the destination, and their masks are clear."""
    hole = (layout.READONLY + (64 << 20) - layout.DATA) // 4
    outcome = native.run(GATHER, gather_state(layout.DATA, [1, 3, hole, 2], ALL))
    assert outcome.fault is not None and outcome.fault.vector == PF
    assert outcome.state.xmm(0) & (1 << 64) - 1 == 0x0F0E0D0C_07060504
    assert outcome.state.xmm(0) >> 64 == (1 << 64) - 1
    assert outcome.state.xmm(2) == ALL >> 64 << 64


@pytest.mark.parametrize("indices", [[0, 1, 2, 3], [0, 1 << 24, 2, 3], [1 << 24, 1, 2, 3], [0, 1, 2, 1 << 24]])
@pytest.mark.parametrize("mask", [ALL, ALL & ~0xFFFF_FFFF])
def test_a_single_step_takes_the_place_of_a_gather_s_fault(
        native: NativeGuest, host: HostCpu, indices: list[int], mask: int) -> None:
    """Where a lane is done: the trap comes at the instruction, which then goes on (SDM vol. 2, VPGATHERDD)."""
    before = gather_state(layout.DATA, indices, mask)
    before.rflags |= RFLAGS_TF
    theirs, ours = host.run(GATHER, before.copy()), native.run(GATHER, before.copy())
    assert (ours.fault, ours.state.rip) == (theirs.fault, theirs.state.rip)
    assert [ours.state.ymm(n) for n in range(3)] == [theirs.state.ymm(n) for n in range(3)]


def test_a_data_breakpoint_takes_the_place_of_a_gather_s_fault(bare: NativeGuest) -> None:
    """RF is set, so that an instruction breakpoint does not come twice; before any lane is done the fault comes."""
    guest, state = bare, bare.state
    hole = (layout.READONLY + (64 << 20) - layout.DATA) // 4
    state.dr[0], state.dr[7] = layout.DATA, 0x400 | 1 | 0xF << 16
    outcome = guest.run(GATHER, gather_state(layout.DATA, [0, hole, 1, 2], ALL))
    assert outcome.fault == Fault(DB) and outcome.state.rip == layout.START
    assert state.dr[6] & 0xF == 1 and state.flags & RFLAGS_RF
    outcome = guest.run(GATHER, gather_state(layout.DATA, [hole, 0, 1, 2], ALL))
    assert outcome.fault is not None and outcome.fault.vector == PF


def test_gather_from_a_device_asks_once_for_each_lane(bare: NativeGuest) -> None:
    """Every lane leaves for its own value; what is answered is not asked again, nor given to another lane."""
    guest, state = bare, bare.state
    table = guest.space.root
    for shift in (39, 30, 21):
        table = guest.space._word(table + (layout.DATA >> shift & 0x1FF) * 8).value & ~0xFFF
    entry = guest.space._word(table + (layout.DATA >> 12 & 0x1FF) * 8)
    old, entry.value = entry.value, entry.value & 0xFFF | 1 << 32 | 1 << 63
    case = gather_state(layout.DATA, [0, 8, 4, 12], ALL)
    case.mem.clear()
    guest._enter(GATHER, case, 64)
    asked = []
    for answer in range(4):
        assert guest.processor.run() == EXIT_MMIO
        asked.append(state.io_address)
        state.replay[0], state.replay_count, state.replay_at = 0x100 + answer, 1, 0
    guest.processor.run()
    entry.value = old
    assert asked == [(1 << 32) + offset for offset in (0, 32, 16, 48)]
    assert bytes(state.xmm[:16]) == b"".join((0x100 + i).to_bytes(4, "little") for i in range(4))


@pytest.mark.skipif(not {"rdrnd", "rdseed"} <= HOST, reason="the host has no RDRAND and RDSEED")
@pytest.mark.parametrize("modrm", ["f0", "f8"])   # RDRAND, RDSEED
def test_random_numbers(native: NativeGuest, modrm: str) -> None:
    before = UserState()
    before.gpr[0] = 0x1122_3344_5566_7788
    before.rflags |= 0x8D5
    outcomes: list[Outcome] = [native.run(bytes.fromhex("480fc7" + modrm), before) for _ in range(16)]
    numbers = {outcome.state.gpr[0] for outcome in outcomes if outcome.state.rflags & 1}
    assert len(numbers) >= 8 and before.gpr[0] not in numbers
    assert all(outcome.state.rflags & 0x8D4 == 0 for outcome in outcomes)
    assert all(outcome.state.gpr[0] == 0 for outcome in outcomes if not outcome.state.rflags & 1)
    assert native.run(bytes.fromhex("0fc7" + modrm), before).state.gpr[0] >> 32 == 0
    assert native.run(bytes.fromhex("660fc7" + modrm), before).state.gpr[0] >> 16 == 0x1122_3344_5566


def test_registers_lie_64_bytes_apart() -> None:
    assert slot_of("xmm") % 64 == 0, "none crosses a cache line"
    assert XMM_BYTES == 64 and slot_of("xmm", XMM_BYTES) - slot_of("xmm") == XMM_BYTES
