"""The registers of a vCPU's last-branch records, in a format that IA32_PERF_CAPABILITIES names (SDM vol. 3, 17.4.8.1).

The processor fills a stack of its own while IA32_DEBUGCTL.LBR is set (`pellucid.cpu.lbr`); these are the views of it
that the processors since Nehalem have. Formats 0 to 2 belong to older ones, with other registers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pellucid.cpu.lbr import INFO_ABORT, INFO_CYCLES, INFO_IN_TX, INFO_MISPRED, SELECT_EN_CALLSTACK
from pellucid.cpu.state import LBR_ENTRIES
from pellucid.kvm.errors import MsrAccessError
from pellucid.records import dataclass

FROM_IP, TO_IP, INFO = (range(first, first + LBR_ENTRIES) for first in (0x680, 0x6C0, 0xDC0))
"""MSR_LASTBRANCH_0_FROM_IP, MSR_LASTBRANCH_0_TO_IP, MSR_LBR_INFO_0 and those behind them."""
MSR_LBR_SELECT, MSR_LASTBRANCH_TOS, MSR_LER_FROM_LIP, MSR_LER_TO_LIP = 0x1C8, 0x1C9, 0x1DD, 0x1DE
LBR_MSRS = frozenset((MSR_LBR_SELECT, MSR_LASTBRANCH_TOS, MSR_LER_FROM_LIP, MSR_LER_TO_LIP, *FROM_IP, *TO_IP, *INFO))

LBR_FMT = 0x3F
"""The format in IA32_PERF_CAPABILITIES; 0: there are no records."""
U64 = (1 << 64) - 1
CYCLES_SHIFT = 48


@dataclass(frozen=True, slots=True)
class Format:
    """What the entries hold besides two addresses, and where."""

    depth: int
    linear: bool
    """Linear addresses, not offsets into the code segment."""
    in_from: int = 0
    """Bits of `CpuState.lbr_info` that stand in the same place in MSR_LASTBRANCH_x_FROM_IP."""
    in_info: int = 0
    """Those of MSR_LBR_INFO_x; 0 where there is none."""
    cycles_in_to: bool = False
    """Bits 63:48 of MSR_LASTBRANCH_x_TO_IP are cycles."""
    call_stack: bool = True
    """MSR_LBR_SELECT.EN_CALLSTACK."""

    @property
    def has_cycles(self) -> bool:
        """Whether it tells of cycles."""
        return self.cycles_in_to or bool(self.in_info)


TSX = INFO_ABORT | INFO_IN_TX
FORMATS = {
    3: Format(16, False, INFO_MISPRED, call_stack=False),
    4: Format(16, False, INFO_MISPRED | TSX),
    5: Format(32, False, in_info=INFO_MISPRED | TSX | INFO_CYCLES),
    6: Format(32, True, INFO_MISPRED, cycles_in_to=True),
    7: Format(32, True, in_info=INFO_MISPRED | INFO_CYCLES),
}
"""By number, as Sandy Bridge, Haswell, Skylake, Goldmont and Goldmont Plus have them."""
OWN_FORMAT = 4
"""Of the models that follow the processor itself: transactions are told of, and nothing needs counting."""


class LastBranches:
    """The registers. `state` is the processor's CpuState; `canonical` says whether an address is; `changed` is called
    when the recording begins or ends, with whether cycles are wanted. On the vCPU's thread, or while it does not run.
    """

    def __init__(self, state: Any, canonical: Callable[[int], bool], changed: Callable[[bool], None]) -> None:
        self._state, self._canonical, self._changed = state, canonical, changed
        self._format: Format | None = None

    @property
    def present(self) -> bool:
        """Whether there are such records."""
        return self._format is not None

    def show(self, number: int) -> None:
        """IA32_PERF_CAPABILITIES says this format, one of FORMATS, or 0; all records are gone."""
        self._format = FORMATS.get(number)
        state = self._state
        state.lbr_depth = self._format.depth if self._format else 0
        state.lbr_linear = int(self._format is not None and self._format.linear)
        state.lbr_tos = state.lbr_select = state.ler_from = state.ler_to = 0
        for n in range(LBR_ENTRIES):
            state.lbr_from[n] = state.lbr_to[n] = state.lbr_info[n] = 0
        self.switched(on=False)

    def switched(self, on: bool) -> None:
        """IA32_DEBUGCTL.LBR has been written."""
        self._changed(on and self._format is not None and self._format.has_cycles)
        self._state.lbr_clock = self._state.retired_end - self._state.budget & U64

    # --- what guests read and write ----------------------------------------------------------------------

    def read(self, index: int) -> int:
        """RDMSR of one of LBR_MSRS; MsrAccessError where the guest gets #GP(0)."""
        shown, state = self._shown(index), self._state
        plain = {MSR_LBR_SELECT: "lbr_select", MSR_LASTBRANCH_TOS: "lbr_tos", MSR_LER_FROM_LIP: "ler_from",
                 MSR_LER_TO_LIP: "ler_to"}
        if index in plain:
            return int(getattr(state, plain[index]))
        number = index % LBR_ENTRIES
        info = int(state.lbr_info[number])
        if index in FROM_IP:
            return int(state.lbr_from[number]) & ~shown.in_from | info & shown.in_from
        if index in INFO:
            return info & shown.in_info
        to = int(state.lbr_to[number])
        return to & (1 << CYCLES_SHIFT) - 1 | (info & INFO_CYCLES) << CYCLES_SHIFT if shown.cycles_in_to else to

    def write(self, index: int, value: int, host_initiated: bool = False) -> None:
        """WRMSR of one of LBR_MSRS; MsrAccessError where the guest gets #GP(0)."""
        shown, state = self._shown(index, value), self._state
        if index == MSR_LBR_SELECT:
            self._check(index, value, value < SELECT_EN_CALLSTACK << shown.call_stack)
            state.lbr_select = value
        elif index == MSR_LASTBRANCH_TOS:
            self._check(index, value, value < shown.depth)
            state.lbr_tos = value
        elif index in (MSR_LER_FROM_LIP, MSR_LER_TO_LIP):
            self._check(index, value, host_initiated and self._canonical(value))
            setattr(state, "ler_from" if index == MSR_LER_FROM_LIP else "ler_to", value)
        elif index in INFO:
            self._check(index, value, not value & ~shown.in_info)
            self._keep(index, value, shown.in_info)
        else:
            self._write_address(index, value, shown)

    def _write_address(self, index: int, value: int, shown: Format) -> None:
        number, address = index % LBR_ENTRIES, value
        if index in FROM_IP:
            address = _extended(value, 64 - shown.in_from.bit_count())  # those bits are the highest
        elif shown.cycles_in_to:
            address = _extended(value, CYCLES_SHIFT)
        self._check(index, value, self._canonical(address))
        if index in FROM_IP:
            self._keep(index, value, shown.in_from)
            self._state.lbr_from[number] = address
        else:
            if shown.cycles_in_to:
                self._keep(index, value >> CYCLES_SHIFT, INFO_CYCLES)
            self._state.lbr_to[number] = address

    def _keep(self, index: int, value: int, bits: int) -> None:
        """Take these bits of an entry's information from `value`."""
        number = index % LBR_ENTRIES
        self._state.lbr_info[number] = int(self._state.lbr_info[number]) & ~bits | value & bits

    def _shown(self, index: int, value: int | None = None) -> Format:
        """The format; MsrAccessError for a register that does not belong to it."""
        shown = self._format
        entry = index in FROM_IP or index in TO_IP or index in INFO
        if shown is None or entry and index % LBR_ENTRIES >= shown.depth or index in INFO and not shown.in_info:
            raise MsrAccessError(index, value)
        return shown

    @staticmethod
    def _check(index: int, value: int, fine: bool) -> None:
        if not fine:
            raise MsrAccessError(index, value)


