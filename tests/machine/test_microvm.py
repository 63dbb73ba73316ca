"""The board whole, on a hypervisor that follows a script: memory, wiring, reset, power off, reports, errors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pellucid.errors import EXIT_INTERNAL, NotBuiltError, UserError
from pellucid.kvm.api import CpuidEntry, Exit, FailEntryExit, IoExit, MmioExit, ShutdownExit
from pellucid.machine.board import find_board
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.machine.devices.rtc import Rtc
from pellucid.machine.machine import Machine
from pellucid.machine.run import run_machine
from pellucid.machine.streams import Streams
from pellucid.memory import info_mtree
from pellucid.records import replace
from tests.machine.fake_hypervisor import FakeHypervisor, FakeVm
from tests.machine.kernels import MiB, bzimage

ENTRY_64 = 16 * MiB + 0x200
GED = 0xFEA0_0200
POWER_OFF = MmioExit(GED, 1, True, 0x34)
RESET = MmioExit(GED + 2, 1, True, 0x42)


def out(port: int, value: int, size: int = 1) -> IoExit:
    return IoExit(port, size, True, value)


def say(text: bytes) -> list[Exit]:
    return [out(0x3F8, byte) for byte in text]


class Run:
    """A microvm that follows `script`, its serial output in a file."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        (folder / "vmlinuz").write_bytes(bzimage())
        self.output = folder / "serial"
        settings: dict[str, Any] = {
            "kernel": folder / "vmlinuz",
            "append": "console=ttyS0",
            "serials": (CharBackend(CharBackendKind.FILE, path=self.output),),
        }
        self.config = MachineConfig(**{**settings, **changes})
        self.seen: list[Machine] = []

    def __call__(self, script: Sequence[Exit], **changes: Any) -> int:
        self.hypervisor = FakeHypervisor(script)
        cpuid = [CpuidEntry(0, eax=1)]
        return run_machine(
            replace(self.config, **changes), self._attach, lambda config, clock: (self.hypervisor, lambda _: cpuid)
        )

    def _attach(self, machine: Machine, chardev: Chardev) -> None:
        self.seen.append(machine)

    @property
    def text(self) -> bytes:
        return self.output.read_bytes()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_a_guest_prints_and_powers_off(run: Run) -> None:
    assert run([*say(b"Linux version"), POWER_OFF]) == 0
    assert run.text == b"Linux version"
    vm = run.hypervisor.vm
    assert vm.chips == ["irqchip", "pit"]
    assert vm.vcpus[0].entries == [ENTRY_64]
    assert vm.vcpus[0].cpuid == [CpuidEntry(0, eax=1)]


@pytest.mark.parametrize("how", [[RESET], [out(0x64, 0xFE)], [out(0x92, 0x01)], [ShutdownExit("why")]])
def test_a_reset_starts_the_kernel_again(run: Run, how: list[Exit]) -> None:
    assert run([*say(b"one "), *how, *say(b"two"), POWER_OFF]) == 0
    assert run.text == b"one two"
    vm = run.hypervisor.vm
    assert vm.vcpus[0].entries == [ENTRY_64, 0xFFF0, ENTRY_64]
    assert vm.chips_put_back == 4


def test_without_reboot_a_reset_ends_the_machine(run: Run) -> None:
    assert run([*say(b"one"), RESET, *say(b"two")], reboot=False) == 0
    assert run.text == b"one"


