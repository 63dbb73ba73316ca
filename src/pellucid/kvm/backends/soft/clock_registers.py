"""The table of a VM's clock registers that its processors read (`pellucid.cpu.clock_registers`), kept up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pellucid.cpu.clock_registers import MAX_REGISTERS, ClockRegister, ClockRegisters
from pellucid.engine.arrays import Array
from pellucid.kvm.clock import Clock, ClockValue, HostTimed
from pellucid.kvm.errors import InvalidRequestError
from pellucid.records import dataclass

U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class PlacedRegister:
    """A clock register and where it is."""

    address: int
    size: int
    value: ClockValue
    pio: bool


class ClockRegisterTable:
    """What `Vm.clock_register` was told. Without a clock that goes with the host's, nothing is answered natively.

    `taken(register)` says whether an interrupt chip answers there instead; call `refresh` where that changes. Those
    that find no room are answered by their devices.
    """

    def __init__(self, clock: Clock, taken: Callable[[PlacedRegister], bool]) -> None:
        self._taken = taken
        self._lock = threading.Lock()
        self._registers: list[PlacedRegister] = []
        self._memory = Array(ClockRegisters.size)
        self.address: int = self._memory.address
        self._table = ClockRegisters.view(self.address)
        if isinstance(clock, HostTimed):
            clock.follow_host(self._clock_changed)

    def assign(self, register: PlacedRegister) -> None:
        """One more."""
        with self._lock:
            self._registers.append(register)
        self.refresh()

    def deassign(self, register: PlacedRegister) -> None:
        """Undo `assign`; `InvalidRequestError` when there is none like it."""
        with self._lock:
            if register not in self._registers:
                raise InvalidRequestError(f"no clock register like {register} is assigned")
            self._registers.remove(register)
        self.refresh()

    def refresh(self) -> None:
        """Write the table anew."""
        with self._lock:
            shown = [register for register in self._registers if not self._taken(register)][:MAX_REGISTERS]
            self._table.generation += 1
            for place, register in enumerate(shown):
                self._write(place, register)
            self._table.count = len(shown)
            self._table.generation += 1

    def _write(self, place: int, register: PlacedRegister) -> None:
        at = ClockRegisters.fields["registers"].offset + place * ClockRegister.size
        native, value = ClockRegister.view(self.address + at), register.value
        native.address, native.size, native.port = register.address, register.size, int(register.pio)
        native.hz, native.mask, native.base, native.shift = value.hz, value.mask, value.base & U64, value.shift

    def _clock_changed(self, ahead_ns: int | None) -> None:
        """Called by the clock, under its lock."""
        with self._lock:
            self._table.generation += 1
            self._table.running = int(ahead_ns is not None)
            self._table.ahead = (ahead_ns or 0) & U64
            self._table.generation += 1
