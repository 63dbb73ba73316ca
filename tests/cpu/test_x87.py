"""x87, FXSAVE and XSAVE: every encoding against the host CPU, and what the host cannot be asked for at CPL 3."""

from __future__ import annotations

import ctypes
import os
import random
import re
import struct

import pytest
from pellucid.cpu.state import (
    CR0_EM, CR0_MP, CR0_NE, CR0_TS, CR4_OSFXSR, CR4_OSXSAVE, EXIT_EXCEPTION, EXIT_FERR, EXIT_HLT, GP, MF, NM, UD,
    slot_of)
from pellucid.isa import forms
from pellucid.isa.all import TABLE

from .bare import Bare
from .guest import NativeGuest, PythonGuest
from .oracle import EXTRA, X86_64_V3, Executor, Failure, HostCpu, Report, catalog, instructions, run_family, unavailable

needs_host = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

IMAGES = "FXSAVE FXSAVE64 FXRSTOR FXRSTOR64 XSAVE XSAVE64 XSAVEC XSAVEC64 XRSTOR XRSTOR64".split()
MODULES = ("isa.x87", "isa.fxsave", "isa.xsave")
HLT, PLACE = b"\xf4", 0x3000
BUFFER = 0x5000
ONE, PI = 0x3FFF << 64 | 1 << 63, 0x4000_C90F_DAA2_2168_C235


def codes(bits: int) -> list[int]:
    """The encodings whose semantics stand in the x87 and xsave files."""
    found = instructions(features=X86_64_V3 | EXTRA, bits=bits)
    rows = {code: TABLE.find(catalog.mnemonic_name(code), forms.CODE_NAMES[code]) for code in found}
    return [code for code, row in rows.items() if row is not None and any(m in row[1].fn.__module__ for m in MODULES)]


_FAULTS = re.compile(r"raises #PF\((\w+)\) at (\w+) .*raises #PF\((\w+)\) at (\w+) ")


def of_the_processor(failure: Failure) -> bool:
    """What differs between processors.

    After FCOMI C1 is clear and, with an unmasked invalid operand, flags stay by the SDM; AMD's keep C1 and set flags.
    MXCSR_MASK has bit 17 on AMD's. At which byte of a large operand, all of it inaccessible, the fault is noticed is
    a processor's affair.
    """
    name, case = catalog.mnemonic_name(failure.case.instruction.code), failure.case
    lines = [line.strip() for line in failure.text.splitlines()[1:] if line.startswith("  ") and line[2] != " "]
    differences = [line for line in lines if not line.startswith("inputs:")]
    if name.startswith(("FCOMI", "FUCOMI")):
        invalid = not case.state.fcw & 1
        return all(line.startswith("fsw:") and line.endswith(": bits 9") or line.startswith("rflags:") and invalid
                   for line in differences)
    found = _FAULTS.search(failure.text)
    if found is not None:
        size = 832 if name[0] == "X" else 512 if name[1] == "X" else 108
        return found[1] == found[3] and abs(int(found[2], 16) - int(found[4], 16)) < size
    mask = re.compile(r"\[0x\w+e\] 1 bytes: before \w\w host 0[02] guest 0[02]")
    return name.startswith("XSAVE") and all(mask.fullmatch(line) for line in differences)


def compare(executor: Executor, host: HostCpu, bits: int, per_code: int) -> None:
    seed = int(os.environ.get("PELLUCID_SEED", "12"))
    report: Report = run_family(executor, host, codes(bits), per_code=per_code, seed=seed, bits=bits)
    report.failures = [failure for failure in report.failures if not of_the_processor(failure)]
    assert report.ok, f"seed {seed}\n{report}"


@needs_host
def test_every_encoding_is_built() -> None:
    built = set(codes(64))
    wanted = [*instructions(features=catalog.X87), *instructions(mnemonics=IMAGES, features=X86_64_V3 | EXTRA)]
    assert not [forms.CODE_NAMES[code] for code in wanted if code not in built]
    assert len(wanted) > 130


@needs_host
@pytest.mark.parametrize("bits", [64, 32])
def test_native_agrees_with_the_host(native: NativeGuest, host: HostCpu, bits: int) -> None:
    compare(native, host, bits, 40)


@needs_host
@pytest.mark.parametrize("bits", [64, 32])
def test_plain_python_agrees_with_the_host(host: HostCpu, bits: int) -> None:
    compare(PythonGuest(), host, bits, 1)


# --- a bare processor ------------------------------------------------------------------------------------


def assemble(text: str) -> bytes:
    return bytes.fromhex(text)


def at(opcode: str, address: int = BUFFER) -> bytes:
    """An instruction with an absolute 32-bit address, for 32-bit mode: opcode and ModRM with disp32."""
    return assemble(opcode) + address.to_bytes(4, "little")


