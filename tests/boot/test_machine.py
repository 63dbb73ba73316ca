"""A machine from its command line to its end, with guests of a few instructions: terminal, monitor, errors."""

import re
from pathlib import Path

import pytest

from tests.boot.machine import OURS, Terminal, run
from tests.machine import kernels

OPTIONS = ("-M", "microvm", "-accel", "tcg", "-m", "64M", "-nographic")
KERNEL_START = 0x10_0000


def test_ctrl_a_x_ends_the_machine_and_gives_the_terminal_back(probe: Path) -> None:
    with Terminal(*OPTIONS, "-kernel", probe) as machine:
        machine.expect("!")
        assert machine.mode_now != machine.mode
        machine.send("\x01h")
        machine.expect("C-a x")
        machine.send("\x01x")
        machine.expect("QEMU: Terminated" if not OURS else "Terminated")
        assert machine.wait() == 0
        assert machine.mode_now == machine.mode


def test_ctrl_a_c_is_the_monitor(probe: Path) -> None:
    with Terminal(*OPTIONS, "-kernel", probe) as machine:
        machine.expect("!")
        machine.send("\x01c")
        machine.expect("(qemu) ")
        machine.send("info registers\r")
        registers = machine.expect("(qemu) ")
        rip = re.search(r"EIP=([0-9a-f]{8})|RIP=([0-9a-f]{16})", registers)
        assert rip is not None and KERNEL_START <= int(rip[1] or rip[2], 16) < KERNEL_START + 0x20
        assert "HLT=1" in registers
        machine.send(f"xp /4xb {KERNEL_START:#x}\r")
        assert f"{KERNEL_START:016x}: 0x66 0xba 0xf8 0x03" in machine.expect("\n(qemu) ")
        machine.send("info mtree\r")
        tree = machine.expect("\n(qemu) ")
        assert "address-space: memory" in tree and "00000000000003f8-00000000000003ff" in tree
        machine.send("frobnicate\r")
        machine.expect("unknown command: 'frobnicate'")
        machine.send("quit\r")
        assert machine.wait() == 0
        assert machine.mode_now == machine.mode


def test_a_machine_started_with_S_waits_for_cont(probe: Path) -> None:
    with Terminal(*OPTIONS, "-S", "-kernel", probe) as machine:
        machine.send("\x01c")
        before = machine.expect("(qemu) ")
        machine.send("info status\r")
        before += machine.expect("VM status: paused (prelaunch)")
        machine.send("cont\r")
        assert "!" not in before + machine.expect("cont")
        machine.expect("!")
        machine.send("info status\r")
        machine.expect("VM status: running")
        machine.send("stop\r")
        machine.send("info status\r")
        machine.expect("VM status: paused\n")
        machine.send("system_reset\r")
        machine.send("cont\r")
        machine.expect("!")
        machine.send("\x01x")
        assert machine.wait() == 0


def test_a_signal_ends_the_machine(probe: Path) -> None:
    with Terminal(*OPTIONS, "-kernel", probe) as machine:
        machine.expect("!")
        machine.send("\x01h")
        machine.expect("C-a x")  # the main loop turns
        machine.process.terminate()
        machine.expect("terminating on signal 15")
        assert machine.wait() == 0
        assert machine.mode_now == machine.mode


def test_a_triple_fault_with_no_reboot_is_explained_and_ends(triple_fault: Path) -> None:
    done = run(*OPTIONS, "-no-reboot", "-kernel", triple_fault)
    assert done.returncode == 0
    if OURS:
        said = done.stderr
        assert "triple fault, the machine ends (-no-reboot)" in said
        assert re.search(r"#UD .*\n(.*#GP .*\n)+.*#DF ", said), "the exceptions that led to it, in order"
        assert "(IDT entry 6), while #UD was delivered: IDT entry 6 lies beyond the limit 0x0" in said
        assert "#GP and #GP together" in said and "while #DF was delivered: IDT entry 8 lies beyond" in said
        assert f"{KERNEL_START + 7:x}" in said, "where it happened, behind a LIDT of seven bytes"
        assert "0f 0b" in said, "the bytes of the instruction"


def test_a_triple_fault_resets(triple_fault: Path) -> None:
    if not OURS:
        pytest.skip("QEMU resets without a word")
    with Terminal(*OPTIONS, "-kernel", triple_fault) as machine:
        machine.expect("triple fault, the machine resets")
        machine.expect("triple fault, the machine resets")
        machine.send("\x01x")
        assert machine.wait() == 0


def file(folder: Path, name: str, content: bytes = b"", size: int = 0) -> Path:
    """A file of `content` and zeros up to `size`, which take no room on the disk."""
    path = folder / name
    with path.open("wb") as out:
        out.write(content)
        out.truncate(max(size, len(content)))
    return path


KERNEL = ("-kernel", "{folder}/kernel")
BAD = {
    "no kernel file": (("-kernel", "{folder}/none"), "/none: could not open kernel file: no such file"),
    "a folder": (("-kernel", "{folder}"), "not a regular file"),
    "not a kernel": (("-kernel", "{folder}/text"), "/text is not a Linux kernel: it is a text file"),
    "an empty file": (("-kernel", "{folder}/empty"), "/empty is not a Linux kernel: it is empty"),
    "a kernel cut short": (("-kernel", "{folder}/short"), "/short: the kernel is truncated"),
    "no initrd file": ((*KERNEL, "-initrd", "{folder}/none"), "-initrd .*/none: no such file"),
    "an initrd too large": ((*KERNEL, "-initrd", "{folder}/large"), "initrd of 64 MiB does not fit.* give more memory"),
    "RAM too small": ((*KERNEL, "-m", "16M"), r"needs 2\d MiB .*guest has 16 MiB.* give more with -m"),
    "no RAM": ((*KERNEL, "-m", "0"), "-m 0: "),
    "more RAM than there is": ((*KERNEL, "-m", "1E"), "cannot set up guest memory .* give a smaller size with -m"),
    "an unknown board": (("-M", "frob"), "frob: no such board"),
    "a board not built": (("-M", "isapc"), "isapc: not built yet"),
    "an unknown CPU": ((*KERNEL, "-cpu", "frob"), "-cpu frob: no such CPU model"),
    "an unknown CPU feature": ((*KERNEL, "-cpu", "max,+frob"), "frob: no such CPU feature"),
    "an unknown option": (("-frobnicate",), "-frobnicate: unknown option"),
    "an option not built": (("-gdb", "tcp::1234"), "-gdb: not built yet"),
    "a board without disks": ((*KERNEL, "-hda", "disk"), "-hda disk: machine type does not support if=ide"),
    "a command line too long": ((*KERNEL, "-append", "x" * 3000), "-append is 3000 bytes long"),
    "a serial port nowhere": ((*KERNEL, "-serial", "file:/none/here"), "/none/here: No such file or directory"),
}


@pytest.mark.skipif(not OURS, reason="the texts are ours")
@pytest.mark.parametrize(("options", "line"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line(tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    kernel = kernels.bzimage()
    file(tmp_path, "kernel", kernel)
    file(tmp_path, "short", kernel[: 5 * 512])
    file(tmp_path, "text", b"this is no kernel\n" * 100)
    file(tmp_path, "empty")
    file(tmp_path, "large", size=64 << 20)
    words = [word.format(folder=tmp_path) for word in options]
    machine = [] if "-m" in words else ["-m", "64M"]
    board = [] if "-M" in words else ["-M", "microvm"]
    done = run(*board, *machine, "-display", "none", *words)
    assert done.returncode == 1
    assert done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said.startswith("pellucid: ") and re.search(line, said), said
