"""-d's CPU items on a small guest, against what QEMU writes for the same code."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.machine.log import choose_log_items, configure_logging
from pellucid.machine.run import run_machine
from pellucid.monitor.machine_log import attach_log
from tests.cpu.guests import tables
from tests.cpu.guests.asm import assemble
from tests.machine.kernels import MiB, vmlinux

LOAD = 16 << 20   # where `vmlinux` puts its code; entered at byte 0x10
CODE, GDT, IDT, HANDLERS = LOAD + 0x10, LOAD + 0x400, LOAD + 0x500, LOAD + 0x300
MAIN = f"""
start: lgdt [{LOAD + 0x3F0}]
  lidt [{LOAD + 0x3F8}]
  jmp 0x08:flat
flat: mov ax, 0x10
  mov ds, ax
  mov ss, ax
  mov esp, 0x7000
  mov ecx, 3
again: dec ecx
  jne short again
  int 0x30
  mov eax, 0x12345678
  ud2
  mov ax, 0x33
  mov es, ax
  mov eax, 0x5000
  mov cr3, eax
  mov eax, cr0
  mov cr0, eax
  mov ebx, 0xfea00200
  mov byte [ebx], 0x34
halt: hlt
  jmp halt
"""
RETURN = "iretd"
SKIP = "add dword [esp], 2\niretd"
SKIP_ERROR = "add esp, 4\nadd dword [esp], 3\niretd"


def kernel() -> bytes:
    """A PVH kernel with its own descriptor tables: INT 0x30, #UD, #GP with an error code, power-off."""
    image = bytearray(0xA00)

    def put(at: int, content: bytes) -> None:
        image[at - LOAD:at - LOAD + len(content)] = content

    put(CODE, assemble(MAIN, CODE, 32).code)
    put(GDT + 8, tables.segment(tables.CODE).to_bytes(8, "little") + tables.segment(tables.DATA).to_bytes(8, "little"))
    put(LOAD + 0x3F0, (0x17).to_bytes(2, "little") + GDT.to_bytes(4, "little"))
    put(LOAD + 0x3F8, (0x1FF).to_bytes(2, "little") + IDT.to_bytes(4, "little"))
    for n, (vector, text) in enumerate(((0x30, RETURN), (6, SKIP), (13, SKIP_ERROR))):
        at = HANDLERS + 0x20 * n
        put(at, assemble(text, at, 32).code)
        put(IDT + 8 * vector, tables.gate(tables.INT, 8, at).to_bytes(16, "little")[:8])
    return vmlinux(bytes(image))


@pytest.fixture
def quiet() -> Iterator[None]:
    yield
    root = logging.getLogger("pellucid")
    for handler in list(root.handlers):
        root.removeHandler(handler)
        handler.close()
    choose_log_items(())


def logged(folder: Path, *items: str, ranges: tuple[tuple[int, int], ...] = ()) -> str:
    """What the guest leaves in the log."""
    (folder / "kernel").write_bytes(kernel())
    configure_logging(items, folder / "log")
    output = CharBackend(CharBackendKind.FILE, path=folder / "out")
    config = MachineConfig(kernel=folder / "kernel", memory_size=64 * MiB, serials=(output,), reboot=False,
                           log_ranges=ranges)
    assert run_machine(config, attach_log=attach_log) == 0
    return (folder / "log").read_text()


def test_events(tmp_path: Path, quiet: None) -> None:
    """QEMU's lines for this code, addresses apart, were the model."""
    text = logged(tmp_path, "int")
    labels = assemble(MAIN, CODE, 32).labels
    found = re.findall(r"^(check_exception .*|Servicing .*| +\d+: v=.*)$", text, re.M)
    heads = [line for line in found if "v=" in line]
    assert [line.split(" SP=")[0] for line in heads] == [
        f"     {n}: v={vector} e={error} i={soft} cpl=0 IP=0008:{at:016x} pc={at:016x}" for n, (vector, error, soft, at)
        in enumerate((("30", "0000", 1, labels["again"] + 3), ("06", "0000", 0, labels["again"] + 10),
                      ("0d", "0030", 0, labels["again"] + 16)))]
    assert heads[0].endswith("SP=0010:0000000000007000 env->regs[R_EAX]=0000000000000010") or "R_EAX]=" in heads[0]
    assert [line for line in found if "v=" not in line] == [
        "check_exception old: 0xffffffff new 0x6", "check_exception old: 0xffffffff new 0xd"]
    assert text.count("CCO=EFLAGS") == 3 and "EFER=0000000000000000" in text and "FCW=" not in text


def test_new_code(tmp_path: Path, quiet: None) -> None:
    text = logged(tmp_path, "in_asm")
    assert text.startswith(f"----------------\nIN: \n0x{CODE:08x}:  0f 01 15 f0 03 00 01     lgdtl    0x10003f0\n")
    labels = assemble(MAIN, CODE, 32).labels
    assert text.count(f"0x{labels['again']:08x}:  49                       decl     %ecx\n") == 2, "once in each block"
    assert f"0x{HANDLERS:08x}:  cf                       iretl    \n" in text and "Trace" not in text


def test_executed_blocks(tmp_path: Path, quiet: None) -> None:
    again = assemble(MAIN, CODE, 32).labels["again"]
    text = logged(tmp_path, "exec", "cpu", "fpu", "nochain", ranges=((again, again + 0xF),))
    line = r"^Trace 0: 0x[0-9a-f]+ \[0{16}/([0-9a-f]{16})/[0-9a-f]{8}/0{8}\] \nEAX=.* ECX=(\d+)"
    traces = re.findall(line, text, re.M)
    assert traces == [(f"{again:016x}", "00000002"), (f"{again:016x}", "00000001"), (f"{again + 3:016x}", "00000000"),
                      (f"{again + 5:016x}", "00000000"), (f"{again + 12:016x}", "00000000")]
    assert text.count("FCW=") == text.count("EIP=") == 5


def test_far_transfers(tmp_path: Path, quiet: None) -> None:
    """Where each came from and went to; those that faulted are not told of."""
    labels = assemble(MAIN, CODE, 32).labels
    lines = [line for line in logged(tmp_path, "pcall").splitlines() if "->" in line]
    places = [re.findall(r"^(\w+) (\w+):(\w+) -> (\w+):(\w+) cpl=0 -> 0$", line)[0] for line in lines]
    assert [(kind, to) for kind, _, _, _, to in places] == [
        ("ljmp", f"{labels['flat']:016x}"),
        ("iret", f"{labels['again'] + 5:016x}"),
        ("iret", f"{labels['again'] + 12:016x}"),
        ("iret", f"{labels['again'] + 19:016x}"),
    ]
    assert places[0][2] == f"{labels['flat'] - 7:016x}" and [place[3] for place in places] == ["0008"] * 4


def test_control_registers(tmp_path: Path, quiet: None) -> None:
    """QEMU's lines, for every write, whether it changes anything or not."""
    text = logged(tmp_path, "mmu")
    assert text == "CR3 update: CR3=0000000000005000\nCR0 update: CR0=0x00000011\n"


def test_resets(tmp_path: Path, quiet: None) -> None:
    text = logged(tmp_path, "cpu_reset")
    assert text.startswith("CPU Reset (CPU 0)\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=000")
    assert "EIP=0000fff0 EFL=00000002 [-------] CPL=0" in text and "XMM07=" in text
    assert text.count("CPU Reset") == 1


def test_nothing_asked_for_nothing_watched(tmp_path: Path, quiet: None) -> None:
    assert logged(tmp_path, "guest_errors") == ""