def test_a_triple_fault_tells_its_history(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([ShutdownExit("#PF at 0x10\n#DF\nrip=0x1234")], reboot=False) == 0
    error = capfd.readouterr().err
    assert "triple fault, the machine ends (-no-reboot)" in error and "#DF\nrip=0x1234" in error


def test_a_processor_that_cannot_go_on_ends_the_process(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([FailEntryExit("CR4 has reserved bits")]) == EXIT_INTERNAL
    assert "cannot go on" in (error := capfd.readouterr().err) and "CR4 has reserved bits" in error


def test_serial_interrupt_reaches_the_chips(run: Run) -> None:
    run([out(0x3F9, 0x02), IoExit(0x3FA, 1, False, None), POWER_OFF])
    vm = run.hypervisor.vm
    assert vm.vcpus[0].reads == [0x02]
    assert (4, True) in vm.lines and vm.lines[-1] == (4, False)


def test_registers_answer_at_their_ports(run: Run) -> None:
    script: list[Exit] = [
        out(0x70, 0x15),
        IoExit(0x71, 1, False, None),
        IoExit(0x64, 1, False, None),
        out(0x510, 0, 2),
        IoExit(0x511, 1, False, None),
        IoExit(0x3F8 + 5, 2, False, None),
        IoExit(0x300, 4, False, None),
        MmioExit(0xFEA0_0000, 4, False, None),
        MmioExit(0xD000_0000, 8, False, None),
        POWER_OFF,
    ]
    run(script)
    # A two-byte read at an odd port is split: LSR, then MSR.
    assert run.hypervisor.vm.vcpus[0].reads == [0x80, 0x10, ord("Q"), 0xB060, 0xFFFF_FFFF, 0, 0]


@pytest.mark.parametrize(
    ("size", "slots"),
    [
        (128 * MiB, {(0, 128 * MiB)}),
        (3072 * MiB, {(0, 3072 * MiB)}),
        (4096 * MiB, {(0, 3072 * MiB), (1 << 32, 1024 * MiB)}),
    ],
)
def test_memory_below_and_above_the_hole(tmp_path: Path, size: int, slots: set[tuple[int, int]]) -> None:
    run = Run(tmp_path, memory_size=size)

    class Looking(FakeHypervisor):
        pass

    hypervisor = Looking([POWER_OFF])
    seen: list[set[tuple[int, int]]] = []

    def attach(machine: Machine, _: Streams) -> None:
        seen.append(set(hypervisor.vm.slots.values()))

    run_machine(run.config, attach, lambda config, clock: (hypervisor, lambda _: []))
    assert seen == [slots]


def inspect(run: Run, look: Any) -> None:
    """Call look(machine) while the machine is built and loaded, before the guest starts."""

    def attach(machine: Machine, _: Streams) -> None:
        look(machine)

    run_machine(run.config, attach, lambda config, clock: (FakeHypervisor([POWER_OFF]), lambda _: []))


def test_what_the_guest_finds_in_memory(run: Run) -> None:
    checked: list[bool] = []

    def look(machine: Machine) -> None:
        read = machine.memory.read_bytes
        rsdp_address = int.from_bytes(read(0x7070, 8), "little")
        assert read(rsdp_address, 8) == b"RSD PTR " and sum(read(rsdp_address, 36)) % 256 == 0
        xsdt = int.from_bytes(read(rsdp_address + 24, 8), "little")
        assert read(xsdt, 4) == b"XSDT" and 0xE0000 <= xsdt < 0xF0000
        assert read(0x20000, 14) == b"console=ttyS0\0"
        assert read(16 * MiB, 6) == b"KERNEL"
        assert read(0x400, 2) == b"\xf8\x03" and read(0x413, 2) == (639).to_bytes(2, "little")
        seed = read(0x10010, 32)
        machine.reset(machine.system.shutdown_cause)
        assert read(0x10010, 32) != seed, "every start has its own seed"
        checked.append(True)

    inspect(run, look)
    assert checked


def test_writes_from_outside_drop_translations(tmp_path: Path) -> None:
    run = Run(tmp_path, memory_size=4096 * MiB)

    def look(machine: Machine) -> None:
        assert isinstance(machine.vm, FakeVm)
        assert (16 * MiB, 600) in machine.vm.written, "the kernel that was loaded"
        machine.vm.written.clear()
        machine.memory.write_bytes(0x1234, b"abc")
        machine.memory.write((1 << 32) + 8, 4, 1)
        machine.memory.write_bytes((3 << 30) - 2, b"abcd")
        assert machine.vm.written == [(0x1234, 3), ((1 << 32) + 8, 4), ((3 << 30) - 2, 2)]

    inspect(run, look)


def test_the_memory_tree_has_qemus_names(run: Run) -> None:
    def look(machine: Machine) -> None:
        text = info_mtree(machine.address_spaces)
        for line in (
            "0000000000000000-0000000007ffffff (prio 0, ram): alias ram-below-4g @microvm.ram 0000000000000000-",
            "00000000fea00200-00000000fea00202 (prio 0, i/o): acpi-ged-regs",
            "00000000000003f8-00000000000003ff (prio 0, i/o): serial",
            "0000000000000070-0000000000000071 (prio 0, i/o): rtc",
            "0000000000000514-000000000000051b (prio 0, i/o): fwcfg.dma",
        ):
            assert line in text

    inspect(run, look)


def test_power_button_and_cmos_sizes(run: Run) -> None:
    def look(machine: Machine) -> None:
        rtc = next(device for device in machine.devices if isinstance(device, Rtc))
        assert rtc.cmos[0x15] | rtc.cmos[0x16] << 8 == 640
        assert rtc.cmos[0x34] | rtc.cmos[0x35] << 8 == (128 - 16) * 16
        for action in machine.system.on_powerdown:
            action()
        assert machine.memory.read(0xFEA0_0000, 4) == 2

    inspect(run, look)


def test_serial_ports_left_out(run: Run) -> None:
    none = CharBackend(CharBackendKind.NONE)
    two = CharBackend(CharBackendKind.FILE, path=run.output)
    assert run([out(0x3F8, 0x41), out(0x2F8, 0x42), POWER_OFF], serials=(none, two)) == 0
    assert run.text == b"B"
    assert run([out(0x3F8, 0x41), POWER_OFF], board_options={"isa-serial": "off"}) == 0
    assert run.text == b""


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"board": "pc98"}, UserError, "unknown machine 'pc98'; there are: microvm"),
        ({"kernel": None}, UserError, "give one with -kernel"),
        ({"kernel": Path("/nonexistent/vmlinuz")}, UserError, "cannot read the kernel /nonexistent/vmlinuz"),
        ({"initrd": Path("/nonexistent/initrd")}, UserError, "cannot read the initrd /nonexistent/initrd"),
        ({"memory_size": 16 * MiB}, UserError, "needs 24 MiB of RAM .*give more with -m"),
        ({"memory_size": 4096}, UserError, "at least 1 MiB"),
        ({"memory_size": 1 << 50}, UserError, "-m"),
        ({"serials": (CharBackend(CharBackendKind.NULL),) * 5}, UserError, "4 serial ports, 5 are asked for"),
        ({"serials": (CharBackend(CharBackendKind.UNIX, path=Path("/nonexistent/s")),)}, UserError, "cannot connect"),
        ({"board_options": {"colour": "on"}}, UserError, "unknown option 'colour'; known are: acpi"),
        ({"board_options": {"rtc": "maybe"}}, UserError, "rtc takes on, off or auto, not 'maybe'"),
        ({"board_options": {"pic": "off"}}, NotBuiltError, "pic=off is not built yet"),
    ],
)
def test_bad_input_is_one_line_and_nothing_runs(
    run: Run, changes: dict[str, Any], error: type[Exception], text: str
) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error, match=text) as raised:
        run([out(0x3F8, 0x41), POWER_OFF], **changes)
    assert "\n" not in str(raised.value)
    assert len(os.listdir("/proc/self/fd")) == before, "everything opened is closed"
    assert len(run.hypervisor.vm.script) == 2 if hasattr(run, "hypervisor") else True


def test_boards_by_name() -> None:
    assert find_board("microvm").name == "microvm"
