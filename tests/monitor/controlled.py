"""A `pc` on the qtest backend under control: a real board, real threads, and a guest that executes nothing."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pellucid.kvm.backends.qtest import QtestHypervisor
from pellucid.machine.boards.pc import build_pc
from pellucid.machine.config import CharBackend, CharBackendKind, CpuTopology, MachineConfig
from pellucid.machine.machine import Machine
from pellucid.machine.streams import Streams
from pellucid.monitor import commands
from pellucid.monitor.attach import attach_control
from pellucid.monitor.control import Control
from pellucid.monitor.hmp import execute
from pellucid.monitor.session import Session
from pellucid.runtime import BigLock, MainLoop, SteppedClock
from tests.machine.pc_machine import firmware

MiB = 1 << 20
assert commands.__all__


def ringbuf(name: str) -> CharBackend:
    """A stream that tests write to and read from."""
    return CharBackend(CharBackendKind.RINGBUF, id=name, size=1 << 22)


@contextmanager
def controlled_pc(
    folder: Path, chardevs: Sequence[CharBackend] = (), cpus: int = 2, **changes: Any
) -> Iterator[Control]:
    """The machine, stopped before its first instruction; the big lock is held."""
    config = MachineConfig(
        board="pc",
        board_options={"firmware": str(firmware(folder))},
        accelerator="qtest",
        memory_size=16 * MiB,
        topology=CpuTopology(sockets=cpus),
        serials=(),
        chardevs=tuple(chardevs),
        **changes,
    )
    loop, clock = MainLoop(BigLock()), SteppedClock()
    machine = Machine(config, QtestHypervisor(clock), loop, clock, lambda text: None)
    streams = Streams(config, loop, lambda: None)
    try:
        with loop.bql:
            build_pc(machine, streams.serials)
            machine.create_vcpus(config.topology.apic_ids, lambda apic_id: [])
            machine.power_on()
            control = attach_control(machine, streams)
            yield control
    finally:
        machine.close()
        streams.close()
        loop.close()


def hmp(control: Control, *lines: str) -> str:
    """What a new session answers to the last of these lines."""
    session = Session(control)
    return [execute(session, line) for line in lines][-1]


def turn(machine: Machine) -> bool:
    """One turn of the main loop, with what was asked of the machine; whether it went down."""
    with machine.loop.bql.condition():
        machine.loop.run_once(0)
    return machine.system._carry_out_requests()
