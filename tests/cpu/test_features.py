"""What CPUID hides raises #UD: every encoding of every gated feature, under all three executors."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from pellucid.cpu.models import FEATURES, built, resolve
from pellucid.cpu.models.leaves import cpuid_leaves
from pellucid.cpu.models.topology import CpuTopology
from pellucid.cpu.state import EXIT_EXCEPTION, EXIT_HLT, FEATURES_ISA, UD
from pellucid.isa import features, forms
from pellucid.isa.all import TABLE
from pellucid.isa.features import EVERYTHING, GATES

from .bare import Bare
from .guest import NativeGuest, PythonGuest
from .oracle import UserState, unavailable
from .oracle.catalog import mnemonic_name, op_info
from .oracle.encoding import variants
from .region_guest import RegionGuest

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

OTHERWISE = {"TZCNT": "BSF", "LZCNT": "BSR", "WBNOINVD": "WBINVD"}
"""What the bytes mean without their feature."""
BY_HAND = {"MOVDIR64B": bytes.fromhex("660f38f806"), "XBEGIN": bytes.fromhex("c7f800000000")}
"""What has two operands of the address size (movdir64b rax, [rsi]), or one of a kind of its own."""
NO_ENCODING = ("wbnoinvd", "abm", "xgetbv1", "cr8legacy", "misalignsse")
"""Features whose encodings are another instruction without them, or that are no encodings."""
NEED_XSAVE = {"avx", "avx2", "f16c", "fma", "xsavec", "xsaveopt", "xsaves", "xgetbv1"}
"""Features that CPUID does not show in a model without XSAVE."""
UNDEFINED_ANYHOW = {"smap", "pku", "shstk", "monitor"}
"""Features whose encodings raise #UD in the oracle's guest for another reason: its CPL, or CR4."""


@pytest.fixture(scope="module")
def region() -> Iterator[RegionGuest]:
    guest = RegionGuest()
    yield guest
    guest.close()


def encodings(gate: str) -> list[bytes]:
    """One valid 64-bit encoding of each code that needs the feature and is built."""
    found = []
    for code, name in forms.CODE_NAMES.items():
        if not features.needs(code, True) & features.bit_of(gate) or not op_info(code).mode64:
            continue
        if TABLE.find(mnemonic_name(code), name) is None or mnemonic_name(code) in OTHERWISE:
            continue
        if mnemonic_name(code) in BY_HAND:
            found.append(BY_HAND[mnemonic_name(code)])
            continue
        made = next((v for v in variants(code, 8, random.Random(code), 64) if v.valid and v.decoded.code == code), None)
        if made is not None:
            found.append(made.data)
    return found


def vectors(guest: NativeGuest | PythonGuest, codes: list[bytes], shown: int) -> list[int | None]:
    """The exception that each raises, or None, where CPUID shows these bits."""
    guest.processor.show_features(shown)
    outcomes = guest.run_many((code, UserState(), 64) for code in codes)
    guest.processor.show_features(EVERYTHING)
    assert not [outcome.lost for outcome in outcomes if outcome.lost]
    return [None if outcome.fault is None else outcome.fault.vector for outcome in outcomes]


@pytest.mark.parametrize("gate", GATES)
def test_hidden_encodings_are_undefined(native: NativeGuest, gate: str) -> None:
    codes = encodings(gate)
    assert set(vectors(native, codes, EVERYTHING & ~features.bit_of(gate))) <= {UD}
    assert codes or gate not in built() or gate in NO_ENCODING, "each stands for something"
    if gate not in UNDEFINED_ANYHOW:
        assert UD not in vectors(native, codes, EVERYTHING)


def test_stac_and_clac_without_smap() -> None:
    machine = Bare(64)
    for shown, reason in ((EVERYTHING, EXIT_HLT), (EVERYTHING & ~features.bit_of("smap"), EXIT_EXCEPTION)):
        machine.processor.show_features(shown)
        machine.load(0x1000, bytes.fromhex("0f01cb 0f01ca f4"))
        assert machine.run(0x1000) == reason
    assert machine.state.exc_vector == UD


SHORT = {
    "cmov": "0f44c1", "cx8": "0fc70e", "mmx": "0ffcc1", "sse": "0f58c1", "sse2": "660ffec1", "pni": "f20f12c1",
    "ssse3": "660f3800c1", "cx16": "480fc70e", "sse4.1": "660f3810c1", "sse4.2": "f20f38f0c1", "movbe": "0f38f006",
    "popcnt": "f30fb8c1", "fsgsbase": "f30faec0", "clflushopt": "660fae3e", "clwb": "660fae36", "rdpid": "f30fc7f8",
    "xsavec": "0fc726", "rdtscp": "0f01f9", "bmi1": "c4e270f2c2", "bmi2": "c4e271f7c2", "adx": "660f38f6c1",
    "avx2": "c5f5fec2", "lahf-lm": "9f", "rtm": "c6f801"}
