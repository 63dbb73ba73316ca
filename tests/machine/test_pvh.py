"""PVH: the entry note, start_info and what it leads to, the entry state, damaged ELF files."""

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import UserError
from pellucid.machine.boot.plan import BootPlan, MemoryType
from pellucid.machine.boot.pvh import PvhKernel
from tests.machine.kernels import MiB, ram, vmlinux

INFO = 0x6000


def plan(content: bytes, initrd: bytes = b"", size: int = 128 * MiB, command_line: bytes = b"quiet") -> BootPlan:
    return PvhKernel.parse(content, "vmlinux").plan(ram(size), command_line, initrd, rsdp_address=0xF0000)


def at(started: BootPlan, address: int, size: int) -> bytes:
    """Bytes of guest memory after loading; zero where nothing was loaded."""
    memory = bytearray(size)
    for base, content in started.segments:
        start, end = max(base, address), min(base + len(content), address + size)
        if start < end:
            memory[start - address : end - address] = content[start - base : end - base]
    return bytes(memory)


def test_entry_state() -> None:
    started = plan(vmlinux())
    assert started.regs.rip == 16 * MiB + 0x10 and started.regs.rbx == INFO and started.regs.rflags == 2
    sregs = started.sregs
    assert sregs.cr0 & ~0x10 == 1 and sregs.cr4 == 0 and sregs.efer == 0
    assert sregs.cs.base == 0 and sregs.cs.limit == 0xFFFF_FFFF and sregs.cs.type & 0b1010 == 0b1010 and sregs.cs.db
    assert {(s.base, s.limit, s.type & 0b1010) for s in (sregs.ds, sregs.es, sregs.ss)} == {(0, 0xFFFF_FFFF, 0b0010)}
    assert sregs.tr.limit >= 0x67 and not sregs.tr.s


def test_start_info_leads_to_everything() -> None:
    initrd = b"cpio" * 1000
    started = plan(vmlinux(), initrd)
    magic, version, _, modules, modlist, cmdline, rsdp, memmap, entries, _ = struct.unpack(
        "<IIIIQQQQII", at(started, INFO, 56)
    )
    assert (magic, version, modules, rsdp, entries) == (0x336EC578, 1, 1, 0xF0000, 5)
    assert at(started, cmdline, 6) == b"quiet\0"
    address, size, _, _ = struct.unpack("<QQQQ", at(started, modlist, 32))
    assert size == 4000 and at(started, address, size) == initrd and address % 4096 == 0
    assert struct.unpack("<QQII", at(started, memmap + 4 * 24, 24)) == (MiB, 127 * MiB, MemoryType.RAM, 0)


def test_without_initrd_there_is_no_module() -> None:
    info = struct.unpack("<IIIIQQQQII", at(plan(vmlinux()), INFO, 56))
    assert info[3:5] == (0, 0)


def test_bss_is_zeroed_and_a_short_note_works() -> None:
    started = plan(vmlinux(b"\xcc" * 16, memory_size=0x2000, entry_size=4))
    loaded = dict(started.segments)[16 * MiB]
    assert loaded == b"\xcc" * 16 + bytes(0x2000 - 16)
    assert started.regs.rip == 16 * MiB + 0x10


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (vmlinux(machine=183), "ELF file for EM_AARCH64; give a kernel for x86"),
        (vmlinux(note_type=17), "without a PVH entry note; build the kernel with CONFIG_PVH=y"),
        (vmlinux(note_name=b"GNU\0"), "without a PVH entry note"),
        (vmlinux(entry=0x1234), "its PVH entry 0x1234 lies in no segment"),
        (vmlinux(memory_size=4), "its segment at 0x1000000 cannot be loaded"),
        (vmlinux(address=0xFFFF_F000), "cannot be loaded"),
        (vmlinux()[:80], "damaged ELF file"),
    ],
)
def test_what_is_no_pvh_kernel_says_why(content: bytes, text: str) -> None:
    with pytest.raises(UserError, match=text) as raised:
        plan(content)
    assert "\n" not in str(raised.value)


def test_what_does_not_fit_says_why() -> None:
    with pytest.raises(UserError, match="but the guest has 8 MiB of RAM below 4 GiB; give more with -m"):
        plan(vmlinux(), size=8 * MiB)
    with pytest.raises(UserError, match="initrd of 112 MiB does not fit"):
        plan(vmlinux(), bytes(112 * MiB))
    with pytest.raises(UserError, match="lies below 1 MiB"):
        plan(vmlinux(address=0x8000))
    with pytest.raises(UserError, match="-append is 65536 bytes long"):
        plan(vmlinux(), command_line=b"x" * 65536)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 255)), max_size=8), st.integers(0, 400))
def test_damaged_files_fail_cleanly(changes: list[tuple[int, int]], length: int) -> None:
    content = bytearray(vmlinux())
    for offset, byte in changes:
        content[offset % len(content)] = byte
    try:
        started = plan(bytes(content[: len(content) - length]) if length < 200 else bytes(content))
    except UserError:
        return
    assert all(address + len(data) <= 128 * MiB for address, data in started.segments)
