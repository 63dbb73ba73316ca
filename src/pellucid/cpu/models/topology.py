"""How the processors of a machine are grouped, and the APIC ids that follow (SDM vol. 3, 9.9.3)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CpuTopology:
    """-smp: sockets, cores in each, threads in each core."""

    sockets: int = 1
    cores: int = 1
    threads: int = 1

    @property
    def thread_bits(self) -> int:
        """Bits of an APIC id that number a core's threads (SDM vol. 3, 9.9.3)."""
        return (self.threads - 1).bit_length()

    @property
    def package_bits(self) -> int:
        """Bits of an APIC id that number a package's threads."""
        return self.thread_bits + (self.cores - 1).bit_length()

    @property
    def count(self) -> int:
        """All processors."""
        return self.sockets * self.cores * self.threads

    @property
    def apic_ids(self) -> tuple[int, ...]:
        """The APIC id of each CPU, in order: socket, core and thread number side by side."""
        return tuple(socket << self.package_bits | core << self.thread_bits | thread
                     for socket in range(self.sockets) for core in range(self.cores) for thread in range(self.threads))