FNINIT, FLD1, FLDZ, FLDPI, WAIT, FNCLEX = (assemble(text) for text in ("dbe3", "d9e8", "d9ee", "d9eb", "9b", "dbe2"))
FDIVP, FADDP, FNSTSW_AX, FSQRT, FSTP_ST0 = (assemble(text) for text in ("def9", "dec1", "dfe0", "d9fa", "ddd8"))


def run(machine: Bare, code: bytes) -> int:
    machine.load(PLACE, code + HLT)
    return machine.run(PLACE)


def unmask(machine: Bare, control: int = 0x37B) -> bytes:
    """FLDCW of a control word; 0x37B unmasks division by zero."""
    machine.load(BUFFER + 0x800, struct.pack("<H", control))
    return at("d92d", BUFFER + 0x800)


def test_initial_state_and_status() -> None:
    machine = Bare(32)
    machine.state.fpu_cw, machine.state.fpu_tags = 0x40, 0xFF
    assert run(machine, FNINIT + FLDPI + FLD1 + FNSTSW_AX + at("d93d")) == EXIT_HLT
    s = machine.state
    assert (s.fpu_cw, s.gpr[0] & 0xFFFF, s.fpu_tags) == (0x37F, 6 << 11, 0xC0)
    assert machine.bytes(BUFFER, 2) == b"\x7f\x03"
    assert machine.bytes(BUFFER + 2, 2) == b"\0\0"


def register(machine: Bare, index: int) -> int:
    place = machine.processor.address + slot_of("st") + ((machine.state.fpu_top + index) & 7) * 16
    return int.from_bytes(ctypes.string_at(place, 10), "little")


def test_flags_of_an_earlier_operation_do_not_come_back() -> None:
    """FNCLEX takes them away for good, though the host's own are not cleared between operations."""
    machine = Bare(32)
    divide = FNINIT + FLD1 + FLDZ + FDIVP
    assert run(machine, divide + FNCLEX + FLD1 + FLD1 + FADDP + FNSTSW_AX) == EXIT_HLT
    assert machine.state.gpr[0] & 0x3F == 0
    assert run(machine, divide + FLD1 + FNSTSW_AX) == EXIT_HLT
    assert machine.state.gpr[0] & 0x3F == 4
    assert run(machine, FNINIT + FLDPI + FSQRT + FNSTSW_AX) == EXIT_HLT
    assert machine.state.gpr[0] & 0x3F == 0x20


def test_precision_control_rounds_results() -> None:
    machine = Bare(32)
    assert run(machine, FNINIT + unmask(machine, 0x07F) + FLD1 + FLDPI + FADDP) == EXIT_HLT
    assert register(machine, 0) & (1 << 40) - 1 == 0
    assert run(machine, FNINIT + FLD1 + FLDPI + FADDP) == EXIT_HLT
    assert register(machine, 0) & (1 << 40) - 1 != 0


@pytest.mark.parametrize("waiting", ["9b", "d9e8", "d9d0", "0f77", "0ffcc1"])
def test_an_unmasked_exception_waits_for_the_next_waiting_instruction(waiting: str) -> None:
    """FNSTSW sees it, then #MF comes at WAIT, FLD1, FNOP, EMMS or PADDB; ST(0) and ST(1) stay."""
    machine = Bare(32)
    divide = FNINIT + unmask(machine) + FLD1 + FLDZ + FDIVP
    assert run(machine, divide + FNSTSW_AX + assemble(waiting)) == EXIT_EXCEPTION
    s = machine.state
    assert (s.exc_vector, s.rip) == (MF, PLACE + len(divide) + 2)
    assert s.gpr[0] & 0xFFFF == 0x8084 | 6 << 11
    assert (register(machine, 0), register(machine, 1)) == (0, ONE)
    assert (s.fpu_ip, s.fpu_opcode) == (PLACE + len(divide) - 2, 0x6F9)


def test_clearing_or_masking_takes_a_pending_exception_away() -> None:
    machine = Bare(32)
    divide = FNINIT + unmask(machine) + FLD1 + FLDZ + FDIVP
    assert run(machine, divide + FNCLEX + WAIT) == EXIT_HLT
    # FNSTENV masks everything behind the environment that it stores.
    assert run(machine, divide + at("d935") + WAIT) == EXIT_HLT
    assert struct.unpack("<H", machine.bytes(BUFFER, 2)) == (0x37B,)
    assert machine.state.fpu_cw == 0x37F and not machine.state.fpu_sw & 0x8080


def test_without_ne_the_exception_is_external() -> None:
    machine = Bare(32)
    machine.state.cr0 &= ~CR0_NE
    machine.processor.refresh_mode()
    assert run(machine, FNINIT + unmask(machine) + FLD1 + FLDZ + FDIVP + WAIT) == EXIT_FERR


