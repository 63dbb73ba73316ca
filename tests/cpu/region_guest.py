"""The oracle's cases as compiled regions: the third executor, beside those of `guest`.

    guest = RegionGuest()
    report = run_cases(guest, host, guest.sample(codes, seed=1, bits=64))

A batch of cases is run twice. First each is interpreted, with a copy of the code area of its own, so that its blocks
stay; then all blocks are compiled as one module, and every case runs again, through a small function that counts
and goes on in the case's region. A case whose region was not entered is lost: nothing falls back unseen.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice

import iced_x86

from pellucid.cpu.code_cache import Block, Op
from pellucid.cpu.state import MODE_32, MODE_64
from pellucid.engine.region import Piece, module_text, region_program
from pellucid.native.code import Code
from pellucid.native.linker import lay_out
from pellucid.native.program import Program
from pellucid.native.target import compile_object
from pellucid.records import dataclass, replace

from tests.engine.code import roots

from .guest import CODE_PAGES, NativeGuest, Space
from .oracle import layout
from .oracle.encoding import Variant, variants
from .oracle.generate import Case, case_for
from .oracle.outcome import Outcome
from .oracle.situation import Pool
from .oracle.state import TF, UserState

BATCH = 96
"""Encodings compiled as one module."""
_ENCODINGS, _LONGEST = 26, 16
_COMPARING = tuple(bytes.fromhex(code) for code in "38c8 6639c8 39c8 4839c8 84c8 6685c8 85c8 4885c8".split())
_COUNTING = tuple(bytes.fromhex(code) for code in "fec0 66ffc0 ffc0 48ffc0 fec8 66ffc8 ffc8 48ffc8".split())
SETTERS = {"cmov:": _COMPARING, "setcc:": _COMPARING, "jcc:": _COMPARING + _COUNTING}
"""CMP and TEST of RAX with RCX, INC and DEC of RAX, in each width: the kinds of flags that conditions are made for.

