"""Classes of memory: what an access tells LLVM, what a call that spares registers leaves alone, and what is refused."""

import ctypes
import re

import pytest

from pellucid.native import (
    NativeError, NativeException, array, asm, at, foreign, local, memcpy, native, ptr, ref, struct, u8, u32, u64,
    volatile_load, volatile_store)
from pellucid.native.program import Program
from pellucid.native.target import assembly
from tests.native.harness import Unit

unit = Unit()


@struct(registers=("gpr", "ip"), steady=("mode",))
class Machine:
    """A processor of four registers."""

    gpr: array[u64, 4]
    ip: u64
    count: u64
    mode: u32


@struct
class Plain:
    """A struct that says nothing."""

    x: u64


class Stopped(NativeException):
    """A function stops."""


def accesses(fn: object, *params: object, region: bool = False) -> list[str]:
    """The metadata of each load and store of `fn` that is not of its own variables."""
    program = Program(region=region)
    lines = program.request(fn, params).lines  # type: ignore[arg-type]
    found = [line for line in lines if re.search(r"(load|store) .*ptr %v", line) or "call" in line]
    return [", ".join(re.findall(r"!tbaa !\d+|!invariant.load !\d+", line)) for line in found]


@native
def every_class(s: ptr[Machine], slot: u64, p: ptr[Plain]):
    s.gpr[1] = 1
    s.gpr[slot] = at(s, slot, u64)[0]
    ref(s, "ip")[0] = 2
    s.count = 3
    volatile_store(foreign(ptr[u64](slot)), 4)
    ptr[u64](slot)[0] = 5
    p.x = 6


def test_an_access_has_the_class_of_its_pointer() -> None:
    registers, own, other = "!tbaa !17", "!tbaa !18", "!tbaa !19"
    assert accesses(every_class, ptr[Machine], u64, ptr[Plain]) == [
        registers, registers, registers, registers, own, other, "", ""]


@native
def mode_of(s: ptr[Machine]):
    return s.mode


def test_a_steady_field_does_not_change_in_a_region() -> None:
    assert accesses(mode_of, ptr[Machine]) == ["!tbaa !18"]
    assert accesses(mode_of, ptr[Machine], region=True) == ["!tbaa !18, !invariant.load !10"]


@native
def slot_pointer(s, slot):
    if slot == 0:
        return at(s, u64(0), u64)
    return at(s, slot, u64)


@native
def any_pointer(s: ptr[Machine], slot: u64):
    if slot == 0:
        return ptr[u64](slot)
    return at(s, slot, u64)


@native
def by_call(s: ptr[Machine], slot: u64):
    return slot_pointer(s, slot)[0] + any_pointer(s, slot)[0]


def test_a_result_keeps_its_class_where_every_way_has_it() -> None:
    assert accesses(by_call, ptr[Machine], u64) == ["", "!tbaa !17", "", ""]


# --- calls that spare registers --------------------------------------------------------------------------


@native(inline=False, spares_registers=True)
def slowly(s: ptr[Machine], address: u64) -> u64:
    s.count += 1
    if address == 0:
        raise Stopped
    return ptr[u64](address)[0]


@native
def load(s, address):
    if address & 7 == 0 and address != 0:
        return volatile_load(foreign(ptr[u64](address)))
    return slowly(s, address)


@native
def summing(s: ptr[Machine], address: u64, n: u64) -> u64:
    """Sums n words into a register, behind each of which its number is stored."""
    s.gpr[0] = 0
    try:
        for i in range(n):
            s.gpr[0] = s.gpr[0] + load(s, address)
            volatile_store(foreign(ptr[u64](address)), s.gpr[0])
            s.gpr[1] = i
            address = address + s.gpr[2]
    except Stopped:
        return u64(99)
    return s.gpr[0]


summed = unit.add(summing, ptr[Machine], u64, u64)


@pytest.mark.parametrize(("step", "shift"), [(8, 0), (8, 1), (9, 0), (0, 0)])
def test_registers_in_loops_with_slow_calls(step: int, shift: int) -> None:
    images = []
    for run in (summing, summed):
        memory = ctypes.create_string_buffer(bytes(range(1, 200)), 256)
        state = ctypes.create_string_buffer(Machine.size)
        machine = Machine.view(ctypes.addressof(state))
        machine.gpr[2] = step
        words = (ctypes.addressof(memory) + 7 & ~7) + shift
        result = int(run(ptr[Machine](ctypes.addressof(state)), u64(words), u64(12)))
        base = words - ctypes.addressof(memory)
        images.append((result, machine.gpr[0], machine.gpr[1], machine.count, memory.raw[base:base + 120]))
    assert images[0][:4] == images[1][:4]
    assert images[0][4] == images[1][4]


def test_a_raise_finds_the_registers_stored() -> None:
    state = ctypes.create_string_buffer(Machine.size)
    machine = Machine.view(ctypes.addressof(state))
    word = ctypes.c_uint64(5)
    machine.gpr[2] = -ctypes.addressof(word) & (1 << 64) - 1   # the second address is 0
    assert int(summed(ptr[Machine](ctypes.addressof(state)), u64(ctypes.addressof(word)), u64(3))) == 99
    assert (machine.gpr[0], machine.gpr[1], machine.count) == (5, 0, 1)


@native(inline=False, spares_registers=True)
def liar(s: ptr[Machine]) -> None:
    helper(s)


@native
def helper(s):
    s.gpr[3] = 1


@native(inline=False, spares_registers=True)
def copier(s: ptr[Machine]) -> None:
    memcpy(at(s, 0, u8), local(array[u8, 8]), u64(8))


@pytest.mark.parametrize("fn", [liar, copier])
def test_a_broken_promise_is_an_error(fn: object) -> None:
    with pytest.raises(NativeError, match="spares registers, and .* reaches one"):
        Program().request(fn, (ptr[Machine],))  # type: ignore[arg-type]


def test_a_struct_knows_its_special_fields() -> None:
    with pytest.raises(TypeError, match="no field 'gqr'"):
        struct(registers=("gqr",))(Machine.__class__("Other", (), {"__annotations__": {"gpr": u64}}))


# --- host instructions -----------------------------------------------------------------------------------


@native
def around_asm(s: ptr[Machine], n: u64) -> None:
    for _ in range(n):
        s.gpr[0] = asm(u64, "notq $0", "=r,0", s.gpr[0])
        s.gpr[1] = asm(u64, "notq $0\n\tnopl (%rax)", "=r,0,~{memory}", s.gpr[1])


def test_a_host_instruction_touches_memory_only_if_it_says_so() -> None:
    lines = "\n".join(Program().request(around_asm, (ptr[Machine], u64)).lines)
    assert [" memory(inaccessiblemem: readwrite)" in line for line in lines.splitlines() if "asm" in line] == [
        True, False]


def test_a_flag_that_a_caller_has_seen_is_not_tested_again() -> None:
    program = Program()
    text = assembly(program.module([program.request(summing, (ptr[Machine], u64, u64))]))
    assert text.count("testb") <= 2, "one for the raise, one for the alignment"
