"""Multiboot kernels: where they lie, what they are told, what is said of damaged ones, and one that runs."""

import struct
from pathlib import Path

import pytest

from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.boot import GuestRam, read_kernel
from pellucid.machine.boot.multiboot import HAS_ADDRESSES, HEADER_MAGIC, WANTS_VIDEO, Module, MultibootKernel
from pellucid.machine.devices.fw_cfg import FwCfg
from pellucid.machine.firmware.kernel_loader import offer_kernel
from pellucid.memory import AddressSpace, MemoryRegion

BASE = 0x10_0000


def header(flags: int, *addresses: int) -> bytes:
    return struct.pack("<3I", HEADER_MAGIC, flags, -(HEADER_MAGIC + flags) & 0xFFFF_FFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def flat(code: bytes = b"\xf4", *, bss: int = 0) -> bytes:
    """A kernel whose header says where everything lies: four bytes, the header, the code."""
    size = 4 + 32 + len(code)
    return bytes(4) + header(HAS_ADDRESSES, BASE + 4, BASE, BASE + size, BASE + size + bss, BASE + 36) + code


def elf(*segments: tuple[int, bytes, int], entry: int, wide: bool = False) -> bytes:
    """A 32-bit ELF file of segments (address, content, size in memory)."""
    head = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    head += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, len(segments), 40, 0, 0)
    table, contents = b"", b""
    for address, content, size in segments:
        at = 52 + 32 * len(segments) + len(contents)
        table += struct.pack("<8I", 1, at, address, address, len(content), size, 7, 4)
        contents += content
    return head + table + contents


def test_a_flat_kernel_lies_where_its_header_says() -> None:
    kernel = MultibootKernel.parse(flat(b"\x90\xf4", bss=100), "k")
    assert (kernel.address, kernel.entry, len(kernel.image)) == (BASE, BASE + 36, 4 + 32 + 2 + 100)
    assert kernel.image[36:38] == b"\x90\xf4" and not any(kernel.image[38:])


def test_an_elf_kernel_lies_where_its_segments_do() -> None:
    content = elf((BASE, header(0) + b"\xf4", 13), (BASE + 0x1000, b"data", 0x800), entry=BASE + 12)
    kernel = MultibootKernel.parse(content, "k")
    assert (kernel.address, kernel.entry, len(kernel.image)) == (BASE, BASE + 12, 0x1800)
    assert kernel.image[0x1000:0x1004] == b"data"


def test_what_the_kernel_is_told() -> None:
    kernel = MultibootKernel.parse(flat(), "k.flat")
    content, info = kernel.load_with(b"a b", [Module("m1 x", b"first"), Module("m2", b"second" * 1000)], 0x9000)
    words = struct.unpack("<22I", info)
    assert words[0] == 0x24F and words[3] == 0x8000_FFFF and words[12] == 0x9000

    def text(address: int) -> bytes:
        return content[address - BASE : content.index(b"\0", address - BASE)]

    assert text(words[4]) == b"k.flat a b" and text(words[16]) == b"pellucid"
    modules = [struct.unpack_from("<4I", content, words[6] - BASE + 16 * n) for n in range(words[5])]
    assert [text(module[2]) for module in modules] == [b"m1 x", b"m2"]
    assert [content[m[0] - BASE : m[1] - BASE] for m in modules] == [b"first", b"second" * 1000]
    assert all(module[0] % 4096 == 0 for module in modules) and content.startswith(kernel.image)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (bytes(4) + header(WANTS_VIDEO), "video mode"),
        (bytes(4) + header(HAS_ADDRESSES, BASE), "ends within its header"),
        (bytes(4) + header(HAS_ADDRESSES, BASE, BASE + 8, 0, 0, BASE) + bytes(20), "contradict"),
        (bytes(4) + header(HAS_ADDRESSES, BASE + 4, BASE, BASE + 40, BASE + (3 << 30), BASE) + bytes(20), "claims"),
        (bytes(4) + header(HAS_ADDRESSES, BASE + 4, BASE, BASE + 40, 0, 5) + bytes(20), "its entry 0x5 lies outside"),
        (bytes(4) + header(0), "damaged ELF"),
        (elf((BASE, header(0), 12), entry=BASE, wide=True), "ELF"),
        (elf((BASE, header(0), 12), (0x9000_0000, b"x", 1), entry=BASE), "segments take"),
        (elf((BASE, header(0), 4), entry=BASE), "segments take"),
    ],
)
def test_damaged_kernels_are_named(tmp_path: Path, content: bytes, found: str) -> None:
    (tmp_path / "k").write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_kernel(tmp_path / "k")
    assert found in str(raised.value) and "\n" not in str(raised.value)


def test_it_needs_firmware() -> None:
    with pytest.raises(NotBuiltError, match="-M pc"):
        MultibootKernel.parse(flat(), "k").plan(GuestRam(1 << 27, 0, ()), b"", b"")


def test_the_rom_finds_it_in_fw_cfg(tmp_path: Path) -> None:
    (tmp_path / "multiboot_dma.bin").write_bytes(b"\x55\xaa" + bytes(510))
    (tmp_path / "module").write_bytes(b"module!")
    fw_cfg = FwCfg(AddressSpace("memory", MemoryRegion.new_container("system")))
    kernel = MultibootKernel.parse(flat(), "k")
    offer_kernel(fw_cfg, kernel, "words", tmp_path / "module", roms=tmp_path)

    def item(key: int, size: int) -> bytes:
        fw_cfg.write(0, 2, key)
        return bytes(fw_cfg.read(1, 1) for _ in range(size))

    assert struct.unpack("<I", item(0x10, 4)) == (kernel.entry,)
    assert struct.unpack("<I", item(0x07, 4)) == (BASE,) and struct.unpack("<I", item(0x0A, 4)) == (0x9500,)
    assert item(0x11, 16) == kernel.image[:16] and struct.unpack("<I", item(0x0B, 4)) == (88,)
    with pytest.raises(UserError, match="cannot read the module"):
        offer_kernel(fw_cfg, kernel, "", Path(f"{tmp_path}/module,{tmp_path}/none"), roms=tmp_path)