REX.W is an instruction of its own in 32-bit code, and does no harm there.
"""
Placed = tuple[bytes, UserState, int]
"""Code, the state it starts from, and its width in bits."""


@dataclass(frozen=True)
class Entry:
    """What `HotCode` installs: the address by which a region is entered."""

    address: int


def behind(setter: bytes, case: Case) -> Case:
    """The case with another instruction before it, which leaves everything but flags alone."""
    state = case.state.copy()
    state.rip -= len(setter)
    return replace(case, data=setter + case.data, state=state)


class Compiled:
    """Regions by number, linked into this process; each entry counts and goes on in its region."""

    def __init__(self, program: Program, regions: Mapping[int, list[Piece]], image: Code) -> None:
        self.regions = regions
        self._counts = (ctypes.c_uint64 * (max(regions, default=0) + 1))()
        text = [module_text(program, roots(), {f"case{number}": pieces for number, pieces in regions.items()})]
        names = {number: f"enter{number}" for number in regions}
        made = compile_object("\n".join(text + [self._counting(number) for number in regions]))
        self._code = Code(lay_out([made]), [image])
        self.entries = {number: Entry(self._code[name]) for number, name in names.items()}

    def _counting(self, number: int) -> str:
        place = f"ptr inttoptr (i64 {ctypes.addressof(self._counts) + 8 * number} to ptr)"
        return (f'define tailcc void @"enter{number}"(ptr noalias %s, ptr %o) noinline nounwind {{\n'
                f"  %n = load volatile i64, {place}\n  %m = add i64 %n, 1\n  store volatile i64 %m, {place}\n"
                f'  musttail call tailcc void @"case{number}"(ptr %s, ptr %o)\n  ret void\n}}\n')

    def entered(self, number: int) -> int:
        """How often the region was entered; 0 for one that does not exist."""
        return self._counts[number] if number in self.regions else 0


class RegionGuest(NativeGuest):
    """Every case as a compiled region."""

    def __init__(self) -> None:
        super().__init__(Space(copies=BATCH))
        for copy in range(BATCH):
            self.space.select_code(copy)
            for page in CODE_PAGES:
                self.space.write(page, bytes([layout.INT3]) * layout.PAGE)
        self.processor.hot.close()
        self.program = region_program()
        self.code = self.processor.engine.image.code
        self.names = list(self.processor.engine.numbers)
        self.reached: set[int] = set()
        """The handlers whose roots stand in a region that was compiled."""
        self.regions = 0
        self._sampled: set[str] = set()

    # --- which cases -------------------------------------------------------------------------------------

    def sample(self, codes: Iterable[int], seed: int, bits: int, states: int = 4) -> Iterator[Case]:
        """For each instruction form of these codes that had none yet one encoding, with several states.

        A conditional instruction comes alone, and behind an instruction that leaves each kind of flags that it knows.
        Left out are single-stepped cases and instructions that cross a page, which regions never hold.
        """
        pool = Pool(random.Random(f"pool/{seed}"))
        for code in codes:
            rng = random.Random(f"{seed}/{bits}/{code}")
            for variant in variants(code, _ENCODINGS, rng, bits):
                if variant.decoded.code == 0 or (variant.ip & layout.PAGE - 1) + _LONGEST > layout.PAGE:
                    continue
                root = self.root(variant)
                if root in self._sampled:
                    continue
                made = [case for _ in range(states) if (case := case_for(rng, pool, variant)) is not None]
                made = [case for case in made if not case.state.rflags & TF]
                if made:
                    self._sampled.add(root)
                yield from made
                setters = SETTERS.get(root[:root.index(":") + 1], ())
                yield from (behind(setter, case) for setter in setters for case in made[:2])

    def root(self, variant: Variant) -> str:
        """The name of an instruction's handler."""
        decoder = iced_x86.Decoder(variant.bits, variant.data, ip=variant.ip)
        instruction = decoder.decode()
        mode = MODE_64 if variant.bits == 64 else MODE_32
        ops, _, _ = self.processor.learner._ops(instruction, decoder.get_constant_offsets(instruction), mode)
        return self.names[ops[-1]["handler"]]

    # --- running -----------------------------------------------------------------------------------------

    def run(self, code: bytes, state: UserState, bits: int = 64) -> Outcome:
        return self.run_many([(code, state, bits)])[0]

    def run_many(self, cases: Iterable[Placed]) -> list[Outcome]:
        """Run cases in order, a batch compiled at a time."""
        waiting, outcomes = iter(cases), list[Outcome]()
        while batch := list(islice(waiting, BATCH)):
            outcomes += self._run_batch(batch)
        return outcomes

    def _run_batch(self, batch: list[Placed]) -> list[Outcome]:
        keys = [(code, state.rip, bits, state.mxcsr & 0x1F80 == 0x1F80) for code, state, bits in batch]
        copies = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        placed = [(case, copies[key]) for case, key in zip(batch, keys, strict=True)]
        keys_of_blocks = {copy: self._interpret(case, copy) for case, copy in placed}
        translated = dict(self._blocks())
        compiled = self._compile({copy: translated.get(key, 0) for copy, key in keys_of_blocks.items()})
        outcomes = [self._run_compiled(case, copy, compiled) for case, copy in placed]
        for (code, rip, _, _), copy in copies.items():
            self._select(copy)
            self._put_code(rip, bytes([layout.INT3]) * len(code))
        self.processor.flush_code()
        return outcomes

    def _select(self, copy: int) -> None:
        self.space.select_code(copy)
        for page in CODE_PAGES:
            self.processor.engine.flush_one(self.processor.address, page)

    def _place(self, rip: int, code: bytes) -> None:
        """Only where it does not stand yet: its blocks shall stay."""
        if ctypes.string_at(self.space.host(rip), len(code)) != code:
            self._put_code(rip, code)

    def _interpret(self, case: Placed, copy: int) -> tuple[int, int]:
        """Have the case's blocks translated and chained; host address and mode of the first."""
        self._select(copy)
        self._enter(*case)
        key = self.space.host(case[1].rip), int(self.state.mode)
        self._leave(*case, self.execute())
        return key

    def _blocks(self) -> Iterator[tuple[tuple[int, int], int]]:
        """Every block in the arena, by host address and mode: its first op."""
        code = self.processor.code
        at = code.arena
        while at < code.arena + code.arena_used:
            header = Block.view(at)
            yield (header.host, header.mode), header.ops
            at += Block.size + header.count * Op.size

    def _compile(self, blocks: Mapping[int, int]) -> Compiled:
        """Regions of these blocks, installed, by the number of their copy."""
        hot = self.processor.hot
        regions = {copy: hot.source.region(ops) for copy, ops in blocks.items() if ops}
        compiled = Compiled(self.program, {copy: pieces for copy, pieces in regions.items() if pieces}, self.code)
        for copy, pieces in compiled.regions.items():
            hot._install(hot.generation, pieces, compiled.entries[copy])
            self.reached.update(step.handler for piece in pieces for step in piece.steps)
        self.regions += len(compiled.regions)
        return compiled

    def _run_compiled(self, case: Placed, copy: int, compiled: Compiled) -> Outcome:
        self._select(copy)
        self.cases += 1
        self._enter(*case)
        before = compiled.entered(copy)
        outcome = self._leave(*case, self.execute())
        if compiled.entered(copy) == before:
            outcome.lost = "its region was not executed"
        return outcome
