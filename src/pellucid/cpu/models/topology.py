"""How the processors of a machine are grouped, and the APIC ids that follow (SDM vol. 3, 9.9.3)."""

from __future__ import annotations

from itertools import product

from pellucid.records import dataclass


@dataclass(frozen=True)
class CpuTopology:
    """-smp: sockets, dies in each, cores in each die, threads in each core: the places.

    `plugged` of them have a processor from the start, the first ones; None: all. An APIC id is made of the numbers of
    socket, die, core and thread, each in a field of its own.
    """

    sockets: int = 1
    cores: int = 1
    threads: int = 1
    dies: int = 1
    plugged: int | None = None

    @property
    def thread_bits(self) -> int:
        """Bits of an APIC id that number a core's threads."""
        return (self.threads - 1).bit_length()

    @property
    def die_bits(self) -> int:
        """Bits of an APIC id that number a die's threads."""
        return self.thread_bits + (self.cores - 1).bit_length()

    @property
    def package_bits(self) -> int:
        """Bits of an APIC id that number a package's threads."""
        return self.die_bits + (self.dies - 1).bit_length()

    @property
    def die_threads(self) -> int:
        """Threads of a die."""
        return self.cores * self.threads

    @property
    def package_threads(self) -> int:
        """Threads of a package."""
        return self.dies * self.die_threads

    @property
    def places(self) -> int:
        """All places, with a processor or without."""
        return self.sockets * self.package_threads

    @property
    def count(self) -> int:
        """The processors that are there from the start."""
        return self.places if self.plugged is None else self.plugged

    @property
    def apic_ids(self) -> tuple[int, ...]:
        """The APIC id of each processor that is there."""
        return self.possible_apic_ids[: self.count]

    @property
    def possible_apic_ids(self) -> tuple[int, ...]:
        """The APIC id of each place: socket, die, core and thread number side by side."""
        every = product(range(self.sockets), range(self.dies), range(self.cores), range(self.threads))
        return tuple(socket << self.package_bits | die << self.die_bits | core << self.thread_bits | thread
                     for socket, die, core, thread in every)

    @property
    def apic_id_limit(self) -> int:
        """One more than the highest APIC id of any place."""
        return self.possible_apic_ids[-1] + 1

    def place(self, index: int) -> tuple[int, int, int, int]:
        """(socket, die, core, thread) of a place."""
        core, thread = divmod(index, self.threads)
        die, core = divmod(core, self.cores)
        socket, die = divmod(die, self.dies)
        return socket, die, core, thread