@pytest.mark.parametrize(("cr0", "x87", "wait", "fxsave"), [
    (0, None, None, None), (CR0_TS, NM, None, NM), (CR0_TS | CR0_MP, NM, NM, NM), (CR0_EM, NM, None, UD)])
def test_control_register_0_gates_the_unit(cr0: int, x87: int | None, wait: int | None, fxsave: int | None) -> None:
    """SDM vol. 3, tables 2-2 and 9-3."""
    machine = Bare(32)
    machine.state.cr4 |= CR4_OSFXSR
    machine.state.cr0 |= cr0
    machine.processor.refresh_mode()
    for code, vector in ((FLD1, x87), (FNINIT, x87), (WAIT, wait), (at("0fae05"), fxsave)):
        reason = run(machine, code)
        assert (machine.state.exc_vector if reason == EXIT_EXCEPTION else None) == vector


def test_environment_formats() -> None:
    """The four layouts of SDM vol. 1, figures 8-9 to 8-12, through FNSTENV and back."""
    for bits, size, prefix in ((32, 28, b""), (32, 14, b"\x66"), (16, 28, b"\x66"), (16, 14, b"")):
        machine = Bare(bits)
        s = machine.state
        s.fpu_cw, s.fpu_sw, s.fpu_top, s.fpu_tags = 0x27F, 0x4100, 3, 0x08
        s.fpu_ip, s.fpu_dp, s.fpu_opcode, s.fpu_cs, s.fpu_ds = 0x1_2345, 0x6_789A, 0x5A5, 0, 0
        wide = size == 28
        address = b"\x35" + BUFFER.to_bytes(4, "little") if bits == 32 else b"\x36" + BUFFER.to_bytes(2, "little")
        load = bytes([address[0] - 0x10]) + address[1:]
        store = prefix + b"\xd9" + address
        assert run(machine, store + FNINIT + prefix + b"\xd9" + load) == EXIT_HLT
        words = struct.unpack("<7I" if wide else "<7H", machine.bytes(BUFFER, size))
        assert [word & 0xFFFF for word in words[:3]] == [0x27F, 0x4100 | 3 << 11, 0xFF7F]
        low = 0xFFFF if wide else -1
        if bits == 32:
            assert words[3] == (0x1_2345 if wide else 0x2345)
            assert words[5] == (0x6_789A if wide else 0x789A)
            assert words[4] == (0x5A5 << 16 if wide else 0)
        else:
            assert [words[3] & low, words[4], words[5] & low, words[6]] == [0x2345, 0x15A5, 0x789A, 0x6000]
        assert s.fpu_ip == (0x2345 if bits == 32 and not wide else 0x1_2345)
        assert s.fpu_opcode == (0 if bits == 32 and not wide else 0x5A5)
        assert (s.fpu_top, s.fpu_tags, s.fpu_sw, s.fpu_cw) == (3, 0x08, 0x4100, 0x27F)


def test_save_and_restore_of_the_whole_unit() -> None:
    machine = Bare(32)
    assert run(machine, FNINIT + FLDPI + FLD1 + at("dd35")) == EXIT_HLT
    assert machine.state.fpu_tags == 0 and machine.state.fpu_top == 0
    assert machine.bytes(BUFFER + 28, 20) == ONE.to_bytes(10, "little") + PI.to_bytes(10, "little")
    assert run(machine, FNINIT + at("dd25")) == EXIT_HLT
    assert (register(machine, 0), register(machine, 1), machine.state.fpu_tags) == (ONE, PI, 0xC0)


def test_ten_byte_store_over_a_missing_page_changes_nothing() -> None:
    """FSTP of 80 bits across the end of a segment: #GP, and the value is still on the stack."""
    machine = Bare(32)
    machine.state.seg_limit[3] = BUFFER + 8
    machine.processor.refresh_mode()
    assert run(machine, FNINIT + FLDPI + at("db3d")) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.fpu_tags) == (GP, 0x80)
    assert machine.bytes(BUFFER, 10) == bytes(10)


# --- images ------------------------------------------------------------------------------------------------


def extended(xcr0: int = 7) -> Bare:
    machine = Bare(32)
    machine.state.cr4 |= CR4_OSFXSR | CR4_OSXSAVE
    machine.state.xcr0 = xcr0
    machine.state.mxcsr = 0x1F80
    machine.processor.refresh_mode()
    machine.state.gpr[0], machine.state.gpr[2] = 7, 0
    return machine


XSAVE, XRSTOR, XSAVEOPT, XSAVEC = at("0fae25"), at("0fae2d"), at("0fae35"), at("0fc725")
FXSAVE, FXRSTOR = at("0fae05"), at("0fae0d")


def header(machine: Bare) -> tuple[int, int]:
    state, layout = struct.unpack("<QQ", machine.bytes(BUFFER + 512, 16))
    return state, layout


