"""From a configuration to a machine that has run and ended: everything is opened, wired, run and given back here."""

import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pellucid.errors import EXIT_INTERNAL
from pellucid.kvm.api import CpuidEntry, Exit, Hypervisor
from pellucid.kvm.backends import Progress, create_hypervisor
from pellucid.machine.board import find_board
from pellucid.machine.chardev import Chardev
from pellucid.machine.config import MachineConfig
from pellucid.machine.cpu_model import check_migratable, check_threads, configured_model, cpuid_entries, tsc_frequency
from pellucid.machine.machine import Machine
from pellucid.machine.signals import SignalHandlers
from pellucid.machine.streams import Streams
from pellucid.records import replace
from pellucid.runtime import BigLock, InstructionClock, MainLoop, ShutdownCause, SteppedClock, VcpuThread, VirtualClock
from pellucid.runtime.linux import set_process_name

AttachControl = Callable[[Machine, Streams], object]
"""Serves the monitors on their streams. They are above this floor, so whoever runs a machine passes this in."""
CpuidOf = Callable[[int], Sequence[CpuidEntry]]
"""What CPUID answers on the processor with an APIC id."""
Accelerator = Callable[[MachineConfig, VirtualClock], tuple[Hypervisor, CpuidOf]]

EXIT_STATUS = {ShutdownCause.HOST_ERROR: 1}
"""Status of the process by the reason why the machine went down; 0 for every other."""


def run_machine(
    config: MachineConfig,
    attach_control: AttachControl | None = None,
    accelerator: Accelerator | None = None,
    progress: Progress | None = None,
    ready: Callable[[], None] | None = None,
    attach_log: Callable[[Machine], None] | None = None,
) -> int:
    """Run the machine until it goes down; the process's exit status. Call it on the main thread.

    `progress(what, done, total)` hears how far a first compile of the processor is. `accelerator` replaces the one that
    the configuration names. `attach_log` is given the machine before its processors' threads start;
    `ready` is called when all is made and the guest is about to run.
    Raises UserError (nothing has been started then) for what the machine cannot be built from.
    """
    board = find_board(config.board)
    if config.process_name:
        set_process_name(config.process_name)
    with ExitStack() as cleanup:
        loop = MainLoop(BigLock())
        cleanup.callback(loop.close)
        clock = _clock(config)
        cleanup.callback(clock.close)
        hypervisor, cpuid = (accelerator or _accelerator(progress))(config, clock)
        machine = Machine(config, hypervisor, loop, clock, _report)
        cleanup.callback(machine.close)
        streams = Streams(config, loop, lambda: machine.system.requests.shutdown(ShutdownCause.HOST_UI))
        cleanup.callback(streams.close)
        # Before the guest can say anything: whoever hears it may send a signal at once.
        cleanup.enter_context(SignalHandlers(loop, streams.stdio, lambda number: _signalled(machine, number)))
        with loop.bql:
            board.build(machine, streams.serials)
            plug_devices(machine, config, streams.for_device)
            machine.create_vcpus(config.topology.apic_ids if board.has_cpus else (), cpuid)
            if attach_log is not None:
                attach_log(machine)
            machine.power_on()
            machine.system.on_failure.append(lambda thread, exit: _failed(machine, streams, thread, exit))
            if attach_control is not None:
                attach_control(machine, streams)
            if ready is not None:
                ready()
            if not config.start_paused:
                machine.system.vm_start()
        status = EXIT_STATUS.get(machine.run(), 0)
        return status if machine.exit_status is None else machine.exit_status


def _clock(config: MachineConfig) -> VirtualClock:
    if config.accelerator == "qtest":
        return SteppedClock()
    if config.icount is not None:
        return InstructionClock()
    return VirtualClock(debug_threads=config.debug_threads)


def plug_devices(machine: Machine, config: MachineConfig, chardev: Callable[[str], Chardev | None]) -> None:
    """What -device, -debugcon and -global ask for. Raises UserError."""
    if not config.devices and not config.globals:
        return
    from pellucid.machine.plug import DevicePlugger  # with every device that there is

    plugger = DevicePlugger(machine, config.globals, chardev)
    for warning in plugger.set_board_globals():
        print(f"pellucid: {warning}", file=sys.stderr, flush=True)
    for option in config.devices:
        plugger.plug(option)


def _accelerator(progress: Progress | None) -> Accelerator:
    def open_accelerator(config: MachineConfig, clock: VirtualClock) -> tuple[Hypervisor, CpuidOf]:
        def cpuid(apic_id: int) -> list[CpuidEntry]:
            return cpuid_entries(cpu, apic_id, config.topology, warn=False, tsc_hz=hz or hypervisor.tsc_hz)

        if config.only_migratable:
            check_migratable(config.cpu)
        configured_model(config.cpu)  # A bad -cpu is told before the engine is loaded.
        check_threads(config.cpu, config.topology)
        cpu = config.cpu
        if config.icount is not None:  # kvmclock and steal time tell of the host's time
            cpu = replace(cpu, properties={**cpu.properties, "kvm": "off"})
        hz = tsc_frequency(cpu)
        hypervisor = create_hypervisor(config.accelerator, clock, progress)
        return hypervisor, cpuid

    return open_accelerator


def _report(text: str) -> None:
    """A text for the user, beside whatever the guest is printing."""
    sys.stdout.flush()
    print(f"\npellucid: {text}", file=sys.stderr, flush=True)


def _signalled(machine: Machine, number: signal.Signals) -> None:
    _report(f"terminating on signal {number.value} ({number.name})")
    machine.system.requests.shutdown(ShutdownCause.HOST_SIGNAL)


def _failed(machine: Machine, streams: Streams, thread: VcpuThread, exit: Exit) -> None:
    """A processor cannot go on. Somebody at a monitor may look around; where nobody can, the process ends."""
    _report(f"{thread.name} cannot go on: {exit}")
    if streams.interactive:
        _report("the machine is stopped; Ctrl-A c is the monitor, Ctrl-A x quits")
    else:
        if machine.exit_status is None:
            machine.exit_status = EXIT_INTERNAL
        machine.system.requests.shutdown(ShutdownCause.HOST_ERROR)
