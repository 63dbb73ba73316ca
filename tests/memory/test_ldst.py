"""The load/store family: complete by its naming rule, and right by int.from_bytes."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.memory import AddressSpace, MemoryRegion, RamBlock, ldst

SIZES = {"b": 1, "w": 2, "l": 4, "q": 8}
LOADS = {
    "ld" + ("s" if signed else "u" if letter in "bw" else "") + letter + suffix: (size, signed, suffix == "_be")
    for (letter, size), signed, suffix in itertools.product(SIZES.items(), (False, True), ("", "_le", "_be"))
    if letter != "b" or not suffix
}
STORES = {
    "st" + letter + suffix: (size, suffix == "_be")
    for (letter, size), suffix in itertools.product(SIZES.items(), ("", "_le", "_be"))
    if letter != "b" or not suffix
}
BYTES = bytes(range(0x70, 0x90)) + b"\xff\x80\x7f\x01" * 4


def test_the_family_is_complete() -> None:
    names = {name for name in dir(ldst.LoadStore) if name.startswith(("ld", "st"))}
    assert names == LOADS.keys() | STORES.keys()
    pointer_names = {name for name in dir(ldst) if name.endswith("_p") and not name.startswith("_")}
    assert pointer_names == {name + "_p" for name in names}


@pytest.mark.parametrize("name", LOADS)
def test_loads(name: str) -> None:
    size, signed, big = LOADS[name]
    block = RamBlock("ram", 4096)
    block.view[: len(BYTES)] = BYTES
    space = AddressSpace("as", MemoryRegion.new_ram("ram", block))
    for at in range(len(BYTES) - size):
        expected = int.from_bytes(BYTES[at : at + size], "big" if big else "little", signed=signed)
        assert getattr(space, name)(at) == expected
        assert getattr(ldst, name + "_p")(BYTES, at) == expected
    block.close()


@pytest.mark.parametrize("name", STORES)
@given(value=st.integers(-(2**63), 2**64 - 1), at=st.integers(0, 8))
def test_stores(name: str, value: int, at: int) -> None:
    size, big = STORES[name]
    expected = bytearray(b"\xee" * 32)
    expected[at : at + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "big" if big else "little")
    buffer = bytearray(b"\xee" * 32)
    getattr(ldst, name + "_p")(buffer, at, value)
    assert buffer == expected
    block = RamBlock("ram", 4096)
    block.view[:32] = b"\xee" * 32
    getattr(AddressSpace("as", MemoryRegion.new_ram("ram", block)), name)(at, value)
    assert bytes(block.view[:32]) == expected
    block.close()


def test_a_buffer_that_is_too_short_is_an_error() -> None:
    with pytest.raises(Exception, match="requires a buffer"):
        ldst.ldl_le_p(b"\1\2\3", 0)
