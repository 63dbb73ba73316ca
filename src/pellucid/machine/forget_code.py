"""Keeps translated guest code true: the processors hear of every write to RAM that they did not make themselves.

Code that is written by a vCPU is noticed in the vCPU. A device's transfer, the loader at a reset and the monitor write
from outside; their writes come past the RAM block's hooks, and are passed on by guest-physical address.
"""

from typing import Protocol, runtime_checkable

from pellucid.memory import MemoryListener, MemoryRegionSection, RamBlock
from pellucid.memory.ram_block import WriteHook
from pellucid.runtime import VcpuGroup


@runtime_checkable
class KeepsTranslations(Protocol):
    """A vCPU that keeps translations of guest code, and must be told of writes that it did not make itself."""

    def forget_code(self, gpa: int, size: int) -> None:
        """Guest memory changed; called while the vCPU is outside guest code."""
        ...


class ForgetCode(MemoryListener):
    """Tells the vCPUs of every write to RAM that came from a device, a loader or the monitor, by guest address."""

    def __init__(self, vcpus: VcpuGroup) -> None:
        self._vcpus = vcpus
        self._hooks: dict[int, tuple[RamBlock, WriteHook]] = {}

    def region_add(self, section: MemoryRegionSection) -> None:
        block = section.region.block
        if block is None:
            return

        def written(offset: int, length: int) -> None:
            start = max(offset, section.offset)
            end = min(offset + length, section.offset + section.size)
            if start < end:
                self._forget(section.addr + start - section.offset, end - start)

        block.add_write_hook(written)
        self._hooks[section.addr] = (block, written)

    def region_del(self, section: MemoryRegionSection) -> None:
        if section.region.block is not None:
            block, hook = self._hooks.pop(section.addr)
            block.remove_write_hook(hook)

    def _forget(self, gpa: int, size: int) -> None:
        with self._vcpus.exclusive():
            for thread in self._vcpus.threads:
                if isinstance(thread.vcpu, KeepsTranslations):
                    thread.vcpu.forget_code(gpa, size)