@dataclass(frozen=True, slots=True)
class BranchRecord:
    """One entry: two addresses, and INFO_*."""

    source: int
    target: int
    info: int


def branch_records(msrs: Mapping[int, int], number: int) -> list[BranchRecord]:
    """The entries that are not empty, latest first, from the registers of a format."""
    shown, found = FORMATS[number], []
    for age in range(shown.depth):
        n = (msrs[MSR_LASTBRANCH_TOS] - age) % shown.depth
        source, target, info = msrs[FROM_IP[n]], msrs[TO_IP[n]], msrs.get(INFO[n], 0)
        if source or target:
            info |= source & shown.in_from | (target >> CYCLES_SHIFT if shown.cycles_in_to else 0)
            found.append(BranchRecord(_extended(source, 64 - shown.in_from.bit_count()),
                                      _extended(target, CYCLES_SHIFT) if shown.cycles_in_to else target, info))
    return found


def registers(number: int) -> list[int]:
    """The registers that a format has."""
    shown = FORMATS[number]
    ranges = (FROM_IP, TO_IP, *((INFO,) if shown.in_info else ()))
    return sorted((MSR_LBR_SELECT, MSR_LASTBRANCH_TOS, MSR_LER_FROM_LIP, MSR_LER_TO_LIP,
                   *(index for each in ranges for index in each[:shown.depth])))


def _extended(value: int, bits: int) -> int:
    """The low `bits` bits, sign-extended to 64."""
    low = value & (1 << bits) - 1
    return low | (U64 >> bits << bits if low >> bits - 1 else 0)
