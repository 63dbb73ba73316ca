"""The monitor's target on a real address space and run state, with a vCPU made by hand."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from pellucid.kvm.events import VcpuEvents
from pellucid.kvm.regs import MpState
from pellucid.machine.chardev import MemoryChardev, MuxChardev
from pellucid.machine.machine import Machine
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock
from pellucid.monitor.machine_target import MachineTarget, attach_monitor
from pellucid.runtime import RunState, ShutdownCause
from tests.monitor.fake_machine import reset_registers

T = TypeVar("T")
PAGE = 4096


class Vcpu:
    """Maps the first two virtual pages to the second and first physical ones."""

    def translate(self, gva: int) -> int | None:
        return gva ^ PAGE if gva < 2 * PAGE else None

    def get_vcpu_events(self) -> VcpuEvents:
        return VcpuEvents(interrupt_shadow=2, smi_smm=1)

    def get_mp_state(self) -> MpState:
        return MpState.HALTED

    def __getattr__(self, name: str) -> Callable[[], Any]:
        return lambda: getattr(reset_registers(), name.removeprefix("get_"))


class Thread:
    """Runs work at once and counts it."""

    def __init__(self) -> None:
        self.vcpu = Vcpu()
        self.calls = 0

    def run_on_cpu(self, work: Callable[[], T]) -> T:
        self.calls += 1
        return work()


class Ops:
    """A device whose registers must not be touched by looking at memory."""

    def read(self, offset: int, size: int) -> int:
        raise AssertionError("a device was read")

    def write(self, offset: int, size: int, value: int) -> None:
        raise AssertionError("a device was written")


@pytest.fixture
def machine() -> Iterator[Any]:
    low, high = RamBlock("low", PAGE), RamBlock("high", PAGE)
    low.view[:] = b"L" * PAGE
    high.view[:] = b"H" * PAGE
    root = MemoryRegion.new_container("system")
    root.add_subregion(0, MemoryRegion.new_ram("low", low))
    root.add_subregion(PAGE, MemoryRegion.new_ram("high", high))
    root.add_subregion(0x10000, MemoryRegion.new_io("device", 0x100, Ops()))
    space = AddressSpace("memory", root)
    asked: list[Any] = []
    requests = SimpleNamespace(reset=asked.append, shutdown=asked.append)
    system = SimpleNamespace(
        run_state=SimpleNamespace(state=RunState.RUNNING),
        requests=requests,
        vm_stop=lambda: asked.append("stop"),
        vm_start=lambda: asked.append("start"),
    )
    yield SimpleNamespace(
        memory=space, address_spaces=[space], system=system, vcpus=SimpleNamespace(threads=[Thread()]), asked=asked
    )
    space.close()
    low.close()
    high.close()


@pytest.fixture
def target(machine: Any) -> MachineTarget:
    return MachineTarget(cast(Machine, machine))


def test_physical_memory(target: MachineTarget) -> None:
    assert target.read_physical(PAGE - 2, 4) == b"LLHH"
    assert target.read_physical(2 * PAGE - 2, 4) is None
    assert target.read_physical(0x10000, 4) is None


def test_virtual_memory_goes_page_by_page(target: MachineTarget) -> None:
    assert target.read_virtual(0, PAGE - 2, 4) == b"HHLL"
    assert target.read_virtual(0, 2 * PAGE - 2, 4) is None
    assert target.read_virtual(0, (1 << 64) - 2, 4) is None


def test_registers_are_read_at_one_moment(machine: Any, target: MachineTarget) -> None:
    state = target.cpu_registers(0)
    assert machine.vcpus.threads[0].calls == 1
    assert (state.regs.rip, state.mp_state, state.interrupt_shadow, state.smm) == (0xFFF0, MpState.HALTED, True, True)
    assert target.cpu_count == 1


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (RunState.RUNNING, "running"),
        (RunState.PAUSED, "paused"),
        (RunState.PRELAUNCH, "paused (prelaunch)"),
        (RunState.GUEST_PANICKED, "paused (guest-panicked)"),
    ],
)
def test_status(machine: Any, target: MachineTarget, state: RunState, text: str) -> None:
    machine.system.run_state.state = state
    assert target.run_status() == text


def test_steering(machine: Any, target: MachineTarget) -> None:
    target.stop()
    target.cont()
    target.system_reset()
    target.quit()
    assert machine.asked == ["stop", "start", ShutdownCause.HOST_QMP_SYSTEM_RESET, ShutdownCause.HOST_QMP_QUIT]


def test_mtree(target: MachineTarget) -> None:
    text = target.mtree(flat=False, dispatch_tree=False, owner=False, disabled=False)
    assert "0000000000000000-0000000000000fff (prio 0, ram): low" in text


def test_a_monitor_on_a_mux_wakes_with_the_focus(machine: Any) -> None:
    terminal = MemoryChardev()
    mux = MuxChardev(terminal, lambda: None)
    serial = mux.port("serial0")
    serial.set_receiver(lambda data: None)
    attach_monitor(machine, mux.port("monitor"))
    assert terminal.output == b""
    terminal.feed(b"info status\r\x01cinfo status\r")
    assert terminal.output.decode().splitlines()[1:3] == ["(qemu) info status", "VM status: running"]


def test_a_monitor_of_its_own_greets_at_once(machine: Any) -> None:
    terminal = MemoryChardev()
    attach_monitor(machine, terminal)
    assert terminal.output.endswith(b"(qemu) ")
