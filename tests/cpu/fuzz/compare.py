"""The same case on two executors, which must leave the same machine behind.

`blocks` is the interpreter with chained blocks, `step` the same one instruction at a time, `plain` the run loop and
everything below it as plain Python, `regions` the interpreter with some of its blocks compiled by the region compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pellucid.cpu.code_cache import Block, CodeCache, Op
from pellucid.cpu.state import CpuState
from pellucid.engine import handlers
from pellucid.engine import run as run_loop
from pellucid.engine.processor import Engine
from pellucid.engine.region import CompiledRegion, compile_region, region_program
from pellucid.native import TailCall, ptr
from pellucid.native.image import Root
from pellucid.native.program import Program

from .guest import Broken, Guest, Trace
from .situation import Situation, situation

_STEPS = 5_000
_PLAIN_STEPS = 40


class PlainEngine:
    """An `Engine` whose `run` is the native run loop's source, executed by Python."""

    _roots: dict[int, tuple[Any, tuple[Any, ...]]] | None = None

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        if PlainEngine._roots is None:
            PlainEngine._roots = {
                engine.image.address[name]: (fn, tuple(p.value for p in params[2:]))
                for name, (fn, params) in handlers.roots().items() if fn.tail}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, address: int) -> int:
        """See `engine.run.run`."""
        compiled_only, run_loop.invoke = run_loop.invoke, self._follow  # type: ignore[attr-defined]
        try:
            return int(run_loop.run(ptr[CpuState](address)))
        finally:
            run_loop.invoke = compiled_only  # type: ignore[attr-defined]

    def _follow(self, target: Any, *arguments: Any) -> None:
        """Handlers from one op on, each called as the Python function it was compiled from."""
        assert PlainEngine._roots is not None
        while True:
            fn, constants = PlainEngine._roots[int(target)]
            try:
                fn(*arguments, *constants)
            except TailCall as call:
                target, arguments = call.target, call.args_
            else:
                return


def differences(first: dict[str, object], second: dict[str, object]) -> list[str]:
    """What differs between two snapshots, in words."""
    found = []
    for name, one in first.items():
        two = second[name]
        if one == two:
            continue
        if isinstance(one, int):
            found.append(f"{name}: {one:#x} {two:#x}")
            continue
        pairs = list(enumerate(zip(one, two, strict=True)))  # type: ignore[call-overload]
        where = [f"[{n:#x}] {a:#x} {b:#x}" for n, (a, b) in pairs if a != b]
        found.append(f"{name}: {', '.join(where[:4])}{' ...' if where[4:] else ''}")
    return found


def _same(case: Situation, kind: str, one: tuple[Trace, dict[str, object]],
          two: tuple[Trace, dict[str, object]]) -> None:
    found = differences(one[1], two[1])
    for n, (first, second) in enumerate(zip(one[0].exits, two[0].exits, strict=False)):
        if first != second:
            found.insert(0, f"exit {n}: {first} {second}")
            break
    if len(one[0].exits) != len(two[0].exits):
        found.append(f"exits: {len(one[0].exits)} {len(two[0].exits)}")
    if found:
        raise Broken(f"{kind} ({case.name}): " + "; ".join(found))


def blocks_and_steps(guest: Guest, seed: str) -> bool:
    """Compare chained blocks with single instructions; False for a case that does not end by itself."""
    case = situation(seed, tame=True)
    guest.enter(case)
    trace = guest.run(case, step=False, events=False)
    if not trace.ended:
        return False
    seen = trace, guest.snapshot()
    guest.enter(case)
    stepped = guest.run(case, step=True, events=False, limit=_STEPS)
    if not stepped.ended:
        return False
    _same(case, "blocks and steps differ", seen, (stepped, guest.snapshot()))
    return True


def native_and_plain(guest: Guest, plain: Guest, seed: str) -> bool:
    """Compare compiled handlers with plain Python, instruction by instruction at first."""
    case = situation(seed, tame=True)
    seen = []
    for one in (guest, plain):
        one.enter(case)
        trace = one.run(case, step=True, events=False, limit=_PLAIN_STEPS)
        seen.append((trace, one.snapshot()))
    _same(case, "native and plain Python differ", seen[0], seen[1])
    return True


def plain_guest() -> Guest:
    """A guest that plain Python executes."""
    guest = Guest()
    engine: Any = PlainEngine(guest.processor.engine)
    guest.processor.engine = engine
    return guest


def interpreter_and_regions(guest: Guest, seed: str) -> bool:
    """Compare a run with one in which a hot path is compiled; False where nothing was."""
    case = situation(seed, tame=True)
    guest.enter(case)
    trace = guest.run(case, step=False, events=False)
    if not trace.ended:
        return False
    seen = trace, guest.snapshot()
    if not _compile_regions(guest, case):
        return False
    guest.enter(case, keep=True)
    again = guest.run(case, step=False, events=False)
    if not again.ended:
        return False
    _same(case, "interpreter and regions differ", seen, (again, guest.snapshot()))
    return True


@functools.cache
def _compiler() -> tuple[Program, Mapping[str, Root]]:
    return region_program(), handlers.roots()


def _compile_regions(guest: Guest, case: Situation) -> int:
    """Compile the regions of some blocks that are alive; how many."""
    hot, made = guest.processor.hot, 0
    for ops in case.rng.sample(blocks := list(_blocks(guest)), min(2, len(blocks))):
        pieces = hot.source.region(ops)
        if not pieces:
            continue
        name = f"fuzz_{abs(hash(case.seed)):x}_{made}"
        layout = compile_region(*_compiler(), pieces, name)
        hot._install(hot.generation, pieces, CompiledRegion(layout, name, guest.processor.engine.image.code))
        made += 1
    return made


def _blocks(guest: Guest) -> list[int]:
    """The first ops of all blocks alive in the arena."""
    code = CodeCache.view(guest.processor._code.address)
    found, at, end = [], code.arena, code.arena + code.arena_used
    while at < end:
        header = Block.view(at)
        if not header.dead:
            found.append(header.ops)
        at = header.ops + header.count * Op.size
    return found

