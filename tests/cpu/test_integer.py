"""Integer instructions against the host CPU: every encoding, 64-bit and 32-bit, compiled and as plain Python."""

from __future__ import annotations


import iced_x86
import pytest
from pellucid.engine.image import table
from tests.cpu.guest import Guest, PythonGuest
from tests.cpu.oracle import (
    BASE, Case, HostCpu, Report, UserState, catalog, instructions, layout, random_cases, run_cases, run_family,
    unavailable)
from tests.cpu.oracle import outcome as o
from tests.cpu.oracle.state import RAX, RBP, RCX, RDI, RSI, RSP

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

FEATURES = BASE | catalog._features("CMPXCHG16B POPCNT LZCNT MOVBE BMI1 SSE4_2")
NOT_HERE = {
    "WAIT": "x87",
    "UD1": "whether its ModRM byte is fetched differs between vendors",
}
NON_CANONICAL = 0x8000_0000_0000_0000


@pytest.fixture(scope="module")
def python() -> PythonGuest:
    return PythonGuest()


def codes(bits: int, privileged: bool = False) -> list[int]:
    """The encodings whose semantics stand in the integer families, control transfers and segment loads among them."""
    found = instructions(features=FEATURES, bits=bits, privileged=privileged)
    return [code for code in found if not _left_out(code)]


def _left_out(code: int) -> bool:
    name = catalog.CODE_NAMES[code]
    # AMD reads four bytes of memory for it, Intel two.
    vendor = name == "MOVSXD_R16_RM16"
    return "XMM" in name or "VEX" in name or catalog.mnemonic_name(code) in NOT_HERE or vendor


def accepted(report: Report) -> Report:
    """The report without differences that no manual decides."""
    report.failures = [failure for failure in report.failures if not _undecided(failure.case.instruction, failure.text)
                       and not _locked_verw(failure.case)]
    return report


def _locked_verw(case: Case) -> bool:
    """Zen 4 lets VERW have a LOCK prefix; the manual has it raise #UD (SDM vol. 2, VERR/VERW)."""
    return catalog.mnemonic_name(case.code) == "VERW" and b"\xf0" in case.data.partition(b"\x0f\x00")[0]


def _undecided(instruction: iced_x86.Instruction, text: str) -> bool:
    name = catalog.MNEMONIC_NAMES[instruction.mnemonic]
    both_fault = "host: raises" in text and "guest: raises" in text
    if name in ("RETF", "IRET", "IRETD", "IRETQ"):
        return both_fault  # which word of the frame is read first, and whether before its selectors are checked
    if name.startswith("CMPS"):
        return both_fault  # which of the two operands is read first: Zen 4 begins with ES:[rDI], others with the source
    if name == "ARPL":
        return instruction.segment_prefix == iced_x86.Register.CS  # writes only where it adjusts, and only then faults
    if name == "CALL" and instruction.is_call_far_indirect:
        return "not all mapped" in text  # AMD pushes with the stack size of the mode it enters
    return False


@pytest.mark.parametrize("bits", [64, 32])
def test_every_encoding_compiled(native: Guest, host: HostCpu, bits: int) -> None:
    report = accepted(run_family(native, host, codes(bits), per_code=26, seed=1, bits=bits, limit=100_000))
    assert report.ok, report
    assert report.cases > 14_000


@pytest.mark.parametrize("bits", [64, 32])
def test_every_encoding_as_plain_python(python: Guest, host: HostCpu, bits: int) -> None:
    report = accepted(run_family(python, host, codes(bits), per_code=1, states=1, seed=2, bits=bits, limit=100_000))
    assert report.ok, report
    assert report.cases > 500


@pytest.mark.parametrize("bits", [64, 32])
def test_privileged_instructions_fault(native: Guest, host: HostCpu, bits: int) -> None:
    report = run_family(native, host, codes(bits, privileged=True), per_code=8, seed=3, bits=bits)
    assert report.ok, report
    assert report.cases > 250


