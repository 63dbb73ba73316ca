"""The Linux boot protocol: header, placement, zero page, entry states, and every way it can fail to fit."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.errors import UserError
from pellucid.machine.boards.microvm import memory_map
from pellucid.machine.boot.linux import BzImage, is_bzimage
from pellucid.machine.boot.plan import BootPlan, GuestRam
from tests.machine.kernels import MiB, bzimage, ram

COMMAND_LINE, SETUP_DATA, ZERO_PAGE = 0x2_0000, 0x1_0000, 0x7000


def plan(image: bytes, **options: object) -> BootPlan:
    arguments: dict[str, object] = {"ram": ram(), "command_line": b"console=ttyS0", "initrd": b"", **options}
    return BzImage.parse(image, "vmlinuz").plan(**arguments)  # type: ignore[arg-type]


def load(plan: BootPlan) -> dict[int, bytes]:
    """Segments by address; none overlaps another."""
    spans = sorted((address, address + len(content)) for address, content in plan.segments)
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        assert end <= start
    return dict(plan.segments)


def field(page: bytes, offset: int, format: str) -> int:
    value: int = struct.unpack_from("<" + format, page, offset)[0]
    return value


def test_64_bit_entry() -> None:
    image = bzimage()
    started = plan(image, rsdp_address=0xF0000)
    memory = load(started)
    assert memory[16 * MiB] == b"KERNEL" * 100
    assert memory[COMMAND_LINE] == b"console=ttyS0\0"
    assert started.regs.rip == 16 * MiB + 0x200 and started.regs.rsi == ZERO_PAGE
    assert started.regs.rflags == 2
    page = memory[ZERO_PAGE]
    assert page[0x202:0x206] == b"HdrS" and page[0x1F1:0x210] == image[0x1F1:0x210]
    assert page[0x26C:0x290] == bytes(0x24), "nothing of the file behind the header"
    assert page[0x210] == 0xFF and page[0x211] == 0x81
    assert field(page, 0x228, "I") == COMMAND_LINE
    assert field(page, 0x214, "I") == 16 * MiB
    assert field(page, 0x070, "Q") == 0xF0000
    assert (field(page, 0x218, "I"), field(page, 0x21C, "I"), field(page, 0x250, "Q")) == (0, 0, 0)


def test_memory_map_in_the_zero_page() -> None:
    layout = GuestRam(0xC000_0000, 1 << 32, memory_map(0xC000_0000, 1 << 32))
    page = load(plan(bzimage(), ram=layout))[ZERO_PAGE]
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(page[0x1E8])]
    assert entries == [
        (0, 0x9FC00, 1),
        (0x9FC00, 0x400, 2),
        (0xE0000, 0x10000, 3),
        (0xF0000, 0x10000, 2),
        (MiB, 0xC000_0000 - MiB, 1),
        (1 << 32, 1 << 32, 1),
    ]


@pytest.mark.parametrize(("xloadflags", "long_mode"), [(0, True), (1, False)])
def test_32_bit_entry(xloadflags: int, long_mode: bool) -> None:
    started = plan(bzimage(xloadflags=xloadflags), long_mode=long_mode)
    assert started.regs.rip == 16 * MiB and started.regs.rsi == ZERO_PAGE
    assert started.sregs.cr0 & 0x8000_0001 == 1 and started.sregs.efer == 0 and started.sregs.cr4 == 0
    assert started.sregs.cs.db and not started.sregs.cs.l


def test_initrd_goes_as_high_as_it_may() -> None:
    initrd = b"i" * 10_000
    started = plan(bzimage(), initrd=initrd)
    page = load(started)[ZERO_PAGE]
    assert field(page, 0x218, "I") == 128 * MiB - 0x3000
    assert field(page, 0x21C, "I") == 10_000
    assert load(started)[128 * MiB - 0x3000] == initrd
    limited = load(plan(bzimage(initrd_addr_max=100 * MiB - 1), initrd=initrd))[ZERO_PAGE]
    assert field(limited, 0x218, "I") == 100 * MiB - 0x3000
    old = load(plan(bzimage(protocol=0x202, relocatable=0), initrd=initrd, ram=ram(1024 * MiB)))[ZERO_PAGE]
    assert field(old, 0x218, "I") == 0x3800_0000 - 0x3000


def test_load_address() -> None:
    assert 1 * MiB in load(plan(bzimage(relocatable=0)))
    assert 1 * MiB in load(plan(bzimage(protocol=0x209)))
    assert 32 * MiB in load(plan(bzimage(pref_address=32 * MiB)))


def test_seed_is_chained_as_setup_data() -> None:
    memory = load(plan(bzimage(), rng_seed=b"s" * 32))
    assert field(memory[ZERO_PAGE], 0x250, "Q") == SETUP_DATA
    assert memory[SETUP_DATA] == struct.pack("<QII", 0, 9, 32) + b"s" * 32


def test_default_setup_sectors() -> None:
    image = bytearray(bzimage())
    image[0x1F1] = 0
    assert load(plan(bytes(image)))[16 * MiB] == b"KERNEL" * 100


@pytest.mark.parametrize(
    ("image", "options", "text"),
    [
        (bzimage(protocol=0x201), {}, "vmlinuz: its boot protocol 2.01 is too old"),
        (bzimage(loadflags=0), {}, "vmlinuz: is a zImage"),
        (bzimage(setup_sectors=40, payload=b""), {}, "truncated: its code should begin at byte 20992"),
        (
            bzimage(),
            {"ram": ram(20 * MiB)},
            "needs 24 MiB of RAM .* has 20 MiB below 4 GiB; give more with -m",
        ),
        (bzimage(), {"initrd": bytes(110 * MiB)}, "initrd of 110 MiB does not fit: .* room for 104 MiB .* -m"),
        (bzimage(initrd_addr_max=25 * MiB), {"initrd": bytes(2 * MiB)}, "room for 1 MiB below 0x1900001"),
        (bzimage(), {"command_line": b"x" * 2048}, "-append is 2048 bytes long; this kernel takes at most 2047"),
        (bzimage(protocol=0x205), {"command_line": b"x" * 256}, "takes at most 255"),
        (bzimage(command_line_size=1 << 20), {"command_line": b"x" * 65536}, "takes at most 65535"),
    ],
)
def test_what_cannot_be_booted_says_why(image: bytes, options: dict[str, object], text: str) -> None:
    with pytest.raises(UserError, match=text) as raised:
        plan(image, **options)
    assert "\n" not in str(raised.value)


def test_an_initrd_that_just_fits() -> None:
    assert 24 * MiB in load(plan(bzimage(), initrd=bytes(104 * MiB)))


@settings(max_examples=200)
@given(st.binary(max_size=0x300), st.integers(0, 64 * MiB), st.sampled_from([0x201, 0x202, 0x205, 0x20C, 0x20F]))
def test_hostile_headers_fail_cleanly_or_fit(noise: bytes, initrd_size: int, protocol: int) -> None:
    image = bytearray(noise.ljust(0x400, b"\xa5"))
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, protocol)
    assert is_bzimage(bytes(image))
    try:
        started = plan(bytes(image), initrd=bytes(initrd_size), command_line=b"")
    except UserError:
        return
    assert all(0 <= address and address + len(content) <= 128 * MiB for address, content in started.segments)


def debian_kernel() -> Path | None:
    """The kernel in the user's cache, if the default guest was ever fetched."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return next(iter(sorted((root / "pellucid").rglob("vmlinuz"))), None)


@pytest.mark.skipif(debian_kernel() is None, reason="the default guest has not been fetched on this machine")
def test_debians_kernel() -> None:
    path = debian_kernel()
    assert path is not None
    started = plan(path.read_bytes(), ram=ram(256 * MiB))
    assert "64-bit entry" in started.how
    assert len(load(started)[started.regs.rip - 0x200]) > 5 * MiB
    with pytest.raises(UserError, match="of RAM just to unpack itself"):
        plan(path.read_bytes(), ram=ram(32 * MiB))