def test_xsaveopt_and_xsavec_leave_initial_components_alone() -> None:
    for code, layout in ((XSAVEOPT, 0xAAAA_AAAA_AAAA_AAAA), (XSAVEC, 1 << 63 | 7)):
        machine = extended()
        machine.load(BUFFER, b"\xaa" * 832)
        machine.load(BUFFER + 512, b"\0" * 8)
        assert run(machine, FNINIT + FLD1 + code) == EXIT_HLT
        assert header(machine) == (1, layout)
        assert machine.bytes(BUFFER + 32, 10) == ONE.to_bytes(10, "little")
        assert machine.bytes(BUFFER + 160, 16) == machine.bytes(BUFFER + 576, 16) == b"\xaa" * 16


def test_xrstor_takes_back_what_xsavec_wrote() -> None:
    machine = extended()
    machine.load(BUFFER, b"\0" * 832)
    assert run(machine, FNINIT + FLDPI + XSAVEC + FNINIT + FLD1 + FLD1 + XRSTOR) == EXIT_HLT
    assert (register(machine, 0), machine.state.fpu_top, machine.state.fpu_tags) == (PI, 7, 0x80)
    machine.load(BUFFER + 512, struct.pack("<QQ", 0, 1 << 63 | 7))
    machine.state.mxcsr = 0x1F9F
    assert run(machine, XRSTOR) == EXIT_HLT
    assert (machine.state.fpu_tags, register(machine, 0), machine.state.mxcsr) == (0, 0, 0x1F80)


@pytest.mark.parametrize(("state", "layout", "rest"), [
    (8, 0, 0), (1 << 63, 0, 0), (1, 1, 0), (1, 0, 1), (1, 1 << 63 | 8, 0), (2, 1 << 63 | 1, 0), (1, 1 << 63 | 1, 1)])
def test_xrstor_refuses_headers_that_nobody_writes(state: int, layout: int, rest: int) -> None:
    machine = extended()
    machine.load(BUFFER, b"\0" * 832)
    machine.load(BUFFER + 512, struct.pack("<QQQ", state, layout, rest))
    assert run(machine, FNINIT + FLD1 + XRSTOR) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.fpu_tags) == (GP, 0x80)


def test_images_must_be_aligned_and_enabled() -> None:
    machine = extended()
    for opcode, address in (("0fae05", BUFFER + 8), ("0fae0d", BUFFER + 8), ("0fae25", BUFFER + 16),
                            ("0fae2d", BUFFER + 32)):
        assert run(machine, at(opcode, address)) == EXIT_EXCEPTION
        assert machine.state.exc_vector == GP
    machine.state.cr4 &= ~CR4_OSXSAVE
    for code in (XSAVE, XRSTOR):
        assert run(machine, code) == EXIT_EXCEPTION
        assert machine.state.exc_vector == UD


def test_fxrstor_refuses_reserved_mxcsr_bits_and_keeps_everything() -> None:
    machine = extended()
    assert run(machine, FNINIT + FLD1 + FXSAVE) == EXIT_HLT
    assert machine.bytes(BUFFER + 28, 4) == b"\xff\xff\2\0"
    machine.load(BUFFER + 24, struct.pack("<I", 0x1_1F80))
    assert run(machine, FNINIT + FXRSTOR) == EXIT_EXCEPTION
    assert (machine.state.exc_vector, machine.state.fpu_tags) == (GP, 0)


def test_fxsave_without_osfxsr_has_no_vector_state() -> None:
    machine = Bare(32)
    machine.load(BUFFER, b"\xaa" * 512)
    assert run(machine, FNINIT + FLD1 + FXSAVE) == EXIT_HLT
    assert machine.bytes(BUFFER + 160, 16) == b"\xaa" * 16
    assert machine.bytes(BUFFER + 32, 10) == ONE.to_bytes(10, "little")


def test_random_x87_code_leaves_the_host_unit_clean() -> None:
    """Any x87 opcodes under any control word: the process lives, and the host's unit is as its ABI wants it."""
    rng = random.Random(5)
    machine = Bare(32)
    for _ in range(150):
        body = b"".join(bytes([rng.randrange(0xD8, 0xE0), rng.randrange(0xC0, 0x100)]) for _ in range(12))
        image = struct.pack("<7I", rng.getrandbits(12), rng.getrandbits(15) & 0x7F00, rng.getrandbits(16), 0, 0, 0, 0)
        machine.load(BUFFER, image + rng.randbytes(80))
        assert run(machine, at("dd25") + body) in (EXIT_HLT, EXIT_EXCEPTION)
    assert run(machine, FNINIT + FLDPI + FLD1 + FADDP) == EXIT_HLT
    assert register(machine, 0) == 0x4001_8487_ED51_10B4_611A
