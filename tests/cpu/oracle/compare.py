"""Compares two outcomes of a case, and runs families of cases on the host and on an executor.

with HostCpu() as host:
    report = run_family(engine, host, instructions(features=MMX), per_code=26, seed=1)
assert report.ok, report
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import iced_x86

from . import layout
from .generate import Case, cases
from .hostcpu import HostCpu
from .outcome import Executor, Outcome
from .state import FLAG_NAMES, GPR_NAMES, RF, SEGMENT_NAMES, UserState
from .undefined import Undefined, approximately_equal, pointers_cleared, undefined

from pellucid.records import dataclass, field

COMPARED_FLAGS = (1 << 22) - 1 & ~RF
"""All of RFLAGS but RF, whose image depends on how an exception is delivered."""

_CHUNK = 512
_factory = iced_x86.InstructionInfoFactory()


@runtime_checkable
class BatchExecutor(Protocol):
    """An executor that runs many cases at once more cheaply than one by one."""

    def run_many(self, cases: Iterable[tuple[bytes, UserState, int]]) -> list[Outcome]:
        """The outcomes, in order."""
        ...


@dataclass(frozen=True)
class Failure:
    """A case whose outcomes differ, and the readable report."""

    case: Case
    text: str


@dataclass
class Report:
    """What a family run gave.

    `str()` is meant for an assertion message: it shows the first failures and counts the rest.
    """

    cases: int = 0
    failures: list[Failure] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every case could be judged, and agreed."""
        return not self.failures and not self.lost

    def __str__(self) -> str:
        shown = [failure.text for failure in self.failures[:5]]
        kinds: dict[str, int] = {}
        for failure in self.failures:
            name = str(failure.case).split(":", 1)[0]
            kinds[name] = kinds.get(name, 0) + 1
        summary = ", ".join(f"{name} {count}" for name, count in sorted(kinds.items(), key=lambda item: -item[1])[:40])
        head = f"{len(self.failures)} of {self.cases} cases differ from the host"
        return "\n\n".join(
            [head + (f": {summary}" if summary else ""), *shown, *(f"lost: {text}" for text in self.lost[:5])]
        )


def same(host: Outcome, guest: Outcome) -> bool:
    """Whether nothing differs at all; cheap, and true for most cases."""
    a, b = host.state, guest.state
    return (
        host.fault == guest.fault
        and a.gpr == b.gpr
        and a.rip == b.rip
        and (a.rflags ^ b.rflags) & COMPARED_FLAGS == 0
        and (a.xsave == b.xsave or pointers_cleared(a) == pointers_cleared(b))
        and a.mem == b.mem
        and a.selectors == b.selectors
        and (a.fs_base, a.gs_base) == (b.fs_base, b.gs_base)
        and guest.lost is None
    )


def diff(case: Case, host: Outcome, guest: Outcome) -> str | None:
    """None when the outcomes agree in all that the manual defines.

    Otherwise a report with inputs, both outputs and what differs.
    """
    if same(host, guest):
        return None
    lines = list(_differences(case, host, guest))
    if not lines:
        return None
    return "\n".join([str(case), *(f"  {line}" for line in [*lines, *_inputs(case)])])


def _differences(case: Case, host: Outcome, guest: Outcome) -> Iterator[str]:
    if guest.lost is not None:
        yield f"guest: {guest.lost}; host: {_ending(host)}"
        return
    if host.fault != guest.fault:
        yield f"host: {_ending(host)}; guest: {_ending(guest)}"
        return
    rules = undefined(case, host)
    a, b = host.state, guest.state
    if a.rip != b.rip:
        yield _pair("rip", case.state.rip, a.rip, b.rip)
    flags = (a.rflags ^ b.rflags) & COMPARED_FLAGS & ~rules.rflags
    if flags:
        yield f"{_pair('rflags', case.state.rflags, a.rflags, b.rflags)}: {_flag_names(flags)}"
    for number, name in enumerate(GPR_NAMES):
        if (a.gpr[number] ^ b.gpr[number]) & ~rules.gpr.get(number, 0):
            yield _pair(name, case.state.gpr[number], a.gpr[number], b.gpr[number])
    for number, name in enumerate(SEGMENT_NAMES):
        if a.selectors[number] != b.selectors[number]:
            yield _pair(name, case.state.selectors[number], a.selectors[number], b.selectors[number])
    if not rules.bases:
        for name in ("fs_base", "gs_base"):
            if getattr(a, name) != getattr(b, name):
                yield _pair(name, getattr(case.state, name), getattr(a, name), getattr(b, name))
    yield from _x87_differences(case.state, a, b, rules)
    yield from _vector_differences(case.state, a, b, rules)
    if not rules.all_memory:
        yield from _memory_differences(case.state, a, b, rules)


def _x87_differences(before: UserState, a: UserState, b: UserState, rules: Undefined) -> Iterator[str]:
    if a.fcw != b.fcw:
        yield _pair("fcw", before.fcw, a.fcw, b.fcw)
    if (a.fsw ^ b.fsw) & ~rules.fsw:
        yield f"{_pair('fsw', before.fsw, a.fsw, b.fsw)}: bits {_bit_list((a.fsw ^ b.fsw) & ~rules.fsw)}"
    if a.ftw != b.ftw and not rules.tags:
        yield _pair("ftw (abridged)", before.ftw, a.ftw, b.ftw)
    if (a.fsw ^ b.fsw) >> 11 & 7:
        return
    for index in range(8):
        left, right = a.st(index), b.st(index)
        close = rules.approximate == "transcendental" and approximately_equal(left, right, "transcendental")
        if left != right and not close and index not in rules.st:
            yield _pair(f"st{index}", before.st(index), left, right, 20)