"""One encoding for a feature."""


@pytest.mark.parametrize("executor", ["native", "python", "region"])
def test_under_every_executor(executor: str, native: NativeGuest, region: RegionGuest) -> None:
    guest = {"native": native, "region": region}.get(executor) or PythonGuest()
    for gate, text in SHORT.items():
        code = [bytes.fromhex(text)]
        assert vectors(guest, code, EVERYTHING & ~features.bit_of(gate)) == [UD], gate
        assert vectors(guest, code, features.bit_of(gate) | features.bit_of("avx")) != [UD], gate


@pytest.mark.parametrize("executor", ["native", "python", "region"])
@pytest.mark.parametrize(("gate", "code", "source", "has", "lacks"), [
    ("bmi1", "f30fbcc1", 0, 32, None), ("bmi1", "f30fbcc1", 0x10, 4, 4), ("bmi1", "f3480fbcc1", 1 << 40, 40, 40),
    ("abm", "f30fbdc1", 0x10, 27, 4), ("abm", "f30fbdc1", 0, 32, None), ("abm", "f3480fbdc1", 1 << 40, 23, 40)])
def test_counts_are_scans_without_their_feature(
        executor: str, native: NativeGuest, region: RegionGuest, gate: str, code: str, source: int, has: int,
        lacks: int | None) -> None:
    """TZCNT is BSF and LZCNT is BSR then, which leave the register alone for 0 (SDM vol. 2)."""
    guest = {"native": native, "region": region}.get(executor) or PythonGuest()
    state = UserState()
    state.gpr[0], state.gpr[1] = 0x5555, source
    for shown, expected in ((EVERYTHING, has), (EVERYTHING & ~features.bit_of(gate), lacks)):
        guest.processor.show_features(shown)
        outcome = guest.run(bytes.fromhex(code), state)
        assert outcome.fault is None
        assert outcome.state.gpr[0] == (0x5555 if expected is None else expected)
        assert bool(outcome.state.rflags & 0x40) == (source == 0 if expected in (None, lacks) else expected == 0)
    guest.processor.show_features(EVERYTHING)


def test_a_change_drops_what_was_translated(native: NativeGuest) -> None:
    """Not only what is new: the block stands already, and regions that hold it."""
    popcnt, bit = bytes.fromhex("f30fb8c1"), features.bit_of("popcnt")
    for shown, vector in ((EVERYTHING, None), (~bit & EVERYTHING, UD), (bit, None), (0, UD)):
        before = native.state.count_translated
        assert vectors(native, [popcnt], shown) == [vector]
        assert native.state.count_translated > before


def test_a_block_ends_at_what_is_hidden(native: NativeGuest) -> None:
    """What stands before it has executed; RIP is at the instruction itself."""
    native.processor.show_features(EVERYTHING & ~features.bit_of("popcnt"))
    outcome = native.run(bytes.fromhex("ffc0 f30fb8c9 ffc0"), UserState())
    native.processor.show_features(EVERYTHING)
    assert outcome.fault is not None and outcome.fault.vector == UD
    assert (outcome.state.gpr[0], outcome.state.rip) == (1, UserState().rip + 2)


def bits_of(model: str, changes: dict[str, bool]) -> int:
    """What CPUID of a model shows."""
    leaves = cpuid_leaves(resolve(model, changes).model, 0, CpuTopology())

    def has(place: tuple[int, int, str], bit: int) -> bool:
        found = [leaf for leaf in leaves if (leaf.function, leaf.index or 0) == place[:2]]
        return bool(found) and bool(getattr(found[0], place[2]) >> bit & 1)

    return features.shown(has)


def test_models_show_what_they_have() -> None:
    plain = bits_of("qemu64", {})
    assert plain & features.bit_of("cx16") and not plain & features.bit_of("bmi1")
    for gate in GATES:
        if gate in resolve("max").model.features and gate not in NEED_XSAVE:
            assert bits_of("qemu64", {gate: True}) & features.bit_of(gate), gate
            assert not bits_of("max", {gate: False}) & features.bit_of(gate), gate
    assert all(gate in FEATURES for gate in GATES)
    assert tuple(NativeGuest().state.features[FEATURES_ISA:]) == features.words(EVERYTHING)
