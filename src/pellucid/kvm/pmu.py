"""The performance-monitoring unit of one vCPU: architectural performance monitoring, version 2 (SDM vol. 3, 20.2).

Eight counters for the events that CPUID tells of, and three fixed ones, all of 48 bits. A core cycle is an instruction
here: the processor retires one in each. Reference cycles are ticks of the time-stamp counter in guest code.

With edge detection a counter counts how often its condition begins to hold, from cycle to cycle (SDM vol. 3, 20.2.1.1).
That of cycles and instructions does not hold at other privilege levels, and while the processor halts; that of branches
holds in each run of branch instructions, which a change of the level ends.

Nothing counts while the guest runs: its processor tallies what happens by privilege level (`Meter`), and `update` adds
what is new to the counters that are enabled. It is called before the guest goes on, and before anybody looks. An
overflow that is to interrupt ends the guest's run behind the very instruction (`update` says how many may retire), or,
for reference cycles, when that many ticks have passed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from pellucid.cpu.models.counters import FIXED, GENERAL, WIDTH
from pellucid.cpu.state import TALLIES
from pellucid.kvm.errors import MsrAccessError
from pellucid.kvm.lbr import LBR_FMT
from pellucid.records import dataclass

_log = logging.getLogger("pellucid.kvm.pmu")

VALUE = (1 << WIDTH) - 1
U64 = (1 << 64) - 1

IA32_PMC, IA32_A_PMC, IA32_PERFEVTSEL, IA32_FIXED_CTR = (
    range(0xC1, 0xC1 + GENERAL), range(0x4C1, 0x4C1 + GENERAL), range(0x186, 0x186 + GENERAL),
    range(0x309, 0x309 + FIXED))
IA32_PERF_CAPABILITIES, IA32_FIXED_CTR_CTRL = 0x345, 0x38D
IA32_PERF_GLOBAL_STATUS, IA32_PERF_GLOBAL_CTRL, IA32_PERF_GLOBAL_OVF_CTRL = 0x38E, 0x38F, 0x390
PMU_MSRS = frozenset((*IA32_PMC, *IA32_A_PMC, *IA32_PERFEVTSEL, *IA32_FIXED_CTR, IA32_FIXED_CTR_CTRL,
                      IA32_PERF_GLOBAL_STATUS, IA32_PERF_GLOBAL_CTRL, IA32_PERF_GLOBAL_OVF_CTRL))
"""What is there with a performance-monitoring unit; IA32_PERF_CAPABILITIES is with CPUID's PDCM."""

FULL_WIDTH_WRITE = 1 << 13
"""IA32_PERF_CAPABILITIES: counters are written whole through IA32_A_PMC0 and its like."""
MISC_ENABLE_ON = 1 << 7 | 1 << 11 | 1 << 12
"""IA32_MISC_ENABLE: performance monitoring is available, BTS and PEBS are not."""

# IA32_PERFEVTSEL0 and its like (SDM vol. 3, 20.2.1.1); AnyThread came with version 3.
SELECT_USR, SELECT_OS, SELECT_EDGE = 1 << 16, 1 << 17, 1 << 18
SELECT_INT, SELECT_ENABLE, SELECT_INVERT = 1 << 20, 1 << 22, 1 << 23
SELECT_DEFINED = 0xFFDF_FFFF
SELECT_IN_TX, SELECT_IN_TXCP, CHECKPOINTED = 1 << 32, 1 << 33, 2
"""With RTM: only inside transactions; not what an abort undoes, on counter 2 only (SDM vol. 3, 20.3.6.5)."""
FIXED_OS, FIXED_USR, FIXED_INT, FIXED_DEFINED = 1, 2, 8, 0xB
FIXED_SHIFT, FIXED_BIT = 4, 32
"""Bits of IA32_FIXED_CTR_CTRL for each fixed counter; where the fixed ones begin in the global registers."""
RDPMC_FIXED = 1 << 30
PLACES = 3
"""Where things happen at one privilege level: outside transactions, inside, and inside those that were aborted."""
OVF_BUFFER, CONDITION_CHANGED = 1 << 62, 1 << 63