@pytest.mark.parametrize("bits", [64, 32])
def test_random_bytes(native: Guest, host: HostCpu, bits: int) -> None:
    """What only a decoder meets: clashing prefixes, invalid instructions, reserved encodings."""
    features = FEATURES - catalog._features("BMI1")
    generated = [case for case in random_cases(8_000, 4, bits, features=features) if not _left_out(case.code)]
    report = accepted(run_cases(native, host, generated, limit=100_000))
    assert report.ok, report


def test_everything_is_built(native: Guest) -> None:
    native.processor.learner.unbuilt.clear()
    for bits in (64, 32):
        for code in codes(bits):
            name = catalog.CODE_NAMES[code]
            assert table().find(catalog.mnemonic_name(code), name) is not None, name


# --- single cases ----------------------------------------------------------------------------------------


def agree(guest: Guest, host: HostCpu, code: str, registers: dict[int, int], fault: int | None) -> None:
    """Both end with this exception (or none) and the same registers."""
    state = UserState()
    for number, value in registers.items():
        state.gpr[number] = value
    expected, got = (executor.run(bytes.fromhex(code), state) for executor in (host, guest))
    assert got.fault == expected.fault
    assert got.state.gpr == expected.state.gpr
    assert (None if got.fault is None else got.fault.vector) == fault


@pytest.mark.parametrize(("code", "registers", "vector"), [
    ("50", {RSP: NON_CANONICAL}, o.SS),                              # push rax
    ("58", {RSP: NON_CANONICAL}, o.SS),                              # pop rax
    ("ff30", {RAX: NON_CANONICAL}, o.GP),                            # push [rax]
    ("ff30", {RAX: layout.DATA, RSP: NON_CANONICAL}, o.SS),
    ("8f00", {RAX: NON_CANONICAL}, o.GP),                            # pop [rax]
    ("8b4500", {RBP: NON_CANONICAL}, o.SS),                          # mov eax,[rbp]
    ("8b0424", {RSP: NON_CANONICAL}, o.SS),                          # mov eax,[rsp]
    ("3e8b4500", {RBP: NON_CANONICAL}, o.SS),                        # DS prefix, which 64-bit mode ignores
    ("8b00", {RAX: NON_CANONICAL}, o.GP),                            # mov eax,[rax]
    ("c3", {RSP: NON_CANONICAL}, o.SS),                              # ret
    ("e800000000", {RSP: NON_CANONICAL}, o.SS),                      # call
    ("ffd0", {RAX: layout.START, RSP: NON_CANONICAL}, o.SS),         # call rax
    ("ffd0", {RAX: NON_CANONICAL}, o.GP),
    ("ffe0", {RAX: NON_CANONICAL}, o.GP),                            # jmp rax
    ("c8000000", {RSP: NON_CANONICAL}, o.SS),                        # enter 0,0
    ("c9", {RBP: NON_CANONICAL}, o.SS),                              # leave
    ("9c", {RSP: NON_CANONICAL}, o.SS),                              # pushfq
    ("a4", {RSI: NON_CANONICAL}, o.GP),                              # movsb
    ("f3a4", {RDI: NON_CANONICAL, RSI: layout.DATA, RCX: 1}, o.GP),
    ("f3a4", {RDI: NON_CANONICAL, RSI: NON_CANONICAL, RCX: 0}, None),
    ("f0480fc10424", {RSP: NON_CANONICAL}, o.SS),                    # lock xadd [rsp],rax
    ("480fc70c24", {RSP: layout.DATA + 8}, o.GP),                    # cmpxchg16b, misaligned
    ("f3419090", {RAX: 1}, None),                                    # F3 41 90 is XCHG R8,RAX
])
def test_one(native: Guest, host: HostCpu, code: str, registers: dict[int, int], vector: int | None) -> None:
    agree(native, host, code, registers, vector)
