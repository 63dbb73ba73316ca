"""The A20 gate of a PC, moved by port 0x92 and by the keyboard controller, as a guest sees it."""

from pathlib import Path

from pellucid.machine.machine import Machine
from tests.cpu.guests.asm import assemble
from tests.machine.test_smm import Ports, run_image

IMAGE_SIZE = 256 << 10
PORT_92_ON, PORT_92_OFF = "mov al, 2\nout 0x92, al", "mov al, 0\nout 0x92, al"
DD, DF = "mov al, 0xDD\nout 0x64, al", "mov al, 0xDF\nout 0x64, al"
OUTPUT_PORT_OFF = "mov al, 0xD1\nout 0x64, al\nmov al, 0xCD\nout 0x60, al"
SHOW = "mov al, [es:0x510]\nout dx, al"
PROGRAM = f"""
start:
    cli
    xor ax, ax
    mov ds, ax
    mov ss, ax
    dec ax
    mov es, ax
    mov dx, 0x402
    mov byte [0x500], 0x11
    mov byte [es:0x510], 0x22
    {SHOW}
    {PORT_92_OFF}
    {SHOW}
    {PORT_92_ON}
    {SHOW}
    {PORT_92_OFF}
    {SHOW}
    mov byte [es:0x510], 0x33
    {DF}
    {SHOW}
    {DD}
    {SHOW}
    {DF}
    {OUTPUT_PORT_OFF}
    {SHOW}
    {PORT_92_ON}
    {SHOW}
    mov al, [0x500]
    out dx, al
    mov al, 0xFF
    out dx, al
    hlt
"""


def image() -> bytes:
    """256 KiB, entered at their end."""
    done = assemble(PROGRAM, 0, 16)
    top = bytearray(0x1_0000)
    top[: len(done.code)] = done.code
    top[0xFFF0:0xFFF5] = assemble(f"jmp 0xF000:{done.labels['start']}", 0xFFF0, 16).code
    return bytes(IMAGE_SIZE - 0x1_0000) + bytes(top)


def test_both_gates_move_the_processor_s(tmp_path: Path) -> None:
    """QEMU prints the same: whoever wrote last has moved the gate, whatever its own bit was before."""
    output = bytearray()

    def prepare(machine: Machine) -> None:
        def write(offset: int, size: int, value: int) -> None:
            output.append(value)
            if value == 0xFF:
                machine.request_shutdown()

        Ports(lambda offset, size: 0, write).put(machine, 0x402, 1)

    run_image(tmp_path, image(), prepare)
    assert output.hex(" ") == "22 11 22 11 22 33 33 22 33 ff"
