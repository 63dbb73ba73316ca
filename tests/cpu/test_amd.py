"""AMD's own: XOP, FMA4 and TBM by its manual's arithmetic, misaligned SSE operands, CR8 by LOCK."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import iced_x86 as iced
import pytest

from pellucid.cpu.state import CR0_AM, EXIT_EXCEPTION, EXIT_HLT, UD
from pellucid.isa import features, forms
from pellucid.native.host import flags

from . import xop_model
from .bare import Bare
from .guest import NativeGuest, PythonGuest
from .oracle import HostCpu, UserState, catalog, layout, unavailable
from .oracle.outcome import AC, GP

pytestmark = pytest.mark.skipif(not {"avx", "fma"} <= flags(), reason="the host has no AVX and FMA")
Guest = NativeGuest | PythonGuest
_R: Any = iced.Register
_KIND: Any = iced.OpCodeOperandKind
MEMORY = 0x10
"""Where in DATA a memory operand lies."""


@pytest.fixture(scope="module", params=["native", "python"])
def guest(request: pytest.FixtureRequest, native: NativeGuest) -> Guest:
    return native if request.param == "native" else PythonGuest()


def codes(prefix: str, feature: str) -> dict[int, str]:
    """The encodings of a feature, by iced-x86's name of it, whose names begin so."""
    wanted = getattr(iced.CpuidFeature, feature)
    return {code: name for code, name in forms.CODE_NAMES.items()
            if name.startswith(prefix) and wanted in catalog.features_of(code)}


def encode(code: int, imm: int, memory: bool) -> bytes:
    """Operand 0 is register 1 (RBX, XMM1, ...), operand n register n + 1; the one that may be memory is at [rsi]."""
    made: Any = iced.Instruction()
    made.code = code
    info = catalog.op_info(code)
    for n in range(info.op_count):
        name = next(name for name, value in vars(_KIND).items() if value == info.op_kind(n))
        if name.startswith("IMM"):
            made.set_op_kind(n, iced.OpKind.IMMEDIATE32 if name == "IMM32" else iced.OpKind.IMMEDIATE8)
            made.set_immediate_u64(n, imm)
        elif memory and name.endswith("_OR_MEM"):
            made.set_op_kind(n, iced.OpKind.MEMORY)
            made.memory_base = _R.RSI
        else:
            family = name.split("_")[0]
            first = {"XMM": _R.XMM0, "YMM": _R.YMM0, "R32": _R.EAX, "R64": _R.RAX}[family]
            made.set_op_kind(n, iced.OpKind.REGISTER)
            made.set_op_register(n, first + (n + 1 if family in ("XMM", "YMM") else (3, 1, 2)[n]))
    encoder = iced.Encoder(64)
    encoder.encode(made, layout.START)
    return bytes(encoder.take_buffer())


def memory_operand(code: int) -> int:
    info = catalog.op_info(code)
    names = {value: name for name, value in vars(_KIND).items() if isinstance(value, int)}
    return next(n for n in range(info.op_count) if names[info.op_kind(n)].endswith("_OR_MEM"))


def run_vectors(guest: Guest, code: int, sources: list[int], imm: int, memory: bool, mxcsr: int = 0x1F80) -> UserState:
    """Execute with these sources, in the order of operands from 1 on; XMM1 holds other bits before."""
    state = UserState()
    state.mxcsr = mxcsr
    state.gpr[6] = layout.DATA + MEMORY
    state.set_ymm(1, (1 << 256) - 1)
    for n, value in enumerate(sources):
        state.set_ymm(n + 2, value)
    if memory:
        at = memory_operand(code)
        state.write(layout.DATA + MEMORY, sources[at - 1].to_bytes(32, "little"))
        state.set_ymm(at + 1, 0x55)
    outcome = guest.run(encode(code, imm, memory), state)
    assert outcome.fault is None and not outcome.lost, (forms.CODE_NAMES[code], outcome)
    return outcome.state