INSTRUCTIONS, BRANCHES, TICKS, RUNS, ENTRIES = range(TALLIES)
"""What a `Meter` tallies; cycles are instructions."""
EVENTS = {0x003C: INSTRUCTIONS, 0x00C0: INSTRUCTIONS, 0x013C: TICKS, 0x00C4: BRANCHES}
"""By event select and unit mask. Any other event never happens."""
FIXED_EVENTS = (INSTRUCTIONS, INSTRUCTIONS, TICKS)

FARTHEST = 1 << 31
"""Instructions that are executed at a stretch where nothing is near."""


class Meter(Protocol):
    """What counters count, on one processor outside native code."""

    @property
    def level(self) -> int:
        """0 at CPL 0, 1 elsewhere. The guest is never left inside a transaction."""
        ...

    @property
    def freezes(self) -> bool:
        """IA32_DEBUGCTL.FREEZE_PERFMON_ON_PMI."""
        ...

    def tally(self) -> Sequence[int]:
        """How often everything has happened: INSTRUCTIONS, BRANCHES, TICKS, RUNS of branches and ENTRIES from the other
        privilege level, at level 0, at level 1, at either inside transactions, and at either inside those that were
        aborted; and last how often the processor has halted.
        """
        ...

    def measure(self, on: bool, *, leave_at_level: bool) -> None:
        """Tally, or do not; `leave_at_level`: leave the guest where its level changes."""
        ...

    def interrupt(self) -> None:
        """Deliver by the local vector table's entry for performance counters."""
        ...

    def alarm(self, ticks: int) -> None:
        """Leave the guest when so many ticks have passed, where no alarm is set."""
        ...


@dataclass(frozen=True, slots=True)
class Counting:
    """A counter that is enabled: its bit in the global registers, and what it counts."""

    bit: int
    event: int
    levels: tuple[int, ...]
    interrupts: bool
    mask: int = 0
    inverted: bool = False
    edges: bool = False

    @property
    def exists(self) -> bool:
        """Not built: how often a stretch without branches begins, and edges in transactions alone or without aborts."""
        fallow = self.event == BRANCHES and self.inverted and self.mask == 1
        return not self.edges or not fallow and len(self.levels) in (3, 6)

    def grown(self, since: Sequence[int]) -> int:
        """By how much, after what has happened since then. With a counter mask it counts cycles with at least so many
        events, or with fewer; in a cycle there is one at most.
        """
        events = self._total(self.event, since)
        cycles = events if self.event == TICKS else self._total(INSTRUCTIONS, since)
        if self.edges:
            several = len(self.levels) == 2 * PLACES  # all entries are from one level that counts to another
            cycles = since[-1] * (0 in self.levels) + (0 if several else self._total(ENTRIES, since))
            events = self._total(RUNS, since) if self.event == BRANCHES else cycles
        if not self.mask:
            return events
        happens = events if self.mask == 1 else 0
        return cycles - happens if self.inverted else happens

    def _total(self, kind: int, since: Sequence[int]) -> int:
        return sum(since[TALLIES * level + kind] for level in self.levels)

    @property
    def is_near(self) -> bool:
        """Whether it may overflow behind any instruction, and not only where the level changes or a halt ends."""
        return not self.edges or self.event == BRANCHES


