"""A machine with system-management memory: what lies at 0xA0000 differs inside the mode and outside it."""

from __future__ import annotations

import ctypes

from pellucid.cpu import smm
from pellucid.engine.arrays import Array
from pellucid.kvm.api import Exit, IoExit, MmioExit

from .asm import assemble
from .machine import RAM
from .test_interrupts import DONE, LOG, SAY, Hosted

SMRAM, SMRAM_SIZE = 0xA_0000, 0x2_0000
SPACE_1 = 1 << 16
SMI, IN_SMM, IA32_SMI_COUNT, IA32_SMBASE = 4, 7, 0x34, 0x9E
HANDLER = "mov al, 7\nout SAY, al\nrsm"
"""An SMI handler that says where it is."""


class Smm(Hosted):
    """SMBASE is SMRAM, where the handler is. SAY of SMI raises one; what `inside` says is done at SAY of IN_SMM."""

    def __init__(self, handler: str = HANDLER, *, long_mode: bool = True) -> None:
        super().__init__()
        self.smram = Array(SMRAM_SIZE)
        end = SMRAM + SMRAM_SIZE
        self.vm.set_user_memory_region(SPACE_1, 0, SMRAM, self.ram.address)
        self.vm.set_user_memory_region(SPACE_1 | 1, SMRAM, SMRAM_SIZE, self.smram.address)
        self.vm.set_user_memory_region(SPACE_1 | 2, end, RAM - end, self.ram.address + end)
        self.vcpu.set_msrs({IA32_SMBASE: SMRAM})
        if not long_mode:
            self.state.efer_allowed = 0
        self.labels |= {"DONE": DONE, "SAY": SAY, "LOG": LOG}
        self.handler(handler)
        self.entries = 0

    def handler(self, source: str, offset: int = smm.ENTRY_POINT, bits: int = 16) -> None:
        """Assemble to SMRAM, for CS = SMBASE; its labels are offsets."""
        done = assemble(source, offset, bits, self.labels)
        self.labels |= done.labels
        self.put_smram(offset, done.code)

    def put_smram(self, offset: int, content: bytes) -> None:
        """Write SMRAM as a device does."""
        ctypes.memmove(self.smram.address + offset, content, len(content))
        self.vm.memory_written([(self.smram.address + offset, len(content))])

    def smram_bytes(self, offset: int, size: int) -> bytes:
        return ctypes.string_at(self.smram.address + offset, size)

    @property
    def save_map(self) -> bytes:
        """The 512 bytes."""
        return self.smram_bytes(smm.SAVE_MAP, smm.SAVE_SIZE)

    @save_map.setter
    def save_map(self, image: bytes) -> None:
        self.put_smram(smm.SAVE_MAP, image)

    def saved(self, offset: int, size: int) -> int:
        """A field of the save map by its offset from SMBASE, as the manuals give it."""
        return int.from_bytes(self.smram_bytes(offset, size), "little")

    def change(self, offset: int, value: int, size: int) -> None:
        """Change a field."""
        self.put_smram(offset, (value & (1 << size * 8) - 1).to_bytes(size, "little"))

    def on_say(self, value: int) -> None:
        if value == SMI:
            self.vcpu.smi()
        elif value == IN_SMM:
            self.entries += 1
            assert self.state.smm
            self.inside()
        else:
            super().on_say(value)

    def inside(self) -> None:
        """What a test does while the handler runs."""

    def go(self) -> Exit:
        """Run to DONE, or to whatever else ends it."""
        while True:
            exit = self.vcpu.run()
            if isinstance(exit, IoExit) and exit.port == SAY:
                self.said.append(exit.data or 0)
                self.on_say(exit.data or 0)
            elif isinstance(exit, IoExit) and exit.port == LOG:
                self.log.append(exit.data or 0)
            elif isinstance(exit, MmioExit) and exit.data is None:
                self.vcpu.complete_read(self.device(exit.gpa, exit.size))
                self.trace.append(("smm" if exit.smm else "read", exit.gpa, exit.size, 0))
            else:
                return exit

    def finish(self) -> None:
        """Run; it must get to DONE."""
        exit = self.go()
        assert isinstance(exit, IoExit) and exit.port == DONE, exit
