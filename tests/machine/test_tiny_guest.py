"""Guests of a few instructions on Pellucid's own processor: from the reset of the board to its power-off, no fakes."""

from pathlib import Path

import pytest

from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.machine.run import run_machine
from tests.machine.kernels import MiB, bzimage, vmlinux

# Assembled by hand; the 64-bit ones are entered at byte 0x200 of the kernel, the PVH one in 32-bit mode.
POWER_OFF = b"\xbb\x00\x02\xa0\xfe\xc6\x03\x34"  # mov ebx, 0xfea00200; mov byte [rbx], 0x34
HALT = b"\xf4\xeb\xfd"  # hlt; jmp to it
RESETS = {
    "ACPI reset register": b"\xbb\x02\x02\xa0\xfe\xc6\x03\x42",  # mov ebx, 0xfea00202; mov byte [rbx], 0x42
    "keyboard controller": b"\xb0\xfe\xe6\x64",  # mov al, 0xfe; out 0x64, al
    "port 0x92": b"\xb0\x01\xe6\x92",  # mov al, 1; out 0x92, al
    "firmware's entry": b"\xb8\xf0\xff\x0f\x00\xff\xe0",  # mov eax, 0xffff0; jmp rax
    "triple fault": b"\x0f\x0b",  # ud2, without an interrupt table
}


def say(text: bytes) -> bytes:
    """mov dx, 0x3f8; and mov al, byte; out dx, al for each byte."""
    return b"\x66\xba\xf8\x03" + b"".join(bytes((0xB0, byte, 0xEE)) for byte in text)


def run(folder: Path, kernel: bytes, **changes: object) -> tuple[int, bytes]:
    """(exit status, what the guest printed)."""
    (folder / "kernel").write_bytes(kernel)
    output = CharBackend(CharBackendKind.FILE, path=folder / "out")
    settings: dict[str, object] = {
        "kernel": folder / "kernel",
        "memory_size": 64 * MiB,
        "serials": (output,),
        **changes,
    }
    status = run_machine(MachineConfig(**settings))  # type: ignore[arg-type]
    return status, (folder / "out").read_bytes()


def test_hello_and_power_off(tmp_path: Path) -> None:
    code = bytes(0x200) + say(b"hello, 64-bit world") + POWER_OFF + HALT
    assert run(tmp_path, bzimage(code)) == (0, b"hello, 64-bit world")


def test_pvh_hello_and_power_off(tmp_path: Path) -> None:
    code = bytes(0x10) + say(b"hello, 32-bit world") + POWER_OFF + HALT
    assert run(tmp_path, vmlinux(code)) == (0, b"hello, 32-bit world")


@pytest.mark.parametrize("how", RESETS)
def test_resets(tmp_path: Path, how: str) -> None:
    # A byte of the seed's page, which no reset touches, counts the starts: inc byte [0x11000]; cmp byte [...], 3.
    count = b"\xfe\x04\x25\x00\x10\x01\x00" + b"\x80\x3c\x25\x00\x10\x01\x00\x03"
    powered_off = POWER_OFF + HALT
    code = bytes(0x200) + say(b"up ") + count + b"\x75" + bytes((len(powered_off),)) + powered_off + RESETS[how] + HALT
    assert run(tmp_path, bzimage(code)) == (0, b"up up up ")
    assert run(tmp_path, bzimage(code), reboot=False) == (0, b"up ")