class Pmu:
    """The registers and what they do. On the vCPU's thread, or while it does not run."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.present = False
        self.supported_capabilities = FULL_WIDTH_WRITE | LBR_FMT
        self.capabilities = 0
        self._general = self._fixed = 0
        self._transactions = False
        self.reset()

    def show(self, general: int, fixed: int, transactions: bool = False) -> None:
        """CPUID tells of so many counters, 0 of both where there is no unit; and of RTM, or not."""
        self._transactions = transactions
        self.present = bool(general or fixed)
        self._general, self._fixed = min(general, GENERAL), min(fixed, FIXED)
        self.reset()

    def reset(self) -> None:
        """Values after RESET (SDM vol. 3, table 9-1): general counters are enabled globally, nothing is selected."""
        self._values: dict[int, int] = dict.fromkeys((*range(GENERAL), *range(FIXED_BIT, FIXED_BIT + FIXED)), 0)
        self._selects = [0] * GENERAL
        self._fixed_control = self._status = 0
        self._global_control = (1 << self._general) - 1
        self._counting: tuple[Counting, ...] = ()
        self._seen: Sequence[int] = ()
        self._choose()

    @property
    def _every_bit(self) -> int:
        return (1 << self._general) - 1 | ((1 << self._fixed) - 1) << FIXED_BIT

    @property
    def misc_enable(self) -> int:
        """The bits of IA32_MISC_ENABLE that tell of the unit."""
        return MISC_ENABLE_ON if self.present else 0

    # --- counting ----------------------------------------------------------------------------------------

    def update(self) -> int:
        """Count what has happened; after how many instructions to come again, at the latest."""
        overflowed = self._count()
        self._status |= sum(1 << counter.bit for counter in overflowed)
        if any(counter.interrupts for counter in overflowed):
            self._interrupt()
        return self._distance()

    def _count(self) -> list[Counting]:
        """Add what is new to the counters; those that passed their end."""
        if not self._counting:
            return []
        now = self._meter.tally()
        since = [(new - old) & U64 for new, old in zip(now, self._seen, strict=True)]
        self._seen = now
        overflowed = []
        for counter in self._counting:
            value = self._values[counter.bit] + counter.grown(since)
            self._values[counter.bit] = value & VALUE
            if value > VALUE:
                overflowed.append(counter)
        return overflowed

    def _interrupt(self) -> None:
        if self._meter.freezes:
            self._global_control = 0
            self._choose()
        self._meter.interrupt()

    def _distance(self) -> int:
        """Instructions until a counter may overflow that is to interrupt."""
        distance, level = FARTHEST, self._meter.level
        for counter in self._counting:
            if counter.interrupts and level in counter.levels and counter.is_near:
                left = VALUE + 1 - self._values[counter.bit]
                if counter.event == TICKS:
                    self._meter.alarm(left)
                else:
                    distance = min(distance, left)
        return distance

    def _choose(self) -> None:
        """A control register was written: which counters count from here on."""
        self._counting = tuple(self._enabled()) if self.present else ()
        mixed = any(c.interrupts and (0 in c.levels) != (1 in c.levels) for c in self._counting)
        self._meter.measure(bool(self._counting), leave_at_level=mixed)
        self._seen = self._meter.tally()

    def _enabled(self) -> list[Counting]:
        found = []
        for n in range(self._general):
            select = self._selects[n]
            event = EVENTS.get(select & 0xFFFF)
            levels = _levels(select & SELECT_OS, select & SELECT_USR, select)
            if select & SELECT_ENABLE and self._global_control >> n & 1 and levels and event is not None:
                counting = Counting(n, event, levels, bool(select & SELECT_INT), select >> 24 & 0xFF,
                                    bool(select & SELECT_INVERT), bool(select & SELECT_EDGE))
                if counting.exists:
                    found.append(counting)
                else:
                    _log.warning("performance counter %d stands still: edges of this kind are not built yet", n)
        for n in range(self._fixed):
            control = self._fixed_control >> n * FIXED_SHIFT
            levels = _levels(control & FIXED_OS, control & FIXED_USR)
            if levels and self._global_control >> FIXED_BIT + n & 1:
                found.append(Counting(FIXED_BIT + n, FIXED_EVENTS[n], levels, bool(control & FIXED_INT)))
        return found

    # --- what guests read and write ----------------------------------------------------------------------

    def read_counter(self, number: int) -> int:
        """RDPMC (SDM vol. 2); MsrAccessError where the guest gets #GP(0). Fast reads came before version 1 only."""
        index = number & ~RDPMC_FIXED
        if not self.present or index >= (self._fixed if number & RDPMC_FIXED else self._general):
            raise MsrAccessError(number)
        self.update()
        return self._values[index + (FIXED_BIT if number & RDPMC_FIXED else 0)]

    def read(self, index: int) -> int:
        """RDMSR of one of PMU_MSRS."""
        bit = self._counter_of(index)
        self.update()
        if bit is not None:
            return self._values[bit]
        if index in IA32_PERFEVTSEL and index - IA32_PERFEVTSEL[0] < self._general:
            return self._selects[index - IA32_PERFEVTSEL[0]]
        plain = {IA32_FIXED_CTR_CTRL: self._fixed_control, IA32_PERF_GLOBAL_STATUS: self._status,
                 IA32_PERF_GLOBAL_CTRL: self._global_control, IA32_PERF_GLOBAL_OVF_CTRL: 0}
        if not self.present or index not in plain:
            raise MsrAccessError(index)
        return plain[index]

    def write(self, index: int, value: int, host_initiated: bool = False) -> None:
        """WRMSR of one of PMU_MSRS; MsrAccessError for reserved bits."""
        bit = self._counter_of(index)
        self.update()
        if bit is not None:
            self._values[bit] = self._written(index, value, host_initiated)
        elif index == IA32_PERF_GLOBAL_STATUS and host_initiated:
            self._status = value & self._every_bit
        elif index == IA32_PERF_GLOBAL_OVF_CTRL and self.present:
            self._check(index, value, self._every_bit | OVF_BUFFER | CONDITION_CHANGED)
            self._status &= ~value
        else:
            self._write_control(index, value)
            self._choose()

    def _write_control(self, index: int, value: int) -> None:
        number = index - IA32_PERFEVTSEL[0]
        if 0 <= number < self._general:
            transactional = SELECT_IN_TX | SELECT_IN_TXCP * (number == CHECKPOINTED)
            self._check(index, value, SELECT_DEFINED | transactional * self._transactions)
            self._selects[number] = value
        elif index == IA32_FIXED_CTR_CTRL and self.present:
            self._check(index, value, sum(FIXED_DEFINED << n * FIXED_SHIFT for n in range(self._fixed)))
            self._fixed_control = value
        elif index == IA32_PERF_GLOBAL_CTRL and self.present:
            self._check(index, value, self._every_bit)
            self._global_control = value
        else:
            raise MsrAccessError(index, value)

    def _written(self, index: int, value: int, host_initiated: bool) -> int:
        """What a counter becomes. IA32_PMC0 and its like take 32 bits, sign-extended (SDM vol. 3, 20.2.6)."""
        if index in IA32_PMC and not host_initiated:
            return ((value & 0xFFFF_FFFF ^ 1 << 31) - (1 << 31)) & VALUE
        self._check(index, value, VALUE)
        return value

    def _counter_of(self, index: int) -> int | None:
        """The bit of the counter that an MSR is."""
        if index in IA32_FIXED_CTR and index - IA32_FIXED_CTR[0] < self._fixed:
            return FIXED_BIT + index - IA32_FIXED_CTR[0]
        if index in IA32_A_PMC and not self.capabilities & FULL_WIDTH_WRITE:
            return None
        for counters in (IA32_PMC, IA32_A_PMC):
            if index in counters and index - counters[0] < self._general:
                return index - counters[0]
        return None

    def set_capabilities(self, value: int) -> None:
        """IA32_PERF_CAPABILITIES from outside the guest."""
        self._check(IA32_PERF_CAPABILITIES, value, self.supported_capabilities)
        self.capabilities = value

    @staticmethod
    def _check(index: int, value: int, allowed: int) -> None:
        if value & ~allowed:
            raise MsrAccessError(index, value)


def _levels(kernel: int, user: int, select: int = 0) -> tuple[int, ...]:
    """The levels of a `Meter` that a counter counts at."""
    inside = (2,) if select & SELECT_IN_TX else (0, 2)
    places = inside if select & SELECT_IN_TXCP else (*inside, 4)
    return tuple(place + level for place in places for level, on in ((0, kernel), (1, user)) if on)
