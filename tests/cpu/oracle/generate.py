"""Cases for the differential tests: encodings of every chosen instruction, each with states to start from.

The same seed gives the same cases, whatever else is chosen beside them: every `Code` draws from its own generator.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import iced_x86

from . import layout
from .catalog import CODE_NAMES, MMX, X87, features_of
from .catalog import instructions as instructions
from .encoding import Variant, variants
from .safety import stays_inside
from .situation import Operand, Pool, Situation, situate
from .special import adjust
from .state import UserState

from pellucid.records import dataclass

FWAIT = b"\x9b"
_FCW_MASKS = 0x3F
_ATTEMPTS = 4


@dataclass(frozen=True)
class Case:
    """One thing to compare: machine code, the state it starts from, and what the code is.

    `code` is iced-x86's `Code` number; `memory` lists the memory operands that have one known place.
    An x87 instruction with an exception unmasked is followed by FWAIT, where the exception becomes #MF.
    """

    code: int
    data: bytes
    bits: int
    state: UserState
    instruction: iced_x86.Instruction
    memory: tuple[Operand, ...]
    valid: bool

    @property
    def text(self) -> str:
        """The disassembly."""
        formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
        return formatter.format(self.instruction) + (
            "" if self.valid else "  (with a prefix or operands it must not have)"
        )

    def __str__(self) -> str:
        return f"{CODE_NAMES[self.code]}: {self.text}  [{self.data.hex(' ')}] at {self.state.rip:#x}, {self.bits} bits"


def case_for(rng: random.Random, pool: Pool, variant: Variant) -> Case | None:
    """Situate `variant`, adjust it to its mnemonic, make a case of it; None when it will not stay inside the layout."""
    for _ in range(_ATTEMPTS):
        situation = situate(rng, pool, variant)
        adjust(situation)
        if stays_inside(situation):
            return _finished(situation)
    return None


def _finished(situation: Situation) -> Case:
    variant = situation.variant
    data = variant.data
    if features_of(variant.code) & (X87 | MMX) and situation.state.fcw & _FCW_MASKS != _FCW_MASKS:
        data += FWAIT
    data = data[: layout.CODE + layout.CODE_SIZE - variant.ip]  # what would lie in the hole cannot be put there
    return Case(
        variant.code, data, variant.bits, situation.state, variant.decoded, tuple(situation.memory), variant.valid
    )


def cases(codes: Iterable[int], per_code: int = 16, states: int = 2, seed: int = 0, bits: int = 64) -> Iterator[Case]:
    """About `per_code` cases for each code, `states` of them for each encoding.

    A code has up to 13 operand forms (`encoding.forms`), so `per_code` >= 13 * `states` reaches all of them.
    """
    pool = Pool(random.Random(f"pool/{seed}"))
    for code in codes:
        rng = random.Random(f"{seed}/{bits}/{code}")
        for variant in variants(code, -(-per_code // states), rng, bits):
            for _ in range(states):
                case = case_for(rng, pool, variant)
                if case is not None:
                    yield case
