"""MMX, SSE to SSE4.2: every encoding against the host CPU, compiled and as plain Python, and what CR0 and CR4 gate."""

import ctypes
import os
from collections.abc import Iterable

import pytest
from pellucid.cpu.state import CR0_EM, CR0_MP, CR0_TS, CR4_OSFXSR, CR4_OSXMMEXCPT, GP, NM, UD, XM, slot_of
from pellucid.isa import forms
from pellucid.isa.all import TABLE

from .guest import Guest, NativeGuest, PythonGuest
from .oracle import HostCpu, Outcome, UserState, catalog, instructions, layout, run_family, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

OE, UE, PE = 1 << 3, 1 << 4, 1 << 5
ADDSD, PADDB, PXOR_XMM, MOVAPS_LOAD, EMMS = (bytes.fromhex(code) for code in (
    "f20f58c1", "0ffcc1", "660fefc1", "0f2806", "0f77"))


class ExceptForOverflow:
    """The guest, but for one bit that it does not know: whether an unmasked overflow or underflow lost precision."""

    def __init__(self, guest: Guest, host: HostCpu) -> None:
        self.guest, self.host = guest, host

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        return self.run_many([(code, state, bits)])[0]

    def run_many(self, cases: Iterable[tuple[bytes, UserState, int]]) -> list[Outcome]:
        every = list(cases)
        return [self._settled(outcome, *case) for outcome, case in zip(self.guest.run_many(every), every, strict=True)]

    def _settled(self, outcome: Outcome, code: bytes, state: UserState, bits: int) -> Outcome:
        unmasked = outcome.state.mxcsr & (OE | UE) & ~(state.mxcsr >> 7)
        if unmasked and outcome.fault is not None and outcome.fault.vector == XM:
            expected = self.host.run(code, state, bits)
            if expected.state.mxcsr ^ outcome.state.mxcsr == PE:
                outcome.state.mxcsr ^= PE
        return outcome


def codes(bits: int) -> list[int]:
    """The encodings whose semantics stand in the sse_* files."""
    rows = {code: TABLE.find(catalog.mnemonic_name(code), forms.CODE_NAMES[code]) for code in instructions(bits=bits)}
    return [code for code, row in rows.items() if row is not None and ".sse_" in row[1].fn.__module__]


def test_every_encoding_is_built() -> None:
    wanted = instructions(features=catalog.X86_64_V2 - catalog.BASE - catalog.X87)
    left = {forms.CODE_NAMES[code] for code in wanted} - {forms.CODE_NAMES[code] for code in codes(64)}
    assert not [name for name in left if "MM" in name]


@pytest.mark.parametrize("bits", [64, 32])
def test_native_agrees_with_the_host(native: NativeGuest, host: HostCpu, bits: int) -> None:
    seed = int(os.environ.get("PELLUCID_SEED", "11"))
    report = run_family(ExceptForOverflow(native, host), host, codes(bits), per_code=12, seed=seed, bits=bits)
    assert report.ok, f"seed {seed}\n{report}"


@pytest.mark.parametrize("bits", [64, 32])
def test_plain_python_agrees_with_the_host(host: HostCpu, bits: int) -> None:
    seed = int(os.environ.get("PELLUCID_SEED", "11"))
    executor = ExceptForOverflow(PythonGuest(), host)
    report = run_family(executor, host, codes(bits), per_code=1, seed=seed, bits=bits)
    assert report.ok, f"seed {seed}\n{report}"


def vector_of(guest: NativeGuest, code: bytes, state: UserState | None = None) -> int | None:
    """The exception that one instruction raises, or None."""
    fault = guest.run(code, state or UserState()).fault
    return None if fault is None else fault.vector


@pytest.mark.parametrize(("cr0", "cr4", "sse", "mmx"), [
    (0, CR4_OSFXSR, None, None), (0, 0, UD, None), (CR0_TS, CR4_OSFXSR, NM, NM), (CR0_EM, CR4_OSFXSR, UD, UD),
    (CR0_EM | CR0_TS, CR4_OSFXSR, UD, UD), (CR0_TS, 0, UD, NM)])
def test_control_registers_gate_the_registers(
        bare: NativeGuest, cr0: int, cr4: int, sse: int | None, mmx: int | None) -> None:
    """SDM vol. 3, tables 2-4 and 12-1; vol. 2, 2.4."""
    state = bare.state
    state.cr0 = state.cr0 & ~(CR0_EM | CR0_TS) | CR0_MP | cr0
    state.cr4 = state.cr4 & ~CR4_OSFXSR | cr4
    assert [vector_of(bare, code) for code in (ADDSD, PXOR_XMM)] == [sse, sse]
    assert [vector_of(bare, code) for code in (PADDB, EMMS)] == [mmx, mmx]


@pytest.mark.parametrize(("cr4", "vector"), [(CR4_OSXMMEXCPT, XM), (0, UD)])
def test_unmasked_exception_leaves_registers(bare: NativeGuest, cr4: int, vector: int) -> None:
    """0.0 / 0.0 with IM clear: no result, IE set, the vector by CR4.OSXMMEXCPT."""
    bare.state.cr4 = bare.state.cr4 & ~CR4_OSXMMEXCPT | cr4
    before = UserState()
    before.mxcsr = 0x1F80 & ~(1 << 7)
    outcome = bare.run(bytes.fromhex("f20f5ec1"), before)
    assert outcome.fault is not None and outcome.fault.vector == vector
    assert outcome.state.mxcsr == before.mxcsr | 1
    assert outcome.state.xmm(0) == 0


def test_old_flags_do_not_raise(native: NativeGuest) -> None:
    """A flag that stands in MXCSR, unmasked, raises nothing by itself (SDM vol. 1, 11.5.2)."""
    before = UserState()
    before.mxcsr = 0x1F80 & ~(1 << 7) | 1
    assert native.run(ADDSD, before).fault is None


def test_misaligned_operand_is_a_general_protection_fault(native: NativeGuest) -> None:
    state = UserState()
    for offset, vector in ((0, None), (1, GP), (8, GP)):
        state.gpr[6] = layout.DATA + offset
        assert vector_of(native, MOVAPS_LOAD, state) == vector


def test_mxcsr_survives_leaving_native_code(bare: NativeGuest) -> None:
    """The flags that arithmetic raises are in the state after the run, and LDMXCSR clears them."""
    state = UserState()
    state.gpr[6] = layout.DATA
    state.write(layout.DATA, (0x1F80).to_bytes(4, "little"))
    divide, load = bytes.fromhex("f20f5ec1"), bytes.fromhex("0fae16")
    assert bare.run(divide, state).state.mxcsr == 0x1F81
    assert bare.run(divide + load, state).state.mxcsr == 0x1F80
    assert bare.run(load + divide, state).state.mxcsr == 0x1F81


def test_writing_mmx_sets_the_bits_above(native: NativeGuest) -> None:
    outcome = native.run(PADDB, UserState())
    at = native.processor.address + slot_of("st")
    assert ctypes.string_at(at + 8, 2) == b"\xff\xff"
    assert outcome.state.ftw == 0xFF
    assert native.run(PADDB + EMMS, UserState()).state.ftw == 0