def _vector_differences(before: UserState, a: UserState, b: UserState, rules: Undefined) -> Iterator[str]:
    if a.mxcsr != b.mxcsr:
        yield f"{_pair('mxcsr', before.mxcsr, a.mxcsr, b.mxcsr)}: bits {_bit_list(a.mxcsr ^ b.mxcsr)}"
    if a.xsave[160:] == b.xsave[160:]:
        return
    for index in range(16):
        left, right = a.ymm(index), b.ymm(index)
        close = rules.approximate == "reciprocal" and approximately_equal(left, right, "reciprocal")
        if left != right and not close and index not in rules.vectors:
            yield _pair(f"ymm{index}", before.ymm(index), left, right, 64)


def _memory_differences(before: UserState, a: UserState, b: UserState, rules: Undefined) -> Iterator[str]:
    """Runs of differing bytes, at most eight of them."""
    ignored = {address + offset for address, size in rules.memory for offset in range(size)}
    runs: list[list[int]] = []
    for page in sorted(a.mem.keys() | b.mem.keys()):
        left, right = a.read(page, layout.PAGE), b.read(page, layout.PAGE)
        if left == right:
            continue
        for offset in range(layout.PAGE):
            if left[offset] != right[offset] and page + offset not in ignored:
                if runs and runs[-1][1] == page + offset:
                    runs[-1][1] += 1
                else:
                    runs.append([page + offset, page + offset + 1])
    for start, end in runs[:8]:
        size = min(end - start, 32)
        texts = [state.read(start, size).hex() for state in (before, a, b)]
        yield f"[{start:#x}] {end - start} bytes: before {texts[0]} host {texts[1]} guest {texts[2]}"
    if len(runs) > 8:
        yield f"... and {len(runs) - 8} more places in memory"


def _pair(name: str, before: int, host: int, guest: int, digits: int = 0) -> str:
    return f"{name}: before {before:#0{digits + 2}x} host {host:#0{digits + 2}x} guest {guest:#0{digits + 2}x}"


def _ending(outcome: Outcome) -> str:
    return (
        f"raises {outcome.fault} at {outcome.state.rip:#x}"
        if outcome.fault
        else f"completes, RIP {outcome.state.rip:#x}"
    )


def _flag_names(bits: int) -> str:
    known = [name for bit, name in FLAG_NAMES.items() if bits & bit]
    rest = bits & ~sum(FLAG_NAMES)
    return " ".join(known + ([f"bits {_bit_list(rest)}"] if rest else []))


def _bit_list(bits: int) -> str:
    return ", ".join(str(bit) for bit in range(bits.bit_length()) if bits >> bit & 1)


def _inputs(case: Case) -> Iterator[str]:
    """The input registers and memory that the instruction uses."""
    registers: Any = iced_x86.RegisterExt
    state = case.state
    parts = [f"rflags={state.rflags:#x}"]
    info: Any = _factory.info(case.instruction)
    for used in info.used_registers():
        number = registers.number(registers.full_register(used.register))
        if registers.is_gpr(used.register):
            parts.append(f"{GPR_NAMES[number]}={state.gpr[number]:#x}")
        elif registers.is_vector_register(used.register):
            parts.append(f"ymm{number}={state.ymm(number):#066x}")
        elif registers.is_st(used.register):
            parts.append(f"st{number}={state.st(number):#022x}")
        elif registers.is_mm(used.register):
            parts.append(f"mm{number}={state.mm(number):#018x}")
    yield "inputs: " + " ".join(dict.fromkeys(parts))
    yield f"        mxcsr={state.mxcsr:#x} fcw={state.fcw:#x} fsw={state.fsw:#x} ftw={state.ftw:#x}"
    for operand in case.memory:
        try:
            content = state.read(operand.address, min(operand.size, 32)).hex()
        except KeyError:
            content = "not all mapped"
        yield f"        [{operand.address:#x}] {operand.size} bytes: {content}"


def run_cases(
    executor: Executor,
    host: HostCpu,
    generated: Iterable[Case],
    limit: int = 200,
    on_case: Callable[[Case], None] | None = None,
) -> Report:
    """Run cases on both sides and compare; stops after `limit` failures.

    `on_case` is told of each case before the executor runs it.
    """
    report = Report()
    iterator = iter(generated)
    while len(report.failures) < limit and (chunk := list(islice(iterator, _CHUNK))):
        hosts = host.run_many((case.data, case.state, case.bits) for case in chunk)
        for case, expected, actual in zip(chunk, hosts, _run(executor, chunk, on_case), strict=True):
            report.cases += 1
            if expected.lost is not None:
                report.lost.append(f"{case}: the host {expected.lost}")
                continue
            text = diff(case, expected, actual)
            if text is not None:
                report.failures.append(Failure(case, text))
    return report


def _run(executor: Executor, chunk: Sequence[Case], on_case: Callable[[Case], None] | None) -> Iterator[Outcome]:
    if isinstance(executor, BatchExecutor) and on_case is None:
        yield from executor.run_many((case.data, case.state, case.bits) for case in chunk)
        return
    for case in chunk:
        if on_case is not None:
            on_case(case)
        yield executor.run(case.data, case.state.copy(), case.bits)


def run_family(
    executor: Executor,
    host: HostCpu,
    codes: Iterable[int],
    *,
    per_code: int = 26,
    states: int = 2,
    seed: int = 0,
    bits: int = 64,
    limit: int = 200,
) -> Report:
    """Generate cases for `codes` (see `generate.cases`) and compare them on both sides.

    The environment variable PELLUCID_ORACLE_SCALE (a whole number) multiplies `per_code`, for a long hunt.
    """
    scale = int(os.environ.get("PELLUCID_ORACLE_SCALE", "1"))
    return run_cases(executor, host, cases(codes, per_code * scale, states, seed, bits), limit)