def random_vector(rng: random.Random) -> int:
    """256 bits with edges of every width among them."""
    width = rng.choice((8, 16, 32, 64))
    edges = (0, 1, (1 << width) - 1, 1 << width - 1, (1 << width - 1) - 1)
    lanes = [rng.choice(edges) if rng.random() < 0.3 else rng.getrandbits(width) for _ in range(256 // width)]
    return xop_model.join(lanes, width)


def halves(model: xop_model.Model, sources: list[int], imm: int, wide: bool) -> int:
    low = (1 << 128) - 1
    result = model(*(n & low for n in sources), imm)
    return result | model(*(n >> 128 for n in sources), imm) << 128 if wide else result


MODELS = xop_model.THREE_SOURCES | xop_model.TWO_SOURCES | xop_model.ONE_SOURCE | xop_model.BY_IMMEDIATE
VECTORS = {code: name for prefix in ("XOP_V", "VEX_V") for code, name in codes(prefix, "XOP").items()}
FRACTIONS = {code: name for code, name in VECTORS.items() if "VFRCZ" in name}


def model_of(name: str) -> tuple[xop_model.Model, int]:
    """The model of an encoding, and how many vector sources it has."""
    mnemonic = name.split("_")[1]
    if name.endswith("_IMM8") and mnemonic.startswith("VPROT"):
        return xop_model.BY_IMMEDIATE[mnemonic], 1
    if mnemonic in xop_model.ONE_SOURCE:
        return xop_model.ONE_SOURCE[mnemonic], 1
    if mnemonic in xop_model.THREE_SOURCES:
        return xop_model.THREE_SOURCES[mnemonic], 3
    return (xop_model.TWO_SOURCES.get(mnemonic) or xop_model.BY_IMMEDIATE[mnemonic]), 2


def test_every_vector_encoding_has_a_model() -> None:
    modelled = {name.split("_")[1] for name in VECTORS.values() if "VFRCZ" not in name}
    assert modelled == MODELS.keys() and len(FRACTIONS) == 6
    assert len(VECTORS) == 83


def test_vectors(guest: Guest) -> None:
    """Every encoding, with registers and with memory, by the models; the register above the result becomes zero."""
    rng = random.Random(5)
    turns = 12 if isinstance(guest, NativeGuest) else 1
    for code, name in VECTORS.items() - FRACTIONS.items():
        model, count = model_of(name)
        for memory in [False, True] * turns:
            sources = [random_vector(rng) for _ in range(count)]
            imm = rng.randrange(4 if "PERMIL2" in name else 256)
            expected = halves(model, sources + [0] * (3 - count), imm, "YMM" in name)
            after = run_vectors(guest, code, sources, imm, memory)
            assert after.ymm(1) == expected, (name, memory, imm, [hex(n) for n in sources])


IE, DE, PE = 1, 2, 1 << 5
DOWN = 1 << 13


@pytest.mark.parametrize(("value", "fraction", "raised", "mxcsr"), [
    (2.75, 0.75, 0, 0x1F80), (-2.75, -0.75, 0, 0x1F80), (0.5, 0.5, 0, 0x1F80), (3.0, 0.0, 0, 0x1F80),
    (-3.0, 0.0, 0, 0x1F80), (-3.0, -0.0, 0, 0x1F80 | DOWN), (1e30, 0.0, 0, 0x1F80), (1e-310, 1e-310, DE, 0x1F80),
    (float("inf"), None, IE, 0x1F80), (-0.25, -0.25, 0, 0x1F80 | DOWN)])
def test_fractions(guest: Guest, value: float, fraction: float | None, raised: int, mxcsr: int) -> None:
    for code, name in FRACTIONS.items():
        single = name.split("_")[1].endswith("S")
        if single and raised == DE:
            continue
        letter, bits = ("f", 32) if single else ("d", 64)
        lane = int.from_bytes(struct.pack("<" + letter, value), "little")
        scalar = "VFRCZS" in name
        count = 1 if scalar else (256 if "YMM" in name else 128) // bits
        after = run_vectors(guest, code, [xop_model.join([lane] * (256 // bits), bits)], 0, False, mxcsr)
        lanes = xop_model.split(after.ymm(1), bits, False, 256)
        assert not any(lanes[count:])
        for got in lanes[:count]:
            if fraction is None:
                assert got == (0xFFC0_0000 if single else 0xFFF8 << 48)
            else:
                assert got.to_bytes(bits // 8, "little") == struct.pack("<" + letter, fraction), name
        assert after.mxcsr == mxcsr | raised


def test_fma4_is_fma_with_a_destination_of_its_own(guest: Guest) -> None:
    """The three-operand instructions are compared with the host; scalar results have zeros above them."""
    rng = random.Random(6)
    named = {name: code for code, name in forms.CODE_NAMES.items()}
    turns = 6 if isinstance(guest, NativeGuest) else 1
    found = codes("VEX_V", "FMA4")
    assert len(found) == 64
    for code, name in found.items():
        mnemonic = name.split("_")[1]
        wide = "YMM" in name
        register = "YMM" if wide else "XMM"
        bits = 32 if mnemonic.endswith("S") else 64
        last = f"{register}M{256 if wide else 128}" if mnemonic[-2] == "P" else f"XMMM{bits}"
        three = named[f"VEX_{mnemonic[:-2]}213{mnemonic[-2:]}_{register}_{register}_{last}"]
        for _ in range(turns):
            a, b, c = (random_vector(rng) if rng.random() < 0.3 else floats(rng, bits) for _ in range(3))
            state = UserState()
            for n, value in enumerate((a, b, c)):
                state.set_ymm(n + 1, value)
            expected = guest.run(encode(three, 0, False), state).state
            mask = (1 << (bits if mnemonic[-2] == "S" else 256 if wide else 128)) - 1
            for memory in (False, True):
                after = run_vectors(guest, code, [a, b, c], 0, memory)
                assert after.ymm(1) == expected.ymm(1) & mask, (name, memory)
                assert after.mxcsr == expected.mxcsr


def floats(rng: random.Random, bits: int) -> int:
    letter = "f" if bits == 32 else "d"
    count = 256 // bits
    return int.from_bytes(struct.pack(f"<{count}{letter}", *(rng.uniform(-4, 4) for _ in range(count))), "little")


def test_fma4_multiplies_and_adds(native: NativeGuest) -> None:
    code = next(code for code, name in forms.CODE_NAMES.items() if name == "VEX_VFNMADDSD_XMM_XMM_XMM_XMMM64")
    a, b, c = (int.from_bytes(struct.pack("<d", x), "little") for x in (3.0, 2.0, 10.0))
    result = run_vectors(native, code, [a, b, c], 0, False).ymm(1)
    assert struct.unpack("<d", result.to_bytes(8, "little")) == (4.0,)


# --- TBM -----------------------------------------------------------------------------------------------

CF, ZF, SF, OF = 1, 0x40, 0x80, 0x800
TRAILING: dict[str, tuple[Callable[[int], int], bool]] = {
    "BLCFILL": (lambda x: x & (x + 1), True), "BLCI": (lambda x: x | ~(x + 1), True),
    "BLCIC": (lambda x: ~x & (x + 1), True), "BLCMSK": (lambda x: x ^ (x + 1), True),
    "BLCS": (lambda x: x | (x + 1), True), "T1MSKC": (lambda x: ~x | (x + 1), True),
    "BLSFILL": (lambda x: x | (x - 1), False), "BLSIC": (lambda x: ~x | (x - 1), False),
    "TZMSK": (lambda x: ~x & (x - 1), False)}
"""And whether CF is that of the addition of 1 (all ones), or that of the subtraction (zero)."""


def test_trailing_bits(guest: Guest) -> None:
    rng = random.Random(7)
    found = codes("XOP_", "TBM")
    assert len(found) == 20
    for code, name in found.items():
        mnemonic, bits = name.split("_")[1], 64 if "R64" in name else 32
        top = (1 << bits) - 1
        for value in (0, 1, top, top >> 1, 0x58, 0x57, rng.getrandbits(bits), 1 << bits - 1):
            for memory in (False, True):
                state = UserState()
                state.gpr[1] = value if not memory else 0x55
                state.gpr[6], state.gpr[3] = layout.DATA + MEMORY, ~0 & (1 << 64) - 1
                state.write(layout.DATA + MEMORY, value.to_bytes(8, "little"))
                state.rflags |= CF | OF
                control = rng.choice((0x0804, 0x2000, 0x0040, 0xFF08, 0))
                after = guest.run(encode(code, control, memory), state).state
                if mnemonic == "BEXTR":
                    result, carry = value >> (control & 0xFF) & (1 << (control >> 8)) - 1 & top, False
                    sign = after.rflags & SF
                else:
                    model, adds = TRAILING[mnemonic]
                    result, carry = model(value) & top, value == (top if adds else 0)
                    sign = SF * (result >> bits - 1)
                assert after.gpr[3] == result, (name, hex(value), memory)
                wanted = CF * carry | ZF * (result == 0) | sign
                assert after.rflags & (CF | ZF | SF | OF) == wanted, (name, hex(value))


# --- misaligned operands of SSE ------------------------------------------------------------------------

MM = 1 << 17
ADDPS, MOVAPS, PSHUFD, MOVNTPS = (bytes.fromhex(text) for text in ("0f5806", "0f2806", "660f70061b", "0f2b06"))


def misaligned(mxcsr: int, *, ac: bool = False) -> UserState:
    state = UserState()
    state.mxcsr = mxcsr
    state.gpr[6] = layout.DATA + 4
    state.rflags |= 1 << 18 if ac else 0
    state.write(layout.DATA, bytes(range(64)))
    return state


@pytest.mark.parametrize(("code", "mxcsr", "vector"), [
    (ADDPS, 0x1F80 | MM, None), (PSHUFD, 0x1F80 | MM, None), (MOVAPS, 0x1F80 | MM, GP), (MOVNTPS, 0x1F80 | MM, GP),
    (ADDPS, 0x1F80, GP), (PSHUFD, 0x1F80, GP)])
def test_misaligned_operands(guest: Guest, code: bytes, mxcsr: int, vector: int | None) -> None:
    outcome = guest.run(code, misaligned(mxcsr))
    assert (outcome.fault.vector if outcome.fault else None) == vector
    if "misalignsse" in flags() and unavailable() is None:
        with HostCpu() as host:
            expected = host.run(code, misaligned(mxcsr))
        assert (expected.fault.vector if expected.fault else None) == vector
        assert expected.state.xmm(0) == outcome.state.xmm(0)


def test_misaligned_operands_are_checked_as_others(native: NativeGuest) -> None:
    assert native.state.cr0 & CR0_AM
    outcome = native.run(ADDPS, misaligned(0x1F80 | MM, ac=True))
    assert outcome.fault is not None and outcome.fault.vector == AC


def test_the_bit_can_be_set_where_cpuid_shows_it(native: NativeGuest) -> None:
    state = UserState()
    state.gpr[6] = layout.DATA
    state.write(layout.DATA, (0x1F80 | MM).to_bytes(4, "little"))
    ldmxcsr, fxsave = bytes.fromhex("0fae16"), bytes.fromhex("0fae06")
    assert native.run(ldmxcsr, state).state.mxcsr == 0x1F80 | MM
    assert native.run(fxsave, state).state.read(layout.DATA + 28, 4) == b"\xff\xff\x02\x00"
    native.processor.show_features(features.EVERYTHING & ~features.bit_of("misalignsse"))
    refused = native.run(ldmxcsr, state)
    mask = native.run(fxsave, state).state.read(layout.DATA + 28, 4)
    native.processor.show_features(features.EVERYTHING)
    assert refused.fault is not None and refused.fault.vector == GP
    assert mask == b"\xff\xff\0\0"


# --- CR8 -----------------------------------------------------------------------------------------------

TO_CR8, FROM_CR8 = bytes.fromhex("f00f22c0"), bytes.fromhex("f00f20c1")


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_lock_makes_cr8_of_cr0(bits: int) -> None:
    machine = Bare(bits)
    machine.state.gpr[0], machine.state.gpr[1] = 9, 0
    machine.load(0x1000, TO_CR8 + FROM_CR8 + b"\xf4")
    assert machine.run(0x1000) == EXIT_HLT
    assert (machine.state.cr8, machine.state.gpr[1]) == (9, 9)
    machine.processor.show_features(features.EVERYTHING & ~features.bit_of("cr8legacy"))
    for code in (TO_CR8, FROM_CR8):
        machine.load(0x1000, code + b"\xf4")
        assert machine.run(0x1000) == EXIT_EXCEPTION and machine.state.exc_vector == UD
    machine.load(0x1000, bytes.fromhex("f00f22d8"))   # of CR3 it is no instruction
    assert machine.run(0x1000) == EXIT_EXCEPTION and machine.state.exc_vector == UD
